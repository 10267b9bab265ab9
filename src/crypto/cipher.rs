//! Encryption of sectors, as named by a header: `aes` and `xts-plain64`.
//!
//! Specification: LUKS1 On-Disk Format 1.2.3, section 4; what QEMU can make of it is in its
//! `crypto/block-luks.c`.

use super::aes::{Aes, Block};
use super::cbc;
use super::error::{CryptoError, Result};
use super::iv::IvGenerator;
use super::xts::Xts;

/// A cipher by name, its key size checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    mode: ModeName,
    iv: String,
    key_len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModeName {
    Xts,
    Cbc,
}

impl CipherSpec {
    /// From the fields of a header, which are printable: `aes`, `xts-plain64`, bytes of the key.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`] with the name of what is not there.
    pub fn parse(cipher: &str, mode: &str, key_len: usize) -> Result<Self> {
        let unsupported = |what: String| Err(CryptoError::unsupported(what));
        if cipher != "aes" {
            return unsupported(format!("cipher '{cipher}' is not supported, only aes"));
        }
        let (mode, iv) = mode.split_once('-').unwrap_or((mode, ""));
        let (mode, aes_len) = match mode {
            "xts" if key_len.checked_rem(2) == Some(0) => {
                (ModeName::Xts, key_len.checked_div(2).unwrap_or_default())
            }
            "cbc" => (ModeName::Cbc, key_len),
            "xts" => (ModeName::Xts, 0),
            _ => {
                return unsupported(format!(
                    "cipher mode '{mode}' is not supported, only xts and cbc"
                ));
            }
        };
        if !matches!(aes_len, 16 | 24 | 32) {
            return unsupported(format!("a key of {key_len} bytes is not supported"));
        }
        let spec = Self {
            mode,
            iv: iv.to_owned(),
            key_len,
        };
        // Names are checked now, not when somebody has typed a passphrase.
        IvGenerator::by_name(iv, &[])?;
        Ok(spec)
    }

    /// Bytes of the key.
    pub fn key_len(&self) -> usize {
        self.key_len
    }

    /// The cipher with its key.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`] if the key has another length.
    pub fn with_key(&self, key: &[u8]) -> Result<SectorCipher> {
        if key.len() != self.key_len {
            return Err(CryptoError::unsupported(format!(
                "a key of {} bytes where the cipher has {}",
                key.len(),
                self.key_len
            )));
        }
        Ok(SectorCipher {
            mode: match self.mode {
                ModeName::Xts => Mode::Xts(Xts::new(key)?),
                ModeName::Cbc => Mode::Cbc(Aes::new(key)?),
            },
            iv: IvGenerator::by_name(&self.iv, key)?,
        })
    }
}

enum Mode {
    Xts(Xts),
    Cbc(Aes),
}

/// Encrypts and decrypts sectors by their number. The length of a sector is that of the arrays:
/// whole blocks, at most 4096 bytes.
pub struct SectorCipher {
    mode: Mode,
    iv: IvGenerator,
}

impl SectorCipher {
    /// Encrypts consecutive sectors in place, the first of which has number `first`.
    pub fn encrypt<const N: usize>(&self, first: u64, sectors: &mut [[u8; N]]) {
        const { assert!(N >= 16 && N.is_multiple_of(16) && N <= 4096) };
        let (blocks, _) = Block::slice_as_chunks_mut(sectors.as_flattened_mut());
        match &self.mode {
            Mode::Xts(xts) => xts.encrypt(first, N / 16, blocks, |n| self.iv.iv(n)),
            Mode::Cbc(aes) => {
                self.each_sector::<N>(first, blocks, |iv, sector| {
                    cbc::encrypt_sector(aes, iv, sector);
                });
            }
        }
    }

    /// The reverse of [`SectorCipher::encrypt`].
    pub fn decrypt<const N: usize>(&self, first: u64, sectors: &mut [[u8; N]]) {
        const { assert!(N >= 16 && N.is_multiple_of(16) && N <= 4096) };
        let (blocks, _) = Block::slice_as_chunks_mut(sectors.as_flattened_mut());
        match &self.mode {
            Mode::Xts(xts) => xts.decrypt(first, N / 16, blocks, |n| self.iv.iv(n)),
            Mode::Cbc(aes) => {
                self.each_sector::<N>(first, blocks, |iv, sector| {
                    cbc::decrypt_sector(aes, iv, sector);
                });
            }
        }
    }

    fn each_sector<const N: usize>(
        &self,
        first: u64,
        blocks: &mut [Block],
        each: impl Fn(Block, &mut [Block]),
    ) {
        let mut number = first;
        for sector in blocks.chunks_mut(N / 16) {
            each(self.iv.iv(number), sector);
            number = number.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (mode, key_len) in [
            ("xts-plain64", 64),
            ("xts-plain64", 32),
            ("xts-plain64:sha256", 48),
            ("xts-essiv:sha256", 64),
            ("cbc-essiv:sha256", 16),
            ("cbc-plain", 32),
        ] {
            let spec = CipherSpec::parse("aes", mode, key_len).unwrap();
            let key: Vec<u8> = (0..key_len).map(|i| i as u8).collect();
            let cipher = spec.with_key(&key).unwrap();
            let plain: Vec<[u8; 512]> = (0..20).map(|i| [i as u8; 512]).collect();
            let mut data = plain.clone();
            cipher.encrypt(5, &mut data);
            assert!(data.iter().zip(&plain).all(|(a, b)| a != b));
            let mut seventh = [data[7]];
            cipher.decrypt(12, &mut seventh);
            assert_eq!(seventh, [plain[7]]);
            cipher.decrypt(5, &mut data);
            assert_eq!(data, plain);
            assert!(spec.with_key(&key[1..]).is_err());
        }
        for (cipher, mode, key_len, word) in [
            ("serpent", "xts-plain64", 64, "serpent"),
            ("twofish", "cbc-plain", 32, "twofish"),
            ("aes", "ctr-plain64", 32, "ctr"),
            ("aes", "ecb", 32, "ecb"),
            ("aes", "", 32, "mode"),
            ("aes", "xts-benbi", 64, "benbi"),
            ("aes", "xts-essiv:sha512", 64, "sha512"),
            ("aes", "xts-plain64", 16, "16 bytes"),
            ("aes", "xts-plain64", 33, "33 bytes"),
            ("aes", "cbc-plain64", 64, "64 bytes"),
            ("aes", "cbc-plain64", 0, "0 bytes"),
        ] {
            let error = CipherSpec::parse(cipher, mode, key_len).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
