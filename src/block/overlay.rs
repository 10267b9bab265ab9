//! Changes kept in memory over a device that is never written.
//!
//! A read-only open of a filesystem whose journal needs recovery replays the journal into one of
//! these: the image stays untouched, and readers see the recovered state.
//!
//! Invariants: blocks are `block_size` long and aligned to it; a block is either absent (read from
//! below) or held whole. Total size is bounded by `budget`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;
use crate::ondisk::units::to_u64;

/// A copy-on-write layer in memory; see the module text.
pub struct OverlayBackend {
    below: BlockDevice,
    block_size: u64,
    max_blocks: u64,
    blocks: RwLock<BTreeMap<u64, Arc<[u8]>>>,
}

impl OverlayBackend {
    /// An empty overlay over `below`, in blocks of `block_size` bytes (a power of two), holding at
    /// most `budget` bytes of changes.
    ///
    /// # Errors
    /// [`BlockErrorKind::Unsupported`] if `block_size` is not a power of two.
    pub fn new(below: BlockDevice, block_size: u32, budget: u64) -> Result<Self> {
        if !block_size.is_power_of_two() {
            return Err(BlockError::new(
                BlockErrorKind::Unsupported,
                format!("an overlay in blocks of {block_size} bytes"),
            ));
        }
        let block_size = u64::from(block_size);
        let max_blocks = budget.checked_div(block_size).unwrap_or(0);
        Ok(Self {
            below,
            block_size,
            max_blocks,
            blocks: RwLock::default(),
        })
    }

    /// Number of blocks that differ from the device below.
    pub fn changed_blocks(&self) -> usize {
        self.blocks.read().len()
    }

    /// The piece of a request that lies in one block: block number, offset in it, length.
    fn piece(&self, offset: u64, len: usize) -> Option<(u64, usize, usize)> {
        let block = offset.checked_div(self.block_size)?;
        let within = offset.checked_rem(self.block_size)?;
        let room = self.block_size.checked_sub(within)?;
        let len = len.min(usize::try_from(room).ok()?);
        Some((block, usize::try_from(within).ok()?, len))
    }

    /// A block's present content, from here or from below (zero-padded at the device's end).
    fn load(&self, held: Option<&Arc<[u8]>>, block: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = held {
            return Ok(bytes.to_vec());
        }
        let size = usize::try_from(self.block_size).map_err(|_| outside())?;
        let mut bytes = vec![0; size];
        let at = block.checked_mul(self.block_size).ok_or_else(outside)?;
        self.below.read_some_at(at, &mut bytes)?;
        Ok(bytes)
    }
}

fn outside() -> BlockError {
    BlockError::new(
        BlockErrorKind::OutOfRange,
        "a request lies outside an overlay",
    )
}

impl BlockBackend for OverlayBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: self.below.block_size(),
            read_only: false,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        // One request below for the whole range, then the held blocks on top: overlays hold few.
        self.below.read_exact_at(offset, buf)?;
        let end = offset.checked_add(to_u64(buf.len())).ok_or_else(outside)?;
        let first = offset.checked_div(self.block_size).ok_or_else(outside)?;
        let past = end.div_ceil(self.block_size);
        for (&block, bytes) in self.blocks.read().range(first..past) {
            let start = block.checked_mul(self.block_size).ok_or_else(outside)?;
            let from = offset.max(start);
            let to = end.min(start.saturating_add(self.block_size));
            let len = usize::try_from(to.saturating_sub(from)).map_err(|_| outside())?;
            let source = usize::try_from(from.saturating_sub(start)).map_err(|_| outside())?;
            let target = usize::try_from(from.saturating_sub(offset)).map_err(|_| outside())?;
            let source = crate::ondisk::bytes::slice(bytes, source, len).ok_or_else(outside)?;
            let target = target
                .checked_add(len)
                .and_then(|end| buf.get_mut(target..end))
                .ok_or_else(outside)?;
            target.copy_from_slice(source);
        }
        Ok(())
    }

    fn write_all_at(&self, mut offset: u64, mut buf: &[u8]) -> Result<()> {
        let mut blocks = self.blocks.write();
        while !buf.is_empty() {
            let (block, within, len) = self.piece(offset, buf.len()).ok_or_else(outside)?;
            let held = blocks.get(&block);
            if held.is_none() && to_u64(blocks.len()) >= self.max_blocks {
                return Err(BlockError::new(
                    BlockErrorKind::Unsupported,
                    format!(
                        "more than {} bytes of changes would have to be kept in memory",
                        self.max_blocks.saturating_mul(self.block_size)
                    ),
                ));
            }
            let mut bytes = self.load(held, block)?;
            let (head, rest) = buf.split_at_checked(len).ok_or_else(outside)?;
            within
                .checked_add(len)
                .and_then(|end| bytes.get_mut(within..end))
                .ok_or_else(outside)?
                .copy_from_slice(head);
            blocks.insert(block, bytes.into());
            buf = rest;
            offset = offset.checked_add(to_u64(len)).ok_or_else(outside)?;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let first = offset.checked_div(self.block_size).ok_or_else(outside)?;
        let next = self
            .blocks
            .read()
            .range(first..)
            .next()
            .map(|(&block, _)| block);
        let run = match next {
            Some(block) if block == first => {
                let end = first.saturating_add(1).saturating_mul(self.block_size);
                return Ok(Extent::data(end.saturating_sub(offset).min(len)));
            }
            Some(block) => block
                .saturating_mul(self.block_size)
                .saturating_sub(offset)
                .min(len),
            None => len,
        };
        self.below.extent_at(offset, run)
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.below.prefetch(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::MemoryBackend;

    #[test]
    fn reads_below_and_above_and_leaves_below_alone() {
        let below = MemoryBackend::from_bytes((0..100u8).collect()).into_device();
        let overlay = Arc::new(OverlayBackend::new(below.clone(), 16, 1 << 20).unwrap());
        let device = BlockDevice::new(overlay.clone());
        device.write_all_at(30, &[0xAA; 5]).unwrap();
        device.write_all_at(96, &[0xBB; 4]).unwrap();
        let mut model: Vec<u8> = (0..100).collect();
        model[30..35].fill(0xAA);
        model[96..100].fill(0xBB);
        for start in 0..100 {
            for end in start..=100 {
                let got = device.read_vec(start as u64, end - start).unwrap();
                assert_eq!(got, model[start..end], "{start}..{end}");
            }
        }
        assert_eq!(overlay.changed_blocks(), 3);
        assert_eq!(
            below.read_vec(0, 100).unwrap(),
            (0..100).collect::<Vec<u8>>()
        );
    }

    #[test]
    fn budget_is_an_error() {
        let below = MemoryBackend::from_bytes(vec![0; 64]).into_device();
        let device = BlockDevice::new(Arc::new(OverlayBackend::new(below, 16, 32).unwrap()));
        device.write_all_at(0, &[1; 32]).unwrap();
        assert_eq!(
            device.write_all_at(32, &[1]).unwrap_err().kind(),
            BlockErrorKind::Unsupported
        );
    }
}
