//! The command line: the only layer that prints or exits.

use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
