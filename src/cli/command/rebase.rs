//! `guestlens rebase`: another backing file for an image.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::args::LogArgs;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Outcome};
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::target::TargetArgs;
use crate::cli::text::host_path;
use crate::formats::rebase::{self, NewBacking};

/// Arguments of `rebase`.
#[derive(Args, Debug)]
#[command(after_help = "\
The disk stays what it is: where the new backing file shows something else than the old one, the image
gets its own copy first. --unsafe leaves that out, for a backing file that only has moved.")]
pub struct RebaseArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// The new backing file, as the image is to name it: relative to the image's directory
    #[arg(
        long,
        value_name = "FILE",
        requires = "backing_format",
        required_unless_present = "no_backing"
    )]
    pub backing: Option<PathBuf>,

    /// Format of the new backing file
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    pub backing_format: Option<String>,

    /// No backing file any more: the image holds all of the disk itself
    #[arg(long, conflicts_with = "backing")]
    pub no_backing: bool,

    /// Only change the name; neither backing file is looked at
    #[arg(long = "unsafe")]
    pub only_name: bool,

    /// What was done, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// How the image is opened.
    #[command(flatten)]
    pub open: TargetArgs,
}

/// Rebases.
///
/// # Errors
/// If one of the files cannot be opened, read or written.
pub fn run(args: &RebaseArgs, log: &LogArgs, out: &mut Output) -> Outcome {
    let new = args
        .backing
        .clone()
        .zip(args.backing_format.clone())
        .map(|(name, format)| NewBacking { name, format });
    let options = args.open.options(true)?;
    let what = || format!("cannot rebase {}", host_path(&args.image));
    let copied = if args.only_name {
        rebase::rename_backing(&args.image, new.as_ref(), &options).context(what)?;
        0
    } else {
        let mut progress = Progress::new(None, log.quiet);
        rebase::rebase(&args.image, new.as_ref(), &options, &mut |bytes| {
            progress.add(bytes);
        })
        .context(what)?
    };
    if args.json {
        out.json(&json!({
            "filename": args.image.to_string_lossy(),
            "backing-filename": args.backing.as_ref().map(|b| b.to_string_lossy()),
            "backing-filename-format": args.backing_format,
            "copied-bytes": copied,
        }))?;
    }
    Ok(Exit::Done)
}
