//! What an fstab brings into the tree, on images made by `mke2fs` and `sgdisk`, and that every
//! problem names its line.

mod support;

use std::path::Path;

use guestlens::guest::mounts::{Assembled, assemble};
use guestlens::guest::{Guest, GuestOptions, GuestView, ImageArgument};
use guestlens::{inspect, meta};
use support::{shell, workdir};

/// Makes `data`, a disk of four partitions: three filesystems, each with its name in the file
/// `name`, and swap.
const DATA: &str = r#"
truncate -s 24M data
sgdisk -n1:2048:+4M -c1:'part one' -u1:ABCDEF01-2345-4678-89AB-CDEF01234567 -n2:0:+4M -n3:0:+4M -n4:0:+4M data >/dev/null
one=1048576
for name in one 'my data' three; do
    rm -rf part; mkdir -p part/below/sub; printf %s "$name" > part/name
    number=$(((one - 1048576) / 4194304 + 1))
    mke2fs -q -F -t ext4 -b 1024 -L "$name" -U abcdef0$number-1111-4222-8333-444444444444 -d part -E offset=$one data 4M
    one=$((one + 4194304))
done
truncate -s 4M swap; mkswap -q -L sw swap >/dev/null 2>&1
dd if=swap of=data bs=1M seek=13 conv=notrunc status=none
"#;

/// Makes `root` from what `script` does in a directory that has `etc` and `fstab` in it.
fn make_root(dir: &Path, fstab: &str, script: &str) {
    shell(dir, "rm -rf tree root; mkdir -p tree/etc");
    std::fs::write(dir.join("tree/etc/fstab"), fstab).unwrap();
    shell(
        dir,
        &format!("(cd tree; {script})\nmke2fs -q -F -t ext4 -b 1024 -d tree root 8M"),
    );
}

fn open(dir: &Path, names: &[&str]) -> Guest {
    let images = names.iter().map(|name| ImageArgument {
        path: dir.join(name),
        format: Some("raw".into()),
    });
    Guest::open(&images.collect::<Vec<_>>(), &GuestOptions::default()).unwrap()
}

/// The tree of a root with this fstab, and the disk `data` beside it.
fn shown(dir: &Path, fstab: &str, script: &str) -> Assembled {
    if !dir.join("data").exists() {
        shell(dir, DATA);
    }
    make_root(dir, fstab, script);
    assemble(&open(dir, &["root", "data"]), 0).unwrap()
}

fn name_at(view: &GuestView, point: &str) -> String {
    let path = format!("{point}/name");
    let text = view.read_file(path.as_bytes(), 4096).unwrap_or_default();
    String::from_utf8(text).unwrap()
}

/// The subjects of the problems, `etc/fstab` left out where a line is named.
fn lines(assembled: &Assembled) -> Vec<&str> {
    let subjects = assembled.problems.iter().map(|p| p.subject.as_str());
    subjects
        .map(|s| s.strip_prefix("etc/fstab:").unwrap_or(s))
        .collect()
}

#[test]
fn every_way_to_name_a_volume() {
    let cases = [
        ("UUID=abcdef01-1111-4222-8333-444444444444", "one"),
        ("UUID=ABCDEF01-1111-4222-8333-444444444444", "one"),
        ("UUID=\"abcdef01-1111-4222-8333-444444444444\"", "one"),
        ("UUID='abcdef01-1111-4222-8333-444444444444'", "one"),
        ("LABEL=three", "three"),
        ("LABEL=my\\040data", "my data"),
        ("LABEL=\"my\\040data\"", "my data"),
        ("LABEL=MY\\040DATA", ""),
        ("PARTUUID=abcdef01-2345-4678-89ab-cdef01234567", "one"),
        ("PARTUUID=ABCDEF01-2345-4678-89AB-CDEF01234567", "one"),
        ("PARTLABEL=part\\040one", "one"),
        (
            "/dev/disk/by-uuid/abcdef02-1111-4222-8333-444444444444",
            "my data",
        ),
        ("/dev/disk/by-label/my\\x20data", "my data"),
        (
            "/dev/disk/by-partuuid/abcdef01-2345-4678-89ab-cdef01234567",
            "one",
        ),
        ("/dev/disk/by-partlabel/part\\x20one", "one"),
        ("/dev/sdb2", "my data"),
        ("/dev/vdb2", "my data"),
        ("/dev/xvdb3", "three"),
        ("/dev/hdb1", "one"),
        ("/dev/nvme1n1p3", "three"),
        ("/dev/sdb", ""),
        ("/dev/sdb9", ""),
        ("/dev/sdc1", ""),
        ("/dev/nvme1n2p1", ""),
        ("/dev/mapper/vg-lv", ""),
        ("UUID=abcdef09-1111-4222-8333-444444444444", ""),
        ("UUID=", ""),
        ("LABEL=", ""),
        ("PARTLABEL=", ""),
    ];
    let mut fstab = String::new();
    for (number, (spec, _)) in cases.iter().enumerate() {
        fstab.push_str(&format!("{spec}\t/p{number} ext4 defaults 0 2\n"));
    }
    let dir = workdir();
    let make = format!(
        "mkdir {}",
        (0..cases.len())
            .map(|n| format!("p{n} "))
            .collect::<String>()
    );
    let tree = shown(dir.path(), &fstab, &make);
    for (number, (spec, want)) in cases.iter().enumerate() {
        assert_eq!(name_at(&tree.view, &format!("/p{number}")), *want, "{spec}");
        assert_eq!(tree.fstab[number].mounted, !want.is_empty(), "{spec}");
        let line = (number + 1).to_string();
        let told = lines(&tree).contains(&line.as_str());
        assert_eq!(told, want.is_empty(), "{spec}: {:?}", tree.problems);
    }
}

#[test]
fn lines_that_fit_and_lines_that_do_not() {
    let fstab = "\
# a child in front of its parent
LABEL=three /deep/er/below/sub ext4
LABEL=my\\040data\t/deep/er/ ext4 noauto 0 0
UUID=nope /m2 ext4 nofail
LABEL=one /missing ext4
bad
LABEL=one /file ext4
LABEL=one /abs ext4
LABEL=sw none swap sw
server:/export /srv nfs defaults
/m /bound none bind
LABEL=one /dangling ext4
/nowhere /bound2 none bind
tmpfs /tmp tmpfs defaults
LABEL=three /rel ext4
LABEL=three /esc ext4
LABEL=one / ext4
LABEL=one /proc/x ext4
/file /bound2 none rw,bind
LABEL=one /loop ext4";
    let make = "mkdir -p deep/er m m2 m3 m4 srv bound bound2 tmp; echo > file
        ln -s /m abs; ln -s m3/../m3 rel; ln -s ../../../m4 esc; ln -s /gone dangling; ln -s loop loop";
    let dir = workdir();
    let tree = shown(dir.path(), fstab, make);
    for (point, want) in [
        ("/deep/er", "my data"),
        ("/deep/er/below/sub", "three"),
        ("/m", "one"),
        ("/abs", "one"),
        ("/bound", "one"),
        ("/m3", "three"),
        ("/m4", "three"),
        ("", ""),
        ("/m2", ""),
        ("/srv", ""),
        ("/bound2", ""),
    ] {
        assert_eq!(
            name_at(&tree.view, point),
            want,
            "{point}: {:?}",
            tree.problems
        );
    }
    // In the order of the lines, whatever the order they are followed in.
    let want = ["4", "5", "6", "7", "12", "13", "19", "20"];
    assert_eq!(lines(&tree), want, "{:?}", tree.problems);
    assert_eq!(tree.fstab.len(), 18);
}

#[test]
fn two_volumes_of_one_uuid() {
    let dir = workdir();
    let fstab = "UUID=abcdef01-1111-4222-8333-444444444444 /m ext4\nLABEL=three /m2 ext4\n";
    shown(dir.path(), fstab, "mkdir m m2");
    shell(dir.path(), "cp data again");
    let guest = open(dir.path(), &["root", "data", "again"]);
    let tree = assemble(&guest, 0).unwrap();
    assert_eq!(lines(&tree), ["1", "2"], "{:?}", tree.problems);
    assert!(
        tree.problems
            .iter()
            .all(|p| p.message.contains("2 volumes"))
    );
    assert_eq!(name_at(&tree.view, "/m"), "one");
    assert_eq!(tree.fstab[0].volume.as_deref(), Some("sdb1"));
}

const RUBBISH: &str = "python3 -c 'import random, sys; random.seed(1)
sys.stdout.buffer.write(random.randbytes(100000))' > etc/fstab";

#[test]
fn files_that_are_no_fstab() {
    let dir = workdir();
    for (script, told) in [
        ("rm etc/fstab", 0),
        ("rm etc/fstab; mkfifo etc/fstab", 1),
        ("rm etc/fstab; mkdir etc/fstab", 1),
        ("truncate -s 3M etc/fstab", 1),
        ("rm etc/fstab; ln -s fstab etc/fstab", 1),
        (": > etc/fstab", 0),
    ] {
        let tree = shown(dir.path(), "", script);
        assert_eq!(tree.problems.len(), told, "{script}: {:?}", tree.problems);
        assert!(lines(&tree).iter().all(|&l| l == "etc/fstab"), "{script}");
        assert!(tree.view.is_dir(b"/etc"), "{script}");
    }
    // Rubbish is told line by line, up to a bound: here 500,000 bad lines in 1 MiB.
    for (script, told) in [
        (RUBBISH, 1..=1025),
        ("(yes x || true) | head -c 1M > etc/fstab", 1025..=1025),
    ] {
        let tree = shown(dir.path(), "", script);
        assert!(told.contains(&tree.problems.len()), "{script}");
        assert!(lines(&tree).iter().all(|l| l.parse::<u32>().is_ok()));
    }
}

#[test]
fn thousands_of_lines() {
    let mut fstab = String::from("LABEL=one /m ext4\n");
    for number in 2..=2000 {
        fstab.push_str(&format!("/dev/sdb3 /m/{number} ext4\n"));
    }
    let dir = workdir();
    let started = std::time::Instant::now();
    let tree = shown(dir.path(), &fstab, "mkdir m");
    assert_eq!(name_at(&tree.view, "/m"), "one");
    assert_eq!(tree.fstab.len(), 1024);
    // One for each missing mount point, one for what is not considered.
    assert_eq!(tree.problems.len(), 1024);
    assert_eq!(lines(&tree).last(), Some(&"1025"));
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn usr_on_a_volume_of_its_own() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p u/bin u/lib; printf 'ID=debian\\nVERSION_ID=\"12\"\\n' > u/lib/os-release
         mke2fs -q -F -t ext4 -b 1024 -L usr -d u usr 4M",
    );
    make_root(
        dir.path(),
        "LABEL=usr /usr ext4 ro 0 2\n",
        "mkdir usr; ln -s usr/bin bin; ln -s ../usr/lib/os-release etc/os-release; echo lens > etc/hostname",
    );
    let guest = open(dir.path(), &["root", "usr"]);
    let systems = inspect::systems(&guest);
    let [system] = &systems[..] else {
        panic!("{} systems", systems.len());
    };
    assert_eq!(system.problems().count(), 0);
    let json = meta::os::json(&systems);
    assert_eq!(json["id"]["value"], "debian", "{json}");
    assert_eq!(json["hostname"]["value"], "lens", "{json}");
    // Without that volume it is still a root, and the line is told.
    let guest = open(dir.path(), &["root"]);
    let systems = inspect::systems(&guest);
    assert_eq!(systems.len(), 1);
    let subjects: Vec<&str> = systems[0].problems().map(|p| p.subject.as_str()).collect();
    assert_eq!(subjects.first(), Some(&"etc/fstab:1"), "{subjects:?}");
}
