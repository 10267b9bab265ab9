//! `guestlens umount`: ends a mount and waits until everything is released.

use std::path::PathBuf;

use clap::Args;

use crate::cli::failure::{Failure, Outcome};

/// Arguments of `umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Unmounts.
///
/// # Errors
/// If it is no mount of ours, or still in use.
pub fn run(args: &UmountArgs) -> Outcome {
    let _ = args;
    Err(Failure::new("umount is not there yet"))
}
