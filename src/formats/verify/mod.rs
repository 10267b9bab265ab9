//! Is a file from anywhere safe to be taken as a disk image?
//!
//! | module | responsibility |
//! |---|---|
//! | [`report`] | what was checked, with which result |
//! | [`signature`] | every format and content the file could be taken for |
//! | [`qcow2`] | header, features, references, tables |
//! | [`vmdk`] | header, descriptor, footer |
//! | [`blocks`] | VHD, VHDX, VDI |
//! | [`content`] | what a raw disk holds: MBR, ISO 9660, LUKS |
//!
//! Only the file itself is read; nothing it names is opened. A file is safe if it can be taken for
//! one format only, which is the one that is claimed, and if every check of that format passes.
//! Being safe says nothing about the guest in the image. What is checked is what the format
//! inspector of OpenStack checks and, beyond it, that numbers are within bounds and offsets inside
//! the file.

pub mod blocks;
pub mod content;
pub mod qcow2;
pub mod report;
pub mod signature;
pub mod vmdk;

use std::path::Path;

use self::report::{Report, Verdict};
use self::signature::{Found, Signature};
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::HostFile;
use crate::block::BlockDevice;
use crate::block::lock::LockMode;
use crate::ondisk::text::printable;

/// Largest virtual disk that is safe unless another limit is given: 16 TiB, what most guest
/// filesystems can fill.
pub const MAX_VIRTUAL_SIZE: u64 = 16 << 40;

/// What to verify against.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The format the file is said to be of.
    pub claimed: Option<String>,
    /// Largest virtual disk, in bytes.
    pub max_virtual_size: u64,
    /// Names of checks whose failure is accepted.
    pub allow: Vec<String>,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            claimed: None,
            max_virtual_size: MAX_VIRTUAL_SIZE,
            allow: Vec::new(),
        }
    }
}

/// Names a format can be claimed by, beside those of [`super::detect::FORMATS`].
const CONTENTS: [&str; 5] = ["iso", "gpt", "mbr", "luks", "vhd"];

/// Verifies the file at `path`.
///
/// # Errors
/// If the file cannot be opened, locked or read, or the claimed format is unknown.
pub fn verify_path(path: &Path, options: &VerifyOptions) -> Result<Verdict> {
    let file = HostFile::open(path, false)?;
    file.lock(LockMode::Read, false)?;
    let actual_size = file.actual_size();
    verify_device(&file.into_device(false)?, actual_size, options)
}

/// Verifies what is in a device, which occupies `actual_size` bytes.
///
/// # Errors
/// What reading reports, or if the claimed format is unknown.
pub fn verify_device(
    file: &BlockDevice,
    actual_size: u64,
    options: &VerifyOptions,
) -> Result<Verdict> {
    if let Some(claimed) = &options.claimed
        && !CONTENTS.contains(&claimed.as_str())
    {
        super::detect::Format::by_name(claimed)?;
    }
    let found = signature::find(file)?;
    let mut report = Report::new(&options.allow);
    ambiguity(&found, options.claimed.as_deref(), &mut report);
    let mut virtual_size = None;
    for signature in &found.formats {
        let checked = check_format(*signature, file, &mut report);
        virtual_size = judged(checked, "structure", &mut report)?.flatten();
    }
    if found.formats.is_empty() {
        virtual_size = Some(file.len());
        content::check(file, &found, &mut report)?;
    } else if found.formats == [Signature::FixedVhd] {
        content::check(file, &found, &mut report)?;
    }
    match virtual_size {
        Some(size) if size > options.max_virtual_size => report.fail(
            "virtual-size",
            format!(
                "the virtual disk has {size} bytes, more than the limit of {}",
                options.max_virtual_size
            ),
        ),
        Some(size) => report.pass(
            "virtual-size",
            format!("the virtual disk has {size} bytes, within the limit"),
        ),
        None => {}
    }
    Ok(Verdict {
        safe: report.is_safe(),
        format: found.format_name(),
        claimed: options.claimed.clone(),
        detected: found.names(),
        virtual_size,
        actual_size,
        reasons: report.into_reasons(),
    })
}

/// One answer only, and the one that is claimed.
fn ambiguity(found: &Found, claimed: Option<&str>, report: &mut Report) {
    let names = found.names().join(", ");
    if found.is_ambiguous() {
        report.fail(
            "ambiguous",
            format!("the file can be taken for each of: {names}"),
        );
    } else {
        report.pass(
            "ambiguous",
            format!("the file can only be taken for: {names}"),
        );
    }
    let Some(claimed) = claimed else {
        return;
    };
    if found.agrees_with(claimed) {
        report.pass("claimed-format", "the file is what it is said to be");
    } else {
        let claimed = printable(claimed.as_bytes());
        report.fail(
            "claimed-format",
            format!("the file is said to be {claimed}, but looks like {names}"),
        );
    }
}

/// Checks of one format; returns the size of the virtual disk if it can be told.
fn check_format(
    signature: Signature,
    file: &BlockDevice,
    report: &mut Report,
) -> Result<Option<u64>> {
    match signature {
        Signature::Qcow2 => qcow2::check(file, report),
        Signature::Vmdk => vmdk::check(file, report),
        Signature::Vhd | Signature::FixedVhd => blocks::check_vhd(file, report),
        Signature::Vhdx => blocks::check_vhdx(file, report),
        Signature::Vdi => blocks::check_vdi(file, report),
        Signature::Banned(name) => {
            report.fail("banned", format!("images of format {name} are never safe"));
            Ok(None)
        }
        Signature::Compressed(name) => {
            report.fail(
                "compressed-stream",
                format!("what is inside a {name} stream is not looked at: unpack it first"),
            );
            Ok(None)
        }
    }
}

/// Takes an error that a parser of an image reports as a failed check; others are passed on.
///
/// # Errors
/// If the host could not read the file.
fn judged<T>(result: Result<T>, check: &'static str, report: &mut Report) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == FormatErrorKind::Io => Err(e),
        Err(e) => {
            report.fail(check, whole(&e));
            Ok(None)
        }
    }
}

/// All messages of an error in one line.
fn whole(error: &FormatError) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    // Errors nest as deep as the code does.
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

/// A check with a yes or no.
fn test(report: &mut Report, check: &'static str, good: bool, fine: &str, bad: impl Into<String>) {
    if good {
        report.pass(check, fine);
    } else {
        report.fail(check, bad);
    }
}
