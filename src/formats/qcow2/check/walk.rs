//! Visits every reference to a cluster, and finds entries that cannot be right.

use super::super::layout::OFFSET_MASK;
use super::report::Report;
use super::structures::{L2Table, Structures, walk_table};
use super::window::{Reference, Use, Window};
use crate::formats::error::Result;
use crate::ondisk::bytes::be64;
use crate::ondisk::units::to_usize;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits of an L2 entry of a cluster that is not compressed that must be 0.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits of an entry of a bitmap table that must be 0.
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Bits of an entry of the refcount table that must be 0.
const REFCOUNT_RESERVED: u64 = 0x1ff;

/// What an L2 entry says, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// No cluster of the file.
    None,
    /// Compressed bytes.
    Compressed {
        /// Host offset.
        offset: u64,
        /// Bytes, in whole sectors.
        len: u64,
    },
    /// A cluster with data, or kept for it.
    Cluster {
        /// Host offset.
        offset: u64,
        /// Whether the COPIED flag is set.
        copied: bool,
    },
}

/// Decodes an entry.
pub fn decode(structures: &Structures<'_>, entry: u64) -> Entry {
    let layout = &structures.header.layout;
    if entry & COMPRESSED != 0 {
        let offset_bits = 70_u32.saturating_sub(layout.cluster_bits);
        let descriptor = entry & COMPRESSED.wrapping_sub(1);
        let offset = descriptor & 1_u64.wrapping_shl(offset_bits).wrapping_sub(1);
        let sectors = descriptor.wrapping_shr(offset_bits).saturating_add(1);
        let len = sectors.saturating_mul(512).saturating_sub(offset & 511);
        return Entry::Compressed { offset, len };
    }
    let offset = entry & OFFSET_MASK;
    let copied = entry & COPIED != 0;
    let plain_zero = entry & ZERO != 0 && !layout.subclusters && offset == 0;
    if plain_zero || (offset == 0 && !(layout.external_data && copied)) {
        return Entry::None;
    }
    Entry::Cluster { offset, copied }
}

/// A count of one window.
pub struct Walk<'a> {
    structures: &'a Structures<'a>,
    window: &'a mut Window,
    /// Where findings go. Only for the first window: each is found again in every one.
    report: Option<&'a mut Report>,
}

impl<'a> Walk<'a> {
    /// A count into `window`.
    pub fn new(
        structures: &'a Structures<'a>,
        window: &'a mut Window,
        report: Option<&'a mut Report>,
    ) -> Self {
        Self {
            structures,
            window,
            report,
        }
    }

    /// Counts everything but the refcount structures.
    ///
    /// # Errors
    /// What reading reports.
    pub fn contents(&mut self) -> Result<()> {
        let structures = self.structures;
        let header = structures.header;
        let cluster_size = header.layout.cluster_size();
        self.area(Use::Header, 0, cluster_size, 1);
        for table in &structures.l1 {
            let usage = if table.active {
                Use::ActiveL1
            } else {
                Use::SnapshotL1
            };
            let len = u64::from(table.entries).saturating_mul(8);
            self.area(usage, table.offset, len, table.times);
        }
        self.area(
            Use::Snapshots,
            header.snapshots_offset,
            structures.snapshots_len,
            1,
        );
        for table in &structures.l2 {
            self.area(Use::L2, table.offset, cluster_size, table.total.into());
        }
        let mut buffer = vec![0; to_usize(cluster_size).unwrap_or(0)];
        for table in &structures.l2 {
            if read_l2(structures, table, &mut buffer)? {
                self.l2(table, &buffer);
            }
        }
        let extensions = &structures.extensions;
        if let Some((offset, len)) = extensions.encryption {
            self.area(Use::Encryption, offset, len, 1);
        }
        if let Some((offset, len)) = extensions.bitmap_directory {
            self.area(Use::BitmapDirectory, offset, len, 1);
        }
        for &(offset, entries) in &extensions.bitmap_tables {
            self.area(
                Use::BitmapTable,
                offset,
                u64::from(entries).saturating_mul(8),
                1,
            );
            walk_table(
                structures.file,
                offset,
                entries.into(),
                &mut |index, entry| {
                    self.bitmap_entry(offset, index, entry);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// Counts the refcount table and its blocks. Returns whether they have to be built anew.
    ///
    /// # Errors
    /// What reading reports.
    pub fn refcounts(&mut self) -> Result<bool> {
        let structures = self.structures;
        let header = structures.header;
        let cluster_size = header.layout.cluster_size();
        let len = u64::from(header.refcount_table_clusters).saturating_mul(cluster_size);
        let at = header.refcount_table_offset;
        self.area(Use::RefcountTable, at, len, 1);
        let mut rebuild = !structures.inside(at, len);
        let clusters = structures.clusters();
        walk_table(
            structures.file,
            at,
            len.wrapping_shr(3),
            &mut |index, entry| {
                let problem = if entry & REFCOUNT_RESERVED != 0 {
                    Some("has reserved bits set")
                } else if !header.layout.aligned(entry) {
                    Some("is not aligned")
                } else if structures.cluster_of(entry) >= clusters {
                    Some("is past the end of the file")
                } else {
                    None
                };
                if let Some(problem) = problem {
                    rebuild = true;
                    self.corrupt(1, || {
                        format!("refcount table entry {index}: {entry:#x} {problem}")
                    });
                    return Ok(());
                }
                let cluster = structures.cluster_of(entry);
                self.area(Use::RefcountBlock, entry, cluster_size, 1);
                let here = cluster >= self.window.start() && cluster < self.window.end();
                if here && self.window.count(cluster) != 1 {
                    rebuild = true;
                    self.window.block_problems = self.window.block_problems.saturating_add(1);
                }
                Ok(())
            },
        )?;
        Ok(rebuild || self.window.counts_overlap)
    }

    fn corrupt(&mut self, times: u64, text: impl FnOnce() -> String) {
        if let Some(report) = self.report.as_deref_mut() {
            report.corrupt(times, text);
        }
    }

    /// Counts a region of the file.
    fn area(&mut self, usage: Use, offset: u64, len: u64, times: u64) {
        if len == 0 {
            return;
        }
        if !self.structures.inside(offset, len) {
            self.corrupt(times, || {
                format!("{} at {offset} is past the end of the file", usage.name())
            });
            if let Some(report) = self.report.as_deref_mut() {
                report.references_lost = true;
            }
            return;
        }
        let last = offset.saturating_add(len).saturating_sub(1);
        self.window.add(Reference {
            usage,
            first: self.structures.cluster_of(offset),
            last: self.structures.cluster_of(last),
            times,
        });
    }

    fn l2(&mut self, table: &L2Table, entries: &[u8]) {
        let layout = &self.structures.header.layout;
        let cluster_size = layout.cluster_size();
        let times = u64::from(table.total);
        let mut next = 0;
        for (index, entry) in entries
            .chunks_exact(1_usize.wrapping_shl(layout.l2_entry_bits()))
            .enumerate()
        {
            let bitmap = if layout.subclusters {
                be64(entry, 8).unwrap_or(0)
            } else {
                0
            };
            let entry = be64(entry, 0).unwrap_or(0);
            if entry == 0 && bitmap == 0 {
                continue;
            }
            let at = table.offset;
            let problem = |walk: &mut Self, what: &str| {
                walk.corrupt(times, || {
                    format!("L2 entry {index} of the table at {at}: {entry:#x} {what}")
                });
            };
            if entry & COMPRESSED == 0 && entry & L2_RESERVED != 0 {
                problem(self, "has reserved bits set");
            }
            match decode(self.structures, entry) {
                Entry::None => {
                    if bitmap & u64::from(u32::MAX) != 0 {
                        problem(self, "has subclusters and no cluster");
                    }
                }
                Entry::Compressed { offset, len } => {
                    if entry & COPIED != 0 {
                        problem(self, "has the COPIED flag and is compressed");
                    }
                    if layout.external_data {
                        problem(self, "is compressed in an image with an external data file");
                        continue;
                    }
                    if bitmap != 0 {
                        problem(self, "is compressed and has subclusters");
                        continue;
                    }
                    self.area(Use::Data, offset, len, times);
                    self.fragments(table, true, true);
                }
                Entry::Cluster { offset, .. } => {
                    if bitmap.wrapping_shr(32) & bitmap & u64::from(u32::MAX) != 0 {
                        problem(self, "has subclusters that are data and zero at once");
                    }
                    if !layout.aligned(offset) {
                        problem(self, "is not aligned");
                    }
                    self.fragments(table, next != 0 && offset != next, false);
                    next = offset.saturating_add(cluster_size);
                    if !layout.external_data {
                        self.area(Use::Data, offset, cluster_size, times);
                    }
                }
            }
        }
    }

    /// Counts an allocated cluster of the disk.
    fn fragments(&mut self, table: &L2Table, fragment: bool, compressed: bool) {
        if let Some(report) = self.report.as_deref_mut() {
            let active = u64::from(table.active);
            let add = |to: &mut u64, yes: bool| {
                if yes {
                    *to = to.saturating_add(active);
                }
            };
            add(&mut report.allocated_clusters, true);
            add(&mut report.fragmented_clusters, fragment);
            add(&mut report.compressed_clusters, compressed);
        }
    }

    fn bitmap_entry(&mut self, table: u64, index: u64, entry: u64) {
        let offset = entry & OFFSET_MASK;
        let wrong = entry & BITMAP_RESERVED != 0
            || (offset != 0 && (entry & 1 != 0 || !self.structures.header.layout.aligned(offset)));
        if wrong {
            self.corrupt(1, || {
                format!("entry {index} of the bitmap table at {table}: {entry:#x} cannot be right")
            });
        } else if offset != 0 {
            let len = self.structures.header.layout.cluster_size();
            self.area(Use::Bitmap, offset, len, 1);
        }
    }
}

/// Reads an L2 table into `buffer`; what lies past the end of the file is zero. Returns whether
/// there is anything in it.
///
/// # Errors
/// What reading reports.
pub fn read_l2(structures: &Structures<'_>, table: &L2Table, buffer: &mut [u8]) -> Result<bool> {
    let len = structures
        .header
        .layout
        .cluster_size()
        .min(structures.file_len.saturating_sub(table.offset));
    if len == 0 {
        return Ok(false);
    }
    // Many entries can name tables in one hole of a sparse file, which would take long to read.
    let extent = structures.file.extent_at(table.offset, len)?;
    if extent.reads_zero() && extent.len >= len {
        return Ok(false);
    }
    let read = structures.file.read_some_at(table.offset, buffer)?;
    buffer.get_mut(read..).unwrap_or_default().fill(0);
    Ok(true)
}
