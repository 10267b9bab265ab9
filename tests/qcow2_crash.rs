//! The power goes at any moment while a qcow2 image is written to: the image is never worse than
//! leaky, and every byte that was flushed is there. And this test notices where a flush is left
//! out.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use support::crash::{Effort, Flushes, State, states};
use support::fuzz::Rng;
use support::guest_disk::identify;
use support::qcow2_run::{self, Failed, Files, KINDS, Kind, Run};
use support::workdir;

/// How often the image is written to again.
const RECOVER_ONE_IN: u64 = 10;
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

/// Steps of a run.
const STEPS: usize = 60;

/// Random steps on an image of a kind, recorded.
fn record(kind: &Kind, files: &Files, flushes: Flushes, seed: u64) -> Run {
    let mut run = Run::start(files, flushes, seed, |device| device).unwrap();
    for number in 0..STEPS {
        run.random_step()
            .unwrap_or_else(|e| panic!("{}, step {number}: {}", kind.name, e.0));
    }
    run.close().unwrap();
    run
}

/// The image after a crash is written to, which repairs it first if it has to be.
fn recover(files: &[Vec<u8>], base: Option<&Vec<u8>>, ids: Vec<u32>) -> Result<(), String> {
    let files = Files {
        written: files.to_vec(),
        base: base.cloned(),
        ids,
    };
    let failed = |e: Failed| e.0;
    let mut run = Run::start(&files, Flushes::default(), 1, |device| device).map_err(failed)?;
    run.write(7, 30).map_err(failed)?;
    run.compare()?;
    run.close().map_err(failed)?;
    let files = run.present();
    if qcow2_run::is_dirty(&files[0]) {
        return Err("still marked".into());
    }
    qcow2_run::check(&files)
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
    if asked.rng.one_in(RECOVER_ONE_IN) {
        let ids = identify(0, &found.disk)?;
        recover(state.files, base, ids).map_err(|e| format!("written to again: {e}"))?;
    }
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
    crash_kinds(&KINDS[5..10]);
}

#[test]
fn compressed_clusters_and_other_files() {
    crash_kinds(&KINDS[10..]);
}

/// Flushes that are left out, one at a time: which one of which steps.
const LEFT_OUT: [(&str, usize); 13] = [
    ("flush", 0),
    ("flush", 1),
    ("flush", 2),
    ("close", 0),
    ("close", 1),
    ("close", 2),
    ("create snapshot", 0),
    ("create snapshot", 1),
    ("create snapshot", 2),
    ("create snapshot", 3),
    ("create snapshot", 4),
    ("apply snapshot", 2),
    ("delete snapshot", 0),
];

/// Kinds in which one of them is missed.
const TELLING: [usize; 5] = [0, 1, 3, 4, 6];

#[test]
fn a_flush_that_is_left_out_is_noticed() {
    let files: Vec<Files> = TELLING.map(|n| qcow2_run::make(&KINDS[n])).into();
    let next = AtomicUsize::new(0);
    let unnoticed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&(step, index)) = LEFT_OUT.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let noticed = TELLING.iter().zip(&files).find_map(|(&number, files)| {
                        let kind = &KINDS[number];
                        let run = record(kind, files, Flushes::without(step, index), 7);
                        let has_it = run.flushes.most().get(step) > Some(&index);
                        let noticed = has_it
                            .then(|| crash(&run, 7, u64::MAX, &AtomicUsize::new(0)).err())
                            .flatten();
                        noticed.map(|e| format!("{}: {e}", kind.name))
                    });
                    match noticed {
                        Some(how) => {
                            let how: String = how.chars().take(200).collect();
                            println!("without flush {index} of {step}: {how}");
                        }
                        None => unnoticed.lock().unwrap().push((step, index)),
                    }
                }
            });
        }
    });
    let unnoticed = unnoticed.into_inner().unwrap();
    assert!(unnoticed.is_empty(), "never missed: {unnoticed:?}");
}
