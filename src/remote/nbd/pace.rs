//! Whether a request is better done by the thread that received it or by another one.
//!
//! Handing a request over costs some ten microseconds. That is more than a read from the host's
//! page cache takes and much less than one from a disk; so the thread that receives requests does
//! quick ones itself, one after the other, and hands slow ones over, which then overlap. How long
//! requests of a kind took lately decides; it is measured wherever they are done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::wire::command;

/// From here on a request is slow, in nanoseconds for each [`UNIT`] bytes.
const SLOW: u64 = 100_000;

/// Longest time one request counts for, so that a single hiccup is soon forgotten.
const MOST: u64 = 1_000_000;

/// Bytes that count as one request.
const UNIT: u64 = 64 << 10;

/// Kinds that are measured apart: reads, writes, flushes, all others.
const KINDS: usize = 4;

/// How long requests took lately.
#[derive(Debug)]
pub struct Pace([AtomicU64; KINDS]);

impl Default for Pace {
    fn default() -> Self {
        let [read, write, flush, other] = [0, 0, MOST, 0];
        Self([read, write, flush, other].map(AtomicU64::new))
    }
}

impl Pace {
    fn kind(&self, command: u16, durable: bool) -> Option<&AtomicU64> {
        self.0.get(match command {
            command::FLUSH => 2,
            _ if durable => 2,
            command::READ => 0,
            command::WRITE => 1,
            _ => 3,
        })
    }

    /// Whether such requests are slow.
    pub fn is_slow(&self, command: u16, durable: bool) -> bool {
        self.kind(command, durable)
            .is_some_and(|mean| mean.load(Ordering::Relaxed) >= SLOW)
    }

    /// Takes note of how long a request of `len` bytes took.
    pub fn note(&self, command: u16, durable: bool, len: u64, took: Duration) {
        let Some(mean) = self.kind(command, durable) else {
            return;
        };
        // Lengths of requests without data (trim, zeroes) say nothing about the work.
        let units = match command {
            command::READ | command::WRITE => len.div_ceil(UNIT).max(1),
            _ => 1,
        };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(MOST);
        let nanos = nanos.checked_div(units).unwrap_or(MOST).min(MOST);
        let old = mean.load(Ordering::Relaxed);
        // A race between two threads loses one measurement of many.
        let new = old
            .saturating_sub(old.checked_div(8).unwrap_or(0))
            .saturating_add(nanos.checked_div(8).unwrap_or(0));
        mean.store(new, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_is_measured() {
        let pace = Pace::default();
        assert!(!pace.is_slow(command::READ, false));
        assert!(pace.is_slow(command::FLUSH, false) && pace.is_slow(command::WRITE, true));
        for _ in 0..32 {
            pace.note(command::READ, false, 4096, Duration::from_millis(5));
        }
        assert!(pace.is_slow(command::READ, false) && !pace.is_slow(command::WRITE, false));
        for _ in 0..32 {
            pace.note(command::READ, false, 4096, Duration::from_micros(3));
        }
        assert!(!pace.is_slow(command::READ, false));
    }
}
