//! Every kind of qcow2 and raw image, made by qemu-img and qemu-io, read and compared with what
//! qemu-img itself reads from it: whole, in random pieces from several threads, snapshot by
//! snapshot, and hole by hole.

mod support;

use std::path::Path;
use std::sync::Arc;

use guestlens::block::{BlockDevice, ExtentKind};
use guestlens::formats::{Image, OpenOptions, open_path};
use support::images::{Backing, Random, Variant, make, pairwise, raw_content};
use support::{run, shell, tool, workdir};

fn reference(image: &Path, more: &[&str]) -> Vec<u8> {
    let out = image.with_file_name("reference.raw");
    let mut command = tool("qemu-img");
    command
        .current_dir(image.parent().unwrap())
        .args(["convert", "-U", "-O", "raw"])
        .args(more);
    run(command.arg(image).arg(&out));
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    bytes
}

fn compare(name: &str, device: &BlockDevice, truth: &[u8], seed: u64) {
    assert_eq!(device.len(), truth.len() as u64, "{name}: size");
    let whole = device
        .read_vec(0, truth.len())
        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
    if let Some(at) = whole.iter().zip(truth).position(|(a, b)| a != b) {
        panic!(
            "{name}: differs at {at}: {} instead of {}",
            whole[at], truth[at]
        );
    }
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut random = Random(seed * 3 + thread + 1);
                for _ in 0..60 {
                    let at = random.below(truth.len() as u64) as usize;
                    let len = (1 + random.below(150_000) as usize).min(truth.len() - at);
                    let got = device.read_vec(at as u64, len).unwrap();
                    assert!(got == truth[at..at + len], "{name}: {len} bytes at {at}");
                }
            });
        }
    });
}

#[derive(Debug, PartialEq)]
struct MapEntry {
    start: u64,
    length: u64,
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

fn merged(entries: impl Iterator<Item = MapEntry>) -> Vec<MapEntry> {
    let mut all: Vec<MapEntry> = Vec::new();
    for e in entries {
        if let Some(last) = all.last_mut() {
            let follows = match (last.offset, e.offset) {
                (Some(a), Some(b)) => a + last.length == b,
                (None, None) => true,
                _ => false,
            };
            let same = (
                last.depth,
                last.present,
                last.zero,
                last.data,
                last.compressed,
            ) == (e.depth, e.present, e.zero, e.data, e.compressed);
            if follows && same {
                last.length += e.length;
                continue;
            }
        }
        all.push(e);
    }
    all
}

fn our_map(device: &BlockDevice) -> Vec<MapEntry> {
    let mut at = 0;
    merged(std::iter::from_fn(|| {
        if at == device.len() {
            return None;
        }
        let e = device.extent_at(at, device.len() - at).unwrap();
        let start = at;
        at += e.len;
        Some(MapEntry {
            start,
            length: e.len,
            depth: e.depth.into(),
            present: e.kind != ExtentKind::Hole || e.host_offset.is_some(),
            zero: e.reads_zero(),
            data: e.kind == ExtentKind::Data,
            compressed: e.compressed,
            offset: e.host_offset,
        })
    }))
}

fn qemu_map(image: &Path, format: &str) -> Vec<MapEntry> {
    let output = run(tool("qemu-img")
        .current_dir(image.parent().unwrap())
        .args(["map", "-U", "--output=json", "-f", format])
        .arg(image));
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    merged(list.iter().map(|e| {
        let flag = |name: &str| e[name].as_bool().unwrap();
        let present = flag("present");
        MapEntry {
            start: e["start"].as_u64().unwrap(),
            length: e["length"].as_u64().unwrap(),
            depth: e["depth"].as_u64().unwrap(),
            present,
            zero: flag("zero"),
            data: flag("data"),
            compressed: flag("compressed"),
            // Space reserved below an unallocated subcluster has an offset but no content.
            offset: e["offset"].as_u64().filter(|_| present),
        }
    }))
}

fn check_image(name: &str, image: &Path, format: &str, seed: u64) -> Arc<dyn Image> {
    let opened = open_path(image, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{name}: {e} / {:?}", std::error::Error::source(&e)));
    assert_eq!(opened.info().format, format);
    compare(
        name,
        &opened.device(),
        &reference(image, &["-f", format]),
        seed,
    );
    let (ours, theirs) = (our_map(&opened.device()), qemu_map(image, format));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a, b, "{name}: extents (ours, qemu's)");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}: number of extents");
    opened
}

fn check_variant(v: &Variant, number: usize) {
    let dir = workdir();
    let mut random = Random(1 + number as u64);
    let image = make(dir.path(), v, &mut random);
    let name = format!("{number} {}", v.name());
    let opened = check_image(&name, &image, "qcow2", number as u64);
    let info = opened.info();
    assert_eq!(info.cluster_size, Some(1 << v.cluster_bits), "{name}");
    assert_eq!(
        info.format_specific["refcount-bits"], v.refcount_bits,
        "{name}"
    );
    assert_eq!(
        info.backing_filename.is_some(),
        v.backing != Backing::None,
        "{name}"
    );
    let truth = run(tool("qemu-img")
        .current_dir(dir.path())
        .args(["info", "-U", "--output=json"])
        .arg(&image))
    .stdout;
    let truth: serde_json::Value = serde_json::from_slice(&truth).unwrap();
    assert_eq!(
        info.dirty_flag,
        truth["dirty-flag"].as_bool().unwrap(),
        "{name}"
    );
    for (key, value) in info.format_specific.as_object().unwrap() {
        assert_eq!(
            value, &truth["format-specific"]["data"][key],
            "{name}: {key}"
        );
    }
    assert_eq!(
        info.virtual_size,
        truth["virtual-size"].as_u64().unwrap(),
        "{name}"
    );
    assert_eq!(
        info.actual_size,
        truth["actual-size"].as_u64().unwrap(),
        "{name}"
    );
    assert_eq!(
        info.snapshots.len(),
        if v.snapshots { 2 } else { 0 },
        "{name}"
    );
    for (i, s) in info.snapshots.iter().enumerate() {
        assert_eq!(
            s.name,
            truth["snapshots"][i]["name"].as_str().unwrap(),
            "{name}"
        );
        assert_eq!(
            s.id,
            truth["snapshots"][i]["id"].as_str().unwrap(),
            "{name}"
        );
        let selector = format!("snapshot.id={}", s.id);
        let device = opened.open_snapshot(i).unwrap();
        compare(
            &format!("{name} snapshot {i}"),
            &device,
            &reference(&image, &["-l", &selector]),
            5,
        );
    }
    assert!(opened.open_snapshot(2).is_err());
}

#[test]
fn qcow2_variants_read_as_qemu_reads_them() {
    let variants = pairwise(64);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(v) = variants.get(number) else { break };
                    check_variant(v, number);
                }
            });
        }
    });
    println!("{} qcow2 variants compared", variants.len());
    assert!(variants.len() >= 60);
}

#[test]
fn raw_variants_read_as_qemu_reads_them() {
    let dir = workdir();
    for (number, size) in [1_u64 << 20, 512, 513, 4096 * 3 + 100, (3 << 20) + 511]
        .into_iter()
        .enumerate()
    {
        let image = dir.path().join("disk.raw");
        raw_content(&image, size, &mut Random(77 + number as u64));
        check_image(&format!("raw {size}"), &image, "raw", 3);
    }
}

#[test]
fn a_terabyte_and_a_chain_of_sixteen() {
    let dir = workdir();
    let script = "
        qemu-img create -q -f qcow2 huge.qcow2 1T
        qemu-io -c 'write -P 5 700G 64k' huge.qcow2 > /dev/null
        qemu-img create -q -f raw 0 4M; qemu-io -f raw -c 'write -P 3 1M 1M' 0 > /dev/null
        f=raw
        for i in $(seq 16); do
            qemu-img create -q -f qcow2 -b $((i-1)) -F $f $i; f=qcow2
            qemu-io -c \"write -P $i $((i*4096)) 4096\" $i > /dev/null
        done";
    shell(dir.path(), script);
    let started = std::time::Instant::now();
    let huge = open_path(&dir.path().join("huge.qcow2"), &OpenOptions::default()).unwrap();
    assert_eq!(
        huge.device().read_vec(700 << 30, 65536).unwrap(),
        [5; 65536]
    );
    assert!(
        started.elapsed().as_millis() < 100,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        our_map(&huge.device()),
        qemu_map(&dir.path().join("huge.qcow2"), "qcow2")
    );
    let started = std::time::Instant::now();
    let chain = open_path(&dir.path().join("16"), &OpenOptions::default()).unwrap();
    assert_eq!(chain.device().read_vec(1 << 20, 512).unwrap(), [3; 512]);
    assert!(
        started.elapsed().as_millis() < 100,
        "{:?}",
        started.elapsed()
    );
    compare(
        "chain",
        &chain.device(),
        &reference(&dir.path().join("16"), &[]),
        1,
    );
}
