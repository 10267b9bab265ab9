//! Which host clusters are free, and giving them out.
//!
//! Guest writes that continue each other form a stream. From its second write on, a stream reserves
//! runs of clusters, longer each time, so that what is consecutive for the guest is consecutive in
//! the file. A reservation is nothing but a note in memory; counts are raised when clusters are
//! taken.
//!
//! Otherwise the lowest free cluster is used, found from `cursor` on: below it everything is in use
//! or reserved. Clusters that were given back become free only when [`Space::reclaim`] is told that
//! nothing durable refers to them.
//!
//! Refcount blocks: a part of the file that has none yet gets one in its own first cluster, so that
//! a block usually counts itself. Where many consecutive clusters are needed, the missing blocks
//! are put behind them. Growing the refcount table:
//!
//! 1. take room for the longer table; blocks that this needs are known to the longer table only;
//! 2. write all changed blocks and the longer table; flush. A crash until here leaks them.
//! 3. point the header to it (one sector); flush;
//! 4. give the old table's clusters back, in memory. A crash leaks them.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::overlap::{Protected, Use};
use super::refcounts::Refcounts;
use crate::block::{BlockDevice, BlockError, BlockErrorKind, Result};
use crate::formats::qcow2::header_fields::HeaderField;
use crate::ondisk::units::{to_u64, to_usize};

/// Most bytes and clusters reserved at once for a stream, and the fewest clusters.
const MAX_RESERVED_BYTES: u64 = 16 << 20;
const MAX_RESERVED: u64 = 256;
const MIN_RESERVED: u64 = 16;
/// Streams that are told apart.
const STREAMS: usize = 8;
/// Largest refcount table, in bytes, as in QEMU.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// Consecutive host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Past the end of all that was ever written: they read as zeroes.
    pub fresh: bool,
}

impl Run {
    /// The clusters.
    pub fn range(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Clusters that lose one use each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Which.
    pub clusters: Range<u64>,
    /// Whether the host gets the space back as well.
    pub punch: bool,
}

/// A writer that goes forward.
struct Stream {
    /// The guest cluster that would continue it.
    next: u64,
    reserved: Run,
    /// Clusters to reserve next.
    batch: u64,
}

/// The free space of an image; see the module text.
pub struct Space {
    file: BlockDevice,
    cluster_bits: u32,
    /// The counts.
    pub refcounts: Refcounts,
    /// Where nothing else may go.
    pub protected: Protected,
    cursor: u64,
    /// Numbers of refcount blocks without a free cluster.
    full: HashSet<u64>,
    fresh_from: u64,
    streams: VecDeque<Stream>,
    growing: bool,
}

impl Space {
    /// Starts with the counts and metadata of an image.
    pub fn new(
        file: BlockDevice,
        cluster_bits: u32,
        refcounts: Refcounts,
        protected: Protected,
    ) -> Self {
        let cluster_size = 1_u64.wrapping_shl(cluster_bits);
        Self {
            fresh_from: file.len().div_ceil(cluster_size),
            file,
            cluster_bits,
            refcounts,
            protected,
            cursor: 0,
            full: HashSet::new(),
            streams: VecDeque::new(),
            growing: false,
        }
    }

    /// Host offset of a cluster.
    pub fn offset(&self, cluster: u64) -> u64 {
        cluster.wrapping_shl(self.cluster_bits)
    }

    /// Takes up to `want` (at least 1) consecutive clusters for guest clusters from `guest` on.
    ///
    /// # Errors
    /// [`BlockErrorKind::Damaged`] if a cluster with count 0 holds metadata,
    /// [`BlockErrorKind::Unsupported`] if the image cannot get larger, or what I/O reports.
    pub fn take(&mut self, guest: u64, want: u64) -> Result<Run> {
        let known = self.streams.iter().position(|s| s.next == guest);
        let mut stream = match known.and_then(|i| self.streams.remove(i)) {
            Some(stream) => stream,
            None => Stream {
                next: guest,
                reserved: Run {
                    first: 0,
                    count: 0,
                    fresh: false,
                },
                batch: 0,
            },
        };
        if stream.reserved.count == 0 {
            let most = MAX_RESERVED_BYTES.wrapping_shr(self.cluster_bits);
            let found = self.find_run(want.max(stream.batch))?;
            stream.reserved = found;
            stream.batch = stream
                .batch
                .saturating_mul(2)
                .max(MIN_RESERVED)
                .min(most.min(MAX_RESERVED));
        }
        let reserved = &mut stream.reserved;
        let run = Run {
            count: want.min(reserved.count),
            ..*reserved
        };
        reserved.first = reserved.first.saturating_add(run.count);
        reserved.count = reserved.count.saturating_sub(run.count);
        stream.next = guest.saturating_add(run.count);
        self.streams.push_front(stream);
        if self.streams.len() > STREAMS
            && let Some(old) = self.streams.pop_back()
        {
            self.unreserve(&old.reserved);
        }
        self.protected.check(run.range())?;
        for cluster in run.range() {
            self.refcounts.raise(cluster)?;
        }
        Ok(run)
    }

    /// Forgets all reservations.
    pub fn forget_streams(&mut self) {
        while let Some(stream) = self.streams.pop_back() {
            self.unreserve(&stream.reserved);
        }
    }

    fn unreserve(&mut self, run: &Run) {
        if run.count > 0 {
            self.cursor = self.cursor.min(run.first);
        }
    }

    fn reserved_at(&self, cluster: u64) -> Option<u64> {
        let ranges = self.streams.iter().map(|s| s.reserved.range());
        ranges
            .filter(|r| r.contains(&cluster))
            .map(|r| r.end)
            .next()
    }

    /// The first run of free clusters, at most `want` long.
    fn find_run(&mut self, want: u64) -> Result<Run> {
        let per = self.refcounts.per_block();
        let mut at = self.cursor;
        // Ends at the largest refcount table there can be.
        loop {
            let number = at.checked_div(per).unwrap_or(0);
            let next_block = number.saturating_add(1).saturating_mul(per);
            if self.full.contains(&number) {
                at = next_block;
                continue;
            }
            self.ensure_block(number)?;
            let Some((first, count)) = self.refcounts.free_run(at, want)? else {
                let base = number.saturating_mul(per);
                let reserved = self.streams.iter().any(|s| {
                    let r = s.reserved.range();
                    r.start < next_block && r.end > base
                });
                if at == base && !reserved {
                    self.full.insert(number);
                }
                at = next_block;
                continue;
            };
            if let Some(end) = self.reserved_at(first) {
                at = end;
                continue;
            }
            let end = first.saturating_add(count);
            let end = self
                .streams
                .iter()
                .map(|s| s.reserved)
                .filter(|r| r.count > 0 && r.first > first && r.first < end)
                .map(|r| r.first)
                .min()
                .unwrap_or(end);
            self.cursor = end;
            return Ok(self.seen(first, end.saturating_sub(first)));
        }
    }

    /// Notes clusters as no longer fresh; returns them as they were.
    fn seen(&mut self, first: u64, count: u64) -> Run {
        let fresh = first >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(first.saturating_add(count));
        Run {
            first,
            count,
            fresh,
        }
    }

    /// Makes sure the part of the file with this number has a refcount block.
    fn ensure_block(&mut self, number: u64) -> Result<()> {
        if self.refcounts.has_block(number) {
            return Ok(());
        }
        if number >= to_u64(self.refcounts.table().len()) {
            self.grow_table(number.saturating_add(1))?;
            if self.refcounts.has_block(number) {
                return Ok(());
            }
        }
        let cluster = number.saturating_mul(self.refcounts.per_block());
        self.add_block(number, cluster)?;
        self.refcounts.raise(cluster)
    }

    /// Puts a block in a free cluster; its count is the caller's duty.
    fn add_block(&mut self, number: u64, cluster: u64) -> Result<()> {
        self.protected
            .add(cluster..cluster.saturating_add(1), Use::RefcountBlock)?;
        self.seen(cluster, 1);
        self.refcounts.add_block(number, self.offset(cluster))
    }

    /// Takes `count` consecutive clusters for metadata.
    ///
    /// # Errors
    /// As [`Space::take`].
    pub fn take_consecutive(&mut self, count: u64) -> Result<Run> {
        let per = self.refcounts.per_block();
        loop {
            let (first, blocks) = self.find_consecutive(count)?;
            let end = first
                .saturating_add(count)
                .saturating_add(to_u64(blocks.len()));
            let numbers = end.saturating_sub(1).checked_div(per).unwrap_or(0);
            if numbers >= to_u64(self.refcounts.table().len()) {
                // Changes what is free.
                self.grow_table(numbers.saturating_add(1))?;
                continue;
            }
            self.protected.check(first..end)?;
            let run = self.seen(first, count);
            let mut cluster = run.range().end;
            for number in blocks {
                self.add_block(number, cluster)?;
                cluster = cluster.saturating_add(1);
            }
            for cluster in first..end {
                self.refcounts.raise(cluster)?;
            }
            return Ok(run);
        }
    }

    /// The first run of `count` free clusters with room behind it for the refcount blocks that are
    /// missing in it and in that room; and the numbers of those.
    fn find_consecutive(&mut self, count: u64) -> Result<(u64, Vec<u64>)> {
        let per = self.refcounts.per_block();
        let mut first = self.cursor;
        let mut at = first;
        let mut blocks: Vec<u64> = Vec::new();
        loop {
            if at.saturating_sub(first) >= count.saturating_add(to_u64(blocks.len())) {
                return Ok((first, blocks));
            }
            let number = at.checked_div(per).unwrap_or(0);
            let next_block = number.saturating_add(1).saturating_mul(per);
            let restart = if self.full.contains(&number) {
                Some(next_block)
            } else if let Some(end) = self.reserved_at(at) {
                Some(end)
            } else if !self.refcounts.has_block(number) {
                if blocks.last() != Some(&number) {
                    blocks.push(number);
                }
                None
            } else if self.refcounts.get(at)? != 0 {
                Some(at.saturating_add(1))
            } else {
                None
            };
            match restart {
                None => at = at.saturating_add(1),
                Some(next) => {
                    (first, at) = (next, next);
                    blocks.clear();
                }
            }
        }
    }

    /// Makes the refcount table longer; see the module text.
    fn grow_table(&mut self, needed: u64) -> Result<()> {
        let cluster_size = 1_u64.wrapping_shl(self.cluster_bits);
        let old_len = to_u64(self.refcounts.table().len());
        let per = self.refcounts.per_block();
        // Half as much again, and what the table itself takes, with its blocks.
        let mut entries = needed.max(old_len.saturating_add(old_len / 2));
        let own = entries
            .saturating_mul(8)
            .div_ceil(cluster_size)
            .div_ceil(per.max(1));
        entries = entries
            .saturating_add(own.saturating_mul(2))
            .saturating_add(8);
        let bytes = entries
            .saturating_mul(8)
            .checked_next_multiple_of(cluster_size)
            .unwrap_or(u64::MAX);
        let bytes = if bytes > MAX_TABLE_BYTES && needed.saturating_mul(8) < MAX_TABLE_BYTES {
            MAX_TABLE_BYTES
        } else {
            bytes
        };
        if self.growing || bytes > MAX_TABLE_BYTES {
            return Err(BlockError::new(
                BlockErrorKind::Unsupported,
                "the image is full: its refcount table would be larger than 8 MiB",
            ));
        }
        self.growing = true;
        let old_offset = self.refcounts.table_offset();
        let old_first = old_offset.wrapping_shr(self.cluster_bits);
        let old_clusters = old_len.saturating_mul(8).wrapping_shr(self.cluster_bits);
        self.refcounts
            .lengthen_table(to_usize(bytes / 8).unwrap_or(usize::MAX));
        // 1.
        let run = self.take_consecutive(bytes.wrapping_shr(self.cluster_bits))?;
        self.protected.add(run.range(), Use::RefcountTable)?;
        // 2.
        self.refcounts.write_blocks()?;
        let offset = self.offset(run.first);
        self.refcounts.move_table(offset)?;
        self.file.flush()?;
        // 3.
        let clusters = u32::try_from(run.count).unwrap_or(u32::MAX);
        HeaderField::write_all(
            &self.file,
            &[
                HeaderField::RefcountTableOffset(offset),
                HeaderField::RefcountTableClusters(clusters),
            ],
        )?;
        self.file.flush()?;
        // 4.
        let old = old_first..old_first.saturating_add(old_clusters);
        self.protected.remove(old.clone());
        self.growing = false;
        self.reclaim(&Freed {
            clusters: old,
            punch: false,
        })?;
        Ok(())
    }

    /// Lowers counts of clusters that nothing durable refers to any more; what reaches 0 is free.
    ///
    /// # Errors
    /// [`BlockErrorKind::Damaged`] if a count is 0 already, or what I/O reports.
    pub fn reclaim(&mut self, freed: &Freed) -> Result<()> {
        let per = self.refcounts.per_block();
        let mut hole = 0..0;
        for cluster in freed.clusters.clone() {
            if self.refcounts.lower(cluster)? > 0 {
                continue;
            }
            self.cursor = self.cursor.min(cluster);
            self.full.remove(&cluster.checked_div(per).unwrap_or(0));
            if hole.end != cluster {
                self.punch(&hole, freed.punch)?;
                hole = cluster..cluster;
            }
            hole.end = cluster.saturating_add(1);
        }
        self.punch(&hole, freed.punch)
    }

    fn punch(&self, clusters: &Range<u64>, wanted: bool) -> Result<()> {
        if !wanted || clusters.is_empty() {
            return Ok(());
        }
        let start = self.offset(clusters.start);
        let len = self.offset(clusters.end).saturating_sub(start);
        // Only what the file has: giving back is no reason to make it longer.
        let len = len.min(self.file.len().saturating_sub(start));
        self.file.discard(start, len)
    }
}
