//! Every kind of qcow2 and raw image, made by qemu-img and qemu-io, read and compared with what
//! qemu-img itself reads from it: whole, in random pieces from several threads, snapshot by
//! snapshot, and hole by hole.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestlens::block::{BlockDevice, ExtentKind};
use guestlens::formats::{Image, OpenOptions, open_path};
use support::{run, shell, tool, workdir};

/// A small generator with a fixed seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Backing {
    None,
    Raw,
    Qcow2,
    Shorter,
    Longer,
    Chain,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compressed {
    No,
    Zlib,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Data {
    Inside,
    External,
    ExternalRaw,
}

#[derive(Clone, Copy, Debug)]
struct Variant {
    version: u32,
    cluster_bits: u32,
    refcount_bits: u32,
    compressed: Compressed,
    zeroes: bool,
    backing: Backing,
    data: Data,
    extended_l2: bool,
    snapshots: bool,
    lazy: bool,
}

impl Variant {
    /// What QEMU itself refuses is bent into the nearest thing it accepts.
    fn valid(mut self) -> Self {
        if self.version == 2 {
            self.refcount_bits = 16;
            self.lazy = false;
            self.extended_l2 = false;
            self.data = Data::Inside;
            if self.compressed == Compressed::Zstd {
                self.compressed = Compressed::Zlib;
            }
        }
        if self.extended_l2 {
            self.cluster_bits = self.cluster_bits.max(14);
        }
        if self.data != Data::Inside {
            self.compressed = Compressed::No;
            self.snapshots = false;
            self.cluster_bits = self.cluster_bits.max(12);
        }
        if self.data == Data::ExternalRaw {
            self.backing = Backing::None;
        }
        if self.snapshots {
            // Several compressed clusters share one host cluster, and each snapshot counts again.
            let least = if self.compressed == Compressed::No {
                4
            } else {
                16
            };
            self.refcount_bits = self.refcount_bits.max(least);
        }
        self
    }

    fn name(&self) -> String {
        format!(
            "v{}-c{}-r{}-{:?}-z{}-{:?}-{:?}-x{}-s{}-l{}",
            self.version,
            self.cluster_bits,
            self.refcount_bits,
            self.compressed,
            u8::from(self.zeroes),
            self.backing,
            self.data,
            u8::from(self.extended_l2),
            u8::from(self.snapshots),
            u8::from(self.lazy)
        )
        .to_lowercase()
    }
}

/// Every pair of values of any two properties, greedily; then filled up to `at_least`.
fn pairwise(at_least: usize) -> Vec<Variant> {
    const SIZES: [usize; 10] = [2, 8, 7, 3, 2, 6, 3, 2, 2, 2];
    let build = |v: &[usize; 10]| {
        Variant {
            version: [3, 2][v[0]],
            cluster_bits: [16, 9, 10, 12, 14, 17, 20, 21][v[1]],
            refcount_bits: [16, 1, 2, 4, 8, 32, 64][v[2]],
            compressed: [Compressed::No, Compressed::Zlib, Compressed::Zstd][v[3]],
            zeroes: v[4] == 1,
            backing: [
                Backing::None,
                Backing::Raw,
                Backing::Qcow2,
                Backing::Shorter,
                Backing::Longer,
                Backing::Chain,
            ][v[5]],
            data: [Data::Inside, Data::External, Data::ExternalRaw][v[6]],
            extended_l2: v[7] == 1,
            snapshots: v[8] == 1,
            lazy: v[9] == 1,
        }
        .valid()
    };
    let mut missing = std::collections::BTreeSet::new();
    for (a, size_a) in SIZES.into_iter().enumerate() {
        for (b, size_b) in SIZES.into_iter().enumerate().skip(a + 1) {
            for x in 0..size_a {
                for y in 0..size_b {
                    missing.insert((a, x, b, y));
                }
            }
        }
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut names = std::collections::BTreeSet::new();
    let mut variants = Vec::new();
    while !missing.is_empty() || variants.len() < at_least {
        let mut best = ([0; 10], -1_i64);
        for _ in 0..60 {
            let mut v = [0; 10];
            for (value, size) in v.iter_mut().zip(SIZES) {
                *value = random.below(size as u64) as usize;
            }
            if let Some(&(a, x, b, y)) = missing.iter().next() {
                v[a] = x;
                v[b] = y;
            }
            let gain = missing
                .iter()
                .filter(|(a, x, b, y)| v[*a] == *x && v[*b] == *y)
                .count();
            if gain as i64 > best.1 {
                best = (v, gain as i64);
            }
        }
        let v = best.0;
        missing.retain(|(a, x, b, y)| v[*a] != *x || v[*b] != *y);
        let variant = build(&v);
        if names.insert(variant.name()) {
            variants.push(variant);
        }
    }
    variants
}

/// Random writes for qemu-io within `size` bytes; `cluster` and `sub` set interesting borders.
fn writes(random: &mut Random, v: &Variant, size: u64, count: usize) -> String {
    let cluster = 1 << v.cluster_bits;
    let mut script = String::new();
    for _ in 0..count {
        let at = random.below(size / 512) * 512;
        let len = (1 + random.below((2 * cluster).min(size / 8) / 512)) * 512;
        let len = len.min(size - at);
        let pattern = 1 + random.below(255);
        let _ = match random.below(8) {
            0 if v.zeroes => writeln!(script, "write -z {at} {len}"),
            1 if v.zeroes => writeln!(script, "write -z -u {at} {len}"),
            2 if v.zeroes => writeln!(script, "discard {at} {len}"),
            _ => writeln!(script, "write -P {pattern} {at} {len}"),
        };
    }
    // Whole clusters of zeroes, so that zero clusters with and without space occur.
    if v.zeroes && size >= 4 * cluster {
        let at = random.below(size / cluster - 1) * cluster;
        let _ = writeln!(script, "write -P 7 {at} {cluster}\nwrite -z {at} {cluster}");
    }
    script
}

fn qemu_io(image: &Path, format: &str, script: &str) {
    let mut command = tool("qemu-io");
    // QEMU looks for data files in its working directory.
    command
        .current_dir(image.parent().unwrap())
        .arg("-f")
        .arg(format)
        .arg("-d")
        .arg("unmap");
    for line in script.lines() {
        command.arg("-c").arg(line);
    }
    run(command.arg(image));
}

/// Some patterned, compressible and incompressible content as a raw file.
fn raw_content(path: &Path, size: u64, random: &mut Random) {
    let mut bytes = vec![0u8; size as usize];
    let mut at = 0;
    while at < bytes.len() {
        let len = (1 + random.below(200_000) as usize).min(bytes.len() - at);
        let piece = &mut bytes[at..at + len];
        match random.below(4) {
            0 => {}
            1 => piece.fill(random.next() as u8),
            2 => piece
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = (i / 97) as u8),
            _ => piece.iter_mut().for_each(|b| *b = random.next() as u8),
        }
        at += len;
    }
    std::fs::write(path, bytes).unwrap();
    shell(
        path.parent().unwrap(),
        &format!("fallocate --dig-holes '{}'", path.display()),
    );
}

const SIZE: u64 = 3 << 20;

fn make(dir: &Path, v: &Variant, random: &mut Random) -> PathBuf {
    let image = dir.join("image.qcow2");
    let size = SIZE + random.below(9) * 512;
    let (base_size, base_format) = match v.backing {
        Backing::None => (0, ""),
        Backing::Raw => (size, "raw"),
        Backing::Qcow2 | Backing::Chain => (size, "qcow2"),
        Backing::Shorter => (size / 2 + 1536, "qcow2"),
        Backing::Longer => (size + (1 << 20), "raw"),
    };
    if base_size > 0 {
        let base = dir.join("base");
        if base_format == "raw" {
            raw_content(&base, base_size, random);
        } else {
            run(tool("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&base)
                .arg(base_size.to_string()));
            qemu_io(&base, "qcow2", &writes(random, v, base_size, 12));
        }
    }
    let mut backing = Some("base".to_owned()).filter(|_| base_size > 0);
    let mut backing_format = base_format;
    if v.backing == Backing::Chain {
        // A link in the middle that is smaller than both its neighbours.
        run(tool("qemu-img")
            .current_dir(dir)
            .args([
                "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle",
            ])
            .arg((size - 65536).to_string()));
        qemu_io(
            &dir.join("middle"),
            "qcow2",
            &writes(random, v, size - 65536, 8),
        );
        backing = Some("middle".into());
        backing_format = "qcow2";
    }
    let mut options = format!(
        "compat={},cluster_size={}",
        if v.version == 2 { "0.10" } else { "1.1" },
        1 << v.cluster_bits
    );
    if v.version == 3 {
        let _ = write!(options, ",refcount_bits={}", v.refcount_bits);
        let _ = write!(
            options,
            ",lazy_refcounts={}",
            if v.lazy { "on" } else { "off" }
        );
        let _ = write!(
            options,
            ",extended_l2={}",
            if v.extended_l2 { "on" } else { "off" }
        );
    }
    if v.compressed == Compressed::Zstd {
        options.push_str(",compression_type=zstd");
    }
    match v.data {
        Data::Inside => {}
        Data::External => options.push_str(",data_file=data.bin"),
        Data::ExternalRaw => options.push_str(",data_file=data.bin,data_file_raw=on"),
    }
    if v.compressed == Compressed::No {
        let mut command = tool("qemu-img");
        command
            .current_dir(dir)
            .args(["create", "-q", "-f", "qcow2", "-o", &options]);
        if let Some(backing) = &backing {
            command.args(["-b", backing, "-F", backing_format]);
        }
        run(command.arg("image.qcow2").arg(size.to_string()));
    } else {
        raw_content(&dir.join("content"), size, random);
        let mut command = tool("qemu-img");
        command
            .current_dir(dir)
            .args(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options]);
        if let Some(backing) = &backing {
            command.args(["-B", backing, "-F", backing_format]);
        }
        run(command.args(["content", "image.qcow2"]));
        // qemu-img's -B leaves the part beyond a shorter backing file as it should be.
    }
    qemu_io(&image, "qcow2", &writes(random, v, size, 14));
    if v.snapshots {
        for name in ["first", "second one"] {
            run(tool("qemu-img").args(["snapshot", "-c", name]).arg(&image));
            qemu_io(&image, "qcow2", &writes(random, v, size, 6));
        }
    }
    if v.lazy {
        // Killed before it closes the image: refcounts stay dirty.
        let mut command = tool("qemu-io");
        command.current_dir(dir);
        command.args([
            "-f",
            "qcow2",
            "-c",
            "write -P 9 4096 8192",
            "-c",
            "flush",
            "-c",
            "abort",
        ]);
        assert!(!command.arg(&image).output().unwrap().status.success());
    }
    image
}

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
