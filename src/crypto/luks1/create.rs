//! A new header with one keyslot, section 2.4 of the specification ("Initialisation").
//!
//! The layout is that of QEMU and cryptsetup: the header in the first 4 KiB, then the key material
//! of eight keyslots, each on a boundary of 4 KiB.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::header::{Header, Keyslot, SlotState};
use super::unlock::MasterKey;
use super::{DIGEST_BYTES, KEYSLOTS, MAX_ITERATIONS, SALT_BYTES, SECTOR_BYTES, STRIPES};
use crate::crypto::af;
use crate::crypto::cipher::CipherSpec;
use crate::crypto::error::{CryptoError, CryptoErrorKind, Result};
use crate::crypto::hash::Hash;
use crate::ondisk::units::{to_u64, to_usize};

/// Alignment of key material in bytes.
const ALIGN: u64 = 4096;
/// Fewest iterations, as in the specification.
const MIN_ITERATIONS: u32 = 1000;
/// Cipher, mode and key length in bytes of new headers.
const CIPHER: (&str, &str, usize) = ("aes", "xts-plain64", 64);

/// How a header is made.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// How long trying a passphrase is to take on this machine.
    pub unlock_time: Duration,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            hash: Hash::Sha256,
            unlock_time: Duration::from_secs(1),
        }
    }
}

/// A new header for AES-256 in XTS mode and its key. The bytes are the whole area with the key
/// material; what encrypted data follow it in a volume begin at its end.
///
/// # Errors
/// [`CryptoErrorKind::Random`].
pub fn create(passphrase: &[u8], options: CreateOptions) -> Result<(Vec<u8>, MasterKey)> {
    let (cipher_name, cipher_mode, key_len) = CIPHER;
    let cipher = CipherSpec::parse(cipher_name, cipher_mode, key_len)?;
    let key = random(key_len)?;
    let iterations = iterations_for(options.hash, key_len, options.unlock_time);
    let slot_len = u64::from(STRIPES)
        .saturating_mul(to_u64(key_len))
        .next_multiple_of(ALIGN);
    let mut offset = ALIGN;
    let slots = std::array::from_fn::<_, KEYSLOTS, _>(|_| {
        let slot = Keyslot {
            state: SlotState::Disabled,
            iterations: 0,
            salt: [0; SALT_BYTES],
            offset,
            stripes: STRIPES,
        };
        offset = offset.saturating_add(slot_len);
        slot
    });
    let mut header = Header {
        cipher_name: cipher_name.into(),
        cipher_mode: cipher_mode.into(),
        cipher,
        hash: options.hash,
        payload_offset: offset,
        digest: [0; DIGEST_BYTES],
        digest_salt: random_array()?,
        // One digest instead of one for every part of the key, and never worth much time.
        digest_iterations: iterations.checked_div(8).unwrap_or(0).max(MIN_ITERATIONS),
        uuid: uuid::Builder::from_random_bytes(random_array()?)
            .into_uuid()
            .to_string(),
        slots,
    };
    header.digest = header.digest_of(&key);
    let mut area = vec![0; to_usize(offset).unwrap_or_default()];
    if let Some(slot) = header.slots.first_mut() {
        slot.state = SlotState::Active;
        slot.iterations = iterations;
        slot.salt = random_array()?;
    }
    if let Some(slot) = header.slots.first() {
        let material = fill_slot(&header, slot, passphrase, &key)?;
        put(&mut area, slot.offset, &material);
    }
    put(&mut area, 0, &header.encode());
    Ok((area, MasterKey::new(key)))
}

/// The key material of a keyslot.
fn fill_slot(header: &Header, slot: &Keyslot, passphrase: &[u8], key: &[u8]) -> Result<Vec<u8>> {
    let len = to_usize(slot.material_bytes(key.len())).unwrap_or_default();
    let mut material = random(len)?;
    let stripes = usize::try_from(slot.stripes).unwrap_or_default();
    let split = material
        .get_mut(..stripes.saturating_mul(key.len()))
        .is_some_and(|stripes| af::split(header.hash, key, stripes));
    if !split {
        return Err(CryptoError::unsupported("keyslots of this shape"));
    }
    header
        .slot_cipher(slot, passphrase)?
        .encrypt(0, material.as_chunks_mut::<SECTOR_BYTES>().0);
    Ok(material.to_vec())
}

/// PBKDF2 iterations that take `time` on this machine, for a key of `key_len` bytes.
fn iterations_for(hash: Hash, key_len: usize, time: Duration) -> u32 {
    let mut out = Zeroizing::new(vec![0; key_len]);
    let mut iterations = MIN_ITERATIONS;
    // Doubled until it can be measured; ends at the largest count at the latest.
    let took = loop {
        let start = Instant::now();
        hash.pbkdf2(b"measure", &[0; SALT_BYTES], iterations, &mut out);
        let took = start.elapsed();
        if took >= time.min(Duration::from_millis(50)) || iterations >= MAX_ITERATIONS {
            break took;
        }
        iterations = iterations.saturating_mul(2);
    };
    let wanted = u128::from(iterations)
        .saturating_mul(time.as_micros())
        .checked_div(took.as_micros())
        .unwrap_or(u128::from(iterations));
    u32::try_from(wanted)
        .unwrap_or(u32::MAX)
        .clamp(MIN_ITERATIONS, MAX_ITERATIONS)
}

fn random(len: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    getrandom::fill(&mut bytes).map_err(no_random)?;
    Ok(bytes)
}

fn random_array<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(no_random)?;
    Ok(bytes)
}

fn no_random(error: getrandom::Error) -> CryptoError {
    CryptoError::new(
        CryptoErrorKind::Random,
        format!("the host gave no random numbers: {error}"),
    )
}

fn put(area: &mut [u8], at: u64, bytes: &[u8]) {
    let at = to_usize(at).unwrap_or(usize::MAX);
    for (to, from) in area.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEADER_BYTES;
    use super::*;
    use crate::crypto::CryptoError;

    fn quick() -> CreateOptions {
        CreateOptions {
            unlock_time: Duration::ZERO,
            ..CreateOptions::default()
        }
    }

    fn unlock(area: &[u8], passphrase: &[u8]) -> Result<Option<MasterKey>> {
        let header = Header::parse(area, area.len() as u64)?;
        header.unlock(passphrase, |at, buf: &mut [u8]| {
            let at = at as usize;
            buf.copy_from_slice(&area[at..at + buf.len()]);
            Ok::<_, CryptoError>(())
        })
    }

    #[test]
    fn what_was_made_opens() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let options = CreateOptions { hash, ..quick() };
            let (area, key) = create(b"open", options).unwrap();
            assert_eq!(area.len() as u64, 4040 * 512);
            let opened = unlock(&area, b"open").unwrap().unwrap();
            assert_eq!(opened.as_bytes(), key.as_bytes());
            assert!(unlock(&area, b"Open").unwrap().is_none());
            assert!(unlock(&area, b"").unwrap().is_none());
            let header = Header::parse(&area, area.len() as u64).unwrap();
            assert_eq!(header.encode(), area[..HEADER_BYTES]);
            assert_eq!(header.uuid.len(), 36);
        }
    }

    /// Every number of the header at its limits: an error, an unusable keyslot, or nothing opens.
    #[test]
    fn numbers_have_bounds() {
        let (area, _) = create(b"open", quick()).unwrap();
        let len = area.len() as u64;
        let with = |at: usize, bytes: &[u8]| {
            let mut area = area.clone();
            area[at..at + bytes.len()].copy_from_slice(bytes);
            Header::parse(&area, len)
        };
        for (at, bytes, word) in [
            (0, b"L" as &[u8], ""),
            (0, b"M", "magic"),
            (6, &[0, 2], "version 2"),
            (8, b"serpent\0", "serpent"),
            (40, b"ctr-plain64\0", "ctr"),
            (40, b"xts-benbi\0", "benbi"),
            (72, b"whirlpool\0", "whirlpool"),
            (108, &[0, 0, 0, 0], "0 bytes"),
            (108, &[255, 255, 255, 255], "4294967295 bytes"),
            (164, &[0, 0, 0, 0], "no iterations"),
            (164, &[255, 255, 255, 255], "4294967295 iterations"),
        ] {
            let result = with(at, bytes);
            if word.is_empty() {
                assert!(result.is_ok());
                continue;
            }
            let text = result.unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        for (at, number, word) in [
            (208, 1, "state"),
            (212, 0, "no iterations"),
            (212, 32_000_001, "32000001 iterations"),
            (248, 0, "does not lie"),
            (248, 1, "does not lie"),
            (248, u32::MAX, "does not lie"),
            (248, 4040 - 499, "does not lie"),
            (252, 0, "0 stripes"),
            (252, u32::MAX, "stripes"),
        ] {
            let header = with(at, &u32::to_be_bytes(number)).unwrap();
            let unusable: Vec<_> = header.unusable_slots().collect();
            assert_eq!(unusable.len(), 1);
            assert!(unusable[0].1.contains(word), "{unusable:?}");
            let read = |_, _: &mut [u8]| -> Result<()> { unreachable!() };
            assert!(header.unlock(b"open", read).unwrap().is_none());
        }
        // Eight slots, each of them within its bound.
        let mut header = Header::parse(&area, len).unwrap();
        for slot in &mut header.slots {
            slot.state = SlotState::Active;
            slot.iterations = MAX_ITERATIONS;
        }
        let header = Header::parse(&header.encode(), len).unwrap();
        assert_eq!(header.unusable_slots().count(), 5);
        for cut in [0, 5, 100, 591] {
            assert!(Header::parse(&area[..cut], len).is_err());
        }
    }

    #[test]
    fn time_decides_the_iterations() {
        let time = Duration::from_millis(20);
        let few = iterations_for(Hash::Sha256, 64, time);
        let many = iterations_for(Hash::Sha256, 64, time * 20);
        assert!(few >= MIN_ITERATIONS && many > few, "{few} {many}");
        assert!(iterations_for(Hash::Sha1, 64, Duration::from_secs(1 << 20)) == MAX_ITERATIONS);
        assert_eq!(iterations_for(Hash::Sha1, 64, Duration::ZERO), 1000);
    }
}
