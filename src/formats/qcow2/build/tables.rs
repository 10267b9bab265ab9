//! Where clusters go: L1 and L2 tables and refcounts of an image that is made from its beginning
//! to its end.
//!
//! Host clusters are consecutive numbers handed out in order. L2 tables and refcount blocks that
//! are complete wait in memory until there are some, then get clusters and are written together.

use super::header::Places;
use super::{Options, inconsistent};
use crate::block::{BlockDevice, Result};
use crate::formats::qcow2::layout::Layout;
use crate::formats::raw_build::too_small;
use crate::ondisk::units::{to_u64, to_usize};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bitmap of a cluster all of whose subclusters are zeroes; all of whose subclusters are data.
const ALL_ZERO: u64 = 0xffff_ffff_0000_0000;
const ALL_DATA: u64 = 0x0000_0000_ffff_ffff;

/// Complete tables are written when there are this many bytes of them.
const BATCH_BYTES: usize = 256 << 10;

/// What a guest cluster is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Not in the image.
    Nothing,
    /// Zeroes that hide the backing file.
    Zero,
    /// A host cluster of zeroes.
    Reserved,
    /// A host cluster; with extended L2 entries, `bits` says what its subclusters are.
    Data {
        /// Bitmap of the subclusters.
        bits: u64,
    },
    /// So many compressed bytes.
    Packed {
        /// Their number; less than a cluster.
        len: u64,
    },
}

/// A table that is complete.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// The L2 table of this L1 entry.
    L2(usize),
    /// The next refcount block.
    RefcountBlock,
}

/// See the module text.
pub struct Tables {
    layout: Layout,
    refcount_order: u32,
    /// Whether what is not written reads as zeroes.
    fresh: bool,
    /// The next host cluster to hand out.
    next: u64,
    l1_offset: u64,
    l1: Vec<u64>,
    /// The L2 table being filled, and the L1 entry it belongs to.
    l2: Vec<u8>,
    l2_index: Option<usize>,
    /// Where the next compressed bytes can go, up to the end of that cluster.
    fragment: Option<u64>,
    /// Host cluster the first of `counts` belongs to.
    counted_from: u64,
    counts: Vec<u32>,
    /// Host offsets of the refcount blocks written so far.
    blocks: Vec<u64>,
    /// Complete tables, and which.
    batch: Vec<u8>,
    waiting: Vec<Waiting>,
    encryption: (u64, u64),
}

impl Tables {
    /// The tables of an empty image; its header's cluster is zero then.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(file: &BlockDevice, options: &Options) -> Result<Self> {
        let layout = options.layout();
        let cluster = layout.cluster_size();
        let l1_entries = layout.l1_entries_for(options.size).max(1);
        let mut tables = Self {
            layout,
            refcount_order: options.refcount_order,
            fresh: file.is_empty(),
            next: 0,
            l1_offset: 0,
            // At most 32 MiB, as the options were checked for.
            l1: vec![0; to_usize(l1_entries).ok_or_else(inconsistent)?],
            l2: vec![0; to_usize(cluster).ok_or_else(inconsistent)?],
            l2_index: None,
            fragment: None,
            counted_from: 0,
            counts: Vec::new(),
            blocks: Vec::new(),
            batch: Vec::new(),
            waiting: Vec::new(),
            encryption: (0, 0),
        };
        tables.allocate(1);
        tables.l1_offset = tables.allocate(l1_entries.saturating_mul(8).div_ceil(cluster));
        if !tables.fresh {
            // What was there before must not be taken for an image, whatever happens next.
            let needed = tables.next.saturating_mul(cluster);
            if file.len() < needed {
                return Err(too_small(file, needed));
            }
            file.write_zeroes(0, cluster, true)?;
            file.flush()?;
        }
        Ok(tables)
    }

    /// Whether what is not written reads as zeroes.
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// Stores the header of the encryption scheme, once and before anything else.
    ///
    /// # Errors
    /// What the device reports.
    pub fn store_encryption_header(&mut self, file: &BlockDevice, header: &[u8]) -> Result<()> {
        if header.is_empty() {
            return Ok(());
        }
        let len = to_u64(header.len());
        let at = self.allocate(len.div_ceil(self.layout.cluster_size()));
        self.encryption = (at, len);
        file.write_all_at(at, header)
    }

    /// Makes the guest cluster at `at` what `entry` says; returns where its bytes go. Offsets must
    /// ascend.
    ///
    /// # Errors
    /// Of writing tables that are complete.
    pub fn set(&mut self, file: &BlockDevice, at: u64, entry: Entry) -> Result<Option<u64>> {
        if entry == Entry::Nothing {
            return Ok(None);
        }
        let index = to_usize(at.wrapping_shr(self.layout.l2_reach_bits()));
        if self.l2_index != index {
            self.end_l2();
            self.l2_index = index;
            self.write_batch(file, BATCH_BYTES)?;
        }
        let (value, bits, host) = match entry {
            Entry::Nothing => return Ok(None),
            Entry::Zero if self.layout.subclusters => (0, ALL_ZERO, None),
            Entry::Zero => (ZERO, 0, None),
            Entry::Reserved => {
                let host = self.allocate(1);
                (host | COPIED, ALL_DATA, Some(host))
            }
            Entry::Data { bits } => {
                let host = self.allocate(1);
                (host | COPIED, bits, Some(host))
            }
            Entry::Packed { len } => {
                let host = self.allocate_bytes(len);
                let sectors = host
                    .saturating_add(len)
                    .saturating_sub(1)
                    .wrapping_shr(9)
                    .saturating_sub(host.wrapping_shr(9));
                let offset_bits = 70_u32.saturating_sub(self.layout.cluster_bits);
                let value = COMPRESSED | sectors.wrapping_shl(offset_bits) | host;
                (value, 0, Some(host))
            }
        };
        let reach = 1_u64.wrapping_shl(self.layout.l2_reach_bits());
        let in_reach = at & reach.wrapping_sub(1);
        let entry_at = in_reach
            .wrapping_shr(self.layout.cluster_bits)
            .wrapping_shl(self.layout.l2_entry_bits());
        let entry_at = to_usize(entry_at).ok_or_else(inconsistent)?;
        let mut put = |at: usize, value: u64| {
            let place = self.l2.get_mut(at..at.saturating_add(8));
            place.map(|p| p.copy_from_slice(&value.to_be_bytes()))
        };
        put(entry_at, value).ok_or_else(inconsistent)?;
        if self.layout.subclusters {
            put(entry_at.saturating_add(8), bits).ok_or_else(inconsistent)?;
        }
        Ok(host)
    }

    /// Writes all tables; returns where they are.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(&mut self, file: &BlockDevice) -> Result<Places> {
        self.end_l2();
        while !self.waiting.is_empty() {
            self.write_batch(file, 0)?;
        }
        self.write_l1(file)?;
        let (refcount_table_offset, refcount_table_clusters) = self.write_refcounts(file)?;
        let end = self.next.saturating_mul(self.layout.cluster_size());
        if file.len() < end {
            // The last clusters can be ones that were never written.
            file.set_len(end)?;
        }
        Ok(Places {
            l1_offset: self.l1_offset,
            l1_entries: u32::try_from(self.l1.len()).map_err(|_| inconsistent())?,
            refcount_table_offset,
            refcount_table_clusters,
            encryption: self.encryption,
        })
    }

    /// Hands out `count` consecutive host clusters; returns the offset of the first.
    fn allocate(&mut self, count: u64) -> u64 {
        let at = self.next.saturating_mul(self.layout.cluster_size());
        self.extend(count, 1);
        at
    }

    fn extend(&mut self, count: u64, refcount: u32) {
        self.next = self.next.saturating_add(count);
        let new = to_usize(count).unwrap_or(usize::MAX);
        let len = self.counts.len().saturating_add(new);
        self.counts.resize(len, refcount);
        // A block is complete when nothing in it can change any more. The cluster compressed bytes
        // go to next is nearly always in the last one.
        while self.counts.len() >= self.block_entries().saturating_mul(2) {
            self.end_refcount_block();
        }
    }

    /// Finds room for `len` compressed bytes, less than a cluster.
    fn allocate_bytes(&mut self, len: u64) -> u64 {
        let cluster = self.layout.cluster_size();
        let next = self.next.saturating_mul(cluster);
        let at = match self.fragment {
            Some(at) => {
                let border = at.saturating_add(cluster) & !cluster.wrapping_sub(1);
                // Over the border only into the cluster right behind it.
                let fits = at.saturating_add(len) <= border || border == next;
                if fits && self.can_share(at) { at } else { next }
            }
            None => next,
        };
        let end = at.saturating_add(len);
        let needed = end.div_ceil(cluster);
        if needed > self.next {
            self.extend(needed.saturating_sub(self.next), 0);
        }
        let first = at.wrapping_shr(self.layout.cluster_bits);
        for number in first..needed {
            if let Some(count) = self.count_mut(number) {
                *count = count.saturating_add(1);
            }
        }
        // A cluster that is full has no room for more.
        self.fragment = (end & cluster.wrapping_sub(1) != 0).then_some(end);
        at
    }

    fn count_mut(&mut self, number: u64) -> Option<&mut u32> {
        let index = to_usize(number.checked_sub(self.counted_from)?)?;
        self.counts.get_mut(index)
    }

    /// Whether the host cluster of `at` can be counted once more.
    fn can_share(&mut self, at: u64) -> bool {
        let bits = 1_u32.wrapping_shl(self.refcount_order);
        let most = u32::MAX
            .checked_shr(32_u32.saturating_sub(bits))
            .unwrap_or(u32::MAX);
        let number = at.wrapping_shr(self.layout.cluster_bits);
        self.count_mut(number).is_some_and(|count| *count < most)
    }

    /// Refcounts in one block.
    fn block_entries(&self) -> usize {
        let bits = self
            .layout
            .cluster_bits
            .saturating_add(3)
            .saturating_sub(self.refcount_order);
        1_usize.wrapping_shl(bits)
    }

    fn end_l2(&mut self) {
        if let Some(index) = self.l2_index.take()
            && !crate::ondisk::bytes::is_zero(&self.l2)
        {
            self.batch.extend_from_slice(&self.l2);
            self.waiting.push(Waiting::L2(index));
            self.l2.fill(0);
        }
    }

    fn end_refcount_block(&mut self) {
        let block = self.encode_refcount_block();
        self.batch.extend_from_slice(&block);
        self.waiting.push(Waiting::RefcountBlock);
        if self
            .fragment
            .is_some_and(|at| at.wrapping_shr(self.layout.cluster_bits) < self.counted_from)
        {
            self.fragment = None;
        }
    }

    /// Takes the first block's refcounts and encodes them.
    fn encode_refcount_block(&mut self) -> Vec<u8> {
        let entries = self.block_entries();
        let cluster = to_usize(self.layout.cluster_size()).unwrap_or_default();
        let mut block = vec![0_u8; cluster];
        let taken = entries.min(self.counts.len());
        for (index, count) in self.counts.drain(..taken).enumerate() {
            let count = u64::from(count);
            if let Some(bytes) = 1_usize.wrapping_shl(self.refcount_order).checked_div(8)
                && bytes > 0
            {
                let at = index.saturating_mul(bytes);
                let value = count.to_be_bytes();
                let low = value
                    .get(8_usize.saturating_sub(bytes)..)
                    .unwrap_or_default();
                if let Some(place) = block.get_mut(at..at.saturating_add(bytes)) {
                    place.copy_from_slice(low);
                }
                continue;
            }
            // Less than a byte each: the first entry is in the lowest bits.
            let per_byte_log2 = 3_u32.saturating_sub(self.refcount_order);
            let within = index & 1_usize.wrapping_shl(per_byte_log2).wrapping_sub(1);
            let shift = u32::try_from(within)
                .unwrap_or(0)
                .wrapping_shl(self.refcount_order);
            if let Some(place) = block.get_mut(index.wrapping_shr(per_byte_log2)) {
                *place |= u8::try_from(count.wrapping_shl(shift) & 0xff).unwrap_or(0);
            }
        }
        self.counted_from = self.counted_from.saturating_add(to_u64(entries));
        block
    }

    /// Writes the tables that are complete, if they are more than `least` bytes.
    fn write_batch(&mut self, file: &BlockDevice, least: usize) -> Result<()> {
        if self.batch.is_empty() || self.batch.len() < least {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let waiting = std::mem::take(&mut self.waiting);
        // May complete further refcount blocks, which wait for the next time.
        let mut at = self.allocate(to_u64(waiting.len()));
        file.write_all_at(at, &batch)?;
        for table in waiting {
            match table {
                Waiting::L2(index) => {
                    let entry = self.l1.get_mut(index).ok_or_else(inconsistent)?;
                    *entry = at | COPIED;
                }
                Waiting::RefcountBlock => self.blocks.push(at),
            }
            at = at.saturating_add(self.layout.cluster_size());
        }
        Ok(())
    }

    /// Writes a table that may be mostly empty.
    fn write_table(&self, file: &BlockDevice, at: u64, table: &[u8]) -> Result<()> {
        let used = if self.fresh {
            let last = table.iter().rposition(|&b| b != 0);
            last.map_or(0, |last| last.saturating_add(1))
        } else {
            table.len()
        };
        file.write_all_at(at, table.get(..used).unwrap_or(table))
    }

    fn write_l1(&self, file: &BlockDevice) -> Result<()> {
        let mut at = self.l1_offset;
        for entries in self.l1.chunks(BATCH_BYTES / 8) {
            let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
            if !self.fresh || entries.iter().any(|&e| e != 0) {
                file.write_all_at(at, &bytes)?;
            }
            at = at.saturating_add(to_u64(bytes.len()));
        }
        Ok(())
    }

    /// Writes the last refcount blocks and the refcount table, which count themselves as well;
    /// returns where the table is and its clusters.
    fn write_refcounts(&mut self, file: &BlockDevice) -> Result<(u64, u32)> {
        let cluster = self.layout.cluster_size();
        let entries = to_u64(self.block_entries());
        let written = to_u64(self.blocks.len());
        let (mut blocks, mut table) = (1_u64, 1_u64);
        // Grows until it holds itself; each round adds less than the one before.
        loop {
            let end = self.next.saturating_add(blocks).saturating_add(table);
            let more_blocks = end.div_ceil(entries).saturating_sub(written);
            let all = written.saturating_add(more_blocks);
            let more_table = all.saturating_mul(8).div_ceil(cluster);
            if more_blocks <= blocks && more_table <= table {
                break;
            }
            (blocks, table) = (more_blocks.max(blocks), more_table.max(table));
        }
        let count = blocks.saturating_add(table);
        let mut at = self.next.saturating_mul(cluster);
        self.next = self.next.saturating_add(count);
        let len = to_usize(count).and_then(|n| self.counts.len().checked_add(n));
        self.counts.resize(len.ok_or_else(inconsistent)?, 1);
        for _ in 0..blocks {
            let block = self.encode_refcount_block();
            self.write_table(file, at, &block)?;
            self.blocks.push(at);
            at = at.saturating_add(cluster);
        }
        let mut bytes: Vec<u8> = self.blocks.iter().flat_map(|b| b.to_be_bytes()).collect();
        let whole = table.checked_mul(cluster).and_then(to_usize);
        bytes.resize(whole.ok_or_else(inconsistent)?, 0);
        self.write_table(file, at, &bytes)?;
        let table = u32::try_from(table).map_err(|_| inconsistent())?;
        Ok((at, table))
    }
}
