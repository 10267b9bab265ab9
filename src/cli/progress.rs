//! How far a long copy is, on a terminal.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::complain;

/// Nothing is shown before this has passed.
const QUIET: Duration = Duration::from_secs(1);

/// Counts bytes; shows them on stderr if that is a terminal and the copy takes long.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    wanted: bool,
}

impl Progress {
    /// A copy of `total` bytes, if that is known.
    pub fn new(total: Option<u64>, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let template = match total {
            Some(_) => "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            None => "{bytes}, {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            started: Instant::now(),
            wanted: !quiet && std::io::stderr().is_terminal(),
        }
    }

    /// So many bytes more are done.
    pub fn add(&mut self, bytes: u64) {
        if self.wanted && self.started.elapsed() > QUIET {
            self.wanted = false;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(bytes);
    }

    /// Says something on stderr without tearing the line.
    pub fn complain(&self, text: &str) {
        self.bar.suspend(|| complain(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
