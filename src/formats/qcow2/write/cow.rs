//! Writing data.
//!
//! What a cluster of its own can take as it is goes there under nothing but the gate. All else
//! changes the mapping, under the allocation lock:
//!
//! 1. what the new cluster needs of the old content is read, before anything is changed;
//! 2. an L2 table is taken or copied, if there is none or snapshots share it;
//! 3. clusters are taken;
//! 4. the data is written, with what was read before around it;
//! 5. the L2 entry changes, in memory; the old cluster becomes unhooked.
//!
//! A crash before the next flush finds the old mapping and leaks what was taken. An error before 4
//! leaves the image usable.
//!
//! Content is copied by granules: clusters, or subclusters where the image has them.

use std::ops::Range;

use super::overlap::Use;
use super::state::{COPIED, ClusterState};
use super::{Alloc, Writer};
use crate::block::{BlockError, Result};
use crate::formats::qcow2::layout::OFFSET_MASK;
use crate::ondisk::bytes::slice;
use crate::ondisk::units::{to_u64, to_usize};

/// What has to be done for a write to reach a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It can be written.
    InPlace,
    /// It can be written, but the entry does not say yet that it holds data there.
    Fill,
    /// Another cluster is needed.
    New,
}

/// Bytes around those a request writes. `None` stands for zeroes.
struct Around {
    len: u64,
    bytes: Option<Vec<u8>>,
}

impl Around {
    /// Leaves zeroes to the file, which has them there already.
    fn unless_zero(&mut self) {
        if self.bytes.is_none() {
            self.len = 0;
        }
    }

    fn put(&self, target: &mut Vec<u8>) {
        match &self.bytes {
            Some(bytes) => target.extend_from_slice(bytes),
            None => {
                let len = target
                    .len()
                    .saturating_add(to_usize(self.len).unwrap_or(usize::MAX));
                target.resize(len, 0);
            }
        }
    }
}

impl Writer {
    /// Writes guest bytes. The gate is held.
    pub(super) fn write(&self, mut at: u64, mut buf: &[u8]) -> Result<()> {
        while !buf.is_empty() {
            let found = self.tables.read().in_place(at, to_u64(buf.len()));
            let done = match found {
                Some((host, len)) => {
                    let len = to_usize(len).unwrap_or(usize::MAX).min(buf.len());
                    let piece = buf.get(..len).unwrap_or(buf);
                    self.write_data(host, at, piece)?;
                    len
                }
                None => self.write_mapped(at, buf)?,
            };
            at = at.saturating_add(to_u64(done));
            buf = buf.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_data(&self, host: u64, guest: u64, buf: &[u8]) -> Result<()> {
        self.source
            .data
            .write(host, guest, buf)
            .map_err(|e| self.fatal(e))
    }

    /// Writes the first bytes of `buf`, as many as one step can do; returns how many.
    fn write_mapped(&self, at: u64, buf: &[u8]) -> Result<usize> {
        let cluster_size = self.layout().cluster_size();
        let within = self.layout().within_cluster(at);
        let mut alloc = self.alloc.lock();
        self.prepare(&mut alloc)?;
        self.make_room(&mut alloc)?;
        let end = within.saturating_add(to_u64(buf.len()));
        let clusters = to_usize(end.div_ceil(cluster_size)).unwrap_or(usize::MAX);
        let mut states = self.states(at, clusters)?;
        // What part of the cluster with this index is written.
        let part = |index: usize| {
            let base = to_u64(index).saturating_mul(cluster_size);
            let from = if index == 0 { within } else { 0 };
            (from, end.saturating_sub(base).min(cluster_size))
        };
        let first = *states.first().ok_or_else(no_state)?;
        let (from, to) = part(0);
        let way = self.way(&first, from, to);
        let same = states.iter().enumerate().take_while(|&(index, state)| {
            let (from, to) = part(index);
            let offset = to_u64(index).saturating_mul(cluster_size);
            let follows = || first.host.and_then(|h| h.checked_add(offset)) == state.host;
            index == 0 || (self.way(state, from, to) == way && (way == Way::New || follows()))
        });
        let count = same.count();
        states.truncate(count);
        match way {
            Way::InPlace => {
                let host = first.host.ok_or_else(no_state)?;
                self.check_own(&mut alloc, host, count)?;
                let room = to_u64(count)
                    .saturating_mul(cluster_size)
                    .saturating_sub(within);
                let len = to_usize(room).unwrap_or(usize::MAX).min(buf.len());
                self.write_data(
                    host.saturating_add(within),
                    at,
                    buf.get(..len).unwrap_or(buf),
                )?;
                self.tables.read().verify(at, count);
                Ok(len)
            }
            Way::Fill | Way::New => self.write_changing(&mut alloc, at, buf, way, states),
        }
    }

    fn way(&self, state: &ClusterState, from: u64, to: u64) -> Way {
        if !state.writable() {
            Way::New
        } else if self.granules.touched(from, to) & !state.data == 0 {
            Way::InPlace
        } else {
            Way::Fill
        }
    }

    /// Steps 1 to 5 for clusters that all go the same way; returns how many bytes of `buf` were
    /// written.
    fn write_changing(
        &self,
        alloc: &mut Alloc,
        at: u64,
        buf: &[u8],
        way: Way,
        mut states: Vec<ClusterState>,
    ) -> Result<usize> {
        let cluster_size = self.layout().cluster_size();
        let within = self.layout().within_cluster(at);
        let start = at.saturating_sub(within);
        let end = within.saturating_add(to_u64(buf.len()));
        let new = way == Way::New;
        // 1.
        let first = *states.first().ok_or_else(no_state)?;
        let last = *states.last().ok_or_else(no_state)?;
        let last_start = to_u64(states.len().saturating_sub(1)).saturating_mul(cluster_size);
        let last_to = end.saturating_sub(last_start).min(cluster_size);
        let single = states.len() == 1;
        let first_to = if single { last_to } else { cluster_size };
        let last_from = if single { within } else { 0 };
        let (low, _) = self.needed(&first, within, first_to, new);
        let (_, high) = self.needed(&last, last_from, last_to, new);
        let mut before = self.around(&first, start, low, within)?;
        let mut after = self.around(&last, start.saturating_add(last_start), last_to, high)?;
        if new {
            for state in &states {
                self.check_counted(alloc, state)?;
            }
        }
        // 2.
        self.own_l2(alloc, at)?;
        // 3.
        let (host, fresh) = if !new {
            let host = first.host.ok_or_else(no_state)?;
            self.check_own(alloc, host, states.len())?;
            (host, false)
        } else if self.layout().external_data {
            (start, start >= self.source.data.device().len())
        } else {
            let run = alloc
                .space()?
                .take(self.cluster(at), to_u64(states.len()))
                .map_err(|e| self.fatal(e))?;
            let count = to_usize(run.count).unwrap_or(usize::MAX);
            if count < states.len() {
                // The last one is now in the middle of the request.
                states.truncate(count);
                after = Around {
                    len: 0,
                    bytes: None,
                };
            }
            (alloc.space()?.offset(run.first), run.fresh)
        };
        if fresh && !self.source.data.scrambled() {
            before.unless_zero();
            after.unless_zero();
        }
        // 4.
        let room = to_u64(states.len())
            .saturating_mul(cluster_size)
            .saturating_sub(within);
        let len = to_usize(room).unwrap_or(usize::MAX).min(buf.len());
        let piece = buf.get(..len).unwrap_or(buf);
        let offset = within.saturating_sub(before.len);
        let (to_host, to_guest) = (host.saturating_add(offset), start.saturating_add(offset));
        if before.len == 0 && after.len == 0 {
            self.write_data(to_host, to_guest, piece)?;
        } else {
            let mut whole = Vec::new();
            before.put(&mut whole);
            whole.extend_from_slice(piece);
            after.put(&mut whole);
            self.write_data(to_host, to_guest, &whole)?;
        }
        // 5.
        let end = within.saturating_add(to_u64(len));
        let mut base = 0;
        for state in &mut states {
            let from = within.saturating_sub(base).min(cluster_size);
            let to = end.saturating_sub(base).min(cluster_size);
            let old = *state;
            let touched = self.granules.touched(from, to);
            let kept = if old.compressed.is_some() {
                self.granules.all
            } else {
                old.data
            };
            *state = ClusterState {
                host: Some(host.saturating_add(base)),
                copied: true,
                compressed: None,
                data: kept | touched,
                zero: old.zero & !touched,
            };
            if new {
                self.unhook(alloc, &old, false);
            }
            base = base.saturating_add(cluster_size);
        }
        self.change(at, &states)?;
        Ok(len)
    }

    /// The host clusters an old state uses.
    fn used(&self, old: &ClusterState) -> Range<u64> {
        if self.layout().external_data {
            return 0..0;
        }
        let (first, last) = match (old.compressed, old.host) {
            // The first sector counts from its beginning.
            (Some((host, len)), _) => (host, host.saturating_add(len.saturating_sub(1))),
            (None, Some(host)) => (host, host),
            (None, None) => return 0..0,
        };
        self.cluster(first)..self.cluster(last).saturating_add(1)
    }

    /// Checks that what is going to lose its use has one.
    pub(super) fn check_counted(&self, alloc: &mut Alloc, old: &ClusterState) -> Result<()> {
        alloc
            .check_counted(self.used(old))
            .map_err(|e| self.fatal(e))
    }

    /// The clusters of an old state lose a use.
    pub(super) fn unhook(&self, alloc: &mut Alloc, old: &ClusterState, punch: bool) {
        let clusters = self.used(old);
        if !clusters.is_empty() {
            alloc.unhook(clusters, punch && old.compressed.is_none());
        }
    }

    /// Changes entries in memory.
    pub(super) fn change(&self, at: u64, states: &[ClusterState]) -> Result<()> {
        loop {
            if self.tables.write().set_states(at, states).is_some() {
                return Ok(());
            }
            // A reader has used the room for another slice since.
            if self.states(at, states.len())?.len() < states.len() {
                return Err(self.fatal(no_state()));
            }
        }
    }

    /// The part of a cluster that is written so that `from..to` of it can be: whole granules, except
    /// where they hold data there already; and, in a new cluster, all other data.
    fn needed(&self, state: &ClusterState, from: u64, to: u64, new: bool) -> (u64, u64) {
        if state.compressed.is_some() {
            return (0, self.layout().cluster_size());
        }
        let granules = self.granules;
        let stored = |within| !new && state.data & granules.bit(within) != 0;
        let mut low = if stored(from) {
            from
        } else {
            granules.start(from)
        };
        let mut high = if stored(to.saturating_sub(1)) {
            to
        } else {
            granules.end(to)
        };
        let others = state.data & !granules.touched(from, to);
        if new && let Some((start, end)) = granules.span(others) {
            low = low.min(start);
            high = high.max(end);
        }
        (low, high)
    }

    /// What the guest sees in `from..to` of the cluster that starts at `start`.
    fn around(&self, state: &ClusterState, start: u64, from: u64, to: u64) -> Result<Around> {
        let len = to.saturating_sub(from);
        let zeroes = Around { len, bytes: None };
        // Behind the end of the disk there is nothing, whatever files have there.
        let end = self.size().saturating_sub(start).min(to);
        let Some(wanted @ 1..) = end.checked_sub(from) else {
            return Ok(zeroes);
        };
        let mut bytes = vec![0; to_usize(len).ok_or_else(no_state)?];
        let shown = bytes
            .get_mut(..to_usize(wanted).unwrap_or(usize::MAX))
            .ok_or_else(no_state)?;
        if let Some((host, compressed_len)) = state.compressed {
            let cluster = self.source.compressed(host, compressed_len)?;
            let old = to_usize(from)
                .and_then(|from| slice(&cluster, from, shown.len()))
                .ok_or_else(no_state)?;
            shown.copy_from_slice(old);
        } else if !self.read_granules(state, start, from, shown)? {
            return Ok(zeroes);
        }
        Ok(Around {
            len,
            bytes: Some(bytes),
        })
    }

    /// Fills `buf` with what the guest sees from `from` in a cluster; `false`: it is all zeroes.
    fn read_granules(
        &self,
        state: &ClusterState,
        start: u64,
        from: u64,
        buf: &mut [u8],
    ) -> Result<bool> {
        let mut within = from;
        let mut rest = buf;
        let mut any = false;
        while !rest.is_empty() {
            let bit = self.granules.bit(within);
            let until = self
                .granules
                .start(within)
                .saturating_add(self.granules.size);
            let len = to_usize(until.saturating_sub(within))
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
                return Err(no_state());
            };
            let guest = start.saturating_add(within);
            if let (true, Some(host)) = (state.data & bit != 0, state.host) {
                self.source
                    .data
                    .read(host.saturating_add(within), guest, piece)?;
                any = true;
            } else if state.zero & bit == 0 && !self.nothing_below(guest, to_u64(len)) {
                self.source.read_backing(guest, piece)?;
                any = true;
            }
            rest = tail;
            within = until;
        }
        Ok(any)
    }

    /// Checks that clusters may be written as they are: no metadata, and used once.
    fn check_own(&self, alloc: &mut Alloc, host: u64, count: usize) -> Result<()> {
        if self.layout().external_data {
            return Ok(());
        }
        let first = self.cluster(host);
        let end = first.saturating_add(to_u64(count));
        let space = alloc.space()?;
        space
            .protected
            .check(first..end)
            .map_err(|e| self.fatal(e))?;
        for cluster in first..end {
            let uses = space.refcounts.get(cluster)?;
            if uses != 1 {
                return Err(self.fatal(BlockError::damaged(format!(
                    "cluster {cluster} is marked as used once, but its refcount is {uses}"
                ))));
            }
        }
        Ok(())
    }

    /// Step 2: the L2 table for `at` is there and nobody else uses it.
    pub(super) fn own_l2(&self, alloc: &mut Alloc, at: u64) -> Result<()> {
        let (index, entry) = {
            let tables = self.tables.read();
            let index = tables.place(at).l1_index;
            (index, tables.l1().get(index).copied().ok_or_else(no_state)?)
        };
        if alloc.own_l2.contains(&index) {
            return Ok(());
        }
        let old = entry & OFFSET_MASK;
        if old != 0 && entry & COPIED != 0 {
            let uses = alloc.space()?.refcounts.get(self.cluster(old))?;
            if uses != 1 {
                return Err(self.fatal(BlockError::damaged(format!(
                    "the L2 table at {old} is marked as used once, but its refcount is {uses}"
                ))));
            }
            alloc.own_l2.insert(index);
            return Ok(());
        }
        let len = to_usize(self.layout().cluster_size()).ok_or_else(no_state)?;
        let content = if old == 0 {
            vec![0; len]
        } else {
            let cluster = self.cluster(old);
            alloc
                .check_counted(cluster..cluster.saturating_add(1))
                .map_err(|e| self.fatal(e))?;
            // Shared tables are never changed in memory.
            self.file().read_vec(old, len)?
        };
        let space = alloc.space()?;
        let run = space.take_consecutive(1).map_err(|e| self.fatal(e))?;
        let new = space.offset(run.first);
        self.file()
            .write_all_at(new, &content)
            .map_err(|e| self.fatal(e))?;
        if old != 0 {
            let cluster = self.cluster(old);
            let clusters = cluster..cluster.saturating_add(1);
            space.protected.remove(clusters.clone());
            alloc.unhook(clusters, false);
        }
        let protected = alloc.space()?.protected.add(run.range(), Use::L2);
        protected.map_err(|e| self.fatal(e))?;
        self.tables.write().set_l1(index, new | COPIED);
        alloc.own_l2.insert(index);
        Ok(())
    }
}

fn no_state() -> BlockError {
    BlockError::damaged("a cluster has no entry in its table")
}
