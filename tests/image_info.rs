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

/// References that policy refuses, that are missing, and that do not say their format.
#[test]
fn an_image_without_its_references_is_still_told() {
    let dir = workdir();
    shell(
        dir.path(),
        r#"qemu-img create -q -f qcow2 plain 4M
make() { cp plain $1; qemu-img rebase -u -b "$2" -F ${3:-raw} $1; }
make absolute /etc/passwd; make missing nowhere.qcow2 qcow2; make json 'json:{"driver":"null-co"}'
make middle gone qcow2; make onmiddle middle qcow2
qemu-img create -q -f qcow2 -o data_file=$PWD/data.bin nodata 4M; rm data.bin
truncate -s 4M parent.vmdk.raw; qemu-img convert -O vmdk parent.vmdk.raw parent.vmdk
qemu-img create -q -f vmdk -b parent.vmdk -F vmdk delta.vmdk; rm parent.vmdk
qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 4M; rm flat-flat.vmdk
"#,
    );
    for (name, file) in [
        ("absolute", "/etc/passwd"),
        ("missing", "nowhere.qcow2"),
        ("json", "json:"),
        ("onmiddle", "gone"),
        ("nodata", "data.bin"),
        ("delta.vmdk", "parent.vmdk"),
        ("flat.vmdk", "flat-flat.vmdk"),
    ] {
        let image = dir.path().join(name);
        let info = |more: &[&str]| {
            let mut command = guestlens();
            command.arg("info").args(more);
            let out = command.arg(&image).output().unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            let all = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
            (out.status.code(), text, all)
        };
        // The extents of a flat disk are the disk; only its sizes are known without them.
        let extent = name == "flat.vmdk";
        let (status, text, _) = info(&["--image-only", "--json"]);
        assert_eq!(status, Some(if extent { 3 } else { 0 }), "{name}: {text}");
        let ours: Value = serde_json::from_str(&text).unwrap();
        if !extent {
            let theirs = json(tool("qemu-img").args(["info", "--output=json"]).arg(&image));
            assert_has_all(name, &ours, &theirs);
            assert!(ours.get("warnings").is_none(), "{name}: {text}");
        }
        assert_eq!(ours["virtual-size"], 4 << 20);
        for more in [&[][..], &["--backing-chain"]] {
            let (status, _, all) = info(more);
            assert_eq!(status, Some(3), "{name} {more:?}: {all}");
            assert!(all.contains("(4194304 bytes)"), "{name}: {all}");
            assert!(all.contains(file), "{name}: {all}");
            let (status, text, _) = info(&[more, &["--json"][..]].concat());
            assert_eq!(status, Some(3), "{name} {more:?}: {text}");
            let ours: Value = serde_json::from_str(&text).unwrap();
            let first = ours.get(0).unwrap_or(&ours);
            assert!(first["warnings"].to_string().contains(file), "{text}");
        }
        // Whoever wants content is still refused.
        let out = guestlens().arg("map").arg(&image).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{name}");
    }
}

#[test]
fn map_is_that_of_qemu_img() {
    let dir = workdir();
    shell(
        dir.path(),
        r#"d=$PWD
truncate -s $((12 * 1048576 - 1536)) raw
put() { dd if=/dev/urandom of=raw bs=4096 seek=$1 count=$2 conv=notrunc 2>/dev/null; }
put 0 1; put 256 70; put 1280 256; put 2304 16
make() { f=$1; o=$2; n=$3; qemu-img convert -f raw -O $f $o raw $n; }
make qcow2 '' q.qcow2; make qcow2 -c qc.qcow2; make qcow2 '-o preallocation=falloc' qf.qcow2
make qcow2 "-o data_file=$d/own" own.qcow2; make qcow2 "-o data_file=$d/ext,data_file_raw=on" ext.qcow2
make vmdk '' s.vmdk; make vmdk '-o subformat=streamOptimized' so.vmdk
make vmdk '-o subformat=monolithicFlat' f.vmdk; make vmdk '-o subformat=twoGbMaxExtentSparse' ss.vmdk
make vmdk '-o subformat=twoGbMaxExtentFlat' sf.vmdk
make vpc '-o force_size=on' d.vpc; make vpc '-o force_size=on,subformat=fixed' f.vpc
make vhdx '' d.vhdx; make vhdx '-o subformat=fixed' f.vhdx; make vdi '' d.vdi; make vdi '-o static=on' f.vdi
for below in raw q.qcow2 s.vmdk f.vmdk d.vpc d.vhdx d.vdi; do
    f=${below##*.}
    qemu-img create -q -f qcow2 -b $below -F $f on-$below.qcow2 13M
    qemu-io -f qcow2 -c 'write -P 3 2M 100k' -c 'write -z 9M 1M' on-$below.qcow2 >/dev/null
done
qemu-img create -q -f vmdk -b s.vmdk -F vmdk delta.vmdk
qemu-io -f vmdk -c 'write -P 3 2M 100k' delta.vmdk >/dev/null"#,
    );
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Extents of other images.
        if ["own", "ext", "f-flat.vmdk", "ss-s001.vmdk", "sf-f001.vmdk"].contains(&name.as_str()) {
            continue;
        }
        let format = name.rsplit('.').next().unwrap();
        let theirs = json(
            tool("qemu-img")
                .args(["map", "--output=json", "-f", format])
                .arg(&path),
        );
        let ours = json(
            guestlens()
                .args(["map", "--json", "--format", format])
                .arg(&path),
        );
        assert_eq!(ours, theirs, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 25);
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
