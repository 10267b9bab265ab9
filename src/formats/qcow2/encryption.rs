//! Encrypted images: finding the cipher, and what is told about it.
//!
//! With LUKS the image holds a LUKS1 header in clusters of its own, and a sector's number is that
//! of its place in the file: the same content moved to another cluster is other bytes. With the old
//! AES method the key is the passphrase itself, and the number is that of the guest's sector; which
//! is why nobody can say whether a passphrase is the right one, and why it is only read here.
//! Compressed clusters are never encrypted.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "crypt_method", "Full disk encryption header
//! pointer", "Data encryption".

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::build;
use super::header::{EncryptionHeader, Header};
use crate::block::BlockDevice;
use crate::crypto::cipher::{CipherSpec, SectorCipher};
use crate::crypto::key::Tried;
use crate::crypto::luks1::{self, CreateOptions, SlotState};
use crate::crypto::{CryptoError, KeySource, Passphrase};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::units::to_u64;

/// Bytes of a sector, whatever the cluster size.
pub const SECTOR: usize = 512;
/// Bytes of a key of the old method.
const AES_KEY: usize = 16;

/// Which address numbers a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// Its place in the file.
    Host,
    /// Its place on the virtual disk.
    Guest,
}

/// What an image is encrypted with.
pub struct Encryption {
    scheme: &'static str,
    numbering: Numbering,
    cipher: Option<SectorCipher>,
    specific: Value,
}

impl Encryption {
    /// Reads what the header names and tries the keys. Without any key the image opens all the
    /// same, and reading its content reports [`FormatErrorKind::NoKey`].
    ///
    /// # Errors
    /// [`FormatErrorKind::NoKey`] if there are keys and none is the right one; what the LUKS header
    /// or reading it reports.
    pub fn open(
        file: &BlockDevice,
        header: &Header,
        keys: &KeySource,
        what: &str,
    ) -> Result<Option<Self>> {
        match header.encryption {
            None => Ok(None),
            Some(EncryptionHeader::Aes) => Self::open_aes(keys, what).map(Some),
            Some(EncryptionHeader::Luks { offset, len }) => {
                Self::open_luks(file, offset, len, keys, what).map(Some)
            }
        }
    }

    fn open_aes(keys: &KeySource, what: &str) -> Result<Self> {
        let scheme = "AES";
        let spec = CipherSpec::parse("aes", "cbc-plain64", AES_KEY)?;
        let tried = keys.try_each(what, scheme, |passphrase| {
            // Cut off or filled up with zeroes.
            let mut key = Zeroizing::new([0; AES_KEY]);
            let until_nul = passphrase.split(|&b| b == 0).next().unwrap_or_default();
            for (to, from) in key.iter_mut().zip(until_nul) {
                *to = *from;
            }
            spec.with_key(key.as_slice()).map(Some)
        })?;
        Ok(Self {
            scheme,
            numbering: Numbering::Guest,
            cipher: tried.opened(),
            specific: json!({ "format": "aes" }),
        })
    }

    fn open_luks(
        file: &BlockDevice,
        offset: u64,
        len: u64,
        keys: &KeySource,
        what: &str,
    ) -> Result<Self> {
        let scheme = "LUKS";
        let area = file.slice(offset..offset.saturating_add(len))?;
        let luks = luks1::Header::parse(&area.read_vec(0, luks1::HEADER_BYTES)?, len)?;
        let tried = keys.try_each(what, scheme, |passphrase| {
            luks.unlock(passphrase, |at, buf: &mut [u8]| {
                area.read_exact_at(at, buf).map_err(FormatError::from)
            })
        })?;
        let cipher = match tried {
            Tried::Opened(key) => Some(luks.payload_cipher(&key)?),
            Tried::NoKey => None,
            Tried::WrongKey => return Err(wrong_key(&luks)),
        };
        Ok(Self {
            scheme,
            numbering: Numbering::Host,
            cipher,
            specific: luks_json(&luks),
        })
    }

    /// `LUKS` or `AES`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Which address numbers a sector.
    pub fn numbering(&self) -> Numbering {
        self.numbering
    }

    /// The cipher with its key, if there was one.
    pub fn cipher(&self) -> Option<&SectorCipher> {
        self.cipher.as_ref()
    }

    /// What `qemu-img info` says of it as `encrypt`.
    pub fn specific(&self) -> &Value {
        &self.specific
    }

    /// Whether content can be written: [`FormatErrorKind::Unsupported`] for the old method,
    /// [`FormatErrorKind::NoKey`] without a key.
    ///
    /// # Errors
    /// These.
    pub fn check_writable(&self) -> Result<()> {
        if self.numbering == Numbering::Guest {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                "images with the old AES encryption of qcow2 are only read",
            )
            .with_hint("convert it first: guestlens convert --key-file FILE"));
        }
        match self.cipher {
            Some(_) => Ok(()),
            None => Err(no_key(self.scheme)),
        }
    }
}

/// LUKS for an image that is made: a new header, and the cipher of its clusters.
///
/// # Errors
/// If the host gives no random numbers.
pub fn new_luks(passphrase: &Passphrase, options: CreateOptions) -> Result<build::Encryption> {
    let (area, key) = luks1::create(passphrase.as_bytes(), options)?;
    let luks = luks1::Header::parse(&area, to_u64(area.len()))?;
    Ok(build::Encryption {
        method: 2,
        header: area,
        cipher: Box::new(NewClusters(luks.payload_cipher(&key)?)),
    })
}

struct NewClusters(SectorCipher);

impl build::ClusterCipher for NewClusters {
    fn encrypt(&self, host_offset: u64, _: u64, data: &mut [u8]) {
        let number = host_offset.wrapping_shr(SECTOR.trailing_zeros());
        self.0.encrypt(number, data.as_chunks_mut::<SECTOR>().0);
    }
}

/// Why content cannot be read without a key.
pub fn no_key(scheme: &str) -> FormatError {
    FormatError::new(FormatErrorKind::NoKey, no_key_text(scheme)).with_hint(
        "give the passphrase with --key-file FILE (all bytes of the file count, also a newline \
         at its end) or --key-fd N, or run this in a terminal to be asked",
    )
}

/// The same in one line.
pub fn no_key_text(scheme: &str) -> String {
    format!("the content of the image is encrypted ({scheme}), and no key was given")
}

fn wrong_key(luks: &luks1::Header) -> FormatError {
    let unusable: Vec<String> = luks
        .unusable_slots()
        .map(|(n, why)| format!("; keyslot {n} cannot be tried: {why}"))
        .collect();
    let mut text = "no keyslot opens with this key".to_owned();
    if !luks.slots.iter().any(|s| s.state == SlotState::Active) {
        "the image has no keyslot that can be tried".clone_into(&mut text);
    }
    FormatError::new(FormatErrorKind::NoKey, text + &unusable.concat()).with_hint(
        "all bytes of a key file count, also a newline at its end: printf %s writes none",
    )
}

impl From<CryptoError> for FormatError {
    fn from(error: CryptoError) -> Self {
        use crate::crypto::CryptoErrorKind;
        let kind = match error.kind() {
            CryptoErrorKind::Damaged => FormatErrorKind::Damaged,
            CryptoErrorKind::Unsupported => FormatErrorKind::Unsupported,
            CryptoErrorKind::Random => FormatErrorKind::Io,
        };
        Self::new(kind, error.to_string())
    }
}

/// In the words of `qemu-img info --output=json`.
fn luks_json(luks: &luks1::Header) -> Value {
    let (mode, iv) = luks
        .cipher_mode
        .split_once('-')
        .unwrap_or((&luks.cipher_mode, ""));
    let (iv, iv_hash) = iv.split_once(':').unwrap_or((iv, ""));
    let bits = luks.cipher.key_len().saturating_mul(8);
    let bits = if mode == "xts" {
        bits.checked_div(2).unwrap_or(bits)
    } else {
        bits
    };
    let slots: Vec<Value> = luks
        .slots
        .iter()
        .map(|slot| match slot.state {
            SlotState::Disabled => json!({ "active": false, "key-offset": slot.offset }),
            SlotState::Active | SlotState::Unusable(_) => json!({
                "active": true,
                "iters": slot.iterations,
                "key-offset": slot.offset,
                "stripes": slot.stripes,
            }),
        })
        .collect();
    let mut specific = json!({
        "format": "luks",
        "ivgen-alg": iv,
        "detached-header": false,
        "hash-alg": luks.hash.name(),
        "cipher-alg": format!("{}-{bits}", luks.cipher_name),
        "uuid": luks.uuid,
        "cipher-mode": mode,
        "slots": slots,
        "payload-offset": luks.payload_offset,
        "master-key-iters": luks.digest_iterations,
    });
    if let (false, Some(object)) = (iv_hash.is_empty(), specific.as_object_mut()) {
        object.insert("ivgen-hash-alg".into(), iv_hash.into());
    }
    specific
}
