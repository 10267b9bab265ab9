//! The order in which changes reach the file.
//!
//! A flush, data having been written when it was handed over:
//!
//! 1. write changed refcount blocks. Counts that were raised belong to what comes in 3; lowered ones
//!    to what an earlier flush made durable. If blocks were added: flush, then write the refcount
//!    table, whose entries must not point to blocks that are not there;
//! 2. flush: data and counts are durable. A crash until here leaves the mapping as it was, and
//!    clusters with counts that nothing refers to: leaks;
//! 3. write changed slices of L2 tables and sectors of the L1 table. New L2 tables were written whole
//!    when they were taken, so they are durable since 2; a crash in between leaves some entries new
//!    and some old, all of which point to data that is there;
//! 4. flush: the new mapping is durable. What it no longer refers to is leaked by a crash;
//! 5. clusters that lost their use before 3 lose it in the counts in memory, and are free at 0. The
//!    lowered counts are written by the next flush, in 1.
//!
//! If no table has changed, 2 is the only flush and there is no 3. Step 5 waits until no request
//! is under way, since one may still read or write a cluster that it looked up before.
//!
//! When too much has changed to be kept in memory, steps 1 to 4 run in the middle of a request; step
//! 5 then follows with the next flush.

use super::overlap::Use;
use super::{Alloc, Writer};
use crate::block::{BlockError, Result};
use crate::ondisk::units::to_u64;

/// Freed clusters remembered at most; more are written out first.
const MAX_UNHOOKED: usize = 1 << 16;

impl Writer {
    /// Makes everything written so far durable; see the module text.
    ///
    /// # Errors
    /// What the devices report; the image then stays as of the last flush that succeeded.
    pub fn flush(&self) -> Result<()> {
        self.check_alive()?;
        {
            let mut alloc = self.alloc.lock();
            let changed = alloc.space.as_ref().is_some_and(|s| s.refcounts.is_dirty())
                || self.tables.read().is_dirty();
            if changed {
                self.write_back(&mut alloc)?;
            } else {
                drop(alloc);
                self.flush_data()?;
            }
        }
        self.reclaim()
    }

    fn flush_data(&self) -> Result<()> {
        let mut result = Ok(());
        if self.layout().external_data {
            result = self.source.data.device().flush();
        }
        result
            .and_then(|()| self.file().flush())
            .map_err(|e| self.fatal(e))
    }

    /// Writes changes out early if there are too many.
    pub(super) fn make_room(&self, alloc: &mut Alloc) -> Result<()> {
        let crowded = self.tables.read().crowded() || alloc.unhooked.len() > MAX_UNHOOKED;
        if crowded {
            self.write_back(alloc)?;
        }
        Ok(())
    }

    /// Steps 1 to 4.
    pub(super) fn write_back(&self, alloc: &mut Alloc) -> Result<()> {
        self.check_alive()?;
        self.write_back_in_order(alloc).map_err(|e| self.fatal(e))
    }

    fn write_back_in_order(&self, alloc: &mut Alloc) -> Result<()> {
        let file = self.file();
        // 1.
        if let Some(space) = &mut alloc.space {
            space.refcounts.write_blocks()?;
            if space.refcounts.table_is_dirty() {
                file.flush()?;
                space.refcounts.write_table()?;
            }
        }
        // 2.
        if self.layout().external_data {
            self.source.data.device().flush()?;
        }
        file.flush()?;
        let changes = self.tables.read().changes()?;
        if !changes.is_empty() {
            // 3.
            let space = alloc.space()?;
            for (at, bytes) in &changes {
                let first = self.cluster(*at);
                let end = at.saturating_add(to_u64(bytes.len())).saturating_sub(1);
                let used = space
                    .protected
                    .find(first..self.cluster(end).saturating_add(1));
                if !matches!(used, Some(Use::L1 | Use::L2)) {
                    return Err(BlockError::damaged(format!(
                        "a table is to be written at {at}, where none is"
                    )));
                }
            }
            for (at, bytes) in &changes {
                file.write_all_at(*at, bytes)?;
            }
            // 4.
            file.flush()?;
            self.tables.write().written();
        }
        // What was unhooked in memory before 3 is unhooked in the file.
        let unhooked = std::mem::take(&mut alloc.unhooked);
        alloc.removable.extend(unhooked);
        Ok(())
    }

    /// Step 5.
    fn reclaim(&self) -> Result<()> {
        if self.alloc.lock().removable.is_empty() {
            return Ok(());
        }
        let _nothing_under_way = self.gate.write();
        self.reclaim_now(&mut self.alloc.lock())
    }

    /// Step 5 where no request is under way.
    pub(super) fn reclaim_now(&self, alloc: &mut Alloc) -> Result<()> {
        let removable = std::mem::take(&mut alloc.removable);
        if removable.is_empty() {
            return Ok(());
        }
        let space = alloc.space()?;
        removable
            .iter()
            .try_for_each(|freed| space.reclaim(freed))
            .map_err(|e| self.fatal(e))
    }

    /// Flushes until the file is as if nothing had been under way: what is no longer used has been
    /// given back, too.
    ///
    /// # Errors
    /// As [`Writer::flush`].
    pub fn settle(&self) -> Result<()> {
        // The first makes removals durable, the second the counts that follow from them.
        for _ in 0..4 {
            self.flush()?;
            let alloc = self.alloc.lock();
            let dirty = alloc.space.as_ref().is_some_and(|s| s.refcounts.is_dirty());
            if !dirty && alloc.unhooked.is_empty() && alloc.removable.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
