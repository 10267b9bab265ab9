//! GUID partition table.
//!
//! The header at LBA 1 and its entry array carry a CRC-32 each; a second copy lies at the end of
//! the disk. The first sound copy is used, the primary one being asked first, and a damaged one is
//! reported, the backup too. Follows the UEFI specification 2.10, section 5.3.

use super::api::{Partition, Table, TableKind};
use crate::block::BlockDevice;
use crate::limits;
use crate::ondisk::bytes::{array, le32, le64, slice};
use crate::ondisk::checksum::crc32;
use crate::ondisk::text::utf16le;
use crate::ondisk::units::{to_u64, to_usize};
use crate::ondisk::uuid::{Uuid, from_guid};

/// `EFI PART`, at the start of both headers (UEFI 2.10, table 5-5).
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Bytes of the header that are defined (UEFI 2.10, table 5-5); `HeaderSize` is at least this.
const HEADER_LEN: usize = 92;

/// Largest entry array that is read: 8192 entries of the usual 128 bytes. The usual array has 128
/// entries; a table beyond this bound is taken for damaged.
const MAX_ARRAY_BYTES: u64 = 1 << 20;

/// Attribute bit 2: legacy BIOS bootable (UEFI 2.10, table 5-8).
const ATTRIBUTE_BOOTABLE: u64 = 1 << 2;

/// A header whose own checksum is right. Numbers are in sectors unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    my_lba: u64,
    alternate_lba: u64,
    disk: Uuid,
    array_lba: u64,
    entry_count: u32,
    entry_len: u32,
    array_crc: u32,
}

/// Whether a sector starts with the signature of a header, sound or not.
pub(super) fn has_signature(sector: &[u8]) -> bool {
    sector.starts_with(SIGNATURE)
}

impl Header {
    /// Reads a header from the sector it lies in; the error says what is wrong with it.
    pub(super) fn parse(sector: &[u8], lba: u64) -> Result<Self, &'static str> {
        const SHORT: &str = "the header is cut off";
        if !has_signature(sector) {
            return Err("there is no header");
        }
        let header_len = le32(sector, 12).and_then(|n| usize::try_from(n).ok());
        let covered = header_len
            .filter(|&n| n >= HEADER_LEN)
            .and_then(|n| slice(sector, 0, n))
            .ok_or("the header's size is out of range")?;
        // The checksum is made with its own field zeroed.
        let mut zeroed = covered.to_vec();
        zeroed.get_mut(16..20).ok_or(SHORT)?.fill(0);
        if le32(sector, 16) != Some(crc32(&zeroed)) {
            return Err("the header's checksum is wrong");
        }
        let header = (|| {
            Some(Self {
                my_lba: le64(sector, 24)?,
                alternate_lba: le64(sector, 32)?,
                disk: from_guid(array(sector, 56)?),
                array_lba: le64(sector, 72)?,
                entry_count: le32(sector, 80)?,
                entry_len: le32(sector, 84)?,
                array_crc: le32(sector, 88)?,
            })
        })()
        .ok_or(SHORT)?;
        if header.my_lba != lba {
            return Err("the header names another place than it lies in");
        }
        // 128 times a power of two (UEFI 2.10, table 5-5).
        if header.entry_len < 128 || !header.entry_len.is_power_of_two() {
            return Err("the size of its entries is out of range");
        }
        if header.array_len() > MAX_ARRAY_BYTES {
            return Err("its entry array is larger than any real one");
        }
        Ok(header)
    }

    /// Where the other copy lies, in sectors.
    pub(super) fn alternate_lba(&self) -> u64 {
        self.alternate_lba
    }

    /// Bytes of the entry array.
    fn array_len(&self) -> u64 {
        u64::from(self.entry_count).saturating_mul(u64::from(self.entry_len))
    }

    /// Reads the entry array and checks it; the error says what is wrong.
    fn read_array(&self, disk: &BlockDevice, sector_size: u32) -> Result<Vec<u8>, String> {
        let at = self
            .array_lba
            .checked_mul(u64::from(sector_size))
            .ok_or("its entry array lies outside the disk")?;
        let len = to_usize(self.array_len()).ok_or("its entry array is too large")?;
        let bytes = disk
            .read_vec(at, len)
            .map_err(|e| format!("its entry array cannot be read: {e}"))?;
        if crc32(&bytes) != self.array_crc {
            return Err("the checksum of its entry array is wrong".into());
        }
        Ok(bytes)
    }

    /// The table this header describes. `problems` receives what is odd about single entries.
    fn table(&self, array: &[u8], sector_size: u32, problems: &mut Vec<String>) -> Table {
        let mut partitions = Vec::new();
        let entry_len = usize::try_from(self.entry_len).unwrap_or(128);
        // Bounded by MAX_ARRAY_BYTES.
        for (number, entry) in (1u32..).zip(array.chunks_exact(entry_len)) {
            let Some(entry) = Entry::parse(entry) else {
                continue;
            };
            if partitions.len() >= limits::MAX_PARTITIONS {
                problems.push(format!(
                    "more than {} partitions; the rest is not shown",
                    limits::MAX_PARTITIONS
                ));
                break;
            }
            match entry.partition(number, sector_size) {
                Some(partition) => partitions.push(partition),
                None => problems.push(format!(
                    "partition {number} ends before it starts; it is left out"
                )),
            }
        }
        Table {
            kind: TableKind::Gpt,
            id: self.disk.to_string(),
            sector_size,
            partitions,
        }
    }
}

/// One used entry of the array.
struct Entry {
    type_id: Uuid,
    unique: Uuid,
    first: u64,
    last: u64,
    attributes: u64,
    name: String,
}

impl Entry {
    /// An entry of at least 128 bytes; `None` if it is not in use.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let type_id = from_guid(array(bytes, 0)?);
        if type_id.is_nil() {
            return None;
        }
        Some(Self {
            type_id,
            unique: from_guid(array(bytes, 16)?),
            first: le64(bytes, 32)?,
            last: le64(bytes, 40)?,
            attributes: le64(bytes, 48)?,
            name: utf16le(slice(bytes, 56, 72)?),
        })
    }

    /// The partition in bytes; `None` if its end lies before its start or past 64 bits.
    fn partition(self, number: u32, sector_size: u32) -> Option<Partition> {
        let sector = u64::from(sector_size);
        let start = self.first.checked_mul(sector)?;
        let end = self.last.checked_add(1)?.checked_mul(sector)?;
        Some(Partition {
            number,
            start,
            len: end.checked_sub(start).filter(|&len| len > 0)?,
            type_id: self.type_id.to_string(),
            partuuid: self.unique.to_string(),
            label: self.name,
            bootable: self.attributes & ATTRIBUTE_BOOTABLE != 0,
            extended: false,
        })
    }
}

/// One sector at `lba`, if it lies on the disk.
fn read_sector(disk: &BlockDevice, lba: u64, sector_size: u32) -> Option<Vec<u8>> {
    let at = lba.checked_mul(u64::from(sector_size))?;
    disk.read_vec(at, usize::try_from(sector_size).ok()?).ok()
}

/// The table of one copy, or what is wrong with that copy.
fn read_copy(
    disk: &BlockDevice,
    lba: u64,
    sector_size: u32,
    problems: &mut Vec<String>,
) -> Result<(Header, Table), (Option<Header>, String)> {
    let sector = read_sector(disk, lba, sector_size)
        .ok_or((None, "the header lies outside the disk".to_owned()))?;
    let header = Header::parse(&sector, lba).map_err(|e| (None, e.to_owned()))?;
    match header.read_array(disk, sector_size) {
        Ok(array) => {
            let table = header.table(&array, sector_size, problems);
            Ok((header, table))
        }
        Err(e) => Err((Some(header), e)),
    }
}

/// What is wrong with the backup of a sound primary copy: its header and the checksum of its
/// array.
fn check_backup(disk: &BlockDevice, primary: &Header, sector_size: u32) -> Result<(), String> {
    let lba = primary.alternate_lba();
    let sector =
        read_sector(disk, lba, sector_size).ok_or("the header lies outside the disk".to_owned())?;
    let backup = Header::parse(&sector, lba)?;
    backup.read_array(disk, sector_size)?;
    if (backup.disk, backup.array_crc) != (primary.disk, primary.array_crc) {
        return Err("it describes other partitions".into());
    }
    Ok(())
}

/// What a look for a GPT brought.
pub(super) enum Found {
    /// No trace of one.
    Nothing,
    /// A usable table.
    Table(Table),
    /// There is one, but no copy of it is sound.
    Ruined,
}

/// Looks for a GPT in sectors of each of `sector_sizes` (bytes, the first one asked first).
///
/// `protective` is the last sector the protective MBR covers, if there is such an MBR. Without
/// one, a backup copy at the end of the disk is taken for the rest of an earlier table.
pub(super) fn find(
    disk: &BlockDevice,
    sector_sizes: &[u32],
    protective: Option<u64>,
    problems: &mut Vec<String>,
) -> Found {
    let mut damage = None;
    let mut alternates = Vec::new();
    for &sector_size in sector_sizes {
        match read_copy(disk, 1, sector_size, problems) {
            Ok((header, table)) => {
                if let Err(why) = check_backup(disk, &header, sector_size) {
                    problems.push(format!(
                        "the backup GPT is damaged ({why}); the primary is used"
                    ));
                }
                return Found::Table(table);
            }
            Err((header, why)) => {
                let Some(sector) = read_sector(disk, 1, sector_size) else {
                    continue;
                };
                if has_signature(&sector) {
                    damage.get_or_insert(why);
                    alternates.extend(header.map(|h| (sector_size, h.alternate_lba())));
                }
            }
        }
    }
    if protective.is_none() && damage.is_none() {
        return Found::Nothing;
    }
    for &sector_size in sector_sizes {
        let last = disk
            .len()
            .checked_div(u64::from(sector_size))
            .and_then(|count| count.checked_sub(1));
        // The disk may have grown since; the primary header and the protective MBR remember.
        alternates.extend(last.map(|lba| (sector_size, lba)));
        alternates.extend(protective.map(|lba| (sector_size, lba)));
    }
    // At most three places per sector size.
    for (sector_size, lba) in alternates.into_iter().filter(|&(_, lba)| lba > 1) {
        if let Ok((_, table)) = read_copy(disk, lba, sector_size, problems) {
            let why = damage.unwrap_or_else(|| "there is no header".into());
            problems.push(format!(
                "the primary GPT is damaged ({why}); its backup is used"
            ));
            return Found::Table(table);
        }
    }
    match damage {
        None => Found::Nothing,
        Some(why) => {
            problems.push(format!(
                "the GPT is damaged ({why}) and there is no sound backup of it"
            ));
            Found::Ruined
        }
    }
}

const _: () = assert!(MAX_ARRAY_BYTES < u32::MAX as u64);
const _: () = assert!(to_u64(HEADER_LEN) < 512);
