//! `guestlens rebase` and `guestlens commit`: the disk stays what it is, as qemu-img sees it.

mod support;

use std::path::Path;

use support::{guestlens, run, shell, tool, workdir};

fn does(arguments: &[&str], dir: &Path) {
    run(guestlens().current_dir(dir).args(arguments));
}

fn check(dir: &Path, image: &str) {
    run(tool("qemu-img")
        .current_dir(dir)
        .args(["check", "-q", "-f", "qcow2", image]));
}

/// An image on `old`, which differs from `new` in many ways: other data, data against zeroes both
/// ways, other lengths.
fn make(dir: &Path, options: &str) {
    shell(
        dir,
        &format!(
            "qemu-img create -q -f qcow2 old 7M; qemu-img create -q -f qcow2 new 9M
             qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 100k' -c 'write -P 3 5M 1M' old >/dev/null
             qemu-io -f qcow2 -c 'write -P 1 0 500k' -c 'write -P 9 4M 70k' -c 'write -P 3 5M 1500k' -c 'write -P 6 7M 2M' new >/dev/null
             qemu-img create -q -f qcow2 -o {options} -b old -F qcow2 i.qcow2 8M
             qemu-io -f qcow2 -c 'write -P 4 200k 30k' -c 'write -P 5 4100k 10k' -c 'write -z 5200k 200k' i.qcow2 >/dev/null
             qemu-img convert -O raw i.qcow2 want"
        ),
    );
}

const OPTIONS: [&str; 5] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "extended_l2=on",
    "cluster_size=1M,compression_type=zstd",
];

#[test]
fn rebasing_keeps_the_disk() {
    for options in OPTIONS {
        let dir = workdir();
        let dir = dir.path();
        make(dir, options);
        does(
            &[
                "rebase",
                "i.qcow2",
                "--backing",
                "new",
                "--backing-format",
                "qcow2",
            ],
            dir,
        );
        check(dir, "i.qcow2");
        let info = shell(dir, "qemu-img info i.qcow2");
        assert!(info.contains("backing file: new"), "{info}");
        assert!(info.contains("backing file format: qcow2"), "{info}");
        shell(dir, "qemu-img compare -q -F raw i.qcow2 want");
        // Moved and renamed.
        shell(dir, "mkdir deep; mv new deep/newer");
        does(
            &[
                "rebase",
                "--unsafe",
                "i.qcow2",
                "--backing",
                "deep/newer",
                "--backing-format",
                "qcow2",
            ],
            dir,
        );
        shell(dir, "qemu-img compare -q -F raw i.qcow2 want");
        does(&["rebase", "i.qcow2", "--no-backing"], dir);
        check(dir, "i.qcow2");
        let info = shell(dir, "rm -r deep old; qemu-img info i.qcow2");
        assert!(!info.contains("backing"), "{info}");
        shell(dir, "qemu-img compare -q -F raw i.qcow2 want");
    }
}

#[test]
fn names_of_any_length_find_room() {
    let dir = workdir();
    let dir = dir.path();
    for (n, options) in [
        "cluster_size=64k",
        "cluster_size=4k",
        "compat=0.10",
        "cluster_size=512",
    ]
    .into_iter()
    .enumerate()
    {
        shell(
            dir,
            &format!(
                "qemu-img create -q -f qcow2 -o {options} n{n}.qcow2 8M
                 qemu-io -f qcow2 -c 'write -P 4 200k 30k' n{n}.qcow2 >/dev/null
                 qemu-img convert -O raw n{n}.qcow2 want{n}"
            ),
        );
        for len in [1, 200, 300, 900, 5, 1023] {
            // Directories, because a name has at most 255 bytes.
            let name = format!("{}/b", "./".repeat(len / 2));
            let name = &name[name.len().saturating_sub(len)..];
            let image = format!("n{n}.qcow2");
            let output = guestlens()
                .current_dir(dir)
                .args(["rebase", "--unsafe", &image, "--backing", name])
                .args(["--backing-format", "raw"])
                .output()
                .unwrap();
            if options == "cluster_size=512" && len > 300 {
                assert_eq!(output.status.code(), Some(1), "{len}");
                continue;
            }
            assert!(output.status.success(), "{options} {len}: {output:?}");
            let info = shell(dir, &format!("qemu-img info --output=json -U {image}"));
            assert!(
                info.contains(&format!("\"backing-filename\": \"{name}\"")),
                "{info}"
            );
            assert!(
                info.contains("\"backing-filename-format\": \"raw\""),
                "{info}"
            );
        }
        does(
            &["rebase", "--unsafe", &format!("n{n}.qcow2"), "--no-backing"],
            dir,
        );
        check(dir, &format!("n{n}.qcow2"));
        shell(
            dir,
            &format!("qemu-img compare -q -F raw n{n}.qcow2 want{n}"),
        );
    }
}

#[test]
fn committing_moves_the_disk_down() {
    for (options, format, keep) in [
        ("compat=1.1", "qcow2", false),
        ("compat=0.10", "qcow2", true),
        ("cluster_size=512", "raw", false),
        ("extended_l2=on", "raw", true),
        ("cluster_size=1M,compression_type=zstd", "qcow2", false),
    ] {
        let dir = workdir();
        let dir = dir.path();
        make(dir, options);
        if format == "raw" {
            shell(
                dir,
                "qemu-img convert -O raw old old.raw; mv old.raw old; qemu-img rebase -u -F raw -b old i.qcow2",
            );
        }
        let mut arguments = vec!["commit", "i.qcow2"];
        if keep {
            arguments.push("--keep");
        }
        does(&arguments, dir);
        check(dir, "i.qcow2");
        if format == "qcow2" {
            check(dir, "old");
        }
        shell(
            dir,
            &format!(
                "qemu-img compare -q -F raw i.qcow2 want
                 qemu-img compare -q -f {format} -F raw old want"
            ),
        );
        let map = shell(dir, "qemu-img map --output=json i.qcow2");
        assert_eq!(map.contains("\"depth\": 0,"), keep, "{options}: {map}");
    }
}

#[test]
fn a_chain_is_committed_into_its_base() {
    for (base, keep) in [("qcow2", false), ("raw", false), ("qcow2", true)] {
        let dir = workdir();
        let dir = dir.path();
        // The image in the middle is shorter than what lies below it.
        shell(
            dir,
            &format!(
                "qemu-img create -q -f {base} base 7M
                 qemu-io -f {base} -c 'write -P 1 0 6M' -c 'write -P 7 6M 1M' base >/dev/null
                 qemu-img create -q -f qcow2 -b base -F {base} a.qcow2
                 qemu-io -f qcow2 -c 'write -P 2 1M 2M' a.qcow2 >/dev/null
                 qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 5M
                 qemu-io -f qcow2 -c 'write -P 3 2M 2M' -c 'write -z 100k 200k' b.qcow2 >/dev/null
                 qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2 9M
                 qemu-io -f qcow2 -c 'write -P 4 3M 70k' -c 'write -P 5 8M 1k' c.qcow2 >/dev/null
                 qemu-img convert -O raw c.qcow2 want; qemu-img create -q -f qcow2 other 1M"
            ),
        );
        let output = guestlens()
            .current_dir(dir)
            .args(["commit", "c.qcow2", "--base", "other"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("backing chain"), "{stderr}");
        let mut arguments = vec!["commit", "c.qcow2", "--base", "base"];
        if keep {
            arguments.push("--keep");
        }
        does(&arguments, dir);
        check(dir, "c.qcow2");
        shell(
            dir,
            &format!(
                "qemu-img compare -q -F raw c.qcow2 want
                 qemu-img compare -q -f {base} -F raw base want"
            ),
        );
        if base == "qcow2" {
            check(dir, "base");
        }
        let info = shell(dir, "qemu-img info c.qcow2");
        let backing = if keep { "b.qcow2" } else { "base" };
        assert!(info.contains(&format!("backing file: {backing}")), "{info}");
        let map = shell(dir, "qemu-img map --output=json c.qcow2");
        assert_eq!(map.contains("\"depth\": 0,"), keep, "{map}");
    }
}

#[test]
fn what_is_in_use_or_not_allowed_is_refused() {
    let dir = workdir();
    let dir = dir.path();
    make(dir, "compat=1.1");
    let fails = |arguments: &[&str], text: &str| {
        let output = guestlens()
            .current_dir(dir)
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    };
    fails(
        &[
            "rebase",
            "i.qcow2",
            "--backing",
            "i.qcow2",
            "--backing-format",
            "qcow2",
        ],
        "own backing",
    );
    fails(
        &[
            "rebase",
            "i.qcow2",
            "--backing",
            "none",
            "--backing-format",
            "qcow2",
        ],
        "none",
    );
    fails(&["commit", "old"], "no backing file");
    {
        let _reader = support::qemu_io::QemuIo::open(&dir.join("old"), &["-r"]);
        fails(&["commit", "i.qcow2"], "in use");
    }
    // A backing file outside of the image's directory is not written to unless that is allowed.
    let elsewhere = workdir();
    std::fs::copy(dir.join("old"), elsewhere.path().join("old")).unwrap();
    let place = elsewhere.path().join("old");
    let place = place.to_str().unwrap();
    does(
        &[
            "rebase",
            "--unsafe",
            "i.qcow2",
            "--backing",
            place,
            "--backing-format",
            "qcow2",
        ],
        dir,
    );
    fails(&["commit", "i.qcow2"], "--allow-backing");
    does(
        &[
            "commit",
            "i.qcow2",
            "--allow-backing",
            elsewhere.path().to_str().unwrap(),
        ],
        dir,
    );
    shell(dir, "qemu-img compare -q -F raw i.qcow2 want");
}

/// What lies below begins and ends where no cluster of the image does: pieces of 4 KiB in sparse
/// raw files, clusters of other sizes, ends in the middle of a cluster.
#[test]
fn backing_files_that_fit_no_cluster() {
    for (options, backings) in [
        ("cluster_size=64K", "raw"),
        ("cluster_size=2M", "raw"),
        ("cluster_size=64K", "qcow2"),
        ("cluster_size=2M", "qcow2"),
        ("compat=0.10", "raw"),
        ("cluster_size=512", "raw"),
        ("cluster_size=512K,extended_l2=on", "raw"),
    ] {
        let dir = workdir();
        let dir = dir.path();
        let make = match backings {
            "raw" => {
                "truncate -s 3145984 old; truncate -s 5M new
                 for o in 0 8 16 100 1000 1028 2000 3000; do
                     printf OLD | dd of=old bs=1k seek=$o conv=notrunc status=none
                 done
                 for o in 4 8 1024 2004 3004 4096; do
                     printf NEW | dd of=new bs=1k seek=$o conv=notrunc status=none
                 done"
            }
            _ => {
                "qemu-img create -q -f qcow2 -o cluster_size=4K old 3145728
                 qemu-img create -q -f qcow2 -o cluster_size=512 new 5M
                 qemu-io -f qcow2 -c 'write -P 1 0 4k' -c 'write -P 1 12k 4k' -c 'write -P 1 1M 1028k' old >/dev/null
                 qemu-io -f qcow2 -c 'write -P 2 512 512' -c 'write -P 2 13k 1k' -c 'write -P 2 4M 1k' new >/dev/null"
            }
        };
        shell(
            dir,
            &format!(
                "{make}
                 qemu-img create -q -f qcow2 -o {options} -b old -F {backings} i.qcow2 4M
                 qemu-io -f qcow2 -c 'write -P 4 200k 30k' -c 'write -z 2100k 4k' i.qcow2 >/dev/null
                 qemu-img convert -O raw i.qcow2 want; cp i.qcow2 j.qcow2"
            ),
        );
        let onto = ["--backing", "new", "--backing-format", backings];
        does(&[&["rebase", "i.qcow2"], &onto[..]].concat(), dir);
        does(&["rebase", "j.qcow2", "--no-backing"], dir);
        for image in ["i.qcow2", "j.qcow2"] {
            check(dir, image);
            run(tool("qemu-img")
                .current_dir(dir)
                .args(["compare", "-q", "-f", "qcow2", "-F", "raw", image, "want"]));
        }
    }
}

#[test]
fn snapshots_are_not_changed_by_what_is_below() {
    let dir = workdir();
    let dir = dir.path();
    make(dir, "compat=1.1");
    shell(
        dir,
        "qemu-img snapshot -c s i.qcow2; sha256sum i.qcow2 old > before",
    );
    for arguments in [
        &["rebase", "i.qcow2", "--no-backing"][..],
        &["commit", "i.qcow2"],
        &["commit", "--keep", "i.qcow2"],
    ] {
        let output = guestlens()
            .current_dir(dir)
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("internal snapshots"), "{text}");
    }
    shell(dir, "sha256sum -c --quiet before");
}
