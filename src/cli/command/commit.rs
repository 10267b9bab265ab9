//! `guestlens commit`: what an image holds goes into its backing file.

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
use crate::formats::rebase;

/// Arguments of `commit`.
#[derive(Args, Debug)]
#[command(after_help = "\
The backing file is written to. With --base, that becomes the image's backing file.
Other images on the same backing file become wrong by that.")]
pub struct CommitArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// Commit into this image of the chain instead of the first backing file; those between
    /// become wrong
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,

    /// Do not empty the image afterwards
    #[arg(long)]
    pub keep: bool,

    /// What was done, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// How the image is opened.
    #[command(flatten)]
    pub open: TargetArgs,
}

/// Commits.
///
/// # Errors
/// If one of the files cannot be opened, read or written.
pub fn run(args: &CommitArgs, log: &LogArgs, out: &mut Output) -> Outcome {
    let mut progress = Progress::new(None, log.quiet);
    let options = args.open.options(true)?;
    let copied = rebase::commit_into(
        &args.image,
        args.base.as_deref(),
        args.keep,
        &options,
        &mut |bytes| {
            progress.add(bytes);
        },
    )
    .context(|| format!("cannot commit {}", host_path(&args.image)))?;
    drop(progress);
    if args.json {
        out.json(&json!({
            "filename": args.image.to_string_lossy(),
            "copied-bytes": copied,
            "emptied": !args.keep,
        }))?;
    }
    Ok(Exit::Done)
}
