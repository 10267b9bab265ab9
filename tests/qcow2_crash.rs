//! The power goes at any moment while a qcow2 image is written to: the image is never worse than
//! leaky, and every byte that was flushed is there. And without any single one of the writer's
//! flushes this test would have noticed.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::crash::{Effort, Flushes, State, states};
use support::fuzz::Rng;
use support::guest_disk::identify;
use support::qcow2_run::{self, Files, KINDS, Kind, Mix, Run, WHOLE_IMAGE};
use support::workdir;

/// How often qemu-img is asked as well: once in so many states.
const QEMU_ONE_IN: u64 = 60;

fn effort() -> Effort {
    match std::env::var("GUESTLENS_LONG") {
        Ok(_) => Effort {
            per_kind: 40,
            random: 60,
        },
        Err(_) => Effort {
            per_kind: 8,
            random: 6,
        },
    }
}

fn mix(kind: &Kind) -> Mix {
    let _ = kind;
    Mix {
        steps: 40,
        whole_image: WHOLE_IMAGE,
    }
}

/// Random steps on an image of a kind, recorded.
fn record(kind: &Kind, files: &Files, flushes: Flushes, seed: u64) -> Run {
    let mut run = Run::start(files, flushes, seed, |device| device).unwrap();
    for number in 0..mix(kind).steps {
        run.random_step(mix(kind))
            .unwrap_or_else(|e| panic!("{}, step {number}: {}", kind.name, e.0));
    }
    run.close().unwrap();
    run
}

struct Asked<'a> {
    dir: &'a std::path::Path,
    one_in: u64,
    rng: Rng,
    times: &'a AtomicUsize,
}

/// What must be true of every state.
fn check_state(run: &Run, state: &State<'_>, asked: &mut Asked<'_>) -> Result<(), String> {
    let base = run.files.base.as_ref();
    let found = qcow2_run::read(state.files, base)?;
    run.history.check(state.at, &identify(0, &found.disk)?)?;
    run.history.check_kept(state.at, &found.kept)?;
    qcow2_run::check(state.files)?;
    if asked.rng.one_in(asked.one_in) {
        asked.times.fetch_add(1, Ordering::Relaxed);
        qcow2_run::ask_qemu(asked.dir, state.files, base, &found.disk)?;
    }
    Ok(())
}

/// Goes through the crash states of a recorded run.
fn crash(run: &Run, seed: u64, one_in: u64, times: &AtomicUsize) -> Result<usize, String> {
    let dir = workdir();
    let mut asked = Asked {
        dir: dir.path(),
        one_in,
        rng: Rng::new(seed),
        times,
    };
    let log = run.events();
    states(
        &run.files.written,
        &log,
        effort(),
        &mut Rng::new(seed),
        |state| check_state(run, state, &mut asked),
    )
}

fn crash_kinds(kinds: &[Kind]) {
    let (total, qemu) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (number, kind) in kinds.iter().enumerate() {
            let (total, qemu) = (&total, &qemu);
            scope.spawn(move || {
                let files = qcow2_run::make(kind);
                let seed = 100 + number as u64;
                let run = record(kind, &files, Flushes::default(), seed);
                let states = crash(&run, seed, QEMU_ONE_IN, qemu)
                    .unwrap_or_else(|e| panic!("{}: {e}", kind.name));
                println!("{}: {} events, {states} states", kind.name, run.log.len());
                total.fetch_add(states, Ordering::Relaxed);
            });
        }
    });
    println!("{total:?} states, {qemu:?} of them shown to qemu-img");
}

#[test]
fn plain_images() {
    crash_kinds(&KINDS[..5]);
}

#[test]
fn subclusters_and_snapshots() {
    crash_kinds(&KINDS[5..9]);
}

#[test]
fn compressed_clusters_and_other_files() {
    crash_kinds(&KINDS[9..]);
}

/// Flushes of each step in a run of every kind.
fn all_flushes(files: &[Files]) -> BTreeMap<&'static str, usize> {
    let mut most = BTreeMap::new();
    for (kind, files) in KINDS.iter().zip(files) {
        let run = record(kind, files, Flushes::default(), 7);
        for (step, count) in run.flushes.most() {
            let known = most.entry(step).or_insert(0);
            *known = count.max(*known);
        }
    }
    most
}

#[test]
fn without_any_one_flush_this_is_noticed() {
    let files: Vec<Files> = KINDS.iter().map(qcow2_run::make).collect();
    let most = all_flushes(&files);
    println!("flushes: {most:?}");
    let unnoticed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (&step, &count) in &most {
            for index in 0..count {
                let (files, unnoticed) = (&files, &unnoticed);
                scope.spawn(move || {
                    let noticed = KINDS.iter().zip(files).find_map(|(kind, files)| {
                        let run = record(kind, files, Flushes::without(step, index), 7);
                        crash(&run, 7, u64::MAX, &AtomicUsize::new(0))
                            .err()
                            .map(|e| format!("{}: {e}", kind.name))
                    });
                    match noticed {
                        Some(how) => println!("without flush {index} of {step}: {how}"),
                        None => unnoticed.lock().unwrap().push((step, index)),
                    }
                });
            }
        }
    });
    let unnoticed = unnoticed.into_inner().unwrap();
    assert!(unnoticed.is_empty(), "never missed: {unnoticed:?}");
}
