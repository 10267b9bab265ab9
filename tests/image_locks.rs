//! Images under QEMU's byte-range locks, against the real qemu-io and qemu-img.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::{shell, tool, workdir};

/// A qemu-io that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(image: &Path, options: &[&str]) -> Self {
        let mut command = tool("qemu-io");
        command.args(["-f", "qcow2"]).args(options).arg(image);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        // Its answer shows that the image is open and locked.
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("MiB"), "{line}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn live() -> OpenOptions {
    OpenOptions {
        live: true,
        ..OpenOptions::default()
    }
}

#[test]
fn a_writer_and_a_reader_notice_each_other() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 base 4M; qemu-img create -q -f qcow2 -b base -F qcow2 top",
    );
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    let options = OpenOptions::default();
    for held in [&top, &base] {
        let holder = Holder::new(held, &[]);
        let Err(error) = open_path(&top, &options) else {
            panic!("opened under a writer")
        };
        assert_eq!(error.kind(), FormatErrorKind::Busy);
        assert!(error.hint().unwrap().contains("--live"));
        let opened = open_path(&top, &live()).unwrap();
        assert!(opened.info().live && !opened.info().warnings.is_empty());
        drop(opened);
        drop(holder);
        assert!(
            open_path(&top, &options).is_ok(),
            "a killed writer leaves no lock"
        );
    }
    let reader = Holder::new(&top, &["-r"]);
    let opened = open_path(&top, &options).unwrap();
    drop(reader);
    assert!(!opened.info().live);
    for image in [&top, &base] {
        let qemu = |arguments: &[&str]| {
            tool("qemu-io")
                .args(["-f", "qcow2", "-c", "length"])
                .args(arguments)
                .arg(image)
                .output()
        };
        assert!(!qemu(&[]).unwrap().status.success(), "a writer came in");
        assert!(qemu(&["-r"]).unwrap().status.success());
        assert!(
            tool("qemu-img")
                .args(["info", "-U"])
                .arg(image)
                .status()
                .unwrap()
                .success()
        );
    }
    drop(opened);
    drop(Holder::new(&top, &[]));
}
