//! Block maps of ext2 and ext3: 12 direct pointers, then trees of one, two and three levels
//! (kernel documentation, "Direct/Indirect Block Addressing").

use std::sync::Arc;

use super::block_cache::Kind;
use super::inode::Inode;
use super::map::{Run, Target};
use super::volume::Volume;
use crate::fs::error::{FsError, Result};
use crate::ondisk::bytes::le32;
use crate::ondisk::units::usize_from_u32;

/// Pointers in the inode itself.
const DIRECT: u32 = 12;

impl Volume {
    /// [`Volume::map`] for an inode without extents.
    pub(super) fn map_indirect(&self, inode: &Inode, block: u32) -> Result<Run> {
        let pointer_at = |index: u32| {
            let at = usize_from_u32(index).saturating_mul(4);
            u64::from(le32(&inode.i_block, at).unwrap_or(0))
        };
        if block < DIRECT {
            let run = (block..DIRECT).map(pointer_at);
            return self.run_of_pointers(inode, run);
        }
        let per_block = u64::from(self.sb.block_size / 4);
        let mut index = u64::from(block.saturating_sub(DIRECT));
        // Blocks under one pointer of the inode's last three.
        let mut span = per_block;
        for (slot, levels) in [(12, 1u32), (13, 2), (14, 3)] {
            if index < span {
                return self.descend(inode, pointer_at(slot), levels, index, span);
            }
            index = index.saturating_sub(span);
            span = span.saturating_mul(per_block);
        }
        Ok(Run {
            target: Target::Hole,
            len: u64::from(u32::MAX.saturating_sub(block)).saturating_add(1),
        })
    }

    /// Follows `levels` blocks of pointers from `pointer`, which covers `span` blocks, to the one
    /// at `index`.
    fn descend(
        &self,
        inode: &Inode,
        mut pointer: u64,
        levels: u32,
        mut index: u64,
        mut span: u64,
    ) -> Result<Run> {
        let per_block = u64::from(self.sb.block_size / 4);
        let mut leaf: Arc<[u8]> = Arc::default();
        for _ in 0..levels {
            if pointer == 0 {
                return Ok(Run {
                    target: Target::Hole,
                    len: span.saturating_sub(index).max(1),
                });
            }
            leaf = self.pointer_block(inode, pointer)?;
            span = span.checked_div(per_block).unwrap_or(1).max(1);
            let slot = index.checked_div(span).unwrap_or(0);
            index = index.checked_rem(span).unwrap_or(0);
            pointer = pointer_in(&leaf, slot);
            if span == 1 {
                let run = (slot..per_block).map(|slot| pointer_in(&leaf, slot));
                return self.run_of_pointers(inode, run);
            }
        }
        drop(leaf);
        Err(FsError::damaged(format!(
            "block map of inode {}: no leaf",
            inode.ino
        )))
    }

    fn pointer_block(&self, inode: &Inode, block: u64) -> Result<Arc<[u8]>> {
        if !self.in_data_area(block, 1) {
            return Err(outside(inode, block));
        }
        self.block(block, Kind::Plain, |_| Ok(()))
    }

    /// The longest run at the start of `pointers`: consecutive blocks, or zeroes.
    fn run_of_pointers(
        &self,
        inode: &Inode,
        mut pointers: impl Iterator<Item = u64>,
    ) -> Result<Run> {
        let first = pointers.next().unwrap_or(0);
        let mut len = 1u64;
        if first == 0 {
            len = len.saturating_add(
                pointers
                    .take_while(|&p| p == 0)
                    .fold(0, |n, _| u64::saturating_add(n, 1)),
            );
            return Ok(Run {
                target: Target::Hole,
                len,
            });
        }
        for pointer in pointers {
            if first.checked_add(len) != Some(pointer) {
                break;
            }
            len = len.saturating_add(1);
        }
        if !self.in_data_area(first, 1) {
            return Err(outside(inode, first));
        }
        let inside = self.sb.blocks_count.saturating_sub(first).max(1);
        Ok(Run {
            target: Target::Stored(first),
            len: len.min(inside),
        })
    }
}

fn pointer_in(block: &[u8], slot: u64) -> u64 {
    usize::try_from(slot)
        .ok()
        .and_then(|slot| le32(block, slot.checked_mul(4)?))
        .map_or(0, u64::from)
}

fn outside(inode: &Inode, block: u64) -> FsError {
    FsError::damaged(format!(
        "block map of inode {}: block {block} lies outside the filesystem",
        inode.ino
    ))
}
