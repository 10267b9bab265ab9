//! Copying the content of a disk into a new image.
//!
//! Several threads each take the next piece of the disk, read it (which decompresses it), have it
//! encoded, wait for their turn, give it a place and write it there. So reading, decompression,
//! compression and writing go on side by side, the image lies in guest order, and at most a few
//! chunks for each thread are in memory.
//!
//! What the source knows to be zero is never read; what is read and is zero is found by the
//! builder's encoder.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::build::{Builder, CHUNK_BYTES, Chunk, Unit};
use crate::block::{BlockDevice, BlockError, BlockErrorKind, Result};
use crate::ondisk::units::{to_u64, to_usize};

/// Runs looked at to fill one chunk, so that a fragmented source does not hold up the others.
const MAX_RUNS: usize = 1024;
/// A hole shorter than this in the middle of data is read as part of the data.
const SHORT_HOLE: u64 = 64 << 10;

/// The image the new one lies on: what it shows is not copied again.
#[derive(Clone, Debug)]
pub struct Below {
    /// Its content.
    pub device: BlockDevice,
    /// How deep in the source's own chain the same file is, if it is there: what the source has
    /// from that depth on is not even compared.
    pub depth: Option<u32>,
}

/// What was copied, in bytes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Read from the source.
    pub read: u64,
    /// Known to be zero without reading.
    pub skipped: u64,
    /// Read and found to be zero.
    pub zero: u64,
    /// The same as what lies below.
    pub below: u64,
    /// Stored compressed.
    pub packed: u64,
}

/// How a disk is copied.
pub struct CopyOptions<'a> {
    /// What the new image lies on.
    pub below: Option<Below>,
    /// Threads that read, encode and write.
    pub threads: usize,
    /// Told how many bytes of the disk are done, piece by piece.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Asked between pieces whether to go on.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Threads that suit this machine.
pub fn threads(compressing: bool) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Plain copies wait for the host; a few more than there are cores keep it busy.
    let more = if compressing { 0 } else { 2 };
    cores.saturating_add(more).clamp(2, 16)
}

/// Copies all of `source` into the image `builder` makes; does not finish it.
///
/// # Errors
/// The first one that reading or writing reports.
pub fn copy(
    source: &BlockDevice,
    builder: &dyn Builder,
    options: &CopyOptions<'_>,
) -> Result<Copied> {
    let run = Run {
        source,
        builder,
        options,
        unit: to_u64(builder.unit()),
        planner: Mutex::new(Planner {
            at: 0,
            ticket: 0,
            ahead: None,
        }),
        turn: Mutex::new(Turn {
            next: 0,
            ended: false,
            error: None,
        }),
        changed: Condvar::new(),
        writing: Mutex::new(()),
        copied: Counters::default(),
    };
    std::thread::scope(|scope| {
        for _ in 1..options.threads {
            // Fewer threads than wanted only make it slower.
            let _ = std::thread::Builder::new()
                .name("convert".into())
                .spawn_scoped(scope, || run.work());
        }
        run.work();
    });
    match run.turn.into_inner().error {
        Some(error) => Err(error),
        None => Ok(run.copied.sum()),
    }
}

struct Run<'a> {
    source: &'a BlockDevice,
    builder: &'a dyn Builder,
    options: &'a CopyOptions<'a>,
    unit: u64,
    planner: Mutex<Planner>,
    turn: Mutex<Turn>,
    changed: Condvar,
    /// Held while a chunk is written, where that is not done in turn anyway: the host lets one
    /// thread at a time write to a file, and threads that wait for that in the kernel burn the time
    /// others need to decompress.
    writing: Mutex<()>,
    copied: Counters,
}

#[derive(Default)]
struct Counters {
    read: AtomicU64,
    skipped: AtomicU64,
    zero: AtomicU64,
    below: AtomicU64,
    packed: AtomicU64,
}

impl Counters {
    fn sum(&self) -> Copied {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Copied {
            read: get(&self.read),
            skipped: get(&self.skipped),
            zero: get(&self.zero),
            below: get(&self.below),
            packed: get(&self.packed),
        }
    }
}

/// Whose turn it is to place, and how it ended.
struct Turn {
    next: u64,
    ended: bool,
    error: Option<BlockError>,
}

/// Where the next piece starts.
struct Planner {
    at: u64,
    ticket: u64,
    /// What is left of the run found last.
    ahead: Option<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    Below,
}

/// A run of one kind, from where the one before ended.
#[derive(Clone, Copy, Debug)]
struct Piece {
    kind: Kind,
    len: u64,
}

/// What one thread is to do.
struct Task {
    ticket: u64,
    at: u64,
    len: u64,
    kind: Kind,
    /// For data: the runs in it; what is not data need not be read.
    runs: Vec<Piece>,
}

/// Ends the copy if its thread does not get to the end by itself (by a panic).
struct Alarm<'r, 'a> {
    run: &'r Run<'a>,
    done: bool,
}

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        if !self.done {
            self.run
                .fail(BlockError::damaged("a thread of the copy ended early"));
        }
    }
}

impl Run<'_> {
    fn work(&self) {
        let mut alarm = Alarm {
            run: self,
            done: false,
        };
        if let Err(error) = self.work_on() {
            self.fail(error);
        }
        alarm.done = true;
    }

    fn fail(&self, error: BlockError) {
        let mut turn = self.turn.lock();
        turn.ended = true;
        // That the device has failed is only the consequence of what another thread met.
        let consequence = |e: &BlockError| e.kind() == BlockErrorKind::Failed;
        if turn.error.as_ref().is_none_or(consequence) {
            turn.error = Some(error);
        }
        self.changed.notify_all();
    }

    fn work_on(&self) -> Result<()> {
        let mut encoder = self.builder.encoder()?;
        let mut chunk = Chunk::default();
        let mut other = Vec::new();
        while !self.turn.lock().ended {
            if (self.options.stop)() {
                return Err(BlockError::new(BlockErrorKind::Io, "interrupted"));
            }
            let Some(task) = self.next_task()? else {
                return Ok(());
            };
            match task.kind {
                Kind::Data => {
                    self.read(&task, &mut chunk, &mut other)?;
                    encoder.encode(&mut chunk)?;
                    let place_and_write = || {
                        self.builder.place(&mut chunk)?;
                        let _one = self.writing.lock();
                        self.builder.write(&mut chunk)
                    };
                    if !self.in_turn(task.ticket, place_and_write)? {
                        return Ok(());
                    }
                    self.count(&chunk);
                }
                Kind::Zero => {
                    let zeroes = || self.builder.zeroes(task.at, task.len);
                    if !self.in_turn(task.ticket, zeroes)? {
                        return Ok(());
                    }
                    self.copied.skipped.fetch_add(task.len, Ordering::Relaxed);
                }
                Kind::Below => {
                    if !self.in_turn(task.ticket, || Ok(()))? {
                        return Ok(());
                    }
                    self.copied.below.fetch_add(task.len, Ordering::Relaxed);
                }
            }
            (self.options.progress)(task.len);
        }
        Ok(())
    }

    fn count(&self, chunk: &Chunk) {
        let of = |wanted: fn(&Unit) -> bool| {
            let count = chunk.units.iter().filter(|u| wanted(u)).count();
            self.unit.saturating_mul(to_u64(count))
        };
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        add(&self.copied.read, to_u64(chunk.inside));
        add(&self.copied.zero, of(|u| *u == Unit::Zero));
        add(&self.copied.below, of(|u| *u == Unit::Below));
        add(&self.copied.packed, of(|u| matches!(u, Unit::Packed(_))));
    }

    /// Does something when all earlier pieces had their turn; `false` if the copy has ended.
    fn in_turn(&self, ticket: u64, act: impl FnOnce() -> Result<()>) -> Result<bool> {
        if !self.builder.ordered() {
            act()?;
            return Ok(true);
        }
        {
            let mut turn = self.turn.lock();
            while turn.next != ticket && !turn.ended {
                self.changed.wait(&mut turn);
            }
            if turn.ended {
                return Ok(false);
            }
        }
        // Nobody else can have this turn, so the lock need not be held.
        act()?;
        self.turn.lock().next = ticket.saturating_add(1);
        self.changed.notify_all();
        Ok(true)
    }

    /// The next piece of the disk; `None` at its end.
    fn next_task(&self) -> Result<Option<Task>> {
        let mut planner = self.planner.lock();
        let end = self.source.len();
        let start = planner.at;
        if start >= end {
            return Ok(None);
        }
        let first = planner.next_piece(self, start)?;
        // Whole units of what need not be read; the rest of the run goes with its neighbours.
        let whole = if start.saturating_add(first.len) >= end {
            first.len
        } else {
            first.len & !self.unit.wrapping_sub(1)
        };
        let task = if first.kind != Kind::Data && whole > 0 {
            planner.put_back(Piece {
                len: first.len.saturating_sub(whole),
                ..first
            });
            Task {
                ticket: planner.ticket,
                at: start,
                len: whole,
                kind: first.kind,
                runs: Vec::new(),
            }
        } else {
            planner.put_back(first);
            planner.data_task(self, start)?
        };
        planner.at = start.saturating_add(task.len);
        planner.ticket = planner.ticket.saturating_add(1);
        Ok(Some(task))
    }

    /// What the source says about the run at `at`.
    fn look(&self, at: u64, max: u64) -> Result<Piece> {
        let extent = self.source.extent_at(at, max)?;
        let Some(below) = &self.options.below else {
            let kind = if extent.reads_zero() {
                Kind::Zero
            } else {
                Kind::Data
            };
            return Ok(Piece {
                kind,
                len: extent.len,
            });
        };
        if below.depth.is_some_and(|depth| extent.depth >= depth) {
            return Ok(Piece {
                kind: Kind::Below,
                len: extent.len,
            });
        }
        if !extent.reads_zero() {
            return Ok(Piece {
                kind: Kind::Data,
                len: extent.len,
            });
        }
        // Zeroes over zeroes need no space.
        let inside = below.device.len().saturating_sub(at).min(extent.len);
        if inside == 0 {
            return Ok(Piece {
                kind: Kind::Below,
                len: extent.len,
            });
        }
        let under = below.device.extent_at(at, inside)?;
        let kind = if under.reads_zero() {
            Kind::Below
        } else {
            Kind::Zero
        };
        Ok(Piece {
            kind,
            len: under.len,
        })
    }

    /// Fills a chunk with what the task says.
    fn read(&self, task: &Task, chunk: &mut Chunk, other: &mut Vec<u8>) -> Result<()> {
        let inside = to_usize(task.len).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let unit = self.builder.unit().max(1);
        let whole = inside.next_multiple_of(unit);
        chunk.at = task.at;
        chunk.inside = inside;
        // Longer than before only once or twice; what is there already is overwritten.
        chunk.data.resize(whole, 0);
        chunk.packed.clear();
        chunk.writes.clear();
        chunk.units.clear();
        chunk.units.resize(whole.div_ceil(unit), Unit::Data);
        chunk.data.get_mut(inside..).unwrap_or_default().fill(0);
        let mut from = 0_usize;
        for run in &task.runs {
            let len = to_usize(run.len).unwrap_or(usize::MAX);
            let to = from.saturating_add(len).min(inside);
            let part = chunk.data.get_mut(from..to).unwrap_or_default();
            if run.kind == Kind::Zero {
                part.fill(0);
            } else {
                self.source
                    .read_exact_at(task.at.saturating_add(to_u64(from)), part)?;
            }
            from = to;
        }
        if let Some(below) = &self.options.below {
            other.resize(whole, 0);
            let read = below
                .device
                .read_some_at(task.at, other.get_mut(..inside).unwrap_or_default())?;
            other.get_mut(read..).unwrap_or_default().fill(0);
            let pairs = chunk.data.chunks(unit).zip(other.chunks(unit));
            for (state, (new, old)) in chunk.units.iter_mut().zip(pairs) {
                if new == old {
                    *state = Unit::Below;
                }
            }
        }
        Ok(())
    }
}

impl Planner {
    fn put_back(&mut self, piece: Piece) {
        if piece.len > 0 {
            self.ahead = Some(piece);
        }
    }

    /// The run at `at`, which is where the last one ended.
    fn next_piece(&mut self, run: &Run<'_>, at: u64) -> Result<Piece> {
        if let Some(piece) = self.ahead.take() {
            return Ok(piece);
        }
        run.look(at, run.source.len().saturating_sub(at))
    }

    /// A piece that has to be read, from `start` on.
    fn data_task(&mut self, run: &Run<'_>, start: u64) -> Result<Task> {
        let end = run.source.len();
        let limit = start.saturating_add(to_u64(CHUNK_BYTES)).min(end);
        let mut at = start;
        let mut runs: Vec<Piece> = Vec::new();
        while at < limit && runs.len() < MAX_RUNS {
            let piece = self.next_piece(run, at)?;
            let here = piece.len.min(limit.saturating_sub(at));
            let aligned = at.is_multiple_of(run.unit);
            if aligned
                && at > start
                && piece.kind != Kind::Data
                && piece.len >= run.unit.max(SHORT_HOLE)
            {
                // Long enough to be a piece of its own.
                self.put_back(piece);
                break;
            }
            self.put_back(Piece {
                len: piece.len.saturating_sub(here),
                ..piece
            });
            at = at.saturating_add(here);
            runs.push(Piece { len: here, ..piece });
        }
        // Chunks end where units end; only fragments shorter than a unit can break that.
        while at < end && !at.is_multiple_of(run.unit) {
            let next = at.next_multiple_of(run.unit).min(end);
            let piece = self.next_piece(run, at)?;
            let here = piece.len.min(next.saturating_sub(at));
            self.put_back(Piece {
                len: piece.len.saturating_sub(here),
                ..piece
            });
            at = at.saturating_add(here);
            runs.push(Piece { len: here, ..piece });
        }
        Ok(Task {
            ticket: self.ticket,
            at: start,
            len: at.saturating_sub(start),
            kind: Kind::Data,
            runs,
        })
    }
}
