//! XTS: each block is masked before and after by a tweak that depends on the sector and the
//! block's place in it.
//!
//! Specification: IEEE 1619-2007, section 5. Sectors are whole blocks, so there is no ciphertext
//! stealing. Tweaks of several sectors are made first, then all blocks go through AES in one call:
//! one by one they would use a small part of what the hardware can do.

use super::aes::{Aes, Block, xor};
use super::error::{CryptoError, Result};

/// Blocks handled at once: data and tweaks together stay in the first-level cache.
const BATCH: usize = 256;

/// A key pair.
pub struct Xts {
    data: Aes,
    tweak: Aes,
}

impl Xts {
    /// For a key whose halves are the two AES keys.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`] for a length that AES does not have twice.
    pub fn new(key: &[u8]) -> Result<Self> {
        let odd = || CryptoError::unsupported("XTS needs two AES keys of the same length");
        let half = key.len().checked_div(2).unwrap_or_default();
        let (data, tweak) = key.split_at_checked(half).ok_or_else(odd)?;
        if data.len() != tweak.len() {
            return Err(odd());
        }
        Ok(Self {
            data: Aes::new(data)?,
            tweak: Aes::new(tweak)?,
        })
    }

    /// Encrypts consecutive sectors, each of `sector_blocks` blocks, the first with number
    /// `first`. `iv` makes the initialisation vector of a sector.
    pub fn encrypt(
        &self,
        first: u64,
        sector_blocks: usize,
        blocks: &mut [Block],
        iv: impl Fn(u64) -> Block,
    ) {
        self.each_batch(first, sector_blocks, blocks, iv, |aes, blocks| {
            aes.encrypt(blocks);
        });
    }

    /// The reverse of [`Xts::encrypt`].
    pub fn decrypt(
        &self,
        first: u64,
        sector_blocks: usize,
        blocks: &mut [Block],
        iv: impl Fn(u64) -> Block,
    ) {
        self.each_batch(first, sector_blocks, blocks, iv, |aes, blocks| {
            aes.decrypt(blocks);
        });
    }

    fn each_batch(
        &self,
        first: u64,
        sector_blocks: usize,
        blocks: &mut [Block],
        iv: impl Fn(u64) -> Block,
        through: impl Fn(&Aes, &mut [Block]),
    ) {
        let sector_blocks = sector_blocks.clamp(1, BATCH);
        let sectors = BATCH.checked_div(sector_blocks).unwrap_or(1);
        let batch = sectors.saturating_mul(sector_blocks);
        let mut starts = [Block::default(); BATCH];
        let mut tweaks = [Block::default(); BATCH];
        let mut sector = first;
        for blocks in blocks.chunks_mut(batch) {
            let count = blocks.len().div_ceil(sector_blocks);
            let starts = starts.get_mut(..count).unwrap_or_default();
            for start in &mut *starts {
                *start = iv(sector);
                sector = sector.wrapping_add(1);
            }
            self.tweak.encrypt(starts);
            for (start, tweaks) in starts.iter().zip(tweaks.chunks_mut(sector_blocks)) {
                let mut tweak = u128::from_le_bytes(start.0);
                for slot in tweaks {
                    slot.0 = tweak.to_le_bytes();
                    tweak = times_alpha(tweak);
                }
            }
            xor(blocks, &tweaks);
            through(&self.data, blocks);
            xor(blocks, &tweaks);
        }
    }
}

/// Multiplication by the primitive element of GF(2^128).
fn times_alpha(tweak: u128) -> u128 {
    let carried = tweak.wrapping_shr(127).wrapping_mul(0x87);
    tweak.wrapping_shl(1) ^ carried
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hex;
    use crate::crypto::iv::IvGenerator;

    fn check(key: &str, sector: u64, plain: &[u8], expected: &str) {
        let xts = Xts::new(&hex(key)).unwrap();
        let mut data = plain.to_vec();
        let (blocks, rest) = Block::slice_as_chunks_mut(&mut data);
        assert!(rest.is_empty());
        let len = blocks.len();
        let iv = |n| IvGenerator::Plain64.iv(n);
        xts.encrypt(sector, len, blocks, iv);
        assert_eq!(blocks.as_flattened(), hex(expected));
        xts.decrypt(sector, len, blocks, iv);
        assert_eq!(data, plain);
    }

    trait Flattened {
        fn as_flattened(&self) -> Vec<u8>;
    }

    impl Flattened for [Block] {
        fn as_flattened(&self) -> Vec<u8> {
            self.iter().flat_map(|b| b.0).collect()
        }
    }

    /// IEEE 1619-2007, annex B, vectors 1 to 3, and 4 and 10 by their first and last blocks.
    #[test]
    fn published_vectors() {
        check(
            &"00".repeat(32),
            0,
            &[0; 32],
            "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e",
        );
        let key2 = "11".repeat(16) + &"22".repeat(16);
        check(
            &key2,
            0x33_3333_3333,
            &[0x44; 32],
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        );
        let key3 = "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0".to_owned() + &"22".repeat(16);
        check(
            &key3,
            0x33_3333_3333,
            &[0x44; 32],
            "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        );
        let counting: Vec<u8> = (0..512).map(|i| i as u8).collect();
        for (key, sector, starts, ends) in [
            (
                "2718281828459045235360287471352631415926535897932384626433832795",
                0,
                "27a7479befa1d476489f308cd4cfa6e2",
                "0a282df920147beabe421ee5319d0568",
            ),
            (
                "2718281828459045235360287471352662497757247093699959574966967627\
                 3141592653589793238462643383279502884197169399375105820974944592",
                0xff,
                "1c3b3a102f770386e4836c99e370cf9b",
                "c4f36ffda9fcea70b9c6e693e148c151",
            ),
        ] {
            let xts = Xts::new(&hex(key)).unwrap();
            let mut data = counting.clone();
            let (blocks, _) = Block::slice_as_chunks_mut(&mut data);
            xts.encrypt(sector, 32, blocks, |n| IvGenerator::Plain64.iv(n));
            let made: Vec<u8> = blocks.as_flattened();
            assert_eq!(made[..16], hex(starts));
            assert_eq!(made[496..], hex(ends));
        }
    }

    /// Any number of sectors at once is the same as one by one.
    #[test]
    fn batches_do_not_show() {
        let xts = Xts::new(&(0..64).collect::<Vec<u8>>()).unwrap();
        let iv = |n| IvGenerator::Plain64.iv(n);
        for (sector_blocks, sectors) in [(32, 1), (32, 8), (32, 29), (256, 3), (128, 5)] {
            let plain: Vec<Block> = (0..sector_blocks * sectors)
                .map(|i| Block::from([(i * 7) as u8; 16]))
                .collect();
            let mut together = plain.clone();
            xts.encrypt(u64::MAX - 2, sector_blocks, &mut together, iv);
            let mut apart = plain.clone();
            for (n, sector) in apart.chunks_mut(sector_blocks).enumerate() {
                let number = (u64::MAX - 2).wrapping_add(n as u64);
                xts.encrypt(number, sector_blocks, sector, iv);
            }
            assert_eq!(together, apart);
            xts.decrypt(u64::MAX - 2, sector_blocks, &mut together, iv);
            assert_eq!(together, plain);
        }
        assert!(Xts::new(&[0; 33]).is_err());
        assert!(Xts::new(&[0; 16]).is_err());
        assert!(Xts::new(&[]).is_err());
    }
}
