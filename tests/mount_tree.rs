//! The layout of a mount: `fs/`, `volumes/`, `disks/`, `meta/`.

mod support;

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use support::mount::GuestMount;
use support::walk::host_data_runs;
use support::{run, shell, tool, workdir};

/// A GPT disk: 1 a root with an fstab, 2 its /boot, 3 another root, 4 empty.
fn guest(dir: &Path) -> PathBuf {
    shell(
        dir,
        r#"
mkdir -p root/etc root/usr/bin root/boot root/var boot/grub other/etc other/bin; ln -s usr/bin root/bin; : > other/etc/hosts
printf 'LABEL=ROOT / ext4 defaults 0 1\nnonsense\nUUID=11111111-2222-3333-4444-555555555555 /boot ext4 ro 0 2\n' > root/etc/fstab
echo one > root/etc/hostname; echo two > other/etc/hostname; echo cfg > boot/grub/grub.cfg
ln -s /etc/hostname root/usr/bin/absolute; ln -s ../../../../../../etc/hostname root/usr/bin/climb
ln -s /etc/hostname boot/grub/link
truncate -s 16M p1 p2 p3
mke2fs -q -F -t ext4 -L ROOT -d root p1
mke2fs -q -F -t ext4 -U 11111111-2222-3333-4444-555555555555 -d boot p2
mke2fs -q -F -t ext4 -d other p3
truncate -s 80M disk
sgdisk -n 1:2048:+16M -n 2:0:+16M -n 3:0:+16M -n 4:0:+8M disk >/dev/null
n=1; for p in p1 p2 p3; do
  start=$(sgdisk -i $n disk | awk '/First sector/ { print $3 }')
  dd if=$p of=disk bs=512 seek=$start conv=notrunc,sparse status=none; n=$((n + 1))
done
"#,
    );
    dir.join("disk")
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn one_tree_from_several_filesystems() {
    let dir = workdir();
    let image = guest(dir.path());
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let top = ["disks", "fs", "meta", "roots", "snapshots", "volumes"];
    assert_eq!(names(mount.path()), top);
    assert_eq!(names(&mount.join("volumes")), ["sda1", "sda2", "sda3"]);
    assert_eq!(
        names(&mount.join("disks")),
        ["sda", "sda1", "sda2", "sda3", "sda4"]
    );
    assert_eq!(names(&mount.join("roots")), ["sda1", "sda3"]);
    // fs/ is the first root, with /boot in its place; volumes/ shows each by itself.
    assert_eq!(text(mount.join("fs/etc/hostname")), "one\n");
    assert_eq!(text(mount.join("fs/boot/grub/grub.cfg")), "cfg\n");
    assert!(names(&mount.join("volumes/sda1/boot")).is_empty());
    assert_eq!(text(mount.join("roots/sda3/etc/hostname")), "two\n");
    assert_eq!(text(mount.join("roots/sda1/boot/grub/grub.cfg")), "cfg\n");
    // Links stay inside, and say their length.
    for (link, target) in [
        ("fs/usr/bin/absolute", "../../etc/hostname"),
        ("fs/usr/bin/climb", "../../etc/hostname"),
        ("fs/boot/grub/link", "../../etc/hostname"),
        ("volumes/sda2/grub/link", "../etc/hostname"),
    ] {
        let path = mount.join(link);
        assert_eq!(
            std::fs::read_link(&path).unwrap(),
            Path::new(target),
            "{link}"
        );
        assert_eq!(
            std::fs::symlink_metadata(&path).unwrap().len(),
            target.len() as u64
        );
    }
    assert_eq!(text(mount.join("fs/boot/grub/link")), "one\n");
    // Every name has a number of its own, the same by listing and by stat.
    let mut numbers = std::collections::BTreeSet::new();
    for at in [
        "fs",
        "fs/boot",
        "volumes/sda1",
        "volumes/sda2",
        "roots/sda1",
        "roots/sda3",
    ] {
        assert!(
            numbers.insert(std::fs::metadata(mount.join(at)).unwrap().ino()),
            "{at}"
        );
        let up = std::fs::metadata(mount.join(at).join("..")).unwrap().ino();
        let parent = mount.join(at.rsplit_once('/').map_or("", |p| p.0));
        assert_eq!(up, std::fs::metadata(parent).unwrap().ino(), "{at}/..");
    }
    // The line that means nothing is reported and harms no other.
    assert!(text(mount.join("meta/problems")).contains("etc/fstab:2"));
    for name in names(&mount.join("meta")) {
        let path = mount.join("meta").join(&name);
        if path.is_file() {
            let size = std::fs::metadata(&path).unwrap().len();
            assert_eq!(text(path).len() as u64, size, "{name}");
        }
    }
    mount.umount();
}

#[test]
fn disks_are_flat_and_sparse() {
    let dir = workdir();
    let image = guest(dir.path());
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    for (name, part) in [
        ("sda", "disk"),
        ("sda1", "p1"),
        ("sda2", "p2"),
        ("sda3", "p3"),
    ] {
        run(tool("cmp")
            .arg(mount.join("disks").join(name))
            .arg(dir.path().join(part)));
    }
    // Holes as qemu-img sees them.
    let json = run(tool("qemu-img")
        .args(["map", "--output=json", "-f", "raw"])
        .arg(&image));
    let map: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let mut want: Vec<(u64, u64)> = Vec::new();
    for run in map.as_array().unwrap().iter().filter(|r| r["data"] == true) {
        let start = run["start"].as_u64().unwrap();
        let end = start + run["length"].as_u64().unwrap();
        match want.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => want.push((start, end)),
        }
    }
    let disk = File::open(mount.join("disks/sda")).unwrap();
    let size = disk.metadata().unwrap().len();
    assert_eq!(host_data_runs(&disk, size), want);
    assert!(disk.metadata().unwrap().blocks() * 512 < size);
    drop(disk);
    mount.umount();
}

#[test]
fn no_operating_system() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir d; echo x > d/file; truncate -s 8M data zero; mke2fs -q -F -t ext4 -d d data",
    );
    let images = [dir.path().join("data"), dir.path().join("zero")];
    let mount = GuestMount::new(dir.path(), "m", &images, &[]);
    assert!(names(&mount.join("fs")).is_empty());
    assert_eq!(text(mount.join("volumes/sda/file")), "x\n");
    assert_eq!(names(&mount.join("disks")), ["sda", "sdb"]);
    assert_eq!(
        std::fs::read(mount.join("disks/sdb")).unwrap(),
        vec![0; 8 << 20]
    );
    mount.umount();
}
