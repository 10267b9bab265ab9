//! The refcount table and the refcount blocks that are in memory.
//!
//! Counts in memory are raised at once, and lowered only after what referred to the cluster is
//! durably gone (see [`super::flush`]). So a block may be written at any moment, also to make room:
//! a crash finds counts that are too high at worst, which is a leak. Entries of the table are the
//! exception: they are written after the blocks they point to are durable.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Host cluster management".

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;

use super::tables::{encode_words, read_words};
use crate::block::{BlockDevice, BlockError, BlockErrorKind, Result};
use crate::formats::qcow2::header::Header;
use crate::ondisk::units::{to_u64, to_usize};

/// Bits of an entry of the table that hold the offset of a block.
const BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;
/// Memory for blocks, in bytes; there are always a few, however large they are.
const CACHE_BYTES: u64 = 2 << 20;
const FEWEST_BLOCKS: u64 = 4;
/// Bytes written at once: what a disk writes whole.
const SECTOR: usize = 512;

/// The refcounts; see the module text.
pub struct Refcounts {
    file: BlockDevice,
    cluster_bits: u32,
    order: u32,
    table: Vec<u64>,
    table_offset: u64,
    /// Sectors of the table that differ from the file.
    dirty_table: BTreeSet<u64>,
    blocks: HashMap<u64, Block>,
    clock: VecDeque<u64>,
    max_blocks: usize,
}

struct Block {
    bytes: Vec<u8>,
    /// What differs from the file.
    dirty: Option<Range<usize>>,
}

impl Refcounts {
    /// Starts with the table as it is in the file.
    ///
    /// # Errors
    /// What reading reports.
    pub fn load(file: BlockDevice, header: &Header) -> Result<Self> {
        let cluster_size = header.layout.cluster_size();
        let len = u64::from(header.refcount_table_clusters).saturating_mul(cluster_size);
        let mut table = read_words(&file, header.refcount_table_offset, len)?;
        for entry in &mut table {
            *entry &= BLOCK_MASK;
        }
        let max_blocks = CACHE_BYTES
            .checked_div(cluster_size)
            .unwrap_or(0)
            .max(FEWEST_BLOCKS);
        Ok(Self {
            file,
            cluster_bits: header.layout.cluster_bits,
            order: header.refcount_order,
            table,
            table_offset: header.refcount_table_offset,
            dirty_table: BTreeSet::new(),
            blocks: HashMap::new(),
            clock: VecDeque::new(),
            max_blocks: to_usize(max_blocks).unwrap_or(usize::MAX),
        })
    }

    /// Offsets of the blocks by number; 0 where there is none.
    pub fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where the table is in the file.
    pub fn table_offset(&self) -> u64 {
        self.table_offset
    }

    /// Clusters that one block counts.
    pub fn per_block(&self) -> u64 {
        1_u64.wrapping_shl(
            self.cluster_bits
                .saturating_add(3)
                .saturating_sub(self.order),
        )
    }

    /// The highest count there can be.
    pub fn max(&self) -> u64 {
        u64::MAX.wrapping_shr(64_u32.saturating_sub(1_u32.wrapping_shl(self.order)))
    }

    /// Whether there is a block of this number.
    pub fn has_block(&self, number: u64) -> bool {
        to_usize(number)
            .and_then(|n| self.table.get(n))
            .is_some_and(|&at| at != 0)
    }

    fn split(&self, cluster: u64) -> (u64, u64) {
        let per = self.per_block();
        (
            cluster.checked_div(per).unwrap_or(0),
            cluster.checked_rem(per).unwrap_or(0),
        )
    }

    /// The count of a cluster.
    ///
    /// # Errors
    /// What reading reports.
    pub fn get(&mut self, cluster: u64) -> Result<u64> {
        let (number, entry) = self.split(cluster);
        if !self.has_block(number) {
            return Ok(0);
        }
        let order = self.order;
        let block = self.block(number)?;
        count(&block.bytes, order, entry).ok_or_else(outside)
    }

    /// Raises the count of a cluster by one.
    ///
    /// # Errors
    /// [`BlockErrorKind::Unsupported`] if it is as high as it can be, and what reading reports.
    pub fn raise(&mut self, cluster: u64) -> Result<()> {
        let old = self.get(cluster)?;
        if old >= self.max() {
            return Err(BlockError::new(
                BlockErrorKind::Unsupported,
                format!(
                    "the image's refcounts of {} bits cannot count another use of a cluster",
                    1_u32.wrapping_shl(self.order)
                ),
            ));
        }
        self.set(cluster, old.saturating_add(1))
    }

    /// Lowers the count of a cluster by one; returns the new one.
    ///
    /// # Errors
    /// [`BlockErrorKind::Damaged`] if it is 0, and what reading reports.
    pub fn lower(&mut self, cluster: u64) -> Result<u64> {
        let new = self.get(cluster)?.checked_sub(1).ok_or_else(|| {
            BlockError::damaged(format!(
                "cluster {cluster} is in use although its refcount is 0"
            ))
        })?;
        self.set(cluster, new)?;
        Ok(new)
    }

    fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        let (number, entry) = self.split(cluster);
        if !self.has_block(number) {
            return Err(BlockError::damaged(format!(
                "there is no refcount block for cluster {cluster}"
            )));
        }
        let order = self.order;
        let block = self.block(number)?;
        let range = store(&mut block.bytes, order, entry, value).ok_or_else(outside)?;
        block.touch(range);
        Ok(())
    }

    /// The first run of clusters with count 0 in a block, from `cluster` on: its start and length,
    /// at most `max`. Does not leave the block.
    ///
    /// # Errors
    /// What reading reports.
    pub fn free_run(&mut self, cluster: u64, max: u64) -> Result<Option<(u64, u64)>> {
        let (number, from) = self.split(cluster);
        let (per, order) = (self.per_block(), self.order);
        let base = number.saturating_mul(per);
        let block = self.block(number)?;
        let is_free = |entry: &u64| count(&block.bytes, order, *entry) == Some(0);
        let Some(start) = (from..per).find(is_free) else {
            return Ok(None);
        };
        let end = start.saturating_add(max).min(per);
        let len = (start..end).take_while(is_free).count();
        Ok(Some((base.saturating_add(start), to_u64(len))))
    }

    fn block(&mut self, number: u64) -> Result<&mut Block> {
        if !self.blocks.contains_key(&number) {
            self.evict()?;
            let at = to_usize(number)
                .and_then(|n| self.table.get(n))
                .copied()
                .unwrap_or(0);
            let len = to_usize(1_u64.wrapping_shl(self.cluster_bits)).unwrap_or(usize::MAX);
            let bytes = self
                .file
                .read_vec(at, len)
                .map_err(|e| e.within(format!("cannot read the refcount block at {at}")))?;
            self.insert(number, Block { bytes, dirty: None });
        }
        self.blocks.get_mut(&number).ok_or_else(outside)
    }

    fn insert(&mut self, number: u64, block: Block) {
        self.blocks.insert(number, block);
        self.clock.push_back(number);
    }

    fn evict(&mut self) -> Result<()> {
        while self.blocks.len() >= self.max_blocks {
            let Some(number) = self.clock.pop_front() else {
                break;
            };
            self.write_block(number)?;
            self.blocks.remove(&number);
        }
        Ok(())
    }

    fn write_block(&mut self, number: u64) -> Result<()> {
        let at = to_usize(number).and_then(|n| self.table.get(n)).copied();
        let (Some(at), Some(block)) = (at, self.blocks.get_mut(&number)) else {
            return Ok(());
        };
        let Some(range) = block.dirty.clone() else {
            return Ok(());
        };
        let bytes = block.bytes.get(range.clone()).ok_or_else(outside)?;
        self.file
            .write_all_at(at.saturating_add(to_u64(range.start)), bytes)?;
        block.dirty = None;
        Ok(())
    }

    /// Adds a block of zeroes in the cluster at host offset `at`.
    pub fn add_block(&mut self, number: u64, at: u64) -> Result<()> {
        self.evict()?;
        let slot = to_usize(number)
            .and_then(|n| self.table.get_mut(n))
            .ok_or_else(outside)?;
        *slot = at;
        self.dirty_table
            .insert(number.wrapping_shr(SECTOR.ilog2().saturating_sub(3)));
        let len = to_usize(1_u64.wrapping_shl(self.cluster_bits)).unwrap_or(usize::MAX);
        self.insert(
            number,
            Block {
                bytes: vec![0; len],
                // Written whole, whatever the cluster held before.
                dirty: Some(0..len),
            },
        );
        Ok(())
    }

    /// Whether something differs from the file.
    pub fn is_dirty(&self) -> bool {
        !self.dirty_table.is_empty() || self.blocks.values().any(|b| b.dirty.is_some())
    }

    /// Whether blocks were added that the table in the file does not have.
    pub fn table_is_dirty(&self) -> bool {
        !self.dirty_table.is_empty()
    }

    /// Writes what has changed of the blocks.
    ///
    /// # Errors
    /// What writing reports.
    pub fn write_blocks(&mut self) -> Result<()> {
        let mut dirty: Vec<u64> = self
            .blocks
            .iter()
            .filter_map(|(&number, block)| block.dirty.is_some().then_some(number))
            .collect();
        dirty.sort_unstable();
        dirty.into_iter().try_for_each(|n| self.write_block(n))
    }

    /// Writes what has changed of the table; the blocks are durable.
    ///
    /// # Errors
    /// What writing reports.
    pub fn write_table(&mut self) -> Result<()> {
        let per_sector = SECTOR / 8;
        while let Some(sector) = self.dirty_table.first().copied() {
            let first = to_usize(sector)
                .and_then(|s| s.checked_mul(per_sector))
                .unwrap_or(usize::MAX);
            let words: Vec<u64> = self
                .table
                .iter()
                .skip(first)
                .take(per_sector)
                .copied()
                .collect();
            let at = sector.saturating_mul(to_u64(SECTOR));
            self.file
                .write_all_at(self.table_offset.saturating_add(at), &encode_words(&words))?;
            self.dirty_table.remove(&sector);
        }
        Ok(())
    }

    /// Makes the table longer, in memory.
    pub fn lengthen_table(&mut self, entries: usize) {
        if entries > self.table.len() {
            self.table.resize(entries, 0);
        }
    }

    /// Writes the whole table to another place, where it is from now on.
    ///
    /// # Errors
    /// What writing reports.
    pub fn move_table(&mut self, offset: u64) -> Result<()> {
        self.file.write_all_at(offset, &encode_words(&self.table))?;
        self.table_offset = offset;
        self.dirty_table.clear();
        Ok(())
    }
}

impl Block {
    /// Notes a change, in whole sectors.
    fn touch(&mut self, range: Range<usize>) {
        let start = range.start.saturating_sub(range.start % SECTOR);
        let end = range
            .end
            .checked_next_multiple_of(SECTOR)
            .unwrap_or(range.end)
            .min(self.bytes.len());
        self.dirty = Some(match self.dirty.take() {
            None => start..end,
            Some(old) => old.start.min(start)..old.end.max(end),
        });
    }
}

fn outside() -> BlockError {
    BlockError::damaged("a refcount lies outside its block")
}

/// An entry of a block. Entries narrower than a byte begin in its lowest bits, wider ones are
/// big-endian.
pub fn count(bytes: &[u8], order: u32, entry: u64) -> Option<u64> {
    let (at, shift, mask) = position(order, entry)?;
    if order < 3 {
        return Some(u64::from(*bytes.get(at)?).wrapping_shr(shift) & mask);
    }
    let width = 1_usize.wrapping_shl(order.saturating_sub(3));
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    Some(
        bytes
            .iter()
            .fold(0, |value: u64, &b| value.wrapping_shl(8) | u64::from(b)),
    )
}

/// Writes an entry of a block; returns the bytes it lies in.
fn store(bytes: &mut [u8], order: u32, entry: u64, value: u64) -> Option<Range<usize>> {
    let (at, shift, mask) = position(order, entry)?;
    if order < 3 {
        let byte = bytes.get_mut(at)?;
        let kept = u64::from(*byte) & !mask.wrapping_shl(shift);
        *byte = u8::try_from(kept | (value & mask).wrapping_shl(shift)).ok()?;
        return Some(at..at.checked_add(1)?);
    }
    let width = 1_usize.wrapping_shl(order.saturating_sub(3));
    let range = at..at.checked_add(width)?;
    let value = value.to_be_bytes();
    let value = value.get(value.len().checked_sub(width)?..)?;
    bytes.get_mut(range.clone())?.copy_from_slice(value);
    Some(range)
}

/// First byte of an entry, and where it is in that byte.
fn position(order: u32, entry: u64) -> Option<(usize, u32, u64)> {
    let bit = entry.checked_mul(1_u64.wrapping_shl(order))?;
    let shift = u32::try_from(bit & 7).ok()?;
    let mask = u64::MAX.wrapping_shr(64_u32.saturating_sub(1_u32.wrapping_shl(order)));
    Some((to_usize(bit / 8)?, shift, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_width() {
        for order in 0..=6 {
            let mut bytes = vec![0; 64];
            let entries = (64 * 8) >> order;
            let max = u64::MAX >> (64 - (1 << order));
            for entry in 0..entries {
                store(&mut bytes, order, entry, entry & max).unwrap();
            }
            for entry in 0..entries {
                assert_eq!(count(&bytes, order, entry), Some(entry & max), "{order}");
            }
            assert_eq!(count(&bytes, order, entries), None);
            store(&mut bytes, order, 1, max).unwrap();
            assert_eq!(count(&bytes, order, 0), Some(0));
            assert_eq!(count(&bytes, order, 1), Some(max));
        }
        let mut bytes = vec![0; 8];
        store(&mut bytes, 4, 1, 0x0102).unwrap();
        assert_eq!(bytes[..4], [0, 0, 1, 2]);
        store(&mut bytes, 1, 2, 3).unwrap();
        assert_eq!(bytes[0], 0b0011_0000);
    }
}
