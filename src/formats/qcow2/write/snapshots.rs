//! Snapshots: taking, applying, deleting.
//!
//! What a snapshot keeps is a tree of its own: a copy of the L1 table that shares everything below
//! it with the disk. Tables and clusters of a snapshot are never written in place.
//!
//! In every operation, the image is marked as dirty (version 3) before refcounts of what is in use and
//! the COPIED flags that depend on them begin to change, and the mark is removed at the end. So after a crash the next
//! one to write rebuilds refcounts and flags from the tables, which are always those of before or
//! those of after: what decides is one write to the header. Without the mark (version 2) a crash
//! leaves leaks, and flags that are not set where they could be, which costs a copy.
//!
//! The space for new tables is taken and written before the mark and before anything else changes.
//! So where the host or the image has no room for them, the image is what it was, but perhaps for
//! leaks, as after a crash there. An error after that leaves the mark.
//!
//! Taking a snapshot:
//!
//! 1. write a copy of the L1 table and the longer snapshot table to new clusters; flush them and
//!    their counts; mark as dirty;
//! 2. clear the COPIED flags of the disk's tables; flush;
//! 3. count everything the disk uses once more; flush;
//! 4. point the header to the new snapshot table; flush. This is the moment;
//! 5. give the old snapshot table back; flush; remove the mark.
//!
//! Applying one:
//!
//! 1. write a copy of the snapshot's L1 table to new clusters; flush; mark as dirty;
//! 2. count everything the snapshot uses once more. L2 tables in which COPIED flags are set (as they
//!    may be in a snapshot, where they mean nothing) are copied, without them, and the copy of the
//!    L1 table is written again; flush;
//! 3. point the header to the new L1 table, with its size and that of the disk; flush. This is the
//!    moment;
//! 4. count everything the disk used once less, and give its old L1 table back; flush;
//! 5. correct the COPIED flags; flush; remove the mark.
//!
//! Deleting one:
//!
//! 1. write the shorter snapshot table to new clusters; flush;
//! 2. mark as dirty;
//! 3. point the header to it; flush. This is the moment;
//! 4. count everything the snapshot used once less, give its L1 table and the old snapshot table
//!    back; flush;
//! 5. set the COPIED flags of what only the disk uses now; flush; remove the mark.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Snapshots".

use std::time::{SystemTime, UNIX_EPOCH};

use super::state::{COMPRESSED, COPIED};
use super::{Exclusive, Writer};
use crate::block::{BlockError, Result as BlockResult};
use crate::formats::api::SnapshotInfo;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::formats::qcow2::header::check_l1;
use crate::formats::qcow2::header_fields::HeaderField;
use crate::formats::qcow2::layout::OFFSET_MASK;
use crate::formats::qcow2::snapshot::{self, Snapshot};
use crate::ondisk::bytes::be64;
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize};

/// Most snapshots, as in QEMU.
const MAX_SNAPSHOTS: usize = 65536;
/// Largest snapshot table in bytes, as in QEMU.
const MAX_TABLE_BYTES: usize = 64 << 20;
/// Longest name in bytes that QEMU shows whole.
const MAX_NAME: usize = 255;
/// Where version 3 headers keep the incompatible feature bits, and the one that says that refcounts
/// may be wrong.
const INCOMPATIBLE_AT: u64 = 72;
const DIRTY: u64 = 1;

impl Writer {
    /// Takes a snapshot.
    pub(super) fn take_snapshot(&self, name: &[u8]) -> Result<SnapshotInfo> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
            return Err(unsupported(format!(
                "the name of a snapshot has 1 to {MAX_NAME} bytes, none of them 0"
            )));
        }
        self.exclusively(|image| image.take_snapshot(name))?
    }

    /// Makes the disk what it was in a snapshot.
    pub(super) fn restore_snapshot(&self, index: usize) -> Result<()> {
        self.exclusively(|image| image.restore_snapshot(index))?
    }

    /// Deletes a snapshot.
    pub(super) fn drop_snapshot(&self, index: usize) -> Result<()> {
        self.exclusively(|image| image.drop_snapshot(index))?
    }
}

/// What cannot be done, seen before anything was changed.
type Refused<T> = BlockResult<Result<T>>;

impl Exclusive<'_> {
    fn take_snapshot(&mut self, name: &[u8]) -> Refused<SnapshotInfo> {
        let header = self.header().clone();
        if self.layout().external_data {
            return Ok(Err(unsupported(
                "an image with an external data file has no snapshots",
            )));
        }
        let snapshots = self.snapshots()?;
        if snapshots.len() >= MAX_SNAPSHOTS {
            return Ok(Err(unsupported("there are too many snapshots")));
        }
        let mut entries = self.entries(&snapshots)?;
        let l1 = self.read_l1(header.l1_offset, header.l1_entries)?;
        // 1.
        let plain: Vec<u64> = l1.iter().map(|e| e & !COPIED).collect();
        let info = new_info(&snapshots, name, header.size);
        let (l1_offset, table, old) = self.secured(|image| {
            let offset = image.write_l1(&plain)?;
            entries.push(encode(&info, name, offset, header.l1_entries));
            let (table, old) = image.write_table(&snapshots, &entries)?;
            Ok((offset, table, old))
        })?;
        self.mark(true)?;
        // In memory only, to see whether that is possible.
        if !self.raise_tree(&l1)? {
            self.release(self.l1_clusters(l1_offset, header.l1_entries))?;
            self.release(self.table_clusters(&table, &entries))?;
            self.flush()?;
            self.mark(false)?;
            return Ok(Err(unsupported(format!(
                "no further snapshot: the refcounts of the image have {} bits, and some are as high as that allows",
                1_u32.wrapping_shl(header.refcount_order)
            ))));
        }
        // 2.
        self.clear_flags()?;
        self.file().flush()?;
        // 3.
        self.flush()?;
        // 4.
        self.set_header(&table)?;
        // 5.
        self.release(old)?;
        self.flush()?;
        self.mark(false)?;
        Ok(Ok(info))
    }

    fn restore_snapshot(&mut self, index: usize) -> Refused<()> {
        let header = self.header().clone();
        let snapshots = self.snapshots()?;
        let Some(snapshot) = snapshots.get(index) else {
            return Ok(Err(no_snapshot(index)));
        };
        if let Err(e) = self.check(snapshot) {
            return Ok(Err(e));
        }
        let old_l1 = self.read_l1(header.l1_offset, header.l1_entries)?;
        let mut l1 = self.read_l1(snapshot.l1_offset, snapshot.l1_entries)?;
        let used = l1.clone();
        for entry in &mut l1 {
            *entry &= !COPIED;
        }
        // The disk is as large as it was then, and the table no shorter than that of an open device.
        l1.resize(l1.len().max(old_l1.len()), 0);
        let l1_entries = u32::try_from(l1.len()).unwrap_or(u32::MAX);
        // 1.
        let offset = self.secured(|image| image.write_l1(&l1))?;
        self.mark(true)?;
        // 2.
        if !self.raise_tree(&used)? {
            self.release(self.l1_clusters(offset, l1_entries))?;
            self.flush()?;
            self.mark(false)?;
            return Ok(Err(unsupported(
                "the snapshot's clusters are used as often as their refcounts can count",
            )));
        }
        let mut copied = false;
        for entry in &mut l1 {
            if *entry & OFFSET_MASK != 0
                && let Some(copy) = self.copy_without_flags(*entry)?
            {
                *entry = copy | COPIED;
                copied = true;
            }
        }
        if copied {
            let bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
            self.file().write_all_at(offset, &bytes)?;
        }
        self.flush()?;
        // 3.
        self.set_header(&[
            HeaderField::Size(snapshot.info.virtual_size),
            HeaderField::L1Entries(l1_entries),
            HeaderField::L1Offset(offset),
        ])?;
        // 4.
        self.release_tree(&old_l1)?;
        self.release(self.l1_clusters(header.l1_offset, header.l1_entries))?;
        self.flush()?;
        // 5.
        self.correct_flags()?;
        self.flush()?;
        self.mark(false)?;
        Ok(Ok(()))
    }

    fn drop_snapshot(&mut self, index: usize) -> Refused<()> {
        let snapshots = self.snapshots()?;
        let Some(snapshot) = snapshots.get(index) else {
            return Ok(Err(no_snapshot(index)));
        };
        if let Err(e) = self.check(snapshot) {
            return Ok(Err(e));
        }
        let l1 = self.read_l1(snapshot.l1_offset, snapshot.l1_entries)?;
        let mut entries = self.entries(&snapshots)?;
        entries.remove(index);
        // 1.
        let (table, old) = self.secured(|image| image.write_table(&snapshots, &entries))?;
        // 2.
        self.mark(true)?;
        // 3.
        self.set_header(&table)?;
        // 4.
        self.release_tree(&l1)?;
        self.release(self.l1_clusters(snapshot.l1_offset, snapshot.l1_entries))?;
        self.release(old)?;
        self.flush()?;
        // 5.
        self.correct_flags()?;
        self.flush()?;
        self.mark(false)?;
        Ok(Ok(()))
    }

    /// Says in the header that refcounts may be wrong, or that they are not. Version 2 cannot.
    fn mark(&mut self, dirty: bool) -> BlockResult<()> {
        if self.layout().version < 3 {
            return Ok(());
        }
        let mut bits = [0; 8];
        self.file().read_exact_at(INCOMPATIBLE_AT, &mut bits)?;
        let bits = u64::from_be_bytes(bits);
        let bits = if dirty { bits | DIRTY } else { bits & !DIRTY };
        self.set_header(&[HeaderField::Incompatible(bits)])
    }

    /// Runs `write`, which only writes to new clusters, and makes that durable with the counts. After
    /// an error nothing in the file refers to any of it.
    fn secured<T>(&mut self, write: impl FnOnce(&mut Self) -> BlockResult<T>) -> BlockResult<T> {
        let done = write(self)?;
        self.flush()?;
        Ok(done)
    }

    fn snapshots(&self) -> BlockResult<Vec<Snapshot>> {
        snapshot::read_table(self.file(), self.header())
            .map_err(|e| BlockError::damaged(format!("the snapshot table: {e}")))
    }

    /// That the L1 table of a snapshot can be one.
    fn check(&self, snapshot: &Snapshot) -> Result<()> {
        check_l1(
            self.layout(),
            snapshot.info.virtual_size,
            snapshot.l1_offset,
            snapshot.l1_entries,
            self.file().len(),
        )
        .map_err(|e| e.within(format!("snapshot '{}' is damaged", snapshot.info.name)))
    }

    /// The entries of the snapshot table as they are.
    fn entries(&self, snapshots: &[Snapshot]) -> BlockResult<Vec<Vec<u8>>> {
        snapshots
            .iter()
            .map(|s| {
                let len = to_usize(s.entry_len).unwrap_or(usize::MAX);
                // The file may end where the last entry does.
                let there = self.file().len().saturating_sub(s.entry_offset);
                let there = to_usize(there).unwrap_or(usize::MAX).min(len);
                let mut entry = self.file().read_vec(s.entry_offset, there)?;
                entry.resize(len, 0);
                Ok(entry)
            })
            .collect()
    }

    /// Writes an L1 table to new clusters.
    fn write_l1(&mut self, l1: &[u64]) -> BlockResult<u64> {
        let bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.write_new(bytes)
    }

    /// Writes bytes to new clusters, the last filled up with zeroes; 0 if there are none.
    pub(super) fn write_new(&mut self, mut bytes: Vec<u8>) -> BlockResult<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let cluster_size = self.layout().cluster_size();
        let clusters = to_u64(bytes.len()).div_ceil(cluster_size);
        let whole = clusters.saturating_mul(cluster_size);
        bytes.resize(to_usize(whole).unwrap_or(bytes.len()), 0);
        let offset = self.allocate(clusters)?;
        self.file().write_all_at(offset, &bytes)?;
        Ok(offset)
    }

    /// Writes a snapshot table to new clusters. Returns the header fields that lead to it, and the
    /// clusters of the old one.
    fn write_table(
        &mut self,
        old: &[Snapshot],
        entries: &[Vec<u8>],
    ) -> BlockResult<(Vec<HeaderField>, std::ops::Range<u64>)> {
        let bytes: Vec<u8> = entries.concat();
        if bytes.len() > MAX_TABLE_BYTES {
            return Err(BlockError::damaged("the snapshot table is too large"));
        }
        let old_len = snapshot::table_len(self.header(), old);
        let old = self.clusters(self.header().snapshots_offset, old_len);
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let offset = self.write_new(bytes)?;
        let fields = vec![
            HeaderField::SnapshotCount(count),
            HeaderField::SnapshotsOffset(offset),
        ];
        Ok((fields, if old_len == 0 { 0..0 } else { old }))
    }

    /// The clusters of a snapshot table that [`Self::write_table`] wrote.
    fn table_clusters(&self, fields: &[HeaderField], entries: &[Vec<u8>]) -> std::ops::Range<u64> {
        let len = entries.iter().map(|e| to_u64(e.len())).sum();
        let offset = fields.iter().find_map(|field| match field {
            HeaderField::SnapshotsOffset(offset) => Some(*offset),
            _ => None,
        });
        offset.map_or(0..0, |offset| self.clusters(offset, len))
    }

    /// A copy of an L2 table of a snapshot without COPIED flags, with a use of its own instead of one
    /// of the original; `None` if it has no such flags.
    fn copy_without_flags(&mut self, entry: u64) -> BlockResult<Option<u64>> {
        let offset = entry & OFFSET_MASK;
        let len = to_usize(self.layout().cluster_size()).unwrap_or(0);
        let mut table = self.file().read_vec(offset, len)?;
        let width = 1_usize.wrapping_shl(self.layout().l2_entry_bits());
        let mut changed = false;
        for bytes in table.chunks_exact_mut(width) {
            let word = be64(bytes, 0).unwrap_or(0);
            if word & COPIED != 0 && word & COMPRESSED == 0 {
                changed = true;
                if let Some(to) = bytes.get_mut(..8) {
                    to.copy_from_slice(&(word & !COPIED).to_be_bytes());
                }
            }
        }
        if !changed {
            return Ok(None);
        }
        let copy = self.write_new(table)?;
        let original = self.clusters(offset, 1);
        self.release(original)?;
        Ok(Some(copy))
    }
}

/// The next snapshot: its id is the highest number so far plus one, as QEMU counts.
fn new_info(snapshots: &[Snapshot], name: &[u8], size: u64) -> SnapshotInfo {
    let highest = snapshots
        .iter()
        .filter_map(|s| s.info.id.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    SnapshotInfo {
        id: highest.saturating_add(1).to_string(),
        name: printable(name),
        date_sec: now.as_secs() & u64::from(u32::MAX),
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: 0,
        icount: None,
        vm_state_size: 0,
        virtual_size: size,
    }
}

/// An entry of the snapshot table, with the extra data QEMU writes.
fn encode(info: &SnapshotInfo, name: &[u8], l1_offset: u64, l1_entries: u32) -> Vec<u8> {
    let id = info.id.as_bytes();
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut entry = Vec::new();
    entry.extend_from_slice(&l1_offset.to_be_bytes());
    entry.extend_from_slice(&l1_entries.to_be_bytes());
    entry.extend_from_slice(&len(id));
    entry.extend_from_slice(&len(name));
    let seconds = u32::try_from(info.date_sec).unwrap_or(u32::MAX);
    entry.extend_from_slice(&seconds.to_be_bytes());
    entry.extend_from_slice(&info.date_nsec.to_be_bytes());
    entry.extend_from_slice(&info.vm_clock_nsec.to_be_bytes());
    // Bytes of VM state, then of extra data: VM state again, disk size, instructions executed (not
    // counted).
    entry.extend_from_slice(&0_u32.to_be_bytes());
    entry.extend_from_slice(&24_u32.to_be_bytes());
    entry.extend_from_slice(&0_u64.to_be_bytes());
    entry.extend_from_slice(&info.virtual_size.to_be_bytes());
    entry.extend_from_slice(&u64::MAX.to_be_bytes());
    entry.extend_from_slice(id);
    entry.extend_from_slice(name);
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

fn unsupported(what: impl Into<String>) -> FormatError {
    FormatError::new(FormatErrorKind::Unsupported, what)
}

fn no_snapshot(index: usize) -> FormatError {
    FormatError::new(
        FormatErrorKind::NoSnapshot,
        format!("there is no snapshot {index}"),
    )
}
