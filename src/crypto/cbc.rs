//! CBC: each block is mixed with the ciphertext before it, the first one of a sector with the
//! sector's initialisation vector.
//!
//! Specification: NIST SP 800-38A, section 6.2. Sectors are whole blocks, so there is no padding.

use super::aes::{Aes, Block, xor};

/// Blocks decrypted at once.
const BATCH: usize = 256;

/// Encrypts one sector. Each block waits for the one before it.
pub fn encrypt_sector(aes: &Aes, iv: Block, sector: &mut [Block]) {
    let mut before = iv;
    for block in sector {
        let one = std::slice::from_mut(block);
        xor(one, &[before]);
        aes.encrypt(one);
        before = *block;
    }
}

/// Decrypts one sector.
pub fn decrypt_sector(aes: &Aes, iv: Block, sector: &mut [Block]) {
    let mut before = [Block::default(); BATCH];
    let mut first = iv;
    for blocks in sector.chunks_mut(BATCH) {
        // What is XORed to each block: the ciphertext of the one before it.
        let (head, tail) = before.split_at_mut(1);
        head.fill(first);
        for (to, from) in tail.iter_mut().zip(blocks.iter()) {
            *to = *from;
        }
        first = blocks.last().copied().unwrap_or(first);
        aes.decrypt(blocks);
        xor(blocks, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hex;

    /// NIST SP 800-38A, F.2.1 and F.2.5.
    #[test]
    fn published_vectors() {
        let plain = hex(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        );
        let iv = Block::from(std::array::from_fn(|i| i as u8));
        for (key, expected) in [
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2\
                 73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
            ),
            (
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d\
                 39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
            ),
        ] {
            let aes = Aes::new(&hex(key)).unwrap();
            let mut data = plain.clone();
            let (blocks, _) = Block::slice_as_chunks_mut(&mut data);
            encrypt_sector(&aes, iv, blocks);
            let made: Vec<u8> = blocks.iter().flat_map(|b| b.0).collect();
            assert_eq!(made, hex(expected));
            decrypt_sector(&aes, iv, blocks);
            assert_eq!(data, plain);
        }
    }

    #[test]
    fn long_sectors() {
        let aes = Aes::new(&[9; 16]).unwrap();
        let plain: Vec<Block> = (0..600)
            .map(|i| Block::from([(i % 251) as u8; 16]))
            .collect();
        let mut data = plain.clone();
        encrypt_sector(&aes, Block::default(), &mut data);
        assert_ne!(data, plain);
        decrypt_sector(&aes, Block::default(), &mut data);
        assert_eq!(data, plain);
    }
}
