//! How far into a disk its content reaches: what must not be cut off.
//!
//! With a partition table, that is the end of the last partition, and for GPT room for the backup of
//! the table behind it. Without one, it is the end of the filesystem, where that is known; else
//! everything up to the last byte that is not zero counts.

use crate::block::BlockDevice;
use crate::ondisk::bytes::{be32, be64, is_zero, le16, le32, le64};
use crate::volumes::{TableKind, find_table};

/// What reaches furthest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// First byte behind it.
    pub end: u64,
    /// What it is, for people.
    pub what: String,
    /// Whether the disk has a GPT, whose backup at the end of the disk is cut off.
    pub gpt: bool,
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
    let reach = reach(disk, len)?;
    Ok(reach.filter(|reach| reach.end > len))
}

/// What reaches furthest; of content that is not known, only whether something is behind `len`.
///
/// # Errors
/// What reading reports.
pub fn reach(disk: &BlockDevice, len: u64) -> crate::block::Result<Option<Reach>> {
    if let Ok(Some(found)) = find_table(disk, None) {
        let table = found.table;
        let gpt = table.kind == TableKind::Gpt;
        let last = table
            .partitions
            .iter()
            .max_by_key(|p| p.start.saturating_add(p.len));
        let (end, what) = match last {
            Some(p) => (
                p.start.saturating_add(p.len),
                format!("partition {}", p.number),
            ),
            None => (u64::from(table.sector_size), "the partition table".into()),
        };
        let backup = if gpt {
            GPT_ENTRIES.saturating_add(u64::from(table.sector_size))
        } else {
            0
        };
        return Ok(Some(Reach {
            end: end.saturating_add(backup),
            what: if gpt {
                format!("{what} and the backup of the partition table")
            } else {
                what
            },
            gpt,
        }));
    }
    if let Some((name, end)) = filesystem(disk)? {
        return Ok(Some(Reach {
            end,
            what: format!("the {name} filesystem"),
            gpt: false,
        }));
    }
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
                    end: at.saturating_add(piece),
                    what: format!("something that is not zero, near byte {at}"),
                    gpt: false,
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
