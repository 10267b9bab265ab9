//! `guestlens network`: the guest's network configuration in one common form.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::session::Session;
use crate::meta::network;

/// What to show of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// All of it.
    Full,
    /// Only what netplan accepts.
    Netplan,
    /// One line per interface.
    Summary,
}

/// Arguments of `network`.
#[derive(Args, Debug)]
pub struct NetworkArgs {
    /// Images; several are sda, sdb, … of one guest
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// The whole document, the part netplan accepts, or one line per interface
    #[arg(long = "view", value_enum, default_value = "full")]
    pub shown: Shown,

    /// The document as JSON
    #[arg(long, conflicts_with = "shown")]
    pub json: bool,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Reads and shows it.
///
/// # Errors
/// If the guest cannot be opened.
pub fn run(args: &NetworkArgs, out: &mut Output) -> Outcome {
    let session = Session::open(&args.open, &args.open.all_images(&args.images)?)?;
    let view = session.view(&args.view)?;
    let meta = network::render(&view);
    if args.json {
        out.json(&meta.json)?;
    } else {
        let text = match args.shown {
            Shown::Full => &meta.yaml,
            Shown::Netplan => &meta.netplan_yaml,
            Shown::Summary => &meta.summary,
        };
        out.bytes(text.as_bytes())?;
    }
    Ok(Exit::Done)
}
