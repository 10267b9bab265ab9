//! Deterministic mutation fuzzing under stable Rust: a seeded generator, byte mutators, and a loop
//! that fails on a panic (by letting it through) or on a case that takes longer than a second.

use std::time::{Duration, Instant};

/// A small deterministic generator (xorshift64*); the same seed gives the same run everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound` (which must not be 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Values that sit on the edges of integer fields.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    u64::MAX,
];

/// Changes a few bytes of `data[range]`: single bits, bytes, edge values of integers in both byte
/// orders, copies and swaps of short runs.
pub fn mutate(rng: &mut Rng, data: &mut [u8], range: std::ops::Range<usize>) {
    let range = range.start.min(data.len())..range.end.min(data.len());
    if range.is_empty() {
        return;
    }
    let len = range.len();
    for _ in 0..=rng.index(4) {
        let at = range.start + rng.index(len);
        let room = range.end - at;
        match rng.below(7) {
            0 => data[at] ^= 1 << rng.below(8),
            1 => data[at] = rng.next() as u8,
            2 | 3 => {
                let width = [1, 2, 4, 8][rng.index(4)].min(room);
                let mut value = EDGES[rng.index(EDGES.len())];
                if rng.one_in(3) {
                    value = value.wrapping_add(rng.below(5)).wrapping_sub(2);
                }
                let bytes = if rng.one_in(2) {
                    value.to_le_bytes()
                } else {
                    value.to_be_bytes()
                };
                let from = if rng.one_in(2) { 0 } else { 8 - width };
                data[at..at + width].copy_from_slice(&bytes[from..from + width]);
            }
            4 => {
                let run = (1 + rng.index(16)).min(room);
                let from = range.start + rng.index(len - run + 1);
                data.copy_within(from..from + run, at);
            }
            5 => {
                let run = (1 + rng.index(32)).min(room);
                data[at..at + run].fill(if rng.one_in(2) { 0 } else { 0xFF });
            }
            _ => data[at] = data[at].wrapping_add(1 + rng.below(8) as u8),
        }
    }
}

/// For text: also inserts and removes, from `tokens` that matter to the parser under test.
pub fn mutate_text(rng: &mut Rng, text: &mut Vec<u8>, tokens: &[&[u8]]) {
    for _ in 0..=rng.index(4) {
        let at = rng.index(text.len() + 1);
        match rng.below(4) {
            0 => {
                let token = tokens[rng.index(tokens.len())];
                text.splice(at..at, token.iter().copied());
            }
            1 => {
                let end = (at + rng.index(20)).min(text.len());
                text.drain(at..end);
            }
            2 => {
                let end = (at + rng.index(40)).min(text.len());
                let piece = text[at..end].to_vec();
                let to = rng.index(text.len() + 1);
                text.splice(to..to, piece);
            }
            _ => {
                let all = 0..text.len();
                mutate(rng, text, all);
            }
        }
    }
}

/// Runs `cases` numbered cases on as many threads as there are cores. Each gets a generator of its
/// own number, so that one failing case can be run alone with `GUESTLENS_FUZZ_CASE=N`. Fails if a
/// case takes more than a second of wall time twice in a row (a busy machine may delay it once).
pub fn run(cases: u64, case: impl Fn(u64, &mut Rng) + Sync) {
    if let Some(only) = std::env::var("GUESTLENS_FUZZ_CASE")
        .ok()
        .and_then(|n| n.parse().ok())
    {
        case(only, &mut Rng::new(only));
        return;
    }
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let case = &case;
            scope.spawn(move || {
                for number in (thread..cases).step_by(threads as usize) {
                    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        for attempt in 0..2 {
                            let started = Instant::now();
                            case(number, &mut Rng::new(number));
                            let took = started.elapsed();
                            if took < Duration::from_secs(1) {
                                break;
                            }
                            assert!(attempt == 0, "case {number} took {took:?}");
                        }
                    }));
                    if let Err(panic) = caught {
                        eprintln!(
                            "fuzz case {number} failed; GUESTLENS_FUZZ_CASE={number} runs it alone"
                        );
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
    eprintln!("{cases} cases");
}

/// Asks a device for its extents and reads here and there.
pub fn exercise_device(
    device: &guestlens::block::BlockDevice,
    rng: &mut Rng,
    read: &std::sync::atomic::AtomicU64,
    failed: &std::sync::atomic::AtomicU64,
) {
    let mut buf = [0; 6000];
    let mut at = 0;
    for _ in 0..32 {
        if at >= device.len() {
            break;
        }
        let Ok(extent) = device.extent_at(at, device.len() - at) else {
            break;
        };
        assert!(extent.len > 0 && extent.len <= device.len() - at);
        at += extent.len;
    }
    let len = device.len().max(1);
    for at in [0, 10_000, rng.below(131_072), rng.below(len), len - 1] {
        let counter = match device.read_some_at(at, &mut buf) {
            Ok(_) => read,
            Err(_) => failed,
        };
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    device.prefetch(rng.below(len), u64::MAX);
}

/// The most memory this process had at any time, in KiB.
pub fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}
