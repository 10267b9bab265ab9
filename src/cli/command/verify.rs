//! `guestlens verify`: is a file from anywhere safe to be taken as a disk image?

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::size;
use crate::cli::target::is_local;
use crate::cli::text;
use crate::formats::verify::report::Outcome as Result;
use crate::formats::verify::{MAX_VIRTUAL_SIZE, VerifyOptions, verify_path};

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Only the file itself is read; nothing it names is opened. Unsafe are: a file that
can be taken for more than one format, or for another than --format says; backing
files, data files, extents and parents in other files; structures that are damaged
or lead out of the file; a virtual disk larger than the limit; encrypted content
and compressed streams, which cannot be looked at; qcow version 1 and QED.

Being safe to open says nothing about what the guest in the image would do.

Exit status: 0 the file is safe; 4 it is not; 1 it could not be read.")]
pub struct VerifyArgs {
    /// The file
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// What the file is said to be (raw, qcow2, vmdk, vpc, vhdx, vdi, iso, gpt, luks)
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Largest virtual disk that is safe, in bytes or with K, M, G, T [default: 16T]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_virtual_size: Option<u64>,

    /// Accept what the check of this name finds; repeat for several
    #[arg(long, value_name = "CHECK")]
    pub allow: Vec<String>,

    /// One JSON document
    #[arg(long)]
    pub json: bool,
}

/// Verifies.
///
/// # Errors
/// If the file cannot be read.
pub fn run(args: &VerifyArgs, out: &mut Output) -> Outcome {
    is_local(&args.image)?;
    let options = VerifyOptions {
        claimed: args.format.clone(),
        max_virtual_size: args.max_virtual_size.unwrap_or(MAX_VIRTUAL_SIZE),
        allow: args.allow.clone(),
    };
    let verdict = verify_path(&args.image, &options)?;
    if args.json {
        out.json(&verdict)?;
    } else {
        let answer = if verdict.safe { "safe" } else { "NOT SAFE" };
        let size = verdict.virtual_size.map_or_else(
            || "unknown virtual size".to_owned(),
            |size| format!("{} virtual", text::size(size)),
        );
        out.line(format!(
            "{}: {answer} ({}, {size}, {} on disk)",
            text::host_path(&args.image),
            verdict.detected.join(" + "),
            text::size(verdict.actual_size)
        ))?;
        for reason in &verdict.reasons {
            let mark = match reason.result {
                Result::Pass => continue,
                Result::Note => "note",
                Result::Allowed => "allowed",
                Result::Fail => "unsafe",
            };
            out.line(format!(
                "  {mark}: {}: {}",
                reason.check,
                text::one_line(&reason.message)
            ))?;
        }
    }
    Ok(if verdict.safe {
        Exit::Done
    } else {
        Exit::Problems
    })
}
