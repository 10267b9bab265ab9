//! Hostile and broken image files: the same answer as QEMU where QEMU has a plain one, otherwise
//! an error of the right kind, in one line, with what the user can do.

mod support;

use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guestlens::block::BlockErrorKind;
use guestlens::formats::{FormatError, FormatErrorKind, Image, OpenOptions, open_path};
use support::qemu_io::QemuIo;
use support::{guestlens_path, is_root, shell, skip, tool, workdir};

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;

/// An image in memory with handles on its structures.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if self.0.len() < at + value.len() {
            self.0.resize(at + value.len(), 0);
        }
        self.0[at..at + value.len()].copy_from_slice(value);
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn l1(&self) -> usize {
        be64(&self.0, 40) as usize
    }

    fn l2(&self) -> usize {
        (be64(&self.0, self.l1()) & OFFSET) as usize
    }

    fn cluster_bits(&self) -> u32 {
        u32::from(self.0[23])
    }

    fn offset_bits(&self) -> u32 {
        70 - self.cluster_bits()
    }

    /// Host offset of the compressed cluster that L2 entry `index` describes.
    fn compressed_at(&self, index: usize) -> usize {
        let entry = be64(&self.0, self.l2() + index * 8);
        assert!(entry & COMPRESSED != 0, "{entry:#x}");
        (entry & ((1 << self.offset_bits()) - 1)) as usize
    }

    /// Appends `stream` and makes L2 entry `index` describe it.
    fn append_compressed(&mut self, index: usize, stream: &[u8]) {
        let at = self.0.len().next_multiple_of(512);
        self.put(at, stream);
        let sectors = (stream.len() as u64).div_ceil(512) - 1;
        let entry = COMPRESSED | sectors << self.offset_bits() | at as u64;
        let slot = self.l2() + index * 8;
        self.put64(slot, entry);
        let end = self.0.len().next_multiple_of(512);
        self.0.resize(end, 0);
    }
}

fn open(path: &Path) -> Result<std::sync::Arc<dyn Image>, FormatError> {
    open_path(path, &OpenOptions::default())
}

fn refused(path: &Path) -> FormatError {
    match open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

/// All messages of an error in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

fn qemu_reads(path: &Path) -> Option<Vec<u8>> {
    let out = path.with_extension("raw");
    let output = tool("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .arg(path)
        .arg(&out)
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| std::fs::read(&out).unwrap())
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// QEMU and we read the same.
    Same,
    /// Neither reads it.
    Neither,
    /// QEMU reads something, we call it damage.
    Stricter,
}
use Outcome::{Neither, Same, Stricter};

#[test]
fn tables_that_lie() {
    let dir = workdir();
    shell(
        dir.path(),
        "seq 1 13000 > content; truncate -s 64K content
         qemu-img convert -c -f raw -O qcow2 -o cluster_size=4K content zlib
         qemu-img convert -c -f raw -O qcow2 -o cluster_size=4K,compression_type=zstd content zstd
         qemu-img create -q -f qcow2 -o cluster_size=4K plain 64K
         qemu-io -f qcow2 -c 'write -P 7 0 16K' plain >/dev/null",
    );
    let zlib = Bytes::read(&dir.path().join("zlib"));
    let zstd = Bytes::read(&dir.path().join("zstd"));
    let plain = Bytes::read(&dir.path().join("plain"));
    let mebibyte = vec![0; 1 << 20];
    let deflated = {
        use std::io::Write as _;
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&mebibyte).unwrap();
        encoder.finish().unwrap()
    };
    let zstandard = zstd::bulk::compress(&mebibyte, 19).unwrap();
    assert!(deflated.len() < 4096 && zstandard.len() < 4096);

    type Change<'a> = Box<dyn Fn(&mut Bytes) + 'a>;
    let cases: Vec<(&str, &Bytes, Outcome, Change<'_>)> = vec![
        // The first cluster of a deflate stream is taken, as QEMU does; zstd must be exact.
        (
            "zlib bomb",
            &zlib,
            Same,
            Box::new(|i| i.append_compressed(3, &deflated)),
        ),
        (
            "zstd bomb",
            &zstd,
            Neither,
            Box::new(|i| i.append_compressed(3, &zstandard)),
        ),
        (
            "short zstd",
            &zstd,
            Neither,
            Box::new(|i| {
                let short = zstd::bulk::compress(&[1; 100], 1).unwrap();
                i.append_compressed(3, &short);
            }),
        ),
        (
            "two zstd frames",
            &zstd,
            Same,
            Box::new(|i| {
                let mut frames = zstd::bulk::compress(&[1; 2048], 1).unwrap();
                frames.extend(zstd::bulk::compress(&[2; 2048], 1).unwrap());
                i.append_compressed(3, &frames);
            }),
        ),
        (
            "empty zstd frames",
            &zstd,
            Neither,
            Box::new(|i| {
                let empty = zstd::bulk::compress(&[], 1).unwrap();
                let many: Vec<u8> = empty.iter().copied().cycle().take(4000).collect();
                i.append_compressed(3, &many);
            }),
        ),
        (
            "short deflate",
            &zlib,
            Neither,
            Box::new(|i| {
                i.append_compressed(3, &[3, 0]);
            }),
        ),
        (
            "compressed past the end",
            &zlib,
            Neither,
            Box::new(|i| {
                let slot = i.l2() + 8;
                i.put64(slot, COMPRESSED | 1 << 40);
            }),
        ),
        (
            "compressed at its own table",
            &zlib,
            Neither,
            Box::new(|i| {
                let l2 = i.l2();
                i.put64(l2 + 8, COMPRESSED | l2 as u64);
            }),
        ),
        (
            "compressed twice the same",
            &zlib,
            Same,
            Box::new(|i| {
                let l2 = i.l2();
                let entry = be64(&i.0, l2);
                i.put64(l2 + 8, entry);
            }),
        ),
        (
            "compressed overlapping",
            &zlib,
            Neither,
            Box::new(|i| {
                let (l2, at) = (i.l2(), i.compressed_at(0) as u64);
                i.put64(l2 + 8, COMPRESSED | (at + 5));
            }),
        ),
        (
            "cluster at its own table",
            &plain,
            Same,
            Box::new(|i| {
                let l2 = i.l2();
                i.put64(l2, COPIED | l2 as u64);
            }),
        ),
        (
            "cluster at the header",
            &plain,
            Neither,
            Box::new(|i| {
                // Offset 0 means unallocated; a bit of it makes the cluster unaligned.
                let l2 = i.l2();
                i.put64(l2, COPIED | 512);
            }),
        ),
        (
            "cluster at the refcount table",
            &plain,
            Same,
            Box::new(|i| {
                let (l2, table) = (i.l2(), be64(&i.0, 48));
                i.put64(l2, COPIED | table);
            }),
        ),
        (
            "cluster past the end",
            &plain,
            Same,
            Box::new(|i| {
                let l2 = i.l2();
                i.put64(l2, COPIED | 1 << 30);
            }),
        ),
        (
            "cluster far past the end",
            &plain,
            Same,
            Box::new(|i| {
                let l2 = i.l2();
                i.put64(l2, COPIED | 0x00ff_ffff_ffff_f000);
            }),
        ),
        (
            "L2 table at itself",
            &plain,
            Neither,
            Box::new(|i| {
                let (l1, l2) = (i.l1(), i.l2());
                // The L1 table serves as an L2 table, whose entries make no sense as such.
                i.put64(l1, COPIED | l1 as u64);
                i.put64(l2, COPIED | 777);
                i.put64(l1 + 8, COMPRESSED | 1);
            }),
        ),
        (
            "L2 table at the header",
            &plain,
            Neither,
            Box::new(|i| {
                let l1 = i.l1();
                i.put64(l1, COPIED | 512);
            }),
        ),
        (
            "L2 table unaligned",
            &plain,
            Neither,
            Box::new(|i| {
                let (l1, l2) = (i.l1(), i.l2() as u64);
                i.put64(l1, COPIED | (l2 + 512));
            }),
        ),
        (
            "L2 table past the end",
            &plain,
            Stricter,
            Box::new(|i| {
                let l1 = i.l1();
                i.put64(l1, COPIED | 1 << 30);
            }),
        ),
        (
            "L1 table unaligned",
            &plain,
            Neither,
            Box::new(|i| {
                let l1 = i.l1() as u64;
                i.put64(40, l1 + 8);
            }),
        ),
        (
            "L1 table at the header",
            &plain,
            Stricter,
            Box::new(|i| i.put64(40, 0)),
        ),
        (
            "L1 table past the end",
            &plain,
            Stricter,
            Box::new(|i| i.put64(40, 1 << 30)),
        ),
        (
            "L1 table too small",
            &plain,
            Neither,
            Box::new(|i| i.put(36, &[0; 4])),
        ),
        (
            "refcount table unaligned",
            &plain,
            Neither,
            Box::new(|i| i.put64(48, 513)),
        ),
        (
            "refcount table huge",
            &plain,
            Neither,
            Box::new(|i| i.put(56, &[0x7f; 4])),
        ),
        (
            "64 exbibytes",
            &plain,
            Neither,
            Box::new(|i| i.put64(24, u64::MAX)),
        ),
        (
            "extension too long",
            &plain,
            Neither,
            Box::new(|i| {
                let head = u32::from_be_bytes(i.0[100..104].try_into().unwrap()) as usize;
                i.put(head, &[0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0xff]);
            }),
        ),
        (
            "header too long",
            &plain,
            Neither,
            Box::new(|i| i.put(100, &[0xff, 0xff, 0xff, 0xf8])),
        ),
        (
            "name outside",
            &plain,
            Neither,
            Box::new(|i| {
                i.put64(8, 4090);
                i.put(16, &[0, 0, 0, 100]);
            }),
        ),
    ];
    let mut wrong = Vec::new();
    for (name, seed, expected, change) in cases {
        let mut image = seed.clone();
        change(&mut image);
        let path = dir.path().join("case.qcow2");
        std::fs::write(&path, &image.0).unwrap();
        let started = std::time::Instant::now();
        let ours = open(&path)
            .map_err(|error| {
                assert_eq!(error.kind(), FormatErrorKind::Damaged, "{name}: {error:?}");
                assert!(error.hint().is_some(), "{name}: {error:?}");
                whole(&error)
            })
            .and_then(|opened| {
                let device = opened.device();
                let len = usize::try_from(device.len()).unwrap();
                device.read_vec(0, len).map_err(|error| {
                    assert_eq!(error.kind(), BlockErrorKind::Damaged, "{name}: {error:?}");
                    whole(&error)
                })
            });
        assert!(started.elapsed().as_secs() < 2, "{name}");
        let qemu = qemu_reads(&path);
        let got = match (&ours, &qemu) {
            (Ok(ours), Some(qemu)) => {
                assert!(ours == qemu, "{name}: other content than QEMU's");
                Same
            }
            (Err(_), None) => Neither,
            (Err(_), Some(_)) => Stricter,
            (Ok(_), None) => panic!("{name}: read by us, not by QEMU"),
        };
        if got != expected {
            wrong.push(format!("{name}: {got:?}: {:?}", ours.err()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}

#[test]
fn snapshot_tables_that_lie() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -o cluster_size=4K seed 1M
         qemu-io -f qcow2 -c 'write -P 7 0 16K' seed >/dev/null
         qemu-img snapshot -c one seed; qemu-img snapshot -c two seed",
    );
    let seed = Bytes::read(&dir.path().join("seed"));
    let table = be64(&seed.0, 64) as usize;
    let path = dir.path().join("case");
    let with = |change: &dyn Fn(&mut Bytes)| {
        let mut image = seed.clone();
        change(&mut image);
        std::fs::write(&path, &image.0).unwrap();
        open(&path).unwrap()
    };
    assert_eq!(with(&|_| {}).info().snapshots.len(), 2);
    type Change<'a> = &'a dyn Fn(&mut Bytes);
    let cases: [(&str, Change<'_>); 7] = [
        ("count", &|i| i.put(60, &[0xff; 4])),
        ("count within bounds", &|i| i.put(60, &[0, 0, 0xff, 0xff])),
        ("table outside", &|i| i.put64(64, 1 << 40)),
        ("table unaligned", &|i| i.put64(64, 520)),
        ("extra data", &|i| i.put(table + 36, &[0xff; 4])),
        ("id length", &|i| i.put(table + 12, &[0xff; 2])),
        // A thousand names of 64 KiB of nothing: what they take in memory is bounded.
        ("long names", &|i| {
            i.put(60, &[0, 0, 4, 0]);
            let mut at = i.0.len().next_multiple_of(4096);
            i.put64(64, at as u64);
            for _ in 0..1000 {
                i.put(at, &[0; 40]);
                i.put(at + 14, &[0xff, 0xf8]);
                at += 40 + 0xfff8;
            }
            i.put(at, &[0; 8]);
        }),
    ];
    for (name, change) in cases {
        let image = with(change);
        // The active content does not depend on them.
        assert!(
            image.info().warnings.iter().any(|w| w.contains("snapshot")),
            "{name}: {:?}",
            image.info()
        );
        assert!(image.info().snapshots.is_empty(), "{name}");
        assert_eq!(image.device().read_vec(0, 4096).unwrap(), [7; 4096]);
        assert_eq!(
            image.open_snapshot(0).err().unwrap().kind(),
            FormatErrorKind::NoSnapshot,
            "{name}"
        );
    }
    for (name, at, value) in [
        ("L1 outside", 0, 1_u64 << 40),
        ("L1 unaligned", 0, 4104),
        ("L1 at the header", 0, 0),
        ("disk size", 48, u64::MAX),
        ("disk larger than its L1 table", 48, 1 << 40),
    ] {
        let image = with(&|i| i.put64(table + at, value));
        assert_eq!(image.info().snapshots.len(), 2, "{name}");
        let error = image.open_snapshot(0).err().unwrap();
        assert_eq!(error.kind(), FormatErrorKind::Damaged, "{name}");
        assert!(whole(&error).contains("snapshot 'one'"), "{name}");
        assert!(image.open_snapshot(1).is_ok(), "{name}");
    }
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}

#[test]
fn what_the_header_says_in_words() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 seed 1M
         qemu-io -f qcow2 -c 'write -P 5 0 64K' seed >/dev/null
         secret='--object secret,id=s,data=passphrase'
         qemu-img create -q -f qcow2 $secret -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks 1M
         qemu-img create -q -f qcow2 $secret -o encrypt.format=aes,encrypt.key-secret=s aes 1M",
    );
    for (name, word) in [("luks", "LUKS"), ("aes", "AES")] {
        let image = open_path(&dir.path().join(name), &OpenOptions::default()).unwrap();
        let error = image.locked().unwrap();
        assert_eq!(error.kind(), FormatErrorKind::NoKey);
        let text = whole(&error);
        assert!(text.contains("encrypted") && text.contains(word), "{text}");
        assert!(error.hint().unwrap().contains("--key-file"));
    }
    let path = dir.path().join("case");
    let seed = Bytes::read(&dir.path().join("seed"));
    // Bits 5 and 63, the first of them named by the image.
    let mut image = seed.clone();
    image.put64(72, 1 << 5 | 1 << 63);
    let table = image
        .0
        .windows(4)
        .position(|w| w == [0x68, 0x03, 0xf8, 0x57])
        .unwrap();
    let mut row = [0; 48];
    row[1] = 5;
    row[2..14].copy_from_slice(b"warp\x1b[31mdrv");
    image.put(table + 8, &row);
    std::fs::write(&path, &image.0).unwrap();
    let error = refused(&path);
    assert_eq!(error.kind(), FormatErrorKind::Unsupported);
    let text = whole(&error);
    assert!(text.contains("bit 5 (warp\\x1b[31mdrv), bit 63"), "{text}");

    let mut image = seed;
    image.put64(72, 2);
    std::fs::write(&path, &image.0).unwrap();
    let opened = open(&path).unwrap();
    let warnings = opened.info().warnings.join("\n");
    assert!(warnings.contains("corrupt") && warnings.contains("guestlens check"));
    assert_eq!(opened.device().read_vec(0, 65536).unwrap(), [5; 65536]);
}

#[test]
fn a_killed_writer_leaves_a_dirty_image_that_reads() {
    let dir = workdir();
    let path = dir.path().join("image");
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on,cluster_size=4K image 4M",
    );
    let mut writer = QemuIo::open(&path, &[]);
    for command in ["write -P 1 0 1M", "write -P 2 512K 8K", "flush"] {
        writer.say(command);
    }
    drop(writer);
    let opened = open(&path).unwrap();
    assert!(opened.info().dirty_flag);
    let warnings = opened.info().warnings.join("\n");
    assert!(warnings.contains("not closed properly"), "{warnings}");
    let mut model = vec![0; 4 << 20];
    model[..1 << 20].fill(1);
    model[512 << 10..520 << 10].fill(2);
    let ours = opened.device().read_vec(0, 4 << 20).unwrap();
    assert!(ours == model);
    shell(dir.path(), "qemu-img convert -U -f qcow2 -O raw image raw");
    assert!(std::fs::read(dir.path().join("raw")).unwrap() == model);
}

#[test]
fn references_far_and_deep() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir in out; cd in
         qemu-img create -q -f qcow2 -o data_file=../out/data elsewhere 1M
         qemu-img create -q -f qcow2 -o data_file=near beside 1M
         cd ..; qemu-img create -q -f qcow2 -u -b c0001 -F qcow2 c0000 1M",
    );
    let error = refused(&dir.path().join("in/elsewhere"));
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    assert!(whole(&error).contains("data file '../out/data'"));
    assert!(error.hint().unwrap().contains("--allow-backing"));
    assert!(open(&dir.path().join("in/beside")).is_ok());

    let link = std::fs::read(dir.path().join("c0000")).unwrap();
    let at = link.windows(5).position(|w| w == b"c0001").unwrap();
    for number in 1..1000 {
        let path = dir.path().join(format!("c{number:04}"));
        std::fs::write(&path, &link).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let next = format!("c{:04}", number + 1);
        file.write_all_at(next.as_bytes(), at as u64).unwrap();
    }
    let started = std::time::Instant::now();
    let error = refused(&dir.path().join("c0000"));
    assert!(started.elapsed().as_secs() < 5);
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    let text = whole(&error);
    assert!(text.contains("longer than 64"), "{text}");
    assert!(error.hint().unwrap().contains("guestlens commit"));
}

/// Runs `guestlens info`; returns the lines of stderr.
fn info(path: &Path) -> (bool, Vec<String>) {
    reported(Command::new(guestlens_path()).arg("info").arg(path))
}

fn reported(command: &mut Command) -> (bool, Vec<String>) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_ne!(output.status.code(), None, "{errors}");
    (
        output.status.success(),
        errors.lines().map(str::to_owned).collect(),
    )
}

/// Asserts one line that says `words`, and one with a hint.
fn one_line_and_hint(name: &str, lines: &[String], words: &str) {
    assert_eq!(lines.len(), 2, "{name}: {lines:?}");
    assert!(
        lines[0].starts_with("guestlens: ") && lines[0].contains(words),
        "{name}: {lines:?}"
    );
    assert!(lines[1].starts_with("hint: "), "{name}: {lines:?}");
}

#[test]
fn files_cut_short() {
    let dir = workdir();
    shell(
        dir.path(),
        "seq 1 170000 > content; truncate -s 1M content
         qemu-img create -q -f qcow2 plain 4M; qemu-io -f qcow2 -c 'write -P 5 0 1M' plain >/dev/null
         qemu-img convert -c -f raw -O qcow2 -o cluster_size=4K content zlib
         qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=1 narrow 256K
         qemu-io -f qcow2 -c 'write -P 5 0 100K' narrow >/dev/null",
    );
    for name in ["plain", "zlib", "narrow"] {
        let original = std::fs::read(dir.path().join(name)).unwrap();
        let whole_info = open(&dir.path().join(name)).unwrap().info().clone();
        assert!(whole_info.warnings.is_empty(), "{:?}", whole_info.warnings);
        let path = dir.path().join("cut");
        for sixteenth in 0..16 {
            let context = format!("{name}, {sixteenth}/16");
            let bytes = &original[..original.len() * sixteenth / 16];
            std::fs::write(&path, bytes).unwrap();
            let (done, lines) = info(&path);
            match open(&path) {
                Ok(image) => {
                    assert!(done, "{context}: {lines:?}");
                    let warnings = image.info().warnings.join("\n");
                    assert!(warnings.contains("cut short"), "{context}: {warnings}");
                    assert!(
                        lines.iter().any(|l| l.contains("cut short")),
                        "{context}: {lines:?}"
                    );
                    let device = image.device();
                    let read = device.read_vec(0, usize::try_from(device.len()).unwrap());
                    match (read, qemu_reads(&path)) {
                        (Ok(ours), Some(qemu)) => assert!(ours == qemu, "{context}"),
                        (Err(error), _) => {
                            assert_eq!(error.kind(), BlockErrorKind::Damaged, "{context}");
                        }
                        (Ok(_), None) => panic!("{context}: read by us, not by QEMU"),
                    }
                }
                Err(error) => {
                    let kind = if bytes.is_empty() {
                        FormatErrorKind::NotThisFormat
                    } else {
                        FormatErrorKind::Damaged
                    };
                    assert_eq!(error.kind(), kind, "{context}: {error:?}");
                    assert!(!done);
                    one_line_and_hint(&context, &lines, "cut");
                }
            }
        }
    }
}

#[test]
fn what_is_no_image() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir directory; mkfifo fifo; touch empty
         truncate -s 1M secret; chmod 000 secret; chmod 755 .",
    );
    let at = |name: &str| dir.path().join(name);
    let cases: [(PathBuf, FormatErrorKind, &str); 5] = [
        (
            at("directory"),
            FormatErrorKind::NotThisFormat,
            "is a directory",
        ),
        (at("fifo"), FormatErrorKind::NotThisFormat, "is a FIFO"),
        (
            at("empty"),
            FormatErrorKind::NotThisFormat,
            "is an empty file",
        ),
        (
            "/dev/null".into(),
            FormatErrorKind::NotThisFormat,
            "is a character device",
        ),
        (at("missing"), FormatErrorKind::Io, "No such file"),
    ];
    for (path, kind, words) in cases {
        let error = refused(&path);
        assert_eq!(error.kind(), kind, "{}", path.display());
        let (done, lines) = info(&path);
        assert!(!done);
        one_line_and_hint(&path.display().to_string(), &lines, words);
    }
    let mut command = if is_root() {
        // A copy: this user may not reach the directory the program was built in.
        let program = at("guestlens");
        std::fs::copy(guestlens_path(), &program).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = tool("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(program);
        command
    } else {
        Command::new(guestlens_path())
    };
    let (done, lines) = reported(command.arg("info").arg(at("secret")));
    assert!(!done);
    one_line_and_hint("secret", &lines, "Permission denied");
    assert!(lines[1].contains("rights"), "{lines:?}");
}

#[test]
fn a_block_device_as_image() {
    if !is_root() {
        skip!("loop devices need root");
    }
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = tool("losetup").args(["-d", &self.0]).status();
        }
    }
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 8M disk; sgdisk -n 1:2048:4095 -c 1:first -n 2:4096:0 -c 2:second disk >/dev/null
         printf marker | dd of=disk bs=1 seek=2097152 conv=notrunc status=none",
    );
    let device = shell(dir.path(), "losetup -f --show disk");
    let device = Loop(device.trim().to_owned());
    let opened = open(Path::new(&device.0)).unwrap();
    assert_eq!(opened.info().format, "raw");
    assert_eq!(opened.info().virtual_size, 8 << 20);
    assert_eq!(opened.device().read_vec(2 << 20, 6).unwrap(), b"marker");
    drop(opened);
    let output = Command::new(guestlens_path())
        .args(["info", &device.0])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.contains("gpt") && text.contains("sda1") && text.contains("second"),
        "{text}"
    );
}
