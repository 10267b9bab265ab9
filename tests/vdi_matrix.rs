//! VDI images, made by qemu-img and, where it cannot, from such by changing their headers; read and
//! compared with what qemu-img reads.

mod support;

use std::fmt::Write as _;

use guestlens::block::ExtentKind;
use guestlens::formats::reference::ReferencePolicy;
use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::disk::{compare, content, in_full, open, qemu_io, qemu_reads, refused};
use support::fuzz::Rng;
use support::{run, shell, tool, workdir};

#[test]
fn what_qemu_img_makes() {
    let mut random = Rng::new(3);
    for fixed in ["off", "on"] {
        for round in 0..6 {
            let dir = workdir();
            let size = match round {
                0 => 512,
                1 => 4 << 20,
                _ => (5 << 20) + random.below(3000) * 512,
            };
            std::fs::write(dir.path().join("raw"), content(size as usize, round)).unwrap();
            let image = dir.path().join("image.vdi");
            run(tool("qemu-img")
                .current_dir(dir.path())
                .args(["convert", "-f", "raw", "-O", "vdi", "-o"])
                .arg(format!("static={fixed}"))
                .args(["raw", "image.vdi"]));
            let mut script = String::new();
            for _ in 0..6 {
                let at = random.below(size / 512) * 512;
                let len = ((1 + random.below(3000)) * 512).min(size - at);
                let _ = writeln!(script, "write -P {} {at} {len}", random.below(256));
            }
            qemu_io(&image, "vdi", &script);
            let opened = open(&image);
            let name = format!("{fixed} {size}");
            compare(&name, &opened.device(), &qemu_reads(&image, "vdi"), round);
            let info = opened.info();
            assert_eq!((info.format, info.cluster_size), ("vdi", Some(1 << 20)));
            assert!(info.format_detected && info.warnings.is_empty());
            let kind = &info.format_specific["image-type"];
            assert_eq!(kind, if fixed == "on" { "fixed" } else { "dynamic" });
        }
    }
    // A large one is as quick to open as a small one.
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f vdi image.vdi 8T; qemu-io -f vdi -c 'write -P 5 7T 64K' image.vdi",
    );
    let device = open(&dir.path().join("image.vdi")).device();
    let hole = device.extent_at(0, 7 << 40).unwrap();
    assert_eq!(hole.kind, ExtentKind::Hole);
    assert!(hole.len > 1 << 30);
    assert_eq!(device.read_vec(7 << 40, 65536).unwrap(), vec![5; 65536]);
}

/// Makes `child` a differencing image of the image `parent`; both were made by qemu-img.
fn link(child: &mut [u8], parent: &[u8]) {
    child[0x4c..0x50].copy_from_slice(&4_u32.to_le_bytes());
    child[0x1a8..0x1c8].copy_from_slice(&parent[0x188..0x1a8]);
}

#[test]
fn differencing_images() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let (base, top) = (content(6 << 20, 1), content(8 << 20, 2));
    std::fs::write(at("base.raw"), &base).unwrap();
    std::fs::write(at("top.raw"), &top).unwrap();
    shell(
        dir.path(),
        "mkdir pool other; for i in base top; do qemu-img convert -f raw -O vdi $i.raw $i.vdi; done
         qemu-img create -q -f vdi middle.vdi 6M; qemu-img create -q -f vdi unrelated.vdi 1M",
    );
    let mut child = std::fs::read(at("top.vdi")).unwrap();
    let mut middle = std::fs::read(at("middle.vdi")).unwrap();
    link(&mut middle, &std::fs::read(at("base.vdi")).unwrap());
    link(&mut child, &middle);
    // Some blocks are the parent's, some read as zeroes whatever the parent has.
    let map = u32::from_le_bytes(child[0x154..0x158].try_into().unwrap()) as usize;
    let mut truth = top;
    for (block, entry) in [
        (1, 0xffff_ffff),
        (2, 0xffff_fffe),
        (5, u32::MAX),
        (7, u32::MAX),
    ] {
        child[map + block * 4..map + block * 4 + 4].copy_from_slice(&u32::to_le_bytes(entry));
        let piece = &mut truth[block << 20..(block + 1) << 20];
        match entry {
            u32::MAX if block < 6 => piece.copy_from_slice(&base[block << 20..(block + 1) << 20]),
            _ => piece.fill(0),
        }
    }
    std::fs::write(at("top.vdi"), &child).unwrap();
    std::fs::write(at("middle.vdi"), &middle).unwrap();
    let opened = open(&at("top.vdi"));
    compare("chain", &opened.device(), &truth, 1);
    assert_eq!(opened.device().extent_at(1 << 20, 1).unwrap().depth, 2);
    let parent = opened.backing().unwrap();
    assert_eq!(
        parent.info().filename.canonicalize().unwrap(),
        at("middle.vdi").canonicalize().unwrap()
    );
    assert_eq!(opened.info().format_specific["image-type"], "differencing");
    drop(opened);

    // Elsewhere the parent is found only if the user allows that place.
    std::fs::rename(at("base.vdi"), at("pool/b.VDI")).unwrap();
    std::fs::rename(at("middle.vdi"), at("pool/m.vdi")).unwrap();
    std::fs::rename(at("top.vdi"), at("other/top.vdi")).unwrap();
    let options = OpenOptions::default();
    let error = refused(&at("other/top.vdi"), &options);
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    assert!(in_full(&error).contains("parent"), "{error:?}");
    assert!(error.hint().unwrap().contains("--allow-backing"));
    let allowing = |refuse_all| OpenOptions {
        policy: ReferencePolicy {
            allowed: vec![at("pool")],
            refuse_all,
        },
        ..OpenOptions::default()
    };
    let image = open_path(&at("other/top.vdi"), &allowing(false)).unwrap();
    compare("allowed", &image.device(), &truth, 2);
    drop(image);
    let error = refused(&at("other/top.vdi"), &allowing(true));
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    // Links and other kinds of files are no parents, a changed parent neither.
    shell(
        dir.path(),
        "ln -s ../pool/m.vdi other/m.vdi; mkfifo other/f.vdi",
    );
    assert_eq!(
        refused(&at("other/top.vdi"), &options).kind(),
        FormatErrorKind::NotAllowed
    );
    middle[0x198] ^= 1;
    std::fs::write(at("pool/m.vdi"), &middle).unwrap();
    let error = refused(&at("other/top.vdi"), &allowing(false));
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    // An image that is its own parent.
    let own = child.clone();
    link(&mut child, &own);
    std::fs::write(at("other/top.vdi"), &child).unwrap();
    assert_eq!(
        refused(&at("other/top.vdi"), &options).kind(),
        FormatErrorKind::Damaged
    );
}

#[test]
fn what_is_missing_is_not_zeroes() {
    let dir = workdir();
    let image = dir.path().join("image.vdi");
    let truth: Vec<u8> = (0..4 << 20).map(|i: u32| 1 | (i >> 8) as u8).collect();
    std::fs::write(dir.path().join("raw"), &truth).unwrap();
    shell(dir.path(), "qemu-img convert -f raw -O vdi raw image.vdi");
    let len = std::fs::metadata(&image).unwrap().len();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap();
    file.set_len(len - (2 << 20)).unwrap();
    let device = open(&image).device();
    assert!(device.read_vec(0, 2 << 20).unwrap() == truth[..2 << 20]);
    for at in [2 << 20, 3 << 20, (2 << 20) - 512] {
        assert!(device.read_vec(at, 1024).is_err(), "{at}");
    }
    file.set_len(700).unwrap();
    // A map of 16 bytes at 512 is all there.
    assert!(open(&image).device().read_vec(0, 512).is_err());
    file.set_len(520).unwrap();
    let error = refused(&image, &OpenOptions::default());
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
}
