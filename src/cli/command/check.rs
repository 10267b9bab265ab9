//! `guestlens check`: is an image consistent, and if not, repair it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::target::is_local;
use crate::cli::text;
use crate::formats::check::{Checked, Repair, check_path};

/// Arguments of `check`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: 0 nothing is wrong, or nothing any more; 1 it could not be checked;
4 problems were found and are still there, also if they are only leaks.

Only the image itself is looked at, not its backing files, and not what the guest
keeps in it.")]
pub struct CheckArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// Repair: only leaked clusters, or everything that can be repaired
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    pub repair: Option<What>,

    /// Write also where nothing shows whether another program uses the image
    #[arg(long, requires = "repair")]
    pub force: bool,

    /// One JSON document with the field names of `qemu-img check --output=json`
    #[arg(long)]
    pub json: bool,

    /// Format of the image, instead of finding out
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What is to be repaired.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// Clusters that are marked as used and are not
    Leaks,
    /// Also wrong refcounts and flags
    All,
}

/// Checks.
///
/// # Errors
/// If the image cannot be opened or checked.
pub fn run(args: &CheckArgs, out: &mut Output) -> Outcome {
    is_local(&args.image)?;
    let repair = args.repair.map(|what| match what {
        What::Leaks => Repair::Leaks,
        What::All => Repair::All,
    });
    let checked = check_path(&args.image, args.format.as_deref(), repair, args.force)?;
    for warning in &checked.warnings {
        complain(warning);
    }
    if args.json {
        out.json(&as_json(args, &checked))?;
    } else {
        tell(&checked, out)?;
    }
    Ok(if checked.report.is_clean() {
        Exit::Done
    } else {
        Exit::Problems
    })
}

fn as_json(args: &CheckArgs, checked: &Checked) -> Value {
    let mut value = json!(checked.report);
    if let Some(object) = value.as_object_mut() {
        object.insert("filename".into(), args.image.to_string_lossy().into());
        object.insert("format".into(), checked.format.name().into());
    }
    value
}

fn tell(checked: &Checked, out: &mut Output) -> Outcome<()> {
    let report = &checked.report;
    for problem in &report.problems {
        out.line(text::one_line(problem))?;
    }
    if report.problems_left_out > 0 {
        out.line(format!("… and {} more", report.problems_left_out))?;
    }
    for (count, what) in [
        (report.corruptions_fixed, "corruptions repaired"),
        (report.leaks_fixed, "leaked clusters repaired"),
        (
            report.corruptions,
            "corruptions: data may be lost or mixed up",
        ),
        (report.leaks, "leaked clusters: they only waste space"),
        (report.check_errors, "parts could not be checked"),
    ] {
        if count > 0 {
            out.line(format!("{count} {what}"))?;
        }
    }
    if report.is_clean() {
        out.line("no errors")?;
    }
    let percent = |part: u64, whole: u64| {
        let thousandths = u128::from(part)
            .saturating_mul(1000)
            .checked_div(whole.into())
            .unwrap_or(0);
        format!("{}.{}%", thousandths / 10, thousandths % 10)
    };
    out.line(format!(
        "{} of {} clusters allocated ({}), {} fragmented ({}), {} compressed ({})",
        report.allocated_clusters,
        report.total_clusters,
        percent(report.allocated_clusters, report.total_clusters),
        report.fragmented_clusters,
        percent(report.fragmented_clusters, report.allocated_clusters),
        report.compressed_clusters,
        percent(report.compressed_clusters, report.allocated_clusters),
    ))?;
    out.line(format!("image ends at byte {}", report.image_end_offset))?;
    Ok(())
}
