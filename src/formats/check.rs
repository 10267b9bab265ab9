//! Checking the consistency of an image file, and repairing it.
//!
//! Only the file itself is opened, not what it refers to: a check says nothing about backing files.

use std::path::Path;

use super::detect::{self, Format};
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::{HostFile, shown};
use super::qcow2;
use crate::block::BlockDevice;
use crate::block::lock::LockMode;

pub use qcow2::check::{Repair, Report};

/// What was checked and what was found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The format of the image.
    pub format: Format,
    /// What was found.
    pub report: Report,
    /// What the user should know about how it was opened.
    pub warnings: Vec<String>,
}

/// Checks the image in a file, in the format the user states or that is found. With `repair`, what
/// it says is repaired, for which nobody else may have the image open; `force` as in
/// [`HostFile::lock`].
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] for formats that have nothing to check or no checker,
/// [`FormatErrorKind::Busy`], or what reading and writing report.
pub fn check_path(
    path: &Path,
    format: Option<&str>,
    repair: Option<Repair>,
    force: bool,
) -> Result<Checked> {
    let stated = format.map(Format::by_name).transpose()?;
    let write = repair.is_some();
    let file = HostFile::open(path, write)?;
    let mode = if write {
        LockMode::Write
    } else {
        LockMode::Read
    };
    let warnings = file.lock(mode, force)?;
    let device = file.into_device(write)?;
    let checked = check_device(&device, stated, repair)
        .map_err(|e| e.within(format!("cannot check {}", shown(path))))?;
    Ok(Checked {
        warnings,
        ..checked
    })
}

/// As [`check_path`], in a device that is open already.
///
/// # Errors
/// As [`check_path`].
pub fn check_device(
    device: &BlockDevice,
    stated: Option<Format>,
    repair: Option<Repair>,
) -> Result<Checked> {
    let format = match stated {
        Some(format) => format,
        None => detect::detect(device)?,
    };
    let report = match format {
        Format::Qcow2 => {
            let header = qcow2::read_header(device)?;
            match repair {
                None => qcow2::check::check(device, &header)?,
                Some(what) => qcow2::check::repair(device, &header, what)?,
            }
        }
        Format::Raw => {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                "a raw image has no structure that could be checked",
            ));
        }
        other => {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!("there is no check for images of format {}", other.name()),
            )
            .with_hint("reading it all shows whether it can be read: guestlens convert IMAGE -"));
        }
    };
    Ok(Checked {
        format,
        report,
        warnings: Vec::new(),
    })
}
