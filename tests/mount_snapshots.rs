//! Internal snapshots and backing chains through the mount, against what `qemu-img` makes of them.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use support::ext::{copy_rich, fill, rich_tree};
use support::mount::GuestMount;
use support::walk::{Ignore, assert_equal, walk_host};
use support::{KernelMount, guestlens, is_root, run, shell, skip, tool, workdir};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{dir:?}: {e}"))
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{:?}: {e}", path.as_ref()))
}

/// Two states of a root filesystem, `old` and `new`, and a qcow2 image that held the one, then the
/// other, with a snapshot of each, and of an empty and larger disk in the end.
const HISTORY: &str = r#"
mkdir -p d/etc d/usr d/home; echo ID=debian > d/etc/os-release
echo then > d/etc/hostname; seq 1 100000 > d/home/numbers; ln d/home/numbers d/home/link
truncate -s 32M old; mke2fs -q -F -t ext4 -d d old
echo now > d/etc/hostname; seq 5 200000 > d/home/numbers; rm d/home/link; echo new > d/home/new
truncate -s 32M new; mke2fs -q -F -t ext4 -d d new
qemu-img create -q -f qcow2 -o cluster_size=4k disk 32M
put() { qemu-img convert -n -f raw -O qcow2 "$1" disk; }
put old; qemu-img snapshot -c '../../etc/passwd' disk
put new; qemu-img snapshot -c $'b\nc' disk
qemu-io -f qcow2 -c 'write -z 0 32M' disk >/dev/null
qemu-img resize -q -f qcow2 disk 40M
qemu-img snapshot -c '1' disk
"#;

#[test]
fn each_snapshot_is_a_guest_of_its_own() {
    let dir = workdir();
    shell(dir.path(), HISTORY);
    let image = dir.path().join("disk");
    for (tag, name) in [("1", "old.raw"), ("2", "new.raw"), ("3", "zero.raw")] {
        run(tool("qemu-img")
            .current_dir(dir.path())
            .args(["convert", "-O", "raw", "-l", &format!("snapshot.id={tag}")])
            .args(["disk", name]));
    }
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let shots = mount.join("snapshots");
    assert_eq!(names(&shots), ["1", "2", "3"]);
    for (id, file, host, has_new) in [
        ("1", "old.raw", "then\n", false),
        ("2", "new.raw", "now\n", true),
    ] {
        let at = shots.join(id);
        assert_eq!(names(&at), ["disks", "fs", "meta", "volumes"]);
        for tree in ["fs", "volumes/sda"] {
            assert_eq!(text(at.join(tree).join("etc/hostname")), host);
            assert_eq!(at.join(tree).join("home/new").exists(), has_new);
        }
        let links = std::fs::metadata(at.join("fs/home/numbers"))
            .unwrap()
            .nlink();
        assert_eq!(links, if has_new { 1 } else { 2 });
        // qemu-img gives it the size of the disk as it is now.
        assert_eq!(
            std::fs::metadata(at.join("disks/sda")).unwrap().len(),
            32 << 20
        );
        run(tool("cmp")
            .args(["-n", "33554432"])
            .arg(at.join("disks/sda"))
            .arg(dir.path().join(file)));
        assert!(text(at.join("meta/session")).contains(&format!("snapshot: \"{id}\"")));
        let json: serde_json::Value =
            serde_json::from_str(&text(at.join("meta/session.json"))).unwrap();
        assert_eq!(json["snapshot"], id);
    }
    // Larger than the others, and without a filesystem.
    let zero = shots.join("3");
    assert!(names(&zero.join("fs")).is_empty() && names(&zero.join("volumes")).is_empty());
    let size = std::fs::metadata(zero.join("disks/sda")).unwrap().len();
    assert_eq!(size, 40 << 20);
    run(tool("cmp")
        .arg(zero.join("disks/sda"))
        .arg(dir.path().join("zero.raw")));
    assert!(
        names(&mount.join("fs")).is_empty(),
        "the present disk is empty"
    );
    // No snapshot inside a snapshot, no other name leads to one.
    assert!(!shots.join("1/snapshots").exists());
    assert!(!shots.join("4").exists() && !shots.join("passwd").exists());
    // Every number of the whole mount is one place, so the same file now and then differ.
    let ino = |path: &str| std::fs::metadata(mount.join(path)).unwrap().ino();
    assert_ne!(ino("snapshots/1/fs/etc"), ino("snapshots/2/fs/etc"));
    assert_eq!(ino("snapshots/1"), ino("snapshots/1/fs/.."));
    mount.umount();
    // The verbs see the same by id and by name; an id goes before a name.
    for (wanted, host) in [
        ("1", "then\n"),
        ("../../etc/passwd", "then\n"),
        ("2", "now\n"),
    ] {
        let output = run(guestlens()
            .args(["cat", "--snapshot", wanted])
            .arg(&image)
            .arg("/etc/hostname"));
        assert_eq!(output.stdout, host.as_bytes(), "{wanted}");
    }
}

/// Gives entries of a snapshot table ids of the same length: at `at`, `id`.
fn patch(image: &Path, find: &[u8], replace: &[u8]) {
    assert_eq!(find.len(), replace.len());
    let bytes = std::fs::read(image).unwrap();
    let at = bytes.windows(find.len()).position(|w| w == find).unwrap();
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(replace, at as u64).unwrap();
}

#[test]
fn odd_ids_and_broken_snapshots() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p d/etc d/usr; echo ID=debian > d/etc/os-release; echo a > d/etc/hostname; truncate -s 8M raw
         mke2fs -q -F -t ext4 -d d raw; qemu-img convert -f raw -O qcow2 raw disk
         for name in slash.. escape. same... same2.. broken.; do qemu-img snapshot -c $name disk; done",
    );
    let image = dir.path().join("disk");
    // qemu counts ids itself; other programs may write anything.
    for (find, replace) in [
        (&b"1slash.."[..], &b"/slash.."[..]),
        (b"2escape.", b"\xffescape."),
        (b"4same2..", b"3same2.."),
    ] {
        patch(&image, find, replace);
    }
    // The last snapshot's L1 table leads outside the file.
    let bytes = std::fs::read(&image).unwrap();
    let end = bytes.windows(8).position(|w| w == b"5broken.").unwrap();
    // The entry begins 40 bytes and the extra data before its id.
    let start = (0..end)
        .rev()
        .find(|&at| {
            bytes.get(at + 36..at + 40).is_some_and(|extra| {
                let extra = u32::from_be_bytes(extra.try_into().unwrap()) as usize;
                extra <= 64 && at + 40 + extra == end && bytes[at + 12..at + 16] == [0, 1, 0, 7]
            })
        })
        .unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&(1u64 << 50).to_be_bytes(), start as u64)
        .unwrap();
    drop(file);

    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let shots = mount.join("snapshots");
    let found = names(&shots);
    assert_eq!(found.len(), 4, "{found:?}");
    for name in &found {
        let at = shots.join(name);
        if name == "5" {
            let error = std::fs::read_dir(&at).unwrap().next().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
            // It stays so.
            assert!(std::fs::metadata(at.join("fs")).is_err());
        } else {
            assert_eq!(text(at.join("fs/etc/hostname")), "a\n", "{name}");
        }
    }
    assert!(found.contains(&"%2F".to_owned()), "{found:?}");
    assert_eq!(text(mount.join("fs/etc/hostname")), "a\n");
    // Two with one id: the second is not lost without a word.
    assert!(
        text(mount.join("meta/problems")).contains("same2"),
        "{}",
        text(mount.join("meta/problems"))
    );
    mount.umount();
}

/// What a snapshot costs before it is looked into: nothing.
#[test]
fn snapshots_are_opened_when_looked_into() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p d/etc d/usr; echo ID=debian > d/etc/os-release; truncate -s 8M raw; mke2fs -q -F -t ext4 -d d raw
         qemu-img convert -f raw -O qcow2 raw disk
         for i in $(seq 60); do qemu-img snapshot -c s$i disk; done",
    );
    let image = dir.path().join("disk");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let read = || {
        let io = text(format!("/proc/{}/io", mount.server()));
        let line = io.lines().find(|l| l.starts_with("rchar: ")).unwrap();
        line[7..].parse::<u64>().unwrap()
    };
    let before = read();
    assert_eq!(names(&mount.join("snapshots")).len(), 60);
    for n in 1..=60 {
        assert!(
            std::fs::metadata(mount.join(&format!("snapshots/{n}")))
                .unwrap()
                .is_dir()
        );
    }
    // The server reads requests, too; opening one snapshot reads more than that.
    let listed = read() - before;
    assert!(listed < 60 * 1024, "{listed}");
    // All at once, by many: each is opened once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 1..=60 {
                    let at = mount.join(&format!("snapshots/{n}"));
                    assert_eq!(names(&at), ["disks", "fs", "meta", "volumes"]);
                    assert!(at.join("fs/etc").is_dir());
                }
            });
        }
    });
    mount.umount();
}

/// A guest of three partitions, changed by overlays at two places, with the kernel's mount of the
/// flattened disk beside it.
#[test]
fn a_partitioned_guest_over_a_backing_chain() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    let dir = workdir();
    let rich = rich_tree(dir.path());
    shell(
        dir.path(),
        "truncate -s 160M flat
         sgdisk -Z flat >/dev/null 2>&1; sgdisk -n 1:2048:+34M -t 1:ef00 -n 2:0:+16M -n 3:0:0 flat >/dev/null
         truncate -s 34M p1; truncate -s 16M p2; truncate -s 96M p3
         mkfs.vfat -F 32 -i 1234ABCD p1 >/dev/null; mmd -i p1 ::/EFI
         mke2fs -q -F -t ext4 -L boot p2; mke2fs -q -F -t ext4 p3",
    );
    let root = dir.path().join("p3");
    let boot = dir.path().join("p2");
    fill(
        &root,
        "",
        &format!(
            "{}\nmkdir -p etc usr boot\necho ID=debian > etc/os-release\nprintf 'LABEL=boot /boot ext4 defaults 0 2\\n' > etc/fstab",
            copy_rich(&rich)
        ),
    );
    fill(&boot, "", "echo one > kernel; mkdir grub");
    // Each layer holds what changed since the one below.
    shell(
        dir.path(),
        r#"
place() {
    for n in 1 2 3; do
        first=$(sgdisk -i $n flat | sed -n 's/^First sector: \([0-9]*\).*/\1/p')
        dd if=p$n of=flat bs=512 seek=$first conv=notrunc,sparse status=none
    done
}
place; qemu-img convert -f raw -O qcow2 -c flat layer0
"#,
    );
    fill(&root, "", "echo changed > a/hello; rm -r many; mkdir again");
    fill(&boot, "", "echo two > kernel");
    shell(
        dir.path(),
        r#"
for n in 2 3; do
    first=$(sgdisk -i $n flat | sed -n 's/^First sector: \([0-9]*\).*/\1/p')
    dd if=p$n of=flat bs=512 seek=$first conv=notrunc status=none
done
qemu-img convert -f raw -O qcow2 flat new
cp --sparse=always new layer1; qemu-img rebase -f qcow2 -F qcow2 -b layer0 layer1
qemu-img create -q -f qcow2 -b layer1 -F qcow2 disk
qemu-img convert -O raw disk want
"#,
    );
    let image = dir.path().join("disk");
    let ours = GuestMount::new(dir.path(), "ours", &[&image], &["--symlinks", "raw"]);
    run(tool("cmp")
        .arg(ours.join("disks/sda"))
        .arg(dir.path().join("want")));
    let ignore = Ignore {
        inode_numbers: true,
        ..Ignore::default()
    };
    for (number, name) in [(2, "sda2"), (3, "sda3")] {
        shell(
            dir.path(),
            &format!(
                "set -- $(sgdisk -i {number} want | sed -n 's/^\\(First\\|Last\\) sector: \\([0-9]*\\).*/\\2/p')
                 dd if=want of=part{number} bs=512 skip=$1 count=$(($2 - $1 + 1)) conv=sparse status=none"
            ),
        );
        let part = dir.path().join(format!("part{number}"));
        let kernel = KernelMount::new(&part, dir.path(), "");
        assert_equal(
            name,
            &walk_host(kernel.path()),
            &walk_host(&ours.join(&format!("volumes/{name}"))),
            ignore,
        );
    }
    assert_eq!(text(ours.join("fs/boot/kernel")), "two\n");
    assert_eq!(text(ours.join("fs/a/hello")), "changed\n");
    ours.umount();
}
