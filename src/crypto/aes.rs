//! AES with a key size known at run time, many blocks per call so that the hardware's pipeline is
//! used. Round keys are wiped when dropped.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit, typenum};
use aes::{Aes128, Aes192, Aes256};

use super::error::{CryptoError, Result};

/// One block of 16 bytes.
pub type Block = Array<u8, typenum::U16>;

/// A key schedule.
pub enum Aes {
    /// A key of 16 bytes.
    Aes128(Box<Aes128>),
    /// A key of 24 bytes.
    Aes192(Box<Aes192>),
    /// A key of 32 bytes.
    Aes256(Box<Aes256>),
}

impl Aes {
    /// For a key of 16, 24 or 32 bytes.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`] for any other length.
    pub fn new(key: &[u8]) -> Result<Self> {
        let wrong = |_| {
            CryptoError::unsupported(format!(
                "AES with keys of {} bytes does not exist",
                key.len()
            ))
        };
        match key.len() {
            24 => Ok(Self::Aes192(Box::new(
                Aes192::new_from_slice(key).map_err(wrong)?,
            ))),
            32 => Ok(Self::Aes256(Box::new(
                Aes256::new_from_slice(key).map_err(wrong)?,
            ))),
            _ => Ok(Self::Aes128(Box::new(
                Aes128::new_from_slice(key).map_err(wrong)?,
            ))),
        }
    }

    /// Encrypts each block by itself.
    pub fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(aes) => aes.encrypt_blocks(blocks),
            Self::Aes192(aes) => aes.encrypt_blocks(blocks),
            Self::Aes256(aes) => aes.encrypt_blocks(blocks),
        }
    }

    /// Decrypts each block by itself.
    pub fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(aes) => aes.decrypt_blocks(blocks),
            Self::Aes192(aes) => aes.decrypt_blocks(blocks),
            Self::Aes256(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// XORs each block of `from` into that of `to`.
pub fn xor(to: &mut [Block], from: &[Block]) {
    for (to, from) in to.iter_mut().zip(from) {
        let mixed = u128::from_ne_bytes(to.0) ^ u128::from_ne_bytes(from.0);
        to.0 = mixed.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hex;

    /// FIPS 197, appendix C.
    #[test]
    fn published_vectors() {
        let key: Vec<u8> = (0..32).collect();
        let plain = Block::try_from(hex("00112233445566778899aabbccddeeff").as_slice()).unwrap();
        for (len, expected) in [
            (16, "69c4e0d86a7b0430d8cdb78070b4c55a"),
            (24, "dda97ca4864cdfe06eaf70a0ec0d7191"),
            (32, "8ea2b7ca516745bfeafc49904b496089"),
        ] {
            let aes = Aes::new(&key[..len]).unwrap();
            let mut blocks = [plain; 3];
            aes.encrypt(&mut blocks);
            for block in blocks {
                assert_eq!(block.as_slice(), hex(expected));
            }
            aes.decrypt(&mut blocks);
            assert_eq!(blocks, [plain; 3]);
        }
        for len in [0, 15, 17, 31, 64] {
            assert!(Aes::new(&vec![0; len]).is_err(), "{len}");
        }
    }
}
