//! New, empty images: what `create` makes is accepted by qemu-img, reads as zeroes (or as its
//! backing file), has the options that were asked for, and is never made over something else.

mod support;

use std::path::Path;
use std::process::Command;

use support::{guestlens, is_root, run, shell, skip, tool, workdir};

fn create(dir: &Path, args: &[&str]) -> Command {
    let mut command = guestlens();
    command.current_dir(dir).arg("create").args(args);
    command
}

fn refused(command: &mut Command, status: i32, words: &str) {
    let out = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{command:?}: {stderr}");
    assert!(stderr.contains(words), "{command:?}: {stderr}");
}

fn info(dir: &Path, image: &str) -> serde_json::Value {
    let out = run(tool("qemu-img")
        .current_dir(dir)
        .args(["info", "--output=json", image]));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn qcow2_of_every_kind() {
    let dir = workdir();
    let dir = dir.path();
    let zero = dir.join("zero.raw");
    std::fs::File::create(&zero)
        .unwrap()
        .set_len(65 << 20)
        .unwrap();
    let kinds: &[&[&str]] = &[
        &[],
        &["--cluster-size", "512"],
        &["--cluster-size", "2M"],
        &["--cluster-size", "4K", "--refcount-bits", "1"],
        &["--refcount-bits", "64"],
        &["--compat", "0.10"],
        &["--extended-l2", "--compression", "zstd"],
        &["--preallocation", "metadata"],
        &[
            "--preallocation",
            "metadata",
            "--cluster-size",
            "512",
            "--refcount-bits",
            "1",
        ],
        &["--preallocation", "metadata", "--extended-l2"],
        &["--preallocation", "falloc"],
        &["--preallocation", "full", "--compat", "0.10"],
    ];
    for kind in kinds {
        let args = [&["a.qcow2", "65M", "--format", "qcow2", "--force"], *kind].concat();
        run(&mut create(dir, &args));
        run(tool("qemu-img").current_dir(dir).args(["check", "a.qcow2"]));
        shell(dir, "qemu-img compare -f qcow2 -F raw a.qcow2 zero.raw");
        let info = info(dir, "a.qcow2");
        let specific = &info["format-specific"]["data"];
        let value = |name: &str| kind.iter().position(|a| *a == name).map(|n| kind[n + 1]);
        let cluster = match value("--cluster-size") {
            Some("512") => 512,
            Some("4K") => 4096,
            Some("2M") => 2 << 20,
            _ => 65536,
        };
        assert_eq!(info["virtual-size"], 65 << 20);
        assert_eq!(info["cluster-size"], cluster, "{kind:?}");
        let bits: u64 = value("--refcount-bits").map_or(16, |b| b.parse().unwrap());
        assert_eq!(specific["refcount-bits"], bits, "{kind:?}");
        assert_eq!(specific["compat"], value("--compat").unwrap_or("1.1"));
        let compression = value("--compression").unwrap_or("zlib");
        assert_eq!(specific["compression-type"], compression);
        if specific["compat"] == "1.1" {
            let extended = kind.contains(&"--extended-l2");
            assert_eq!(specific["extended-l2"], extended, "{kind:?}");
        }
        let used = info["actual-size"].as_u64().unwrap();
        match value("--preallocation") {
            Some("falloc" | "full") => assert!(used >= 65 << 20, "{kind:?}: {used}"),
            _ => assert!(used < 2 << 20, "{kind:?}: {used}"),
        }
        if value("--preallocation").is_some() {
            let map =
                run(tool("qemu-img")
                    .current_dir(dir)
                    .args(["map", "--output=json", "a.qcow2"]));
            let map = String::from_utf8(map.stdout).unwrap();
            assert!(!map.contains("\"present\": false"), "{kind:?}: {map}");
        }
        // QEMU can go on with it: write everywhere, and it stays whole.
        shell(
            dir,
            "qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 40M 3M' a.qcow2 >/dev/null
             qemu-img check -q a.qcow2",
        );
    }
}

#[test]
fn tables_that_need_several_refcount_blocks() {
    let dir = workdir();
    let dir = dir.path();
    // 512-byte clusters: a refcount block counts 256 of them, an L2 table covers 32 KiB.
    let args = [
        "a.qcow2",
        "100M",
        "--format",
        "qcow2",
        "--cluster-size",
        "512",
    ];
    run(create(dir, &args).args(["--preallocation", "metadata"]));
    run(tool("qemu-img").current_dir(dir).args(["check", "a.qcow2"]));
    // The largest disks there are.
    run(&mut create(dir, &["b.qcow2", "1T", "--format", "qcow2"]));
    run(tool("qemu-img").current_dir(dir).args(["check", "b.qcow2"]));
    run(create(dir, &["c.qcow2", "4P", "--format", "qcow2"]).args(["--cluster-size", "2M"]));
    run(tool("qemu-img").current_dir(dir).args(["check", "c.qcow2"]));
    run(create(dir, &["d.qcow2", "0", "--format", "qcow2"]).args(["--cluster-size", "512"]));
    run(tool("qemu-img").current_dir(dir).args(["check", "d.qcow2"]));
    refused(
        create(dir, &["e.qcow2", "1T", "--format", "qcow2"]).args(["--cluster-size", "512"]),
        1,
        "too large for clusters of 512 bytes",
    );
    assert!(!dir.join("e.qcow2").exists());
}

#[test]
fn raw_disks() {
    let dir = workdir();
    let dir = dir.path();
    run(&mut create(dir, &["a.raw", "10M", "--format", "raw"]));
    run(&mut create(
        dir,
        &[
            "b.raw",
            "1000",
            "--format",
            "raw",
            "--preallocation",
            "full",
        ],
    ));
    run(&mut create(
        dir,
        &[
            "c.raw",
            "3M",
            "--format",
            "raw",
            "--preallocation",
            "falloc",
        ],
    ));
    let sizes = shell(
        dir,
        "stat -c '%s %a' a.raw b.raw c.raw; cmp a.raw /dev/zero 2>&1 | head -1 || true; du -k c.raw | cut -f1",
    );
    assert!(
        sizes.starts_with("10485760 644\n1024 644\n3145728 644\n"),
        "{sizes}"
    );
    assert!(
        sizes.contains("EOF on a.raw") && sizes.trim().ends_with("3072"),
        "{sizes}"
    );
    refused(
        &mut create(
            dir,
            &["d.raw", "1M", "--format", "raw", "--cluster-size", "64K"],
        ),
        2,
        "--cluster-size is for qcow2 only",
    );
}

#[test]
fn on_a_backing_file() {
    let dir = workdir();
    let dir = dir.path();
    shell(
        dir,
        "mkdir sub
         qemu-img create -q -f raw base.raw 10M
         qemu-io -f raw -c 'write -P 7 1M 5M' base.raw >/dev/null
         qemu-img convert -O qcow2 base.raw base.qcow2",
    );
    for (name, format, kind) in [
        ("../base.raw", "raw", &[][..]),
        ("../base.qcow2", "qcow2", &["--extended-l2"][..]),
        ("../base.qcow2", "qcow2", &["--compat", "0.10"][..]),
    ] {
        // The size is that of the backing file; the name is relative to the new image.
        let args = [
            "sub/o.qcow2",
            "--format",
            "qcow2",
            "--force",
            "--backing",
            name,
        ];
        run(create(dir, &args)
            .args(["--backing-format", format])
            .args(kind));
        shell(
            dir,
            "qemu-img check -q sub/o.qcow2; qemu-img compare base.raw sub/o.qcow2",
        );
        let info = info(dir, "sub/o.qcow2");
        assert_eq!(info["backing-filename"], name);
        assert_eq!(info["backing-filename-format"], format);
    }
    let base = ["n.qcow2", "--format", "qcow2", "--backing"];
    refused(create(dir, &base).arg("base.qcow2"), 2, "--backing-format");
    let with = |name: &str, format: &str| {
        let mut command = create(dir, &base);
        command.args([name, "--backing-format", format]);
        command
    };
    refused(&mut with("missing", "raw"), 1, "cannot open missing");
    refused(&mut with("base.raw", "qcow2"), 1, "magic number");
    refused(&mut with("json:{}", "raw"), 2, "colon");
    refused(
        with("base.raw", "raw").args(["--preallocation", "full"]),
        1,
        "would hide the backing file",
    );
    refused(
        with(&"x/".repeat(600), "raw").arg("--force"),
        1,
        "cannot open",
    );
    assert!(!dir.join("n.qcow2").exists());
}

#[test]
fn options_that_do_not_go_together() {
    let dir = workdir();
    for (size, options, words) in [
        ("1M", "--compat 0.10 --compression zstd", "zstd needs"),
        ("1M", "--compat 0.10 --refcount-bits 1", "--compat 1.1"),
        ("1M", "--compat 0.10 --extended-l2", "--compat 1.1"),
        ("1M", "--extended-l2 --cluster-size 8K", "at least 16K"),
        ("9223372036854775807", "", "the size is too large"),
    ] {
        let options: Vec<&str> = options.split_whitespace().collect();
        refused(
            create(dir.path(), &["x", size, "--format", "qcow2"]).args(options),
            2,
            words,
        );
        assert!(!dir.path().join("x").exists());
    }
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let dir = workdir();
    let dir = dir.path();
    std::fs::write(dir.join("precious"), "data").unwrap();
    let again = ["precious", "1M", "--format", "qcow2"];
    refused(&mut create(dir, &again), 1, "precious exists");
    assert_eq!(std::fs::read(dir.join("precious")).unwrap(), b"data");
    shell(
        dir,
        "chmod 600 precious; ln -s precious link; mkfifo fifo; mkdir dir",
    );
    // Replaced through a link: the file is, with its mode, and not the link.
    run(create(dir, &["link", "1M", "--format", "qcow2"]).arg("--force"));
    assert_eq!(
        shell(dir, "stat -c '%F %a' link precious").trim(),
        "symbolic link 777\nregular file 600"
    );
    for name in ["fifo", "dir"] {
        refused(
            create(dir, &[name, "1M", "--format", "raw"]).arg("--force"),
            1,
            "neither",
        );
    }
    // An image that somebody uses is not replaced either.
    shell(dir, "qemu-img create -q -f qcow2 busy 1M");
    let _user = support::qemu_io::QemuIo::open(&dir.join("busy"), &[]);
    refused(
        create(dir, &["busy", "1M", "--format", "qcow2"]).arg("--force"),
        1,
        "in use",
    );
    // Nothing is left of what failed.
    assert_eq!(shell(dir, "ls -A"), "busy\ndir\nfifo\nlink\nprecious\n");
}

#[test]
fn on_a_full_disk_and_on_a_block_device() {
    if !is_root() {
        skip!("only root can mount a small tmpfs and make loop devices");
    }
    let dir = workdir();
    let dir = dir.path();
    shell(dir, "mkdir small; mount -t tmpfs -o size=4M tmpfs small");
    let full = create(
        dir,
        &[
            "small/a",
            "64M",
            "--format",
            "qcow2",
            "--preallocation",
            "full",
        ],
    )
    .output()
    .unwrap();
    let left = shell(
        dir,
        "ls -A small; df --output=used small | tail -1; umount small",
    );
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"));
    assert_eq!(left.trim(), "0");
    let device = shell(
        dir,
        "head -c 20M /dev/zero | tr '\\0' x >disk; losetup -f --show disk",
    );
    let device = device.trim();
    let not_empty = create(dir, &[device, "64M", "--format", "qcow2"])
        .output()
        .unwrap();
    let made = create(dir, &[device, "64M", "--format", "qcow2", "--force"])
        .output()
        .unwrap();
    let checked = tool("qemu-img")
        .args(["check", "-f", "qcow2", device])
        .output()
        .unwrap();
    let raw = create(dir, &[device, "10M", "--format", "raw", "--force"])
        .output()
        .unwrap();
    let large = create(dir, &[device, "21M", "--format", "raw", "--force"])
        .output()
        .unwrap();
    run(tool("losetup").args(["-d", device]));
    assert_eq!(not_empty.status.code(), Some(1), "{not_empty:?}");
    assert!(String::from_utf8_lossy(&not_empty.stderr).contains("--force overwrites"));
    assert!(made.status.success(), "{made:?}");
    assert!(checked.status.success(), "{checked:?}");
    assert!(raw.status.success(), "{raw:?}");
    assert_eq!(large.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&large.stderr).contains("22020096 are needed"));
    shell(
        dir,
        "cmp -n 10485760 disk /dev/zero; [ \"$(tail -c 1M disk | tr -d x | wc -c)\" = 0 ]",
    );
}
