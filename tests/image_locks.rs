//! Images under QEMU's byte-range locks, against the real qemu-io and qemu-img.

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestlens::formats::{FormatError, FormatErrorKind, Image, OpenOptions, open_path};
use support::qemu_io::QemuIo;
use support::storage_daemon::StorageDaemon;
use support::{is_root, run, shell, skip, tool, workdir};

/// One test at a time: a process that another thread starts has, until it runs its program, all
/// descriptors of this one, and with them the locks of images that were closed meanwhile.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live() -> OpenOptions {
    OpenOptions {
        live: true,
        ..OpenOptions::default()
    }
}

fn writing(format: &str) -> OpenOptions {
    OpenOptions {
        format: Some(format.into()),
        write: true,
        ..OpenOptions::default()
    }
}

fn open(format: &str, image: &Path, write: bool) -> Result<Arc<dyn Image>, FormatError> {
    let options = OpenOptions {
        write,
        ..writing(format)
    };
    open_path(image, &options)
}

/// Why the image is not opened for writing, which must be that it is in use.
fn refused(format: &str, image: &Path) -> String {
    let Err(error) = open(format, image, true) else {
        panic!("{} was opened for writing", image.display())
    };
    assert_eq!(error.kind(), FormatErrorKind::Busy, "{error:?}");
    format!("{error:?}")
}

/// What QEMU's tools may do with the image right now.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Allowed {
    write: bool,
    read: bool,
    info: bool,
    info_shared: bool,
    export_writable: bool,
    export: bool,
}

fn allowed(format: &str, image: &Path) -> Allowed {
    let succeeds = |program: &str, arguments: &[&str]| {
        let output = tool(program).args(arguments).arg(image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || text.contains("lock"), "{text}");
        output.status.success()
    };
    let exports = |writable| match StorageDaemon::try_export(format, image, writable) {
        Ok(_) => true,
        Err(text) => {
            assert!(text.contains("lock"), "{text}");
            false
        }
    };
    Allowed {
        write: succeeds("qemu-io", &["-f", format, "-c", "length"]),
        read: succeeds("qemu-io", &["-r", "-f", format, "-c", "length"]),
        info: succeeds("qemu-img", &["info", "-f", format]),
        info_shared: succeeds("qemu-img", &["info", "-U", "-f", format]),
        export_writable: exports(true),
        export: exports(false),
    }
}

/// Another process of ours that has the image open; killed when dropped.
struct Other(Child);

impl Other {
    /// Opens the image in another process; its error text, if that is refused.
    fn open(format: &str, image: &Path, write: bool) -> Result<Self, String> {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_other_process", "--nocapture"])
            .env("GUESTLENS_TEST_FORMAT", format)
            .env("GUESTLENS_TEST_IMAGE", image)
            .env("GUESTLENS_TEST_WRITE", if write { "1" } else { "0" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut other = Self(child);
        let lines = BufReader::new(other.0.stdout.as_mut().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if line.ends_with("OPENED") {
                return Ok(other);
            }
            if let Some((_, error)) = line.split_once("REFUSED ") {
                return Err(error.to_owned());
            }
        }
        panic!("the other process said nothing");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a part of other tests, which run it as a process of its own"]
fn the_other_process() {
    let image = std::env::var_os("GUESTLENS_TEST_IMAGE").unwrap();
    let format = std::env::var("GUESTLENS_TEST_FORMAT").unwrap();
    let write = std::env::var("GUESTLENS_TEST_WRITE").unwrap() == "1";
    match open(&format, Path::new(&image), write) {
        Ok(_opened) => {
            println!("\nOPENED");
            // Until it is killed, or the test that started it has ended.
            let _ = std::io::stdin().lines().count();
        }
        Err(error) => println!("\nREFUSED {:?}", format!("{error:?}")),
    }
}

#[test]
fn a_writer_and_a_reader_notice_each_other() {
    let _alone = alone();
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 base 4M; qemu-img create -q -f qcow2 -b base -F qcow2 top",
    );
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    let options = OpenOptions::default();
    for held in [&top, &base] {
        let holder = QemuIo::open(held, &[]);
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
    let reader = QemuIo::open(&top, &["-r"]);
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
                .output()
                .unwrap()
                .status
                .success()
        );
    }
    drop(opened);
    drop(QemuIo::open(&top, &[]));
}

#[test]
fn while_we_write_nobody_else_may() {
    let _alone = alone();
    let dir = workdir();
    for format in ["raw", "qcow2"] {
        let image = dir.path().join(format);
        run(tool("qemu-img")
            .args(["create", "-q", "-f", format])
            .arg(&image)
            .arg("4M"));
        let everything = Allowed {
            write: true,
            read: true,
            info: true,
            info_shared: true,
            export_writable: true,
            export: true,
        };
        assert_eq!(allowed(format, &image), everything);
        let holder = QemuIo::open_as(format, &image, &[]);
        let beside_qemu = allowed(format, &image);
        drop(holder);
        let opened = open(format, &image, true).unwrap();
        let beside_us = allowed(format, &image);
        // What only looks at the bytes of a raw image minds no writer.
        assert_eq!(
            beside_us,
            Allowed {
                write: false,
                export_writable: false,
                export: false,
                ..beside_qemu
            }
        );
        assert!(beside_us.info_shared);
        assert!(format == "raw" || !beside_us.read && !beside_us.info);
        assert!(open(format, &image, false).is_err(), "our own reader");
        assert!(refused(format, &image).contains("this process itself"));
        for write in [true, false] {
            let error = Other::open(format, &image, write).map(|_| ()).unwrap_err();
            assert!(
                error.contains("in use") && error.contains("(pid "),
                "{error}"
            );
        }
        drop(opened);
        assert_eq!(allowed(format, &image), everything, "{format}, closed");
    }
}

#[test]
fn whoever_has_it_open_keeps_us_from_writing() {
    let _alone = alone();
    let dir = workdir();
    for format in ["raw", "qcow2"] {
        let image = dir.path().join(format);
        run(tool("qemu-img")
            .args(["create", "-q", "-f", format])
            .arg(&image)
            .arg("4M"));
        let qemu_writes = || {
            tool("qemu-io")
                .args(["-f", format, "-c", "length"])
                .arg(&image)
                .output()
                .unwrap()
                .status
                .success()
        };
        let writer = QemuIo::open_as(format, &image, &[]);
        let error = refused(format, &image);
        assert!(
            error.contains("qemu-io (pid ") && error.contains("writing"),
            "{error}"
        );
        assert!(error.contains("shut the guest down"), "{error}");
        assert!(open(format, &image, false).is_err());
        drop(writer);
        let exported = StorageDaemon::export(format, &image, true);
        let error = refused(format, &image);
        assert!(error.contains("qemu-storage-daemon (pid "), "{error}");
        drop(exported);
        // Readers of a raw image let others write; those of a qcow2 image cannot.
        for writable_beside in [
            {
                let _reader = QemuIo::open_as(format, &image, &["-r"]);
                (qemu_writes(), open(format, &image, true).is_ok())
            },
            {
                let _exported = StorageDaemon::export(format, &image, false);
                (qemu_writes(), open(format, &image, true).is_ok())
            },
        ] {
            let (qemu, ours) = writable_beside;
            assert!(!ours || qemu, "{format}: QEMU is refused and we are not");
            assert!(!ours || format == "raw");
        }
        for write in [true, false] {
            let other = Other::open(format, &image, write).unwrap();
            let error = refused(format, &image);
            assert!(
                error.contains("image_locks") && error.contains("(pid "),
                "{error}"
            );
            assert_eq!(open(format, &image, false).is_ok(), !write);
            // By SIGKILL.
            drop(other);
            assert!(
                open(format, &image, true).is_ok(),
                "a killed process holds nothing"
            );
        }
    }
}

#[test]
fn every_file_of_the_chain() {
    let _alone = alone();
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f raw base 4M
         qemu-img create -q -f qcow2 -b base -F raw middle
         qemu-img create -q -f qcow2 -b middle -F qcow2 -o data_file=data top",
    );
    let file = |name: &str| dir.path().join(name);
    let top = file("top");
    // QEMU opens what an overlay names from its own directory.
    for (name, format) in [("base", "raw"), ("middle", "qcow2"), ("data", "raw")] {
        let writer = QemuIo::open_as(format, &file(name), &[]);
        let error = refused("qcow2", &top);
        assert!(error.contains(&format!("/{name} is in use")), "{error}");
        drop(writer);
        let opened = open("qcow2", &top, true).unwrap();
        let beside = allowed(format, &file(name));
        assert!(
            !beside.write && !beside.export_writable,
            "{name}: {beside:?}"
        );
        assert!(beside.info_shared);
        // Below the image others may read; in the image's own data file nobody.
        assert_eq!(open(format, &file(name), false).is_ok(), name != "data");
        assert!(open(format, &file(name), true).is_err());
        drop(opened);
        assert!(open(format, &file(name), true).is_ok());
    }
}

#[test]
fn users_that_take_no_locks() {
    let _alone = alone();
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M image");
    let image = dir.path().join("image");
    let forced = || {
        let options = OpenOptions {
            force: true,
            ..writing("raw")
        };
        open_path(&image, &options).unwrap().info().warnings.clone()
    };
    let waiting = |script: &str| {
        let mut child = tool("bash")
            .current_dir(dir.path())
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        child
    };
    for (script, who, what) in [
        (
            "exec 3<image; flock -x 3; echo; read",
            "bash (pid ",
            "flock",
        ),
        (
            "exec 3<>image; echo; read",
            "bash (pid ",
            "open for writing",
        ),
    ] {
        let mut child = waiting(script);
        let error = refused("raw", &image);
        assert!(error.contains(who) && error.contains(what), "{error}");
        assert!(error.contains("--force"), "{error}");
        let warnings = forced();
        assert!(warnings.iter().any(|w| w.contains(what)), "{warnings:?}");
        assert!(
            open("raw", &image, false).is_ok(),
            "reading is not concerned"
        );
        // What it started has the same descriptor.
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(open("raw", &image, true).is_ok());
    }
    // We hold the lock of those programs as well.
    let opened = open("raw", &image, true).unwrap();
    let file = File::open(&image).unwrap();
    let locked = || {
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&file, lock).is_ok()
    };
    assert!(!locked());
    drop(opened);
    assert!(locked());
}

#[test]
fn a_loop_device_is_a_user() {
    if !is_root() {
        skip!("only root sets up loop devices");
    }
    let _alone = alone();
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M image");
    let image = dir.path().join("image");
    let device = shell(dir.path(), "losetup --find --show --read-only image");
    let result = std::panic::catch_unwind(|| {
        let error = refused("raw", &image);
        assert!(error.contains(device.trim()), "{error}");
        assert!(open("raw", &image, false).is_ok());
    });
    shell(dir.path(), &format!("losetup -d {device}"));
    result.unwrap();
    assert!(open("raw", &image, true).is_ok());
}
