//! Finding the partition table of a disk, whichever scheme it is.

use super::api::{FoundTable, Partition, Table, TableKind};
use super::error::Result;
use super::{gpt, mbr};
use crate::block::BlockDevice;

/// Sector sizes a table may be written in, in bytes, the most common first.
const SECTOR_SIZES: [u32; 4] = [512, 4096, 2048, 1024];

/// Finds the partition table of a disk, in sectors of `sector_size` bytes or, if that is not
/// stated, of whatever size shows a GPT and else of 512 bytes. `None`: the disk has no table, so it
/// is one volume as a whole.
///
/// # Errors
/// [`super::VolumeErrorKind::Io`] if the first sector cannot be read. A damaged table is no error:
/// what can be had of it is returned, with the problems.
pub fn find_table(disk: &BlockDevice, sector_size: Option<u32>) -> Result<Option<FoundTable>> {
    if disk.len() < 1024 {
        return Ok(None);
    }
    let sector = disk.read_vec(0, mbr::RECORD_LEN)?;
    let mut problems = Vec::new();
    let sizes: Vec<u32> = match sector_size {
        Some(size) => vec![size],
        None => SECTOR_SIZES.to_vec(),
    };
    let filesystem = mbr::is_filesystem_boot_sector(&sector);
    let record = mbr::BootRecord::parse(&sector).filter(|r| !r.is_empty() && !filesystem);
    let protective = record.as_ref().and_then(mbr::BootRecord::protective_end);
    // As in Linux, a GPT counts only behind a protective MBR: a real MBR or a filesystem was
    // written later than the GPT it did not wipe. A first sector that says nothing at all does not
    // speak against a GPT.
    let blank = record.is_none() && !filesystem && sector.get(510..512) != Some(&[0x55, 0xAA]);
    if protective.is_some() || blank {
        match gpt::find(disk, &sizes, protective, &mut problems) {
            gpt::Found::Table(table) => {
                if blank {
                    problems.push("there is no protective MBR in front of the GPT".into());
                }
                return Ok(Some(finish(disk, table, problems)));
            }
            gpt::Found::Ruined if protective.is_some() => {
                let table = Table {
                    kind: TableKind::Gpt,
                    id: String::new(),
                    sector_size: sizes.first().copied().unwrap_or(512),
                    partitions: Vec::new(),
                };
                return Ok(Some(finish(disk, table, problems)));
            }
            // Without a protective MBR, rubbish that starts like a header is no table.
            gpt::Found::Ruined | gpt::Found::Nothing => problems.clear(),
        }
    }
    let Some(record) = record else {
        return Ok(None);
    };
    if protective.is_some() {
        problems.push("the disk has a protective MBR but no GPT".into());
    }
    let size = sector_size.unwrap_or(512);
    let table = mbr::read_table(disk, &record, size, &mut problems);
    Ok(Some(finish(disk, table, problems)))
}

/// Reports what does not fit the disk or each other.
fn finish(disk: &BlockDevice, table: Table, mut problems: Vec<String>) -> FoundTable {
    for partition in &table.partitions {
        let number = partition.number;
        if partition.start >= disk.len() {
            problems.push(format!(
                "partition {number} starts at {}, past the disk's end at {}",
                partition.start,
                disk.len()
            ));
        } else if partition.start.saturating_add(partition.len) > disk.len() {
            problems.push(format!(
                "partition {number} reaches past the disk's end at {}; it is cut there",
                disk.len()
            ));
        }
    }
    // One that starts at 0 covers the table itself: a hybrid ISO image, where that is meant.
    let mut by_start: Vec<&Partition> = table
        .partitions
        .iter()
        .filter(|p| !p.extended && p.start > 0)
        .collect();
    by_start.sort_by_key(|p| (p.start, p.number));
    for pair in by_start.windows(2) {
        if let [a, b] = pair
            && a.start.saturating_add(a.len) > b.start
        {
            problems.push(format!(
                "partitions {} and {} overlap",
                a.number.min(b.number),
                a.number.max(b.number)
            ));
        }
    }
    FoundTable { table, problems }
}
