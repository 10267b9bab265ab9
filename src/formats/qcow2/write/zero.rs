//! Zeroing and discarding.
//!
//! Whole granules (clusters, or subclusters where the image has them) change in the mapping, as
//! [`super::cow`] says for data; parts of granules are written as zeroes. Version 2 has no word for
//! zeroes: there, clusters are given up where nothing of a backing image would show, and zeroes are
//! written where it would.
//!
//! A raw external data file has to show the same disk by itself, so it is zeroed for real, before
//! the mapping changes.

use super::Writer;
use super::state::ClusterState;
use crate::block::Result;
use crate::formats::qcow2::layout::Mapping;
use crate::formats::qcow2::view::Tables;
use crate::ondisk::units::{to_u64, to_usize};

/// Zeroes written at once.
const PIECE: u64 = 1 << 20;

impl Writer {
    /// Makes guest bytes read as zeroes. The gate is held.
    pub(super) fn write_zeroes(&self, mut at: u64, mut len: u64, may_unmap: bool) -> Result<()> {
        while len > 0 {
            let done = self.zero_some(at, len, may_unmap)?.clamp(1, len);
            at = at.saturating_add(done);
            len = len.saturating_sub(done);
        }
        Ok(())
    }

    /// Gives guest bytes up: whole clusters of them. The gate is held.
    pub(super) fn discard(&self, at: u64, len: u64) -> Result<()> {
        if self.raw_data_file()? {
            return self.write_zeroes(at, len, true);
        }
        let cluster_size = self.layout().cluster_size();
        let end = at.saturating_add(len);
        let mut at = at.checked_next_multiple_of(cluster_size).unwrap_or(end);
        // The end of the disk is as good as the end of a cluster.
        let end = if end >= self.size() {
            self.size()
        } else {
            end.saturating_sub(self.layout().within_cluster(end))
        };
        while at < end {
            let done = self.change_some(at, end.saturating_sub(at), |state, below| {
                if self.layout().version < 3 && below {
                    return None;
                }
                let zero = if below { self.granules.all } else { 0 };
                Some(if self.layout().external_data && state.host.is_some() {
                    // Its place is where it would come back to.
                    ClusterState {
                        data: 0,
                        zero: self.granules.all,
                        ..*state
                    }
                } else {
                    ClusterState {
                        zero,
                        ..ClusterState::default()
                    }
                })
            })?;
            at = at.saturating_add(done.max(1));
        }
        Ok(())
    }

    fn raw_data_file(&self) -> Result<bool> {
        Ok(self.layout().external_data && self.alloc.lock().header.data_file_raw)
    }

    fn zero_some(&self, at: u64, len: u64, may_unmap: bool) -> Result<u64> {
        let raw = self.raw_data_file()?;
        if !raw {
            let run = self.piece_at(at, len)?;
            let run_len = run.len.min(len);
            let zero_already = match run.mapping {
                Mapping::Unallocated => self.nothing_below(at, run_len),
                Mapping::Zero { host } => host.is_none() || !may_unmap,
                _ => false,
            };
            if zero_already {
                return Ok(run_len);
            }
        }
        let size = self.granules.size;
        let start = self.granules.start(at);
        let granule_end = start.saturating_add(size).min(self.size());
        let end = at.saturating_add(len);
        if at != start || end < granule_end {
            let len = len.min(granule_end.saturating_sub(at));
            if raw {
                self.zero_data_file(at, len, false)?;
            }
            self.write_zero_bytes(at, len)?;
            return Ok(len);
        }
        let end = if end >= self.size() {
            end
        } else {
            self.granules.start(end)
        };
        let len = end.saturating_sub(at);
        if raw {
            self.zero_data_file(at, len, may_unmap)?;
        }
        if self.layout().version < 3 && !self.nothing_below(at, len) {
            let cluster_end = start.saturating_add(size).min(end);
            let len = cluster_end.saturating_sub(at);
            if !self.nothing_below(at, len) {
                self.write_zero_bytes(at, len)?;
                return Ok(len);
            }
            return self.zero_granules(at, len, may_unmap);
        }
        self.zero_granules(at, len, may_unmap)
    }

    fn zero_data_file(&self, at: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.source
            .data
            .device()
            .write_zeroes(at, len, may_unmap)
            .map_err(|e| self.fatal(e))
    }

    fn write_zero_bytes(&self, mut at: u64, mut len: u64) -> Result<()> {
        let zeroes = vec![0; to_usize(len.min(PIECE)).unwrap_or(0)];
        while len > 0 {
            let piece = to_usize(len).unwrap_or(usize::MAX).min(zeroes.len());
            self.write(at, zeroes.get(..piece).unwrap_or(&zeroes))?;
            at = at.saturating_add(to_u64(piece));
            len = len.saturating_sub(to_u64(piece));
        }
        Ok(())
    }

    /// Zeroes whole granules in the mapping; at least one, and not beyond one slice.
    fn zero_granules(&self, at: u64, len: u64, may_unmap: bool) -> Result<u64> {
        let version = self.layout().version;
        let cluster_size = self.layout().cluster_size();
        let mut cluster = at.saturating_sub(self.layout().within_cluster(at));
        let mut from = at;
        let mut end = at.saturating_add(len);
        let cluster_end = cluster.saturating_add(cluster_size).min(self.size());
        if from != cluster || end < cluster_end {
            // Part of a cluster, which has to be unpacked first if it is compressed.
            end = end.min(cluster_end);
            if let Mapping::Compressed { .. } = self.piece_at(at, 1)?.mapping {
                self.write_zero_bytes(at, end.saturating_sub(at))?;
                return Ok(end.saturating_sub(at));
            }
        } else if end < self.size() {
            end = end.saturating_sub(self.layout().within_cluster(end));
        }
        let len = end.saturating_sub(at);
        self.change_some(at, len, |state, _| {
            let to = if end >= self.size() {
                cluster_size
            } else {
                end.saturating_sub(cluster).min(cluster_size)
            };
            let zeroed = self.granules.inside(from.saturating_sub(cluster), to);
            cluster = cluster.saturating_add(cluster_size);
            from = cluster;
            if version < 3 {
                return Some(ClusterState::default());
            }
            let mut new = ClusterState {
                zero: state.zero | zeroed,
                data: state.data & !zeroed,
                ..*state
            };
            let gives_up = state.compressed.is_some()
                || (new.data == 0 && !self.layout().external_data && (may_unmap || !state.copied));
            if gives_up {
                new.host = None;
                new.copied = false;
                new.compressed = None;
            }
            Some(new)
        })
    }

    /// Changes the states of clusters from the one with `at` on, at most `len` bytes and not beyond
    /// one slice; returns how many bytes it has dealt with. `to` gets the old state and whether
    /// something of the backing image would show; `None` leaves the cluster as it is.
    fn change_some(
        &self,
        at: u64,
        len: u64,
        mut to: impl FnMut(&ClusterState, bool) -> Option<ClusterState>,
    ) -> Result<u64> {
        let cluster_size = self.layout().cluster_size();
        // Nothing there, and nothing would be: no table is needed to say so.
        let run = self.piece_at(at, len)?;
        if run.mapping == Mapping::Unallocated && self.nothing_below(at, run.len.min(len)) {
            return Ok(run.len.min(len));
        }
        let mut alloc = self.alloc.lock();
        self.prepare(&mut alloc)?;
        self.make_room(&mut alloc)?;
        let within = self.layout().within_cluster(at);
        let clusters = within.saturating_add(len).div_ceil(cluster_size);
        let old = self.states(at, to_usize(clusters).unwrap_or(usize::MAX))?;
        let mut new = Vec::with_capacity(old.len());
        let mut guest = at.saturating_sub(within);
        let mut changed = false;
        for state in &old {
            let shown = cluster_size.min(self.size().saturating_sub(guest));
            let next = to(state, !self.nothing_below(guest, shown)).unwrap_or(*state);
            changed |= next != *state;
            new.push(next);
            guest = guest.saturating_add(cluster_size);
        }
        if changed {
            for (old, new) in old.iter().zip(&new) {
                if old.host != new.host || old.compressed != new.compressed {
                    self.check_counted(&mut alloc, old)?;
                }
            }
            self.own_l2(&mut alloc, at)?;
            self.change_runs(at, &old, &new)?;
            for (old, new) in old.iter().zip(&new) {
                if old.host != new.host || old.compressed != new.compressed {
                    self.unhook(&mut alloc, old, true);
                }
            }
        }
        Ok(guest.saturating_sub(at).min(len))
    }

    /// Changes those entries that differ; the others may be of a kind that is never written.
    fn change_runs(&self, at: u64, old: &[ClusterState], new: &[ClusterState]) -> Result<()> {
        let cluster_size = self.layout().cluster_size();
        let mut guest = at;
        for (old, new) in old.iter().zip(new) {
            if old != new {
                self.change(guest, std::slice::from_ref(new))?;
            }
            guest = guest.saturating_add(cluster_size);
        }
        Ok(())
    }
}
