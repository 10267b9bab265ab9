//! The first cluster of a new image.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Header" and "Header extensions".

use super::Options;
use crate::formats::detect::QCOW_MAGIC;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::formats::qcow2::layout::Compression;
use crate::ondisk::units::{to_u64, to_usize};

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_ENCRYPTION_HEADER: u32 = 0x0537_be77;
/// Length of the header in version 2, and in version 3 with the compression type.
const HEADER_BYTES: [usize; 2] = [72, 112];
/// Longest backing file name, as the specification says.
const MAX_BACKING_NAME: usize = 1023;

/// Where tables ended up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    /// Host offset of the L1 table.
    pub l1_offset: u64,
    /// Entries of the L1 table.
    pub l1_entries: u32,
    /// Host offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Host offset of the encryption header, and its length.
    pub encryption: (u64, u64),
}

/// The first cluster.
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] if it does not fit.
pub fn encode(options: &Options, places: &Places) -> Result<Vec<u8>> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u32, body: &[u8]| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        extensions.extend_from_slice(&len.to_be_bytes());
        extensions.extend_from_slice(body);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    };
    if let Some((_, format)) = &options.backing {
        extension(EXTENSION_BACKING_FORMAT, format);
    }
    if let Some(encryption) = &options.encryption
        && !encryption.header.is_empty()
    {
        let (at, len) = places.encryption;
        extension(
            EXTENSION_ENCRYPTION_HEADER,
            &[at.to_be_bytes(), len.to_be_bytes()].concat(),
        );
    }
    extension(0, &[]);
    let [short, long] = HEADER_BYTES;
    let header_len = if options.version < 3 { short } else { long };
    let name = options.backing.as_ref().map(|(name, _)| name.as_slice());
    let name = name.unwrap_or_default();
    let name_at = header_len.saturating_add(extensions.len());
    let end = name_at.saturating_add(name.len());
    let cluster = to_usize(options.layout().cluster_size()).unwrap_or(usize::MAX);
    if name.len() > MAX_BACKING_NAME || end > cluster {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            "the name of the backing file is too long for the image's header",
        ));
    }
    let mut header = Vec::with_capacity(end);
    let u32s = |header: &mut Vec<u8>, value: u32| {
        header.extend_from_slice(&value.to_be_bytes());
    };
    let u64s = |header: &mut Vec<u8>, value: u64| {
        header.extend_from_slice(&value.to_be_bytes());
    };
    u32s(&mut header, QCOW_MAGIC);
    u32s(&mut header, options.version);
    u64s(
        &mut header,
        if name.is_empty() { 0 } else { to_u64(name_at) },
    );
    u32s(&mut header, u32::try_from(name.len()).unwrap_or(u32::MAX));
    u32s(&mut header, options.cluster_bits);
    u64s(&mut header, options.size);
    u32s(
        &mut header,
        options.encryption.as_ref().map_or(0, |e| e.method),
    );
    u32s(&mut header, places.l1_entries);
    u64s(&mut header, places.l1_offset);
    u64s(&mut header, places.refcount_table_offset);
    u32s(&mut header, places.refcount_table_clusters);
    // No snapshots.
    u32s(&mut header, 0);
    u64s(&mut header, 0);
    if options.version >= 3 {
        let zstd = options.compression == Compression::Zstd;
        // Incompatible features: 3 compression type, 4 extended L2 entries.
        u64s(
            &mut header,
            (u64::from(zstd) << 3) | (u64::from(options.subclusters) << 4),
        );
        u64s(&mut header, 0);
        u64s(&mut header, 0);
        u32s(&mut header, options.refcount_order);
        u32s(&mut header, u32::try_from(header_len).unwrap_or(u32::MAX));
        header.extend_from_slice(&[u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]);
    }
    header.extend_from_slice(&extensions);
    header.extend_from_slice(name);
    Ok(header)
}
