//! Hash functions by the names that headers use, and PBKDF2 with HMAC over them.
//!
//! Specification: RFC 8018, section 5.2 (PBKDF2); FIPS 180-4 (SHA-1, SHA-2).

use hmac::EagerHash;
use sha1::Sha1;
use sha2::digest::{Digest, Update};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::error::{CryptoError, Result};

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1, the default of LUKS1 for years.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

const NAMES: [(&str, Hash); 5] = [
    ("sha1", Hash::Sha1),
    ("sha224", Hash::Sha224),
    ("sha256", Hash::Sha256),
    ("sha384", Hash::Sha384),
    ("sha512", Hash::Sha512),
];

impl Hash {
    /// By its name in a header.
    ///
    /// # Errors
    /// [`super::CryptoErrorKind::Unsupported`] for any other name; `name` is printable.
    pub fn by_name(name: &str) -> Result<Self> {
        NAMES
            .iter()
            .find_map(|(n, hash)| n.eq_ignore_ascii_case(name).then_some(*hash))
            .ok_or_else(|| CryptoError::unsupported(format!("hash '{name}' is not supported")))
    }

    /// Its name in a header.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find_map(|(name, hash)| (*hash == self).then_some(*name))
            .unwrap_or_default()
    }

    /// Bytes of a digest.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of all parts one after the other.
    pub fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn with<D: Digest + Update>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
            let mut hash = D::new();
            for part in parts {
                Digest::update(&mut hash, part);
            }
            Zeroizing::new(hash.finalize().to_vec())
        }
        match self {
            Self::Sha1 => with::<Sha1>(parts),
            Self::Sha224 => with::<Sha224>(parts),
            Self::Sha256 => with::<Sha256>(parts),
            Self::Sha384 => with::<Sha384>(parts),
            Self::Sha512 => with::<Sha512>(parts),
        }
    }

    /// Fills `out` with PBKDF2-HMAC. The cost is `iterations` times the digests that fit into
    /// `out`; whoever calls this has bounded it.
    pub fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        fn with<D: EagerHash>(password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
            pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, out);
        }
        match self {
            Self::Sha1 => with::<Sha1>(password, salt, iterations, out),
            Self::Sha224 => with::<Sha224>(password, salt, iterations, out),
            Self::Sha256 => with::<Sha256>(password, salt, iterations, out),
            Self::Sha384 => with::<Sha384>(password, salt, iterations, out),
            Self::Sha512 => with::<Sha512>(password, salt, iterations, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hex;

    /// RFC 6070, but for the case of 16,777,216 iterations.
    #[test]
    fn pbkdf2_sha1() {
        let cases: [(&[u8], &[u8], u32, &str); 5] = [
            (
                b"password",
                b"salt",
                1,
                "0c60c80f961f0e71f3a9b524af6012062fe037a6",
            ),
            (
                b"password",
                b"salt",
                2,
                "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957",
            ),
            (
                b"password",
                b"salt",
                4096,
                "4b007901b765489abead49d926f721d065a429c1",
            ),
            (
                b"passwordPASSWORDpassword",
                b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
                4096,
                "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
            ),
            (
                b"pass\0word",
                b"sa\0lt",
                4096,
                "56fa6aa75548099dcc37d7f03425e0c3",
            ),
        ];
        for (password, salt, iterations, expected) in cases {
            let expected = hex(expected);
            let mut out = vec![0; expected.len()];
            Hash::Sha1.pbkdf2(password, salt, iterations, &mut out);
            assert_eq!(out, expected);
        }
    }

    /// RFC 7914, section 11.
    #[test]
    fn pbkdf2_sha256() {
        let cases: [(&[u8], &[u8], u32, &str); 2] = [
            (
                b"passwd",
                b"salt",
                1,
                "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
                 49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
            ),
            (
                b"Password",
                b"NaCl",
                80000,
                "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56\
                 a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d",
            ),
        ];
        for (password, salt, iterations, expected) in cases {
            let mut out = [0; 64];
            Hash::Sha256.pbkdf2(password, salt, iterations, &mut out);
            assert_eq!(out.as_slice(), hex(expected));
        }
    }

    /// FIPS 180-4 examples: "abc".
    #[test]
    fn digests() {
        let cases = [
            (Hash::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                Hash::Sha224,
                "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
            ),
            (
                Hash::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ];
        for (hash, expected) in cases {
            assert_eq!(*hash.digest(&[b"a", b"bc"]), hex(expected));
        }
        for (name, hash) in NAMES {
            assert_eq!(Hash::by_name(name).unwrap(), hash);
            assert_eq!(hash.digest(&[]).len(), hash.digest_len(), "{name}");
        }
        assert!(Hash::by_name("whirlpool").is_err());
    }
}
