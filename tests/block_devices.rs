//! Block devices of the host as images: their size, their sectors, and who else uses them.

mod support;

use std::path::{Path, PathBuf};

use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::{guestlens, is_root, run, shell, skip, tool, workdir};

/// A loop device; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, sector: &str) -> Self {
        let output = run(tool("losetup")
            .args(["-f", "--show", "-b", sector])
            .arg(file));
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup").arg("-d").arg(&self.0).status();
    }
}

fn options(write: bool) -> OpenOptions {
    OpenOptions {
        format: Some("raw".into()),
        write,
        ..OpenOptions::default()
    }
}

#[test]
fn is_written_by_sectors_of_its_own() {
    if !is_root() {
        skip!("only root has loop devices");
    }
    let dir = workdir();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![0xAA; 8 << 20]).unwrap();
    let device = Loop::new(&file, "4096");
    {
        let image = open_path(&device.0, &options(true)).unwrap();
        let disk = image.device();
        assert_eq!(disk.len(), 8 << 20);
        assert_eq!(disk.block_size(), 4096);
        disk.write_all_at(1000, &[1; 5000]).unwrap();
        // Neither end on a sector: the edges are written, the middle is not.
        disk.write_zeroes((1 << 20) + 100, 1 << 20, true).unwrap();
        disk.write_zeroes(3 << 20, 700, false).unwrap();
        disk.discard((4 << 20) + 1, 1 << 20).unwrap();
        disk.flush().unwrap();
        image.writer().unwrap().close().unwrap();
    }
    drop(device);
    let bytes = std::fs::read(&file).unwrap();
    let mut model = vec![0xAA; 8 << 20];
    model[1000..6000].fill(1);
    model[(1 << 20) + 100..(2 << 20) + 100].fill(0);
    model[3 << 20..(3 << 20) + 700].fill(0);
    // What was discarded may read as anything; what lies around it may not.
    let discarded = (4 << 20) + 1..(5 << 20) + 1;
    assert!(bytes[..discarded.start] == model[..discarded.start]);
    assert!(bytes[discarded.end..] == model[discarded.end..]);
}

#[test]
fn in_use_by_this_host_it_is_only_read() {
    if !is_root() {
        skip!("only root has loop devices");
    }
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p t/etc m; echo here >t/etc/hostname
         truncate -s 16M disk; mke2fs -q -F -t ext4 -d t disk",
    );
    let device = Loop::new(&dir.path().join("disk"), "512");
    let point = dir.path().join("m");
    run(tool("mount").args(["-o", "ro"]).arg(&device.0).arg(&point));
    let refused = open_path(&device.0, &options(true)).err();
    let read = guestlens()
        .arg("cat")
        .arg(&device.0)
        .arg("/etc/hostname")
        .output();
    run(tool("umount").arg("-l").arg(&point));
    let refused = refused.expect("a refusal");
    assert_eq!(refused.kind(), FormatErrorKind::Busy);
    assert_eq!(read.unwrap().stdout, b"here\n");
}
