//! `verify`: images as the tools make them are safe, and each thing that is not is found by the
//! check of its name.

mod support;

use std::path::Path;

use guestlens::block::memory::MemoryBackend;
use guestlens::formats::verify::report::{Outcome, Verdict};
use guestlens::formats::verify::{VerifyOptions, verify_device, verify_path};
use support::fuzz::{Rng, mutate, peak_memory_kib, run};
use support::vhd::{FIXED, Vhd};
use support::vhdx::{MIB, Parent, Vhdx};
use support::{guestlens, shell, workdir};

fn verify(path: &Path) -> Verdict {
    verify_path(path, &VerifyOptions::default()).unwrap()
}

fn failed(verdict: &Verdict) -> Vec<&'static str> {
    let mut checks: Vec<&str> = verdict
        .reasons
        .iter()
        .filter(|r| r.result == Outcome::Fail)
        .map(|r| r.check)
        .collect();
    checks.dedup();
    assert_eq!(verdict.safe, checks.is_empty());
    checks
}

/// Images of every kind that are as they should be, by the format they are to be claimed as.
fn good(dir: &Path) -> Vec<(String, &'static str)> {
    shell(
        dir,
        "seq 1 100000 > content; truncate -s 4M content
         sgdisk -n 1:2048:0 content >/dev/null
         for o in compat=0.10 compat=1.1 cluster_size=512 cluster_size=2M refcount_bits=1 lazy_refcounts=on; do
             qemu-img convert -f raw -O qcow2 -o $o content qcow2-$o; done
         qemu-img convert -c -f raw -O qcow2 content qcow2-zlib
         qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd content qcow2-zstd
         qemu-img create -q -f qcow2 qcow2-empty 1T
         qemu-img create -q -f qcow2 -o preallocation=metadata qcow2-metadata 64M
         qemu-img convert -f raw -O qcow2 content qcow2-snapshots
         qemu-img snapshot -c one qcow2-snapshots; qemu-img snapshot -c two qcow2-snapshots
         qemu-io -f qcow2 -c 'write -P 3 1M 64K' qcow2-snapshots >/dev/null
         for o in monolithicSparse streamOptimized; do
             qemu-img convert -f raw -O vmdk -o subformat=$o content vmdk-$o; done
         for o in dynamic fixed; do
             qemu-img convert -f raw -O vpc -o subformat=$o content vpc-$o
             qemu-img convert -f raw -O vhdx -o subformat=$o content vhdx-$o
             qemu-img convert -f raw -O vdi -o static=$([ $o = fixed ] && echo on || echo off) content vdi-$o; done
         cp content raw-gpt
         truncate -s 8M raw-ext4; mke2fs -q -t ext4 raw-ext4
         truncate -s 8M raw-fat; mkfs.fat raw-fat >/dev/null
         truncate -s 8M raw-mbr; echo ',,83,*' | sfdisk -q raw-mbr
         truncate -s 1M raw-zero",
    );
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n != "content")
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let format = ["qcow2", "vmdk", "vpc", "vhdx", "vdi", "raw"]
                .into_iter()
                .find(|f| name.split('-').next() == Some(f))
                .unwrap();
            (name, format)
        })
        .collect()
}

#[test]
fn what_tools_make_is_safe() {
    let dir = workdir();
    let images = good(dir.path());
    assert_eq!(images.len(), 24);
    for (name, format) in images {
        let path = dir.path().join(&name);
        for claimed in [None, Some(format.to_owned())] {
            let options = VerifyOptions {
                claimed,
                ..VerifyOptions::default()
            };
            let verdict = verify_path(&path, &options).unwrap();
            assert_eq!(failed(&verdict), [""; 0], "{name}: {verdict:#?}");
            assert_eq!(verdict.format, format, "{name}");
        }
        for other in ["raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi", "iso", "luks"] {
            if other == format {
                continue;
            }
            let options = VerifyOptions {
                claimed: Some(other.into()),
                ..VerifyOptions::default()
            };
            let verdict = verify_path(&path, &options).unwrap();
            assert_eq!(failed(&verdict), ["claimed-format"], "{name} as {other}");
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, value: &[u8]) {
    if bytes.len() < at + value.len() {
        bytes.resize(at + value.len(), 0);
    }
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

fn all_fail(dir: &Path, seed: &str, cases: &[(&[&str], Change<'_>)]) {
    let good = std::fs::read(dir.join(seed)).unwrap();
    for (number, (checks, change)) in cases.iter().enumerate() {
        let mut bytes = good.clone();
        change(&mut bytes);
        let path = dir.join("case");
        std::fs::write(&path, &bytes).unwrap();
        let verdict = verify(&path);
        assert_eq!(&failed(&verdict), checks, "{seed} {number}: {verdict:#?}");
        // Accepting what was found makes it safe.
        let options = VerifyOptions {
            allow: checks.iter().map(|c| (*c).to_owned()).collect(),
            ..VerifyOptions::default()
        };
        assert!(verify_path(&path, &options).unwrap().safe);
    }
}

#[test]
fn qcow2_one_by_one() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 seed 64M
         qemu-io -f qcow2 -c 'write -P 7 0 256K' seed >/dev/null
         qemu-img create -q -f qcow2 snap 64M
         qemu-io -f qcow2 -c 'write -P 7 0 256K' snap >/dev/null; qemu-img snapshot -c one snap
         truncate -s 1M base; qemu-img create -q -f qcow2 -b base -F raw backed
         qemu-img create -q -f qcow2 -o data_file=data outside 1M
         qemu-img create -q -f qcow2 -o extended_l2=on extended 1M
         secret='--object secret,id=s,data=x'
         qemu-img create -q -f qcow2 $secret -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks 1M
         qemu-img create -q -f qcow2 $secret -o encrypt.format=aes,encrypt.key-secret=s aes 1M
         qemu-img create -q -f qcow2 huge 60T
         qemu-img create -q -f qed qed 1M; qemu-img create -q -f qcow qcow 1M
         gzip -k base; xz -k base; zstd -q base; bzip2 base",
    );
    for (name, checks) in [
        ("backed", &["backing-file"][..]),
        ("outside", &["data-file"]),
        ("extended", &["extended-l2"]),
        ("luks", &["encryption"]),
        ("aes", &["encryption"]),
        ("huge", &["virtual-size"]),
        ("qed", &["banned"]),
        ("qcow", &["banned"]),
        ("base.gz", &["compressed-stream"]),
        ("base.xz", &["compressed-stream"]),
        ("base.zst", &["compressed-stream"]),
        ("base.bz2", &["compressed-stream"]),
    ] {
        assert_eq!(failed(&verify(&dir.path().join(name))), checks, "{name}");
    }
    let seed = std::fs::read(dir.path().join("seed")).unwrap();
    let l1 = be64(&seed, 40) as usize;
    let l2 = (be64(&seed, l1) & !(1 << 63)) as usize;
    let far = (1_u64 << 40).to_be_bytes();
    all_fail(
        dir.path(),
        "seed",
        &[
            (&["version", "header"], &|b| put(b, 4, &[0, 0, 0, 4])),
            (&["backing-file", "header"], &|b| put(b, 8, &[1; 8])),
            (
                &[
                    "cluster-bits",
                    "refcount-table-size",
                    "header-length",
                    "header",
                ],
                &|b| {
                    put(b, 20, &[0, 0, 0, 70]);
                },
            ),
            (&["l1-size", "header"], &|b| put(b, 36, &[0xff; 4])),
            (&["header"], &|b| put(b, 36, &[0; 4])),
            (&["header"], &|b| put(b, 40, &far)),
            (&["header"], &|b| put(b, 40, &513_u64.to_be_bytes())),
            (&["refcount-table"], &|b| put(b, 48, &far)),
            (&["refcount-table-size", "header"], &|b| {
                put(b, 56, &[0, 1, 0, 0])
            }),
            (&["snapshot-count", "snapshot-table"], &|b| {
                put(b, 60, &[1, 0, 0, 0])
            }),
            (&["snapshot-table"], &|b| put(b, 60, &[0, 0, 0, 1])),
            (&["encryption", "header"], &|b| put(b, 32, &[0, 0, 0, 9])),
            (&["unknown-features", "header"], &|b| {
                put(b, 72, &(1_u64 << 40).to_be_bytes())
            }),
            (&["corrupt"], &|b| put(b, 79, &[2])),
            (&["refcount-order", "header"], &|b| {
                put(b, 96, &[0, 0, 0, 7])
            }),
            (&["header-length", "header"], &|b| {
                put(b, 100, &[0, 0, 0, 8])
            }),
            (&["header-extensions", "header"], &|b| {
                put(b, 116, &[0xff; 4])
            }),
            (&["tables"], &|b| put(b, l1, &far)),
            (&["tables"], &|b| {
                put(b, l2, &(1_u64 << 63 | 1 << 40).to_be_bytes())
            }),
            (&["tables"], &|b| {
                put(b, l2, &(1_u64 << 63 | 512).to_be_bytes())
            }),
            // Every cluster of the disk is the same one: a bomb of 64 MiB in 500 KiB.
            (&["shared-clusters"], &|b| {
                let entry = b[l2..l2 + 8].to_vec();
                for n in 0..1024 {
                    put(b, l2 + n * 8, &entry);
                }
            }),
            (&["virtual-size"], &|b| {
                // A table as large as QEMU allows, for 2 PiB.
                let at = b.len().next_multiple_of(65536);
                put(b, at + (32 << 20) - 1, &[0]);
                put(b, 24, &(2_u64 << 50).to_be_bytes());
                put(b, 36, &(4_u32 << 20).to_be_bytes());
                put(b, 40, &(at as u64).to_be_bytes());
            }),
            (&["ambiguous"], &|b| put(b, 510, b"\x55\xaa\0\0")),
            (&["ambiguous"], &|b| put(b, 32769, b"CD001")),
            (&["ambiguous", "structure"], &|b| {
                let at = b.len();
                put(b, at, b"conectix");
                put(b, at + 511, &[0]);
            }),
        ],
    );
    let snap = std::fs::read(dir.path().join("snap")).unwrap();
    let table = be64(&snap, 64) as usize;
    all_fail(
        dir.path(),
        "snap",
        &[
            (&["snapshot-table"], &|b| put(b, table, &far)),
            (&["snapshot-table"], &|b| put(b, table + 36, &[0xff; 4])),
            (&["snapshot-table"], &|b| put(b, 64, &far)),
        ],
    );
    let options = VerifyOptions {
        max_virtual_size: 63 << 20,
        ..VerifyOptions::default()
    };
    let verdict = verify_path(&dir.path().join("seed"), &options).unwrap();
    assert_eq!(failed(&verdict), ["virtual-size"]);
}

#[test]
fn vmdk_one_by_one() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 4M raw
         for o in monolithicSparse streamOptimized monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat; do
             qemu-img convert -f raw -O vmdk -o subformat=$o raw $o.vmdk; done
         qemu-img create -q -f vmdk -b monolithicSparse.vmdk -F vmdk child.vmdk",
    );
    for name in [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        let verdict = verify(&dir.path().join(format!("{name}.vmdk")));
        let checks = failed(&verdict);
        assert!(
            checks.contains(&"extents") && checks.contains(&"create-type"),
            "{checks:?}"
        );
    }
    let checks = failed(&verify(&dir.path().join("child.vmdk")));
    assert_eq!(checks, ["backing-file"]);
    let text = std::fs::read(dir.path().join("monolithicSparse.vmdk")).unwrap();
    let find = |what: &[u8]| text.windows(what.len()).position(|w| w == what).unwrap();
    let (extent, kind) = (find(b"RW 8192 SPARSE"), find(b"monolithicSparse\""));
    let size = find(b"SPARSE \"") + 8;
    all_fail(
        dir.path(),
        "monolithicSparse.vmdk",
        &[
            (&["version"], &|b| put(b, 4, &[9])),
            (&["geometry"], &|b| put(b, 20, &[7])),
            (&["geometry"], &|b| put(b, 44, &[0xff; 4])),
            (&["geometry"], &|b| {
                put(b, 56, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
            }),
            (&["descriptor"], &|b| put(b, 28, &[2])),
            (&["descriptor"], &|b| put(b, 36, &[0, 8])),
            (&["create-type"], &|b| put(b, kind, b"monolithicFlat\"#")),
            (&["descriptor"], &|b| put(b, extent, b"RW 8192 FLAT  ")),
            (&["descriptor"], &|b| put(b, extent, b"RW 8191 SPARSE")),
            (&["descriptor"], &|b| put(b, extent, b"#W 8192 SPARSE")),
            (&["descriptor"], &|b| put(b, extent, b"XX 8192 SPARSE")),
            (&["descriptor"], &|b| put(b, size, b"/etc/passwd\"")),
            (&["ambiguous"], &|b| put(b, 510, b"\x55\xaa")),
        ],
    );
    // As VMware writes it: only the footer knows where the grain directory is.
    let mut stream = std::fs::read(dir.path().join("streamOptimized.vmdk")).unwrap();
    stream.resize(stream.len().next_multiple_of(512), 0);
    let footer = stream[..512].to_vec();
    put(&mut stream, 56, &[0xff; 8]);
    let mut marker = vec![0; 512];
    marker[0] = 1;
    marker[12] = 3;
    stream.extend([marker, footer, vec![0; 512]].concat());
    std::fs::write(dir.path().join("footer.vmdk"), &stream).unwrap();
    assert_eq!(failed(&verify(&dir.path().join("footer.vmdk"))), [""; 0]);
    let end = stream.len();
    all_fail(
        dir.path(),
        "footer.vmdk",
        &[
            (&["footer"], &|b| put(b, end - 512, &[1])),
            (&["footer"], &|b| put(b, end - 1536 + 12, &[4])),
            (&["footer"], &|b| put(b, end - 1024 + 56, &[0xff; 8])),
            (&["footer"], &|b| put(b, end - 1024 + 4, &[2])),
            (&["footer"], &|b| put(b, end - 1024, b"X")),
            (&["geometry"], &|b| put(b, end - 1024 + 60, &[1])),
        ],
    );
    // QEMU skips what stands before the line that makes it a descriptor.
    let path = dir.path().join("case");
    std::fs::write(
        &path,
        "\n  \n# hello\nversion=1\nRW 8 FLAT \"/etc/passwd\" 0\n",
    )
    .unwrap();
    let checks = failed(&verify(&path));
    assert_eq!(checks, ["extents", "create-type", "descriptor"]);
}

#[test]
fn images_in_blocks_and_raw_disks() {
    let dir = workdir();
    let path = dir.path().join("case");
    let fails = |bytes: &[u8], checks: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        let verdict = verify(&path);
        assert_eq!(failed(&verdict), checks, "{verdict:#?}");
    };
    let vhd = Vhd::new(1 << 20, 4096);
    fails(&vhd.build(), &[]);
    let mut bytes = vhd.build();
    bytes[3] = 0;
    fails(&bytes, &["structure"]);
    let mut child = vhd.clone();
    child.parent = Some(([1; 16], r"C:\x.vhd".into(), vec![]));
    fails(&child.build(), &["backing-file"]);
    // A guest that writes a footer into its last sector.
    let raw = [vec![0; 1 << 20], vhd.footer(FIXED)].concat();
    std::fs::write(&path, &raw).unwrap();
    let options = VerifyOptions {
        claimed: Some("raw".into()),
        ..VerifyOptions::default()
    };
    assert_eq!(
        failed(&verify_path(&path, &options).unwrap()),
        ["claimed-format"]
    );
    let vhdx = Vhdx::new(MIB, MIB);
    fails(&vhdx.build(), &[]);
    let mut child = vhdx.clone();
    child.parent = Some(Parent {
        linkage: vhdx.data_write_id,
        names: vec![("relative_path", "base.vhdx".into())],
    });
    fails(&child.build(), &["backing-file"]);
    let mut bytes = vhdx.build();
    bytes[(64 << 10) + 9] = 1;
    fails(&bytes, &["structure"]);
    shell(
        dir.path(),
        "truncate -s 2M raw; qemu-img convert -f raw -O vdi raw vdi",
    );
    let vdi = std::fs::read(dir.path().join("vdi")).unwrap();
    fails(&vdi, &[]);
    for (at, value) in [
        (0x44, &[9][..]),
        (0x4c, &[9]),
        (0x154, &[0xff; 4]),
        (0x168, &[1]),
        (0x178, &[1]),
        (0x170, &[0, 0, 0, 0, 1]),
        (0x180, &[0xff; 4]),
        (0x184, &[0xff; 4]),
    ] {
        let mut bytes = vdi.clone();
        put(&mut bytes, at, value);
        fails(&bytes, &["structure"]);
    }
    let mut bytes = vdi.clone();
    bytes[0x1b8] = 1;
    fails(&bytes, &["backing-file"]);
    // Raw disks.
    let mut mbr = vec![0; 1 << 20];
    put(&mut mbr, 510, b"\x55\xaa");
    fails(&mbr, &["mbr"]);
    put(
        &mut mbr,
        446,
        &[
            0x80, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 7, 0, 0,
        ],
    );
    fails(&mbr, &[]);
    for (at, value) in [(446, 1), (447, 1), (454, 2), (466, 0x83), (462, 1)] {
        let mut bad = mbr.clone();
        bad[at] = value;
        fails(&bad, &["mbr"]);
    }
    let mut iso = vec![0; 64 << 10];
    put(&mut iso, 32768, b"\x01CD001\x01");
    put(&mut iso, 32768 + 80, &[32, 0, 0, 0]);
    put(&mut iso, 32768 + 128, &[0, 8]);
    fails(&iso, &[]);
    put(&mut iso, 32768 + 80, &[33, 0, 0, 0]);
    fails(&iso, &["iso"]);
    let mut luks = vec![0; 1 << 20];
    put(&mut luks, 0, b"LUKS\xba\xbe\0\x01");
    fails(&luks, &[]);
    luks[7] = 2;
    fails(&luks, &["luks"]);
    put(&mut luks, 32769, b"CD001");
    fails(&luks, &["ambiguous", "luks"]);
}

#[test]
fn the_verb() {
    let dir = workdir();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 good 1M
         mkfifo fifo; qemu-img create -q -u -f qcow2 -b fifo -F raw bad 1M",
    );
    let verdict = |args: &[&str], name: &str| {
        let output = guestlens()
            .arg("verify")
            .args(args)
            .arg(dir.path().join(name))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = verdict(&["--json", "--format", "qcow2"], "good");
    assert_eq!(code, 0, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["safe"], true);
    assert_eq!(json["format"], "qcow2");
    assert_eq!(json["format-claimed"], "qcow2");
    assert_eq!(json["virtual-size"], 1 << 20);
    assert!(json["reasons"].as_array().unwrap().len() > 10);
    // Waiting for a writer of the FIFO would last for ever.
    let (code, text) = verdict(&["--json"], "bad");
    assert_eq!(code, 4);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["safe"], false);
    let reasons = json["reasons"].as_array().unwrap();
    assert!(
        reasons
            .iter()
            .any(|r| r["check"] == "backing-file" && r["result"] == "fail")
    );
    let (code, text) = verdict(&[], "bad");
    assert!(code == 4 && text.contains("NOT SAFE") && text.contains("unsafe: backing-file"));
    let (code, _) = verdict(&["--allow", "backing-file"], "bad");
    assert_eq!(code, 0);
    assert_eq!(verdict(&["--max-virtual-size", "512K"], "good").0, 4);
    assert_eq!(verdict(&["--max-virtual-size", "x"], "good").0, 2);
    assert_eq!(verdict(&["--format", "raw"], "good").0, 4);
    assert_eq!(verdict(&["--format", "nonsense"], "good").0, 1);
    assert_eq!(verdict(&[], "missing").0, 1);
    assert_eq!(verdict(&[], "fifo").0, 1);
}

#[test]
fn mutated_files_get_an_answer() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 128K raw; seq 1 20000 | dd of=raw conv=notrunc status=none
         qemu-img convert -f raw -O qcow2 -o cluster_size=512 raw a
         qemu-img snapshot -c s a
         qemu-img convert -c -f raw -O qcow2 -o cluster_size=4K raw b
         for o in monolithicSparse streamOptimized; do
             qemu-img convert -f raw -O vmdk -o subformat=$o raw $o; done
         qemu-img convert -f raw -O vdi raw vdi; truncate -s 8K vdi
         qemu-img create -q -f vpc vpc 1M",
    );
    let mut seeds: Vec<Vec<u8>> = [
        "raw",
        "a",
        "b",
        "monolithicSparse",
        "streamOptimized",
        "vdi",
        "vpc",
    ]
    .into_iter()
    .map(|n| std::fs::read(dir.path().join(n)).unwrap())
    .collect();
    for seed in &mut seeds {
        seed.truncate(192 << 10);
    }
    run(40_000, |_, rng: &mut Rng| {
        let mut bytes = seeds[rng.index(seeds.len())].clone();
        let len = bytes.len();
        for _ in 0..=rng.index(4) {
            match rng.below(4) {
                0 => mutate(rng, &mut bytes, 0..len),
                1 => mutate(rng, &mut bytes, len.saturating_sub(1536)..len),
                2 => mutate(rng, &mut bytes, 512..2048),
                _ => mutate(rng, &mut bytes, 0..128),
            }
        }
        if rng.one_in(10) {
            bytes.truncate(rng.index(len));
        }
        let device = MemoryBackend::from_bytes(bytes).into_device();
        let verdict = verify_device(&device, 0, &VerifyOptions::default()).unwrap();
        assert!(verdict.reasons.len() < 200);
    });
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}
