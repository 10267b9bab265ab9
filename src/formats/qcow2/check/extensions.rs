//! Header extensions that use clusters: the encryption header and the bitmaps.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Header extensions", "Full disk encryption header
//! pointer", "Bitmaps extension", "Bitmap directory entry".

use super::super::header::Header;
use super::report::Report;
use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::ondisk::bytes::{be16, be32, be64, slice};
use crate::ondisk::units::{to_u64, to_usize, usize_from_u32};

const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const AUTOCLEAR_BITMAPS: u64 = 1;
/// Most bitmaps of an image, as in QEMU.
const MAX_BITMAPS: u32 = 65535;
/// Largest directory in bytes, as in QEMU: 1024 for each bitmap.
const MAX_DIRECTORY_BYTES: u64 = 1024 * 65535;
/// Most entries of all bitmap tables together. QEMU allows more for each, but a bitmap of so many
/// clusters would describe a disk larger than any.
pub const MAX_TABLE_ENTRIES: u64 = 32 << 20;

/// Where the extensions say clusters are used.
#[derive(Debug, Default)]
pub struct Extensions {
    /// Offset and length of the encryption header.
    pub encryption: Option<(u64, u64)>,
    /// Offset and length of the bitmap directory.
    pub bitmap_directory: Option<(u64, u64)>,
    /// Offset and number of entries of the bitmaps' tables.
    pub bitmap_tables: Vec<(u64, u32)>,
}

/// Finds them.
///
/// # Errors
/// What reading reports. Damage goes to `report`.
pub fn read(file: &BlockDevice, header: &Header, report: &mut Report) -> Result<Extensions> {
    let mut first = vec![0; to_usize(header.layout.cluster_size()).unwrap_or(0)];
    let len = file.read_some_at(0, &mut first)?;
    let first = first.get(..len).unwrap_or_default();
    let (mut at, autoclear) = if header.layout.version < 3 {
        (72, 0)
    } else {
        (
            be32(first, 100).map_or(104, usize_from_u32),
            be64(first, 88).unwrap_or(0),
        )
    };
    let end = be64(first, 8)
        .and_then(to_usize)
        .filter(|&at| at != 0 && at <= first.len())
        .unwrap_or(first.len());
    let first = first.get(..end).unwrap_or(first);
    let mut found = Extensions::default();
    // Each step moves on by at least 8 bytes, so the cluster bounds the loop. The header was parsed
    // before, so the extensions fit.
    while let (Some(kind @ 1..), Some(len)) = (be32(first, at), be32(first, at.saturating_add(4))) {
        let len = usize_from_u32(len);
        let body = at.saturating_add(8);
        let content = slice(first, body, len).unwrap_or_default();
        match kind {
            EXTENSION_ENCRYPTION => found.encryption = be64(content, 0).zip(be64(content, 8)),
            EXTENSION_BITMAPS if autoclear & AUTOCLEAR_BITMAPS != 0 => {
                bitmaps(file, content, &mut found, report)?;
            }
            _ => {}
        }
        at = body.saturating_add(len.checked_next_multiple_of(8).unwrap_or(len));
    }
    Ok(found)
}

fn bitmaps(
    file: &BlockDevice,
    extension: &[u8],
    found: &mut Extensions,
    report: &mut Report,
) -> Result<()> {
    let (Some(count), Some(len), Some(at)) =
        (be32(extension, 0), be64(extension, 8), be64(extension, 16))
    else {
        unreadable(report, "the bitmaps extension is cut short");
        return Ok(());
    };
    let inside = at.checked_add(len).is_some_and(|end| end <= file.len());
    if count > MAX_BITMAPS || len > MAX_DIRECTORY_BYTES || !inside {
        unreadable(
            report,
            "the bitmap directory cannot be where the header says",
        );
        return Ok(());
    }
    found.bitmap_directory = Some((at, len));
    let directory = file.read_vec(at, to_usize(len).unwrap_or(0))?;
    let mut at = 0_usize;
    let mut entries = 0_u64;
    for _ in 0..count {
        let fixed = slice(&directory, at, 24);
        let entry = fixed.and_then(|entry| {
            let (table, size) = (be64(entry, 0)?, be32(entry, 8)?);
            let name = usize::from(be16(entry, 18)?);
            let extra = usize_from_u32(be32(entry, 20)?);
            let len = name.checked_add(extra)?.checked_add(24)?;
            Some((table, size, len.checked_next_multiple_of(8)?))
        });
        let Some((table, size, len)) = entry else {
            unreadable(report, "the bitmap directory is cut short");
            return Ok(());
        };
        entries = entries.saturating_add(u64::from(size));
        let end = table.checked_add(u64::from(size).saturating_mul(8));
        if entries > MAX_TABLE_ENTRIES || end.is_none_or(|end| end > file.len()) {
            unreadable(
                report,
                "a bitmap's table cannot be where its directory says",
            );
            return Ok(());
        }
        found.bitmap_tables.push((table, size));
        at = at.saturating_add(len);
    }
    if to_u64(at) > len {
        unreadable(report, "the bitmap directory is cut short");
    }
    Ok(())
}

/// What cannot be read may refer to clusters that look like leaks.
fn unreadable(report: &mut Report, text: &str) {
    report.corrupt(1, || text.into());
    report.error(|| "the clusters bitmaps use are not known".into());
}
