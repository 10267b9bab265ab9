//! A qcow2 image in memory under random operations, every change of its files recorded, and its
//! content known sector by sector.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use guestlens::block::memory::MemoryBackend;
use guestlens::block::record::Event;
use guestlens::block::{BlockDevice, BlockError};
use guestlens::formats::{FormatError, Image, ImageWriter, OpenOptions, open_device_among, qcow2};

use super::crash::{Flushes, Log, Recorder};
use super::fuzz::Rng;
use super::guest_disk::{History, Kept, SECTOR, Step, contents, identify};
use super::{shell, tool, workdir};

/// A kind of image.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    /// Options of `qemu-img create -o`.
    pub options: &'static str,
    /// Size of the disk in KiB.
    pub kib: usize,
    pub backing: Option<&'static str>,
    /// How the present content is written: not at all, plainly, or compressed.
    pub filled: Filled,
    /// An internal snapshot is there from the beginning.
    pub snapshot: bool,
    /// The image was not closed properly, and most of its refcounts were not written.
    pub dirty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filled {
    No,
    Plain,
    Compressed,
}

const PLAIN: Kind = Kind {
    name: "version 3",
    options: "cluster_size=4k",
    kib: 512,
    backing: None,
    filled: Filled::Plain,
    snapshot: false,
    dirty: false,
};

/// All kinds.
pub const KINDS: [Kind; 16] = [
    PLAIN,
    Kind {
        name: "version 2",
        options: "compat=0.10,cluster_size=4k",
        ..PLAIN
    },
    Kind {
        name: "empty",
        filled: Filled::No,
        ..PLAIN
    },
    Kind {
        name: "clusters of 512 bytes",
        options: "cluster_size=512",
        kib: 256,
        ..PLAIN
    },
    Kind {
        name: "a refcount table that grows",
        options: "cluster_size=512,refcount_bits=64",
        // A refcount table of one cluster is for files of 2 MiB.
        kib: 2400,
        filled: Filled::No,
        ..PLAIN
    },
    Kind {
        name: "subclusters",
        options: "cluster_size=16k,extended_l2=on",
        ..PLAIN
    },
    Kind {
        name: "snapshot",
        snapshot: true,
        ..PLAIN
    },
    Kind {
        name: "snapshot, subclusters",
        options: "cluster_size=16k,extended_l2=on",
        snapshot: true,
        ..PLAIN
    },
    Kind {
        name: "compressed",
        filled: Filled::Compressed,
        ..PLAIN
    },
    Kind {
        name: "compressed, snapshot",
        options: "cluster_size=4k,compression_type=zstd",
        filled: Filled::Compressed,
        snapshot: true,
        ..PLAIN
    },
    Kind {
        name: "backing raw",
        options: "cluster_size=8k",
        backing: Some("raw"),
        filled: Filled::No,
        ..PLAIN
    },
    Kind {
        name: "backing qcow2, subclusters",
        options: "cluster_size=16k,extended_l2=on",
        backing: Some("qcow2"),
        filled: Filled::No,
        ..PLAIN
    },
    Kind {
        name: "external data",
        options: "cluster_size=4k,data_file=data",
        ..PLAIN
    },
    Kind {
        name: "not closed properly",
        dirty: true,
        ..PLAIN
    },
    Kind {
        name: "not closed properly, snapshot, clusters of 512 bytes",
        options: "cluster_size=512",
        kib: 256,
        snapshot: true,
        dirty: true,
        ..PLAIN
    },
    Kind {
        name: "external raw data",
        options: "cluster_size=4k,data_file=data,data_file_raw=on",
        ..PLAIN
    },
];

/// The files of an image: itself, perhaps its data file; and the one below it, which nobody writes.
#[derive(Clone)]
pub struct Files {
    pub written: Vec<Vec<u8>>,
    pub base: Option<Vec<u8>>,
    /// The content, and that of the snapshot `before`.
    pub ids: Vec<u32>,
}

/// Makes an image with qemu-img.
pub fn make(kind: &Kind) -> Files {
    let dir = workdir();
    let sectors = kind.kib * 2;
    let layer = |id: u32, ranges: &[(usize, usize)]| {
        let mut ids = vec![0; sectors];
        for &(from, to) in ranges {
            ids[sectors * from / 100..sectors * to / 100].fill(id);
        }
        ids
    };
    let own = layer(1, &[(0, 40), (55, 80)]);
    let below = layer(2, &[(10, 30), (50, 95)]);
    std::fs::write(dir.path().join("content"), contents(0, &own)).unwrap();
    let backing = match kind.backing {
        None => String::new(),
        Some(format) => {
            std::fs::write(dir.path().join("below"), contents(0, &below)).unwrap();
            shell(
                dir.path(),
                &format!("qemu-img convert -f raw -O {format} below base"),
            );
            format!("-b base -F {format}")
        }
    };
    shell(
        dir.path(),
        &format!(
            "qemu-img create -q -f qcow2 -o {} {backing} image {}k",
            kind.options, kind.kib
        ),
    );
    let convert = match kind.filled {
        Filled::No => "",
        Filled::Plain => "qemu-img convert -n -f raw -O qcow2 content image",
        Filled::Compressed => "qemu-img convert -n -c -f raw -O qcow2 content image",
    };
    shell(dir.path(), convert);
    if kind.snapshot {
        shell(dir.path(), "qemu-img snapshot -c before image");
    }
    let read = |name: &str| std::fs::read(dir.path().join(name)).ok();
    let mut written: Vec<Vec<u8>> = ["image", "data"].into_iter().filter_map(read).collect();
    if kind.dirty {
        make_dirty(&mut written[0]);
    }
    Files {
        written,
        base: read("base"),
        ids: match (kind.filled, kind.backing) {
            (Filled::No, None) => vec![0; sectors],
            (Filled::No, Some(_)) => below,
            _ => own,
        },
    }
}

/// What a crash leaves of an image with lazy refcounts: the mark, and refcounts of 0 for whatever
/// came later than the first clusters.
fn make_dirty(image: &mut [u8]) {
    let be64 = |image: &[u8], at: usize| {
        u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize
    };
    let cluster = 1 << image[23];
    let block = be64(image, be64(image, 48));
    image[block + 24..block + cluster].fill(0);
    image[79] |= 1;
}

/// Whether the image is marked as not closed properly.
pub fn is_dirty(image: &[u8]) -> bool {
    image[7] > 2 && image[79] & 1 != 0
}

fn read_only(bytes: &[u8]) -> BlockDevice {
    MemoryBackend::from_bytes(bytes.to_vec())
        .into_device()
        .into_read_only()
}

/// Opens the image in devices.
pub fn open(
    written: &[BlockDevice],
    base: Option<&Vec<u8>>,
    write: bool,
) -> Result<Arc<dyn Image>, FormatError> {
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write,
        ..OpenOptions::default()
    };
    let mut provided = BTreeMap::new();
    if let Some(base) = base {
        provided.insert(b"base".to_vec(), read_only(base));
    }
    if let Some(data) = written.get(1) {
        provided.insert(b"data".to_vec(), data.clone());
    }
    open_device_among(written[0].clone(), Path::new("image"), provided, &options)
}

/// What is in files as a crash left them: the disk and the snapshots.
pub struct Found {
    pub disk: Vec<u8>,
    pub kept: Vec<(String, Vec<u32>)>,
}

/// Reads everything that is in the image.
pub fn read(written: &[Vec<u8>], base: Option<&Vec<u8>>) -> Result<Found, String> {
    let devices: Vec<BlockDevice> = written.iter().map(|f| read_only(f)).collect();
    let image = open(&devices, base, false).map_err(|e| format!("{e:?}"))?;
    // Clusters that were taken and not yet written may lie behind the end of the file.
    let mut warnings = image.info().warnings.iter();
    let expected = |w: &&String| w.contains("cut short") || w.contains("not closed properly");
    if let Some(warning) = warnings.find(|w| !expected(w)) {
        return Err(format!("a warning: {warning}"));
    }
    let whole = |device: &BlockDevice| {
        device
            .read_vec(0, device.len() as usize)
            .map_err(|e| format!("{e:?}"))
    };
    let mut kept = Vec::new();
    for (number, snapshot) in image.info().snapshots.iter().enumerate() {
        let device = image
            .open_snapshot(number)
            .map_err(|e| format!("snapshot {}: {e:?}", snapshot.name))?;
        kept.push((snapshot.name.clone(), identify(0, &whole(&device)?)?));
    }
    Ok(Found {
        disk: whole(&image.device())?,
        kept,
    })
}

/// Whether our own check finds no corruption. Of an image that is marked as not closed properly it
/// may.
pub fn check(written: &[Vec<u8>]) -> Result<(), String> {
    if is_dirty(&written[0]) {
        return Ok(());
    }
    let file = read_only(&written[0]);
    let header = qcow2::read_header(&file).map_err(|e| format!("{e:?}"))?;
    let report = qcow2::check::check(&file, &header).map_err(|e| format!("{e:?}"))?;
    let worse = report.problems.iter().any(|p| !is_harmless(&written[0], p));
    if report.check_errors > 0 || (report.corruptions > 0 && worse) {
        return Err(format!("check: {:?}", report.problems));
    }
    Ok(())
}

/// Taking a snapshot cannot change refcounts and COPIED flags in one moment. An image of version 3
/// is marked as not closed properly meanwhile; one of version 2 has no such mark, so the flags go
/// first: without one, a cluster is copied before it is written to, and that is all.
fn is_harmless(image: &[u8], problem: &str) -> bool {
    let entry = problem.rsplit_once("0x").map(|(_, entry)| entry);
    let cleared = entry.is_some_and(|e| u64::from_str_radix(e, 16).is_ok_and(|e| e >> 63 == 0));
    problem.starts_with("leaked")
        || (image[7] == 2 && problem.starts_with("the COPIED flag") && cleared)
}

/// Whether qemu-img finds no corruption, and reads the disk as it was read.
pub fn ask_qemu(
    dir: &Path,
    written: &[Vec<u8>],
    base: Option<&Vec<u8>>,
    disk: &[u8],
) -> Result<(), String> {
    for (name, bytes) in ["image", "data"].into_iter().zip(written) {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    if let Some(base) = base {
        std::fs::write(dir.join("base"), base).unwrap();
    }
    std::fs::write(dir.join("read"), disk).unwrap();
    let output = tool("qemu-img")
        .current_dir(dir)
        .args(["check", "-f", "qcow2", "image"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let errors = || text.lines().filter(|l| l.starts_with("ERROR"));
    let only_flags = errors().count() > 0 && errors().all(|l| l.contains("OFLAG_COPIED"));
    let tolerated = is_dirty(&written[0]) || (written[0][7] == 2 && only_flags);
    if !matches!(output.status.code(), Some(0 | 3)) && !tolerated {
        return Err(format!("qemu-img check: {text}"));
    }
    let output = tool("qemu-img")
        .current_dir(dir)
        .args(["compare", "-f", "qcow2", "-F", "raw", "image", "read"])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(format!(
            "qemu-img compare: {}",
            String::from_utf8_lossy(&output.stdout)
        ));
    }
    Ok(())
}

/// An image under way.
pub struct Run {
    pub files: Files,
    pub log: Log,
    pub flushes: Flushes,
    pub history: History,
    devices: Vec<BlockDevice>,
    image: Option<Arc<dyn Image>>,
    rng: Rng,
    next_id: u32,
}

/// Why a run ended: what was under way failed.
#[derive(Debug)]
pub struct Failed(pub String);

impl From<BlockError> for Failed {
    fn from(error: BlockError) -> Self {
        Self(format!("{error:?}"))
    }
}

impl From<FormatError> for Failed {
    fn from(error: FormatError) -> Self {
        Self(format!("{error:?}"))
    }
}

impl Run {
    /// Opens the image; `below` may put something under each device.
    pub fn start(
        files: &Files,
        flushes: Flushes,
        seed: u64,
        below: impl Fn(BlockDevice) -> BlockDevice,
    ) -> Result<Self, Failed> {
        let log = Log::default();
        flushes.begin("open");
        let devices: Vec<BlockDevice> = files
            .written
            .iter()
            .enumerate()
            .map(|(n, bytes)| below(Recorder::device(bytes.clone(), n, &log, &flushes)))
            .collect();
        let image = open(&devices, files.base.as_ref(), true)?;
        let mut history = History::new(files.ids.clone());
        if let Some(snapshot) = image.info().snapshots.first() {
            history.kept.push(Kept {
                name: snapshot.name.clone(),
                ids: files.ids.clone(),
                created: 0..0,
                removed: None,
            });
        }
        Ok(Self {
            files: files.clone(),
            log,
            flushes,
            history,
            devices,
            image: Some(image),
            rng: Rng::new(seed),
            next_id: 10,
        })
    }

    fn image(&self) -> &Arc<dyn Image> {
        self.image.as_ref().expect("open")
    }

    fn writer(&self) -> &dyn ImageWriter {
        self.image().writer().expect("opened for writing")
    }

    /// The present bytes of the files.
    pub fn present(&self) -> Vec<Vec<u8>> {
        self.devices
            .iter()
            .map(|d| d.read_vec(0, d.len() as usize).unwrap())
            .collect()
    }

    fn step(
        &mut self,
        name: &'static str,
        durable: bool,
        what: impl FnOnce(&mut Self) -> Result<Option<(usize, Vec<u32>)>, Failed>,
    ) -> Result<(), Failed> {
        let start = self.log.len();
        self.flushes.begin(name);
        let sectors = self.sectors();
        let number = self.history.steps.len();
        // Recorded before it is done: if it fails, it is one that had begun.
        self.history.steps.push(Step {
            log: start..usize::MAX,
            change: None,
            durable,
            sectors,
        });
        let result = what(self);
        let end = self.log.len();
        let step = &mut self.history.steps[number];
        match result {
            Ok(change) => {
                step.change = change.or_else(|| step.change.take());
                step.log.end = end;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn sectors(&self) -> usize {
        match self.history.steps.last() {
            Some(step) => step.sectors,
            None => self.history.original.len(),
        }
    }

    /// What the step under way is going to change.
    fn intends(&mut self, first: usize, ids: Vec<u32>) {
        if let Some(step) = self.history.steps.last_mut() {
            step.change = Some((first, ids));
        }
    }

    /// Some sectors: a few anywhere, or more from where a cluster may begin.
    fn range(&mut self) -> (usize, usize) {
        let sectors = self.sectors();
        let first = if self.rng.one_in(2) {
            self.rng.index(sectors)
        } else {
            self.rng.index(sectors.div_ceil(32)) * 32
        };
        let most = if self.rng.one_in(4) { 200 } else { 24 };
        let len = 1 + self.rng.index(most);
        (first, len.min(sectors - first))
    }

    /// A random step. `Err`: the image failed; what may be there is in the history.
    pub fn random_step(&mut self) -> Result<(), Failed> {
        match self.rng.below(26) {
            0..=8 => {
                let (first, len) = self.range();
                self.write(first, len)
            }
            9..=11 => {
                let (first, len) = self.range();
                let may_unmap = self.rng.one_in(2);
                self.step("zero", false, |run| {
                    run.intends(first, vec![0; len]);
                    let at = (first * SECTOR) as u64;
                    let device = run.image().device();
                    device.write_zeroes(at, (len * SECTOR) as u64, may_unmap)?;
                    Ok(None)
                })
            }
            12..=14 => self.discard(),
            15..=18 => self.flush(),
            19 => self.reopen(),
            20 => self.grow(),
            _ => self.snapshots(),
        }
    }

    /// Writes sectors.
    pub fn write(&mut self, first: usize, len: usize) -> Result<(), Failed> {
        self.next_id += 1;
        let id = self.next_id;
        self.step("write", false, |run| {
            let ids = vec![id; len];
            let bytes = contents(first, &ids);
            run.intends(first, ids);
            let device = run.image().device();
            device.write_all_at((first * SECTOR) as u64, &bytes)?;
            Ok(None)
        })
    }

    fn discard(&mut self) -> Result<(), Failed> {
        let (first, len) = self.range();
        self.step("discard", false, |run| {
            run.intends(first, vec![0; len]);
            let at = (first * SECTOR) as u64;
            let device = run.image().device();
            device.discard(at, (len * SECTOR) as u64)?;
            // What a discarded range reads as is up to the image, but it must be something that
            // was there, and stay.
            let bytes = device.read_vec(at, len * SECTOR)?;
            Ok(Some((first, identify(first, &bytes).map_err(Failed)?)))
        })
    }

    /// Flushes.
    pub fn flush(&mut self) -> Result<(), Failed> {
        self.step("flush", true, |run| {
            run.image().device().flush()?;
            Ok(None)
        })
    }

    /// Closes the image and opens it again.
    pub fn reopen(&mut self) -> Result<(), Failed> {
        self.close()?;
        self.flushes.begin("open");
        self.image = Some(open(&self.devices, self.files.base.as_ref(), true)?);
        Ok(())
    }

    /// Closes the image.
    pub fn close(&mut self) -> Result<(), Failed> {
        self.step("close", true, |run| {
            run.writer().close()?;
            Ok(None)
        })?;
        self.image = None;
        Ok(())
    }

    fn grow(&mut self) -> Result<(), Failed> {
        let sectors = self.sectors() + 1 + self.rng.index(200);
        let kept = self.history.kept.iter().any(|k| k.removed.is_none());
        // Snapshots of version 2 do not record how large they are.
        if sectors > self.history.original.len() * 3 || (kept && self.files.written[0][7] == 2) {
            return self.flush();
        }
        self.step("resize", true, |run| {
            if let Some(step) = run.history.steps.last_mut() {
                step.sectors = sectors;
            }
            run.writer().resize((sectors * SECTOR) as u64)?;
            Ok(None)
        })?;
        // The size of the device is what it was until then.
        self.reopen()
    }

    fn snapshots(&mut self) -> Result<(), Failed> {
        if self.files.written.len() > 1 {
            return self.flush();
        }
        let there: Vec<usize> = (0..self.history.kept.len())
            .filter(|&i| self.history.kept[i].removed.is_none())
            .collect();
        let ids = self.history.now();
        if there.is_empty() || (there.len() < 4 && self.rng.one_in(2)) {
            self.next_id += 1;
            let name = format!("snapshot {}", self.next_id);
            let start = self.log.len();
            self.history.kept.push(Kept {
                name: name.clone(),
                ids,
                created: start..usize::MAX,
                removed: None,
            });
            self.step("create snapshot", true, |run| {
                run.writer().create_snapshot(&name)?;
                Ok(None)
            })?;
            let end = self.log.len();
            self.history.kept.last_mut().unwrap().created.end = end;
            return Ok(());
        }
        let chosen = there[self.rng.index(there.len())];
        let name = self.history.kept[chosen].name.clone();
        let listed = self.image().info().snapshots.clone();
        let Some(index) = listed.iter().position(|s| s.name == name) else {
            // `info` tells of those there were when the image was opened.
            return self.reopen();
        };
        if listed.len() != there.len() {
            return self.reopen();
        }
        if self.rng.one_in(2) {
            self.history.kept[chosen].removed = Some(self.log.len()..usize::MAX);
            self.step("delete snapshot", true, |run| {
                run.writer().delete_snapshot(index)?;
                Ok(None)
            })?;
            let end = self.log.len();
            if let Some(removed) = &mut self.history.kept[chosen].removed {
                removed.end = end;
            }
        } else {
            let ids = self.history.kept[chosen].ids.clone();
            if ids.len() != self.sectors() {
                return self.flush();
            }
            self.step("apply snapshot", true, |run| {
                run.intends(0, ids);
                run.writer().apply_snapshot(index)?;
                Ok(None)
            })?;
        }
        self.reopen()
    }

    /// The log as it is now.
    pub fn events(&self) -> Vec<(usize, Event)> {
        self.log.take()
    }

    /// That the disk reads as the history has it.
    pub fn compare(&self) -> Result<(), String> {
        let device = self.image().device();
        let bytes = device
            .read_vec(0, device.len() as usize)
            .map_err(|e| format!("{e:?}"))?;
        let (read, known) = (identify(0, &bytes)?, self.history.now());
        match read.iter().zip(&known).position(|(a, b)| a != b) {
            Some(at) => Err(format!(
                "sector {at} is of write {}, not {}",
                read[at], known[at]
            )),
            None if read.len() != known.len() => Err("another size".into()),
            None => Ok(()),
        }
    }
}
