//! The locks of a mount against real QEMU programs.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::mount::{GuestMount, is_mounted, is_running};
use support::qemu_io::QemuIo;
use support::{guestlens, run, shell, tool, workdir};

/// The same filesystem as raw and as qcow2 over a backing file.
fn images(dir: &Path) -> [(&'static str, PathBuf); 2] {
    shell(
        dir,
        "mkdir d; echo hello > d/file; truncate -s 8M raw; mke2fs -q -F -t ext4 -d d raw
         qemu-img convert -f raw -O qcow2 raw base
         qemu-img create -q -f qcow2 -b base -F qcow2 top",
    );
    [("raw", dir.join("raw")), ("qcow2", dir.join("top"))]
}

/// Whether qemu-io may open the image for writing.
fn may_write(format: &str, image: &Path) -> bool {
    let output = tool("qemu-io")
        .args(["-f", format, "-c", "length"])
        .arg(image)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || text.contains("lock"), "{text}");
    output.status.success()
}

#[test]
fn no_writer_while_mounted_and_one_right_after() {
    let dir = workdir();
    for (format, image) in images(dir.path()) {
        for round in 0..20 {
            let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
            if round == 0 {
                assert!(!may_write(format, &image), "{format}");
                assert!(!may_write("qcow2", &dir.path().join("base")) || format == "raw");
            }
            mount.umount();
            assert!(may_write(format, &image), "{format}, round {round}");
        }
    }
}

#[test]
fn two_mounts_of_one_image() {
    let dir = workdir();
    let [_, (format, image)] = images(dir.path());
    let one = GuestMount::new(dir.path(), "one", &[&image], &[]);
    let two = GuestMount::new(dir.path(), "two", &[&image], &[]);
    one.umount();
    assert!(!may_write(format, &image), "the other still holds it");
    two.umount();
    assert!(may_write(format, &image));
}

#[test]
fn a_killed_server_holds_nothing() {
    let dir = workdir();
    for (format, image) in images(dir.path()) {
        let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
        let server = mount.server();
        kill(
            Pid::from_raw(i32::try_from(server).unwrap()),
            Signal::SIGKILL,
        )
        .unwrap();
        let started = Instant::now();
        while is_running(server) {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(may_write(format, &image), "{format}");
        mount.umount();
    }
}

#[test]
fn beside_a_running_guest() {
    let dir = workdir();
    for (format, image) in images(dir.path()) {
        let writer = QemuIo::open_as(format, &image, &[]);
        let point = dir.path().join(format!("{format}.m"));
        std::fs::create_dir(&point).unwrap();
        let mount = |more: &[&str]| {
            let mut command = guestlens();
            command.arg("mount").args(more).arg(&image).arg(&point);
            command.output().unwrap()
        };
        let refused = mount(&[]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("--live") && said.contains("hint"), "{said}");
        assert!(!is_mounted(&point));
        run(guestlens()
            .args(["mount", "--live"])
            .arg(&image)
            .arg(&point));
        let live = GuestMount::adopt(&point);
        assert_eq!(
            std::fs::read(live.join("volumes/sda/file")).unwrap(),
            b"hello\n"
        );
        let session = std::fs::read_to_string(live.join("meta/session")).unwrap();
        assert!(session.contains("consistent: false"), "{session}");
        let problems = std::fs::read_to_string(live.join("meta/problems")).unwrap();
        assert!(!problems.is_empty());
        drop(writer);
        // A live mount is in no guest's way.
        assert!(may_write(format, &image), "{format}");
        live.umount();
    }
}
