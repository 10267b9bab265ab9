//! Every kind of VMDK image, made by qemu-img where it can and by hand from the specification
//! where it cannot, read and compared with what qemu-img itself reads from it.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use guestlens::block::ExtentKind;
use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::disk::{compare, content, in_full, open, qemu_io, qemu_reads, refused};
use support::fuzz::Rng;
use support::vmdk::{cowd, descriptor, hosted, se_sparse};
use support::{run, shell, tool, workdir};

/// Random writes for qemu-io.
fn writes(random: &mut Rng, size: u64, zeroes: bool) -> String {
    let mut script = String::new();
    for _ in 0..10 {
        let at = random.below(size / 512) * 512;
        let len = ((1 + random.below(300)) * 512).min(size - at);
        let _ = if zeroes && random.one_in(3) {
            writeln!(script, "write -z {at} {len}")
        } else {
            writeln!(script, "write -P {} {at} {len}", 1 + random.below(255))
        };
    }
    if zeroes {
        let _ = writeln!(script, "write -z 1M 256K");
    }
    script
}

/// Field by field what `qemu-img info` says, as far as both have the field.
fn same_info(image: &Path) {
    let output = run(tool("qemu-img")
        .current_dir(image.parent().unwrap())
        .args(["info", "--output=json", "-f", "vmdk"])
        .arg(image));
    let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let opened = open(image);
    let ours = serde_json::to_value(opened.info()).unwrap();
    for field in ["virtual-size", "format", "cluster-size", "dirty-flag"] {
        assert_eq!(ours.get(field), theirs.get(field), "{field}");
    }
    let (ours, theirs) = (
        &ours["format-specific"]["data"],
        &theirs["format-specific"]["data"],
    );
    for field in ["cid", "parent-cid", "create-type"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    let (ours, theirs) = (&ours["extents"], &theirs["extents"]);
    let theirs = theirs.as_array().unwrap();
    assert_eq!(ours.as_array().unwrap().len(), theirs.len());
    for (index, theirs) in theirs.iter().enumerate() {
        for field in ["virtual-size", "format", "cluster-size", "compressed"] {
            assert_eq!(ours[index].get(field), theirs.get(field), "{field}");
        }
    }
}

#[test]
fn what_qemu_img_makes() {
    let mut random = Rng::new(7);
    let mut count = 0;
    let sparse = |s: &str| s.ends_with("Sparse") || s == "streamOptimized";
    for subformat in [
        "monolithicSparse",
        "streamOptimized",
        "monolithicFlat",
        "twoGbMaxExtentFlat",
        "twoGbMaxExtentSparse",
    ] {
        for adapter in ["ide", "buslogic", "lsilogic", "legacyESX"] {
            for zeroed in [false, true] {
                for hardware in ["4", "14"] {
                    if zeroed && !sparse(subformat) {
                        continue;
                    }
                    count += 1;
                    let dir = workdir();
                    let size = (2 << 20) + random.below(200) * 512;
                    std::fs::write(dir.path().join("raw"), content(size as usize, count)).unwrap();
                    let image = dir.path().join("image.vmdk");
                    let mut options = format!(
                        "subformat={subformat},adapter_type={adapter},hwversion={hardware}"
                    );
                    if zeroed {
                        options.push_str(",zeroed_grain=on");
                    }
                    run(tool("qemu-img")
                        .current_dir(dir.path())
                        .args(["convert", "-f", "raw", "-O", "vmdk", "-o", &options, "raw"])
                        .arg(&image));
                    if subformat != "streamOptimized" {
                        qemu_io(&image, "vmdk", &writes(&mut random, size, true));
                    }
                    let name = format!("{options} {size}");
                    let opened = open(&image);
                    assert_eq!(opened.info().warnings, Vec::<String>::new(), "{name}");
                    assert!(opened.info().format_detected);
                    compare(&name, &opened.device(), &qemu_reads(&image, "vmdk"), count);
                    same_info(&image);
                    if zeroed && subformat != "streamOptimized" {
                        let kind = opened.device().extent_at(1 << 20, 1).unwrap().kind;
                        assert_eq!(kind, ExtentKind::Zero, "{name}");
                    }
                }
            }
        }
    }
    assert_eq!(count, 64);
}

#[test]
fn disks_of_several_extents() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = workdir();
        let image = dir.path().join("image.vmdk");
        run(tool("qemu-img")
            .args(["create", "-q", "-f", "vmdk", "-o"])
            .arg(format!("subformat={subformat}"))
            .arg(&image)
            .arg("5G"));
        // The first extent ends 64 KiB before 2 GiB.
        let border = (2_u64 << 30) - (64 << 10);
        for at in [
            0,
            border - 70_144,
            border - 1024,
            2 * border - 512,
            (5 << 30) - 4096,
        ] {
            qemu_io(&image, "vmdk", &format!("write -P 17 {at} 4096"));
        }
        same_info(&image);
        let opened = open(&image);
        assert_eq!(
            opened.info().format_specific["extents"]
                .as_array()
                .unwrap()
                .len(),
            3
        );
        let raw = dir.path().join("raw");
        shell(dir.path(), "qemu-img convert -f vmdk -O raw image.vmdk raw");
        let truth = open_path(
            &raw,
            &OpenOptions {
                format: Some("raw".into()),
                ..OpenOptions::default()
            },
        )
        .unwrap();
        let mut random = Rng::new(3);
        let mut places: Vec<u64> = (0..60).map(|_| random.below(5 << 30)).collect();
        places.extend([0, border - 70_144, border - 3000, 2 * border - 60_000]);
        for at in places {
            let len = 100_000.min((5 << 30) - at) as usize;
            assert!(
                opened.device().read_vec(at, len).unwrap()
                    == truth.device().read_vec(at, len).unwrap(),
                "{subformat} at {at}"
            );
        }
        // A split disk cannot be read by its parts.
        let part = dir.path().join("image-s001.vmdk");
        if part.exists() {
            let error = refused(&part, &OpenOptions::default());
            assert_eq!(error.kind(), FormatErrorKind::Unsupported);
            assert!(in_full(&error).contains("several files"));
        }
    }
}

#[test]
fn delta_disks() {
    let mut random = Rng::new(11);
    for subformat in [
        "monolithicSparse",
        "twoGbMaxExtentSparse",
        "streamOptimized",
    ] {
        for (base, delta) in [(3 << 20, 3 << 20), (2 << 20, 3 << 20)] {
            let dir = workdir();
            std::fs::write(dir.path().join("raw"), content(base, 5)).unwrap();
            let name = format!("{subformat} {base} {delta}");
            shell(
                dir.path(),
                &format!(
                    "qemu-img convert -f raw -O vmdk -o subformat={subformat} raw base.vmdk
                     qemu-img create -q -f vmdk -o zeroed_grain=on -b base.vmdk -F vmdk middle.vmdk {delta}
                     qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse -b middle.vmdk -F vmdk top.vmdk {delta}"
                ),
            );
            let at = |name: &str| -> PathBuf { dir.path().join(name) };
            qemu_io(
                &at("top.vmdk"),
                "vmdk",
                &writes(&mut random, delta as u64, false),
            );
            for image in ["middle.vmdk", "top.vmdk"] {
                let opened = open(&at(image));
                let truth = qemu_reads(&at(image), "vmdk");
                compare(&name, &opened.device(), &truth, 1);
                same_info(&at(image));
                let info = opened.info();
                assert!(
                    info.backing_filename
                        .as_deref()
                        .is_some_and(|n| n.ends_with("vmdk"))
                );
                assert_eq!(
                    info.full_backing_filename
                        .as_ref()
                        .unwrap()
                        .canonicalize()
                        .unwrap(),
                    opened
                        .backing()
                        .unwrap()
                        .info()
                        .filename
                        .canonicalize()
                        .unwrap()
                );
            }
            // Depths count from the image itself.
            let device = open(&at("top.vmdk")).device();
            let mut depths = std::collections::BTreeSet::new();
            let mut offset = 0;
            while offset < device.len() {
                let extent = device.extent_at(offset, device.len() - offset).unwrap();
                depths.insert(extent.depth);
                offset += extent.len;
            }
            assert!(
                depths.contains(&0) && depths.contains(&2),
                "{name}: {depths:?}"
            );
            drop(device);
            // As VMware on Windows names it.
            if subformat != "streamOptimized" {
                let bytes = std::fs::read(at("middle.vmdk")).unwrap();
                let text = String::from_utf8_lossy(&bytes[512..2048]).into_owned();
                let named = text.replace("=\"base.vmdk\"", "=\"V:\\a\\base.vmdk\"");
                let mut renamed = bytes.clone();
                renamed[512..2048].copy_from_slice(&named.as_bytes()[..1536]);
                assert!(renamed != bytes && named.ends_with('\0'));
                let truth = qemu_reads(&at("middle.vmdk"), "vmdk");
                std::fs::write(at("middle.vmdk"), renamed).unwrap();
                compare(&name, &open(&at("middle.vmdk")).device(), &truth, 2);
                std::fs::write(at("middle.vmdk"), bytes).unwrap();
            }
            // A parent that was changed is not the parent any more.
            if subformat != "streamOptimized" {
                qemu_io(&at("base.vmdk"), "vmdk", "write -P 1 0 512");
                let error = refused(&at("top.vmdk"), &OpenOptions::default());
                assert_eq!(error.kind(), FormatErrorKind::Damaged);
                assert!(in_full(&error).contains("was changed since"), "{error:?}");
            }
        }
    }
}

/// What an image written by hand lacks reads as zeroes; `kept` says what it has.
fn masked(raw: &[u8], grain: usize, kept: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut out = raw.to_vec();
    for (index, piece) in out.chunks_mut(grain).enumerate() {
        if !kept(index) {
            piece.fill(0);
        }
    }
    out
}

#[test]
fn esx_disks() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    // More than one grain table of 2 MiB.
    let raw = content((5 << 20) + 512, 21);
    std::fs::write(at("delta-cowd"), cowd(&raw, 1)).unwrap();
    std::fs::write(at("large-cowd"), cowd(&raw, 128)).unwrap();
    let sectors = raw.len() / 512;
    let line = |name: &str, kind: &str| format!("RW {sectors} {kind} \"{name}\"\n");
    let write = |name: &str, text: String| std::fs::write(at(name), text).unwrap();
    write(
        "one.vmdk",
        descriptor("vmfsSparse", None, &line("delta-cowd", "VMFSSPARSE")),
    );
    write(
        "two.vmdk",
        descriptor("vmfsSparse", None, &line("large-cowd", "VMFSSPARSE")),
    );
    for (name, grain) in [("one.vmdk", 512), ("two.vmdk", 65536)] {
        let truth = qemu_reads(&at(name), "vmdk");
        assert!(truth == masked(&raw, grain, |i| i % 3 != 1));
        compare(name, &open(&at(name)).device(), &truth, 2);
        same_info(&at(name));
    }
    let bare = refused(&at("large-cowd"), &OpenOptions::default());
    assert_eq!(bare.kind(), FormatErrorKind::Unsupported);

    // A snapshot of a flat ESX disk.
    std::fs::write(at("base-flat.vmdk"), content(raw.len(), 22)).unwrap();
    write(
        "base.vmdk",
        descriptor("vmfs", None, &line("base-flat.vmdk", "VMFS")),
    );
    let extents = line("delta-cowd", "VMFSSPARSE");
    write(
        "delta.vmdk",
        descriptor("vmfsSparse", Some("base.vmdk"), &extents),
    );
    for name in ["base.vmdk", "delta.vmdk"] {
        let truth = qemu_reads(&at(name), "vmdk");
        compare(name, &open(&at(name)).device(), &truth, 4);
    }
    assert!(qemu_reads(&at("delta.vmdk"), "vmdk") != raw);

    // The newer kind, with more than one grain table of 16 MiB.
    let raw = content((18 << 20) + 4096 + 512, 23);
    let sectors = raw.len() / 512;
    std::fs::write(at("se-extent"), se_sparse(&raw)).unwrap();
    let extents = format!("RW {sectors} SESPARSE \"se-extent\"\n");
    write("se.vmdk", descriptor("seSparse", None, &extents));
    let truth = qemu_reads(&at("se.vmdk"), "vmdk");
    assert!(truth == masked(&raw, 4096, |i| i % 5 > 2));
    compare("se", &open(&at("se.vmdk")).device(), &truth, 5);
    std::fs::write(at("se-base-flat"), content(raw.len(), 24)).unwrap();
    let base = format!("RW {sectors} VMFS \"se-base-flat\"\n");
    write("se-base.vmdk", descriptor("vmfs", None, &base));
    write(
        "se-delta.vmdk",
        descriptor("seSparse", Some("se-base.vmdk"), &extents),
    );
    let truth = qemu_reads(&at("se-delta.vmdk"), "vmdk");
    compare("se delta", &open(&at("se-delta.vmdk")).device(), &truth, 6);
    // What QEMU refuses as well: a journal that was not replayed.
    let mut bytes = se_sparse(&raw);
    bytes[512 + 24] = 1;
    std::fs::write(at("se-extent"), bytes).unwrap();
    let error = refused(&at("se.vmdk"), &OpenOptions::default());
    assert_eq!(error.kind(), FormatErrorKind::Unsupported);
    assert!(in_full(&error).contains("journal"));
}

#[test]
fn hosted_disks_by_hand() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let raw = content((1 << 20) + 7 * 512, 31);
    let text = descriptor(
        "monolithicSparse",
        None,
        &format!("RW {} SPARSE \"x.vmdk\"\n", raw.len() / 512),
    );
    for compressed in [None, Some(false), Some(true)] {
        let image = at("x.vmdk");
        let bytes = hosted(&raw, compressed, &text);
        std::fs::write(&image, &bytes).unwrap();
        let truth = masked(&raw, 16 * 512, |i| i % 3 != 1);
        if compressed != Some(false) {
            // QEMU takes the size of data without markers from nowhere and fails.
            assert!(qemu_reads(&image, "vmdk") == truth);
        }
        let opened = open(&image);
        assert_eq!(opened.info().warnings, Vec::<String>::new());
        compare(&format!("{compressed:?}"), &opened.device(), &truth, 1);

        // A primary directory that leads nowhere: the redundant one is read.
        let mut damaged = bytes.clone();
        damaged[23 * 512..23 * 512 + 8].fill(0x77);
        std::fs::write(&image, &damaged).unwrap();
        compare("gde", &open(&image).device(), &truth, 2);
        let mut damaged = bytes.clone();
        damaged[56..64].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        std::fs::write(&image, &damaged).unwrap();
        let opened = open(&image);
        assert!(opened.info().warnings[0].contains("redundant"));
        compare("gd", &opened.device(), &truth, 3);
        // Both lost.
        damaged[48..56].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        std::fs::write(&image, &damaged).unwrap();
        let error = refused(&image, &OpenOptions::default());
        assert_eq!(error.kind(), FormatErrorKind::Damaged);

        // What must not be read wrongly when the file is cut short.
        std::fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
        let device = open(&image).device();
        let mut failures = 0;
        for (index, piece) in truth.chunks(8192).enumerate() {
            match device.read_vec(index as u64 * 8192, piece.len()) {
                Ok(read) => assert!(
                    read == piece || read.ends_with(&[0; 512]),
                    "{compressed:?} {index}"
                ),
                Err(_) => failures += 1,
            }
        }
        assert!(failures > 20, "{failures}");
    }
    // Not closed properly.
    let mut bytes = hosted(&raw, None, &text);
    bytes[72] = 1;
    std::fs::write(at("x.vmdk"), bytes).unwrap();
    assert!(open(&at("x.vmdk")).info().dirty_flag);
}

#[test]
fn mixed_extents() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let raw = content(1 << 20, 41);
    let flat = content(1 << 20, 42);
    std::fs::write(at("flat"), &flat).unwrap();
    std::fs::write(at("sparse"), hosted(&raw, None, "")).unwrap();
    let text = descriptor(
        "twoGbMaxExtentFlat",
        None,
        "RW 100 FLAT \"flat\" 5\nRW 7 ZERO\nRW 2048 SPARSE \"sparse\"\nRDONLY 11 FLAT \"flat\" 2037\n",
    );
    std::fs::write(at("mixed.vmdk"), text).unwrap();
    let mut truth = flat[5 * 512..105 * 512].to_vec();
    truth.extend([0; 7 * 512]);
    truth.extend(masked(&raw, 8192, |i| i % 3 != 1));
    truth.extend(&flat[2037 * 512..2048 * 512]);
    compare("mixed", &open(&at("mixed.vmdk")).device(), &truth, 1);
    // The extent's own idea of its size decides nothing.
    let wrong = descriptor("twoGbMaxExtentSparse", None, "RW 4096 SPARSE \"sparse\"\n");
    std::fs::write(at("mixed.vmdk"), wrong).unwrap();
    let error = refused(&at("mixed.vmdk"), &OpenOptions::default());
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    // A flat file that is too short is reported.
    let short = descriptor("monolithicFlat", None, "RW 3000 FLAT \"flat\" 0\n");
    std::fs::write(at("mixed.vmdk"), short).unwrap();
    let opened = open(&at("mixed.vmdk"));
    assert!(opened.info().warnings[0].contains("cut short"));
    let mut truth = flat;
    truth.resize(3000 * 512, 0);
    compare("short", &opened.device(), &truth, 2);
}
