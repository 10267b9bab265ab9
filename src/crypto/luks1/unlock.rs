//! From a passphrase to the master key, section 2.5 of the specification ("Recovering the master
//! key").

use std::fmt;

use zeroize::Zeroizing;

use super::header::{Header, Keyslot, SlotState};
use super::{DIGEST_BYTES, SECTOR_BYTES};
use crate::crypto::af;
use crate::crypto::cipher::SectorCipher;
use crate::crypto::error::{CryptoError, Result};
use crate::ondisk::units::to_usize;

/// The key everything is encrypted with; wiped when dropped, never shown.
pub struct MasterKey(Zeroizing<Vec<u8>>);

impl MasterKey {
    pub(super) fn new(key: Zeroizing<Vec<u8>>) -> Self {
        Self(key)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

impl Header {
    /// Tries all active keyslots. `read` fills a buffer from an offset in the header's area. `None`:
    /// the passphrase opens none of them.
    ///
    /// # Errors
    /// What `read` reports, if the other keyslots do not open either.
    pub fn unlock<E: From<CryptoError>>(
        &self,
        passphrase: &[u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<MasterKey>, E> {
        let mut failed = None;
        for slot in &self.slots {
            if slot.state != SlotState::Active {
                continue;
            }
            let len = to_usize(slot.material_bytes(self.cipher.key_len())).unwrap_or_default();
            let mut material = Zeroizing::new(vec![0; len]);
            if let Err(error) = read(slot.offset, &mut material) {
                failed = Some(error);
                continue;
            }
            if let Some(key) = self.try_slot(slot, passphrase, &mut material)? {
                return Ok(Some(key));
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Tries one keyslot, with its key material as it is stored.
    ///
    /// # Errors
    /// As [`crate::crypto::cipher::CipherSpec::with_key`].
    fn try_slot(
        &self,
        slot: &Keyslot,
        passphrase: &[u8],
        material: &mut [u8],
    ) -> Result<Option<MasterKey>> {
        let key_len = self.cipher.key_len();
        self.slot_cipher(slot, passphrase)?
            .decrypt(0, material.as_chunks_mut::<SECTOR_BYTES>().0);
        // The last sector may not be full.
        let stripes = usize::try_from(slot.stripes).unwrap_or_default();
        let key = material
            .get(..stripes.saturating_mul(key_len))
            .and_then(|stripes| af::merge(self.hash, stripes, key_len));
        Ok(key
            .filter(|key| self.digest_of(key) == self.digest)
            .map(MasterKey))
    }

    /// The cipher of a keyslot's key material.
    pub(super) fn slot_cipher(&self, slot: &Keyslot, passphrase: &[u8]) -> Result<SectorCipher> {
        let mut key = Zeroizing::new(vec![0; self.cipher.key_len()]);
        self.hash
            .pbkdf2(passphrase, &slot.salt, slot.iterations, &mut key);
        self.cipher.with_key(&key)
    }

    /// What tells whether a key is the right one.
    pub(super) fn digest_of(&self, key: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        self.hash
            .pbkdf2(key, &self.digest_salt, self.digest_iterations, &mut digest);
        digest
    }

    /// The cipher of the payload.
    ///
    /// # Errors
    /// As [`crate::crypto::cipher::CipherSpec::with_key`].
    pub fn payload_cipher(&self, key: &MasterKey) -> Result<SectorCipher> {
        self.cipher.with_key(key.as_bytes())
    }

    /// The keyslots that are in use but cannot be tried, by number, with the reason.
    pub fn unusable_slots(&self) -> impl Iterator<Item = (usize, &str)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(n, slot)| match &slot.state {
                SlotState::Unusable(why) => Some((n, why.as_str())),
                SlotState::Active | SlotState::Disabled => None,
            })
    }
}
