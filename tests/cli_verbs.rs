//! Every verb on a whole guest: text, JSON, exit status, and what hostile arguments give.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::{guestlens, shell, skip};

fn run(args: &[&str]) -> Output {
    guestlens().args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(
        out.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args)).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Exit status and the stderr lines.
fn fails(args: &[&str]) -> (i32, Vec<String>) {
    let out = run(args);
    let text = String::from_utf8(out.stderr).unwrap();
    (
        out.status.code().unwrap_or(-1),
        text.lines().map(str::to_owned).collect(),
    )
}

#[test]
fn the_verbs_on_a_whole_guest() {
    let work = support::workdir();
    let image = support::guest::make(work.path());
    let image = image.to_str().unwrap();

    assert_eq!(ok(&["cat", image, "/etc/hostname"]), "lens\n");
    assert_eq!(
        ok(&["cat", image, "home/user/absolute", "/home/user/relative"]),
        "lens\nlens\n"
    );
    assert_eq!(
        ok(&["cat", image, "/srv/data"]),
        "data\n",
        "fstab puts srv in place"
    );
    assert_eq!(ok(&["cat", image, "--volume", "sda3", "/data"]), "data\n");
    assert_eq!(ok(&["cat", "-a", image, "/etc/hostname"]), "lens\n");

    let names = ok(&["ls", image, "/home/user"]);
    assert_eq!(names, "absolute\nhard\nnumbers\nrelative\nsparse\n");
    let long = ok(&["ls", "-l", image, "/home/user"]);
    assert!(long.contains("-rwsr-xr-x"), "{long}");
    assert!(long.contains("absolute -> /etc/hostname"), "{long}");
    let listed = json(&["ls", "--json", image, "/home/user"]);
    assert_eq!(
        listed[0]["entries"].as_array().unwrap().len(),
        5,
        "{listed}"
    );

    let stat = json(&["stat", "--json", image, "/home/user/numbers"]);
    let stat = &stat[0];
    assert_eq!(stat["size"], 108_894, "{stat}");
    assert_eq!(stat["nlink"], 2, "{stat}");
    assert!(ok(&["stat", image, "/home/user/sparse"]).contains("3145728"));

    let found = ok(&["find", image, "/", "--name", "host*"]);
    assert_eq!(found, "/etc/hostname\n/etc/hosts\n");
    let found = ok(&["find", image, "/home", "--type", "l"]);
    assert_eq!(found, "/home/user/absolute\n/home/user/relative\n");
    let raw = run(&["find", "-0", image, "/srv"]);
    assert_eq!(raw.stdout, b"/srv\0/srv/data\0/srv/lost+found\0");

    let info = json(&["info", "--json", image]);
    let disk = &info["disks"][0];
    assert_eq!(disk["chain"][0]["format"], "qcow2");
    assert_eq!(disk["chain"][0]["virtual-size"], 40 << 20);
    assert_eq!(disk["chain"][0]["snapshots"][0]["name"], "before");
    assert_eq!(disk["table"]["kind"], "gpt");
    assert_eq!(disk["table"]["partitions"].as_array().unwrap().len(), 3);
    let text = ok(&["info", image]);
    assert!(
        text.contains("gpt partition table") && text.contains("before"),
        "{text}"
    );

    let filesystems = ok(&["filesystems", image]);
    for want in [
        "sda1",
        "vfat",
        "ABCD-1234",
        "sda2",
        "ext4",
        support::guest::ROOT_UUID,
        "/srv",
    ] {
        assert!(filesystems.contains(want), "{want} in\n{filesystems}");
    }
    assert!(!filesystems.contains('\t'));
    assert_eq!(
        json(&["filesystems", "--json", image])
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(json(&["df", "--json", image]).as_array().unwrap().len(), 2);

    let network = ok(&["network", image]);
    assert!(network.contains("192.0.2.10/24"), "{network}");
    let network = json(&["network", "--json", image]);
    assert_eq!(
        network["network"]["ethernets"]["eth0"]["addresses"][0],
        "192.0.2.10/24"
    );

    // QEMU also looks for holes of the host file inside allocated clusters; a copy without any has
    // only the image's own.
    shell(work.path(), "cp --sparse=never guest.qcow2 full.qcow2");
    let full = work.path().join("full.qcow2");
    let map = json(&["map", "--json", full.to_str().unwrap()]);
    let reference: Value = serde_json::from_str(&shell(
        work.path(),
        "qemu-img map --output=json -f qcow2 full.qcow2",
    ))
    .unwrap();
    assert_eq!(map, reference, "map and qemu-img map");

    let capabilities = json(&["capabilities", "--json"]);
    for (list, name) in [
        ("formats", "qcow2"),
        ("formats", "zst"),
        ("writes", "raw"),
        ("writes", "qcow2"),
        ("converts-to", "vhd-fixed"),
        ("encryption", "qcow2-luks"),
        ("remote", "nbd"),
        ("partition-tables", "gpt"),
        ("network", "ifcfg"),
        ("verbs", "ls"),
    ] {
        let list = capabilities[list].as_array().unwrap();
        assert!(list.iter().any(|v| v == name), "{name} in {list:?}");
    }
    assert_eq!(capabilities["writes"].as_array().unwrap().len(), 2);

    // What is odd inside is told, and stops nothing.
    let problems = run(&["filesystems", image]);
    let told = String::from_utf8_lossy(&problems.stderr).into_owned();
    assert!(
        told.contains("etc/fstab:3") && told.contains("vfat"),
        "{told}"
    );

    // A snapshot is the disk as it was.
    shell(
        work.path(),
        "qemu-io -f qcow2 -c 'write -P 0xAA 29M 8M' guest.qcow2 >/dev/null",
    );
    assert_eq!(
        fails(&["cat", image, "/srv/data"]).0,
        1,
        "srv was overwritten"
    );
    assert_eq!(
        ok(&["cat", image, "--snapshot", "before", "/srv/data"]),
        "data\n"
    );
    assert_eq!(
        ok(&["cat", image, "--snapshot", "1", "/srv/data"]),
        "data\n"
    );
    let (code, lines) = fails(&["cat", image, "--snapshot", "nope", "/etc/motd"]);
    assert_eq!(code, 1);
    assert!(lines.join("\n").contains("nope"), "{lines:?}");
}

#[test]
fn several_images_are_one_guest() {
    let work = support::workdir();
    let dir = work.path();
    shell(
        dir,
        r#"
mkdir -p a/etc a/bin a/data b; printf '/dev/sda / ext4\n/dev/vdb /data ext4\n' > a/etc/fstab; echo two > b/two
mke2fs -q -F -t ext4 -d a one.img 8M; mke2fs -q -F -t ext2 -d b two.img 8M"#,
    );
    let (one, two) = (dir.join("one.img"), dir.join("two.img"));
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    assert_eq!(ok(&["cat", "-a", one, "-a", two, "/data/two"]), "two\n");
    let (code, lines) = fails(&["cat", one, "/data/two"]);
    assert_eq!(code, 1, "{lines:?}");
    // Two roots: neither is chosen silently.
    shell(dir, "cp one.img three.img");
    let three = dir.join("three.img");
    let three = three.to_str().unwrap();
    let (code, lines) = fails(&["cat", "-a", one, "-a", three, "/etc/fstab"]);
    assert_eq!(code, 1);
    let text = lines.join("\n");
    assert!(
        text.contains("sda") && text.contains("sdb") && text.contains("--root"),
        "{text}"
    );
    assert!(ok(&["cat", "-a", one, "-a", three, "--root", "sdb", "/etc/fstab"]).contains("vdb"));
}

#[test]
fn hostile_arguments_give_one_clear_line_and_status_one() {
    let work = support::workdir();
    let dir = work.path();
    shell(
        dir,
        "mkfifo fifo; mkdir dir; : > empty; head -c 100 /dev/urandom > tiny; \
         qemu-img create -q -f qcow2 q.qcow2 10M; head -c 60 q.qcow2 > cut.qcow2; \
         ln -s nowhere dangling; head -c 1000000 /dev/urandom > noise",
    );
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for name in [
        "fifo",
        "dir",
        "cut.qcow2",
        "dangling",
        "missing",
        "/dev/null",
        "/dev/tty",
    ] {
        let image = if name.starts_with('/') {
            name.to_owned()
        } else {
            path(name)
        };
        for verb in ["info", "filesystems", "ls", "cat"] {
            let (code, lines) = fails(
                &[verb, &image, "/x"][..if verb == "info" || verb == "filesystems" {
                    2
                } else {
                    3
                }],
            );
            assert_eq!(code, 1, "{verb} {name}: {lines:?}");
            let errors = lines.iter().filter(|l| !l.starts_with("hint:")).count();
            assert_eq!(errors, 1, "{verb} {name}: {lines:?}");
            assert!(lines[0].starts_with("guestlens: "), "{lines:?}");
        }
    }
    // No files to see is a failure for a verb that wants files, and says what is there.
    for name in ["empty", "tiny", "noise", "q.qcow2"] {
        let (code, lines) = fails(&["ls", &path(name), "/"]);
        assert_eq!(code, 1, "{name}: {lines:?}");
    }
    // Wrong usage is another status.
    assert_eq!(fails(&["ls"]).0, 2);
    assert_eq!(fails(&["ls", "--no-such-flag"]).0, 2);
    assert_eq!(fails(&["no-such-verb"]).0, 2);
    assert_eq!(fails(&["cat", &path("noise")]).0, 2);
    assert_eq!(fails(&["info", "--format", "vmdkk", &path("noise")]).0, 1);
    if support::is_root() {
        // Unreadable for an ordinary user.
        shell(dir, "chmod 600 noise");
        let bin = support::guestlens_path();
        let out = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&bin)
            .args(["info", &path("noise")])
            .output()
            .unwrap();
        if out.status.code() == Some(127) || out.status.code() == Some(126) {
            skip!("the binary cannot be reached by an ordinary user");
        }
        assert_eq!(out.status.code(), Some(1));
    }
}

/// No root, no other program, no environment.
#[test]
fn nothing_else_is_needed() {
    let work = support::workdir();
    let image = support::guest::make(work.path());
    let out = Command::new(support::guestlens_path())
        .env_clear()
        .env("PATH", "/nonexistent")
        .args(["cat", image.to_str().unwrap(), "/etc/hostname"])
        .output()
        .unwrap();
    assert_eq!(out.stdout, b"lens\n");
    assert!(!Path::new("/nonexistent").exists());
}

/// A reader that goes away is not an error.
#[test]
fn a_broken_pipe_is_success() {
    let work = support::workdir();
    let image = support::guest::make(work.path());
    let status = shell(
        work.path(),
        &format!(
            "set +o pipefail; '{0}' find '{1}' / | head -n 1 >/dev/null; echo ${{PIPESTATUS[0]}}; \
             '{0}' cat '{1}' /home/user/numbers | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}",
            support::guestlens_path().display(),
            image.display()
        ),
    );
    assert_eq!(status, "0\n0\n");
}
