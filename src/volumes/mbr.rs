//! DOS partition table (master boot record), with logical partitions.
//!
//! Four primary entries in the first sector; one of them may be an extended partition, which holds
//! a chain of extended boot records (EBRs): each describes one logical partition, relative to
//! itself, and the next EBR, relative to the extended partition. Read as Linux does
//! (`block/partitions/msdos.c`), so that numbers agree with the guest's own.

use std::collections::HashSet;

use super::api::{Partition, Table, TableKind};
use crate::block::BlockDevice;
use crate::limits;
use crate::ondisk::bytes::{array, le16, le32, slice};

/// Bytes of a boot record that are read, whatever the sector size.
pub(super) const RECORD_LEN: usize = 512;

/// First entry within a boot record.
const ENTRIES_AT: usize = 446;

/// Bytes of one entry.
const ENTRY_LEN: usize = 16;

/// Type of the protective entry in front of a GPT.
const TYPE_PROTECTIVE: u8 = 0xEE;

/// One used entry; numbers are in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    active: bool,
    type_id: u8,
    start: u32,
    count: u32,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [active, ..] = array::<16>(bytes, 0)?;
        let [type_id] = array(bytes, 4)?;
        let entry = Self {
            active: active & 0x80 != 0,
            type_id,
            start: le32(bytes, 8)?,
            count: le32(bytes, 12)?,
        };
        (entry.count > 0).then_some(entry)
    }

    fn is_extended(self) -> bool {
        // DOS, Windows (LBA) and Linux extended.
        matches!(self.type_id, 0x05 | 0x0F | 0x85)
    }
}

/// A boot record: four entries, used or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BootRecord {
    disk_id: u32,
    entries: [Option<Entry>; 4],
}

impl BootRecord {
    /// `None` if the sector is no boot record, or one of a filesystem.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        let record = slice(sector, 0, RECORD_LEN)?;
        if array(record, 510) != Some([0x55, 0xAA]) {
            return None;
        }
        let table = slice(record, ENTRIES_AT, 4usize.checked_mul(ENTRY_LEN)?)?;
        let mut entries = [None; 4];
        for (entry, bytes) in entries.iter_mut().zip(table.chunks_exact(ENTRY_LEN)) {
            // Anything else here is boot code or text.
            if !matches!(bytes.first(), Some(0 | 0x80)) {
                return None;
            }
            *entry = Entry::parse(bytes);
        }
        Some(Self {
            disk_id: le32(record, 440)?,
            entries,
        })
    }

    /// Whether nothing is described.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().flatten().all(|e| e.type_id == 0)
    }

    /// Last sector of the protective entry, if there is one (also beside others: a hybrid MBR).
    pub(super) fn protective_end(&self) -> Option<u64> {
        let entry = self
            .entries
            .iter()
            .flatten()
            .find(|e| e.type_id == TYPE_PROTECTIVE)?;
        u64::from(entry.start)
            .checked_add(u64::from(entry.count))?
            .checked_sub(1)
    }
}

/// Whether a sector is the boot sector of a filesystem, which may look like an MBR: its boot code
/// lies where the entries would.
pub(super) fn is_filesystem_boot_sector(sector: &[u8]) -> bool {
    let name_at = |at, name: &[u8]| slice(sector, at, name.len()) == Some(name);
    if name_at(3, b"NTFS    ") || name_at(3, b"EXFAT   ") || name_at(3, b"-FVE-FS-") {
        return true;
    }
    if !name_at(54, b"FAT") && !name_at(82, b"FAT32") {
        return false;
    }
    // The BIOS parameter block must be that of a FAT as well: boot loaders keep old ones in front
    // of a real table, but then rarely whole.
    let sound = || {
        let [jump] = array(sector, 0)?;
        let bytes_per_sector = le16(sector, 11)?;
        let [sectors_per_cluster] = array(sector, 13)?;
        let reserved = le16(sector, 14)?;
        let [fats] = array(sector, 16)?;
        let [media] = array(sector, 21)?;
        let sectors = le16(sector, 19)? != 0 || le32(sector, 32)? != 0;
        Some(
            matches!(jump, 0xEB | 0xE9)
                && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
                && sectors_per_cluster.is_power_of_two()
                && reserved > 0
                && fats > 0
                && (media == 0xF0 || media >= 0xF8)
                && sectors,
        )
    };
    sound().unwrap_or(false)
}

/// The table that a boot record and its chain of EBRs describe, in sectors of `sector_size` bytes.
/// `problems` receives what is odd.
pub(super) fn read_table(
    disk: &BlockDevice,
    record: &BootRecord,
    sector_size: u32,
    problems: &mut Vec<String>,
) -> Table {
    let mut builder = Builder {
        disk_id: record.disk_id,
        sector: u64::from(sector_size),
        partitions: Vec::new(),
    };
    let mut extended = None;
    for (number, entry) in (1u32..).zip(&record.entries) {
        let Some(entry) = entry else { continue };
        builder.add(number, u64::from(entry.start), *entry);
        if entry.is_extended() {
            if extended.is_some() {
                problems.push(format!(
                    "partition {number} is a second extended one; its logical partitions are \
                     not shown"
                ));
            } else {
                extended = Some(*entry);
            }
        }
    }
    if let Some(extended) = extended {
        read_logical(disk, extended, &mut builder, problems);
    }
    Table {
        kind: TableKind::Mbr,
        id: format!("{:08x}", record.disk_id),
        sector_size,
        partitions: builder.partitions,
    }
}

/// Collects partitions, counting sectors into bytes.
struct Builder {
    disk_id: u32,
    sector: u64,
    partitions: Vec<Partition>,
}

impl Builder {
    fn add(&mut self, number: u32, start: u64, entry: Entry) {
        // 33 bits of sectors times at most 4096 bytes fit.
        self.partitions.push(Partition {
            number,
            start: start.saturating_mul(self.sector),
            len: u64::from(entry.count).saturating_mul(self.sector),
            type_id: format!("{:02x}", entry.type_id),
            // As udev: none where the disk has no signature.
            partuuid: if self.disk_id == 0 {
                String::new()
            } else {
                format!("{:08x}-{number:02x}", self.disk_id)
            },
            label: String::new(),
            bootable: entry.active,
            extended: entry.is_extended(),
        });
    }
}

/// Walks the chain of EBRs. Its length is bounded by the number of partitions shown, and no
/// record is visited twice.
fn read_logical(
    disk: &BlockDevice,
    extended: Entry,
    builder: &mut Builder,
    problems: &mut Vec<String>,
) {
    let base = u64::from(extended.start);
    let end = base.saturating_add(u64::from(extended.count));
    let mut at = base;
    let mut visited = HashSet::new();
    let mut number = 5u32;
    // Empty records are allowed in the chain, so records are counted as well as partitions.
    while visited.insert(at) {
        if visited.len() > limits::MAX_PARTITIONS
            || builder.partitions.len() >= limits::MAX_PARTITIONS
        {
            problems.push(format!(
                "the chain of logical partitions is longer than {}; the rest is not shown",
                limits::MAX_PARTITIONS
            ));
            return;
        }
        let record = at
            .checked_mul(builder.sector)
            .and_then(|offset| disk.read_vec(offset, RECORD_LEN).ok())
            .and_then(|sector| BootRecord::parse(&sector));
        let Some(record) = record else {
            problems.push(format!(
                "the record of logical partition {number} at sector {at} is damaged or outside \
                 the disk; it and those after it are not shown"
            ));
            return;
        };
        for (slot, entry) in record.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if entry.is_extended() {
                continue;
            }
            let start = at.saturating_add(u64::from(entry.start));
            let past = start.saturating_add(u64::from(entry.count)) > end || start < base;
            // Some old tools left rubbish in the last two entries (as Linux notes).
            if slot >= 2 && past {
                continue;
            }
            if past {
                problems.push(format!(
                    "logical partition {number} reaches out of its extended partition"
                ));
            }
            builder.add(number, start, *entry);
            number = number.saturating_add(1);
        }
        let Some(next) = record.entries.iter().flatten().find(|e| e.is_extended()) else {
            return;
        };
        at = base.saturating_add(u64::from(next.start));
    }
    problems.push(format!(
        "the chain of logical partitions comes back to sector {at}; it is cut there"
    ));
}
