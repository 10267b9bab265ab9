//! The hash tree of a directory (kernel documentation, "Hash Tree Directories").
//!
//! The root is block 0: the entries `.` and `..`, then a header and pairs of hash and block. Inner
//! nodes look like one free slot. The descent has a fixed number of levels, and the walk over
//! colliding hashes only moves forward, so both end on any input.

use std::sync::Arc;

use super::hash::{Version, hash};
use super::lookup::find_in_block;
use crate::fs::error::{FsError, Result};
use crate::fs::ext4::features::Incompat;
use crate::fs::ext4::inode::Inode;
use crate::fs::ext4::volume::Volume;
use crate::ondisk::bytes::{le16, le32, slice};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::units::usize_from_u32;

/// Where the root's header is, and where its entries start.
const ROOT_INFO: usize = 24;
const ROOT_ENTRIES: usize = 32;
/// Where an inner node's entries start.
const NODE_ENTRIES: usize = 8;
const ENTRY_LEN: usize = 8;
/// Bits of a block number an entry holds; the rest is reserved.
const BLOCK_MASK: u32 = 0x0FFF_FFFF;
/// Leaves looked at for one hash. Real directories have a few with the same hash; when there are
/// more, the linear search takes over.
const MAX_COLLISIONS: usize = 1024;

/// Where the entries of an index block start, by its shape.
fn entries_offset(raw: &[u8]) -> usize {
    match le16(raw, 4) {
        Some(12) => ROOT_ENTRIES,
        _ => NODE_ENTRIES,
    }
}

/// `limit` and `count` at the start of the entries.
fn limit_and_count(raw: &[u8], offset: usize) -> Option<(usize, usize)> {
    let limit = usize::from(le16(raw, offset)?);
    let count = usize::from(le16(raw, offset.checked_add(2)?)?);
    let end = limit.checked_mul(ENTRY_LEN)?.checked_add(offset)?;
    (count >= 1 && count <= limit && end <= raw.len()).then_some((limit, count))
}

/// Whether an index block's checksum is right.
pub(super) fn checksum_ok(dir: &Inode, raw: &[u8]) -> bool {
    let check = || {
        let offset = entries_offset(raw);
        let (limit, count) = limit_and_count(raw, offset)?;
        let covered = count.checked_mul(ENTRY_LEN)?.checked_add(offset)?;
        let tail_at = limit.checked_mul(ENTRY_LEN)?.checked_add(offset)?;
        let tail = slice(raw, tail_at, ENTRY_LEN)?;
        let crc = crc32c_raw(dir.checksum_seed, raw.get(..covered)?);
        let crc = crc32c_raw(crc32c_raw(crc, tail.get(..4)?), &[0; 4]);
        Some(le32(tail, 4)? == crc)
    };
    check().unwrap_or(false)
}

/// An index block and the entry the search went through.
struct Level {
    raw: Arc<[u8]>,
    offset: usize,
    count: usize,
    at: usize,
}

impl Level {
    fn new(raw: Arc<[u8]>, offset: usize, target: u32) -> Option<Self> {
        let (_, count) = limit_and_count(&raw, offset)?;
        let mut level = Self {
            raw,
            offset,
            count,
            at: 0,
        };
        // The last entry whose hash is at most the target. Entry 0 has no hash: it stands for 0.
        let (mut low, mut high) = (1, count);
        while low < high {
            let middle = low.midpoint(high);
            if level.hash(middle)? <= target {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        level.at = low.checked_sub(1)?;
        Some(level)
    }

    fn field(&self, index: usize, within: usize) -> Option<u32> {
        let at = index
            .checked_mul(ENTRY_LEN)?
            .checked_add(self.offset)?
            .checked_add(within)?;
        le32(&self.raw, at)
    }

    fn hash(&self, index: usize) -> Option<u32> {
        self.field(index, 0)
    }

    fn child(&self) -> Option<u64> {
        Some(u64::from(self.field(self.at, 4)? & BLOCK_MASK))
    }
}

impl Volume {
    /// Finds a name through the tree; `Ok(None)` says that it is not there.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`], [`crate::fs::FsErrorKind::Unsupported`] for a hash
    /// that cannot be calculated: search linearly then.
    pub(super) fn find_hashed(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let wrong =
            || FsError::damaged(format!("the hash tree of directory {} is damaged", dir.ino));
        let root = self.index_block(dir, 0)?;
        let info = slice(&root, ROOT_INFO, 8).ok_or_else(wrong)?;
        let [
            reserved0,
            reserved1,
            reserved2,
            reserved3,
            version,
            info_len,
            levels,
            _,
        ] = <[u8; 8]>::try_from(info).map_err(|_| wrong())?;
        let max_levels = if self.sb.incompat.contains(Incompat::LARGEDIR) {
            2
        } else {
            1
        };
        if [reserved0, reserved1, reserved2, reserved3] != [0; 4]
            || info_len != 8
            || levels > max_levels
        {
            return Err(wrong());
        }
        let version = Version::from_disk(version, self.sb.hash_unsigned)
            .ok_or_else(|| FsError::unsupported("a directory hash of an unknown kind"))?;
        let target = hash(name, version, &self.sb.hash_seed);

        let mut path = vec![Level::new(root, ROOT_ENTRIES, target).ok_or_else(wrong)?];
        for _ in 0..levels {
            let child = path.last().and_then(Level::child).ok_or_else(wrong)?;
            let raw = self.index_block(dir, child)?;
            path.push(Level::new(raw, NODE_ENTRIES, target).ok_or_else(wrong)?);
        }
        for _ in 0..MAX_COLLISIONS {
            let child = path.last().and_then(Level::child).ok_or_else(wrong)?;
            let raw = self.directory_block(dir, child, false)?.ok_or_else(wrong)?;
            let found = find_in_block(dir, child, &raw, |entry| {
                entry.name == name && entry.is_name()
            })?;
            if found.is_some() {
                return Ok(found);
            }
            if !self.next_leaf(dir, &mut path, target)? {
                return Ok(None);
            }
        }
        Err(wrong())
    }

    fn index_block(&self, dir: &Inode, block: u64) -> Result<Arc<[u8]>> {
        let limit = self.directory_blocks(dir);
        self.directory_block(dir, block, true)?
            .filter(|raw| block < limit && usize_from_u32(self.sb.block_size) == raw.len())
            .ok_or_else(|| {
                FsError::damaged(format!("the hash tree of directory {} has a hole", dir.ino))
            })
    }

    /// Moves on to the next leaf if its hash says that the target's collisions go on there.
    fn next_leaf(&self, dir: &Inode, path: &mut [Level], target: u32) -> Result<bool> {
        let wrong =
            || FsError::damaged(format!("the hash tree of directory {} is damaged", dir.ino));
        // The deepest level that has another entry.
        let Some(depth) = path
            .iter()
            .rposition(|level| level.at.saturating_add(1) < level.count)
        else {
            return Ok(false);
        };
        let level = path.get_mut(depth).ok_or_else(wrong)?;
        let next = level.at.saturating_add(1);
        // The low bit marks a continuation.
        if level.hash(next).ok_or_else(wrong)? != target | 1 {
            return Ok(false);
        }
        level.at = next;
        for below in depth.saturating_add(1)..path.len() {
            let child = below
                .checked_sub(1)
                .and_then(|above| path.get(above)?.child())
                .ok_or_else(wrong)?;
            let raw = self.index_block(dir, child)?;
            let fresh = Level::new(raw, NODE_ENTRIES, 0).ok_or_else(wrong)?;
            *path.get_mut(below).ok_or_else(wrong)? = Level { at: 0, ..fresh };
        }
        Ok(true)
    }
}
