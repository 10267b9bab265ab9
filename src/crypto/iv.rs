//! The initialisation vector of a sector, from its number.
//!
//! Specification: LUKS1 On-Disk Format 1.2.3, section 4 ("cipher mode"); Linux, `dm-crypt`.

use super::aes::{Aes, Block};
use super::error::{CryptoError, Result};
use super::hash::Hash;

/// How it is made.
pub enum IvGenerator {
    /// The lower 32 bits of the number, little-endian, then zeroes.
    Plain,
    /// The number, little-endian, then zeroes.
    Plain64,
    /// The same, encrypted with a hash of the key, so that it cannot be predicted.
    Essiv(Aes),
}

impl IvGenerator {
    /// By its name in a header, which may be followed by a colon and the name of a hash.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`]; `name` is printable.
    pub fn by_name(name: &str, key: &[u8]) -> Result<Self> {
        // QEMU writes the hash also where it means nothing.
        let (kind, hash) = name.split_once(':').unwrap_or((name, ""));
        match kind {
            "plain" => Ok(Self::Plain),
            "plain64" => Ok(Self::Plain64),
            "essiv" => {
                let salt = Hash::by_name(hash)?.digest(&[key]);
                let aes = Aes::new(&salt).map_err(|_| {
                    CryptoError::unsupported(format!("there is no AES with keys from '{hash}'"))
                })?;
                Ok(Self::Essiv(aes))
            }
            _ => Err(CryptoError::unsupported(format!(
                "initialisation vectors of kind '{kind}' are not supported"
            ))),
        }
    }

    /// That of a sector.
    pub fn iv(&self, sector: u64) -> Block {
        let mut iv = Block::default();
        let number = match self {
            Self::Plain => sector & u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => sector,
        };
        for (to, from) in iv.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
        if let Self::Essiv(aes) = self {
            aes.encrypt(std::slice::from_mut(&mut iv));
        }
        iv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let sector = 0x0123_4567_89ab_cdef;
        let plain = IvGenerator::by_name("plain:sha256", b"").unwrap();
        assert_eq!(plain.iv(sector)[..8], [0xef, 0xcd, 0xab, 0x89, 0, 0, 0, 0]);
        let plain64 = IvGenerator::by_name("plain64", b"").unwrap();
        assert_eq!(plain64.iv(sector)[..8], sector.to_le_bytes());
        assert_eq!(plain64.iv(sector)[8..], [0; 8]);
        let essiv = IvGenerator::by_name("essiv:sha256", b"key").unwrap();
        let mut expected = plain64.iv(sector);
        Aes::new(&Hash::Sha256.digest(&[b"key"]))
            .unwrap()
            .encrypt(std::slice::from_mut(&mut expected));
        assert_eq!(essiv.iv(sector), expected);
        for name in ["benbi", "essiv", "essiv:sha1", "essiv:sha512", "null", ""] {
            assert!(IvGenerator::by_name(name, b"").is_err(), "{name}");
        }
    }
}
