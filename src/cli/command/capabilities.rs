//! `guestlens capabilities`: what this build can do, from the tables it works with.

use clap::{Args, CommandFactory as _};
use serde_json::json;

use crate::cli::args::Cli;
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::fs::api::drivers;

/// Arguments of `capabilities`.
#[derive(Args, Debug)]
pub struct CapabilitiesArgs {
    /// One JSON document
    #[arg(long)]
    pub json: bool,
}

/// Tells.
///
/// # Errors
/// Of writing.
pub fn run(args: &CapabilitiesArgs, out: &mut Output) -> Outcome {
    let filesystems: Vec<&str> = drivers().iter().map(|d| d.name()).collect();
    let verbs: Vec<String> = Cli::command()
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name().to_owned())
        .collect();
    if args.json {
        out.json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "filesystems": filesystems,
            "verbs": verbs,
            "writes": [],
        }))?;
    } else {
        out.line(format!("version: {}", env!("CARGO_PKG_VERSION")))?;
        out.line(format!("filesystems: {}", filesystems.join(" ")))?;
        out.line(format!("verbs: {}", verbs.join(" ")))?;
        out.line("writes: nothing")?;
    }
    Ok(Exit::Done)
}
