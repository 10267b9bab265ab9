//! The header ("phdr"), section 5.1 of the specification. All numbers are big-endian.

use super::{
    DIGEST_BYTES, HEADER_BYTES, KEYSLOTS, MAX_ITERATIONS, MAX_STRIPES, MAX_TOTAL_ITERATIONS,
    SALT_BYTES, SECTOR,
};
use crate::crypto::cipher::CipherSpec;
use crate::crypto::error::{CryptoError, Result};
use crate::crypto::hash::Hash;
use crate::ondisk::bytes::{array, be16, be32, slice};
use crate::ondisk::text::{printable, until_nul};
use crate::ondisk::units::{to_u64, usize_from_u32};

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const ACTIVE: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;

const CIPHER_NAME: usize = 8;
const CIPHER_MODE: usize = 40;
const HASH_SPEC: usize = 72;
const PAYLOAD_OFFSET: usize = 104;
const KEY_BYTES: usize = 108;
const DIGEST: usize = 112;
const DIGEST_SALT: usize = 132;
const DIGEST_ITERATIONS: usize = 164;
const UUID: usize = 168;
const SLOTS: usize = 208;
const SLOT_BYTES: usize = 48;
const NAME_BYTES: usize = 32;

/// A validated header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Name of the cipher, printable: `aes`.
    pub cipher_name: String,
    /// Mode and initialisation vectors, printable: `xts-plain64`.
    pub cipher_mode: String,
    /// What both name.
    pub cipher: CipherSpec,
    /// Hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// Where the encrypted data of a volume begin, in bytes.
    pub payload_offset: u64,
    /// Digest of the master key.
    pub digest: [u8; DIGEST_BYTES],
    /// Salt of it.
    pub digest_salt: [u8; SALT_BYTES],
    /// Iterations of it.
    pub digest_iterations: u32,
    /// Universally unique identifier as text, printable.
    pub uuid: String,
    /// The keyslots.
    pub slots: [Keyslot; KEYSLOTS],
}

/// A keyslot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyslot {
    /// Whether it can be tried.
    pub state: SlotState,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// PBKDF2 salt.
    pub salt: [u8; SALT_BYTES],
    /// Where its key material is, in bytes.
    pub offset: u64,
    /// Stripes of it.
    pub stripes: u32,
}

/// Whether a keyslot can be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It holds the key, and all it says is within bounds.
    Active,
    /// It is empty.
    Disabled,
    /// It is in use, but what it says cannot be.
    Unusable(String),
}

fn damaged(what: &str) -> CryptoError {
    CryptoError::damaged(format!("LUKS header: {what}"))
}

impl Header {
    /// Parses the first bytes of a header that has `area_len` bytes in all, key material included.
    ///
    /// # Errors
    /// [`crate::crypto::CryptoErrorKind::Damaged`], or
    /// [`crate::crypto::CryptoErrorKind::Unsupported`] with the name of what is not implemented.
    pub fn parse(data: &[u8], area_len: u64) -> Result<Self> {
        if slice(data, 0, MAGIC.len()) != Some(MAGIC) {
            return Err(damaged("it does not begin with the magic number"));
        }
        let short = || damaged("cut short");
        let data = slice(data, 0, HEADER_BYTES).ok_or_else(short)?;
        let u32_at = |at| be32(data, at).ok_or_else(short);
        let text_at = |at, len| {
            let text = slice(data, at, len).ok_or_else(short)?;
            Ok(printable(until_nul(text)))
        };
        match be16(data, 6) {
            Some(1) => {}
            version => {
                return Err(CryptoError::unsupported(format!(
                    "LUKS version {} is not supported here, only 1",
                    version.unwrap_or_default()
                )));
            }
        }
        let cipher_name = text_at(CIPHER_NAME, NAME_BYTES)?;
        let cipher_mode = text_at(CIPHER_MODE, NAME_BYTES)?;
        let hash = Hash::by_name(&text_at(HASH_SPEC, NAME_BYTES)?)?;
        let key_len = usize_from_u32(u32_at(KEY_BYTES)?);
        let cipher = CipherSpec::parse(&cipher_name, &cipher_mode, key_len)?;
        let digest_iterations = u32_at(DIGEST_ITERATIONS)?;
        check_iterations(digest_iterations)
            .map_err(|e| damaged(&format!("master key digest: {e}")))?;
        let payload_offset = u64::from(u32_at(PAYLOAD_OFFSET)?).saturating_mul(SECTOR);
        // The payload offset of a detached header is 0.
        let end = match payload_offset {
            0 => area_len,
            payload => payload.min(area_len),
        };
        let mut total = 0_u32;
        let mut slots = Vec::with_capacity(KEYSLOTS);
        for n in 0..KEYSLOTS {
            let at = n.saturating_mul(SLOT_BYTES).saturating_add(SLOTS);
            let mut slot = Keyslot::parse(data, at, key_len, end).ok_or_else(short)?;
            if slot.state == SlotState::Active {
                total = total.saturating_add(slot.iterations);
                if total > MAX_TOTAL_ITERATIONS {
                    slot.state =
                        SlotState::Unusable("all keyslots together cost too much".to_owned());
                }
            }
            slots.push(slot);
        }
        Ok(Self {
            cipher_name,
            cipher_mode,
            cipher,
            hash,
            payload_offset,
            digest: array(data, DIGEST).ok_or_else(short)?,
            digest_salt: array(data, DIGEST_SALT).ok_or_else(short)?,
            digest_iterations,
            uuid: text_at(UUID, 40)?,
            slots: slots.try_into().map_err(|_| short())?,
        })
    }

    /// The header as it is stored, [`HEADER_BYTES`] long.
    pub fn encode(&self) -> Vec<u8> {
        let key_len = u32::try_from(self.cipher.key_len()).unwrap_or_default();
        let mut data = vec![0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in data.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, MAGIC);
        put(6, &1_u16.to_be_bytes());
        put(CIPHER_NAME, self.cipher_name.as_bytes());
        put(CIPHER_MODE, self.cipher_mode.as_bytes());
        put(HASH_SPEC, self.hash.name().as_bytes());
        put(PAYLOAD_OFFSET, &sectors(self.payload_offset).to_be_bytes());
        put(KEY_BYTES, &key_len.to_be_bytes());
        put(DIGEST, &self.digest);
        put(DIGEST_SALT, &self.digest_salt);
        put(DIGEST_ITERATIONS, &self.digest_iterations.to_be_bytes());
        put(UUID, self.uuid.as_bytes());
        for (n, slot) in self.slots.iter().enumerate() {
            let at = n.saturating_mul(SLOT_BYTES).saturating_add(SLOTS);
            let state = match slot.state {
                SlotState::Active => ACTIVE,
                SlotState::Disabled | SlotState::Unusable(_) => DISABLED,
            };
            put(at, &state.to_be_bytes());
            put(at.saturating_add(4), &slot.iterations.to_be_bytes());
            put(at.saturating_add(8), &slot.salt);
            put(at.saturating_add(40), &sectors(slot.offset).to_be_bytes());
            put(at.saturating_add(44), &slot.stripes.to_be_bytes());
        }
        data
    }
}

/// An offset in sectors; those of a header are far below the limit.
fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX)
}

fn check_iterations(iterations: u32) -> Result<(), String> {
    match iterations {
        0 => Err("no iterations".into()),
        1..=MAX_ITERATIONS => Ok(()),
        _ => Err(format!(
            "{iterations} iterations are more than the {MAX_ITERATIONS} that are paid for"
        )),
    }
}

impl Keyslot {
    fn parse(data: &[u8], at: usize, key_len: usize, end: u64) -> Option<Self> {
        let mut slot = Self {
            state: SlotState::Disabled,
            iterations: be32(data, at.checked_add(4)?)?,
            salt: array(data, at.checked_add(8)?)?,
            offset: u64::from(be32(data, at.checked_add(40)?)?).saturating_mul(SECTOR),
            stripes: be32(data, at.checked_add(44)?)?,
        };
        slot.state = match be32(data, at)? {
            DISABLED => SlotState::Disabled,
            ACTIVE => match slot.check(key_len, end) {
                Ok(()) => SlotState::Active,
                Err(why) => SlotState::Unusable(why),
            },
            other => SlotState::Unusable(format!("its state is {other:#010x}")),
        };
        Some(slot)
    }

    fn check(&self, key_len: usize, end: u64) -> Result<(), String> {
        check_iterations(self.iterations)?;
        if self.stripes == 0 || self.stripes > MAX_STRIPES {
            return Err(format!("it has {} stripes", self.stripes));
        }
        let inside = self.offset >= to_u64(HEADER_BYTES)
            && self
                .offset
                .checked_add(self.material_bytes(key_len))
                .is_some_and(|material_end| material_end <= end);
        if inside {
            Ok(())
        } else {
            Err(format!(
                "its key material at {} does not lie in the header's area of {end} bytes",
                self.offset
            ))
        }
    }

    /// Bytes of its key material, whole sectors. At most 1 MiB in an active slot.
    pub fn material_bytes(&self, key_len: usize) -> u64 {
        let bytes = u64::from(self.stripes).saturating_mul(to_u64(key_len));
        bytes.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX)
    }
}
