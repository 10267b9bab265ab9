//! Names of encrypted directories without their key: base64 of the stored bytes in the alphabet
//! that is safe in file names (RFC 4648, section 5), without padding.
//!
//! A name too long for that is cut and ends in a checksum of the whole; looking it up still works,
//! for a lookup encodes the stored names and compares.

use crate::limits::MAX_NAME_BYTES;
use crate::ondisk::checksum::{crc32, crc32c_raw};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Stored bytes of which a long name shows its start.
const HEAD_LEN: usize = 150;

fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for group in bytes.chunks(3) {
        let mut word = 0u32;
        for index in 0..3 {
            word = (word << 8) | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for shift in [18u32, 12, 6, 0]
            .into_iter()
            .take(group.len().saturating_add(1))
        {
            let digit = word.checked_shr(shift).unwrap_or(0) & 63;
            let digit = usize::try_from(digit).unwrap_or(0);
            out.push(ALPHABET.get(digit).copied().unwrap_or(b'_'));
        }
    }
    out
}

/// The name to show for stored bytes.
pub fn shown_name(stored: &[u8]) -> Vec<u8> {
    let whole = base64(stored);
    if whole.len() <= MAX_NAME_BYTES {
        return whole;
    }
    let mut name = base64(stored.get(..HEAD_LEN).unwrap_or(stored));
    name.extend_from_slice(
        format!(".{:08x}{:08x}", crc32(stored), crc32c_raw(!0, stored)).as_bytes(),
    );
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    // Test vectors of RFC 4648, section 10.
    #[test]
    fn base64_vectors() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded.as_bytes());
        }
        assert_eq!(base64(&[0xFB, 0xFF]), b"-_8");
    }

    #[test]
    fn long_names_stay_names() {
        let (mut a, mut b) = ([7u8; 255], [7u8; 255]);
        a[254] = 1;
        b[254] = 2;
        assert!(shown_name(&a).len() <= MAX_NAME_BYTES);
        assert_ne!(shown_name(&a), shown_name(&b));
    }
}
