//! Extent trees (kernel documentation, "Extent Tree").
//!
//! A node is validated when it enters the cache: counts inside the node, keys rising, runs not
//! overlapping. The descent demands that each child's depth is its parent's minus one (so there
//! are no cycles) and that its keys lie inside the parent's interval.

use super::block_cache::Kind;
use super::inode::Inode;
use super::map::{Run, Target};
use super::volume::Volume;
use crate::fs::error::{FsError, Result};
use crate::ondisk::bytes::{le16, le32, slice};
use crate::ondisk::checksum::crc32c_raw;

/// `eh_magic`.
const MAGIC: u16 = 0xF30A;
/// Deepest tree the kernel makes: 2^32 blocks in nodes of 1 KiB.
const MAX_DEPTH: u16 = 5;
/// Length of a header and of an entry.
const ENTRY_LEN: usize = 12;
/// A longer `ee_len` marks an unwritten extent.
const MAX_WRITTEN_LEN: u16 = 32768;

/// One leaf entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    first: u32,
    len: u16,
    unwritten: bool,
    start: u64,
}

/// A validated node.
#[derive(Clone, Copy)]
struct Node<'a> {
    depth: u16,
    entries: &'a [u8],
}

impl<'a> Node<'a> {
    /// Header checks only; [`Node::check_entries`] looks at the rest.
    fn parse(raw: &'a [u8]) -> Result<Self, &'static str> {
        let field = |offset| le16(raw, offset).ok_or("a node is too short");
        if field(0)? != MAGIC {
            return Err("a node has no magic number");
        }
        let (count, max, depth) = (field(2)?, field(4)?, field(6)?);
        let capacity = raw.len().saturating_sub(ENTRY_LEN) / ENTRY_LEN;
        if usize::from(max) > capacity || count > max {
            return Err("a node claims more entries than it has room for");
        }
        if depth > MAX_DEPTH {
            return Err("the tree is too deep");
        }
        let entries = slice(raw, ENTRY_LEN, usize::from(count).saturating_mul(ENTRY_LEN))
            .ok_or("a node is too short")?;
        Ok(Self { depth, entries })
    }

    fn count(&self) -> usize {
        self.entries.len() / ENTRY_LEN
    }

    /// First file block of an entry, of either sort.
    fn key(&self, index: usize) -> Option<u32> {
        le32(self.entries, index.checked_mul(ENTRY_LEN)?)
    }

    fn extent(&self, index: usize) -> Option<Extent> {
        let raw = slice(self.entries, index.checked_mul(ENTRY_LEN)?, ENTRY_LEN)?;
        let len = le16(raw, 4)?;
        let unwritten = len > MAX_WRITTEN_LEN;
        Some(Extent {
            first: le32(raw, 0)?,
            len: if unwritten {
                len.checked_sub(MAX_WRITTEN_LEN)?
            } else {
                len
            },
            unwritten,
            start: u64::from(le32(raw, 8)?) | u64::from(le16(raw, 6)?) << 32,
        })
    }

    fn child(&self, index: usize) -> Option<u64> {
        let raw = slice(self.entries, index.checked_mul(ENTRY_LEN)?, ENTRY_LEN)?;
        Some(u64::from(le32(raw, 4)?) | u64::from(le16(raw, 8)?) << 32)
    }

    /// Keys rise strictly; extents are not empty and do not overlap.
    fn check_entries(&self) -> Result<(), &'static str> {
        let mut free_from = 0u64;
        for index in 0..self.count() {
            let key = u64::from(self.key(index).ok_or("a node is too short")?);
            if key < free_from {
                return Err("entries overlap or are out of order");
            }
            let len = match self.depth {
                0 => self.extent(index).map_or(0, |extent| u64::from(extent.len)),
                _ => 1,
            };
            free_from = key.saturating_add(len);
            if len == 0 || free_from > super::map::MAX_FILE_BLOCKS {
                return Err("an extent is empty or too long");
            }
        }
        Ok(())
    }

    /// Index of the last entry whose key is at most `block`.
    fn find(&self, block: u32) -> Option<usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle).is_some_and(|key| key <= block) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }
}

impl Volume {
    /// [`Volume::map`] for an extent-mapped inode.
    pub(super) fn map_extents(&self, inode: &Inode, block: u32) -> Result<Run> {
        let wrong =
            |what: &str| FsError::damaged(format!("extents of inode {}: {what}", inode.ino));
        let root = Node::parse(&inode.i_block).map_err(wrong)?;
        root.check_entries().map_err(wrong)?;
        // The interval of file blocks that belongs to the node at hand.
        let (mut from, mut until) = (0u64, super::map::MAX_FILE_BLOCKS);
        let mut held;
        let mut node = root;
        loop {
            let last = node
                .count()
                .checked_sub(1)
                .and_then(|last| match node.depth {
                    0 => node
                        .extent(last)
                        .map(|e| u64::from(e.first).saturating_add(u64::from(e.len))),
                    _ => node.key(last).map(|key| u64::from(key).saturating_add(1)),
                });
            let first = node.key(0).map_or(from, u64::from);
            if first < from || last.is_some_and(|last| last > until) {
                return Err(wrong("a node's keys lie outside its parent's interval"));
            }
            let found = node.find(block);
            let next = found.map_or(0, |index| index.saturating_add(1));
            until = node.key(next).map_or(until, u64::from);
            if node.depth == 0 {
                return self
                    .run_of(found.and_then(|index| node.extent(index)), block, until)
                    .map_err(wrong);
            }
            let Some(index) = found else {
                return Ok(hole(block, until));
            };
            from = node.key(index).map_or(from, u64::from);
            let child = node
                .child(index)
                .ok_or_else(|| wrong("a node is too short"))?;
            if !self.in_data_area(child, 1) {
                return Err(wrong("a node lies outside the filesystem"));
            }
            let depth = node.depth.saturating_sub(1);
            let kind = Kind::Extent {
                ino: inode.ino,
                generation: inode.generation,
                depth,
            };
            held = self.block(child, kind, |raw| {
                self.verify_node(inode, raw, depth).map_err(wrong)
            })?;
            node = Node::parse(&held).map_err(wrong)?;
        }
    }

    fn verify_node(&self, inode: &Inode, raw: &[u8], depth: u16) -> Result<(), &'static str> {
        let node = Node::parse(raw)?;
        if node.depth != depth {
            return Err("a node's depth is not its parent's minus one");
        }
        if self.sb.metadata_csum() && !self.ignore_checksums {
            let max = usize::from(le16(raw, 4).unwrap_or(0));
            let at = max.saturating_mul(ENTRY_LEN).saturating_add(ENTRY_LEN);
            let body = raw.get(..at).ok_or("a node is too short")?;
            if le32(raw, at) != Some(crc32c_raw(inode.checksum_seed, body)) {
                return Err("the checksum of a node is wrong");
            }
        }
        node.check_entries()
    }

    fn run_of(&self, extent: Option<Extent>, block: u32, until: u64) -> Result<Run, &'static str> {
        let Some(extent) = extent else {
            return Ok(hole(block, until));
        };
        let into = u64::from(block.saturating_sub(extent.first));
        let Some(len @ 1..) = u64::from(extent.len).checked_sub(into) else {
            return Ok(hole(block, until));
        };
        if !self.in_data_area(extent.start, u64::from(extent.len)) {
            return Err("an extent lies outside the filesystem");
        }
        let target = match extent.unwritten {
            true => Target::Hole,
            false => Target::Stored(extent.start.saturating_add(into)),
        };
        Ok(Run { target, len })
    }
}

fn hole(block: u32, until: u64) -> Run {
    Run {
        target: Target::Hole,
        len: until.saturating_sub(u64::from(block)).max(1),
    }
}
