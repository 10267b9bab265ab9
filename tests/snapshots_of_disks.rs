//! Internal snapshots of a guest of several disks: which one an id or a name means.

mod support;

use std::path::{Path, PathBuf};

use guestlens::guest::{Guest, GuestError, GuestOptions, ImageArgument};
use support::{shell, workdir};

fn open(dir: &Path, names: &[&str]) -> Guest {
    let images: Vec<ImageArgument> = names
        .iter()
        .map(|name| ImageArgument {
            path: dir.join(name),
            format: None,
        })
        .collect();
    Guest::open(&images, &GuestOptions::default()).unwrap()
}

/// First byte of each disk: the number of snapshots taken before, 9 for now.
fn first_bytes(guest: &Guest) -> Vec<u8> {
    let disks = guest.disks().iter();
    disks.map(|d| d.device.read_vec(0, 1).unwrap()[0]).collect()
}

/// A qcow2 with these snapshots, in order; their ids count from 1.
fn disk(dir: &Path, name: &str, snapshots: &[&str]) -> PathBuf {
    let mut script = format!("qemu-img create -q -f qcow2 {name} 1M\n");
    for (number, snapshot) in snapshots.iter().enumerate() {
        script.push_str(&format!(
            "qemu-io -f qcow2 -c 'write -P {number} 0 512' {name} >/dev/null\n\
             qemu-img snapshot -c '{snapshot}' {name}\n"
        ));
    }
    script.push_str(&format!(
        "qemu-io -f qcow2 -c 'write -P 9 0 512' {name} >/dev/null\n"
    ));
    shell(dir, &script);
    dir.join(name)
}

#[test]
fn an_id_or_a_name_means_the_same_on_every_disk() {
    let dir = workdir();
    let dir = dir.path();
    let options = GuestOptions::default();
    // Of `b` the only snapshot has the id 1 and a name that is an id of `a`.
    disk(dir, "a", &["first", "second"]);
    disk(dir, "b", &["2"]);
    disk(dir, "c", &["other", "first", "2"]);

    let guest = open(dir, &["a", "b", "c"]);
    assert_eq!(first_bytes(&guest), [9, 9, 9]);
    let then = guest.open_snapshot("2", &options).unwrap();
    assert_eq!(first_bytes(&then), [1, 9, 1], "by id on every disk");
    assert_eq!(then.problems().len(), 1);
    assert_eq!(then.problems()[0].subject, "sdb");

    let then = guest.open_snapshot("first", &options).unwrap();
    assert_eq!(first_bytes(&then), [0, 9, 1], "by name on every disk");

    // The order of the disks does not matter.
    let turned = open(dir, &["b", "a"]);
    let then = turned.open_snapshot("2", &options).unwrap();
    assert_eq!(first_bytes(&then), [9, 1]);

    // Where no disk has the id, it is a name.
    let only = open(dir, &["b"]);
    let then = only.open_snapshot("2", &options).unwrap();
    assert_eq!(first_bytes(&then), [0]);
    assert!(matches!(
        only.open_snapshot("nope", &options),
        Err(GuestError::NoSnapshot(_))
    ));
}
