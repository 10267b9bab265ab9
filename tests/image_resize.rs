//! `guestlens resize` and `guestlens snapshot`: what they do is what qemu-img sees, and nothing that
//! is in use is cut off.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{guestlens, run, shell, tool, workdir};

fn check(image: &Path) {
    run(tool("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(image));
}

fn virtual_size(image: &Path, format: &str) -> u64 {
    let output = run(tool("qemu-img")
        .args(["info", "--output=json", "-f", format])
        .arg(image));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

fn fails(arguments: &[&str], image: &Path, text: &str) {
    let (verb, rest) = arguments.split_first().unwrap();
    let output = guestlens()
        .arg(verb)
        .arg(image)
        .args(rest)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(text), "{arguments:?}: {stderr}");
}

fn does(arguments: &[&str], image: &Path) -> String {
    let (verb, rest) = arguments.split_first().unwrap();
    let output = run(guestlens().arg(verb).arg(image).args(rest));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn grows_and_what_is_new_is_zero() {
    let dir = workdir();
    for (n, options) in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "extended_l2=on",
    ]
    .into_iter()
    .enumerate()
    {
        // The old end is in the middle of a cluster, and the backing file goes on behind it.
        shell(
            dir.path(),
            &format!(
                "head -c 3M /dev/zero | tr '\\0' b > base{n}
                 qemu-img create -q -f qcow2 -o {options} -b base{n} -F raw i{n}.qcow2 1000k
                 qemu-io -f qcow2 -c 'write -P 7 900k 100k' i{n}.qcow2 >/dev/null
                 head -c 900k base{n} > want{n}; head -c 100k /dev/zero | tr '\\0' '\\7' >> want{n}
                 truncate -s 100M want{n}"
            ),
        );
        let image = dir.path().join(format!("i{n}.qcow2"));
        does(&["resize", "+24M"], &image);
        does(&["resize", "100M"], &image);
        check(&image);
        shell(
            dir.path(),
            &format!("qemu-img compare -q -f qcow2 -F raw i{n}.qcow2 want{n}"),
        );
        does(&["resize", "--shrink", "--json", "99M"], &image);
        // As far as an L1 table can reach.
        let (most, bits) = if options.contains("512") {
            ("128G", 37)
        } else {
            ("1P", 50)
        };
        does(&["resize", most], &image);
        check(&image);
        assert_eq!(virtual_size(&image, "qcow2"), 1 << bits);
    }
}

#[test]
fn nothing_in_use_is_cut_off() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 64M gpt.raw; sgdisk -n 1:2048:+20M -n 2:0:+10M gpt.raw >/dev/null
         cp gpt.raw mbr.raw; sgdisk -Z mbr.raw >/dev/null 2>&1
         echo '2048,40960' | sfdisk -q mbr.raw
         truncate -s 32M ext.raw; mke2fs -q -t ext4 ext.raw 16M
         truncate -s 32M some.raw; printf x | dd of=some.raw bs=1 seek=20000000 conv=notrunc status=none
         for i in gpt mbr ext some; do qemu-img convert -f raw -O qcow2 $i.raw $i.qcow2; done",
    );
    for (name, refused, part, allowed) in [
        // Back to what it was before it became longer.
        ("gpt", "31M", "partition 2", "64M"),
        ("gpt", "32M", "GPT", "64M"),
        ("mbr", "20M", "partition 1", "21M"),
        ("ext", "15M", "ext filesystem", "16M"),
        ("some", "19M", "not zero", "20M"),
    ] {
        for format in ["raw", "qcow2"] {
            let image = dir.path().join(format!("{name}.{format}"));
            let stated = ["--format", format];
            if name == "gpt" {
                does(&[["resize", "80M"].as_slice(), &stated].concat(), &image);
            }
            fails(
                &[["resize", refused].as_slice(), &stated].concat(),
                &image,
                "--shrink",
            );
            fails(
                &[["resize", "--shrink", refused].as_slice(), &stated].concat(),
                &image,
                part,
            );
            does(
                &[["resize", "--shrink", allowed].as_slice(), &stated].concat(),
                &image,
            );
            if format == "qcow2" {
                check(&image);
            }
        }
        shell(
            dir.path(),
            &format!(
                "qemu-img compare -q -s -f raw -F qcow2 {name}.raw {name}.qcow2 || qemu-img compare -f raw -F qcow2 {name}.raw {name}.qcow2"
            ),
        );
    }
    assert_eq!(virtual_size(&dir.path().join("ext.raw"), "raw"), 16 << 20);
    shell(dir.path(), "e2fsck -fn ext.raw >/dev/null");
    // A raw disk is only written to if it is said to be one.
    fails(&["resize", "+1M"], &dir.path().join("ext.raw"), "raw");
    for wrong in ["+x", "-100G", "1000"] {
        let image = dir.path().join("ext.qcow2");
        let output = guestlens()
            .arg("resize")
            .arg(&image)
            .arg(wrong)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn what_is_not_mounted_here_is_not_cut_off_either() {
    let dir = workdir();
    // An LVM2 label with its checksum, which is a CRC-32 that starts from 0xf597a6cf, not inverted.
    let pv = r#"
import sys, struct, zlib
body = struct.pack('<I8s32sQ', 32, b'LVM2 001', b'A' * 32, 20 << 20).ljust(492, b'\0')
crc = zlib.crc32(body, 0xf597a6cf ^ 0xffffffff) ^ 0xffffffff
label = b'LABELONE' + struct.pack('<QI', 1, crc) + body
with open('pv.raw', 'r+b') as f:
    f.seek(512); f.write(label)
"#;
    std::fs::write(dir.path().join("pv.py"), pv).unwrap();
    let headers = r#"
import struct
def put(name, *pieces):
    with open(name, 'r+b') as f:
        for at, data in pieces:
            f.seek(at); f.write(data)
put('exfat.raw', (0, b'\xeb\x76\x90EXFAT   '), (72, struct.pack('<Q', 40960)), (108, b'\x09\x03'))
put('ntfs.raw', (0, b'\xeb\x52\x90NTFS    '), (11, struct.pack('<HB', 512, 8)), (40, struct.pack('<Q', 40959)))
put('f2fs.raw', (1024, struct.pack('<IHHIII', 0xf2f52010, 1, 16, 9, 3, 12)), (1060, struct.pack('<Q', 5120)))
put('luks1.raw', (0, b'LUKS\xba\xbe\0\1'))
put('luks2.raw', (0, b'LUKS\xba\xbe\0\2'))
"#;
    std::fs::write(dir.path().join("headers.py"), headers).unwrap();
    shell(
        dir.path(),
        "for i in fat16 fat32 swap pv luks1 luks2 exfat ntfs f2fs inside; do truncate -s 80M $i.raw; done
         mkfs.vfat fat16.raw 20480 >/dev/null; mkfs.vfat -F 32 fat32.raw 71680 >/dev/null
         truncate -s 20M area; mkswap area >/dev/null; dd if=area of=swap.raw conv=notrunc status=none
         python3 pv.py; python3 headers.py
         echo '2048,40960,c' | sfdisk -q inside.raw; mkfs.vfat --offset 2048 inside.raw 30720 >/dev/null",
    );
    for (name, refused, text, allowed) in [
        ("fat16", "19M", "vfat", "20M"),
        ("fat32", "69M", "vfat", "70M"),
        ("exfat", "19M", "exfat", "20M"),
        ("ntfs", "19M", "ntfs", "20M"),
        ("f2fs", "19M", "f2fs", "20M"),
        ("swap", "19M", "swap", "20M"),
        ("pv", "19M", "LVM2_member", "20M"),
        ("luks1", "79M", "cannot tell", ""),
        ("luks2", "79M", "cannot tell", ""),
        ("inside", "30M", "vfat", "31M"),
    ] {
        let image = dir.path().join(format!("{name}.raw"));
        let stated = ["--shrink", "--format", "raw"];
        fails(
            &[["resize", refused].as_slice(), &stated].concat(),
            &image,
            text,
        );
        if !allowed.is_empty() {
            does(&[["resize", allowed].as_slice(), &stated].concat(), &image);
        }
    }
}

#[test]
fn a_gpt_disk_becomes_shorter_as_the_hint_says() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 64M i.raw; sgdisk -n 1:2048:+20M i.raw >/dev/null; sfdisk --dump i.raw > table",
    );
    let image = dir.path().join("i.raw");
    let shrink = ["resize", "--shrink", "32M", "--format", "raw"];
    fails(&shrink, &image, "last-lba");
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
    shell(dir.path(), "sgdisk --zap-all i.raw >/dev/null");
    does(&shrink, &image);
    let text = shell(
        dir.path(),
        "grep -v last-lba table | sfdisk -q i.raw; sgdisk -v i.raw; sfdisk --dump i.raw",
    );
    assert!(text.contains("No problems found"), "{text}");
    assert!(
        text.contains("start=        2048, size=       40960"),
        "{text}"
    );
}

#[test]
fn snapshots_by_the_verb() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 i.qcow2 8M
         qemu-io -f qcow2 -c 'write -P 1 1M 3M' i.qcow2 >/dev/null; qemu-img convert -O raw i.qcow2 one.raw",
    );
    let image = dir.path().join("i.qcow2");
    does(&["snapshot", "create", "first"], &image);
    shell(
        dir.path(),
        "qemu-io -f qcow2 -c 'write -P 2 2M 3M' i.qcow2 >/dev/null; qemu-img convert -O raw i.qcow2 two.raw",
    );
    let made: Value =
        serde_json::from_str(&does(&["snapshot", "create", "2nd one", "--json"], &image)).unwrap();
    assert_eq!(
        (&made["id"], &made["name"]),
        (&"2".into(), &"2nd one".into())
    );
    check(&image);
    let text = shell(dir.path(), "qemu-img snapshot -l i.qcow2");
    assert!(text.contains("first") && text.contains("2nd one"), "{text}");
    let list = does(&["snapshot"], &image);
    assert!(list.contains("first") && list.contains("2nd one"), "{list}");
    does(&["snapshot", "apply", "1"], &image);
    shell(dir.path(), "qemu-img compare -q i.qcow2 one.raw");
    let out = dir.path().join("out.raw");
    does(
        &["snapshot", "extract", "2nd one", out.to_str().unwrap()],
        &image,
    );
    shell(dir.path(), "cmp out.raw two.raw");
    fails(
        &["snapshot", "extract", "2", out.to_str().unwrap()],
        &image,
        "exists",
    );
    does(&["snapshot", "delete", "first"], &image);
    check(&image);
    shell(
        dir.path(),
        "qemu-img snapshot -a '2nd one' i.qcow2; qemu-img compare -q i.qcow2 two.raw",
    );
    does(&["snapshot", "delete", "2"], &image);
    check(&image);
    fails(&["snapshot", "delete", "2"], &image, "no snapshot");
    assert_eq!(shell(dir.path(), "qemu-img snapshot -l i.qcow2"), "");
}

/// A shrink that was cut short leaves data behind the end of the disk, which must not come back.
#[test]
fn what_is_behind_the_end_does_not_come_back() {
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "extended_l2=on",
    ] {
        let dir = workdir();
        let dir = dir.path();
        shell(
            dir,
            &format!(
                "qemu-img create -q -f qcow2 -o {options} i.qcow2 32M
                 qemu-io -f qcow2 -c 'write -q -P 1 0 1M' -c 'write -q -P 2 8M 1M' -c 'write -q -P 3 30M 64k' i.qcow2
                 printf '\\0\\0\\0\\0\\0\\40\\0\\0' | dd of=i.qcow2 bs=1 seek=24 conv=notrunc status=none"
            ),
        );
        run(guestlens()
            .current_dir(dir)
            .args(["resize", "i.qcow2", "32M"]));
        shell(
            dir,
            "qemu-io -f qcow2 -r -c 'read -q -P 1 0 1M' -c 'read -q -P 0 2M 30M' i.qcow2 | tee out; ! grep -q failed out
             qemu-img check -q i.qcow2",
        );
    }
}
