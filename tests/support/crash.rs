//! Crash states of a recorded log of writes and flushes.
//!
//! What a file had been told before one of its flushes is durable from then on. Of what came after,
//! any part may have reached the medium when the power goes, in any order, and of a write any
//! sectors. [`states`] goes through such states: for each epoch (what lies between two flushes) all
//! prefixes, each operation missing alone and there alone, random subsets, and torn writes.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};

use guestlens::block::memory::MemoryBackend;
use guestlens::block::record::Event;
use guestlens::block::{BlockBackend, BlockDevice, Extent, Geometry, Result};

use super::fuzz::Rng;

/// The operations of several files, in one order: which file, and what.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<(usize, Event)>>>);

impl Log {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn take(&self) -> Vec<(usize, Event)> {
        self.0.lock().unwrap().clone()
    }
}

/// Counts the flushes of each step of a test, and keeps one of them from happening.
#[derive(Clone, Default)]
pub struct Flushes(Arc<Mutex<FlushState>>);

#[derive(Default)]
struct FlushState {
    step: &'static str,
    seen_in_step: usize,
    most: BTreeMap<&'static str, usize>,
    swallowed: Option<(&'static str, usize)>,
}

impl Flushes {
    /// Keeps the `index`-th flush of each step of that name from happening.
    pub fn without(step: &'static str, index: usize) -> Self {
        let flushes = Self::default();
        flushes.0.lock().unwrap().swallowed = Some((step, index));
        flushes
    }

    /// What happens from now on belongs to this step.
    pub fn begin(&self, step: &'static str) {
        let mut state = self.0.lock().unwrap();
        (state.step, state.seen_in_step) = (step, 0);
    }

    /// Most flushes a step of each name had.
    pub fn most(&self) -> BTreeMap<&'static str, usize> {
        self.0.lock().unwrap().most.clone()
    }

    fn happens(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let (step, index) = (state.step, state.seen_in_step);
        state.seen_in_step += 1;
        let most = state.most.entry(step).or_default();
        *most = (*most).max(index + 1);
        state.swallowed != Some((step, index))
    }
}

/// A file in memory whose changes are recorded.
pub struct Recorder {
    below: BlockDevice,
    number: usize,
    log: Log,
    flushes: Flushes,
}

impl Recorder {
    /// File `number` of the log.
    pub fn device(bytes: Vec<u8>, number: usize, log: &Log, flushes: &Flushes) -> BlockDevice {
        BlockDevice::growable(Arc::new(Self {
            below: BlockDevice::growable(Arc::new(MemoryBackend::from_bytes(bytes))),
            number,
            log: log.clone(),
            flushes: flushes.clone(),
        }))
    }

    fn record(&self, event: Event) {
        self.log.0.lock().unwrap().push((self.number, event));
    }
}

impl BlockBackend for Recorder {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: 512,
            read_only: false,
        }
    }

    fn current_len(&self) -> u64 {
        self.below.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_exact_at(offset, buf)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below.extent_at(offset, len)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.below.write_all_at(offset, buf)?;
        self.record(Event::Write {
            offset,
            bytes: buf.into(),
        });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.below.write_zeroes(offset, len, may_unmap)?;
        self.record(Event::WriteZeroes { offset, len });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let inside = len.min(self.below.len().saturating_sub(offset));
        self.below.discard(offset, inside)?;
        self.record(Event::Discard { offset, len });
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.below.set_len(len)?;
        self.record(Event::SetLen { len });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.flushes.happens() {
            self.record(Event::Flush);
        }
        Ok(())
    }
}

/// Which parts of a write are there: of each piece of that many bytes on the medium.
#[derive(Clone, Copy)]
enum Torn {
    Whole,
    /// The pieces before this number.
    Head(u64, u64),
    /// The pieces from this number on.
    Tail(u64, u64),
    /// Those that a generator with this seed picks.
    Some(u64, u64),
}

impl Torn {
    fn has(self, offset: u64, at: u64) -> bool {
        let number = |unit| at / unit - offset / unit;
        match self {
            Self::Whole => true,
            Self::Head(unit, n) => number(unit) < n,
            Self::Tail(unit, n) => number(unit) >= n,
            Self::Some(unit, seed) => Rng::new(seed ^ number(unit) << 32).one_in(2),
        }
    }
}

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8], torn: Torn) {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let len = (512 - at as usize % 512).min(bytes.len() - done);
        if torn.has(offset, at) {
            let end = at as usize + len;
            if file.len() < end {
                file.resize(end, 0);
            }
            file[at as usize..end].copy_from_slice(&bytes[done..done + len]);
        }
        done += len;
    }
}

fn apply(event: &Event, file: &mut Vec<u8>, torn: Torn) {
    match event {
        Event::Write { offset, bytes } => put(file, *offset, bytes, torn),
        Event::WriteZeroes { offset, len } => put(file, *offset, &vec![0; *len as usize], torn),
        Event::Discard { offset, len } => {
            let len = (*len).min((file.len() as u64).saturating_sub(*offset));
            put(file, *offset, &vec![0; len as usize], torn);
        }
        Event::SetLen { len } => file.resize(*len as usize, 0),
        Event::Flush => {}
    }
}

/// How much [`states`] tries.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Most states of one kind (prefixes, single drops …) of one epoch.
    pub per_kind: usize,
    /// Random subsets of one epoch.
    pub random: usize,
}

/// A state of the files after a crash.
pub struct State<'a> {
    /// Events before this one may have happened; of the files' flushes, all of them have.
    pub at: usize,
    /// The contents.
    pub files: &'a [Vec<u8>],
    /// How it came about.
    pub how: &'a str,
}

/// Goes through crash states, each content once, until `check` fails; returns how many there were.
pub fn states(
    originals: &[Vec<u8>],
    log: &[(usize, Event)],
    effort: Effort,
    rng: &mut Rng,
    mut check: impl FnMut(&State<'_>) -> std::result::Result<(), String>,
) -> std::result::Result<usize, String> {
    let mut durable = originals.to_vec();
    let mut open: Vec<usize> = Vec::new();
    let mut seen = HashSet::new();
    let end = [(usize::MAX, Event::Flush)];
    for (at, (file, event)) in log.iter().chain(&end).enumerate() {
        if *event != Event::Flush {
            open.push(at);
            continue;
        }
        for (how, kept) in subsets(&open, log, effort, rng) {
            let mut files = durable.clone();
            for (index, torn) in kept {
                let (file, event) = &log[index];
                apply(event, &mut files[*file], torn);
            }
            let mut hasher = DefaultHasher::new();
            (&files, at).hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                let state = State {
                    at,
                    files: &files,
                    how: &how,
                };
                check(&state).map_err(|e| format!("before event {at}, {how}: {e}"))?;
            }
        }
        open.retain(|&index| {
            if log[index].0 == *file {
                apply(&log[index].1, &mut durable[*file], Torn::Whole);
            }
            log[index].0 != *file
        });
    }
    Ok(seen.len())
}

type Kept = Vec<(usize, Torn)>;

/// What of the open operations may have happened.
fn subsets(
    open: &[usize],
    log: &[(usize, Event)],
    effort: Effort,
    rng: &mut Rng,
) -> Vec<(String, Kept)> {
    let mut all: Vec<(String, Kept)> = Vec::new();
    let whole = |indexes: &[usize]| indexes.iter().map(|&i| (i, Torn::Whole)).collect::<Kept>();
    let n = open.len();
    let mut chosen: Vec<usize> = (0..n).collect();
    while chosen.len() > effort.per_kind {
        // The first and the last stay: they are where an order is most likely to be wrong.
        chosen.remove(1 + rng.index(chosen.len() - 2));
    }
    all.push(("nothing of the epoch".into(), Vec::new()));
    all.push((format!("all {n}"), whole(open)));
    for &i in &chosen {
        all.push((format!("the first {i} of {n}"), whole(&open[..i])));
        let mut without = open.to_vec();
        without.remove(i);
        all.push((format!("all but {i} of {n}"), whole(&without)));
        all.push((format!("only {i} of {n}"), whole(&open[i..=i])));
        let len = match &log[open[i]].1 {
            Event::Write { bytes, .. } => bytes.len() as u64,
            Event::WriteZeroes { len, .. } | Event::Discard { len, .. } => *len,
            Event::SetLen { .. } | Event::Flush => 0,
        };
        for unit in [512, 4096] {
            if len <= unit {
                continue;
            }
            let piece = 1 + rng.below(len.div_ceil(unit) - 1);
            for torn in [
                Torn::Head(unit, piece),
                Torn::Tail(unit, piece),
                Torn::Some(unit, rng.next()),
            ] {
                let mut prefix = whole(&open[..=i]);
                prefix[i].1 = torn;
                all.push((
                    format!("the first {i} of {n} and a part of the next"),
                    prefix,
                ));
                all.push((format!("only a part of {i} of {n}"), vec![(open[i], torn)]));
                let mut rest = whole(open);
                rest[i].1 = torn;
                all.push((format!("all {n}, a part of {i}"), rest));
            }
        }
    }
    if n > 1 {
        for number in 0..effort.random {
            let mut kept = Kept::new();
            for &index in open {
                match rng.below(5) {
                    0 | 1 => kept.push((index, Torn::Whole)),
                    2 => {
                        let unit = if rng.one_in(2) { 512 } else { 4096 };
                        kept.push((index, Torn::Some(unit, rng.next())));
                    }
                    _ => {}
                }
            }
            all.push((format!("random subset {number} of {n}"), kept));
        }
    }
    all
}
