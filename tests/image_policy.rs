//! What an image may not make us do: open other files, believe its numbers, wait for ever.

mod support;

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use guestlens::formats::reference::ReferencePolicy;
use guestlens::formats::{FormatError, FormatErrorKind, OpenOptions, open_path};
use support::{shell, workdir};

fn refuse(path: &Path, options: &OpenOptions) -> FormatError {
    match open_path(path, options) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e,
    }
}

#[test]
fn references_stay_within_the_tree() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir in out; truncate -s 1M out/base in/base; ln -s ../out/base in/escape; ln -s base in/within
         mkfifo in/fifo; qemu-img create -q -f qcow2 -b base -F raw in/good 1M
         make() { qemu-img create -q -f qcow2 in/$1 1M; qemu-img rebase -u -b \"$2\" -F raw in/$1; }
         make passwd /etc/passwd; make json 'json:{\"driver\":\"file\"}'; make nbd nbd://h/x
         make up ../out/base; make link escape; make pipe fifo; make null /dev/null; make ok within
         make data base; make abs \"$PWD/in/base\"
         qemu-img create -q -f qcow2 in/self 1M; qemu-img rebase -u -b self -F qcow2 in/self
         qemu-img create -q -f qcow2 in/one 1M; qemu-img rebase -u -b two -F qcow2 in/one
         qemu-img create -q -f qcow2 in/two 1M; qemu-img rebase -u -b one -F qcow2 in/two
         for i in $(seq 0 80); do
             qemu-img create -q -f qcow2 in/c$i 1M; qemu-img rebase -u -b c$((i+1)) -F qcow2 in/c$i
         done",
    );
    let at = |name: &str| dir.path().join("in").join(name);
    let options = OpenOptions::default();
    for name in ["passwd", "json", "nbd", "up", "link", "pipe", "null"] {
        let error = refuse(&at(name), &options);
        assert_eq!(
            error.kind(),
            FormatErrorKind::NotAllowed,
            "{name}: {error:?}"
        );
        assert!(error.hint().unwrap().contains("--allow-backing"), "{name}");
        assert!(format!("{error:?}").contains("backing file"), "{name}");
    }
    for name in ["self", "one", "c0"] {
        assert_eq!(
            refuse(&at(name), &options).kind(),
            FormatErrorKind::Damaged,
            "{name}"
        );
    }
    for name in ["good", "ok", "abs"] {
        assert!(open_path(&at(name), &options).is_ok(), "{name}");
    }
    let policy = ReferencePolicy {
        allowed: vec![dir.path().join("out")],
        refuse_all: false,
    };
    let allowing = OpenOptions {
        policy,
        ..OpenOptions::default()
    };
    assert!(open_path(&at("up"), &allowing).is_ok());
    assert_eq!(
        refuse(&at("passwd"), &allowing).kind(),
        FormatErrorKind::NotAllowed
    );
    let policy = ReferencePolicy {
        allowed: Vec::new(),
        refuse_all: true,
    };
    let refusing = OpenOptions {
        policy,
        ..OpenOptions::default()
    };
    assert_eq!(
        refuse(&at("good"), &refusing).kind(),
        FormatErrorKind::NotAllowed
    );
    // A stated format is never second-guessed.
    let raw = OpenOptions {
        format: Some("raw".into()),
        ..OpenOptions::default()
    };
    let opened = open_path(&at("passwd"), &raw).unwrap();
    assert_eq!(
        (opened.info().format, opened.info().format_detected),
        ("raw", false)
    );
}

#[test]
fn headers_are_not_believed() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 seed 8M; mkfifo fifo; touch empty",
    );
    let options = OpenOptions::default();
    let cases: [(&str, u64, &[u8], FormatErrorKind); 7] = [
        ("size", 24, &[0xff; 8], FormatErrorKind::Damaged),
        ("l1 entries", 36, &[0xff; 4], FormatErrorKind::Damaged),
        ("l1 offset", 40, &[0x7f; 8], FormatErrorKind::Damaged),
        ("cluster bits", 20, &[0, 0, 0, 70], FormatErrorKind::Damaged),
        ("encryption", 32, &[0, 0, 0, 2], FormatErrorKind::Damaged),
        (
            "features",
            72,
            &[0x80, 0, 0, 0, 0, 0, 0, 0],
            FormatErrorKind::Unsupported,
        ),
        ("version", 4, &[0, 0, 0, 1], FormatErrorKind::Unsupported),
    ];
    for (name, at, bytes, kind) in cases {
        let path = dir.path().join("case");
        std::fs::copy(dir.path().join("seed"), &path).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        assert_eq!(refuse(&path, &options).kind(), kind, "{name}");
    }
    for name in ["fifo", "empty", "", "missing"] {
        refuse(&dir.path().join(name), &options);
    }
    refuse(Path::new("/dev/null"), &options);
}
