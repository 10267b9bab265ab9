//! `guestlens check` beside `qemu-img check`: the same numbers for healthy and for damaged images,
//! and after a repair qemu-img finds nothing and every byte is where it was.

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;
use support::fuzz::Rng;
use support::{guestlens, run, shell, tool, workdir};

const FIELDS: [&str; 8] = [
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "leaks",
    "corruptions",
    "check-errors",
];

/// What a checker says: exit status and document.
fn qemu(image: &Path, more: &[&str]) -> Value {
    let output = tool("qemu-img")
        // Where QEMU looks for data files.
        .current_dir(image.parent().unwrap())
        .args(["check", "-f", "qcow2", "--output=json"])
        .args(more)
        .arg(image)
        .output()
        .unwrap();
    // The document follows messages of a repair.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let at = text
        .find("{\n")
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(&text[at..]).unwrap()
}

fn ours(image: &Path, more: &[&str]) -> (i32, Value) {
    let output = guestlens()
        .args(["check", "--json"])
        .args(more)
        .arg(image)
        .output()
        .unwrap();
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), value)
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

/// Compares all numbers; returns whether the image is clean.
fn same(name: &str, image: &Path) -> bool {
    let (exit, ours) = ours(image, &[]);
    let qemu = qemu(image, &[]);
    for field in FIELDS {
        assert_eq!(
            number(&ours, field),
            number(&qemu, field),
            "{name}: {field}\n{ours:#}\n{qemu:#}"
        );
    }
    let clean = ["leaks", "corruptions", "check-errors"]
        .iter()
        .all(|f| number(&ours, f) == 0);
    assert_eq!(exit, if clean { 0 } else { 4 }, "{name}");
    clean
}

fn content(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("content");
    run(tool("qemu-img")
        .args(["convert", "-U", "-f", "qcow2", "-O", "raw"])
        .arg(image)
        .arg(&raw));
    std::fs::read(raw).unwrap()
}

/// Repairs; qemu-img then finds nothing, and the content is what it was.
fn repaired(name: &str, image: &Path, before: &[u8]) -> Value {
    let (exit, report) = ours(image, &["--repair"]);
    assert_eq!(exit, 0, "{name}: {report:#}");
    let qemu = qemu(image, &[]);
    for field in ["leaks", "corruptions", "check-errors"] {
        assert_eq!(number(&qemu, field), 0, "{name}: {qemu:#}");
    }
    assert!(same(name, image), "{name}");
    assert!(content(image) == before, "{name}: the content changed");
    report
}

fn patch(image: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn be64(image: &Path, at: u64) -> u64 {
    let file = std::fs::File::open(image).unwrap();
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Options, then whether to convert compressed, and whether there are snapshots.
const VARIANTS: [(&str, bool, bool); 20] = [
    ("compat=0.10", false, false),
    ("compat=0.10,cluster_size=512", false, true),
    ("compat=0.10", true, true),
    ("cluster_size=512", false, false),
    ("cluster_size=1k,refcount_bits=1", false, false),
    ("cluster_size=4k,refcount_bits=2", false, false),
    ("cluster_size=4k,refcount_bits=4", false, true),
    ("refcount_bits=8", true, false),
    ("refcount_bits=16", false, true),
    ("refcount_bits=32,cluster_size=512", false, true),
    ("refcount_bits=64", true, true),
    ("refcount_bits=64,cluster_size=512", true, true),
    ("extended_l2=on", false, true),
    (
        "extended_l2=on,cluster_size=16k,refcount_bits=8",
        false,
        false,
    ),
    ("compression_type=zstd", true, true),
    ("cluster_size=2M", false, true),
    ("cluster_size=1M,refcount_bits=1", false, false),
    ("data_file=data.bin", false, false),
    (
        "data_file=data.bin,data_file_raw=on,cluster_size=4k",
        false,
        false,
    ),
    ("preallocation=metadata,cluster_size=4k", false, true),
];

fn make(dir: &Path, (options, compressed, snapshots): (&str, bool, bool), seed: u64) {
    let mut random = Rng::new(seed);
    let mut writes = |count: usize| {
        let mut commands = String::new();
        for _ in 0..count {
            let at = random.below(6000) * 1024;
            let len = (1 + random.below(300)) * 512;
            let pattern = 1 + random.below(250);
            let zero = !options.contains("0.10") && random.below(4) == 0;
            commands += &match zero {
                true => format!(" -c 'write -z -u {at} {len}'"),
                false => format!(" -c 'write -P {pattern} {at} {len}'"),
            };
        }
        format!("qemu-io -f qcow2 -d unmap {commands} i.qcow2 >/dev/null")
    };
    let create = if compressed {
        format!(
            "head -c 3M /dev/urandom > c.raw; head -c 3M /dev/zero | tr '\\0' x >> c.raw
             truncate -s 8M c.raw
             qemu-img convert -c -f raw -O qcow2 -o {options} c.raw i.qcow2"
        )
    } else {
        format!("qemu-img create -q -f qcow2 -o {options} i.qcow2 8M")
    };
    let more = if snapshots {
        format!(
            "qemu-img snapshot -c one i.qcow2; {}; qemu-img snapshot -c two i.qcow2; {}
             qemu-img snapshot -d one i.qcow2; {}",
            writes(5),
            writes(5),
            writes(5)
        )
    } else {
        String::new()
    };
    shell(dir, &format!("{create}\n{}\n{more}", writes(12)));
}

#[test]
fn healthy_images_have_the_numbers_of_qemu_img() {
    for (seed, variant) in VARIANTS.into_iter().enumerate() {
        let dir = workdir();
        make(dir.path(), variant, seed as u64);
        assert!(same(variant.0, &dir.path().join("i.qcow2")), "{variant:?}");
    }
}

#[test]
fn bitmaps_and_encryption_headers_are_in_use() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 b.qcow2 4G
         qemu-img bitmap --add -g 512 b.qcow2 first; qemu-img bitmap --add b.qcow2 second
         qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 1 2G 70000' b.qcow2 >/dev/null
         qemu-img bitmap --add -g 64k b.qcow2 third",
    );
    assert!(same("bitmaps", &dir.path().join("b.qcow2")));
}

/// Where the refcount of a cluster is, for images with one refcount block of 16-bit counts.
fn refcount_at(image: &Path, cluster: u64) -> u64 {
    let table = be64(image, 48);
    be64(image, table) + 2 * cluster
}

/// The active L1 table's first L2 table.
fn first_l2(image: &Path) -> u64 {
    be64(image, be64(image, 40)) & OFFSET
}

fn simple(dir: &Path) -> std::path::PathBuf {
    shell(
        dir,
        "qemu-img create -q -f qcow2 i.qcow2 64M
         qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 5M 200k' -c 'write -P 3 30M 64k' i.qcow2 >/dev/null
         qemu-img snapshot -c snap i.qcow2
         qemu-io -f qcow2 -c 'write -P 9 128k 300k' i.qcow2 >/dev/null",
    );
    dir.join("i.qcow2")
}

#[test]
fn leaks_are_counted_and_given_back() {
    let dir = workdir();
    let image = simple(dir.path());
    let before = content(&image);
    // One cluster that nothing uses, three used once more than they are.
    let end = std::fs::metadata(&image).unwrap().len() / 65536;
    patch(&image, refcount_at(&image, end - 1) + 2, &[0, 1]);
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len((end + 1) * 65536).unwrap();
    drop(file);
    for cluster in 10..13 {
        patch(&image, refcount_at(&image, cluster), &[0, 7]);
    }
    assert!(!same("leaks", &image));
    let (exit, report) = ours(&image, &["--repair=leaks"]);
    assert_eq!((exit, number(&report, "leaks-fixed")), (0, 4), "{report:#}");
    repaired("leaks", &image, &before);
}

#[test]
fn refcounts_that_are_too_low_are_raised() {
    let dir = workdir();
    let image = simple(dir.path());
    let before = content(&image);
    // Data of the disk and of the snapshot, with refcount 2.
    let shared = (be64(&image, first_l2(&image)) & OFFSET) / 65536;
    patch(&image, refcount_at(&image, shared), &[0, 1]);
    assert!(!same("too low", &image));
    // Leaks are not what is wrong here.
    let (exit, _) = ours(&image, &["--repair=leaks"]);
    assert_eq!(exit, 4);
    assert!(!same("too low", &image));
    let report = repaired("too low", &image, &before);
    assert!(number(&report, "corruptions-fixed") >= 1, "{report:#}");
}

#[test]
fn flags_are_corrected() {
    let dir = workdir();
    let image = simple(dir.path());
    let before = content(&image);
    let l2 = first_l2(&image);
    for index in [0_u64, 2, 3, 80] {
        let at = l2 + 8 * index;
        patch(&image, at, &(be64(&image, at) ^ (1 << 63)).to_be_bytes());
    }
    let l1 = be64(&image, 40);
    patch(&image, l1, &(be64(&image, l1) ^ (1 << 63)).to_be_bytes());
    assert!(!same("flags", &image));
    let report = repaired("flags", &image, &before);
    assert_eq!(number(&report, "corruptions-fixed"), 5, "{report:#}");
}

#[test]
fn refcount_structures_are_built_anew() {
    for (name, options) in [
        ("16", "refcount_bits=16"),
        ("1", "refcount_bits=1,cluster_size=512"),
        ("64", "refcount_bits=64,cluster_size=512"),
        ("v2", "compat=0.10,cluster_size=4k"),
    ] {
        for damage in 0..4 {
            let dir = workdir();
            make(dir.path(), (options, false, false), 77);
            let image = dir.path().join("i.qcow2");
            let before = content(&image);
            let table = be64(&image, 48);
            match damage {
                // No table any more; a block that is not aligned, outside, or used by data as well.
                0 => patch(&image, table, &[0; 8]),
                1 => patch(&image, table, &(be64(&image, table) + 64).to_be_bytes()),
                2 => patch(&image, table, &(1_u64 << 40).to_be_bytes()),
                _ => patch(&image, table, &(be64(&image, 40)).to_be_bytes()),
            }
            let what = format!("{name}, damage {damage}");
            let (exit, found) = ours(&image, &[]);
            assert_eq!(exit, 4, "{what}");
            assert!(number(&found, "corruptions") > 0, "{what}: {found:#}");
            repaired(&what, &image, &before);
        }
    }
}

#[test]
fn dirty_images_of_a_killed_qemu_are_repaired() {
    for (n, options) in [
        "lazy_refcounts=on",
        "lazy_refcounts=on,cluster_size=512,refcount_bits=1",
        "lazy_refcounts=on,cluster_size=4k,refcount_bits=64",
        "lazy_refcounts=on,extended_l2=on",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = workdir();
        make(dir.path(), (options, false, n % 2 == 0), 5);
        let image = dir.path().join("i.qcow2");
        let mut killed = tool("qemu-io");
        killed.args(["-f", "qcow2"]);
        for k in 0..40 {
            killed.args(["-c", &format!("write -P {} {} 100k", k + 1, k * 190_464)]);
        }
        killed.args(["-c", "flush", "-c", "abort"]).arg(&image);
        assert!(!killed.output().unwrap().status.success());
        assert_eq!(be64(&image, 72) & 1, 1, "{options}: not dirty");
        assert!(!same(options, &image), "{options}");
        let before = content(&image);
        repaired(options, &image, &before);
        assert_eq!(be64(&image, 72) & 3, 0, "{options}: still marked");
    }
}

#[test]
fn what_cannot_be_repaired_is_left_alone() {
    let dir = workdir();
    let image = simple(dir.path());
    let l2 = first_l2(&image);
    // Two things in one cluster: data where the L1 table is.
    let l1 = be64(&image, 40);
    let good = be64(&image, l2);
    patch(&image, l2, &(l1 | 1 << 63).to_be_bytes());
    let (exit, report) = ours(&image, &[]);
    assert_eq!(exit, 4);
    assert_eq!(number(&report, "overlaps"), 1, "{report:#}");
    let (exit, report) = ours(&image, &["--repair"]);
    assert_eq!(exit, 4);
    assert_eq!(number(&report, "overlaps"), 1, "{report:#}");
    patch(&image, l2, &good.to_be_bytes());
    ours(&image, &["--repair"]);
    assert!(same("put right again", &image));

    // An L2 table that is lost: what it refers to looks leaked and must not be given away.
    let entry = be64(&image, l1);
    for lost in [entry | 0x200, 1 << 50] {
        patch(&image, l1, &lost.to_be_bytes());
        let (_, report) = ours(&image, &["--repair"]);
        assert!(number(&report, "leaks") > 0, "{report:#}");
        assert_eq!(number(&report, "leaks-fixed"), 0, "{report:#}");
        patch(&image, l1, &entry.to_be_bytes());
        assert!(same("found again", &image));
    }
}

#[test]
fn other_formats_are_refused() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 1M r.raw; qemu-img create -q -f vdi v.vdi 1M",
    );
    for image in ["r.raw", "v.vdi"] {
        let output = guestlens()
            .arg("check")
            .arg(dir.path().join(image))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{image}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn encrypted_images_are_checked_without_their_key() {
    let dir = workdir();
    shell(
        dir.path(),
        "printf secret > key
         qemu-img create -q -f qcow2 --object secret,id=s,file=key \
             -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 l.qcow2 16M",
    );
    let image = dir.path().join("l.qcow2");
    let (exit, report) = ours(&image, &[]);
    assert_eq!(exit, 0, "{report:#}");
    let opts = format!(
        "driver=qcow2,encrypt.key-secret=s,file.filename={}",
        image.display()
    );
    let output = run(tool("qemu-img")
        .current_dir(dir.path())
        .args(["check", "--output=json", "--object", "secret,id=s,file=key"])
        .args(["--image-opts", &opts]));
    let qemu: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in FIELDS {
        assert_eq!(number(&report, field), number(&qemu, field), "{field}");
    }
    // One refcount too many, one too few.
    let at = refcount_at(&image, 5);
    patch(&image, at, &[0, 9]);
    assert_eq!(ours(&image, &["--repair"]).0, 0);
    assert_eq!(ours(&image, &[]).0, 0);
}

/// Headers that ask for much work: the time is that of the bytes that are there.
#[test]
fn hostile_tables_take_no_time() {
    let dir = workdir();
    let path = dir.path().join("h.qcow2");
    let cluster = 65536_u64;
    let entries = 1_u64 << 20;
    let header = |l1_entries: u64| {
        let mut h = vec![0; 112];
        h[..4].copy_from_slice(b"QFI\xfb");
        h[4..8].copy_from_slice(&3_u32.to_be_bytes());
        h[20..24].copy_from_slice(&16_u32.to_be_bytes());
        h[24..32].copy_from_slice(&(1_u64 << 40).to_be_bytes());
        h[36..40].copy_from_slice(&(l1_entries as u32).to_be_bytes());
        h[40..48].copy_from_slice(&(cluster * 1024).to_be_bytes());
        h[48..56].copy_from_slice(&(cluster * 2).to_be_bytes());
        h[56..60].copy_from_slice(&128_u32.to_be_bytes());
        h[96..100].copy_from_slice(&4_u32.to_be_bytes());
        h[100..104].copy_from_slice(&112_u32.to_be_bytes());
        h
    };
    type Fill = fn(u64) -> u64;
    let cases: [(&str, Fill, Fill); 3] = [
        // L2 tables in holes; all L1 entries with one L2 table; that and a refcount table whose
        // entries all name one block.
        ("holes", |n| (n + 4096) << 16, |_| 0),
        ("one table", |_| 300 << 16 | 1 << 63, |_| 0),
        ("one block", |_| 300 << 16 | 1 << 63, |_| 301 << 16),
    ];
    for (name, l1, table) in cases {
        let file = std::fs::File::create(&path).unwrap();
        file.set_len((entries + 8192) * cluster).unwrap();
        file.write_all_at(&header(entries), 0).unwrap();
        let words = |count: u64, fill: Fill| -> Vec<u8> {
            (0..count).flat_map(|n| fill(n).to_be_bytes()).collect()
        };
        file.write_all_at(&words(entries, l1), cluster * 1024)
            .unwrap();
        file.write_all_at(&words(1 << 20, table), cluster * 2)
            .unwrap();
        // Every entry of the L2 table names the same cluster.
        file.write_all_at(&words(8192, |_| 302 << 16), 300 * cluster)
            .unwrap();
        file.write_all_at(&[1; 65536], 301 * cluster).unwrap();
        drop(file);
        let start = std::time::Instant::now();
        let (exit, report) = ours(&path, &[]);
        assert_eq!(exit, 4, "{name}");
        assert!(number(&report, "corruptions") > 0, "{name}");
        assert!(
            start.elapsed().as_secs() < 20,
            "{name}: {:?}",
            start.elapsed()
        );
    }
}
