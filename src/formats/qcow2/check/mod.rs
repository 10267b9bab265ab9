//! Consistency check and repair.
//!
//! | module | responsibility |
//! |---|---|
//! | [`report`] | what a check found |
//! | [`structures`] | where everything lies that refers to clusters |
//! | [`extensions`] | encryption header and bitmaps, as far as they use clusters |
//! | [`walk`] | visits every reference to a cluster, and finds entries that cannot be right |
//! | [`window`] | counts references to a part of the file |
//! | [`stored`] | the refcounts the image holds: compared with those counted, corrected in place |
//! | [`copied`] | COPIED flags of the active tables |
//! | [`rebuild`] | new refcount structures beside the old ones |
//!
//! The references are counted from the header, the L1 and L2 tables (of the disk and of all
//! snapshots), the snapshot table, the refcount structures, the encryption header and the bitmaps,
//! and compared with the refcounts the image holds. Findings are counted as `qemu-img check` counts
//! them.
//!
//! Bounds: counters exist for one [window](window::WINDOW_CLUSTERS) of the file at a time, and a file
//! of many windows is walked once for each. An L2 table that many L1 entries name is read once per
//! window and counted that often; tables that lie in holes of the file are not read. So the time is
//! bounded by the bytes the file really has, whatever its entries say.
//!
//! # Order of a repair
//!
//! Nothing is repaired before the whole image was checked, and nothing if a part of it could not
//! be. While an L2 table is lost (its place cannot be right), no refcount is lowered: what looks
//! unused may be what that table refers to.
//!
//! 1. Refcounts. Where the refcount structures are sound and complete they are corrected in place,
//!    else new ones are [built](rebuild) behind the end of the file and the header is switched to
//!    them. A crash leaves every refcount as wrong as it was, or right.
//! 2. Flush.
//! 3. COPIED flags, each a bit of an entry written in place. A crash leaves some flags as wrong as
//!    they were; the image is still marked as dirty if it was.
//! 4. Flush.
//! 5. The image is checked again. Only if that finds no corruption, the dirty and corrupt bits are
//!    cleared. Flush.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`.

pub mod copied;
pub mod extensions;
pub mod rebuild;
pub mod report;
pub mod stored;
pub mod structures;
pub mod walk;
pub mod window;

pub use report::Report;

use self::stored::Fix;
use self::structures::Structures;
use self::walk::Walk;
use self::window::{WINDOW_CLUSTERS, Window};
use super::header::Header;
use super::read_header;
use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};

/// Most clusters of a file, as in QEMU.
const MAX_CLUSTERS: u64 = (1 << 31) - 1;
/// Where version 3 headers keep the incompatible feature bits.
const INCOMPATIBLE_AT: u64 = 72;
/// The dirty and the corrupt bit.
const DIRTY_AND_CORRUPT: u64 = 0b11;

/// What a repair may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that are marked as used and are not.
    Leaks,
    /// All wrong refcounts and COPIED flags.
    All,
}

/// Checks an image. The file may be read-only.
///
/// # Errors
/// What reading reports, [`FormatErrorKind::Unsupported`] if the image is larger than any that can
/// be checked.
pub fn check(file: &BlockDevice, header: &Header) -> Result<Report> {
    Ok(examine(file, header)?.report)
}

/// Makes the refcounts of an image right before it is written to, as an image needs that is marked
/// as dirty; the mark is removed. The header may have changed afterwards and is to be read again.
///
/// # Errors
/// [`FormatErrorKind::Damaged`] if corruptions are left, in which case the image must not be
/// written to; as [`repair`].
pub fn repair_refcounts(file: &BlockDevice, header: &Header) -> Result<Report> {
    let report = repair(file, header, Repair::All)?;
    if report.corruptions > 0 || report.check_errors > 0 {
        let first = report.problems.first().map_or("", String::as_str);
        return Err(FormatError::new(
            FormatErrorKind::Damaged,
            format!("the image is damaged beyond repair: {first}"),
        )
        .with_hint("guestlens check tells all of it; what is readable can be copied with guestlens convert"));
    }
    Ok(report)
}

/// Checks an image and repairs what `what` says. The report tells what is left and what was
/// repaired. The header may have changed afterwards and is to be read again.
///
/// # Errors
/// As [`check`], or what writing reports.
pub fn repair(file: &BlockDevice, header: &Header, what: Repair) -> Result<Report> {
    let Examined {
        report: mut before,
        structures,
        rebuild_needed,
    } = examine(file, header)?;
    if before.is_clean() && !header.dirty && !header.corrupt {
        return Ok(before);
    }
    let others = before.check_errors.saturating_sub(before.overflows);
    if others > 0 || (before.overflows > 0 && !rebuild_needed) {
        before.note("nothing was repaired, because a part could not be checked");
        return Ok(before);
    }
    let lost = before.references_lost;
    if rebuild_needed && (lost || what == Repair::Leaks) {
        before.note(if lost {
            "nothing was repaired: the refcounts would have to be built anew, but what looks unused may belong to a table that is lost"
        } else {
            "nothing was repaired: the refcounts have to be built anew (--repair=all)"
        });
        return Ok(before);
    }
    let fix = match (what, lost) {
        (Repair::All, false) => Fix::All,
        (Repair::Leaks, false) => Fix::Lower,
        (Repair::All, true) => Fix::Raise,
        (Repair::Leaks, true) => Fix::Nothing,
    };
    if !before.is_clean() {
        if rebuild_needed {
            match rebuild::rebuild(&structures) {
                Err(e) if e.kind() == FormatErrorKind::Damaged => {
                    before.note(&format!("nothing was repaired: {e}"));
                    return Ok(before);
                }
                other => other?,
            }
        }
        drop(structures);
        let header = read_header(file)?;
        let mut ignored = Report::default();
        let structures = Structures::read(file, &header, &mut ignored)?;
        pass(&structures, fix, &mut ignored)?;
    }
    let header = read_header(file)?;
    let mut after = examine(file, &header)?.report;
    if after.corruptions == 0 && after.check_errors == 0 && (header.dirty || header.corrupt) {
        mark_clean(file)?;
    }
    after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
    after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
    if lost && after.leaks > 0 {
        after.note("leaks were left: what looks unused may belong to a table that is lost");
    }
    Ok(after)
}

/// Clears the bits that say something may be wrong.
fn mark_clean(file: &BlockDevice) -> Result<()> {
    let mut bits = [0; 8];
    file.read_exact_at(INCOMPATIBLE_AT, &mut bits)?;
    let bits = u64::from_be_bytes(bits) & !DIRTY_AND_CORRUPT;
    file.write_all_at(INCOMPATIBLE_AT, &bits.to_be_bytes())?;
    file.flush()?;
    Ok(())
}

struct Examined<'a> {
    report: Report,
    structures: Structures<'a>,
    rebuild_needed: bool,
}

fn examine<'a>(file: &'a BlockDevice, header: &'a Header) -> Result<Examined<'a>> {
    let mut report = Report::default();
    let structures = Structures::read(file, header, &mut report)?;
    let rebuild_needed = pass(&structures, Fix::Nothing, &mut report)?;
    Ok(Examined {
        report,
        structures,
        rebuild_needed,
    })
}

/// Goes over the file, a window at a time. Returns whether the refcount structures have to be
/// built anew.
fn pass(structures: &Structures<'_>, fix: Fix, report: &mut Report) -> Result<bool> {
    let cluster_size = structures.header.layout.cluster_size();
    // One more: something may reach a little into the cluster behind the end.
    let clusters = structures.clusters().saturating_add(1);
    if clusters > MAX_CLUSTERS {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("a file of {clusters} clusters cannot be checked"),
        ));
    }
    report.total_clusters = structures.header.size.div_ceil(cluster_size);
    let mut rebuild = false;
    let mut start = 0;
    while start < clusters {
        let len = clusters.saturating_sub(start).min(WINDOW_CLUSTERS);
        let mut window = Window::new(start, len);
        let mut walk = Walk::new(
            structures,
            &mut window,
            (start == 0).then_some(&mut *report),
        );
        walk.contents()?;
        rebuild |= walk.refcounts()?;
        report.overlaps = report.overlaps.saturating_add(window.overlaps);
        report.corruptions = report
            .corruptions
            .saturating_add(window.overlaps)
            .saturating_add(window.block_problems);
        for text in std::mem::take(&mut window.overlap_texts) {
            report.tell(|| text);
        }
        let found = stored::compare(structures, &mut window, fix, report)?;
        rebuild |= found.block_missing;
        if found.end > 0 {
            report.image_end_offset = found.end.saturating_mul(cluster_size);
        }
        let write = fix != Fix::Nothing;
        if write {
            structures.file.flush()?;
        }
        // Where two things share clusters, a table may be data at the same time.
        copied::check(structures, &window, write && report.overlaps == 0, report)?;
        start = window.end();
    }
    if fix != Fix::Nothing {
        structures.file.flush()?;
    }
    Ok(rebuild)
}
