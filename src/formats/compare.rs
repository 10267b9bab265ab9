//! Whether two disks show the same.
//!
//! Several threads each compare the next piece. What both disks know to be zero is not read, and
//! what one of them knows to be zero is only read from the other.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::convert;
use crate::block::{BlockDevice, BlockError, Extent, Result};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::units::{to_u64, to_usize};

/// Bytes compared at once.
const PIECE: u64 = 2 << 20;

/// The first thing that is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The sizes; only looked at if asked to be strict.
    Size,
    /// One disk has something stored at this offset, the other nothing; only if strict.
    Allocation(u64),
    /// The byte at this offset.
    Content(u64),
}

impl Difference {
    fn offset(self) -> u64 {
        match self {
            Self::Size => 0,
            Self::Allocation(at) | Self::Content(at) => at,
        }
    }
}

/// The first difference, if there is any. Unless `strict`, the shorter disk is taken to go on with
/// zeroes. `progress` is told how many bytes are done, piece by piece.
///
/// # Errors
/// What reading reports.
pub fn compare(
    a: &BlockDevice,
    b: &BlockDevice,
    strict: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Option<Difference>> {
    if strict && a.len() != b.len() {
        return Ok(Some(Difference::Size));
    }
    let run = Run {
        a,
        b,
        strict,
        end: a.len().max(b.len()),
        next: Mutex::new(0),
        stop_at: AtomicU64::new(u64::MAX),
        found: Mutex::new((None, None)),
        progress,
    };
    std::thread::scope(|scope| {
        for _ in 1..convert::threads(true) {
            let _ = std::thread::Builder::new()
                .name("compare".into())
                .spawn_scoped(scope, || run.work());
        }
        run.work();
    });
    match run.found.into_inner() {
        // A difference before the place that cannot be read is an answer.
        (Some(found), Some((at, _))) if found.offset() < at => Ok(Some(found)),
        (_, Some((_, error))) => Err(error),
        (found, None) => Ok(found),
    }
}

/// The first difference, and the first error with its place.
type Found = (Option<Difference>, Option<(u64, BlockError)>);

struct Run<'a> {
    a: &'a BlockDevice,
    b: &'a BlockDevice,
    strict: bool,
    end: u64,
    next: Mutex<u64>,
    /// What starts here or later is of no interest any more.
    stop_at: AtomicU64,
    found: Mutex<Found>,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// The run at `at`; past the end of the disk a hole.
fn extent(device: &BlockDevice, at: u64, max: u64) -> Result<Extent> {
    match device.len().saturating_sub(at) {
        0 => Ok(Extent::hole(max)),
        inside => device.extent_at(at, max.min(inside)),
    }
}

impl Run<'_> {
    fn work(&self) {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        loop {
            let (at, len, zero) = {
                let mut next = self.next.lock();
                let at = *next;
                if at >= self.end || at >= self.stop_at.load(Ordering::Relaxed) {
                    return;
                }
                match self.plan(at) {
                    Ok((len, zero)) => {
                        *next = at.saturating_add(len);
                        (at, len, zero)
                    }
                    Err(error) => {
                        *next = self.end;
                        drop(next);
                        self.fail(at, error);
                        return;
                    }
                }
            };
            match self.piece(at, len, zero, &mut x, &mut y) {
                Ok(None) => {}
                Ok(Some(difference)) => self.differ(difference),
                Err(error) => self.fail(at, error),
            }
            (self.progress)(len);
        }
    }

    /// How long the next piece is, and which of the disks is zero there.
    fn plan(&self, at: u64) -> Result<(u64, [bool; 2])> {
        let rest = self.end.saturating_sub(at);
        let (e, f) = (extent(self.a, at, rest)?, extent(self.b, at, rest)?);
        let zero = [e.reads_zero(), f.reads_zero()];
        let both = e.len.min(f.len).max(1);
        if zero == [true, true] {
            return Ok((both, zero));
        }
        if both < PIECE && !self.strict {
            // Short runs of different kinds are read together.
            return Ok((PIECE.min(rest), [false, false]));
        }
        Ok((both.min(PIECE), zero))
    }

    fn piece(
        &self,
        at: u64,
        len: u64,
        zero: [bool; 2],
        x: &mut Vec<u8>,
        y: &mut Vec<u8>,
    ) -> Result<Option<Difference>> {
        if zero == [true, true] {
            return Ok(None);
        }
        if self.strict && zero != [false, false] {
            return Ok(Some(Difference::Allocation(at)));
        }
        let read = |device: &BlockDevice, zero: bool, buf: &mut Vec<u8>| -> Result<()> {
            let len = to_usize(len)
                .unwrap_or(usize::MAX)
                .min(to_usize(PIECE).unwrap_or(0));
            buf.resize(len, 0);
            let filled = if zero {
                0
            } else {
                device.read_some_at(at, buf)?
            };
            buf.get_mut(filled..).unwrap_or_default().fill(0);
            Ok(())
        };
        read(self.a, zero == [true, false], x)?;
        if zero == [false, true] {
            let first = x.iter().position(|b| *b != 0);
            return Ok(match is_zero(x) {
                true => None,
                false => first.map(|i| Difference::Content(at.saturating_add(to_u64(i)))),
            });
        }
        read(self.b, false, y)?;
        if x == y {
            return Ok(None);
        }
        let first = x.iter().zip(y.iter()).position(|(a, b)| a != b);
        Ok(first.map(|i| Difference::Content(at.saturating_add(to_u64(i)))))
    }

    fn differ(&self, difference: Difference) {
        let at = difference.offset();
        self.stop_at.fetch_min(at, Ordering::Relaxed);
        let first = &mut self.found.lock().0;
        if first.is_none_or(|f| at < f.offset()) {
            *first = Some(difference);
        }
    }

    fn fail(&self, at: u64, error: BlockError) {
        self.stop_at.fetch_min(at, Ordering::Relaxed);
        let first = &mut self.found.lock().1;
        if first.as_ref().is_none_or(|(f, _)| at < *f) {
            *first = Some((at, error));
        }
    }
}
