//! Partition tables against `sfdisk --json` and `blkid`, signatures against `blkid -p`.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use guestlens::block::BlockDevice;
use guestlens::block::memory::MemoryBackend;
use guestlens::fs::signature::recognise;
use guestlens::guest::{Content, Guest, GuestOptions};
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
        (
            "backup array",
            "printf X | dd of=disk bs=1 seek=$((32*1024*1024-33*512+60)) conv=notrunc status=none",
        ),
        ("backup cut off", "truncate -s 31M disk"),
        (
            "backup of another table",
            "cp disk old; sgdisk -g -G disk >/dev/null; dd if=old of=disk bs=512 skip=65503 seek=65503 conv=notrunc status=none",
        ),
    ] {
        let path = disk(dir.path(), &format!("{GPT}{script}"));
        let found = table(&path, None).unwrap();
        let [problem] = &found.problems[..] else {
            panic!("{what}: {:?}", found.problems);
        };
        let which = what.split(' ').next().unwrap();
        assert!(problem.starts_with(&format!("the {which} GPT is damaged")));
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
fn mbr_in_sectors_of_4096_bytes_that_nobody_stated() {
    let dir = workdir();
    // An MBR does not say what sectors it counts in, so any disk can hold this one.
    let mbr = "printf 'label: dos\nstart=256,size=2048,type=83\nstart=4096,size=4096,type=83\n' | sfdisk -q disk\n";
    let fs = "mke2fs -q -F -E offset=$((4096*4096)) disk 16M";
    let look = |path: &Path| {
        let image = guestlens::guest::ImageArgument {
            path: path.to_owned(),
            format: Some("raw".into()),
        };
        let guest = Guest::open(&[image], &GuestOptions::default()).unwrap();
        let size = guest.disks()[0].table.as_ref().unwrap().sector_size;
        let open = |v: &&guestlens::guest::Volume| matches!(v.content, Content::FileSystem(_));
        let names: Vec<String> = guest
            .volumes()
            .iter()
            .filter(open)
            .map(|v| v.name.clone())
            .collect();
        let told = guest
            .problems()
            .iter()
            .any(|p| p.message.contains("sectors of 4096"));
        (size, names, told, guest.volumes().len())
    };
    let path = disk(dir.path(), &format!("{mbr}{fs}"));
    assert_eq!(look(&path), (4096, vec!["sda2".into()], true, 2));
    // Nothing known in either: as it reads by default.
    assert_eq!(look(&disk(dir.path(), mbr)), (512, vec![], false, 2));
    // Something known in sectors of 512.
    let path = disk(
        dir.path(),
        &format!("{mbr}{fs}; mkfs.fat --offset 4096 disk 2048 >/dev/null"),
    );
    assert_eq!(look(&path), (512, vec![], false, 2));
    // The table does not fit the disk in larger sectors.
    let path = disk(dir.path(), &format!("{mbr}{fs}; truncate -s 20M disk"));
    assert_eq!(look(&path), (512, vec![], false, 2));
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

/// Whether a tool that only makes one kind of test data is there; if not, the case is counted as
/// skipped.
fn has_tool(name: &str) -> bool {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(name).exists());
    if !found {
        support::record_skip(&format!("no {name} to make a signature with"));
    }
    found
}

/// What blkid says about a file.
fn blkid(path: &Path) -> BTreeMap<String, String> {
    let out = tool("blkid")
        .args(["-p", "-o", "export"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let pairs = text.lines().filter_map(|l| l.split_once('='));
    let mut all: BTreeMap<String, String> = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(label) = all.get_mut("LABEL") {
        // Escaped above; this way it is not.
        let out = run(tool("blkid")
            .args(["-p", "-o", "value", "-s", "LABEL"])
            .arg(path));
        *label = String::from_utf8(out.stdout).unwrap().trim_end().to_owned();
    }
    all
}

fn same_as_blkid(path: &Path, what: &str) {
    let truth = blkid(path);
    let found = recognise(&device(path)).unwrap();
    // A file that holds a partition table only has no type.
    let of = |name: &str| truth.get(name).map(String::as_str);
    assert_eq!(
        found.as_ref().map(|f| f.kind),
        of("TYPE"),
        "{what}: {truth:?}"
    );
    let Some(found) = found else { return };
    assert_eq!(found.uuid.as_deref(), of("UUID"), "{what}: {truth:?}");
    assert_eq!(found.label.as_deref(), of("LABEL"), "{what}: {truth:?}");
}

#[test]
fn signatures() {
    let dir = workdir();
    for (name, script) in [
        ("mkfs.fat", "mkfs.fat -F 12 -n TWELVE disk"),
        ("mkfs.fat", "mkfs.fat -F 16 -n SIXTEEN -i 1234abcd disk"),
        ("mkfs.fat", "mkfs.fat -F 16 -i 1234abcd disk"),
        ("mkfs.fat", "mkfs.fat -F 32 -s 1 disk"),
        ("mkfs.fat", "mkfs.fat -F 32 -s 1 -n 'THIRTY TWO' disk"),
        ("mkfs.fat", "mkfs.fat -F 32 -s 2 -S 4096 -n LARGE disk"),
        // The label in the root directory counts, not the one in the boot sector.
        (
            "mlabel",
            "mkfs.fat -F 16 -n BEFORE disk; mlabel -i disk ::AFTER",
        ),
        // A root directory of several clusters, its label in the first.
        (
            "mcopy",
            "truncate -s 40M disk; mkfs.fat -F 32 -s 1 -n FIRST disk; echo > f; for i in $(seq 60); do mcopy -i disk f ::f$i; done",
        ),
        (
            "mkfs.xfs",
            "truncate -s 400M disk; mkfs.xfs -q -L data disk",
        ),
        (
            "mkfs.btrfs",
            "truncate -s 200M disk; mkfs.btrfs -q -L pool disk",
        ),
        ("mkswap", "mkswap -L swappy disk"),
        ("mkswap", "mkswap -p 65536 disk"),
        (
            "mkswap",
            "mkswap -L s disk; printf 'S1SUSPEND\\0' | dd of=disk bs=1 seek=4086 conv=notrunc",
        ),
        (
            "mkfs.f2fs",
            "truncate -s 64M disk; mkfs.f2fs -q -l flash disk",
        ),
        ("mkfs.erofs", "mkdir -p t; echo x > t/a; mkfs.erofs disk t"),
        (
            "mksquashfs",
            "mkdir -p t; mksquashfs t disk -noappend -quiet",
        ),
        (
            "genisoimage",
            "mkdir -p t; genisoimage -quiet -V 'CD VOL' -R -o disk t",
        ),
        ("mkntfs", "mkntfs -q -F -L 'Win döws' disk"),
        ("mkntfs", "mkntfs -q -F -c 65536 -s 4096 disk"),
        ("mkfs.exfat", "mkfs.exfat -L exlabel disk"),
        ("mkfs.exfat", "mkfs.exfat -c 128K disk"),
        ("mkudffs", "mkudffs --label=udflabel disk"),
        (
            "mkudffs",
            "mkudffs --utf8 -b 2048 --label=grün --uuid=0123456789abcdef disk",
        ),
        ("mkudffs", "mkudffs -b 4096 disk"),
        (
            "mkfs.nilfs2",
            "truncate -s 160M disk; mkfs.nilfs2 -q -f -L nil $PWD/disk",
        ),
        (
            "mkfs.reiserfs",
            "truncate -s 64M disk; mkfs.reiserfs -q -f -f -l rei disk",
        ),
        ("mkfs.jfs", "mkfs.jfs -q -L jay disk"),
        ("cryptsetup", LUKS1),
        ("cryptsetup", LUKS2),
        ("bash", "head -c 32M /dev/zero > disk"),
        ("bash", "head -c 32M /dev/zero | tr '\\0' x > disk"),
    ] {
        if !has_tool(name) {
            continue;
        }
        let log = dir.path().join("log");
        let path = disk(
            dir.path(),
            &format!("({script}) >log 2>&1 || {{ cat log >&2; false; }}"),
        );
        same_as_blkid(&path, script);
        let _ = std::fs::remove_file(log);
    }
}

const LUKS1: &str = "printf pw | cryptsetup -q luksFormat --type luks1 --iter-time 1 disk -";
const LUKS2: &str = "printf pw | cryptsetup -q luksFormat --type luks2 --label secret \
     --pbkdf pbkdf2 --pbkdf-force-iterations 1000 disk -";

/// A superblock of an md array, as `md_p.h` of Linux has it: 1.x for the sector `offset`.
fn md_1(offset_sectors: u64) -> Vec<u8> {
    let mut raw = vec![0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efcu32.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(16, b"0123456789abcdef");
    put(32, b"host:array");
    put(72, &1u32.to_le_bytes()); // RAID 1
    put(80, &40000u64.to_le_bytes());
    put(92, &2u32.to_le_bytes());
    put(128, &2048u64.to_le_bytes());
    put(136, &40000u64.to_le_bytes());
    put(144, &offset_sectors.to_le_bytes());
    put(220, &128u32.to_le_bytes());
    put(256, &[0, 0, 1, 0, 0xFE, 0xFF]);
    let sum: u64 = raw
        .chunks_exact(4)
        .map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap())))
        .sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    raw[216..220].copy_from_slice(&sum.to_le_bytes());
    raw
}

/// Version 0.90.
fn md_0() -> Vec<u8> {
    let mut words = [0u32; 1024];
    words[0] = 0xa92b_4efc;
    words[2] = 90;
    words[5] = 0x0123_4567;
    words[13..16].copy_from_slice(&[0x89ab_cdef, 0x0011_2233, 0x4455_6677]);
    words[7] = 1;
    words[8] = 20000;
    words[9..12].copy_from_slice(&[2, 2, 0]);
    let sum: u64 = words.iter().map(|&w| u64::from(w)).sum();
    words[38] = (sum as u32).wrapping_add((sum >> 32) as u32);
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// What a guest of one raw disk shows for it: the type, and the problems.
fn opened(path: &Path) -> (String, String) {
    let image = guestlens::guest::ImageArgument {
        path: path.to_owned(),
        format: Some("raw".into()),
    };
    let guest = Guest::open(&[image], &GuestOptions::default()).unwrap();
    let [volume] = guest.volumes() else {
        panic!("one volume");
    };
    let kind = match &volume.content {
        Content::FileSystem(fs) => format!("open {}", fs.info().fs_type),
        Content::Recognised(signature) => signature.kind.to_owned(),
        Content::Failed { reason, .. } => reason.clone(),
        Content::Unknown => "unknown".into(),
    };
    let problems: Vec<&str> = guest.problems().iter().map(|p| &p.message[..]).collect();
    (kind, problems.join("\n"))
}

/// An old ext4 whose superblock was not overwritten.
const OLD_EXT4: &str = "mke2fs -q -F -t ext4 -b 4096 disk";

#[test]
fn md_members_hide_what_is_behind_them() {
    let dir = workdir();
    const LEN: u64 = 32 << 20;
    let at_end = LEN - (8 << 10);
    for (what, at, raw) in [
        ("1.1", 0, md_1(0)),
        ("1.2", 4096, md_1(8)),
        ("1.0", at_end, md_1(at_end / 512)),
        ("0.90", LEN - (64 << 10), md_0()),
    ] {
        let path = disk(dir.path(), OLD_EXT4);
        assert_eq!(opened(&path), ("open ext4".into(), String::new()));
        put(&path, at, &raw);
        if has_tool("mdadm") {
            let out = tool("mdadm").arg("--examine").arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(text.contains("- correct"), "{what}: {text}");
        }
        same_as_blkid(&path, what);
        let (kind, problems) = opened(&path);
        assert_eq!(kind, "linux_raid_member", "{what}");
        // Only a superblock at the end leaves a filesystem that may be meant.
        let told = problems.contains("ext4 filesystem at its start");
        assert_eq!(told, matches!(what, "1.0" | "0.90"), "{what}: {problems}");

        // The kernel does not take one with a wrong checksum, so it hides nothing.
        let mut broken = raw.clone();
        broken[40] ^= 0x10;
        broken[20] ^= 0x10;
        broken[96] ^= 1;
        put(&path, at, &broken);
        if at >= 1024 {
            let kind = opened(&path).0;
            if what != "1.2" {
                assert_eq!(kind, "open ext4", "{what}");
            }
            assert_ne!(kind, "linux_raid_member", "{what}");
        }
    }
}

#[test]
fn containers_hide_what_is_behind_them() {
    let dir = workdir();
    for script in [LUKS1, LUKS2] {
        if !has_tool("cryptsetup") {
            continue;
        }
        let path = disk(
            dir.path(),
            &format!("{OLD_EXT4}; dd if=disk of=old bs=1024 skip=1 count=1 status=none\n{script}"),
        );
        // The key slots of LUKS1 start behind 1024 already: a superblock of stale ext4 right there
        // breaks nothing that is asked here.
        let old = std::fs::read(dir.path().join("old")).unwrap();
        let at_end_of_header = if script == LUKS1 { 1024 } else { 4096 + 1024 };
        put(&path, at_end_of_header, &old);
        put(&path, 1024, &old);
        assert_eq!(opened(&path).0, "crypto_LUKS");
        let (kind, truth) = (opened(&path).0, blkid(&path));
        assert_eq!(Some(&kind), truth.get("TYPE"), "{truth:?}");
    }
    // A second header alone, in front of a filesystem that was made later.
    if has_tool("cryptsetup") {
        let path = disk(
            dir.path(),
            &format!("{LUKS2}; dd if=/dev/zero of=disk bs=4096 count=1 conv=notrunc status=none"),
        );
        assert_eq!(opened(&path).0, "crypto_LUKS");
    }
    let path = disk(dir.path(), OLD_EXT4);
    put(&path, 0, b"\xeb\x58\x90-FVE-FS-");
    assert_eq!(opened(&path).0, "BitLocker");

    if !support::is_root() {
        support::skip!("pvcreate needs a loop device, which needs root");
    }
    if !has_tool("pvcreate") {
        return;
    }
    let made = tool("bash")
        .current_dir(dir.path())
        .arg("-c")
        .arg("PATH=$PATH:/usr/sbin:/sbin; rm -f pv; truncate -s 32M pv; l=$(losetup -f --show pv) && timeout 20 pvcreate -qq -y -ff $l >log 2>&1; r=$?; sync; losetup -d $l; exit $r")
        .status()
        .unwrap();
    if !made.success() {
        support::skip!("pvcreate does not work here");
    }
    let pv = dir.path().join("pv");
    same_as_blkid(&pv, "pvcreate");
    let path = disk(dir.path(), OLD_EXT4);
    let label = std::fs::read(&pv).unwrap();
    put(&path, 512, &label[512..1024]);
    same_as_blkid(&path, "PV in front of ext4");
    assert_eq!(opened(&path).0, "LVM2_member");
    put(&path, 512 + 100, b"x");
    assert_eq!(
        opened(&path).0,
        "open ext4",
        "a label with a wrong checksum"
    );
}
