//! What a raw disk holds, as far as firmware and tools act on its first sectors.

use super::report::Report;
use super::signature::Found;
use super::test;
use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::ondisk::bytes::{array, be16, le16, le32, slice};

const SECTOR: u64 = 2048;
/// Volume descriptors looked at; an image has two or three.
const MAX_DESCRIPTORS: u64 = 64;

/// Checks it.
///
/// # Errors
/// What reading reports.
pub fn check(file: &BlockDevice, found: &Found, report: &mut Report) -> Result<()> {
    let mut sector = [0; 512];
    file.read_some_at(0, &mut sector)?;
    if found.mbr {
        boot_record(&sector, report);
    }
    if found.iso {
        iso(file, report)?;
    }
    if found.luks {
        match be16(&sector, 6) {
            Some(1) => report.note(
                "luks",
                "LUKS version 1: what is encrypted cannot be looked at",
            ),
            version => report.fail(
                "luks",
                format!("LUKS version {}, only 1 is accepted", version.unwrap_or(0)),
            ),
        }
    }
    if !(found.mbr || found.iso || found.luks) {
        report.note("content", "neither a partition table nor anything known");
    }
    Ok(())
}

fn boot_record(sector: &[u8], report: &mut Report) {
    let mut used = 0_u32;
    let mut protective = false;
    let mut bad = Vec::new();
    for number in 0..4_usize {
        let at = number.saturating_mul(16).saturating_add(446);
        let Some(entry) = slice(sector, at, 16) else {
            return;
        };
        let flag = entry.first().copied().unwrap_or(0);
        let kind = entry.get(4).copied().unwrap_or(0);
        if !matches!(flag, 0 | 0x80) {
            bad.push(format!("entry {number} has the boot flag {flag:#04x}"));
        }
        if kind == 0 {
            continue;
        }
        used = used.saturating_add(1);
        if kind == 0xee {
            protective = true;
            if array(entry, 1) != Some([0, 2, 0]) || le32(entry, 8) != Some(1) {
                bad.push(format!(
                    "the protective entry {number} does not start at sector 1"
                ));
            }
        }
    }
    if protective && used > 1 {
        bad.push("there are other entries beside the protective one".into());
    }
    if used == 0 {
        bad.push("no partition is described".into());
    }
    test(
        report,
        "mbr",
        bad.is_empty(),
        "the boot record is as it should be",
        bad.join("; "),
    );
}

/// The size that the primary volume descriptor states must be there.
fn iso(file: &BlockDevice, report: &mut Report) -> Result<()> {
    for number in 0..MAX_DESCRIPTORS {
        let at = number.saturating_add(16).saturating_mul(SECTOR);
        let mut data = [0; 2048];
        if file.read_some_at(at, &mut data)? < data.len() {
            break;
        }
        let kind = data.first().copied().unwrap_or(255);
        if slice(&data, 1, 5) != Some(b"CD001") || kind == 255 {
            continue;
        }
        if kind == 1 {
            let blocks = u64::from(le32(&data, 80).unwrap_or(0));
            let size = blocks.saturating_mul(le16(&data, 128).unwrap_or(0).into());
            test(
                report,
                "iso",
                size > 0 && size <= file.len(),
                "the ISO 9660 volume lies inside the file",
                format!(
                    "an ISO 9660 volume of {size} bytes in a file of {}",
                    file.len()
                ),
            );
            return Ok(());
        }
    }
    report.note("iso", "there is no primary volume descriptor of ISO 9660");
    Ok(())
}
