//! `guestlens mount`: the guest as files, through FUSE.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{LogArgs, OpenArgs};
use crate::cli::failure::{Failure, Outcome};

/// Arguments of `mount`.
#[derive(Args, Debug)]
pub struct MountArgs {
    /// Images and, last, the directory to mount on
    #[arg(value_name = "IMAGE|MOUNTPOINT", required = true)]
    pub paths: Vec<PathBuf>,

    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Mounts.
///
/// # Errors
/// If the guest cannot be opened or mounted.
pub fn run(args: &MountArgs, log: &LogArgs) -> Outcome {
    let _ = (args, log);
    Err(Failure::new("mount is not there yet"))
}
