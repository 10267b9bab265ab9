//! Telling the device what will be read next.
//!
//! Nothing is read here but what finding the blocks takes; the device is told ranges, and does with
//! them what it likes ([`crate::block::BlockDevice::prefetch`]). Ranges near each other are told as
//! one: a device answers one large request sooner than many small ones.

use std::sync::atomic::Ordering;

use super::inode::{Inode, InodeFlags};
use super::map::Target;
use super::volume::Volume;
use crate::fs::types::{FileType, InodeNo};

/// Bytes of a file's beginning that are announced: the first request of a reader, twice over.
const START_BYTES: u64 = 128 << 10;
/// Inodes looked at in one call.
const MAX_INODES: usize = 256;
/// Runs of one file that are announced in one call: announcing is no use if it takes as long as
/// reading.
const MAX_RUNS: usize = 64;
/// Ranges no further apart than this are announced as one.
const MAX_GAP: u64 = 32 << 10;
/// Bytes of an inode table announced ahead of a reader of inodes.
const TABLE_WINDOW: u64 = 256 << 10;
/// Misses no further apart than this belong to one reader.
const TABLE_STEP: u64 = 128 << 10;

impl Volume {
    /// Announces a range of a file or directory.
    pub fn prefetch_file(&self, inode: &Inode, offset: u64, len: u64) {
        let mut ranges = Vec::new();
        self.collect(inode, offset, len, &mut ranges);
        self.announce(ranges);
    }

    /// Announces the beginnings of several files and directories.
    pub fn prefetch_starts(&self, inos: &[InodeNo]) {
        let mut ranges = Vec::new();
        for &ino in inos.iter().take(MAX_INODES) {
            // What cannot be read is told to whoever reads it.
            if let Ok(inode) = self.inode(ino) {
                self.collect(&inode, 0, START_BYTES, &mut ranges);
            }
        }
        self.announce(ranges);
    }

    /// Announces the pieces of inode tables that hold these inodes and have to be read, if there are
    /// several: a single one is as well read at once.
    pub fn prefetch_inodes(&self, inos: &[InodeNo]) {
        let mut ranges: Vec<(u64, u64)> = inos
            .iter()
            .take(MAX_INODES)
            .filter_map(|ino| u32::try_from(ino.0).ok())
            .filter_map(|ino| {
                let place = self.inode_place(ino).ok()?;
                let len = u64::try_from(place.len).ok()?;
                (!self.tables.contains(place.start))
                    .then(|| (place.start, place.start.saturating_add(len)))
            })
            .collect();
        ranges.sort_unstable();
        ranges.dedup();
        if ranges.len() > 1 {
            self.announce(ranges);
        }
    }

    /// Adds the device's ranges (start, end) behind a range of a file.
    fn collect(&self, inode: &Inode, offset: u64, len: u64, ranges: &mut Vec<(u64, u64)>) {
        let readable = matches!(
            inode.file_type(),
            Ok(FileType::Regular | FileType::Directory)
        );
        if !readable || inode.has(InodeFlags::INLINE_DATA) {
            return;
        }
        let end = offset.saturating_add(len).min(inode.size);
        let mut at = offset;
        for _ in 0..MAX_RUNS {
            if at >= end {
                return;
            }
            let within = at & u64::from(self.sb.block_size).saturating_sub(1);
            let Ok(run) = self.map(inode, at >> self.sb.block_size_log2) else {
                return;
            };
            let bytes = run
                .len
                .saturating_mul(u64::from(self.sb.block_size))
                .saturating_sub(within);
            let bytes = bytes.min(end.saturating_sub(at)).max(1);
            if let Target::Stored(block) = run.target
                && let Some(start) = self.sb.byte_of(block)
            {
                let start = start.saturating_add(within);
                ranges.push((start, start.saturating_add(bytes)));
            }
            at = at.saturating_add(bytes);
        }
    }

    fn announce(&self, mut ranges: Vec<(u64, u64)>) {
        ranges.sort_unstable();
        let mut ranges = ranges.into_iter();
        let Some((mut start, mut end)) = ranges.next() else {
            return;
        };
        for (from, until) in ranges {
            if from <= end.saturating_add(MAX_GAP) {
                end = end.max(until);
            } else {
                self.device.prefetch(start, end.saturating_sub(start));
                (start, end) = (from, until);
            }
        }
        self.device.prefetch(start, end.saturating_sub(start));
    }

    /// Notes that the piece of an inode table at byte `start` has to be read, in a table that ends
    /// at `table_end`. If the one read before was near, the next ones are announced.
    pub(super) fn note_table_miss(&self, start: u64, table_end: u64) {
        let last = self.last_table_miss.swap(start, Ordering::Relaxed);
        if start.abs_diff(last) <= TABLE_STEP {
            let len = table_end.saturating_sub(start).min(TABLE_WINDOW);
            self.device.prefetch(start, len);
        }
    }
}
