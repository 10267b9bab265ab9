//! Random operations on generated qcow2 images of all kinds, against a model in memory; what comes
//! out is compared by qemu-img, which must find neither errors nor leaks.
//!
//! `GUESTLENS_LONG=N` makes each image see N times as many operations.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use guestlens::formats::{FormatErrorKind, Image, OpenOptions, open_path};
use support::images::{Backing, Data, Random, Variant, make, pairwise};
use support::{tool, workdir};

/// Images of all shards together.
const IMAGES: usize = 208;
const SHARDS: usize = 4;
const STEPS: u64 = 28;

fn open(image: &Path, write: bool) -> Arc<dyn Image> {
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write,
        ..OpenOptions::default()
    };
    for _ in 0..1000 {
        match open_path(image, &options) {
            // A process that another thread starts has all descriptors of this one for a moment.
            Err(e) if e.kind() == FormatErrorKind::Busy => sleep(Duration::from_millis(5)),
            result => return result.unwrap_or_else(|e| panic!("{}: {e:?}", image.display())),
        }
    }
    panic!("{} stays locked", image.display())
}

/// An image and what should be in it.
struct Subject {
    name: String,
    variant: Variant,
    path: std::path::PathBuf,
    image: Option<Arc<dyn Image>>,
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    random: Random,
    steps: Vec<String>,
}

impl Subject {
    fn image(&self) -> &Arc<dyn Image> {
        self.image.as_ref().unwrap()
    }

    /// Fails with all that was done.
    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}\n{}", self.name, self.steps.join("\n"))
    }

    fn done<T, E: std::fmt::Debug>(&self, result: Result<T, E>) -> T {
        result.unwrap_or_else(|e| self.fail(&format!("{e:?}")))
    }

    /// A range: aligned to nothing, to sectors, or to clusters.
    fn range(&mut self) -> (usize, usize) {
        let size = self.disk.len() as u64;
        let cluster = 1 << self.variant.cluster_bits;
        let unit = [1, 512, 4096, cluster][self.random.below(4) as usize];
        let at = self.random.below(size) / unit * unit;
        let most = match self.random.below(8) {
            0 => size / 3,
            1..=3 => 3 * cluster,
            _ => 16384,
        };
        let len = (1 + self.random.below(most.max(1))).div_ceil(unit) * unit;
        (at as usize, len.min(size - at) as usize)
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..=15 => {
                let (at, len) = self.range();
                let pattern = self.random.next();
                self.steps.push(format!("write {at} {len}"));
                let varied = self.random.below(3) > 0;
                let piece = &mut self.disk[at..at + len];
                piece.iter_mut().enumerate().for_each(|(i, b)| {
                    *b = if varied {
                        (pattern >> (i / 64 % 8)) as u8 ^ (i / 512) as u8
                    } else {
                        pattern as u8
                    }
                });
                let piece = self.disk[at..at + len].to_vec();
                self.done(self.image().device().write_all_at(at as u64, &piece));
            }
            16..=21 => {
                let (at, len) = self.range();
                let unmap = self.random.below(2) == 0;
                self.steps.push(format!("zero {at} {len} {unmap}"));
                self.disk[at..at + len].fill(0);
                let device = self.image().device();
                self.done(device.write_zeroes(at as u64, len as u64, unmap));
            }
            22..=25 => {
                let (at, len) = self.range();
                self.steps.push(format!("discard {at} {len}"));
                let device = self.image().device();
                self.done(device.discard(at as u64, len as u64));
                // What is there now may be zeroes or what was there, and stays.
                let now = self.done(device.read_vec(at as u64, len));
                self.disk[at..at + len].copy_from_slice(&now);
            }
            26..=29 => {
                self.steps.push("flush".into());
                self.done(self.image().device().flush());
            }
            30..=34 => {
                let (at, len) = self.range();
                self.steps.push(format!("read {at} {len}"));
                let got = self.done(self.image().device().read_vec(at as u64, len));
                if got != self.disk[at..at + len] {
                    self.fail("reads something else");
                }
            }
            35 => self.reopen(),
            36 => self.grow(),
            _ => self.snapshot(),
        }
    }

    fn close(&mut self) {
        self.steps.push("close".into());
        let writer = self.image().writer();
        self.done(writer.expect("a writer").close());
        self.image = None;
    }

    fn reopen(&mut self) {
        self.close();
        self.image = Some(open(&self.path, true));
    }

    fn grow(&mut self) {
        let cluster = 1_u64 << self.variant.cluster_bits;
        let more = 512 * (1 + self.random.below(2 * cluster.min(1 << 20) / 512));
        // Snapshots of version 2 do not record how large they are.
        let fixed = self.variant.version == 2 && !self.snapshots.is_empty();
        if self.disk.len() > 6 << 20 || fixed {
            return;
        }
        let size = self.disk.len() as u64 + more;
        self.steps.push(format!("resize {size}"));
        let writer = self.image().writer();
        self.done(writer.expect("a writer").resize(size));
        self.disk.resize(size as usize, 0);
        self.reopen();
    }

    fn snapshot(&mut self) {
        // A data file holds one state only.
        if !self.variant.may_keep() {
            return;
        }
        let there = self.snapshots.len() as u64;
        let listed = self.image().info().snapshots.len() as u64;
        if there == 0 || (there < 5 && self.random.below(2) == 0) {
            let name = format!("n{}", self.random.next());
            self.steps.push(format!("create {name}"));
            let writer = self.image().writer();
            self.done(writer.expect("a writer").create_snapshot(&name));
            self.snapshots.push((name, self.disk.clone()));
            return;
        }
        if listed != there {
            self.reopen();
        }
        let index = self.random.below(there) as usize;
        if self.random.below(2) == 0 {
            self.steps.push(format!("delete {index}"));
            let writer = self.image().writer();
            self.done(writer.expect("a writer").delete_snapshot(index));
            self.snapshots.remove(index);
        } else {
            self.steps.push(format!("apply {index}"));
            let writer = self.image().writer();
            self.done(writer.expect("a writer").apply_snapshot(index));
            self.disk = self.snapshots[index].1.clone();
        }
        self.reopen();
    }

    /// The image, closed, is what the model says, for us and for qemu-img.
    fn compare(&mut self) {
        let dir = self.path.parent().unwrap().to_owned();
        let device = self.image().device();
        if device.read_vec(0, self.disk.len()).unwrap() != self.disk {
            self.fail("the disk differs before closing");
        }
        drop(device);
        self.close();
        let qemu = |arguments: &[&str]| {
            let mut output = None;
            for _ in 0..1000 {
                let mut command = tool("qemu-img");
                let done = command.current_dir(&dir).args(arguments).output().unwrap();
                let locked = String::from_utf8_lossy(&done.stderr).contains("lock");
                output = Some(done);
                if !locked {
                    break;
                }
                sleep(Duration::from_millis(5));
            }
            let output = output.unwrap();
            if !output.status.success() {
                self.fail(&format!(
                    "qemu-img {arguments:?}: {}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        };
        std::fs::write(dir.join("model"), &self.disk).unwrap();
        qemu(&["check", "-q", "-f", "qcow2", "image.qcow2"]);
        qemu(&[
            "compare",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "image.qcow2",
            "model",
        ]);
        if self.variant.data == Data::ExternalRaw {
            let data = std::fs::read(dir.join("data.bin")).unwrap();
            if data[..self.disk.len().min(data.len())] != self.disk {
                self.fail("the raw data file differs");
            }
        }
        let opened = open(&self.path, false);
        if !opened.info().warnings.is_empty() {
            self.fail(&format!("{:?}", opened.info().warnings));
        }
        if opened.device().read_vec(0, self.disk.len()).unwrap() != self.disk {
            self.fail("the disk differs");
        }
        if opened.info().snapshots.len() != self.snapshots.len() {
            self.fail("another number of snapshots");
        }
        for (index, (name, content)) in self.snapshots.iter().enumerate() {
            let device = self.done(opened.open_snapshot(index));
            if device.len() != content.len() as u64
                || device.read_vec(0, content.len()).unwrap() != *content
            {
                self.fail(&format!("snapshot {name} differs"));
            }
        }
        // One of them as qemu-img sees it.
        if let Some((name, content)) = self.snapshots.last() {
            let selector = format!("snapshot.id={}", opened.info().snapshots.last().unwrap().id);
            qemu(&[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-l",
                &selector,
                "image.qcow2",
                "kept",
            ]);
            // QEMU shows it as long as the disk is now.
            let kept = std::fs::read(dir.join("kept")).unwrap();
            let both = kept.len().min(content.len());
            if kept[..both] != content[..both] {
                self.fail(&format!("snapshot {name} differs for qemu-img"));
            }
        }
    }
}

/// Bytes of the files below an image, which must stay as they are.
fn below(dir: &Path) -> Vec<Option<Vec<u8>>> {
    ["base", "middle"]
        .iter()
        .map(|name| std::fs::read(dir.join(name)).ok())
        .collect()
}

fn try_image(variant: &Variant, number: usize) {
    let dir = workdir();
    let mut random = Random(0x5EED + number as u64 * 7919);
    let path = make(dir.path(), variant, &mut random);
    let before = below(dir.path());
    let image = open(&path, true);
    let device = image.device();
    let whole = device.read_vec(0, device.len() as usize).unwrap();
    let snapshots = image.info().snapshots.iter().enumerate();
    let snapshots = snapshots.map(|(index, s)| {
        let device = image.open_snapshot(index).unwrap();
        let content = device.read_vec(0, device.len() as usize).unwrap();
        (s.name.clone(), content)
    });
    let snapshots = snapshots.collect();
    drop(device);
    let mut subject = Subject {
        name: format!("{number} {}", variant.name()),
        variant: *variant,
        path,
        image: Some(image),
        disk: whole,
        snapshots,
        random,
        steps: Vec::new(),
    };
    let times = std::env::var("GUESTLENS_LONG").ok();
    let times: u64 = times.and_then(|n| n.parse().ok()).unwrap_or(1);
    for _ in 0..STEPS * times {
        subject.step();
    }
    subject.compare();
    assert_eq!(
        variant.backing == Backing::None,
        before.iter().all(Option::is_none)
    );
    assert!(
        before == below(dir.path()),
        "{}: a backing file changed",
        subject.name
    );
}

fn shard(number: usize) {
    let variants = pairwise(IMAGES);
    let mine: Vec<(usize, &Variant)> = variants
        .iter()
        .enumerate()
        .filter(|(n, _)| n % SHARDS == number)
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((number, variant)) = mine.get(next.fetch_add(1, Ordering::Relaxed)) {
                    try_image(variant, *number);
                }
            });
        }
    });
    println!("{} images", mine.len());
    assert!(mine.len() >= IMAGES / SHARDS);
}

#[test]
fn a_quarter_of_the_images() {
    shard(0);
}

#[test]
fn another_quarter() {
    shard(1);
}

#[test]
fn a_third_quarter() {
    shard(2);
}

#[test]
fn the_last_quarter() {
    shard(3);
}
