//! `convert` of every source to every target, by qemu-img's own reading of the result; and what is
//! left when it fails.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::{guestlens, guestlens_path, is_root, run, shell, skip, tool, workdir};

/// Half of it holes, the rest text, noise, patterns and zeroes that are stored; the end is not on
/// a cluster.
const MAKE_DISK: &str = r#"
python3 - <<'END'
import random
pick = random.Random(7)
size = (24 << 20) - 1536
words = open("/usr/share/common-licenses/GPL-3", "rb").read()
with open("disk.raw", "wb") as disk:
    disk.truncate(size)
    for _ in range(30):
        length = pick.randrange(512, 1 << 20) & ~511
        at = pick.randrange(0, size - length) & ~511
        disk.seek(at)
        kind = pick.randrange(4)
        if kind == 0:
            disk.write(pick.randbytes(length))
        elif kind == 1:
            disk.write((words * (length // len(words) + 1))[:length])
        elif kind == 2:
            disk.write(bytes(length))
        else:
            disk.write(b"".join(b"%08d line\n" % pick.randrange(10**6) for _ in range(length // 14)))
    disk.seek(size - 512)
    disk.write(b"end" * 170)
END
"#;

fn convert(dir: &Path, args: &[&str]) -> Command {
    let mut command = guestlens();
    command.current_dir(dir).arg("convert").args(args);
    command
}

fn refused(command: &mut Command, status: i32, words: &str) {
    let out = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{command:?}: {stderr}");
    assert!(stderr.contains(words), "{command:?}: {stderr}");
}

/// Converts `source` and has qemu-img look at the result.
fn check(dir: &Path, source: &str, options: &[&str]) {
    let target = options[1];
    let _ = std::fs::remove_file(dir.join("out"));
    run(convert(dir, &[source, "out"]).args(options));
    let format = if target.starts_with("vhd") {
        "vpc"
    } else {
        target
    };
    if matches!(target, "qcow2" | "vmdk") {
        run(tool("qemu-img")
            .current_dir(dir)
            .args(["check", "-f", format, "out"]));
    }
    run(tool("qemu-img")
        .current_dir(dir)
        .args(["compare", "-f", "raw", "-F", format, "disk.raw", "out"]));
}

const TARGETS: &[&[&str]] = &[
    &["--to", "raw"],
    &["--to", "qcow2"],
    &["--to", "qcow2", "-c"],
    &["--to", "qcow2", "-c=zstd"],
    &["--to", "vmdk"],
    &["--to", "vhd"],
    &["--to", "vhd-fixed"],
];

#[test]
fn every_source_to_every_target() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    let sources = [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("qcow2", "-c -o compression_type=zstd"),
        ("qcow2", "-o extended_l2=on"),
        ("qcow2", "-o compat=0.10 -c"),
        ("qcow2", "-o cluster_size=512"),
        ("qcow2", "-o cluster_size=4096 -c"),
        ("qcow2", "-o cluster_size=2M"),
        ("qcow2", "-o preallocation=metadata"),
        ("vpc", "-o force_size=on"),
        ("vpc", "-o force_size=on,subformat=fixed"),
        ("vhdx", ""),
        ("vmdk", ""),
        ("vmdk", "-o subformat=streamOptimized"),
        ("vmdk", "-o subformat=monolithicFlat"),
    ];
    for (n, (format, options)) in sources.iter().enumerate() {
        shell(
            dir,
            &format!("qemu-img convert -f raw -O {format} {options} disk.raw s{n}"),
        );
        for target in TARGETS {
            let source = format!("s{n}");
            if options.contains("fixed") {
                check(dir, &source, &[*target, &["--format", format]].concat());
            } else {
                check(dir, &source, target);
            }
        }
        shell(dir, &format!("rm s{n}"));
    }
    for target in TARGETS {
        check(dir, "disk.raw", &[*target, &["--format", "raw"]].concat());
    }
}

/// Each is made as `s` (and files whose names begin so) by a shell command.
#[test]
fn packed_split_and_encrypted_sources_to_every_target() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    shell(dir, "split -b 5000000 disk.raw part.; printf secret >key");
    let qemu = |options: &str| format!("qemu-img convert -f raw {options} disk.raw s");
    let parts = |program: &str| format!("for p in part.*; do {program} <$p; done >s");
    for (make, options) in [
        (qemu("-O vdi"), &[][..]),
        (qemu("-O vdi -o static=on"), &[]),
        (qemu("-O vhdx -o subformat=fixed"), &[]),
        (qemu("-O vmdk -o subformat=twoGbMaxExtentSparse"), &[]),
        (qemu("-O vmdk -o subformat=twoGbMaxExtentFlat"), &[]),
        ("gzip -1 <disk.raw >s".into(), &[]),
        (parts("gzip -1"), &[]),
        ("xz -0 -T1 <disk.raw >s".into(), &[]),
        ("xz -0 -T1 --block-size=3MiB <disk.raw >s".into(), &[]),
        (parts("xz -0"), &[]),
        ("zstd -q -1 <disk.raw >s".into(), &[]),
        (parts("zstd -q -1"), &[]),
        (
            qemu(
                "-O qcow2 --object secret,id=k,file=key \
                 -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10",
            ),
            &["--key-file", "key"],
        ),
    ] {
        println!("{make}");
        shell(dir, &make);
        for target in TARGETS {
            check(dir, "s", &[*target, options].concat());
        }
        shell(dir, "rm -f s s-*");
    }
}

#[test]
fn qcow2_of_every_kind() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    for kind in [
        "--cluster-size 512",
        "--cluster-size 512 --refcount-bits 2 -c",
        "--cluster-size 4K --refcount-bits 1 -c=zstd",
        "--cluster-size 2M -c",
        "--cluster-size 2M",
        "--cluster-size 1M -c=zstd --level 19",
        "--extended-l2",
        "--extended-l2 -c --level 1",
        "--compat 0.10",
        "--compat 0.10 -c --level 9",
        "--refcount-bits 64 -c",
        "--preallocation metadata",
        "--preallocation full --extended-l2",
    ] {
        let options: Vec<&str> = ["--to", "qcow2"]
            .into_iter()
            .chain(kind.split(' '))
            .collect();
        check(dir, "disk.raw", &options);
    }
}

#[test]
fn compressed_as_small_as_qemu_does() {
    let dir = workdir();
    let dir = dir.path();
    // What systems are made of: programs and text.
    shell(
        dir,
        "{ tar -C / -cf - usr/bin usr/share/common-licenses usr/lib/python3 2>/dev/null || true; } | head -c 48M >disk.raw",
    );
    for (method, qemu) in [("-c=zlib", "zlib"), ("-c=zstd", "zstd")] {
        check(dir, "disk.raw", &["--to", "qcow2", method]);
        shell(
            dir,
            &format!(
                "qemu-img convert -f raw -O qcow2 -c -o compression_type={qemu} disk.raw theirs"
            ),
        );
        let size = |name: &str| std::fs::metadata(dir.join(name)).unwrap().len() as f64;
        let ratio = size("out") / size("theirs");
        println!("{method}: {ratio:.3} of qemu-img's size");
        assert!(ratio < 1.05, "{method}: {ratio}");
    }
}

#[test]
fn chains_and_snapshots() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    shell(
        dir,
        "qemu-img convert -O qcow2 disk.raw base.qcow2
         qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
         qemu-io -c 'write -P 3 5M 2M' -c 'write -z 10M 3M' mid.qcow2 >/dev/null
         qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 60M
         qemu-io -c 'write -P 4 6M 2M' -c 'write -P 5 50M 70k' top.qcow2 >/dev/null
         cp base.qcow2 copy.qcow2",
    );
    let same = |a: &str, b: &str| {
        run(tool("qemu-img").current_dir(dir).args(["compare", a, b]));
    };
    run(&mut convert(
        dir,
        &["top.qcow2", "flat.qcow2", "--to", "qcow2"],
    ));
    same("top.qcow2", "flat.qcow2");
    assert!(!shell(dir, "qemu-img info flat.qcow2").contains("backing"));
    // On the same base, on a copy of it (so that contents have to be compared), on another image.
    for (backing, kind) in [
        ("base.qcow2", &[][..]),
        ("copy.qcow2", &["--compat", "0.10"][..]),
        ("copy.qcow2", &["-c", "--extended-l2"][..]),
        ("mid.qcow2", &["-c=zstd"][..]),
    ] {
        let args = [
            "top.qcow2",
            "o.qcow2",
            "--to",
            "qcow2",
            "--force",
            "--backing",
            backing,
        ];
        run(convert(dir, &args)
            .args(["--backing-format", "qcow2"])
            .args(kind));
        run(tool("qemu-img").current_dir(dir).args(["check", "o.qcow2"]));
        same("top.qcow2", "o.qcow2");
        let size = std::fs::metadata(dir.join("o.qcow2")).unwrap().len();
        // Zeroes over a version 2 image have to be written.
        assert!(size < 8 << 20, "{backing} {kind:?}: {size}");
    }
    shell(
        dir,
        "qemu-img convert -O qcow2 disk.raw s.qcow2; qemu-img snapshot -c first s.qcow2
         qemu-io -c 'write -P 9 0 20M' s.qcow2 >/dev/null",
    );
    for id in ["first", "1"] {
        run(&mut convert(
            dir,
            &[
                "s.qcow2",
                "o.raw",
                "--to",
                "raw",
                "--force",
                "--snapshot",
                id,
            ],
        ));
        same("disk.raw", "o.raw");
    }
    refused(
        &mut convert(dir, &["s.qcow2", "n", "--to", "raw", "--snapshot", "none"]),
        1,
        "no snapshot",
    );
}

#[test]
fn holes_stay_holes_and_zeroes_become_holes() {
    let dir = workdir();
    let dir = dir.path();
    shell(
        dir,
        "truncate -s 1T sparse.raw
         for at in 0 300000 900000; do dd if=/dev/urandom of=sparse.raw bs=1M count=1 seek=$at conv=notrunc status=none; done
         head -c 8M /dev/zero >zeroes.raw; head -c 10000 /dev/urandom >>zeroes.raw; truncate -s %512 zeroes.raw",
    );
    run(&mut convert(
        dir,
        &["sparse.raw", "a.qcow2", "--to", "qcow2"],
    ));
    run(&mut convert(dir, &["a.qcow2", "b.raw", "--to", "raw"]));
    run(&mut convert(dir, &["zeroes.raw", "c.raw", "--to", "raw"]));
    run(&mut convert(
        dir,
        &["zeroes.raw", "d.raw", "--to", "raw", "--sparse-size", "0"],
    ));
    let used = |name: &str| -> u64 {
        let blocks = shell(dir, &format!("stat -c %b {name}"));
        blocks.trim().parse::<u64>().unwrap() * 512
    };
    assert!(used("a.qcow2") < 5 << 20 && used("b.raw") < 5 << 20);
    assert!(used("c.raw") < 64 << 10, "{}", used("c.raw"));
    assert!(used("d.raw") >= 8 << 20, "{}", used("d.raw"));
    shell(dir, "cmp zeroes.raw c.raw; cmp zeroes.raw d.raw");
    // Compared by ourselves: reading a tebibyte of zeroes takes others minutes.
    let out = run(guestlens()
        .current_dir(dir)
        .args(["compare", "sparse.raw", "b.raw"]));
    assert_eq!(out.stdout, b"the images are identical\n");
}

#[test]
fn to_stdout_and_the_report() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    shell(dir, "qemu-img convert -O qcow2 -c disk.raw s.qcow2");
    let binary = guestlens_path();
    let binary = binary.display();
    shell(
        dir,
        &format!("{binary} convert s.qcow2 - --to raw | cmp - disk.raw"),
    );
    shell(
        dir,
        &format!(
            "{binary} convert s.qcow2 - --to vmdk >streamed.vmdk
             qemu-img check -q streamed.vmdk
             qemu-img compare -f raw -F vmdk disk.raw streamed.vmdk"
        ),
    );
    refused(
        &mut convert(dir, &["s.qcow2", "-", "--to", "qcow2"]),
        2,
        "stdout",
    );
    let out = run(&mut convert(
        dir,
        &["s.qcow2", "o", "--to", "raw", "--json"],
    ));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["virtual-size"], (24 << 20) - 1536);
    assert_eq!(report["source-format"], "qcow2");
    let n = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(n("read-bytes") + n("skipped-bytes"), n("virtual-size"));
    for (options, words) in [
        (&["--to", "raw", "-c"][..], "--compress is for qcow2 only"),
        (
            &["--to", "qcow2", "--level", "3"],
            "--level needs --compress",
        ),
        (&["--to", "qcow2", "-c", "--level", "10"], "from 1 to 9"),
        (&["--to", "raw", "--sparse-size", "1000"], "power of two"),
        (&["--to", "qcow2", "--cluster-size", "4M"], "512 to 2M"),
        (&["--to", "vhd", "-c"], "--compress is for qcow2 only"),
        (&["--to", "vmdk", "--extended-l2"], "--extended-l2 is for"),
    ] {
        refused(convert(dir, &["disk.raw", "n"]).args(options), 2, words);
    }
    assert!(!dir.join("n").exists());
}

/// Half a disk is no disk: other than for a listing, it matters that the reader went away.
#[test]
fn a_reader_that_goes_away() {
    let dir = workdir();
    shell(dir.path(), MAKE_DISK);
    for format in ["raw", "vmdk"] {
        let said = shell(
            dir.path(),
            &format!(
                "set +o pipefail
                 '{}' convert disk.raw - --to {format} 2>said | head -c 10 >got
                 echo ${{PIPESTATUS[0]}}; cat said",
                support::guestlens_path().display()
            ),
        );
        assert!(said.starts_with("1\n"), "{said}");
        assert!(said.contains("Broken pipe"), "{said}");
    }
}

#[test]
fn targets_that_cannot_be() {
    let dir = workdir();
    let dir = dir.path();
    shell(
        dir,
        "qemu-img create -q -f qcow2 a.qcow2 1M; ln -s a.qcow2 link; cp a.qcow2 same",
    );
    for (target, status, words) in [
        ("a.qcow2", 1, "source and target are the same file"),
        ("link", 1, "source and target are the same file"),
        ("new/", 2, "names a directory"),
        ("nbd://localhost/x", 2, "a URL is not accepted here"),
        ("https://localhost/x", 2, "a URL is not accepted here"),
    ] {
        refused(
            &mut convert(dir, &["a.qcow2", target, "--to", "raw", "--force"]),
            status,
            words,
        );
    }
    for verb in ["verify", "check"] {
        refused(
            guestlens().args([verb, "https://localhost/x"]),
            2,
            "a URL is not accepted here",
        );
    }
    shell(dir, "cmp a.qcow2 same; [ ! -e new ]");
}

/// A name that several snapshots have stands for none of them.
#[test]
fn snapshots_of_the_same_name() {
    let dir = workdir();
    let dir = dir.path();
    shell(
        dir,
        "qemu-img create -q -f qcow2 a.qcow2 1M
         for n in twice twice once; do qemu-img snapshot -c $n a.qcow2; done; cp a.qcow2 same",
    );
    let snapshot = |args: &[&str]| {
        let mut command = guestlens();
        command.current_dir(dir).args(["snapshot", "a.qcow2"]);
        command.args(args);
        command
    };
    for (args, status, words) in [
        (&["apply", "twice"][..], 1, "there are 2 snapshots"),
        (&["delete", "twice"], 1, "say which by its id: 1, 2"),
        (&["extract", "twice", "x"], 1, "there are 2 snapshots"),
        (&["create", "once"], 1, "already"),
        (&["create", "2"], 1, "of the id"),
        (&["create", ""], 2, "not empty"),
        (&["delete", "gone"], 1, "has no snapshot"),
    ] {
        refused(&mut snapshot(args), status, words);
    }
    let by_name = ["a.qcow2", "x", "--to", "raw", "--snapshot", "twice"];
    refused(&mut convert(dir, &by_name), 1, "there are 2 snapshots");
    shell(dir, "cmp a.qcow2 same; [ ! -e x ]");
    run(&mut snapshot(&["extract", "once", "x"]));
    run(&mut snapshot(&["delete", "2"]));
    run(&mut snapshot(&["apply", "twice"]));
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    // A compressed cluster in the middle is broken.
    shell(
        dir,
        "qemu-img convert -O qcow2 -c disk.raw s.qcow2
         dd if=/dev/urandom of=s.qcow2 bs=4096 seek=500 count=200 conv=notrunc status=none
         mkdir out; echo old >out/old",
    );
    refused(
        &mut convert(dir, &["s.qcow2", "out/n", "--to", "raw"]),
        1,
        "compressed cluster",
    );
    refused(
        &mut convert(dir, &["s.qcow2", "out/old", "--to", "qcow2", "--force"]),
        1,
        "compressed cluster",
    );
    refused(
        &mut convert(dir, &["disk.raw", "out/old", "--to", "raw"]),
        1,
        "exists",
    );
    refused(
        &mut convert(dir, &["disk.raw", "disk.raw", "--to", "qcow2", "--force"]),
        1,
        "same file",
    );
    assert_eq!(shell(dir, "ls -A out; cat out/old"), "old\nold\n");
    // Killed while it works, in every way.
    shell(dir, "head -c 300M /dev/urandom >big.raw");
    for signal in ["INT", "TERM", "KILL"] {
        // Shells have their background jobs ignore SIGINT, and what these start as well.
        let mut child = tool("env")
            .current_dir(dir)
            .arg("--default-signal=INT")
            .arg(guestlens_path())
            .args(["convert", "big.raw", "out/n"])
            .args(["--to", "qcow2", "-c=zstd", "--level", "19"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        run(tool("kill").args(["-s", signal, &child.id().to_string()]));
        let status = child.wait().unwrap();
        assert!(!status.success(), "{signal}: it was too fast");
        assert_eq!(shell(dir, "ls -A out"), "old\n", "{signal}");
    }
    if !is_root() {
        skip!("only root can mount a small tmpfs");
    }
    shell(dir, "mkdir small; mount -t tmpfs -o size=8M tmpfs small");
    let runs: Vec<_> = [
        &["--to", "raw"][..],
        &["--to", "qcow2"],
        &["--to", "qcow2", "-c"],
    ]
    .iter()
    .map(|to| {
        convert(dir, &["big.raw", "small/n"])
            .args(*to)
            .output()
            .unwrap()
    })
    .collect();
    let left = shell(
        dir,
        "ls -A small; df --output=used small | tail -1; umount small",
    );
    for out in runs {
        assert_eq!(out.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&out.stderr).contains("No space left"),
            "{out:?}"
        );
    }
    assert_eq!(left.trim(), "0");
}

#[test]
fn to_a_block_device() {
    if !is_root() {
        skip!("only root can make loop devices");
    }
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    let device = shell(
        dir,
        "qemu-img convert -O qcow2 disk.raw s.qcow2; qemu-img create -q -f qcow2 empty.qcow2 64M
         head -c 64M /dev/zero | tr '\\0' x >under; losetup -f --show under",
    );
    let device = device.trim();
    let result = std::panic::catch_unwind(|| {
        // What is on it is overwritten only on purpose, wherever it shows.
        let to_raw = ["s.qcow2", device, "--to", "raw"];
        let not_empty = "is not empty";
        refused(&mut convert(dir, &to_raw), 1, not_empty);
        shell(dir, "[ \"$(tr -d x <under | wc -c)\" = 0 ]; cp under x");
        for (on_it, words) in [
            (
                "echo 'label: gpt' | sfdisk -q $D; dd if=/dev/zero of=$D bs=1M count=1 status=none",
                "last MiB",
            ),
            (
                "printf 'label: dos\n2048,2048\n' | sfdisk -q --no-reread $D",
                "partition table",
            ),
            ("mke2fs -q -F $D", "first MiB"),
            ("qemu-img convert -O qcow2 disk.raw $D", "looks like qcow2"),
            (
                "printf x | dd of=$D seek=67000000 bs=1 status=none",
                "last MiB",
            ),
        ] {
            shell(
                dir,
                &format!("D={device}; dd if=/dev/zero of=$D bs=1M count=64 status=none; {on_it}"),
            );
            refused(&mut convert(dir, &to_raw), 1, words);
        }
        // An empty one is there to be written to.
        shell(
            dir,
            &format!("dd if=/dev/zero of={device} bs=1M count=64 status=none"),
        );
        run(&mut convert(dir, &to_raw));
        shell(dir, &format!("cp x {device}"));
        run(convert(dir, &to_raw).arg("--force"));
        shell(
            dir,
            &format!("cmp -n $(stat -c %s disk.raw) disk.raw {device}"),
        );
        // Holes of the source are zeroes on the device, and what is beyond it was not touched.
        shell(dir, "[ \"$(tail -c 1536 under | tr -d x | wc -c)\" = 0 ]");
        run(&mut convert(
            dir,
            &["s.qcow2", device, "--to", "qcow2", "-c", "--force"],
        ));
        shell(
            dir,
            &format!(
                "qemu-img check -q -f qcow2 {device}
                 qemu-img compare -f raw -F qcow2 disk.raw {device}"
            ),
        );
        // In use: mounted.
        shell(
            dir,
            &format!("mke2fs -q -F {device}; mkdir m; mount {device} m"),
        );
        let busy = convert(dir, &["s.qcow2", device, "--to", "raw"])
            .output()
            .unwrap();
        shell(dir, "umount m");
        assert_eq!(busy.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&busy.stderr).contains("in use"),
            "{busy:?}"
        );
        // Too small.
        shell(dir, "qemu-img create -q -f qcow2 large.qcow2 65M");
        refused(
            &mut convert(dir, &["large.qcow2", device, "--to", "raw", "--force"]),
            1,
            "are needed",
        );
    });
    let _ = tool("losetup").args(["-d", device]).status();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn compare_tells_where() {
    let dir = workdir();
    let dir = dir.path();
    shell(dir, MAKE_DISK);
    shell(
        dir,
        "qemu-img convert -O qcow2 -c disk.raw a.qcow2
         cp disk.raw b.raw; printf X | dd of=b.raw bs=1 seek=12345678 conv=notrunc status=none
         cp --sparse=always disk.raw longer.raw; truncate -s 60M longer.raw
         cp longer.raw c.raw; printf X | dd of=c.raw bs=1 seek=55555555 conv=notrunc status=none
         cp --sparse=never disk.raw full.raw",
    );
    for (other, options, status, words) in [
        ("a.qcow2", &[][..], 0, "are identical"),
        ("b.raw", &[], 4, "differ at byte 12345678"),
        ("longer.raw", &[], 0, "bytes more, all of them zero"),
        ("longer.raw", &["--strict"], 4, "the sizes differ"),
        ("c.raw", &[], 4, "differ at byte 55555555"),
        ("full.raw", &[], 0, "are identical"),
        ("full.raw", &["--strict"], 4, "allocated"),
        ("missing", &[], 1, ""),
    ] {
        let out = guestlens()
            .current_dir(dir)
            .args(["compare", "disk.raw", other])
            .args(options)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(status), "{other}: {out:?}");
        assert!(
            String::from_utf8_lossy(&out.stdout).contains(words),
            "{other}: {out:?}"
        );
        if !matches!((other, options), ("full.raw", ["--strict"])) {
            // The same by qemu-img: 0 identical, 1 different, more for errors.
            let theirs = tool("qemu-img")
                .current_dir(dir)
                .arg("compare")
                .args(if options.is_empty() { &[][..] } else { &["-s"] })
                .args(["disk.raw", other])
                .output()
                .unwrap();
            let same = [(0, 0), (4, 1), (1, 2)].contains(&(status, theirs.status.code().unwrap()));
            assert!(same, "{other}: {theirs:?}");
        }
    }
    let out = guestlens()
        .current_dir(dir)
        .args(["compare", "--json", "disk.raw", "b.raw"])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&report["identical"], &report["offset"]),
        (&false.into(), &12345678.into())
    );
}
