//! VHD, VHDX and VDI.

use super::report::Report;
use super::{judged, test};
use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::formats::{vhd, vhdx};
use crate::ondisk::bytes::{is_zero, le32, le64, slice};

/// Checks a VHD.
///
/// # Errors
/// What reading reports.
pub fn check_vhd(file: &BlockDevice, report: &mut Report) -> Result<Option<u64>> {
    let Some(layout) = judged(vhd::read_layout(file), "structure", report)? else {
        return Ok(None);
    };
    structure(&layout.warnings, report);
    let parent = layout.footer.kind == vhd::footer::Kind::Differencing;
    no_parent(parent, report);
    if layout.footer.saved_state {
        report.note("saved-state", "a suspended machine was using the disk");
    }
    Ok(Some(layout.footer.size))
}

/// Checks a VHDX.
///
/// # Errors
/// What reading reports.
pub fn check_vhdx(file: &BlockDevice, report: &mut Report) -> Result<Option<u64>> {
    let Some(layout) = judged(vhdx::read_layout(file, false), "structure", report)? else {
        return Ok(None);
    };
    structure(&layout.warnings, report);
    no_parent(layout.metadata.parent.is_some(), report);
    Ok(Some(layout.metadata.size))
}

/// What an open would only warn about leaves something to chance.
fn structure(warnings: &[String], report: &mut Report) {
    if warnings.is_empty() {
        report.pass("structure", "the structures are sound and inside the file");
    }
    for warning in warnings {
        report.fail("structure", warning.clone());
    }
}

fn no_parent(parent: bool, report: &mut Report) {
    test(
        report,
        "backing-file",
        !parent,
        "there is no parent",
        "the image stands on a parent, which is another file",
    );
}

/// Checks a VDI.
///
/// # Errors
/// What reading reports.
pub fn check_vdi(file: &BlockDevice, report: &mut Report) -> Result<Option<u64>> {
    let mut head = [0; 512];
    file.read_some_at(0, &mut head)?;
    let u32_at = |at| u64::from(le32(&head, at).unwrap_or(0));
    let mut bad: Vec<String> = Vec::new();
    let mut must = |good: bool, what: String| {
        if !good {
            bad.push(what);
        }
    };
    let (version, kind) = (u32_at(0x44), u32_at(0x4c));
    must(version == 0x1_0001, format!("version {version:#x}"));
    let (map_at, data_at) = (u32_at(0x154), u32_at(0x158));
    let (sector, block) = (u32_at(0x168), u32_at(0x178));
    let (blocks, allocated) = (u32_at(0x180), u32_at(0x184));
    let size = le64(&head, 0x170).unwrap_or(0);
    must(sector == 512, format!("sectors of {sector} bytes"));
    must(block == 1 << 20, format!("blocks of {block} bytes"));
    must(blocks <= 0x3fff_ffff, format!("{blocks} blocks"));
    must(
        allocated <= blocks,
        format!("{allocated} of {blocks} blocks are allocated"),
    );
    must(
        size <= blocks.saturating_mul(block),
        format!("{blocks} blocks are too few for a disk of {size} bytes"),
    );
    let map_end = map_at.saturating_add(blocks.saturating_mul(4));
    must(
        map_at >= 512 && map_at.is_multiple_of(512) && map_end <= file.len().min(data_at),
        format!(
            "a block map at {map_at} to {map_end} of a file of {} bytes",
            file.len()
        ),
    );
    must(
        data_at.is_multiple_of(512),
        format!("blocks begin at {data_at}"),
    );
    let data_end = data_at.saturating_add(allocated.saturating_mul(block));
    must(
        data_end <= file.len(),
        format!("blocks end at {data_end}, the file at {}", file.len()),
    );
    must(matches!(kind, 1..=4), format!("unknown image type {kind}"));
    let parent = matches!(kind, 3 | 4) || !slice(&head, 0x1a8, 32).is_some_and(is_zero);
    test(
        report,
        "structure",
        bad.is_empty(),
        "the structures are sound and inside the file",
        bad.join("; "),
    );
    no_parent(parent, report);
    Ok(Some(size))
}
