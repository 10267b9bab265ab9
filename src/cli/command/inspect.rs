//! `guestlens inspect`: who the guest is.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::OpenArgs;
use crate::cli::exit::Exit;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::session::Session;
use crate::meta::os;

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Images; several are sda, sdb, … of one guest
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// One JSON document with all systems, and the file each fact came from
    #[arg(long)]
    pub json: bool,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Tells; the same text as `meta/os` and `meta/os.json` of a mount.
///
/// # Errors
/// If the guest cannot be opened or holds no operating system.
pub fn run(args: &InspectArgs, out: &mut Output) -> Outcome {
    let session = Session::open(&args.open, &args.open.all_images(&args.images)?)?;
    let systems = session.systems();
    if args.json {
        out.json(&os::json(systems))?;
    }
    if systems.is_empty() {
        return Err(Failure::new("no operating system was found")
            .with_hint("`guestlens filesystems` shows what is there"));
    }
    if !args.json {
        out.bytes(os::shell(systems).as_bytes())?;
    }
    Ok(Exit::Done)
}
