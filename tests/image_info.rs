//! `info` and `map` against `qemu-img info` and `qemu-img map`, member by member.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{guestlens, run, shell, tool, workdir};

fn json(command: &mut std::process::Command) -> Value {
    serde_json::from_slice(&run(command).stdout).unwrap()
}

/// Every member of `theirs` is in `ours`, with the same value.
fn assert_has_all(place: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in theirs {
                // Nodes below an image are how QEMU opens files.
                if key == "children" {
                    continue;
                }
                let place = format!("{place}/{key}");
                let ours = ours.get(key).unwrap_or_else(|| panic!("no {place}"));
                assert_has_all(&place, ours, value);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{place}");
            for (number, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                assert_has_all(&format!("{place}/{number}"), ours, theirs);
            }
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

fn compare_info(image: &Path) {
    let name = image.file_name().unwrap().to_string_lossy().into_owned();
    let theirs = |more: &[&str]| {
        let mut command = tool("qemu-img");
        command.args(["info", "--output=json"]).args(more);
        json(command.arg(image))
    };
    let ours = |more: &[&str]| {
        let mut command = guestlens();
        command.args(["info", "--json"]).args(more);
        json(command.arg(image))
    };
    let (alone, chain) = (theirs(&[]), theirs(&["--backing-chain"]));
    assert_has_all(&name, &ours(&["--image-only"]), &alone);
    assert_has_all(&name, &ours(&["--backing-chain"]), &chain);
    let whole = ours(&[]);
    assert_has_all(&name, &whole, &alone);
    assert_has_all(&name, &whole["disks"][0]["chain"], &chain);
}

#[test]
fn info_has_every_member_of_qemu_img() {
    let dir = workdir();
    shell(
        dir.path(),
        r#"d=$PWD
truncate -s 3M disk.raw; printf x | dd of=disk.raw seek=1000 conv=notrunc 2>/dev/null
qemu-img create -q -f qcow2 v3 4M
qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2 4M
qemu-img create -q -f qcow2 -o compression_type=zstd,refcount_bits=64,lazy_refcounts=on zstd 4M
qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k subclusters 4M
qemu-img create -q -f qcow2 -o data_file=$d/data.bin,data_file_raw=on external 4M
qemu-img create -q -f qcow2 -b $d/disk.raw -F raw middle
qemu-img create -q -f qcow2 -b middle -F qcow2 top
for n in one 'two words'; do qemu-img snapshot -c "$n" top; qemu-io -c 'write 1M 64k' top >/dev/null; done
qemu-img create -q -f qcow2 -o lazy_refcounts=on dirty 4M
qemu-io -c 'write 0 64k' -c flush -c abort dirty >/dev/null 2>&1 || true
"#,
    );
    for name in [
        "disk.raw",
        "v3",
        "v2",
        "zstd",
        "subclusters",
        "external",
        "middle",
        "top",
        "dirty",
    ] {
        compare_info(&dir.path().join(name));
    }
}

#[test]
fn map_of_a_sparse_file_is_that_of_qemu_img() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 3M raw; printf x | dd of=raw bs=1 seek=1M conv=notrunc 2>/dev/null",
    );
    let image = dir.path().join("raw");
    let theirs = json(
        tool("qemu-img")
            .args(["map", "--output=json", "-f", "raw"])
            .arg(&image),
    );
    let ours = json(guestlens().args(["map", "--json"]).arg(&image));
    assert_eq!(ours, theirs);
    assert!(theirs.as_array().unwrap().len() > 1);
}
