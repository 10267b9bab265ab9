//! Counts the references to a part of the file.
//!
//! A counter holds what uses the cluster in its four highest bits and how often in the others.

use crate::ondisk::units::to_u64;

/// Clusters counted at a time: 64 MiB of counters. A multiple of what any refcount block covers.
pub const WINDOW_CLUSTERS: u64 = 16 << 20;

/// Overlaps of a window that are told one by one.
const MAX_TEXTS: usize = 50;
const COUNT_BITS: u32 = 28;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;
/// What the counter says once the stored refcount is known; see [`Window::settle`].
const STORED_ONE: u32 = 1;
const AGREES: u32 = 2;

/// What uses a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Use {
    /// Header and extensions.
    Header = 1,
    /// The refcount table.
    RefcountTable = 2,
    /// A refcount block.
    RefcountBlock = 3,
    /// The L1 table of the disk.
    ActiveL1 = 4,
    /// The L1 table of a snapshot.
    SnapshotL1 = 5,
    /// An L2 table.
    L2 = 6,
    /// The snapshot table.
    Snapshots = 7,
    /// The encryption header.
    Encryption = 8,
    /// The bitmap directory.
    BitmapDirectory = 9,
    /// A bitmap's table.
    BitmapTable = 10,
    /// A bitmap's data.
    Bitmap = 11,
    /// Guest data or VM state.
    Data = 12,
}

impl Use {
    const ALL: [Self; 12] = [
        Self::Header,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::ActiveL1,
        Self::SnapshotL1,
        Self::L2,
        Self::Snapshots,
        Self::Encryption,
        Self::BitmapDirectory,
        Self::BitmapTable,
        Self::Bitmap,
        Self::Data,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::RefcountTable => "the refcount table",
            Self::RefcountBlock => "a refcount block",
            Self::ActiveL1 => "the L1 table",
            Self::SnapshotL1 => "a snapshot's L1 table",
            Self::L2 => "an L2 table",
            Self::Snapshots => "the snapshot table",
            Self::Encryption => "the encryption header",
            Self::BitmapDirectory => "the bitmap directory",
            Self::BitmapTable => "a bitmap table",
            Self::Bitmap => "a bitmap",
            Self::Data => "data",
        }
    }

    /// Whether several references to one cluster are in order.
    fn shared(self) -> bool {
        matches!(self, Self::SnapshotL1 | Self::L2 | Self::Data)
    }

    /// Whether it is part of the refcount structures.
    fn counts(self) -> bool {
        matches!(self, Self::RefcountTable | Self::RefcountBlock)
    }
}

/// References of one kind to a range of the file.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// What for.
    pub usage: Use,
    /// First cluster.
    pub first: u64,
    /// Last cluster.
    pub last: u64,
    /// How often.
    pub times: u64,
}

/// Counters of consecutive clusters.
pub struct Window {
    start: u64,
    counters: Vec<u32>,
    /// Whether the refcount structures share a cluster with anything.
    pub counts_overlap: bool,
    /// Clusters that are used for two things.
    pub overlaps: u64,
    /// Refcount blocks that are not used once and for that alone.
    pub block_problems: u64,
    /// What the overlaps are, for people: the first ones.
    pub overlap_texts: Vec<String>,
}

impl Window {
    /// Counters for `len` clusters (at most [`WINDOW_CLUSTERS`]) from cluster `start` on.
    pub fn new(start: u64, len: u64) -> Self {
        let len = usize::try_from(len.min(WINDOW_CLUSTERS)).unwrap_or(0);
        Self {
            start,
            counters: vec![0; len],
            counts_overlap: false,
            overlaps: 0,
            block_problems: 0,
            overlap_texts: Vec::new(),
        }
    }

    /// First cluster.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// First cluster after it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(to_u64(self.counters.len()))
    }

    /// References to a cluster; 0 for clusters elsewhere.
    pub fn count(&self, cluster: u64) -> u64 {
        self.counter(cluster)
            .map_or(0, |c| u64::from(c & COUNT_MASK))
    }

    fn counter(&self, cluster: u64) -> Option<u32> {
        let index = usize::try_from(cluster.checked_sub(self.start)?).ok()?;
        self.counters.get(index).copied()
    }

    /// Adds references, as far as they are to clusters in the window.
    pub fn add(&mut self, reference: Reference) {
        let Reference {
            usage,
            first,
            last,
            times,
        } = reference;
        let from = usize::try_from(first.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let end = last.saturating_add(1).saturating_sub(self.start);
        let until = usize::try_from(end)
            .unwrap_or(usize::MAX)
            .min(self.counters.len());
        let times = u32::try_from(times).unwrap_or(COUNT_MASK).min(COUNT_MASK);
        let kind = usage as u32;
        let mut clash = None;
        for counter in self.counters.get_mut(from..until).unwrap_or_default() {
            let before = counter.wrapping_shr(COUNT_BITS);
            let count = (*counter & COUNT_MASK)
                .saturating_add(times)
                .min(COUNT_MASK);
            // What came first keeps the cluster.
            let keeps = if before == 0 { kind } else { before };
            *counter = count | keeps.wrapping_shl(COUNT_BITS);
            let exclusive = !usage.shared() && (before != 0 || times > 1);
            if (before != 0 && before != kind) || exclusive {
                self.overlaps = self.overlaps.saturating_add(1);
                clash = clash.or(Some(before));
            }
        }
        if let Some(before) = clash {
            let other = Use::ALL.into_iter().find(|u| *u as u32 == before);
            if usage.counts() || other.is_some_and(Use::counts) {
                self.counts_overlap = true;
            }
            if self.overlap_texts.len() < MAX_TEXTS {
                self.overlap_texts.push(format!(
                    "{} in clusters {first} to {last} overlaps {}",
                    usage.name(),
                    other.map_or("itself", Use::name),
                ));
            }
        }
    }

    /// Replaces the counter of a cluster by what [`Window::stored_one`] and [`Window::agrees`]
    /// answer.
    pub fn settle(&mut self, cluster: u64, stored: u64, counted: u64) {
        let index = cluster
            .checked_sub(self.start)
            .and_then(|i| usize::try_from(i).ok());
        if let Some(counter) = index.and_then(|i| self.counters.get_mut(i)) {
            *counter = if stored == 1 { STORED_ONE } else { 0 }
                | if stored == counted { AGREES } else { 0 };
        }
    }

    /// Whether a settled cluster's refcount in the image is 1. `None`: not in this window.
    pub fn stored_one(&self, cluster: u64) -> Option<bool> {
        Some(self.counter(cluster)? & STORED_ONE != 0)
    }

    /// Whether a settled cluster's refcount in the image is right.
    pub fn agrees(&self, cluster: u64) -> bool {
        self.counter(cluster).is_some_and(|c| c & AGREES != 0)
    }
}
