//! How far into a disk its content reaches: what must not be cut off.
//!
//! With partitions, that is the end of the last one, and of a GPT also the end of what its header
//! says it has: tools and kernels reject a table that names sectors outside the disk. Without them,
//! it is the end of the filesystem or container, where that is known; one whose end is not known
//! may reach to the end of the disk. Of anything else, everything up to the last byte that is not
//! zero counts.

use crate::block::{BlockDevice, BlockError};
use crate::fs::signature::{self, Signature};
use crate::ondisk::bytes::{be32, be64, is_zero, le16, le32, le64};
use crate::volumes::{FoundTable, TableKind, find_table};

/// What reaches furthest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// First byte behind it; `None`: it cannot be told.
    pub end: Option<u64>,
    /// What it is, for people.
    pub what: String,
    /// Whether it is the partition table itself.
    pub table: bool,
}

/// Bytes a GPT's backup takes beside one sector for its header: 128 entries.
const GPT_ENTRIES: u64 = 128 * 128;
/// Bytes looked at at once.
const PIECE: u64 = 1 << 20;

/// What must not be cut off when `disk` becomes `len` bytes long; `None`: nothing.
///
/// # Errors
/// What reading reports.
pub fn beyond(disk: &BlockDevice, len: u64) -> crate::block::Result<Option<Reach>> {
    let reaches = |r: &Reach| r.end.is_none_or(|end| end > len);
    let found = find_table(disk, None)
        .ok()
        .flatten()
        .filter(|f| f.table.kind == TableKind::Gpt || !f.table.partitions.is_empty());
    if let Some(found) = found {
        if let Some(container) = recognised(signature::recognise_container(disk))? {
            return Ok(Some(of_signature(disk, &container)?).filter(reaches));
        }
        return Ok(partitions(disk, &found)?.into_iter().find(reaches));
    }
    if let Some(known) = whole(disk)? {
        return Ok(Some(known).filter(reaches));
    }
    not_zero(disk, len)
}

/// What a partition table says, what matters most first.
fn partitions(disk: &BlockDevice, found: &FoundTable) -> crate::block::Result<Vec<Reach>> {
    let table = &found.table;
    let sector = u64::from(table.sector_size);
    let gpt = table.kind == TableKind::Gpt;
    let backup = if gpt {
        GPT_ENTRIES.saturating_add(sector)
    } else {
        0
    };
    let mut reaches = Vec::new();
    let last = table
        .partitions
        .iter()
        .max_by_key(|p| p.start.saturating_add(p.len));
    if let Some(p) = last {
        let end = p.start.saturating_add(p.len).saturating_add(backup);
        let behind = if gpt {
            " and the backup of the partition table"
        } else {
            ""
        };
        reaches.push(Reach {
            end: Some(end),
            what: format!("partition {}{behind}", p.number),
            table: false,
        });
    }
    // What does not keep to its partition.
    for p in table.partitions.iter().filter(|p| !p.extended) {
        let Ok(device) = p.device(disk) else {
            continue;
        };
        if let Some(inside) = whole(&device)?
            && let Some(end) = inside.end
        {
            reaches.push(Reach {
                end: Some(p.start.saturating_add(end)),
                what: format!("{} in partition {}", inside.what, p.number),
                table: false,
            });
        }
    }
    if gpt {
        reaches.push(Reach {
            end: Some(gpt_end(disk, found, sector)?),
            what: "the GPT".into(),
            table: true,
        });
    }
    Ok(reaches)
}

/// Where the backup of a GPT and the sectors for partitions end, as its header says (UEFI 2.10, table
/// 5-5: `AlternateLBA`, `LastUsableLBA`); the end of the disk if anything is wrong with it.
fn gpt_end(disk: &BlockDevice, found: &FoundTable, sector: u64) -> crate::block::Result<u64> {
    let mut header = [0; 92];
    disk.read_some_at(sector, &mut header)?;
    let told = found.problems.is_empty() && header.starts_with(b"EFI PART");
    let last = le64(&header, 32).max(le64(&header, 48));
    Ok(last.filter(|_| told).map_or(disk.len(), |lba| {
        lba.saturating_add(1).saturating_mul(sector)
    }))
}

/// What is known to be on a whole device.
fn whole(device: &BlockDevice) -> crate::block::Result<Option<Reach>> {
    if let Some(container) = recognised(signature::recognise_container(device))? {
        return of_signature(device, &container).map(Some);
    }
    if let Some(member) = signature::recognise_array_member(device) {
        return of_signature(device, &member).map(Some);
    }
    if let Some((name, end)) = filesystem(device)? {
        return Ok(Some(Reach {
            end: Some(end),
            what: format!("the {name} filesystem"),
            table: false,
        }));
    }
    match recognised(signature::recognise(device))? {
        Some(found) => of_signature(device, &found).map(Some),
        None => Ok(None),
    }
}

fn of_signature(device: &BlockDevice, found: &Signature) -> crate::block::Result<Reach> {
    let kind = found.kind;
    Ok(Reach {
        end: recognised(signature::end(device, found))?,
        what: if signature::is_filesystem(kind) {
            format!("the {kind} filesystem")
        } else {
            format!("what the disk holds ({kind})")
        },
        table: false,
    })
}

fn recognised<T>(result: crate::fs::Result<T>) -> crate::block::Result<T> {
    result.map_err(|e| BlockError::damaged(e.to_string()))
}

/// Whether something that is not known is behind `len`.
fn not_zero(disk: &BlockDevice, len: u64) -> crate::block::Result<Option<Reach>> {
    let mut at = len;
    while at < disk.len() {
        let rest = disk.len().saturating_sub(at);
        let extent = disk.extent_at(at, rest)?;
        let mut piece = extent.len;
        if !extent.reads_zero() {
            piece = piece.min(PIECE);
            let bytes = disk.read_vec(at, usize::try_from(piece).unwrap_or(0))?;
            if !is_zero(&bytes) {
                return Ok(Some(Reach {
                    end: Some(at.saturating_add(piece)),
                    what: format!("something that is not zero, near byte {at}"),
                    table: false,
                }));
            }
        }
        at = at.saturating_add(piece);
    }
    Ok(None)
}

/// A filesystem that says how long it is, and its end.
fn filesystem(disk: &BlockDevice) -> crate::block::Result<Option<(&'static str, u64)>> {
    let mut head = vec![0; 4096];
    disk.read_some_at(0, &mut head)?;
    let mut btrfs = [0; 0x78];
    disk.read_some_at(0x1_0000, &mut btrfs)?;
    let found = ext(&head)
        .map(|end| ("ext", end))
        .or_else(|| xfs(&head).map(|end| ("xfs", end)))
        .or_else(|| {
            let here = btrfs.get(0x40..0x48) == Some(b"_BHRfS_M");
            // Of all devices together, so at least as long as this one's part.
            here.then(|| le64(&btrfs, 0x70).map(|end| ("btrfs", end)))
                .flatten()
        });
    Ok(found)
}

/// Linux, `Documentation/filesystems/ext4`, "Super Block".
fn ext(head: &[u8]) -> Option<u64> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let at = |offset: usize| offset.checked_add(1024);
    if le16(head, at(0x38)?)? != 0xef53 {
        return None;
    }
    let high = if le32(head, at(0x60)?)? & INCOMPAT_64BIT != 0 {
        le32(head, at(0x150)?)?
    } else {
        0
    };
    let blocks = u64::from(high).checked_shl(32)? | u64::from(le32(head, at(0x4)?)?);
    let size = 1024_u64.checked_shl(le32(head, at(0x18)?)?)?;
    blocks.checked_mul(size)
}

/// XFS Filesystem Structure, "Superblocks".
fn xfs(head: &[u8]) -> Option<u64> {
    if head.get(..4)? != b"XFSB" {
        return None;
    }
    be64(head, 8)?.checked_mul(be32(head, 4)?.into())
}
