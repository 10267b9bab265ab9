//! The anti-forensic splitter: a key spread over many stripes, all of which are needed.
//!
//! Specification: LUKS1 On-Disk Format 1.2.3, section 2.4; C. Fruhwirth, TKS1, section 3.1.

use zeroize::Zeroizing;

use super::hash::Hash;
use crate::ondisk::units::to_u64;

/// The key of `key_len` bytes in `material`, which is whole stripes of that length.
///
/// `None` if it is not.
pub fn merge(hash: Hash, material: &[u8], key_len: usize) -> Option<Zeroizing<Vec<u8>>> {
    if key_len == 0 || material.is_empty() || material.len().checked_rem(key_len)? != 0 {
        return None;
    }
    let mut block = Zeroizing::new(vec![0; key_len]);
    let mut stripes = material.chunks_exact(key_len).peekable();
    while let Some(stripe) = stripes.next() {
        xor(&mut block, stripe);
        if stripes.peek().is_some() {
            diffuse(hash, &mut block);
        }
    }
    Some(block)
}

/// Spreads `key` over `material`, whole stripes of the key's length that are filled with random
/// bytes; only the last of them is changed.
///
/// `false` if the lengths do not fit.
pub fn split(hash: Hash, key: &[u8], material: &mut [u8]) -> bool {
    let whole = material.len().checked_rem(key.len()) == Some(0);
    let Some(before) = material.len().checked_sub(key.len()).filter(|_| whole) else {
        return false;
    };
    let (random, last) = material.split_at_mut(before);
    let mut block = Zeroizing::new(vec![0; key.len()]);
    for stripe in random.chunks_exact(key.len().max(1)) {
        xor(&mut block, stripe);
        diffuse(hash, &mut block);
    }
    last.copy_from_slice(key);
    xor(last, &block);
    true
}

fn xor(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}

/// H1 of TKS1: every digest-sized piece becomes the digest of its number and itself, the last one
/// cut short.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (n, piece) in block.chunks_mut(hash.digest_len()).enumerate() {
        // A key has a few pieces; the number is a 32-bit one.
        let number = u32::try_from(to_u64(n)).unwrap_or(u32::MAX).to_be_bytes();
        let digest = hash.digest(&[&number, piece]);
        for (to, from) in piece.iter_mut().zip(digest.iter()) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hex;

    #[test]
    fn what_was_split_is_merged() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            for key_len in [16, 20, 32, 33, 64] {
                let key: Vec<u8> = (0..key_len).map(|i| i as u8).collect();
                let mut material: Vec<u8> = (0..key_len * 7).map(|i| (i * 31) as u8).collect();
                let random = material[..key_len * 6].to_vec();
                assert!(split(hash, &key, &mut material));
                assert_eq!(material[..key_len * 6], random);
                assert_eq!(*merge(hash, &material, key_len).unwrap(), key);
                material[3] ^= 1;
                assert_ne!(*merge(hash, &material, key_len).unwrap(), key);
            }
        }
        assert!(merge(Hash::Sha1, &[0; 33], 16).is_none());
        assert!(merge(Hash::Sha1, &[], 16).is_none());
        assert!(merge(Hash::Sha1, &[0; 4], 0).is_none());
        assert!(!split(Hash::Sha1, &[], &mut [0; 4]));
        assert!(!split(Hash::Sha1, &[0; 16], &mut [0; 8]));
    }

    /// One stripe is the key itself; two are what the definition says, written out.
    #[test]
    fn the_definition() {
        assert_eq!(*merge(Hash::Sha256, &[7; 32], 32).unwrap(), [7; 32]);
        let first: Vec<u8> = (0..32).collect();
        let second = [0xa5_u8; 32];
        let digest = Hash::Sha256.digest(&[&[0, 0, 0, 0], &first]);
        let expected: Vec<u8> = digest.iter().zip(second).map(|(a, b)| a ^ b).collect();
        let both = [first.as_slice(), &second].concat();
        assert_eq!(*merge(Hash::Sha256, &both, 32).unwrap(), expected);
        // SHA-1 of 00000000 00…00 (20 bytes), then of 00000001 00…00 cut to 12 bytes.
        let a = Hash::Sha1.digest(&[&hex("00000000"), &[0; 20]]);
        let b = Hash::Sha1.digest(&[&hex("00000001"), &[0; 12]]);
        let expected = [&a[..], &b[..12]].concat();
        assert_eq!(*merge(Hash::Sha1, &[0; 64], 32).unwrap(), expected);
    }
}
