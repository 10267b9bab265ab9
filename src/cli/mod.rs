//! The command line: the only layer that prints or exits.
//!
//! | module | responsibility |
//! |---|---|
//! | [`args`] | the definition of the command line, from which help, manual and completions come |
//! | [`destination`] | writing a hostile tree into a directory of the host |
//! | [`entry`] | one file of the guest as text and as JSON |
//! | [`exit`] | exit statuses |
//! | [`failure`] | what a verb fails with: an error chain, an exit status, a hint |
//! | [`glob`] | shell patterns |
//! | [`keys`] | where keys of encrypted images come from |
//! | [`new_file`] | files that are there complete or not at all |
//! | [`new_image`] | how a new image is to be |
//! | [`output`] | stdout: text, tables, JSON, raw bytes; a reader that goes away is success |
//! | [`pax`] | headers and records of tar archives |
//! | [`progress`] | how far a long copy is |
//! | [`session`] | opens the guest and chooses the tree a verb looks at |
//! | [`size`] | sizes as people type them |
//! | [`target`] | an image that a verb changes as a whole |
//! | [`text`] | how modes, times, sizes and guest names are written |
//! | [`walk`] | everything below a directory of the guest |
//! | [`command`] | one file per verb |
//!
//! Text for people and `--json` for programs come from the same values. A string from a guest is
//! escaped before a terminal sees it; in JSON, a field `NAME` whose bytes are not valid UTF-8 has
//! them replaced by U+FFFD and is followed by `NAME_bytes`, the exact bytes in hexadecimal.

pub mod args;
pub mod command;
pub mod destination;
pub mod entry;
pub mod exit;
pub mod failure;
pub mod glob;
pub mod keys;
pub mod new_file;
pub mod new_image;
pub mod output;
pub mod pax;
pub mod progress;
pub mod session;
pub mod size;
pub mod target;
pub mod text;
pub mod walk;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, LogArgs};
use self::exit::Exit;
use self::output::Output;

/// Runs the program.
pub fn main() -> ExitCode {
    // clap prints help and usage errors itself, and ends with 0 or 2, as `exit` wants it.
    let cli = Cli::parse();
    start_logging(&cli.log);
    let mut out = Output::stdout();
    let exit = match command::run(cli.command, &cli.log, &mut out) {
        Ok(exit) => match out.finish() {
            Ok(()) => exit,
            Err(failure) => failure.report(),
        },
        Err(failure) => {
            // What was printed before the failure is part of the answer.
            let _ = out.finish();
            failure.report()
        }
    };
    exit.into()
}

fn start_logging(log: &LogArgs) {
    use tracing_subscriber::filter::EnvFilter;

    let level = match (&log.log, log.quiet, log.verbose) {
        (Some(filter), _, _) => filter.as_str(),
        (None, true, _) => "error",
        (None, false, 0) => "warn",
        (None, false, 1) => "info",
        (None, false, 2) => "debug",
        (None, false, _) => "trace",
    };
    // The HTTP client tells whole addresses and headers, which may have secrets in them.
    let quiet = "ureq=warn,ureq_proto=warn";
    let filter = EnvFilter::try_new(format!("{level},{quiet}"))
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,{quiet}")));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .try_init();
}

/// Tells about something that went wrong without stopping the verb, on stderr.
pub fn complain(text: &str) {
    eprintln!("guestlens: {}", text::one_line(text));
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
