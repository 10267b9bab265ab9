//! One file per verb: its arguments and what it does.

pub mod generate;
pub mod mount;
mod mount_contents;
pub mod umount;

use clap::Subcommand;

use super::args::LogArgs;
use super::failure::Outcome;
use super::output::Output;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the guest read-only; returns when the mount answers
    Mount(mount::MountArgs),
    /// Unmount; returns when everything is released
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Write manual pages or shell completions
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

/// Does what was asked.
///
/// # Errors
/// If it could not be done.
pub fn run(command: Command, log: &LogArgs, out: &mut Output) -> Outcome {
    let _ = log;
    match command {
        Command::Mount(args) => mount::run(&args, log),
        Command::Umount(args) => umount::run(&args),
        Command::Generate(args) => generate::run(&args, out),
    }
}
