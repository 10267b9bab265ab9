//! Snapshots taken, applied and deleted, and disks resized and emptied, in turn with writes and with
//! QEMU doing the same to the same image. After every step qemu-img finds no error and no leak, and
//! the disk and every snapshot hold what a model says.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guestlens::block::BlockDevice;
use guestlens::block::memory::MemoryBackend;
use guestlens::block::record::{Event, RecordBackend, replay};
use guestlens::formats::qcow2;
use guestlens::formats::{FormatErrorKind, Image, OpenOptions, open_device, open_path};
use serde_json::Value;
use support::fuzz::Rng;
use support::{is_root, run, shell, skip, tool, workdir};

fn open(path: &Path) -> Arc<dyn Image> {
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write: true,
        ..OpenOptions::default()
    };
    // A thread that decompresses ahead may keep an image open for a moment after it was dropped.
    for _ in 0..100 {
        match open_path(path, &options) {
            Ok(image) => return image,
            Err(e) if e.kind() == FormatErrorKind::Busy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    panic!("{} stays busy", path.display());
}

fn check(what: &str, path: &Path) {
    let output = tool("qemu-img")
        .args(["check", "-f", "qcow2", "--output=json"])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{what}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Names of the snapshots as qemu-img lists them, in order.
fn listed(path: &Path) -> Vec<String> {
    let output = run(tool("qemu-img").args(["info", "--output=json"]).arg(path));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = info["snapshots"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|s| s["name"].as_str().unwrap().to_owned())
        .collect()
}

fn bytes_of(device: &BlockDevice) -> Vec<u8> {
    device
        .read_vec(0, usize::try_from(device.len()).unwrap())
        .unwrap()
}

/// What the disk and its snapshots hold.
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<String>,
    contents: HashMap<String, Vec<u8>>,
    next: u32,
}

impl Model {
    fn compare(&self, what: &str, path: &Path) {
        assert_eq!(listed(path), self.snapshots, "{what}");
        let image = open_path(path, &OpenOptions::default()).unwrap();
        assert!(bytes_of(&image.device()) == self.disk, "{what}: the disk");
        for (index, name) in self.snapshots.iter().enumerate() {
            assert_eq!(&image.info().snapshots[index].name, name, "{what}");
            let device = image.open_snapshot(index).unwrap();
            assert!(
                bytes_of(&device) == self.contents[name],
                "{what}: snapshot {name}"
            );
        }
    }

    /// The same, as qemu-img reads it.
    fn compare_by_qemu(&self, what: &str, path: &Path) {
        let raw = path.with_extension("qemu");
        let convert = |more: &[&str]| {
            run(tool("qemu-img")
                .args(["convert", "-f", "qcow2", "-O", "raw"])
                .args(more)
                .arg(path)
                .arg(&raw));
            std::fs::read(&raw).unwrap()
        };
        assert!(convert(&[]) == self.disk, "{what}: the disk by qemu-img");
        for name in &self.snapshots {
            let mut truth = self.contents[name].clone();
            // qemu-img writes as much as the present disk has.
            truth.resize(self.disk.len(), 0);
            let option = format!("snapshot.name={name}");
            let got = convert(&["-l", &option]);
            assert!(got == truth, "{what}: snapshot {name} by qemu-img");
        }
    }
}

fn write_some(device: &BlockDevice, model: &mut [u8], random: &mut Rng) {
    for _ in 0..1 + random.index(6) {
        let at = random.index(model.len() / 512) * 512;
        let len = ((1 + random.index(200)) * 512).min(model.len() - at);
        if random.one_in(4) {
            device
                .write_zeroes(at as u64, len as u64, random.one_in(2))
                .unwrap();
            model[at..at + len].fill(0);
        } else {
            let fill = 1 + random.index(255) as u8;
            device.write_all_at(at as u64, &vec![fill; len]).unwrap();
            model[at..at + len].fill(fill);
        }
    }
}

const VARIANTS: [(&str, &str); 12] = [
    ("default", ""),
    ("v2", "compat=0.10,cluster_size=4k"),
    ("v2 512", "compat=0.10,cluster_size=512"),
    ("512", "cluster_size=512"),
    ("4k refcounts 4", "cluster_size=4k,refcount_bits=4"),
    ("refcounts 64", "cluster_size=4k,refcount_bits=64"),
    ("refcounts 8", "cluster_size=1k,refcount_bits=8"),
    ("subclusters", "extended_l2=on"),
    ("subclusters 16k", "extended_l2=on,cluster_size=16k"),
    ("1M", "cluster_size=1M"),
    ("lazy", "lazy_refcounts=on,cluster_size=8k"),
    ("compressed", "cluster_size=16k"),
];

fn random_steps(name: &str, options: &str, seed: u64) {
    let dir = workdir();
    let path = dir.path().join("i.qcow2");
    let size = 3 << 20;
    let mut random = Rng::new(seed);
    let mut model = Model {
        disk: vec![0; size],
        snapshots: Vec::new(),
        contents: HashMap::new(),
        next: 0,
    };
    if name == "compressed" {
        for (n, byte) in model.disk.iter_mut().enumerate() {
            *byte = ((n / 700) % 251) as u8;
        }
        std::fs::write(dir.path().join("c.raw"), &model.disk).unwrap();
        shell(
            dir.path(),
            &format!("qemu-img convert -c -O qcow2 -f raw -o {options} c.raw i.qcow2"),
        );
    } else {
        let o = if options.is_empty() {
            String::new()
        } else {
            format!("-o {options}")
        };
        shell(
            dir.path(),
            &format!("qemu-img create -q -f qcow2 {o} i.qcow2 {size}"),
        );
    }
    for step in 0..14 {
        let what = format!("{name}, step {step}");
        let by_qemu = random.one_in(3);
        let action = random.index(if name.starts_with("v2") { 4 } else { 6 });
        let some = (!model.snapshots.is_empty()).then(|| random.index(model.snapshots.len()));
        if by_qemu && action < 4 {
            let mut command = tool("qemu-img");
            command.arg("snapshot");
            match (action, some) {
                (1, Some(index)) => {
                    let name = &model.snapshots[index];
                    model.disk = model.contents[name].clone();
                    command.args(["-a", name]);
                }
                (2, Some(index)) => {
                    let name = model.snapshots.remove(index);
                    command.args(["-d", &name]);
                }
                _ if model.snapshots.len() < 5 => {
                    let name = format!("snap{}", model.next);
                    model.next += 1;
                    command.args(["-c", &name]);
                    model.contents.insert(name.clone(), model.disk.clone());
                    model.snapshots.push(name);
                }
                _ => continue,
            }
            run(command.arg(&path));
        } else {
            let image = open(&path);
            let (device, writer) = (image.device(), image.writer().unwrap());
            write_some(&device, &mut model.disk, &mut random);
            match (action, some) {
                (1, Some(index)) => {
                    writer.apply_snapshot(index).unwrap();
                    model.disk = model.contents[&model.snapshots[index]].clone();
                }
                (2, Some(index)) => {
                    writer.delete_snapshot(index).unwrap();
                    model.snapshots.remove(index);
                }
                (4 | 5, _) => {
                    let len = (1 + random.index(10_000)) * 512;
                    writer.resize(len as u64).unwrap();
                    model.disk.resize(len, 0);
                }
                _ if model.snapshots.len() < 5 => {
                    let name = format!("snap{}", model.next);
                    model.next += 1;
                    let info = writer.create_snapshot(&name).unwrap();
                    assert_eq!(info.name, name);
                    model.contents.insert(name.clone(), model.disk.clone());
                    model.snapshots.push(name);
                }
                _ => {}
            }
            if action < 4 && device.len() == model.disk.len() as u64 {
                // The image is still written to after that.
                write_some(&device, &mut model.disk, &mut random);
            }
            writer.close().unwrap();
        }
        check(&what, &path);
        model.compare(&what, &path);
    }
    model.compare_by_qemu(name, &path);
    // Nothing is lost when all of them go.
    let image = open(&path);
    for _ in 0..model.snapshots.len() {
        image.writer().unwrap().delete_snapshot(0).unwrap();
    }
    image.writer().unwrap().close().unwrap();
    drop(image);
    model.snapshots.clear();
    check(name, &path);
    model.compare(name, &path);
}

/// One test at a time: a process started by one would hold the locks of images that another has open
/// until it has become another program.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn steps_in_turn_with_qemu() {
    let _alone = alone();
    for (n, (name, options)) in VARIANTS.into_iter().enumerate() {
        random_steps(name, options, n as u64);
    }
}

/// Copies of a device at every point of a log of writes: after each prefix, and in the open epoch
/// also with a single write missing, and with the last one torn.
fn crash_states(before: &[u8], log: &[Event], mut look: impl FnMut(usize, &str, Vec<u8>)) {
    let build = |events: &[Event]| {
        let memory = Arc::new(MemoryBackend::from_bytes(before.to_vec()));
        replay(events, &BlockDevice::growable(memory.clone())).unwrap();
        memory.to_bytes()
    };
    for end in 0..=log.len() {
        look(end, "prefix", build(&log[..end]));
        let epoch = log[..end]
            .iter()
            .rposition(|e| matches!(e, Event::Flush))
            .map_or(0, |at| at + 1);
        for missing in epoch..end.saturating_sub(1) {
            let mut events = log[..end].to_vec();
            events.remove(missing);
            look(end, "one missing", build(&events));
        }
        if let Some(Event::Write { offset, bytes }) = log[..end].last()
            && bytes.len() > 512
        {
            let mut events = log[..end - 1].to_vec();
            let torn = bytes.len() / 1024 * 512;
            events.push(Event::Write {
                offset: *offset,
                bytes: bytes[..torn.max(512)].into(),
            });
            look(end, "torn", build(&events));
        }
    }
}

/// Runs one change of a small image and looks at every state a crash can leave: after the next
/// writer has come, qemu-img finds nothing wrong, and the disk is as before or as after.
fn crash(what: &str, image: &Path, change: impl Fn(&dyn Image)) {
    let before = std::fs::read(image).unwrap();
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write: true,
        ..OpenOptions::default()
    };
    let memory = Arc::new(MemoryBackend::from_bytes(before.clone()));
    let recorder = RecordBackend::new(BlockDevice::growable(memory));
    let log = recorder.log();
    let device = BlockDevice::growable(Arc::new(recorder));
    let opened = open_device(device, Path::new("crash"), &options).unwrap();
    let old = bytes_of(&opened.device());
    change(opened.as_ref());
    opened.writer().unwrap().close().unwrap();
    drop(opened);
    let log = log.lock().clone();
    let view = |bytes: Vec<u8>| {
        let device = BlockDevice::growable(Arc::new(MemoryBackend::from_bytes(bytes)));
        let image = open_device(device, Path::new("crash"), &options).unwrap();
        let info = image.info();
        let mut all = vec![bytes_of(&image.device())];
        for index in 0..info.snapshots.len() {
            all.push(bytes_of(&image.open_snapshot(index).unwrap()));
        }
        all
    };
    let mut now = None;
    crash_states(&before, &log, |end, _, bytes| {
        if end == log.len() {
            now = Some(view(bytes));
        }
    });
    let now = now.unwrap();
    let was = view(before.clone());
    assert!(was[0] == old);
    let path = image.with_extension("crash");
    let (mut states, mut seen) = (0, std::collections::HashSet::new());
    crash_states(&before, &log, |end, how, bytes| {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            return;
        }
        states += 1;
        let what = format!("{what}: {how} at {end} of {}", log.len());
        let got = view(bytes.clone());
        assert!(got == was || got == now, "{what}: neither old nor new");
        // The next writer: a change of nothing.
        let memory = Arc::new(MemoryBackend::from_bytes(bytes));
        let device = BlockDevice::growable(memory.clone());
        let next = open_device(device.clone(), Path::new("crash"), &options).unwrap();
        let content = next.device();
        let sector = content.read_vec(0, 512).unwrap();
        content.write_all_at(0, &sector).unwrap();
        next.writer().unwrap().close().unwrap();
        drop(next);
        let header = qcow2::read_header(&device).unwrap();
        let report = qcow2::check::check(&device, &header).unwrap();
        assert!(
            report.check_errors == 0 && (report.corruptions == 0 || header.layout.version == 2),
            "{what}: {report:?}"
        );
        assert!(
            view(memory.to_bytes()) == got,
            "{what}: changed by the next"
        );
        // Our own checker is not the only witness.
        if states % 20 == 0 && header.layout.version > 2 {
            std::fs::write(&path, memory.to_bytes()).unwrap();
            let output = tool("qemu-img")
                .args(["check", "-q", "-f", "qcow2"])
                .arg(&path)
                .output()
                .unwrap();
            let code = output.status.code();
            assert!(code == Some(0) || code == Some(3), "{what}: {output:?}");
        }
    });
    assert!(states > 5, "{what}: {states} states");
}

#[test]
fn crashes_leave_the_old_or_the_new() {
    let _alone = alone();
    for options in ["cluster_size=4k", "compat=0.10,cluster_size=4k"] {
        let dir = workdir();
        shell(
            dir.path(),
            &format!(
                "qemu-img create -q -f qcow2 -o {options} i.qcow2 300k
                 qemu-io -f qcow2 -c 'write -P 1 0 60k' i.qcow2 >/dev/null
                 qemu-img snapshot -c one i.qcow2
                 qemu-io -f qcow2 -c 'write -P 2 20k 60k' i.qcow2 >/dev/null
                 qemu-img snapshot -c two i.qcow2
                 qemu-io -f qcow2 -c 'write -P 3 30k 40k' i.qcow2 >/dev/null"
            ),
        );
        let image = dir.path().join("i.qcow2");
        let say = |what: &str| format!("{options}, {what}");
        crash(&say("take"), &image, |i| {
            i.writer().unwrap().create_snapshot("three").unwrap();
        });
        crash(&say("apply"), &image, |i| {
            i.writer().unwrap().apply_snapshot(0).unwrap();
        });
        crash(&say("delete"), &image, |i| {
            i.writer().unwrap().delete_snapshot(1).unwrap();
        });
        if !options.starts_with("compat") {
            crash(&say("grow"), &image, |i| {
                i.writer().unwrap().resize(40 << 20).unwrap();
            });
            shell(
                dir.path(),
                "qemu-img resize -q -f qcow2 i.qcow2 6M
                 qemu-io -f qcow2 -c 'write -P 4 1M 40k' -c 'write -P 5 5M 40k' i.qcow2 >/dev/null",
            );
            crash(&say("shrink"), &image, |i| {
                i.writer().unwrap().resize(1060 << 10).unwrap();
            });
        }
    }
}

/// A filesystem of its own that is full.
struct Full<'a>(&'a Path);

impl Drop for Full<'_> {
    fn drop(&mut self) {
        let _ = tool("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn no_room_for_a_snapshot_leaves_the_image_as_it_was() {
    if !is_root() {
        skip!("only root mounts a small filesystem");
    }
    let _alone = alone();
    for options in [
        "cluster_size=4k",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=64k",
        "compat=0.10,cluster_size=4k",
    ] {
        let dir = workdir();
        let point = dir.path().join("small");
        std::fs::create_dir(&point).unwrap();
        let mut mount = tool("mount");
        mount.args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]);
        run(mount.arg(&point));
        let _mounted = Full(&point);
        shell(
            &point,
            &format!(
                "qemu-img create -q -f qcow2 -o {options} i.qcow2 1M
                 qemu-io -f qcow2 -c 'write -P 5 0 1M' i.qcow2 >/dev/null
                 qemu-img snapshot -c one i.qcow2; qemu-img snapshot -c two i.qcow2
                 qemu-io -f qcow2 -c 'write -P 6 0 500k' i.qcow2 >/dev/null
                 ! dd if=/dev/zero of=fill bs=4k 2>/dev/null"
            ),
        );
        let path = point.join("i.qcow2");
        let before = bytes_of(&open(&path).device());
        let changes: [fn(&dyn Image) -> bool; 3] = [
            |i| i.writer().unwrap().create_snapshot("three").is_err(),
            |i| i.writer().unwrap().apply_snapshot(0).is_err(),
            |i| i.writer().unwrap().delete_snapshot(0).is_err(),
        ];
        let mut refused = 0;
        for (number, change) in changes.into_iter().enumerate() {
            let what = format!("{options}, {number}");
            let image = open(&path);
            let failed = change(image.as_ref());
            let _ = image.writer().unwrap().close();
            drop(image);
            refused += usize::from(failed);
            check(&what, &path);
            if failed {
                let info = shell(&point, "qemu-img info -U --output=json i.qcow2");
                assert!(!info.contains("\"dirty-flag\": true"), "{what}: {info}");
                assert!(bytes_of(&open(&path).device()) == before, "{what}");
                assert_eq!(listed(&path).len(), 2, "{what}");
            } else {
                break;
            }
        }
        assert!(refused > 0, "{options}: it was not full");
    }
}
