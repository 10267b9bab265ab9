//! The header and its extensions.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Header" and "Header extensions". All numbers
//! are big-endian.

use super::layout::{Compression, Layout};
use crate::formats::detect::QCOW_MAGIC;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{be32, be64, slice};
use crate::ondisk::text::{printable, until_nul};
use crate::ondisk::units::{to_u64, to_usize, usize_from_u32};

/// Largest L1 table accepted, in bytes, as in QEMU.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table accepted, in bytes, as in QEMU.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots, as in QEMU.
const MAX_SNAPSHOTS: u32 = 65536;
/// Longest backing file name, as the specification says.
const MAX_BACKING_NAME: usize = 1023;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear bit: the bitmaps extension agrees with the content.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// Autoclear bit: the data file holds the plain disk.
pub const AUTOCLEAR_DATA_FILE_RAW: u64 = 1 << 1;

/// How the content is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionHeader {
    /// The old method, without anything in the image.
    Aes,
    /// LUKS, whose header is in clusters of its own.
    Luks {
        /// Host offset of the LUKS header.
        offset: u64,
        /// Bytes of it, key material included.
        len: u64,
    },
}

/// A validated header.
#[derive(Clone, Debug)]
pub struct Header {
    /// What decides how tables are read.
    pub layout: Layout,
    /// Size of the virtual disk in bytes.
    pub size: u64,
    /// Host offset of the active L1 table.
    pub l1_offset: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Host offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Host offset of the snapshot table.
    pub snapshots_offset: u64,
    /// Refcounts may be wrong: the image was not closed properly.
    pub dirty: bool,
    /// QEMU found the image damaged earlier.
    pub corrupt: bool,
    /// Refcounts are only written on close.
    pub lazy_refcounts: bool,
    /// The data file holds the plain disk.
    pub data_file_raw: bool,
    /// Autoclear feature bits, as stored.
    pub autoclear: u64,
    /// Name of the backing file.
    pub backing_name: Option<Vec<u8>>,
    /// Format of the backing file.
    pub backing_format: Option<Vec<u8>>,
    /// Name of the external data file, if the image has one.
    pub data_file: Option<Vec<u8>>,
    /// How the content is encrypted, if it is.
    pub encryption: Option<EncryptionHeader>,
}

fn damaged(what: impl Into<String>) -> FormatError {
    FormatError::new(
        FormatErrorKind::Damaged,
        format!("qcow2 header: {}", what.into()),
    )
    .with_hint("perhaps the file was not copied completely")
}

/// Length of the first cluster, which holds the header and its extensions, read from the first
/// 24 bytes.
pub fn first_cluster_len(head: &[u8]) -> Result<usize> {
    if be32(head, 0) != Some(QCOW_MAGIC) {
        return Err(FormatError::new(
            FormatErrorKind::NotThisFormat,
            "the file does not begin with qcow2's magic number",
        ));
    }
    match be32(head, 4) {
        Some(2 | 3) => {}
        Some(version) => {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!("qcow version {version} is not supported, only 2 and 3"),
            ));
        }
        None => return Err(damaged("cut short")),
    }
    match be32(head, 20) {
        Some(bits @ 9..=21) => Ok(1_usize.wrapping_shl(bits)),
        Some(bits) => Err(damaged(format!("cluster_bits is {bits}, not 9 to 21"))),
        None => Err(damaged("cut short")),
    }
}

impl Header {
    /// Parses the first cluster (as much of it as the file has). `file_len` is the size of the
    /// file it is in.
    ///
    /// # Errors
    /// [`FormatErrorKind::NotThisFormat`], [`FormatErrorKind::Damaged`],
    /// [`FormatErrorKind::Unsupported`].
    pub fn parse(data: &[u8], file_len: u64) -> Result<Self> {
        let cluster_len = first_cluster_len(data)?;
        let u32_at = |at| be32(data, at).ok_or_else(|| damaged("cut short"));
        let u64_at = |at| be64(data, at).ok_or_else(|| damaged("cut short"));
        let version = u32_at(4)?;
        let cluster_bits = u32_at(20)?;
        let (incompatible, compatible, autoclear, refcount_order, header_len) = if version == 2 {
            (0, 0, 0, 4, 72)
        } else {
            (
                u64_at(72)?,
                u64_at(80)?,
                u64_at(88)?,
                u32_at(96)?,
                usize_from_u32(u32_at(100)?),
            )
        };
        if version > 2 && (header_len < 104 || header_len > cluster_len || header_len % 8 != 0) {
            return Err(damaged(format!("header_length is {header_len}")));
        }
        let extensions_end = match u64_at(8)? {
            0 => cluster_len,
            at => to_usize(at)
                .filter(|&at| at <= cluster_len)
                .unwrap_or(cluster_len),
        };
        let extensions = Extensions::parse(data, header_len, extensions_end);
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            let names = extensions
                .as_ref()
                .map(|e| e.feature_names)
                .unwrap_or_default();
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "the image uses unknown incompatible features: {}",
                    bit_names(incompatible & !INCOMPATIBLE_KNOWN, names)
                ),
            ));
        }
        let extensions = extensions?;
        let data_file = match (
            incompatible & INCOMPATIBLE_DATA_FILE != 0,
            extensions.data_file,
        ) {
            (false, _) => None,
            (true, Some(name)) => Some(name.to_vec()),
            (true, None) => return Err(damaged("the external data file has no name")),
        };
        let encryption = match (u32_at(32)?, extensions.encryption) {
            (0, None) => None,
            (1, None) => Some(EncryptionHeader::Aes),
            (2, Some(pointer)) => Some(luks_pointer(pointer, cluster_len, file_len)?),
            (2, None) => return Err(damaged("nothing says where the LUKS header is")),
            (0 | 1, Some(_)) => return Err(damaged("a LUKS header, but no LUKS encryption")),
            (method, _) => return Err(damaged(format!("unknown encryption method {method}"))),
        };
        let subclusters = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if subclusters && cluster_bits < 14 {
            return Err(damaged("subclusters need clusters of at least 16 KiB"));
        }
        if refcount_order > 6 {
            return Err(damaged(format!(
                "refcount_order is {refcount_order}, not 0 to 6"
            )));
        }
        let compression_type = if header_len > 104 {
            data.get(104).copied().unwrap_or(0)
        } else {
            0
        };
        let flagged = incompatible & INCOMPATIBLE_COMPRESSION != 0;
        let compression = match (compression_type, flagged) {
            (0, false) => Compression::Deflate,
            (1, true) => Compression::Zstd,
            (0, true) | (1, false) => {
                return Err(damaged(
                    "compression type and its feature bit contradict each other",
                ));
            }
            (other, _) => {
                return Err(FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!("unknown compression type {other}"),
                ));
            }
        };
        let layout = Layout {
            cluster_bits,
            subclusters,
            version,
            external_data: data_file.is_some(),
            compression,
        };
        let header = Self {
            layout,
            size: u64_at(24)?,
            l1_entries: u32_at(36)?,
            l1_offset: u64_at(40)?,
            refcount_table_offset: u64_at(48)?,
            refcount_table_clusters: u32_at(56)?,
            refcount_order,
            snapshot_count: u32_at(60)?,
            snapshots_offset: u64_at(64)?,
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
            lazy_refcounts: compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
            data_file_raw: data_file.is_some() && autoclear & AUTOCLEAR_DATA_FILE_RAW != 0,
            autoclear,
            backing_name: backing_name(data, cluster_len)?,
            backing_format: extensions.backing_format.map(<[u8]>::to_vec),
            data_file,
            encryption,
        };
        check_l1(
            &layout,
            header.size,
            header.l1_offset,
            header.l1_entries,
            file_len,
        )?;
        let refcount_bytes =
            u64::from(header.refcount_table_clusters).saturating_mul(layout.cluster_size());
        if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(damaged("the refcount table is larger than 8 MiB"));
        }
        if !layout.aligned(header.refcount_table_offset) {
            return Err(damaged("the refcount table is not aligned"));
        }
        Ok(header)
    }

    /// Checks where the snapshot table is said to be.
    ///
    /// # Errors
    /// [`FormatErrorKind::Damaged`].
    pub fn check_snapshots(&self, file_len: u64) -> Result<()> {
        if self.snapshot_count > MAX_SNAPSHOTS {
            return Err(damaged(format!("{} snapshots", self.snapshot_count)));
        }
        let at = self.snapshots_offset;
        if self.snapshot_count > 0 && (at == 0 || !self.layout.aligned(at) || at >= file_len) {
            return Err(damaged(format!("the snapshot table cannot be at {at}")));
        }
        Ok(())
    }
}

/// Checks an L1 table: large enough for the disk, within bounds, inside the file.
///
/// # Errors
/// [`FormatErrorKind::Damaged`].
pub fn check_l1(layout: &Layout, size: u64, at: u64, entries: u32, file_len: u64) -> Result<()> {
    let bytes = u64::from(entries).saturating_mul(8);
    if bytes > MAX_L1_BYTES {
        return Err(damaged(format!(
            "an L1 table of {entries} entries is larger than 32 MiB"
        )));
    }
    if size > crate::limits::MAX_DEVICE_BYTES {
        return Err(damaged(format!(
            "a virtual disk of {size} bytes is larger than any can be"
        )));
    }
    if layout.l1_entries_for(size) > u64::from(entries) {
        return Err(damaged(format!(
            "an L1 table of {entries} entries is too small for a disk of {size} bytes"
        )));
    }
    let inside = at.checked_add(bytes).is_some_and(|end| end <= file_len);
    if entries > 0 && (at == 0 || !layout.aligned(at) || !inside) {
        return Err(damaged(format!(
            "an L1 table of {entries} entries cannot be at {at} of a file of {file_len} bytes"
        )));
    }
    Ok(())
}

/// The full disk encryption header pointer.
fn luks_pointer(pointer: &[u8], cluster_len: usize, file_len: u64) -> Result<EncryptionHeader> {
    let (Some(offset), Some(len), 16) = (be64(pointer, 0), be64(pointer, 8), pointer.len()) else {
        return Err(damaged(
            "the pointer to the LUKS header is not 16 bytes long",
        ));
    };
    let aligned = offset.checked_rem(to_u64(cluster_len)) == Some(0);
    let inside = offset.checked_add(len).is_some_and(|end| end <= file_len);
    if offset == 0 || !aligned || !inside {
        return Err(damaged(format!(
            "a LUKS header of {len} bytes cannot be at {offset} of a file of {file_len} bytes"
        )));
    }
    Ok(EncryptionHeader::Luks { offset, len })
}

fn backing_name(data: &[u8], cluster_len: usize) -> Result<Option<Vec<u8>>> {
    let (Some(at), Some(len)) = (be64(data, 8), be32(data, 16)) else {
        return Err(damaged("cut short"));
    };
    if at == 0 {
        return Ok(None);
    }
    let len = usize_from_u32(len);
    let at = to_usize(at).filter(|at| {
        len <= MAX_BACKING_NAME && at.checked_add(len).is_some_and(|end| end <= cluster_len)
    });
    let name = at
        .and_then(|at| slice(data, at, len))
        .ok_or_else(|| damaged("the backing file's name lies outside the header cluster"))?;
    Ok((!name.is_empty()).then(|| name.to_vec()))
}

#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    feature_names: &'a [u8],
    data_file: Option<&'a [u8]>,
    encryption: Option<&'a [u8]>,
}

impl<'a> Extensions<'a> {
    /// The extensions in `data[at..end]`; a file may end in the middle of its first cluster.
    fn parse(data: &'a [u8], mut at: usize, end: usize) -> Result<Self> {
        let mut found = Self::default();
        let data = data.get(..end).unwrap_or(data);
        // Each step moves on by at least 8 bytes, so the cluster bounds the loop.
        while let (Some(kind), Some(len)) = (be32(data, at), be32(data, at.saturating_add(4))) {
            if kind == 0 {
                break;
            }
            let len = usize_from_u32(len);
            let body = at.saturating_add(8);
            let content = slice(data, body, len)
                .ok_or_else(|| damaged(format!("extension {kind:#x} does not fit into it")))?;
            match kind {
                EXTENSION_BACKING_FORMAT => found.backing_format = Some(content),
                EXTENSION_FEATURE_NAMES => found.feature_names = content,
                EXTENSION_DATA_FILE => found.data_file = Some(content),
                EXTENSION_ENCRYPTION => found.encryption = Some(content),
                _ => {}
            }
            let Some(next) = len
                .checked_next_multiple_of(8)
                .and_then(|l| body.checked_add(l))
            else {
                break;
            };
            at = next;
        }
        Ok(found)
    }
}

/// Bits by number, with the names the image itself has for them.
fn bit_names(bits: u64, table: &[u8]) -> String {
    let named = |bit: u32| {
        table.chunks_exact(48).find_map(|row| {
            let wanted = row.first() == Some(&0) && row.get(1).map(|&b| u32::from(b)) == Some(bit);
            wanted.then(|| printable(until_nul(row.get(2..).unwrap_or_default())))
        })
    };
    let names: Vec<String> = (0..64)
        .filter(|&bit| bits.checked_shr(bit).is_some_and(|b| b & 1 == 1))
        .map(|bit| match named(bit) {
            Some(name) => format!("bit {bit} ({name})"),
            None => format!("bit {bit}"),
        })
        .collect();
    names.join(", ")
}

/// Lengths agree with what [`Header::parse`] wants to see.
const _: () = assert!(to_u64(MAX_BACKING_NAME) < 1024);
