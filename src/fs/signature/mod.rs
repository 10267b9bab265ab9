//! Recognising what has no driver here, so that it is shown by its name instead of as unknown.
//!
//! | module | responsibility |
//! |---|---|
//! | `container` | what wraps other volumes: LVM, LUKS, md, BitLocker, bcache, ZFS members |
//! | `extent` | how far it reaches |
//! | `fat` | FAT and exFAT, whose labels lie in their root directories |
//! | `ntfs` | NTFS, whose label lies in a file record |
//! | `superblock` | filesystems told by a magic at a fixed place, and swap |
//! | `udf` | UDF, told by a sequence of volume descriptors |
//!
//! Names, UUIDs and labels are those that `blkid -p` prints. Filesystems are told by their magic
//! alone: one that is recognised need not be sound. A container hides what lies behind it, so its
//! header counts only with the checksum it carries, as it does for the kernel.

mod container;
mod extent;
mod fat;
mod ntfs;
mod superblock;
mod udf;

use serde::Serialize;

use super::error::Result;
use crate::block::BlockDevice;
use crate::ondisk::bytes;

/// What a volume holds, by its magic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Type as `blkid` names it: `vfat`, `xfs`, `swap`, `LVM2_member`, `crypto_LUKS`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// UUID as udev writes it (`ABCD-1234` for FAT).
    pub uuid: Option<String>,
    /// Label.
    pub label: Option<String>,
}

impl Signature {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            uuid: None,
            label: None,
        }
    }

    /// The UUID of a filesystem that stores it in the order it is written; zeroes are none.
    fn uuid(self, raw: Option<[u8; 16]>) -> Self {
        let uuid = raw.and_then(crate::ondisk::uuid::from_fs);
        Self {
            uuid: uuid.map(|u| u.to_string()),
            ..self
        }
    }

    /// A label field: up to the first NUL, white space at the end dropped, nothing left is none.
    fn label(self, raw: Option<&[u8]>) -> Self {
        let label = raw.and_then(label_text);
        Self { label, ..self }
    }
}

/// Text of a label field.
fn label_text(raw: &[u8]) -> Option<String> {
    let text = crate::ondisk::text::until_nul(raw).trim_ascii_end();
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The start of a device, read once, and the rest on demand.
struct Look<'a> {
    device: &'a BlockDevice,
    head: Vec<u8>,
}

impl<'a> Look<'a> {
    fn new(device: &'a BlockDevice, head_len: usize) -> Result<Self> {
        let mut head = vec![0; head_len];
        let len = device.read_some_at(0, &mut head)?;
        head.truncate(len);
        Ok(Self { device, head })
    }

    /// Bytes at any place; `None` outside the device or where it cannot be read.
    fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(at).ok();
        if let Some(bytes) = start.and_then(|at| bytes::slice(&self.head, at, len)) {
            return Some(bytes.to_vec());
        }
        self.device.read_vec(at, len).ok()
    }

    /// Whether `magic` lies at `at`.
    fn has(&self, at: u64, magic: &[u8]) -> bool {
        self.bytes(at, magic.len()).is_some_and(|b| b == magic)
    }

    fn len(&self) -> u64 {
        self.device.len()
    }
}

/// Bytes read to tell a container.
const CONTAINER_HEAD: usize = 8 << 10;

/// Bytes read to tell everything else: up to the superblock of btrfs.
const HEAD: usize = 68 << 10;

/// Recognises a container whose header lies in front of whatever is inside it, so that old traces
/// of a filesystem behind it do not count: encryption, LVM, md arrays with their superblock at the
/// start.
///
/// # Errors
/// [`super::FsErrorKind::Io`] if the start of the device cannot be read.
pub fn recognise_container(device: &BlockDevice) -> Result<Option<Signature>> {
    let look = Look::new(device, CONTAINER_HEAD)?;
    Ok(container::at_start(&look))
}

/// Recognises a member of an md array whose superblock lies at the end (metadata 1.0 and 0.90).
/// What is inside a mirror starts where the member does.
pub fn recognise_array_member(device: &BlockDevice) -> Option<Signature> {
    let head = Vec::new();
    container::md_at_end(&Look { device, head })
}

/// Recognises whatever is known.
///
/// # Errors
/// [`super::FsErrorKind::Io`] if the start of the device cannot be read.
pub fn recognise(device: &BlockDevice) -> Result<Option<Signature>> {
    let look = Look::new(device, HEAD)?;
    Ok(container::at_start(&look)
        .or_else(|| container::md_at_end(&look))
        .or_else(|| ntfs::find(&look))
        .or_else(|| fat::find(&look))
        .or_else(|| superblock::find(&look))
        .or_else(|| udf::find(&look))
        .or_else(|| container::traces(&look)))
}

/// Where something that was recognised on a device ends, in bytes; `None` where its header does not
/// tell.
///
/// # Errors
/// [`super::FsErrorKind::Io`] if the start of the device cannot be read.
pub fn end(device: &BlockDevice, signature: &Signature) -> Result<Option<u64>> {
    let look = Look::new(device, HEAD)?;
    Ok(extent::end(&look, signature))
}

/// Kinds that are containers or swap rather than filesystems: nothing could be mounted from them
/// directly.
pub fn is_filesystem(kind: &str) -> bool {
    !matches!(
        kind,
        "swap"
            | "swsuspend"
            | "LVM2_member"
            | "linux_raid_member"
            | "crypto_LUKS"
            | "BitLocker"
            | "bcache"
            | "zfs_member"
    )
}

const _: () = assert!(CONTAINER_HEAD < HEAD);
