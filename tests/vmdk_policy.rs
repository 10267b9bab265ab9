//! What a VMDK descriptor may not make us do: open files outside policy, devices, anything else
//! but files, or as many of them as it likes.

mod support;

use std::path::Path;

use guestlens::formats::reference::ReferencePolicy;
use guestlens::formats::{FormatErrorKind, OpenOptions};
use support::disk::{compare, in_full, open, refused};
use support::{guestlens, shell, workdir};

fn describe(path: &Path, kind: &str, more: &str) {
    let text =
        format!("# Disk DescriptorFile\nversion=1\nCID=00000001\ncreateType=\"{kind}\"\n{more}\n");
    std::fs::write(path, text).unwrap();
}

#[test]
fn extents_stay_within_the_tree() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir in out in/sub; head -c 4096 /dev/urandom > out/disk; cp out/disk in/sub/disk
         cp out/disk in/disk; ln -s ../out/disk in/link; ln -s sub/disk in/within; mkfifo in/fifo
         ln -s /dev/null in/null",
    );
    let image = dir.path().join("in/image.vmdk");
    let options = OpenOptions::default();
    for name in [
        "/etc/passwd",
        "/dev/sda",
        "../out/disk",
        "sub/../../out/disk",
        "link",
        "fifo",
        "null",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "nbd://host/x",
        "file:/etc/passwd",
        "C:\\disk.vmdk",
    ] {
        // A quote within a name ends it, which makes the line one that is not understood.
        let kind = if name.contains('"') {
            FormatErrorKind::Damaged
        } else {
            FormatErrorKind::NotAllowed
        };
        for (create_type, line) in [
            ("monolithicFlat", format!("RW 8 FLAT \"{name}\" 0")),
            ("vmfs", format!("RW 8 VMFS \"{name}\"")),
            ("twoGbMaxExtentSparse", format!("RW 8 SPARSE \"{name}\"")),
        ] {
            describe(&image, create_type, &line);
            let error = refused(&image, &options);
            assert_eq!(error.kind(), kind, "{line}: {error:?}");
        }
        describe(
            &image,
            "monolithicSparse",
            &format!("parentCID=00000002\nparentFileNameHint=\"{name}\"\nRW 8 ZERO"),
        );
        // A path of Windows is looked for beside the image, where there is none.
        let kind = if name.contains('\\') {
            FormatErrorKind::Io
        } else {
            kind
        };
        assert_eq!(refused(&image, &options).kind(), kind, "parent {name}");
    }
    let truth = std::fs::read(dir.path().join("out/disk")).unwrap();
    for name in ["disk", "sub/disk", "./disk", "within"] {
        describe(&image, "monolithicFlat", &format!("RW 8 FLAT \"{name}\" 0"));
        compare(name, &open(&image).device(), &truth, 1);
    }
    // Allowed by name, but an absolute name is refused all the same.
    let allowing = OpenOptions {
        policy: ReferencePolicy {
            allowed: vec![dir.path().join("out"), "/etc".into(), "/dev".into()],
            refuse_all: false,
        },
        ..OpenOptions::default()
    };
    describe(&image, "monolithicFlat", "RW 8 FLAT \"../out/disk\" 0");
    assert!(guestlens::formats::open_path(&image, &allowing).is_ok());
    describe(&image, "monolithicFlat", "RW 8 FLAT \"/etc/passwd\" 0");
    let error = refused(&image, &allowing);
    assert!(in_full(&error).contains("absolute"), "{error:?}");
    let refusing = OpenOptions {
        policy: ReferencePolicy {
            allowed: Vec::new(),
            refuse_all: true,
        },
        ..OpenOptions::default()
    };
    describe(&image, "monolithicFlat", "RW 8 FLAT \"disk\" 0");
    assert_eq!(
        refused(&image, &refusing).kind(),
        FormatErrorKind::NotAllowed
    );
    describe(&image, "vmfsRawDeviceMap", "RW 8 VMFSRDM \"disk\"");
    assert_eq!(
        refused(&image, &allowing).kind(),
        FormatErrorKind::NotAllowed
    );
    // Itself, and a file that is in the chain already.
    describe(&image, "monolithicFlat", "RW 8 FLAT \"image.vmdk\" 0");
    assert_eq!(refused(&image, &options).kind(), FormatErrorKind::Damaged);
    // Nothing of a refused file is shown.
    describe(&image, "monolithicFlat", "RW 8 FLAT \"../out/disk\" 0");
    let output = guestlens().arg("info").arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains("out/disk") && said.contains("--allow-backing"),
        "{said}"
    );
}

#[test]
fn sizes_and_numbers_are_bounded() {
    let dir = workdir();
    let image = dir.path().join("image.vmdk");
    let options = OpenOptions::default();
    let started = std::time::Instant::now();
    for (kind, more) in [
        // Extents without end, of files and of none.
        (FormatErrorKind::Unsupported, "RW 1 ZERO\n".repeat(20_000)),
        (
            FormatErrorKind::Damaged,
            format!("RW {} ZERO\n", u64::MAX / 512).repeat(3),
        ),
        (FormatErrorKind::Damaged, format!("RW {} ZERO", u64::MAX)),
        (
            FormatErrorKind::Damaged,
            "RW 99999999999999999999 ZERO".into(),
        ),
        (
            FormatErrorKind::Damaged,
            format!("RW 1 FLAT \"disk\" {}", u64::MAX),
        ),
        // More text than anybody writes, in one line or in many.
        (
            FormatErrorKind::Damaged,
            format!("x={}", "y".repeat(8 << 20)),
        ),
        (FormatErrorKind::Damaged, "# x\n".repeat(1 << 20)),
        (FormatErrorKind::Damaged, String::new()),
    ] {
        describe(&image, "twoGbMaxExtentFlat", &more);
        std::fs::write(dir.path().join("disk"), [0; 512]).unwrap();
        let error = refused(&image, &options);
        assert_eq!(
            error.kind(),
            kind,
            "{error:?} {}",
            &more[..more.len().min(40)]
        );
    }
    // As many files as there are lines.
    let mut lines = String::new();
    for i in 0..1200 {
        std::fs::write(dir.path().join(format!("e{i}")), [i as u8; 512]).unwrap();
        lines.push_str(&format!("RW 1 FLAT \"e{i}\" 0\n"));
    }
    describe(&image, "twoGbMaxExtentFlat", &lines);
    let error = refused(&image, &options);
    assert!(in_full(&error).contains("more than 900 files"), "{error:?}");
    // Many extents of few files are well.
    describe(
        &image,
        "twoGbMaxExtentFlat",
        &"RW 1 FLAT \"e7\" 0\n".repeat(4000),
    );
    compare("many", &open(&image).device(), &[7; 4000 * 512], 1);
    let few: String = lines.lines().take(500).map(|l| format!("{l}\n")).collect();
    describe(&image, "twoGbMaxExtentFlat", &few);
    assert_eq!(open(&image).device().len(), 500 * 512);
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn chains_of_deltas_end() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f vmdk one.vmdk 1M
         for n in 1 2; do qemu-img create -q -f vmdk -b one.vmdk -F vmdk d$n.vmdk; done",
    );
    // Two deltas that name each other: rewritten in place, the names are equally long.
    let rename = |file: &str, to: &str| {
        let path = dir.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(8).position(|w| w == b"one.vmdk").unwrap();
        bytes[at..at + 8].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
    };
    rename("d1.vmdk", ".d2.vmdk");
    std::fs::rename(dir.path().join("d2.vmdk"), dir.path().join(".d2.vmdk")).unwrap();
    rename(".d2.vmdk", "/d1.vmdk");
    let error = refused(&dir.path().join("d1.vmdk"), &OpenOptions::default());
    assert!(matches!(
        error.kind(),
        FormatErrorKind::Io | FormatErrorKind::NotAllowed
    ));
    let path = dir.path().join(".d2.vmdk");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"/d1.vmdk").unwrap();
    bytes[at..at + 9].copy_from_slice(b"d1.vmdk\"\n");
    bytes[at + 9] = b'#';
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&dir.path().join("d1.vmdk"), &OpenOptions::default());
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    assert!(in_full(&error).contains("already contains"), "{error:?}");
}
