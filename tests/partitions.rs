//! Partition tables against `sfdisk --json` and `blkid`, signatures against `blkid -p`.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use guestlens::block::BlockDevice;
use guestlens::block::memory::MemoryBackend;
use guestlens::fs::signature::recognise;
use guestlens::volumes::{FoundTable, TableKind, find_table};
use serde_json::Value;
use support::{run, shell, tool, workdir};

fn device(path: &Path) -> BlockDevice {
    MemoryBackend::from_bytes(std::fs::read(path).unwrap()).into_device()
}

fn table(path: &Path, sector: Option<u32>) -> Option<FoundTable> {
    find_table(&device(path), sector).unwrap()
}

/// A disk of 32 MiB made by a script that knows it as `disk`.
fn disk(dir: &Path, script: &str) -> PathBuf {
    shell(dir, &format!("rm -f disk; truncate -s 32M disk\n{script}"));
    dir.join("disk")
}

/// Every partition as sfdisk sees it.
fn compare(path: &Path, sector: u32) -> FoundTable {
    let out = run(tool("sfdisk").arg("--json").arg(path));
    let truth: Value = serde_json::from_slice(&out.stdout).unwrap();
    compare_with(path, sector, &truth)
}

fn compare_with(path: &Path, sector: u32, truth: &Value) -> FoundTable {
    let truth = &truth["partitiontable"];
    let found = table(path, None).expect("a table");
    let kind = match found.table.kind {
        TableKind::Gpt => "gpt",
        TableKind::Mbr => "dos",
    };
    assert_eq!(truth["label"], kind);
    let id = truth["id"].as_str().unwrap().to_lowercase();
    assert_eq!(found.table.id.to_lowercase(), id.trim_start_matches("0x"));
    assert_eq!(found.table.sector_size, sector);
    let want: Vec<Value> = truth["partitions"].as_array().cloned().unwrap_or_default();
    assert_eq!(found.table.partitions.len(), want.len(), "{truth}");
    for (partition, want) in found.table.partitions.iter().zip(&want) {
        let node = want["node"].as_str().unwrap();
        let prefix = truth["device"].as_str().unwrap();
        let number = node.strip_prefix(prefix).unwrap().trim_start_matches('p');
        assert_eq!(partition.number.to_string(), number);
        let unit = u64::from(sector);
        assert_eq!(partition.start, want["start"].as_u64().unwrap() * unit);
        // Linux shows an extended partition as its first sectors only; the table says all of it.
        assert_eq!(partition.len, want["size"].as_u64().unwrap() * unit);
        let kind = want["type"].as_str().unwrap().to_lowercase();
        let own = partition.type_id.to_lowercase();
        assert_eq!(own.trim_start_matches('0'), kind.trim_start_matches('0'));
        assert_eq!(partition.label, want["name"].as_str().unwrap_or(""));
        if let Some(uuid) = want["uuid"].as_str() {
            assert_eq!(partition.partuuid.to_lowercase(), uuid.to_lowercase());
        }
    }
    found
}

const GPT: &str =
    "sgdisk -n1:2048:+4M -n2:0:+4M -n7:0:+4M -t1:ef00 -c2:'root ü' -A7:set:2 disk >/dev/null\n";

#[test]
fn gpt() {
    let dir = workdir();
    let found = compare(&disk(dir.path(), GPT), 512);
    assert_eq!(found.problems, Vec::<String>::new());
    let bootable: Vec<bool> = found.table.partitions.iter().map(|p| p.bootable).collect();
    assert_eq!(bootable, [false, false, true]);
}

#[test]
fn gpt_with_a_damaged_copy() {
    let dir = workdir();
    let path = disk(dir.path(), GPT);
    let sound = table(&path, None).unwrap();
    for (what, script) in [
        (
            "primary header",
            "printf X | dd of=disk bs=1 seek=600 conv=notrunc status=none",
        ),
        (
            "primary array",
            "printf X | dd of=disk bs=1 seek=1030 conv=notrunc status=none",
        ),
        (
            "backup header",
            "printf X | dd of=disk bs=1 seek=$((32*1024*1024-500)) conv=notrunc status=none",
        ),
    ] {
        let path = disk(dir.path(), &format!("{GPT}{script}"));
        let found = table(&path, None).unwrap();
        // With a sound primary copy the other one is not asked.
        let quiet = what.starts_with("backup");
        assert_eq!(found.problems.is_empty(), quiet, "{what}");
        let places = |t: &FoundTable| -> Vec<(u32, u64, u64)> {
            t.table
                .partitions
                .iter()
                .map(|p| (p.number, p.start, p.len))
                .collect()
        };
        assert_eq!(places(&found), places(&sound), "{what}");
    }
}

#[test]
fn gpt_in_sectors_of_4096_bytes() {
    if !support::is_root() {
        support::skip!("a loop device of 4096-byte sectors needs root");
    }
    let dir = workdir();
    let json = shell(
        dir.path(),
        r#"
truncate -s 32M disk
loop=$(losetup -b 4096 -f --show disk); trap 'losetup -d $loop' EXIT
printf 'label: gpt\nstart=256,size=1024\nsize=2048,name=data\n' | sfdisk -q --no-reread --no-tell-kernel $loop
sync $loop
sfdisk --json $loop
"#,
    );
    let truth: Value = serde_json::from_str(&json).unwrap();
    let found = compare_with(&dir.path().join("disk"), 4096, &truth);
    assert_eq!(found.table.partitions.len(), 2);
}

#[test]
fn mbr_with_logical_partitions() {
    let dir = workdir();
    let path = disk(
        dir.path(),
        "printf 'label: dos\n1: start=2048,size=4096,type=83,bootable\n2: start=8192,size=40000,type=f\n3: start=50000,size=1000,type=82\n5: start=10240,size=4096\n6: start=16384,size=4096,type=8e\n7: start=24576,size=4096\n' | sfdisk -q disk",
    );
    let found = compare(&path, 512);
    let extended: Vec<u32> = found
        .table
        .partitions
        .iter()
        .filter(|p| p.extended)
        .map(|p| p.number)
        .collect();
    assert_eq!(extended, [2]);
    assert_eq!(found.problems, Vec::<String>::new());
}

#[test]
fn chain_of_boot_records_that_never_ends() {
    let dir = workdir();
    // The second record's link (entry 2, at 446 + 16 + 8) leads to the first one again.
    let path = disk(
        dir.path(),
        "printf 'label: dos\n1: start=8192,size=40000,type=5\n5: start=10240,size=4096\n6: start=16384,size=4096\n' | sfdisk -q disk
         at=$((8192*512+446+16)); link=$(od -An -tu4 -j$((at+8)) -N4 disk | tr -d ' ')
         dd if=disk of=disk bs=1 skip=$at seek=$(((8192+link)*512+446+16)) count=16 conv=notrunc status=none",
    );
    let found = table(&path, None).unwrap();
    assert_eq!(found.table.partitions.len(), 3);
    assert!(!found.problems.is_empty());
}

#[test]
fn hybrid_table_is_a_gpt() {
    let dir = workdir();
    let path = disk(
        dir.path(),
        &format!("{GPT}printf 'r\\nh\\n1\\ny\\n\\nn\\nn\\nw\\ny\\n' | gdisk disk >/dev/null"),
    );
    let found = table(&path, None).unwrap();
    assert_eq!(found.table.kind, TableKind::Gpt);
    assert_eq!(found.table.partitions.len(), 3);
}

#[test]
fn no_table() {
    let dir = workdir();
    assert!(table(&disk(dir.path(), ""), None).is_none());
    assert!(table(&disk(dir.path(), "mkfs.fat disk >/dev/null"), None).is_none());
    assert!(
        table(
            &disk(dir.path(), "mkfs.fat -F 32 -s 1 disk >/dev/null 2>&1"),
            None
        )
        .is_none()
    );
    assert!(table(&disk(dir.path(), "mke2fs -q -t ext4 disk"), None).is_none());
}

#[test]
fn signatures() {
    let dir = workdir();
    for script in [
        "mkfs.fat -F 12 -n TWELVE disk",
        "mkfs.fat -F 16 -n SIXTEEN -i 1234abcd disk",
        "mkfs.fat -F 32 -s 1 disk",
        "truncate -s 400M disk; mkfs.xfs -q -L data disk",
        "truncate -s 200M disk; mkfs.btrfs -q -L pool disk",
        "mkswap -L swappy disk",
        "head -c 32M /dev/zero > disk",
    ] {
        let path = disk(dir.path(), &format!("({script}) >/dev/null 2>&1"));
        let out = tool("blkid")
            .args(["-p", "-o", "export"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let truth: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
        let found = recognise(&device(&path)).unwrap();
        assert_eq!(found.is_none(), truth.is_empty(), "{script}: {text}");
        let Some(found) = found else { continue };
        assert_eq!(Some(&found.kind), truth.get("TYPE"), "{script}");
        assert_eq!(
            found.uuid.as_deref(),
            truth.get("UUID").copied(),
            "{script}"
        );
        assert_eq!(
            found.label.as_deref(),
            truth.get("LABEL").copied(),
            "{script}"
        );
    }
}
