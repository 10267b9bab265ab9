//! From a file's blocks to the device's.

use super::inode::{Inode, InodeFlags};
use super::volume::Volume;
use crate::fs::error::Result;

/// What a run of a file's blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Stored from this block on.
    Stored(u64),
    /// Reads as zeroes: nothing there, or space that was never written.
    Hole,
}

/// A run of a file's blocks that starts at the block asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it is.
    pub target: Target,
    /// Blocks, at least 1.
    pub len: u64,
}

/// Blocks past the last one a file can have: logical block numbers have 32 bits.
pub const MAX_FILE_BLOCKS: u64 = 1 << 32;

impl Volume {
    /// The run that starts at file block `block`. Past what the map can address it is a hole.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] if the map contradicts itself or leaves the filesystem.
    pub fn map(&self, inode: &Inode, block: u64) -> Result<Run> {
        let Ok(block) = u32::try_from(block) else {
            return Ok(Run {
                target: Target::Hole,
                len: u64::MAX >> 20,
            });
        };
        if inode.has(InodeFlags::EXTENTS) {
            self.map_extents(inode, block)
        } else {
            self.map_indirect(inode, block)
        }
    }

    /// Whether `len` blocks from `start` may hold a file's content.
    pub(super) fn in_data_area(&self, start: u64, len: u64) -> bool {
        start > u64::from(self.sb.first_data_block)
            && start
                .checked_add(len)
                .is_some_and(|end| end <= self.sb.blocks_count)
    }
}
