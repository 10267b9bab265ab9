//! A tree of tables: an L1 table, its L2 tables, and the clusters they name.
//!
//! Each L1 table that leads to a cluster counts as one use of it, also through an L2 table that
//! several L1 tables share. So taking a snapshot is counting everything once more.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Exclusive;
use super::state::{COMPRESSED, COPIED, ClusterState};
use crate::block::{BlockError, Result};
use crate::formats::qcow2::layout::OFFSET_MASK;
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

/// Largest L1 table in bytes, as in QEMU.
const MAX_L1_BYTES: u64 = 32 << 20;

impl Exclusive<'_> {
    /// Reads an L1 table. The image was checked to have it.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`], or what reading reports.
    pub fn read_l1(&self, offset: u64, entries: u32) -> Result<Vec<u64>> {
        let len = u64::from(entries).saturating_mul(8);
        if len > MAX_L1_BYTES || !self.layout().aligned(offset) {
            return Err(BlockError::damaged(format!(
                "an L1 table of {entries} entries cannot be at {offset}"
            )));
        }
        let bytes = self.file().read_vec(offset, to_usize(len).unwrap_or(0))?;
        Ok(words(&bytes))
    }

    /// The clusters an offset and a length cover.
    pub fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let bits = self.layout().cluster_bits;
        let end = offset
            .saturating_add(len)
            .div_ceil(self.layout().cluster_size());
        offset.wrapping_shr(bits)..end
    }

    /// Clusters an L1 table of some entries takes.
    pub fn l1_clusters(&self, offset: u64, entries: u32) -> Range<u64> {
        self.clusters(offset, u64::from(entries).saturating_mul(8))
    }

    /// Reads an L2 table.
    fn read_l2(&self, entry: u64) -> Result<Vec<u8>> {
        let offset = entry & OFFSET_MASK;
        if !self.layout().aligned(offset) {
            return Err(BlockError::damaged(format!(
                "the L2 table at {offset} is not aligned"
            )));
        }
        let len = to_usize(self.layout().cluster_size()).unwrap_or(0);
        self.file().read_vec(offset, len)
    }

    /// The clusters each entry of an L2 table uses, none where it uses none; not for an external data
    /// file.
    fn used_by(&self, table: &[u8]) -> Result<Vec<Range<u64>>> {
        let layout = self.layout();
        let mut used = Vec::new();
        for entry in table.chunks_exact(1_usize.wrapping_shl(layout.l2_entry_bits())) {
            let word = be64(entry, 0).unwrap_or(0);
            let bitmap = be64(entry, 8).filter(|_| layout.subclusters).unwrap_or(0);
            if word & !COPIED & !1 == 0 {
                continue;
            }
            let state = ClusterState::decode(layout, word, bitmap, 0)?;
            let range = match (state.host, state.compressed) {
                (Some(host), _) => self.clusters(host, layout.cluster_size()),
                (None, Some((host, len))) => {
                    let first = self.clusters(host, 1).start;
                    first..self.clusters(host, len).end
                }
                (None, None) => continue,
            };
            used.push(range);
        }
        Ok(used)
    }

    /// Calls `visit` with everything a tree uses: its L2 tables and what they name, each as often
    /// as it is named. The L1 table itself is not included.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`], or what reading or `visit` reports.
    pub fn walk_tree(
        &mut self,
        l1: &[u64],
        mut visit: impl FnMut(&mut Self, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let external = self.layout().external_data;
        for &entry in l1.iter().filter(|&&e| e & OFFSET_MASK != 0) {
            let table = self.read_l2(entry)?;
            if !external {
                for range in self.used_by(&table)? {
                    visit(self, range)?;
                }
            }
            let at = self.clusters(entry & OFFSET_MASK, self.layout().cluster_size());
            visit(self, at)?;
        }
        Ok(())
    }

    /// Counts everything a tree uses once more. `false`: a count is as high as it can be; then
    /// nothing has changed.
    ///
    /// # Errors
    /// As [`Exclusive::walk_tree`].
    pub fn raise_tree(&mut self, l1: &[u64]) -> Result<bool> {
        let max = self.max_refcount()?;
        let (mut raised, mut full) = (0_u64, false);
        self.walk_tree(l1, |this, range| {
            for cluster in range {
                full |= this.refcount(cluster)? >= max;
                if full {
                    break;
                }
                this.raise(cluster..cluster.saturating_add(1))?;
                raised = raised.saturating_add(1);
            }
            Ok(())
        })?;
        if !full {
            return Ok(true);
        }
        // In the same order, until as many are lowered.
        self.walk_tree(l1, |this, range| {
            for cluster in range {
                if raised == 0 {
                    break;
                }
                this.release(cluster..cluster.saturating_add(1))?;
                raised = raised.saturating_sub(1);
            }
            Ok(())
        })?;
        Ok(false)
    }

    /// Counts everything a tree uses once less. Nothing durable leads to it any more.
    ///
    /// # Errors
    /// As [`Exclusive::walk_tree`], or if a count is 0 already.
    pub fn release_tree(&mut self, l1: &[u64]) -> Result<()> {
        self.walk_tree(l1, |this, range| this.release(range))
    }

    /// Makes the COPIED flags of the disk's own tables what the refcounts say, in the file.
    /// Refcounts are in the file already. Durable after [`Exclusive::flush`].
    ///
    /// # Errors
    /// What I/O reports.
    pub fn correct_flags(&mut self) -> Result<()> {
        self.set_flags(true)
    }

    /// Clears the COPIED flags of the disk's own tables, in the file, so that whatever its refcount
    /// is, nothing is written in place. Durable after a flush of the file.
    ///
    /// # Errors
    /// What I/O reports.
    pub fn clear_flags(&mut self) -> Result<()> {
        self.set_flags(false)
    }

    fn set_flags(&mut self, by_count: bool) -> Result<()> {
        let (offset, entries) = (self.header().l1_offset, self.header().l1_entries);
        let mut l1 = self.read_l1(offset, entries)?;
        let mut changed = false;
        for entry in l1.iter_mut().filter(|e| **e & OFFSET_MASK != 0) {
            let cluster = self.clusters(*entry & OFFSET_MASK, 1).start;
            let alone = by_count && self.refcount(cluster)? == 1;
            changed |= flag(entry, alone);
            self.set_l2_flags(*entry, by_count)?;
        }
        if changed {
            let bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
            self.file().write_all_at(offset, &bytes)?;
        }
        Ok(())
    }

    fn set_l2_flags(&mut self, entry: u64, by_count: bool) -> Result<()> {
        if self.layout().external_data {
            return Ok(());
        }
        let mut table = self.read_l2(entry)?;
        let mut changed = BTreeSet::new();
        let width = 1_usize.wrapping_shl(self.layout().l2_entry_bits());
        for (index, bytes) in table.chunks_exact_mut(width).enumerate() {
            let mut word = be64(bytes, 0).unwrap_or(0);
            if word & COMPRESSED != 0 || word & OFFSET_MASK == 0 {
                continue;
            }
            let cluster = self.clusters(word & OFFSET_MASK, 1).start;
            let alone = by_count && self.refcount(cluster)? == 1;
            if flag(&mut word, alone) {
                if let Some(to) = bytes.get_mut(..8) {
                    to.copy_from_slice(&word.to_be_bytes());
                }
                changed.insert(to_u64(index.saturating_mul(width)) / SECTOR);
            }
        }
        for sector in changed {
            let from = to_usize(sector.saturating_mul(SECTOR)).unwrap_or(0);
            let end = from.saturating_add(to_usize(SECTOR).unwrap_or(0));
            let bytes = table.get(from..end).unwrap_or_default();
            let at = (entry & OFFSET_MASK).saturating_add(to_u64(from));
            self.file().write_all_at(at, bytes)?;
        }
        Ok(())
    }
}

/// Bytes of a table written at once: what a disk writes whole.
const SECTOR: u64 = 512;

/// Sets or clears COPIED; returns whether that was a change.
fn flag(entry: &mut u64, alone: bool) -> bool {
    let new = if alone {
        *entry | COPIED
    } else {
        *entry & !COPIED
    };
    let changed = new != *entry;
    *entry = new;
    changed
}

/// Big-endian words.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|w| be64(w, 0).unwrap_or(0))
        .collect()
}
