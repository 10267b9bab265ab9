//! VHD images: made by qemu-img and compared with what it reads; differencing ones, which QEMU
//! reads without their parent, made by the specification and compared with what was put in.

mod support;

use std::path::Path;
use std::sync::Arc;

use guestlens::block::{BlockErrorKind, ExtentKind};
use guestlens::formats::reference::ReferencePolicy;
use guestlens::formats::{FormatError, FormatErrorKind, Image, OpenOptions, open_path};
use support::fuzz::Rng;
use support::vhd::{FIXED, Locators, Vhd, seal};
use support::{run, shell, tool, workdir};

fn open(path: &Path) -> Result<Arc<dyn Image>, FormatError> {
    open_path(path, &OpenOptions::default())
}

fn stated(path: &Path) -> Arc<dyn Image> {
    let options = OpenOptions {
        format: Some("vpc".into()),
        ..OpenOptions::default()
    };
    open_path(path, &options).unwrap()
}

fn refused(path: &Path) -> FormatError {
    match open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn whole(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

fn content(image: &Arc<dyn Image>) -> Vec<u8> {
    let device = image.device();
    device
        .read_vec(0, usize::try_from(device.len()).unwrap())
        .unwrap()
}

/// What qemu-img reads, if it does.
fn qemu_reads(path: &Path) -> Option<Vec<u8>> {
    let out = path.with_extension("raw");
    let output = tool("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .arg(path)
        .arg(&out)
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| std::fs::read(&out).unwrap())
}

/// Reads whole, in random pieces, and extent by extent.
fn same(image: &Arc<dyn Image>, truth: &[u8], rng: &mut Rng, name: &str) {
    let device = image.device();
    assert_eq!(device.len(), truth.len() as u64, "{name}");
    assert_eq!(image.info().virtual_size, device.len(), "{name}");
    assert!(content(image) == truth, "{name}");
    if truth.is_empty() {
        return;
    }
    for _ in 0..50 {
        let at = rng.index(truth.len());
        let len = rng.index(200_000).min(truth.len() - at);
        assert!(
            device.read_vec(at as u64, len).unwrap() == truth[at..at + len],
            "{name}: {at}+{len}"
        );
    }
    let mut at = 0;
    while at < truth.len() as u64 {
        let extent = device.extent_at(at, device.len() - at).unwrap();
        let end = at + extent.len;
        if extent.kind != ExtentKind::Data {
            let zero = truth[at as usize..end as usize].iter().all(|&b| b == 0);
            assert!(zero, "{name}: {at}..{end} is no hole");
        }
        at = end;
    }
}

fn noise(rng: &mut Rng) -> [u8; 512] {
    std::array::from_fn(|_| rng.next() as u8)
}

#[test]
fn as_qemu_reads_them() {
    let dir = workdir();
    let rng = &mut Rng::new(1);
    let mut images = 0;
    for subformat in ["fixed", "dynamic"] {
        for force in ["on", "off"] {
            for size in ["1M", "3M", "4097K", "77M"] {
                images += 1;
                let name = format!("{subformat}-{force}-{size}.vhd");
                let path = dir.path().join(&name);
                let option = format!("subformat={subformat},force_size={force}");
                run(tool("qemu-img")
                    .args(["create", "-q", "-f", "vpc", "-o", &option])
                    .arg(&path)
                    .arg(size));
                let mut io = tool("qemu-io");
                io.args(["-f", "vpc"]);
                for n in 1..8 {
                    let at = rng.below(1 << 11) * 512;
                    let len = (1 + rng.below(64)) * 512;
                    let at = at.min((1 << 20) - len);
                    io.args(["-c", &format!("write -P {n} {at} {len}")]);
                }
                run(io.arg(&path));
                let truth = qemu_reads(&path).unwrap();
                let image = open(&path).unwrap();
                assert_eq!(image.info().format, "vpc");
                assert!(image.info().warnings.is_empty(), "{:?}", image.info());
                let specific = &image.info().format_specific;
                assert_eq!(specific["subformat"], subformat, "{specific}");
                let creator = if force == "on" { "qem2" } else { "qemu" };
                assert_eq!(specific["creator"], creator);
                same(&image, &truth, rng, &name);
                if subformat == "dynamic" {
                    assert_eq!(image.info().cluster_size, Some(2 << 20));
                    // The rest of a disk that has only its first block is a hole.
                    let device = image.device();
                    if device.len() > 4 << 20 {
                        let extent = device.extent_at(2 << 20, device.len() - (2 << 20)).unwrap();
                        assert_eq!(extent.kind, ExtentKind::Hole);
                        assert_eq!(extent.len, device.len() - (2 << 20));
                    }
                }
            }
        }
    }
    assert_eq!(images, 16);
}

#[test]
fn sizes_by_creator() {
    let dir = workdir();
    let path = dir.path().join("image");
    for creator in [
        b"vpc ",
        b"qemu",
        b"qem2",
        b"win ",
        b"d2v ",
        b"tap\0",
        b"CTXS",
        b"CXS\0",
        b"vs  ",
        b"wa\0\0",
        b"vbox",
        b"\0\0\0\0",
    ] {
        for geometry in [[0, 16, 4, 17], [255, 255, 16, 255], [0, 200, 15, 63]] {
            let image = Vhd {
                creator: *creator,
                geometry,
                ..Vhd::new(1 << 20, 4096)
            };
            // A table for the larger of both sizes.
            let sized = |size| {
                let mut wide = Vhd {
                    size,
                    ..image.clone()
                }
                .build();
                for at in [0, wide.len() - 512] {
                    wide[at + 40..at + 48].copy_from_slice(&(1_u64 << 20).to_be_bytes());
                    wide[at + 48..at + 56].copy_from_slice(&(1_u64 << 20).to_be_bytes());
                    seal(&mut wide[at..at + 512], 64);
                }
                wide
            };
            std::fs::write(&path, sized(200 << 20)).unwrap();
            let text = run(tool("qemu-img")
                .args(["info", "-f", "vpc", "--output=json"])
                .arg(&path))
            .stdout;
            let theirs: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let ours = stated(&path).info().virtual_size;
            assert_eq!(theirs["virtual-size"], ours, "{creator:?} {geometry:?}");
        }
    }
}

#[test]
fn block_sizes_and_orders_as_qemu_reads_them() {
    let dir = workdir();
    let rng = &mut Rng::new(2);
    for number in 0..24 {
        let block_size = 512 << rng.below(13);
        let size = 512 * (1 + rng.below(5000));
        let mut image = Vhd::new(size, block_size);
        image.reversed = number % 2 == 0;
        // In a dynamic image the bitmaps do not matter.
        image.full_bitmaps = number % 3 == 0;
        for _ in 0..rng.below(100) {
            image.sectors.insert(rng.below(size / 512), noise(rng));
        }
        let path = dir.path().join(format!("{number}.vhd"));
        std::fs::write(&path, image.build()).unwrap();
        let truth = image.model(&[]);
        // For smaller blocks QEMU computes a bitmap of no length, against the specification.
        if block_size >= 4096 {
            assert!(qemu_reads(&path).unwrap() == truth);
        }
        same(&open(&path).unwrap(), &truth, rng, &format!("{number}"));
    }
}

/// A chain of differencing images over a base, and what it reads as.
fn chain(dir: &Path, rng: &mut Rng, block_size: u64, depth: u8) -> Vec<u8> {
    let mut model = Vec::new();
    let mut parent = None;
    for level in 0..=depth {
        // Children of another size than the parent do not occur often, but may.
        let size = (1 << 20) + 512 * rng.below(3);
        let mut image = Vhd::new(size, block_size);
        image.id = [level + 1; 16];
        image.parent = parent.clone();
        for _ in 0..60 {
            let first = rng.below(size / 512);
            for sector in first..(first + 1 + rng.below(20)).min(size / 512) {
                let data = if rng.one_in(8) { [0; 512] } else { noise(rng) };
                image.sectors.insert(sector, data);
            }
        }
        std::fs::write(dir.join(format!("level{level}.vhd")), image.build()).unwrap();
        model = image.model(&model);
        let name = format!("level{level}.vhd");
        parent = Some((
            image.id,
            format!(r"C:\Hyper-V\Disks\{name}"),
            match level % 4 {
                0 => vec![],
                1 => vec![(b"W2ru", format!(r".\{name}"))],
                2 => vec![(b"W2ku", format!(r"\\server\share\{name}"))],
                _ => vec![(b"MacX", format!("file://localhost/Users/x/{name}"))],
            },
        ));
    }
    model
}

#[test]
fn differencing_chains() {
    let rng = &mut Rng::new(3);
    for (number, block_size) in [512, 4096, 65536, 2 << 20].into_iter().enumerate() {
        let dir = workdir();
        let depth = number as u8 + 1;
        let model = chain(dir.path(), rng, block_size, depth);
        let path = dir.path().join(format!("level{depth}.vhd"));
        let image = open(&path).unwrap();
        same(&image, &model, rng, &format!("blocks of {block_size}"));
        assert_eq!(image.info().format_specific["subformat"], "differencing");
        assert_eq!(image.info().backing_filename_format.as_deref(), Some("vpc"));
        let mut here = Some(&image);
        for level in (0..=depth).rev() {
            let info = here.unwrap().info();
            assert!(info.filename.ends_with(format!("level{level}.vhd")));
            here = here.unwrap().backing();
        }
        assert!(here.is_none());
        // Some of it comes from every level.
        let device = image.device();
        let mut depths = std::collections::BTreeSet::new();
        let mut at = 0;
        while at < device.len() {
            let extent = device.extent_at(at, device.len() - at).unwrap();
            if extent.kind == ExtentKind::Data {
                depths.insert(extent.depth);
            }
            at += extent.len;
        }
        assert_eq!(depths, (0..=u32::from(depth)).collect());
    }
}

#[test]
fn parents_by_policy() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, image: &Vhd| {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), image.build()).unwrap();
    };
    let mut base = Vhd::new(1 << 20, 4096);
    base.sectors.insert(5, [5; 512]);
    write("images/base.vhd", &base);
    write("images/sub/other.vhd", &base);
    write("elsewhere/far.vhd", &base);
    let child = |name: &str, locators: Locators| Vhd {
        id: [9; 16],
        parent: Some(([7; 16], name.into(), locators)),
        ..Vhd::new(1 << 20, 4096)
    };
    let path = at("images/child.vhd");
    let reads = |image: &Vhd| {
        write("images/child.vhd", image);
        content(&open(&path).unwrap())[2560..3072] == [5; 512]
    };
    assert!(reads(&child(r"D:\a\base.vhd", vec![])));
    assert!(reads(&child("base.vhd", vec![])));
    assert!(reads(&child(
        "gone.vhd",
        vec![(b"Wi2r", r".\base.vhd".into())]
    )));
    assert!(reads(&child(
        "gone.vhd",
        vec![(b"W2ru", r".\sub\other.vhd".into())]
    )));

    let fails = |image: &Vhd| {
        write("images/child.vhd", image);
        refused(&path)
    };
    let error = fails(&child("far.vhd", vec![]));
    assert_eq!(error.kind(), FormatErrorKind::Io);
    assert!(whole(&error).contains("far.vhd"), "{}", whole(&error));
    // A relative path that leads out is not followed …
    let error = fails(&child("", vec![(b"W2ru", r"..\elsewhere\far.vhd".into())]));
    assert_eq!(
        error.kind(),
        FormatErrorKind::NotAllowed,
        "{}",
        whole(&error)
    );
    // … unless that directory is allowed, where the last part alone is enough.
    let allowed = OpenOptions {
        policy: ReferencePolicy {
            allowed: vec![at("elsewhere")],
            refuse_all: false,
        },
        ..OpenOptions::default()
    };
    for name in [r"..\elsewhere\far.vhd", r"Z:\gone\far.vhd"] {
        write("images/child.vhd", &child("", vec![(b"W2ru", name.into())]));
        let image = open_path(&path, &allowed).unwrap();
        assert_eq!(content(&image)[2560..3072], [5; 512]);
    }
    let refuse = OpenOptions {
        policy: ReferencePolicy {
            refuse_all: true,
            ..ReferencePolicy::default()
        },
        ..OpenOptions::default()
    };
    let error = open_path(&path, &refuse).err().unwrap();
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    // Another disk under the parent's name.
    let mut other = child("base.vhd", vec![]);
    other.parent.as_mut().unwrap().0 = [8; 16];
    let error = fails(&other);
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    assert!(
        whole(&error).contains("is not the parent"),
        "{}",
        whole(&error)
    );
    // Itself, nobody, a symbolic link out, a raw disk.
    let error = fails(&child("child.vhd", vec![]));
    assert!(whole(&error).contains("leads back"), "{}", whole(&error));
    assert_eq!(fails(&child("", vec![])).kind(), FormatErrorKind::Damaged);
    std::os::unix::fs::symlink(at("elsewhere/far.vhd"), at("images/link.vhd")).unwrap();
    let error = fails(&child("link.vhd", vec![]));
    assert_eq!(
        error.kind(),
        FormatErrorKind::NotAllowed,
        "{}",
        whole(&error)
    );
    std::fs::write(at("images/raw.vhd"), vec![1; 1 << 20]).unwrap();
    let error = fails(&child("raw.vhd", vec![]));
    assert_eq!(error.kind(), FormatErrorKind::NotThisFormat);
}

#[test]
fn damaged_footers_and_headers() {
    let dir = workdir();
    let path = dir.path().join("image");
    let mut image = Vhd::new(1 << 20, 4096);
    image.sectors.insert(3, [3; 512]);
    let good = image.build();
    let model = image.model(&[]);
    let end = good.len() - 512;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
    };
    let warned = |word: &str| {
        let image = open(&path).unwrap();
        let warnings = image.info().warnings.join("\n");
        assert!(warnings.contains(word), "{warnings}");
        assert!(content(&image) == model);
    };
    with(&|b| b[end + 100] ^= 1);
    warned("copy at the start is");
    with(&|b| b.truncate(end));
    warned("copy at the start is");
    with(&|b| b[100] ^= 1);
    warned("copy of the footer at the start is damaged");
    with(&|b| b[..512].fill(0));
    warned("copy of the footer at the start is damaged");
    with(&|b| b.truncate(end + 511));
    assert!(open(&path).unwrap().info().warnings.is_empty());
    with(&|b| {
        b[100] ^= 1;
        b[end + 100] ^= 1;
    });
    assert_eq!(refused(&path).kind(), FormatErrorKind::Damaged);
    with(&|b| b[512 + 100] ^= 1);
    let error = refused(&path);
    assert!(
        whole(&error).contains("header's checksum"),
        "{}",
        whole(&error)
    );
    // Cut within a block: what is there is read, what is not is an error.
    image.sectors.insert(2047, [9; 512]);
    let cut = image.build();
    std::fs::write(&path, &cut[..cut.len() - 1024]).unwrap();
    let opened = open(&path).unwrap();
    let warnings = opened.info().warnings.join("\n");
    assert!(warnings.contains("cut short"), "{warnings}");
    assert_eq!(opened.device().read_vec(1536, 512).unwrap(), [3; 512]);
    let error = opened.device().read_vec(2047 * 512, 512).unwrap_err();
    assert_eq!(error.kind(), BlockErrorKind::Damaged);
    for (at, value) in [
        (16, u64::MAX.to_be_bytes()),
        (16, (good.len() as u64).to_be_bytes()),
        (28, [0, 0, 0, 1, 0, 0, 16, 0]),
        (28, [0, 0, 1, 0, 0, 0, 16, 1]),
        (28, [0, 0, 1, 0, 0, 0, 0, 0]),
    ] {
        with(&|b| {
            b[512 + at..512 + at + 8].copy_from_slice(&value);
            seal(&mut b[512..1536], 36);
        });
        assert_eq!(refused(&path).kind(), FormatErrorKind::Damaged);
    }
}

#[test]
fn a_fixed_disk_is_what_its_end_says() {
    let dir = workdir();
    let path = dir.path().join("image");
    // Its first sector is the guest's: here the guest wrote a dynamic VHD over its own disk.
    let mut guest = Vhd::new(2 << 20, 4096).build();
    guest.resize(1 << 20, 0);
    let footer = Vhd::new(1 << 20, 4096).footer(FIXED);
    let file = [guest.as_slice(), &footer].concat();
    std::fs::write(&path, &file).unwrap();
    let image = open(&path).unwrap();
    assert_eq!(image.info().format_specific["subformat"], "fixed");
    assert!(content(&image) == guest);
    // The footer of old products, one byte shorter.
    std::fs::write(&path, &file[..file.len() - 1]).unwrap();
    assert!(content(&open(&path).unwrap()) == guest);
    // Cut short it is not a fixed VHD any more, and its own content decides nothing either.
    std::fs::write(&path, [&vec![0; 4096], footer.as_slice()].concat()).unwrap();
    let image = open(&path).unwrap();
    assert!(image.info().warnings.join("").contains("cut short"));
    assert_eq!(image.info().virtual_size, 1 << 20);
    assert!(qemu_reads(&path).unwrap() == content(&image));
    shell(dir.path(), "rm image");
}
