//! The active L1 table, and the slices of L2 tables that are in memory.
//!
//! Slices are kept by where they are on the *guest's* disk, so one stays right when its table moves
//! to another place in the file. The L1 table is in memory whole; it has at most 32 MiB.
//!
//! Invariants: a changed slice stays in memory until it has been written by a flush (see
//! [`super::flush`]); nothing else writes L2 entries. `version` goes up whenever a slice that was
//! changed could leave memory, so that a reader who loaded its old content from the file notices.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::state::{COMPRESSED, COPIED, ClusterState};
use crate::block::{BlockDevice, BlockError, Result};
use crate::formats::qcow2::layout::{Layout, Mapping, OFFSET_MASK, Run};
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

/// Memory for slices, in bytes: enough for 128 GiB of disk at the usual cluster size.
const CACHE_BYTES: u64 = 16 << 20;
/// Bytes of an L1 table written at once: what a disk writes whole.
const SECTOR: u64 = 512;

/// The tables; see the module text.
pub struct TableCache {
    layout: Layout,
    l1: Vec<u64>,
    l1_offset: u64,
    /// Sectors of the L1 table that differ from the file.
    dirty_l1: BTreeSet<u64>,
    slices: HashMap<u64, Slice>,
    /// Keys in the order in which they are looked at for eviction.
    clock: VecDeque<u64>,
    dirty: BTreeSet<u64>,
    version: u64,
    max_slices: usize,
}

/// A part of an L2 table.
struct Slice {
    /// Entries (pairs with subclusters).
    words: Vec<u64>,
    /// By entry: it was checked that writes may go to its cluster.
    verified: Box<[AtomicU64]>,
    used: AtomicBool,
}

/// Where a guest offset's entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index in the L1 table.
    pub l1_index: usize,
    /// Key of the slice.
    pub slice: u64,
    /// Index of the entry in the slice.
    pub entry: usize,
}

/// What is in memory about a guest offset.
pub enum Found<T> {
    /// There is no L2 table; this many bytes from the offset on are in its reach.
    NoTable(u64),
    /// The slice has to be loaded; it is at this host offset.
    NotLoaded {
        /// Where it is.
        host: u64,
        /// [`TableCache::version`] now.
        version: u64,
    },
    /// It is here.
    Here(T),
}

impl TableCache {
    /// Starts with the L1 table as it is in the file.
    ///
    /// # Errors
    /// What reading reports.
    pub fn load(
        file: &BlockDevice,
        layout: Layout,
        l1_offset: u64,
        l1_entries: u32,
    ) -> Result<Self> {
        let max_slices = CACHE_BYTES.checked_div(layout.slice_bytes()).unwrap_or(0);
        Ok(Self {
            layout,
            l1: read_words(file, l1_offset, u64::from(l1_entries).saturating_mul(8))?,
            l1_offset,
            dirty_l1: BTreeSet::new(),
            slices: HashMap::new(),
            clock: VecDeque::new(),
            dirty: BTreeSet::new(),
            version: 0,
            max_slices: to_usize(max_slices).unwrap_or(usize::MAX),
        })
    }

    /// The L1 table.
    pub fn l1(&self) -> &[u64] {
        &self.l1
    }

    /// Where the L1 table is in the file.
    pub fn l1_offset(&self) -> u64 {
        self.l1_offset
    }

    fn entry_words(&self) -> usize {
        if self.layout.subclusters { 2 } else { 1 }
    }

    /// Log2 of the entries of a slice.
    fn slice_bits(&self) -> u32 {
        self.layout
            .slice_bytes()
            .ilog2()
            .saturating_sub(self.layout.l2_entry_bits())
    }

    /// Guest bytes one slice covers.
    pub fn slice_reach(&self) -> u64 {
        1_u64.wrapping_shl(self.slice_bits().saturating_add(self.layout.cluster_bits))
    }

    /// Where the entry of a guest offset is.
    pub fn place(&self, at: u64) -> Place {
        let cluster = at.wrapping_shr(self.layout.cluster_bits);
        let in_slice = cluster & 1_u64.wrapping_shl(self.slice_bits()).wrapping_sub(1);
        Place {
            l1_index: to_usize(at.wrapping_shr(self.layout.l2_reach_bits())).unwrap_or(usize::MAX),
            slice: cluster.wrapping_shr(self.slice_bits()),
            entry: to_usize(in_slice).unwrap_or(usize::MAX),
        }
    }

    /// Host offset of a slice, if there is a table for it.
    fn slice_host(&self, slice: u64) -> Option<u64> {
        let per_table = self
            .layout
            .cluster_bits
            .saturating_sub(self.layout.slice_bytes().ilog2());
        let table = *self.l1.get(to_usize(slice.wrapping_shr(per_table))?)? & OFFSET_MASK;
        let within = slice & 1_u64.wrapping_shl(per_table).wrapping_sub(1);
        (table != 0).then(|| table.saturating_add(within.saturating_mul(self.layout.slice_bytes())))
    }

    fn slice_at(&self, at: u64) -> Result<Found<(&Slice, usize)>> {
        let place = self.place(at);
        let entry = *self
            .l1
            .get(place.l1_index)
            .ok_or_else(|| BlockError::damaged("the L1 table is too short"))?;
        let table = entry & OFFSET_MASK;
        if table == 0 {
            let reach = 1_u64.wrapping_shl(self.layout.l2_reach_bits());
            let within = at & reach.wrapping_sub(1);
            return Ok(Found::NoTable(reach.saturating_sub(within)));
        }
        if !self.layout.aligned(table) {
            return Err(BlockError::damaged(format!(
                "the L2 table at {table} is not aligned"
            )));
        }
        match self.slices.get(&place.slice) {
            Some(slice) => {
                slice.used.store(true, Ordering::Relaxed);
                Ok(Found::Here((slice, place.entry)))
            }
            None => Ok(Found::NotLoaded {
                host: self.slice_host(place.slice).unwrap_or(0),
                version: self.version,
            }),
        }
    }

    fn words_of(&self, slice: &Slice, entry: usize) -> Option<(u64, u64)> {
        let width = self.entry_words();
        let first = entry.checked_mul(width)?;
        let word = *slice.words.get(first)?;
        if width == 1 {
            return Some((word, 0));
        }
        Some((word, *slice.words.get(first.checked_add(1)?)?))
    }

    /// The run that starts at `at`; it does not leave the slice.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`].
    pub fn run(&self, at: u64, max: u64) -> Result<Found<Run>> {
        let (slice, mut entry) = match self.slice_at(at)? {
            Found::Here(here) => here,
            Found::NoTable(len) => {
                return Ok(Found::Here(Run {
                    len,
                    mapping: Mapping::Unallocated,
                }));
            }
            Found::NotLoaded { host, version } => return Ok(Found::NotLoaded { host, version }),
        };
        let (word, bitmap) = self.words_of(slice, entry).ok_or_else(outside)?;
        let mut run = self.layout.decode(word, bitmap, at)?;
        while run.len < max && self.layout.aligned(at.saturating_add(run.len)) {
            entry = entry.saturating_add(1);
            let Some((word, bitmap)) = self.words_of(slice, entry) else {
                break;
            };
            let next_at = at.saturating_add(run.len);
            let Ok(next) = self.layout.decode(word, bitmap, next_at) else {
                break;
            };
            let Some(joined) = run.join(next) else { break };
            run = joined;
        }
        Ok(Found::Here(run))
    }

    /// Host offset and length of the run at `at` that a write may go to as it is, if that is
    /// known without further ado.
    pub fn in_place(&self, at: u64, max: u64) -> Option<(u64, u64)> {
        let Ok(Found::Here((slice, first))) = self.slice_at(at) else {
            return None;
        };
        let mut entry = first;
        let mut run: Option<Run> = None;
        while run.is_none_or(|r| r.len < max && self.layout.aligned(at.saturating_add(r.len))) {
            let Some((word, bitmap)) = self.words_of(slice, entry) else {
                break;
            };
            if word & (COPIED | COMPRESSED) != COPIED || !slice.is_verified(entry) {
                break;
            }
            let piece_at = at.saturating_add(run.map_or(0, |run| run.len));
            let Ok(piece) = self.layout.decode(word, bitmap, piece_at) else {
                break;
            };
            if !matches!(piece.mapping, Mapping::Data { .. }) {
                break;
            }
            run = match run {
                None => Some(piece),
                Some(run) => match run.join(piece) {
                    Some(joined) => Some(joined),
                    None => return data_run(run),
                },
            };
            entry = entry.saturating_add(1);
        }
        run.and_then(data_run)
    }

    /// The states of clusters from the one with `at` on, at most `max` of them and none outside
    /// the slice; without an L2 table they are all empty.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`].
    pub fn states(&self, at: u64, max: usize) -> Result<Found<Vec<ClusterState>>> {
        let first = self.place(at).entry;
        let in_slice = to_usize(1_u64.wrapping_shl(self.slice_bits())).unwrap_or(usize::MAX);
        let count = in_slice.saturating_sub(first).min(max);
        match self.slice_at(at)? {
            Found::NoTable(_) => Ok(Found::Here(vec![ClusterState::default(); count])),
            Found::NotLoaded { host, version } => Ok(Found::NotLoaded { host, version }),
            Found::Here((slice, first)) => {
                let mut states = Vec::with_capacity(count);
                let mut cluster_at = at.saturating_sub(self.layout.within_cluster(at));
                for entry in (first..).take(count) {
                    let (word, bitmap) = self.words_of(slice, entry).ok_or_else(outside)?;
                    let state = ClusterState::decode(&self.layout, word, bitmap, cluster_at);
                    cluster_at = cluster_at.saturating_add(self.layout.cluster_size());
                    match state {
                        Ok(state) => states.push(state),
                        // It belongs to the request that starts there.
                        Err(_) if !states.is_empty() => break,
                        Err(e) => return Err(e),
                    }
                }
                Ok(Found::Here(states))
            }
        }
    }

    /// Replaces entries from the cluster with `at` on. `None`: the slice is not in memory, or ends
    /// before the last of them. They count as verified.
    pub fn set_states(&mut self, at: u64, states: &[ClusterState]) -> Option<()> {
        let place = self.place(at);
        let layout = self.layout;
        let width = self.entry_words();
        let slice = self.slices.get_mut(&place.slice)?;
        let first = place.entry.checked_mul(width)?;
        let len = states.len().checked_mul(width)?;
        let words = slice.words.get_mut(first..first.checked_add(len)?)?;
        for (words, state) in words.chunks_exact_mut(width).zip(states) {
            let (entry, bitmap) = state.encode(&layout);
            *words.first_mut()? = entry;
            if let Some(word) = words.get_mut(1) {
                *word = bitmap;
            }
        }
        for entry in (place.entry..).take(states.len()) {
            slice.verify(entry);
        }
        self.dirty.insert(place.slice);
        Some(())
    }

    /// Notes that writes may go to the clusters from the one with `at` on.
    pub fn verify(&self, at: u64, count: usize) {
        let place = self.place(at);
        if let Some(slice) = self.slices.get(&place.slice) {
            for entry in (place.entry..).take(count) {
                slice.verify(entry);
            }
        }
    }

    /// Keeps a slice that was read from the file, unless that may be outdated; `false` then.
    pub fn keep(&mut self, at: u64, version: u64, words: Vec<u64>) -> bool {
        let key = self.place(at).slice;
        if self.slices.contains_key(&key) {
            return true;
        }
        if self.version != version {
            return false;
        }
        self.evict();
        self.insert(key, words);
        true
    }

    fn insert(&mut self, key: u64, words: Vec<u64>) {
        let entries = words.len().checked_div(self.entry_words()).unwrap_or(0);
        let slice = Slice {
            words,
            verified: (0..entries.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            used: AtomicBool::new(true),
        };
        self.slices.insert(key, slice);
        self.clock.push_back(key);
    }

    /// Makes room for a slice, if there are unchanged ones.
    fn evict(&mut self) {
        // Twice round: the first may only take marks away.
        let mut looks = self.clock.len().saturating_mul(2);
        while self.slices.len() >= self.max_slices && looks > 0 {
            looks = looks.saturating_sub(1);
            let Some(key) = self.clock.pop_front() else {
                return;
            };
            let keep = self.dirty.contains(&key)
                || self
                    .slices
                    .get(&key)
                    .is_some_and(|s| s.used.swap(false, Ordering::Relaxed));
            if keep {
                self.clock.push_back(key);
            } else {
                self.slices.remove(&key);
            }
        }
    }

    /// Whether so much has changed that it should be written before more changes.
    pub fn crowded(&self) -> bool {
        self.dirty.len() > self.max_slices / 2
    }

    /// Whether there is something to write.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.dirty_l1.is_empty()
    }

    /// Points an L1 entry to another L2 table.
    pub fn set_l1(&mut self, index: usize, entry: u64) {
        if let Some(slot) = self.l1.get_mut(index) {
            *slot = entry;
            let sector = to_u64(index).saturating_mul(8) / SECTOR;
            self.dirty_l1.insert(sector);
        }
    }

    /// Starts again with the L1 table as it is in the file; what was changed has been written.
    ///
    /// # Errors
    /// What reading reports.
    pub fn reload(&mut self, file: &BlockDevice, l1_offset: u64, l1_entries: u32) -> Result<()> {
        let version = self.version.wrapping_add(1);
        *self = Self {
            version,
            ..Self::load(file, self.layout, l1_offset, l1_entries)?
        };
        Ok(())
    }

    /// What has to be written: host offsets and bytes, L2 slices first.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`] if a slice has no place.
    pub fn changes(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut changes = Vec::new();
        for key in &self.dirty {
            let (Some(slice), Some(host)) = (self.slices.get(key), self.slice_host(*key)) else {
                return Err(BlockError::damaged("a changed L2 table has no place"));
            };
            changes.push((host, encode_words(&slice.words)));
        }
        for &sector in &self.dirty_l1 {
            let at = sector.saturating_mul(SECTOR);
            let first = to_usize(at / 8).unwrap_or(usize::MAX);
            let entries: Vec<u64> = self.l1.iter().skip(first).take(64).copied().collect();
            changes.push((self.l1_offset.saturating_add(at), encode_words(&entries)));
        }
        Ok(changes)
    }

    /// Everything [`TableCache::changes`] said is in the file.
    pub fn written(&mut self) {
        self.dirty.clear();
        self.dirty_l1.clear();
        self.version = self.version.wrapping_add(1);
    }
}

impl Slice {
    fn bit(entry: usize) -> (usize, u64) {
        let bit = u32::try_from(entry % 64).unwrap_or(0);
        (entry / 64, 1_u64.wrapping_shl(bit))
    }

    fn is_verified(&self, entry: usize) -> bool {
        let (index, bit) = Self::bit(entry);
        self.verified
            .get(index)
            .is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0)
    }

    fn verify(&self, entry: usize) {
        let (index, bit) = Self::bit(entry);
        if let Some(word) = self.verified.get(index) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

fn data_run(run: Run) -> Option<(u64, u64)> {
    match run.mapping {
        Mapping::Data { host } => Some((host, run.len)),
        _ => None,
    }
}

fn outside() -> BlockError {
    BlockError::damaged("a table ends before the entry that is needed")
}

/// Big-endian words of the file. `len` is in bytes and has a bound the caller knows.
///
/// # Errors
/// What reading reports.
pub fn read_words(file: &BlockDevice, at: u64, len: u64) -> Result<Vec<u64>> {
    let bytes = file.read_vec(at, to_usize(len).unwrap_or(usize::MAX))?;
    Ok(bytes.chunks_exact(8).filter_map(|c| be64(c, 0)).collect())
}

/// As they are in the file.
pub fn encode_words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}
