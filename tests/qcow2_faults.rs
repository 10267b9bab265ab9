//! Writes and flushes that fail, each one of a run in turn, and a disk that is full: the failure is
//! reported by what met it, nothing is written afterwards, and the image is as it was at the last
//! flush that succeeded, or newer.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use guestlens::formats::{OpenOptions, open_path};
use support::crash::Flushes;
use support::failing::Calls;
use support::fuzz::Rng;
use support::guest_disk::{History, SECTOR, Step, contents, identify};
use support::qcow2_run::{self, Failed, Files, KINDS, Kind, Run};
use support::{is_root, run, shell, skip, tool, workdir};

const STEPS: usize = 30;
const SEED: u64 = 11;

/// Random steps and the end, until something fails; fails itself if a failure is not reported.
fn go(kind: &Kind, files: &Files, calls: &Calls) -> Result<(), Option<Box<Run>>> {
    let below = |device| calls.before(device);
    let Ok(mut run) = Run::start(files, Flushes::default(), SEED, below) else {
        return Err(None);
    };
    for number in 0..=STEPS {
        let result = if number < STEPS {
            run.random_step()
        } else {
            run.close()
        };
        match result {
            Ok(()) => assert!(
                !calls.has_failed(),
                "{}: step {number} met a failure and did not tell",
                kind.name
            ),
            Err(Failed(text)) => {
                assert!(calls.has_failed(), "{}: step {number}: {text}", kind.name);
                return Err(Some(Box::new(run)));
            }
        }
    }
    Ok(())
}

/// What is in the files after a failure.
fn examine(name: &str, run: &Run, dir: &Path, ask_qemu: bool) {
    let files = run.present();
    let base = run.files.base.as_ref();
    let fail = |e: String| panic!("{name}: {e}");
    let found = qcow2_run::read(&files, base).unwrap_or_else(|e| panic!("{name}: {e}"));
    let at = run.log.len();
    identify(0, &found.disk)
        .and_then(|ids| run.history.check(at, &ids))
        .and_then(|()| run.history.check_kept(at, &found.kept))
        .and_then(|()| qcow2_run::check(&files))
        .unwrap_or_else(fail);
    if ask_qemu {
        qcow2_run::ask_qemu(dir, &files, base, &found.disk).unwrap_or_else(fail);
    }
    // It can be written to again.
    let again = Files {
        written: files,
        base: run.files.base.clone(),
        ids: identify(0, &found.disk).unwrap(),
    };
    let mut run = Run::start(&again, Flushes::default(), 1, |d| d).unwrap();
    run.write(3, 40).unwrap();
    run.compare().unwrap_or_else(fail);
    run.close().unwrap();
    qcow2_run::check(&run.present()).unwrap_or_else(fail);
}

fn fail_every_call(kinds: &[Kind]) {
    let cases = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for kind in kinds {
            let cases = &cases;
            scope.spawn(move || {
                let files = qcow2_run::make(kind);
                let dir = workdir();
                let calls = Calls::failing(u64::MAX, true);
                let healthy = go(kind, &files, &calls);
                assert!(healthy.is_ok(), "{}", kind.name);
                let count = calls.seen();
                for number in 0..count {
                    for once in [true, false] {
                        let calls = Calls::failing(number, once);
                        let name = format!("{}, call {number} of {count}, {once}", kind.name);
                        match go(kind, &files, &calls) {
                            Ok(()) => panic!("{name}: all went well"),
                            Err(None) => {}
                            Err(Some(mut run)) => {
                                // The second attempt must not claim what the first did not do.
                                assert!(run.write(0, 1).is_err(), "{name}: a write");
                                assert!(run.flush().is_err(), "{name}: a flush");
                                assert!(run.close().is_err(), "{name}: closing");
                                examine(&name, &run, dir.path(), number % 9 == 0 && once);
                            }
                        }
                        cases.fetch_add(1, Ordering::Relaxed);
                    }
                }
                println!("{}: {count} calls", kind.name);
            });
        }
    });
    println!("{cases:?} runs with a failure");
}

#[test]
fn every_call_of_plain_images() {
    fail_every_call(&KINDS[..5]);
}

#[test]
fn every_call_with_subclusters_and_snapshots() {
    fail_every_call(&KINDS[5..10]);
}

#[test]
fn every_call_with_compressed_clusters_and_other_files() {
    fail_every_call(&KINDS[10..]);
}

/// A small filesystem of its own, gone when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(point: &'a Path, size: &str) -> Self {
        std::fs::create_dir(point).unwrap();
        let mut mount = tool("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        run(mount.arg(point));
        Self(point)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = tool("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk() {
    if !is_root() {
        skip!("only root mounts a small filesystem");
    }
    for (number, options) in [
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10,cluster_size=4k",
        "cluster_size=4k,data_file=data",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = workdir();
        let point = dir.path().join("small");
        let _mounted = Tmpfs::new(&point, "1m");
        shell(
            &point,
            &format!("qemu-img create -q -f qcow2 -o {options} image 8m"),
        );
        let options_of_open = OpenOptions {
            format: Some("qcow2".into()),
            write: true,
            ..OpenOptions::default()
        };
        let image = open_path(&point.join("image"), &options_of_open).unwrap();
        let device = image.device();
        let sectors = (8 << 20) / SECTOR;
        let mut history = History::new(vec![0; sectors]);
        let mut rng = Rng::new(number as u64);
        let mut failed = false;
        for id in 10..2000_u32 {
            let durable = rng.one_in(6);
            let len = 1 + rng.index(40);
            let first = rng.index(sectors - len);
            let ids = vec![id; len];
            let result = if durable {
                device.flush()
            } else {
                device.write_all_at((first * SECTOR) as u64, &contents(first, &ids))
            };
            history.steps.push(Step {
                log: if result.is_ok() { 0..0 } else { 0..usize::MAX },
                change: (!durable).then_some((first, ids)),
                durable,
                sectors,
            });
            if let Err(error) = result {
                let text = format!("{error:?}");
                assert!(text.contains("StorageFull"), "{text}");
                failed = true;
                break;
            }
        }
        assert!(failed, "{options}: it never was full");
        assert!(device.write_all_at(0, &[1; 512]).is_err());
        assert!(device.flush().is_err());
        assert!(image.writer().unwrap().close().is_err());
        drop((device, image));
        let files: Vec<Vec<u8>> = ["image", "data"]
            .iter()
            .filter_map(|name| std::fs::read(point.join(name)).ok())
            .collect();
        qcow2_run::read(&files, None)
            .and_then(|found| identify(0, &found.disk))
            .and_then(|ids| history.check(usize::MAX - 1, &ids))
            .unwrap_or_else(|e| panic!("{options}: {e}"));
        let checked = tool("qemu-img")
            .current_dir(&point)
            .args(["check", "-q", "-f", "qcow2", "image"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&checked.stdout);
        assert!(
            matches!(checked.status.code(), Some(0 | 3)),
            "{options}: {text}"
        );
    }
}
