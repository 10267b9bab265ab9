//! Recording another backing file in the header.
//!
//! Everything that says which file it is and of what format is in the first 512 bytes, which are
//! written as one, so that a name is never taken together with the format of another file:
//!
//! 1. If the new name does not fit into them, it is written behind everything the header cluster
//!    holds; nothing refers to it yet. Flush.
//! 2. The first 512 bytes are written: the format extension comes first of all extensions, and the
//!    header points to the name. Flush.
//!
//! The names of features (an extension for messages only) are left out: they would lie across that
//! border.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Header" and "Header extensions".

use super::header::Header;
use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{be32, be64, slice};
use crate::ondisk::units::{to_u64, to_usize, usize_from_u32};

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// What is written as one.
const SECTOR: usize = 512;
/// Longest name, as the specification says.
const MAX_NAME: usize = 1023;

/// Records a backing file by name and format, or none. Contents are not touched.
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] if the image cannot have that one, or what I/O reports.
pub fn set(file: &BlockDevice, header: &Header, backing: Option<(&[u8], &[u8])>) -> Result<()> {
    if backing.is_some() && header.data_file_raw {
        return Err(unsupported(
            "an image whose data file is a disk by itself has no backing file",
        ));
    }
    if backing.is_some_and(|(name, format)| {
        name.is_empty() || name.len() > MAX_NAME || format.is_empty() || format.len() > 15
    }) {
        return Err(unsupported(
            "the name of a backing file has 1 to 1023 bytes, that of its format 1 to 15",
        ));
    }
    let mut cluster = vec![0; to_usize(header.layout.cluster_size()).unwrap_or(0)];
    let len = file.read_some_at(0, &mut cluster)?;
    cluster.truncate(len);
    let plan = plan(&cluster, header.layout.version, backing)?;
    if let Some((at, name)) = &plan.name {
        file.write_all_at(to_u64(*at), name)?;
        file.flush()?;
    }
    file.write_all_at(0, &plan.head)?;
    file.flush()?;
    Ok(())
}

fn unsupported(what: &str) -> FormatError {
    FormatError::new(FormatErrorKind::Unsupported, what)
}

fn damaged() -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, "the header is cut short")
}

struct Plan {
    /// The first bytes of the file, at most a sector.
    head: Vec<u8>,
    /// The name, if it is elsewhere, and where.
    name: Option<(usize, Vec<u8>)>,
}

/// What is to be written, from the first cluster.
fn plan(cluster: &[u8], version: u32, backing: Option<(&[u8], &[u8])>) -> Result<Plan> {
    let mut head = cluster.get(..SECTOR).ok_or_else(damaged)?.to_vec();
    let start = if version < 3 {
        72
    } else {
        be32(cluster, 100).map(usize_from_u32).ok_or_else(damaged)?
    };
    let name_at = be64(cluster, 8).and_then(to_usize).ok_or_else(damaged)?;
    let name_len = be32(cluster, 16).map(usize_from_u32).ok_or_else(damaged)?;
    let (kept, old_end) = extensions(cluster, start, name_at)?;
    let mut area = Vec::new();
    if let Some((_, format)) = backing {
        push(&mut area, EXTENSION_BACKING_FORMAT, format)?;
    }
    for (kind, content) in kept {
        if kind != EXTENSION_BACKING_FORMAT && kind != EXTENSION_FEATURE_NAMES {
            push(&mut area, kind, content)?;
        }
    }
    area.extend_from_slice(&[0; 8]);
    let area_end = start.saturating_add(area.len());
    let into = head.get_mut(start..area_end).ok_or_else(|| {
        unsupported("the header has no room: its extensions take more than a sector")
    })?;
    into.copy_from_slice(&area);
    // Old extensions behind the end would be read by nobody, but are no use either.
    let used = if name_at == 0 {
        old_end
    } else {
        old_end.max(name_at.saturating_add(name_len))
    };
    head.get_mut(area_end..).unwrap_or_default().fill(0);
    let (mut at, mut len, mut outside) = (0, 0, None);
    if let Some((name, _)) = backing {
        len = name.len();
        at = area_end;
        let end = at.saturating_add(len);
        if let Some(into) = head.get_mut(at..end) {
            into.copy_from_slice(name);
        } else {
            // Behind what the old header refers to, or in front of an old name there.
            let behind = used.max(SECTOR).next_multiple_of(8);
            at = if behind.saturating_add(len) <= cluster.len() {
                behind
            } else if SECTOR >= old_end && SECTOR.saturating_add(len) <= name_at {
                SECTOR
            } else {
                return Err(unsupported(
                    "the header cluster has no room for the name of the backing file",
                ));
            };
            outside = Some((at, name.to_vec()));
        }
    }
    let at = to_u64(at).to_be_bytes();
    let len = u32::try_from(len).unwrap_or(0).to_be_bytes();
    for (place, bytes) in [(8..16, at.as_slice()), (16..20, len.as_slice())] {
        head.get_mut(place)
            .ok_or_else(damaged)?
            .copy_from_slice(bytes);
    }
    Ok(Plan {
        head,
        name: outside,
    })
}

fn push(area: &mut Vec<u8>, kind: u32, content: &[u8]) -> Result<()> {
    let len = u32::try_from(content.len()).map_err(|_| damaged())?;
    area.extend_from_slice(&kind.to_be_bytes());
    area.extend_from_slice(&len.to_be_bytes());
    area.extend_from_slice(content);
    area.resize(area.len().next_multiple_of(8), 0);
    Ok(())
}

/// Types and contents of extensions, and where the last of them ends.
type Extensions<'a> = (Vec<(u32, &'a [u8])>, usize);

fn extensions(cluster: &[u8], start: usize, name_at: usize) -> Result<Extensions<'_>> {
    let end = if name_at == 0 {
        cluster.len()
    } else {
        name_at.min(cluster.len())
    };
    let data = cluster.get(..end).ok_or_else(damaged)?;
    let mut at = start;
    let mut found = Vec::new();
    // Each step moves on by at least 8 bytes.
    while let (Some(kind @ 1..), Some(len)) = (be32(data, at), be32(data, at.saturating_add(4))) {
        let len = usize_from_u32(len);
        let content = slice(data, at.saturating_add(8), len).ok_or_else(damaged)?;
        found.push((kind, content));
        at = at
            .saturating_add(8)
            .saturating_add(len.checked_next_multiple_of(8).ok_or_else(damaged)?);
    }
    Ok((found, at.saturating_add(8).min(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(size: usize) -> Vec<u8> {
        let mut c = vec![0; size];
        c[100..104].copy_from_slice(&112_u32.to_be_bytes());
        let mut area = Vec::new();
        push(&mut area, EXTENSION_FEATURE_NAMES, &[7; 384]).unwrap();
        push(&mut area, 0x2385_2875, &[9; 24]).unwrap();
        c[112..112 + area.len()].copy_from_slice(&area);
        c
    }

    #[test]
    fn in_one_sector_or_behind() {
        let old = cluster(4096);
        let short = plan(&old, 3, Some((b"base", b"raw"))).unwrap();
        assert!(short.name.is_none());
        assert_eq!(short.head.len(), 512);
        let (found, _) = extensions(&short.head, 112, 0).unwrap();
        assert_eq!(found[0], (EXTENSION_BACKING_FORMAT, b"raw".as_slice()));
        assert_eq!(found[1].0, 0x2385_2875);
        let long = plan(&old, 3, Some((&[b'x'; 1000], b"qcow2"))).unwrap();
        let (at, name) = long.name.unwrap();
        assert!(at >= 112 + 392 + 32 + 8 && name.len() == 1000);
        assert!(plan(&cluster(1024), 3, Some((&[b'x'; 1000], b"qcow2"))).is_err());
        let none = plan(&old, 3, None).unwrap();
        assert_eq!(none.head[8..20], [0; 12]);
    }
}
