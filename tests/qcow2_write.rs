//! qcow2 written in place: random operations on images QEMU made, compared with a model, and judged
//! by `qemu-img check` and `qemu-img compare`.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestlens::formats::{Image, OpenOptions, open_path};
use support::fuzz::Rng;
use support::{run, shell, tool, workdir};

/// One kind of image: how it is made (in its directory, as `disk.qcow2`, perhaps with `base.*` and
/// `data.raw`), from a disk `old.raw` with content.
struct Kind {
    name: &'static str,
    make: &'static str,
    /// A snapshot of this name has the content of `old.raw`.
    snapshot: bool,
    /// `data.raw` shows the disk by itself.
    raw_data: bool,
}

const fn kind(name: &'static str, make: &'static str) -> Kind {
    Kind {
        name,
        make,
        snapshot: false,
        raw_data: false,
    }
}

const CREATE: &str = "qemu-img create -q -f qcow2";

const KINDS: &[Kind] = &[
    kind("plain", "convert -o cluster_size=64k"),
    kind("v2", "convert -o compat=0.10,cluster_size=4k"),
    kind("512", "convert -o cluster_size=512"),
    kind("512-rc64", "convert -o cluster_size=512,refcount_bits=64"),
    kind("1k-rc1", "convert -o cluster_size=1k,refcount_bits=1"),
    kind("4k-rc2", "convert -o cluster_size=4k,refcount_bits=2"),
    kind("4k-rc4", "convert -o cluster_size=4k,refcount_bits=4"),
    kind("4k-rc8", "convert -o cluster_size=4k,refcount_bits=8"),
    kind("2m-rc32", "convert -o cluster_size=2M,refcount_bits=32"),
    kind("lazy", "convert -o cluster_size=4k,lazy_refcounts=on"),
    kind("compressed", "convert -c -o cluster_size=16k"),
    kind(
        "zstd",
        "convert -c -o cluster_size=64k,compression_type=zstd",
    ),
    kind("v2-compressed", "convert -c -o compat=0.10,cluster_size=4k"),
    kind("ext", "convert -o cluster_size=16k,extended_l2=on"),
    kind(
        "ext-compressed",
        "convert -c -o cluster_size=32k,extended_l2=on",
    ),
    kind("backing", "backing -o cluster_size=4k"),
    kind("backing-64k", "backing -o cluster_size=64k"),
    kind("backing-v2", "backing -o compat=0.10,cluster_size=4k"),
    kind("backing-long", "backing-long -o cluster_size=4k"),
    kind(
        "backing-long-v2",
        "backing-long -o compat=0.10,cluster_size=64k",
    ),
    kind("backing-ext", "backing -o cluster_size=64k,extended_l2=on"),
    kind(
        "metadata",
        "create -o preallocation=metadata,cluster_size=4k",
    ),
    kind(
        "metadata-ext",
        "create -o preallocation=metadata,cluster_size=16k,extended_l2=on",
    ),
    kind("data", "create -o data_file=data.raw,cluster_size=4k"),
    Kind {
        raw_data: true,
        ..kind(
            "data-raw",
            "create -o data_file=data.raw,data_file_raw=on,cluster_size=4k",
        )
    },
    Kind {
        snapshot: true,
        ..kind("snapshot", "convert -o cluster_size=4k")
    },
    Kind {
        snapshot: true,
        ..kind("snapshot-512", "convert -o cluster_size=512")
    },
    Kind {
        snapshot: true,
        ..kind("snapshot-ext", "convert -o cluster_size=16k,extended_l2=on")
    },
    Kind {
        snapshot: true,
        ..kind("snapshot-compressed", "convert -c -o cluster_size=16k")
    },
    Kind {
        snapshot: true,
        ..kind(
            "snapshot-v2-rc",
            "convert -c -o compat=0.10,cluster_size=4k",
        )
    },
];

/// Not a multiple of any cluster size.
const SIZE: usize = (3 << 20) + 512 * 7;

/// A disk with data, holes and zeroes.
fn old_content(rng: &mut Rng) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    for _ in 0..40 {
        let at = rng.below(SIZE as u64) as usize;
        let len = (rng.below(100_000) as usize).min(SIZE - at);
        let byte = rng.below(256) as u8;
        for (n, b) in disk[at..at + len].iter_mut().enumerate() {
            *b = byte.wrapping_add((n / 512) as u8);
        }
    }
    disk
}

fn build(kind: &Kind, dir: &Path, old: &[u8]) -> Vec<u8> {
    std::fs::write(dir.join("old.raw"), old).unwrap();
    let (how, options) = kind.make.split_once(' ').unwrap();
    let content = match how {
        "convert" => {
            shell(
                dir,
                &format!("qemu-img convert -f raw -O qcow2 {options} old.raw disk.qcow2"),
            );
            old.to_vec()
        }
        "backing-long" => {
            let mut base = old.to_vec();
            base.resize(SIZE + (1 << 20), 0xaa);
            std::fs::write(dir.join("base.raw"), &base).unwrap();
            shell(
                dir,
                &format!("{CREATE} {options} -b base.raw -F raw disk.qcow2 {SIZE}"),
            );
            old.to_vec()
        }
        "backing" => {
            // Shorter than the disk, which reads as zeroes behind it.
            let shown = SIZE - 300_000 / 512 * 512;
            std::fs::write(dir.join("base.raw"), &old[..shown]).unwrap();
            shell(
                dir,
                &format!("{CREATE} {options} -b base.raw -F raw disk.qcow2 {SIZE}"),
            );
            let mut content = old[..shown].to_vec();
            content.resize(SIZE, 0);
            content
        }
        _ => {
            shell(dir, &format!("{CREATE} {options} disk.qcow2 {SIZE}"));
            vec![0; SIZE]
        }
    };
    if kind.snapshot {
        shell(dir, "qemu-img snapshot -c before disk.qcow2");
    }
    content
}

fn open(path: &Path) -> Arc<dyn Image> {
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write: true,
        ..OpenOptions::default()
    };
    open_path(path, &options).unwrap()
}

/// Offsets and lengths as they come: mostly aligned to something, sometimes not at all.
fn range(rng: &mut Rng, size: usize) -> (usize, usize) {
    let unit = [1, 512, 4096, 65536][rng.below(4) as usize];
    let at = (rng.below(size as u64) as usize) / unit * unit;
    let most = [600, 5000, 70_000, 400_000][rng.below(4) as usize];
    let len = (1 + rng.below(most) as usize).next_multiple_of(unit);
    (at, len.min(size - at))
}

/// Another size for the disk, if this kind can have one.
fn new_size(kind: &Kind, rng: &mut Rng, size: usize) -> Option<usize> {
    if kind.snapshot && kind.make.contains("compat=0.10") {
        return None;
    }
    let sectors = rng.below(8000) as usize;
    if kind.snapshot || rng.one_in(2) {
        Some(size + sectors * 512)
    } else {
        Some((size / 512).saturating_sub(sectors).max(9) * 512)
    }
}

/// Waits until the locks of a closed image are gone: a child that another test has just forked has
/// its descriptors for a moment, too.
fn wait_for_locks(dir: &Path) {
    for _ in 0..100 {
        let info = tool("qemu-img")
            .current_dir(dir)
            .args(["info", "disk.qcow2"])
            .output()
            .unwrap();
        if info.status.success() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn check(kind: &Kind, dir: &Path, model: &[u8]) {
    std::fs::write(dir.join("model.raw"), model).unwrap();
    let name = kind.name;
    wait_for_locks(dir);
    let output = tool("qemu-img")
        .current_dir(dir)
        .args(["check", "disk.qcow2"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{name}: qemu-img check: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    run(tool("qemu-img").current_dir(dir).args([
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        "model.raw",
        "disk.qcow2",
    ]));
    if kind.raw_data {
        run(tool("qemu-img").current_dir(dir).args([
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            "model.raw",
            "data.raw",
        ]));
    }
    if kind.snapshot {
        shell(
            dir,
            "qemu-img convert -l before -O raw disk.qcow2 before.raw; cmp -n $(stat -c %s old.raw) before.raw old.raw; rm before.raw",
        );
    }
}

fn random_operations(kind: &Kind, dir: &Path, seed: u64) {
    let mut rng = Rng::new(seed);
    let old = old_content(&mut rng);
    let mut model = build(kind, dir, &old);
    let path: PathBuf = dir.join("disk.qcow2");
    for _ in 0..4 {
        let image = open(&path);
        let device = image.device();
        for step in 0..50 {
            let (at, len) = range(&mut rng, model.len());
            let what = rng.below(10);
            match what {
                0..5 => {
                    let byte = rng.below(255) as u8 + 1;
                    let buf: Vec<u8> = (0..len).map(|n| byte ^ (n / 97) as u8).collect();
                    device.write_all_at(at as u64, &buf).unwrap();
                    model[at..at + len].copy_from_slice(&buf);
                }
                5..7 => {
                    device
                        .write_zeroes(at as u64, len as u64, what == 5)
                        .unwrap();
                    model[at..at + len].fill(0);
                }
                7 => {
                    device.discard(at as u64, len as u64).unwrap();
                    // What it reads as now is up to the image, but it stays so.
                    device
                        .read_exact_at(at as u64, &mut model[at..at + len])
                        .unwrap();
                }
                8 => device.flush().unwrap(),
                _ => {
                    let found = device.read_vec(at as u64, len).unwrap();
                    assert!(
                        found == model[at..at + len],
                        "{}: seed {seed} step {step}: {len} bytes at {at} differ",
                        kind.name
                    );
                }
            }
        }
        let found = device.read_vec(0, model.len()).unwrap();
        if found != model {
            let at = found.iter().zip(&model).position(|(a, b)| a != b).unwrap();
            panic!("{}: seed {seed}: byte {at} differs", kind.name);
        }
        if kind.snapshot {
            let before = image.open_snapshot(0).unwrap();
            assert!(before.read_vec(0, SIZE).unwrap() == old, "{}", kind.name);
        }
        if let Some(size) = new_size(kind, &mut rng, model.len()) {
            image.writer().unwrap().resize(size as u64).unwrap();
            model.resize(size, 0);
        }
        image.writer().unwrap().close().unwrap();
        drop((device, image));
        check(kind, dir, &model);
    }
}

fn all_of(part: usize) {
    for (n, kind) in KINDS.iter().enumerate().filter(|(n, _)| n % 4 == part) {
        let dir = workdir();
        random_operations(kind, dir.path(), 7 + n as u64);
    }
}

#[test]
fn random_operations_1() {
    all_of(0);
}

#[test]
fn random_operations_2() {
    all_of(1);
}

#[test]
fn random_operations_3() {
    all_of(2);
}

#[test]
fn random_operations_4() {
    all_of(3);
}

/// Sets bits in a byte of the file.
fn set_bits(path: &Path, at: u64, bits: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] | bits], at).unwrap();
}

fn qemu_check(dir: &Path) -> String {
    wait_for_locks(dir);
    shell(dir, "qemu-img check disk.qcow2 2>&1")
}

#[test]
fn an_image_that_was_not_closed_is_repaired_before_it_is_written_to() {
    let dir = workdir();
    let path = dir.path().join("disk.qcow2");
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 8M
         qemu-io -c 'write -P 7 0 1M' disk.qcow2",
    );
    // The refcounts of what was written, which QEMU had not got round to, are in the third cluster.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 32], (2 << 16) + 12).unwrap();
    drop(file);
    set_bits(&path, 79, 1);
    {
        let image = open(&path);
        assert!(image.info().dirty_flag);
        // Looked at, it stays as it is.
        assert_eq!(image.device().read_vec(0, 2).unwrap(), [7, 7]);
        image.device().write_all_at(2 << 20, &[8; 100]).unwrap();
        image.writer().unwrap().close().unwrap();
    }
    qemu_check(dir.path());
    let info = shell(dir.path(), "qemu-img info --output=json disk.qcow2");
    assert!(info.contains("\"dirty-flag\": false"), "{info}");
    shell(
        dir.path(),
        "qemu-io -r -c 'read -P 7 0 1M' -c 'read -P 8 2M 100' disk.qcow2",
    );
}

#[test]
fn a_corrupt_image_is_not_opened_for_writing() {
    let dir = workdir();
    let path = dir.path().join("disk.qcow2");
    shell(dir.path(), "qemu-img create -q -f qcow2 disk.qcow2 8M");
    set_bits(&path, 79, 2);
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write: true,
        ..OpenOptions::default()
    };
    let error = open_path(&path, &options).err().unwrap();
    assert_eq!(error.kind(), guestlens::formats::FormatErrorKind::Damaged);
}

#[test]
fn features_that_are_not_kept_up_to_date_are_cleared_with_the_first_change() {
    let dir = workdir();
    let path = dir.path().join("disk.qcow2");
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 disk.qcow2 8M; qemu-img bitmap --add disk.qcow2 backup",
    );
    // A feature nobody knows.
    set_bits(&path, 94, 0x40);
    let autoclear = |path: &Path| std::fs::read(path).unwrap()[88..96].to_vec();
    assert_eq!(autoclear(&path), [0, 0, 0, 0, 0, 0, 0x40, 1]);
    {
        let image = open(&path);
        let warned = |w: &String| w.contains("dirty bitmaps");
        assert!(image.info().warnings.iter().any(warned));
        image.device().flush().unwrap();
        assert_eq!(autoclear(&path), [0, 0, 0, 0, 0, 0, 0x40, 1]);
        image.device().write_all_at(0, &[1; 512]).unwrap();
        image.writer().unwrap().close().unwrap();
    }
    assert_eq!(autoclear(&path), [0; 8]);
}

#[test]
fn metadata_is_never_overwritten_as_data() {
    let dir = workdir();
    let path = dir.path().join("disk.qcow2");
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 disk.qcow2 8M; qemu-io -c 'write -P 7 0 192k' disk.qcow2",
    );
    let bytes = std::fs::read(&path).unwrap();
    let be64 = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = be64(40) as usize;
    let l2 = (be64(l1) & 0x00ff_ffff_ffff_fe00) as usize;
    // Where the second guest cluster is said to be: refcount table, L1 table, L2 table.
    for target in [1 << 16, l1 as u64, l2 as u64] {
        let mut hostile = bytes.clone();
        hostile[l2 + 8..l2 + 16].copy_from_slice(&(target | 1 << 63).to_be_bytes());
        std::fs::write(&path, &hostile).unwrap();
        let image = open(&path);
        let device = image.device();
        let error = device.write_all_at(65536, &[0xff; 4096]).unwrap_err();
        assert_eq!(error.kind(), guestlens::block::BlockErrorKind::Damaged);
        // And nothing else either, from then on.
        assert!(device.write_all_at(0, &[1]).is_err());
        assert!(image.writer().unwrap().close().is_err());
        assert_eq!(device.read_vec(0, 2).unwrap(), [7, 7]);
        drop((device, image));
        assert!(std::fs::read(&path).unwrap() == hostile);
    }
}

#[test]
fn many_threads_write_at_once() {
    const THREADS: u64 = 6;
    const STRIPE: u64 = 1 << 20;
    let dir = workdir();
    let path = dir.path().join("disk.qcow2");
    shell(
        dir.path(),
        "head -c 6M /dev/urandom > old.raw
         qemu-img convert -f raw -O qcow2 -o cluster_size=4k old.raw disk.qcow2
         qemu-img snapshot -c before disk.qcow2",
    );
    let image = open(&path);
    let old = std::fs::read(dir.path().join("old.raw")).unwrap();
    let stripes: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let stripe = |number: u64| {
            let device = image.device();
            let start = (number * STRIPE) as usize;
            let mut model = old[start..start + STRIPE as usize].to_vec();
            scope.spawn(move || {
                let mut rng = Rng::new(number + 1);
                for _ in 0..400 {
                    let at = rng.below(STRIPE - 1);
                    let len = (1 + rng.below(20_000)).min(STRIPE - at);
                    let range = at as usize..(at + len) as usize;
                    let place = number * STRIPE + at;
                    match rng.below(8) {
                        0..4 => {
                            let bytes = vec![rng.below(256) as u8; len as usize];
                            device.write_all_at(place, &bytes).unwrap();
                            model[range].copy_from_slice(&bytes);
                        }
                        4 => {
                            device.write_zeroes(place, len, true).unwrap();
                            model[range].fill(0);
                        }
                        5 => device.flush().unwrap(),
                        _ => {
                            let found = device.read_vec(place, len as usize).unwrap();
                            assert!(found == model[range], "{len} bytes at {place}");
                        }
                    }
                }
                model
            })
        };
        let threads: Vec<_> = (0..THREADS).map(stripe).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    image.writer().unwrap().close().unwrap();
    drop(image);
    std::fs::write(dir.path().join("model.raw"), stripes.concat()).unwrap();
    qemu_check(dir.path());
    shell(
        dir.path(),
        "qemu-img compare -f raw -F qcow2 model.raw disk.qcow2
         qemu-img convert -l before -O raw disk.qcow2 before.raw; cmp before.raw old.raw",
    );
}
