//! The snapshot table.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Snapshots".

use super::header::Header;
use crate::block::BlockDevice;
use crate::formats::api::SnapshotInfo;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{be16, be32, be64};
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, usize_from_u32};

/// Largest table in bytes, as in QEMU.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Longest ids and names of all snapshots together, in bytes. QEMU has no such limit, but nobody
/// reads that much, and here they all are in memory.
const MAX_NAMES_BYTES: usize = 8 << 20;
/// Most extra data of one entry in bytes, as in QEMU.
const MAX_EXTRA: usize = 1024;

/// One entry: what is shown of it, and where its L1 table is.
pub struct Snapshot {
    /// What is shown.
    pub info: SnapshotInfo,
    /// Host offset of its L1 table.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Host offset of the entry itself.
    pub entry_offset: u64,
    /// Bytes of the entry in the table.
    pub entry_len: u64,
    /// Bytes of extra data in the entry.
    pub extra_len: u64,
}

/// Bytes the table takes.
pub fn table_len(header: &Header, snapshots: &[Snapshot]) -> u64 {
    snapshots.last().map_or(0, |last| {
        last.entry_offset
            .saturating_add(last.entry_len)
            .saturating_sub(header.snapshots_offset)
    })
}

/// Reads the whole table.
///
/// # Errors
/// [`FormatErrorKind::Damaged`], or what reading reports.
pub fn read_table(file: &BlockDevice, header: &Header) -> Result<Vec<Snapshot>> {
    header.check_snapshots(file.len())?;
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    let mut names_left = MAX_NAMES_BYTES;
    let end = at.saturating_add(MAX_TABLE_BYTES);
    for number in 0..header.snapshot_count {
        let snapshot = read_entry(file, at, header.size)
            .map_err(|e| e.within(format!("entry {number} of the snapshot table at {at}")))?;
        let names = snapshot
            .info
            .id
            .len()
            .saturating_add(snapshot.info.name.len());
        names_left = names_left
            .checked_sub(names)
            .ok_or_else(|| damaged("the names of the snapshots take more than 8 MiB"))?;
        at = at.saturating_add(snapshot.entry_len);
        snapshots.push(snapshot);
        if at > end {
            return Err(damaged("the snapshot table is larger than 64 MiB"));
        }
    }
    Ok(snapshots)
}

fn damaged(what: &str) -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, what)
}

fn read_entry(file: &BlockDevice, at: u64, disk_size: u64) -> Result<Snapshot> {
    let cut_short = || damaged("the entry is cut short");
    let fixed = file.read_vec(at, 40)?;
    let u32_at = |offset| be32(&fixed, offset).ok_or_else(cut_short);
    let u16_at = |offset| be16(&fixed, offset).map(usize::from).ok_or_else(cut_short);
    let (id_len, name_len) = (u16_at(12)?, u16_at(14)?);
    let extra_len = usize_from_u32(u32_at(36)?);
    if extra_len > MAX_EXTRA {
        return Err(damaged("too much extra data"));
    }
    let rest_len = extra_len.saturating_add(id_len).saturating_add(name_len);
    let rest = file.read_vec(at.saturating_add(40), rest_len)?;
    let (extra, names) = rest.split_at_checked(extra_len).ok_or_else(cut_short)?;
    let (id, name) = names.split_at_checked(id_len).ok_or_else(cut_short)?;
    let info = SnapshotInfo {
        id: printable(id),
        name: printable(name),
        date_sec: u64::from(u32_at(16)?),
        date_nsec: u32_at(20)?,
        vm_clock_nsec: be64(&fixed, 24).ok_or_else(cut_short)?,
        icount: be64(extra, 16).filter(|&n| n != u64::MAX),
        vm_state_size: be64(extra, 0).map_or_else(|| u32_at(32).map(u64::from), Ok)?,
        // Version 2 images need not say: the size could not change between snapshots.
        virtual_size: be64(extra, 8).unwrap_or(disk_size),
    };
    Ok(Snapshot {
        info,
        l1_offset: be64(&fixed, 0).ok_or_else(cut_short)?,
        l1_entries: u32_at(8)?,
        entry_offset: at,
        entry_len: to_u64(rest_len.saturating_add(40)).next_multiple_of(8),
        extra_len: to_u64(extra_len),
    })
}
