//! Images that somebody else has open: a live guest that grows, and who is named as the holder.

mod support;

use std::path::Path;
use std::time::Duration;

use guestlens::block::ExtentKind;
use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::qemu_io::QemuIo;
use support::storage_daemon::StorageDaemon;
use support::{shell, workdir};

fn live() -> OpenOptions {
    OpenOptions {
        live: true,
        ..OpenOptions::default()
    }
}

/// Longer than what was read of a live image's tables counts.
fn later() {
    std::thread::sleep(guestlens::formats::qcow2::live::LIVE_FOR + Duration::from_millis(200));
}

#[test]
fn a_guest_that_grows() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -o cluster_size=4K image 63M",
    );
    let path = dir.path().join("image");
    let mut guest = QemuIo::open(&path, &[]);
    guest.say("write -P 1 0 64K");
    guest.say("flush");
    let opened = open_path(&path, &live()).unwrap();
    let device = opened.device();
    let before = std::fs::metadata(&path).unwrap().len();
    assert_eq!(
        device.read_vec(60 << 10, 8 << 10).unwrap()[4096..],
        [0; 4096]
    );
    // New clusters under a table that is known, and new tables, all behind the old end.
    for at in ["64K", "1M", "40M"] {
        guest.say(&format!("write -P 2 {at} 256K"));
    }
    guest.say("flush");
    assert!(std::fs::metadata(&path).unwrap().len() > before);
    later();
    for at in [64 << 10, 1 << 20, 40 << 20] {
        let got = device.read_vec(at, 256 << 10).unwrap();
        assert!(got.iter().all(|&b| b == 2), "at {at}");
        assert_eq!(device.extent_at(at, 4096).unwrap().len, 4096);
    }
    // The disk stays the size it had. 4 KiB of L2 table map 2 MiB: the L1 table need not move.
    guest.say("truncate 64M");
    guest.say("flush");
    later();
    assert_eq!(open_path(&path, &live()).unwrap().device().len(), 64 << 20);
    assert_eq!(device.len(), 63 << 20);
    assert_eq!(device.read_vec(0, 4096).unwrap(), [1; 4096]);
}

#[test]
fn a_table_that_moves() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -o cluster_size=512 image 1M",
    );
    let path = dir.path().join("image");
    let mut guest = QemuIo::open(&path, &[]);
    guest.say("write -P 1 0 64K");
    guest.say("flush");
    let opened = open_path(&path, &live()).unwrap();
    assert_eq!(opened.device().read_vec(0, 512).unwrap(), [1; 512]);
    guest.say("truncate 256M");
    guest.say("flush");
    later();
    let error = opened.device().read_vec(0, 512).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("open it again"), "{text}");
    let again = open_path(&path, &live()).unwrap();
    assert_eq!(again.device().read_vec(0, 512).unwrap(), [1; 512]);
}

fn holder_is_named(image: &Path, name: &str) {
    let Err(error) = open_path(image, &OpenOptions::default()) else {
        panic!("opened under {name}");
    };
    assert_eq!(error.kind(), FormatErrorKind::Busy);
    let text = format!("{error:?}");
    assert!(text.contains(&format!("{name} (pid ")), "{text}");
    assert!(text.contains("is writing to it"), "{text}");
}

#[test]
fn the_holder_is_named() {
    let dir = workdir();
    shell(dir.path(), "qemu-img create -q -f qcow2 image 4M");
    let path = dir.path().join("image");
    let holder = QemuIo::open(&path, &[]);
    holder_is_named(&path, "qemu-io");
    drop(holder);
    let daemon = StorageDaemon::export("qcow2", &path, true);
    holder_is_named(&path, "qemu-storage-daemon");
    drop(daemon);
    assert!(open_path(&path, &OpenOptions::default()).is_ok());
}

#[test]
fn preallocated_images() {
    let dir = workdir();
    for mode in ["metadata", "falloc", "full"] {
        for extended in ["off", "on"] {
            shell(
                dir.path(),
                &format!(
                    "rm -f image raw
                     qemu-img create -q -f qcow2 -o preallocation={mode},extended_l2={extended} image 8M
                     qemu-io -f qcow2 -c 'write -P 3 100K 300K' image >/dev/null
                     qemu-img convert -f qcow2 -O raw image raw"
                ),
            );
            let opened = open_path(&dir.path().join("image"), &OpenOptions::default()).unwrap();
            let warnings = &opened.info().warnings;
            assert!(warnings.is_empty(), "{mode}, {extended}: {warnings:?}");
            let device = opened.device();
            let truth = std::fs::read(dir.path().join("raw")).unwrap();
            assert!(device.read_vec(0, 8 << 20).unwrap() == truth, "{mode}");
            // Host offsets as qemu-img has them; whether the host file has a hole there is the
            // host's business.
            let json = shell(dir.path(), "qemu-img map --output=json -f qcow2 image");
            let map: serde_json::Value = serde_json::from_str(&json).unwrap();
            for entry in map.as_array().unwrap() {
                let start = entry["start"].as_u64().unwrap();
                let extent = device.extent_at(start, 512).unwrap();
                // Of subclusters that were not written QEMU also says where they would be stored.
                let stored = entry["present"].as_bool().unwrap();
                let kind = if stored {
                    ExtentKind::Data
                } else {
                    ExtentKind::Hole
                };
                assert_eq!(extent.kind, kind, "{mode}, {extended}: {entry}");
                assert_eq!(
                    extent.host_offset,
                    entry["offset"].as_u64().filter(|_| stored),
                    "{mode}, {extended}: {entry}"
                );
            }
        }
    }
}
