//! Where everything lies that refers to clusters.
//!
//! Read once, before counting. What is kept in memory is one entry for each L1 table and each L2
//! table, with limits of their own.

use super::super::header::Header;
use super::super::layout::OFFSET_MASK;
use super::super::snapshot;
use super::extensions::{self, Extensions};
use super::report::Report;
use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

/// Largest L1 table in bytes, as in QEMU.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of all L1 tables together. A disk of 16 TiB with 1000 snapshots has an eighth of that.
const MAX_L1_TOTAL: u64 = 2 << 30;
/// Most L2 tables, 64 MiB of entries here. Enough for 2 PiB in clusters of 64 KiB.
const MAX_L2_TABLES: usize = 4 << 20;
/// Bytes of a table read at once.
const PIECE: u64 = 64 << 10;
/// Bits of an L1 entry that must be 0.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// An L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Table {
    /// Host offset.
    pub offset: u64,
    /// Number of entries.
    pub entries: u32,
    /// Whether it is the disk's; else a snapshot's.
    pub active: bool,
    /// How many snapshots have it.
    pub times: u64,
}

/// An L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Table {
    /// Host offset, aligned and inside the file.
    pub offset: u64,
    /// Entries of the disk's L1 table that name it.
    pub active: u32,
    /// Entries of any L1 table that name it.
    pub total: u32,
}

/// Everything that refers to clusters.
pub struct Structures<'a> {
    /// The image file.
    pub file: &'a BlockDevice,
    /// Its header.
    pub header: &'a Header,
    /// Bytes of the file.
    pub file_len: u64,
    /// L1 tables.
    pub l1: Vec<L1Table>,
    /// L2 tables, ascending.
    pub l2: Vec<L2Table>,
    /// Bytes of the snapshot table.
    pub snapshots_len: u64,
    /// What the header's extensions refer to.
    pub extensions: Extensions,
}

impl<'a> Structures<'a> {
    /// Reads them; entries that cannot be right go to `report`.
    ///
    /// # Errors
    /// What reading reports; [`FormatErrorKind::Unsupported`] beyond the limits.
    pub fn read(file: &'a BlockDevice, header: &'a Header, report: &mut Report) -> Result<Self> {
        let mut found = Self {
            file,
            header,
            file_len: file.len(),
            l1: Vec::new(),
            l2: Vec::new(),
            snapshots_len: 0,
            extensions: extensions::read(file, header, report)?,
        };
        if header.l1_entries > 0 {
            found.l1.push(L1Table {
                offset: header.l1_offset,
                entries: header.l1_entries,
                active: true,
                times: 1,
            });
        }
        found.read_snapshots(report)?;
        found.read_l1_tables(report)?;
        Ok(found)
    }

    /// Clusters of the file, the last perhaps incomplete.
    pub fn clusters(&self) -> u64 {
        self.file_len.div_ceil(self.header.layout.cluster_size())
    }

    /// The cluster an offset is in.
    pub fn cluster_of(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.header.layout.cluster_bits)
    }

    /// Whether a region ends before the end of the file, or in the cluster there.
    pub fn inside(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| {
            end.saturating_sub(self.file_len) < self.header.layout.cluster_size()
        })
    }

    fn read_snapshots(&mut self, report: &mut Report) -> Result<()> {
        let snapshots = match snapshot::read_table(self.file, self.header) {
            Ok(snapshots) => snapshots,
            Err(e) if e.kind() == FormatErrorKind::Damaged => {
                report.corrupt(1, || format!("the snapshot table is damaged: {e}"));
                report.error(|| "the clusters snapshots use are not known".into());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        self.snapshots_len = snapshot::table_len(self.header, &snapshots);
        if !snapshots.is_empty() && self.header.layout.external_data {
            report.corrupt(1, || {
                "snapshots in an image with an external data file".into()
            });
        }
        let mut tables = Vec::new();
        for snapshot in &snapshots {
            let name = || snapshot.info.name.clone();
            if self.header.layout.version > 2 && snapshot.extra_len < 16 {
                report.corrupt(1, || {
                    format!("the entry of snapshot '{}' is incomplete", name())
                });
            }
            let bytes = u64::from(snapshot.l1_entries).saturating_mul(8);
            if !self.header.layout.aligned(snapshot.l1_offset) || bytes > MAX_L1_BYTES {
                report.corrupt(1, || {
                    format!("the L1 table of snapshot '{}' cannot be right", name())
                });
                report.references_lost = true;
                continue;
            }
            tables.push((snapshot.l1_offset, snapshot.l1_entries));
        }
        tables.retain(|(_, entries)| *entries > 0);
        tables.sort_unstable();
        for (offset, entries) in tables {
            match self.l1.last_mut() {
                Some(last) if !last.active && last.offset == offset && last.entries == entries => {
                    last.times = last.times.saturating_add(1);
                }
                _ => self.l1.push(L1Table {
                    offset,
                    entries,
                    active: false,
                    times: 1,
                }),
            }
        }
        Ok(())
    }

    fn read_l1_tables(&mut self, report: &mut Report) -> Result<()> {
        let total: u64 = self
            .l1
            .iter()
            .map(|t| u64::from(t.entries).saturating_mul(8))
            .sum();
        if total > MAX_L1_TOTAL {
            return Err(too_large("the L1 tables of all snapshots"));
        }
        let mut l2 = Vec::new();
        let mut compact_at = 1 << 16;
        for table in &self.l1 {
            self.walk_l1(table, |index, entry| {
                if entry & L1_RESERVED != 0 {
                    report.corrupt(table.times, || {
                        format!("L1 entry {index} of the table at {} has reserved bits set: {entry:#x}", table.offset)
                    });
                }
                let offset = entry & OFFSET_MASK;
                if offset == 0 {
                    return Ok(());
                }
                if !self.header.layout.aligned(offset) {
                    report.corrupt(table.times, || {
                        format!("L1 entry {index} of the table at {}: the L2 table at {offset} is not aligned", table.offset)
                    });
                    report.references_lost = true;
                    return Ok(());
                }
                if !self.inside(offset, self.header.layout.cluster_size()) {
                    report.corrupt(table.times, || {
                        format!("L1 entry {index} of the table at {}: the L2 table at {offset} is past the end of the file", table.offset)
                    });
                    report.references_lost = true;
                    return Ok(());
                }
                let times = u32::try_from(table.times).unwrap_or(u32::MAX);
                l2.push(L2Table {
                    offset,
                    active: if table.active { times } else { 0 },
                    total: times,
                });
                if l2.len() >= compact_at {
                    compact(&mut l2);
                    if l2.len() > MAX_L2_TABLES {
                        return Err(too_large("the L2 tables"));
                    }
                    compact_at = l2.len().saturating_mul(2).max(1 << 16);
                }
                Ok(())
            })?;
        }
        compact(&mut l2);
        self.l2 = l2;
        Ok(())
    }

    /// Calls `visit` with each entry of an L1 table that is not 0, and its index. What lies past
    /// the end of the file is 0.
    ///
    /// # Errors
    /// What reading or `visit` reports.
    pub fn walk_l1(
        &self,
        table: &L1Table,
        mut visit: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        walk_table(
            self.file,
            table.offset,
            u64::from(table.entries),
            &mut visit,
        )
    }
}

/// Calls `visit` with each entry of a table of 8-byte entries that is not 0, and its index.
///
/// # Errors
/// What reading or `visit` reports.
pub fn walk_table(
    file: &BlockDevice,
    offset: u64,
    entries: u64,
    visit: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let mut piece = vec![0; to_usize(PIECE.min(entries.saturating_mul(8))).unwrap_or(0)];
    let mut done = 0_u64;
    while done < entries {
        let at = offset.saturating_add(done.saturating_mul(8));
        let len = to_usize(entries.saturating_sub(done).saturating_mul(8).min(PIECE)).unwrap_or(0);
        let read = file.read_some_at(at, piece.get_mut(..len).unwrap_or_default())?;
        for (n, entry) in piece
            .get(..read)
            .unwrap_or_default()
            .chunks_exact(8)
            .enumerate()
        {
            match be64(entry, 0) {
                None | Some(0) => {}
                Some(entry) => visit(done.saturating_add(to_u64(n)), entry)?,
            }
        }
        if read < len {
            break;
        }
        done = done.saturating_add(PIECE / 8);
    }
    Ok(())
}

/// Sorts, and joins entries of the same table.
fn compact(tables: &mut Vec<L2Table>) {
    tables.sort_unstable_by_key(|t| t.offset);
    tables.dedup_by(|later, kept| {
        let same = later.offset == kept.offset;
        if same {
            kept.active = kept.active.saturating_add(later.active);
            kept.total = kept.total.saturating_add(later.total);
        }
        same
    });
}

fn too_large(what: &str) -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        format!("{what} are larger than any image this program can check"),
    )
}
