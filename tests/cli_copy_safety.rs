//! `cp`: a faithful copy of a tame tree, and a hostile tree that stays inside the destination.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::ext::{copy_rich, fill, mke2fs, rich_tree};
use support::mount::{guestlens_as_nobody, shell_as_nobody};
use support::walk::{Ignore, Tree, assert_equal, walk_host};
use support::{KernelMount, guestlens, is_root, run, shell, skip, tool, workdir};

const COPY: Ignore = Ignore {
    xattrs: false,
    atime: false,
    ctime: true,
    holes: false,
    blocks: true,
    directory_sizes: true,
    directory_mtimes: false,
    inode_numbers: true,
};

/// Exit status and what was said.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn cp(image: &Path, arguments: &[&str], to: &Path) -> (Option<i32>, String) {
    outcome(guestlens().arg("cp").arg(image).args(arguments).arg(to))
}

/// An image made without root, filled by debugfs; `one` is a file of one line. Without checksums,
/// so that tests can change names in it.
fn image(dir: &Path, commands: &str) -> PathBuf {
    fs::write(dir.join("one"), "one\n").unwrap();
    fs::write(dir.join("commands"), commands).unwrap();
    let image = dir.join("guest.img");
    mke2fs(
        &image,
        "32M",
        "-t ext4 -O ^metadata_csum,^dir_index -N 8000",
    );
    shell(dir, "debugfs -w -f commands guest.img >debugfs.log 2>&1");
    image
}

/// Changes bytes everywhere in an image; returns in how many places.
fn rename(image: &Path, from: &[u8], to: &[u8]) -> usize {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(image).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    for &at in &places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    fs::write(image, bytes).unwrap();
    places.len()
}

/// A directory outside the destination that nothing may touch.
struct Victim {
    path: PathBuf,
    before: Tree,
}

impl Victim {
    fn new(dir: &Path) -> Self {
        let path = dir.join("victim");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "precious").unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        let before = walk_host(&path);
        Self { path, before }
    }

    fn is_whole(&self, what: &str) {
        assert_equal(
            what,
            &self.before,
            &walk_host(&self.path),
            Ignore {
                atime: true,
                ..Ignore::default()
            },
        );
    }
}

#[test]
fn an_archive_copy_is_what_the_kernel_shows() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    for args in ["-t ext4 -b 4096", "-t ext3 -b 1024"] {
        let dir = workdir();
        let rich = rich_tree(dir.path());
        let image = dir.path().join("rich.img");
        mke2fs(&image, "96M", args);
        fill(&image, "", &copy_rich(&rich));
        let to = dir.path().join("copy");
        let done = cp(&image, &["/", "--archive", "--devices"], &to);
        assert_eq!(done, (Some(0), String::new()), "{args}");
        let kernel = KernelMount::new(&image, dir.path(), "noatime");
        let (mut want, mut got) = (walk_host(kernel.path()), walk_host(&to));
        assert!(want.len() > 1500);
        for tree in [&mut want, &mut got] {
            // Link counts of directories are the filesystem's own; reading links changes atimes.
            for record in tree.values_mut() {
                if record.mode & 0o170000 == 0o040000 {
                    record.nlink = 0;
                    record.atime = (0, 0);
                }
                if record.target.is_some() {
                    record.atime = (0, 0);
                }
            }
        }
        let holes = !args.contains("4096");
        assert_equal(args, &want, &got, Ignore { holes, ..COPY });
    }
}

#[test]
fn a_plain_copy_takes_content_and_nothing_that_lends_power() {
    let dir = workdir();
    let image = image(
        dir.path(),
        "mkdir d\ncd d\nwrite one suid\nsif suid mode 0104755\nwrite one odd\nsif odd uid 1234\n\
         sif odd mode 0100600\nsymlink l ../../../etc/passwd\nmknod fifo p\nmkdir sub\nwrite one sub/f\n\
         sif sub mode 040555\n",
    );
    let to = dir.path().join("to");
    let (status, said) = cp(&image, &["-r", "/d"], &to);
    assert_eq!(status, Some(3), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("/d/fifo: ") && said.contains("--devices"),
        "{said}"
    );
    let mode = |path: &str| fs::symlink_metadata(to.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("suid") & 0o6000, 0);
    assert_eq!(mode("odd"), 0o600);
    assert_eq!(mode("sub") & 0o222, 0);
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!(fs::metadata(to.join("odd")).unwrap().uid(), me);
    assert_eq!(
        fs::read_link(to.join("l")).unwrap(),
        Path::new("../../../etc/passwd")
    );
    assert!(!to.join("fifo").exists());
    assert_eq!(fs::read(to.join("sub/f")).unwrap(), b"one\n");
    // A single file, under its name and under another.
    let into = dir.path().join("into");
    fs::create_dir(&into).unwrap();
    assert_eq!(cp(&image, &["/d/odd", "/d/sub/f"], &into).0, Some(0));
    assert_eq!(cp(&image, &["/d/odd"], &into.join("renamed")).0, Some(0));
    for name in ["odd", "f", "renamed"] {
        assert_eq!(fs::read(into.join(name)).unwrap(), b"one\n");
    }
    // Not without -r, not several onto a file, not to nowhere.
    for (arguments, to) in [
        (&["/d"][..], into.join("d")),
        (&["/d/odd", "/d/sub/f"], into.join("odd")),
        (&["/d/odd"], into.join("none/odd")),
        (&["/none"], into.join("none")),
    ] {
        let (status, said) = cp(&image, arguments, &to);
        assert_eq!(status, Some(1), "{arguments:?} {said}");
    }
    assert_eq!(fs::read_dir(&into).unwrap().count(), 3);
    let _ = fs::set_permissions(to.join("sub"), fs::Permissions::from_mode(0o755));
}

#[test]
fn the_same_name_twice() {
    let dir = workdir();
    let victim = Victim::new(dir.path());
    let out = victim.path.display();
    // A link to the victim and a directory of the same name, in both orders; a link and a file.
    let image = image(
        dir.path(),
        &format!(
            "mkdir a\ncd a\nsymlink same-name-1 {out}\nmkdir same-name-2\nwrite one same-name-2/pwned\n\
             write one same-name-2/file\n\
             cd /\nmkdir b\ncd b\nmkdir same-name-1\nwrite one same-name-1/pwned\nsymlink same-name-2 {out}\n\
             cd /\nmkdir c\ncd c\nsymlink same-name-1 {out}/file\nwrite one same-name-2\n"
        ),
    );
    assert_eq!(rename(&image, b"same-name-2", b"same-name-1"), 3);
    for options in [
        &["-r"][..],
        &["-r", "-f"],
        &["--archive"],
        &["--archive", "-f"],
    ] {
        let to = dir.path().join("to");
        let arguments = [options, &["/a", "/b", "/c"]].concat();
        fs::create_dir(&to).unwrap();
        let (status, said) = cp(&image, &arguments, &to);
        victim.is_whole(&format!("{options:?}"));
        // The second of two names cannot be kept unless it may replace the first.
        assert!(
            matches!(status, Some(0 | 3)),
            "{options:?} {status:?} {said}"
        );
        if !options.contains(&"-f") {
            assert_eq!(status, Some(3), "{options:?} {said}");
            assert_eq!(said.lines().count(), 3, "{options:?} {said}");
            assert_eq!(
                fs::read_link(to.join("a/same-name-1")).unwrap(),
                victim.path
            );
            assert_eq!(fs::read(to.join("b/same-name-1/pwned")).unwrap(), b"one\n");
        }
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn names_that_are_paths() {
    let dir = workdir();
    let victim = Victim::new(dir.path());
    let image = image(
        dir.path(),
        "mkdir d\nmkdir d/QQ\nwrite one d/QQ/pwned\nwrite one d/aaaaaavictimapwned\nwrite one d/tame\n",
    );
    let path = b"../../victim/pwned";
    assert_eq!(rename(&image, b"aaaaaavictimapwned", path), 1);
    assert_eq!(rename(&image, b"\x02\x02QQ", b"\x02\x02.."), 1);
    let to = dir.path().join("to/below");
    fs::create_dir_all(&to).unwrap();
    for options in [&["-r"][..], &["--archive", "-f"]] {
        let (status, said) = cp(&image, &[options, &["/d"]].concat(), &to);
        assert!(matches!(status, Some(0 | 3)), "{status:?} {said}");
        victim.is_whole("names that are paths");
        assert!(to.join("d/tame").exists());
        assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
    }
    // The user may not leave by accident either.
    let (status, said) = cp(&image, &["-r", "/d/.."], &to);
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
}

#[test]
fn directories_that_go_in_circles() {
    let dir = workdir();
    // `b` contains its parent; `c` and `d` are the same directory.
    let image = image(
        dir.path(),
        "mkdir a\nmkdir a/b\nwrite one a/b/f\nlink a a/b/up\nmkdir c\nlink c d\nwrite one c/f\n",
    );
    let to = dir.path().join("to");
    let (status, said) = cp(&image, &["-r", "/"], &to);
    assert_eq!(status, Some(3), "{said}");
    assert!(
        said.contains("/a/b/up: a directory that contains itself"),
        "{said}"
    );
    assert!(
        said.contains("/d: a directory that is in two places"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(fs::read(to.join("a/b/f")).unwrap(), b"one\n");
    assert_eq!(fs::read(to.join("c/f")).unwrap(), b"one\n");
}

#[test]
fn deep_trees() {
    let dir = workdir();
    let deep = dir.path().join("deep");
    // Paths longer than the host's PATH_MAX, then directories beyond our own limit.
    for (levels, name, complete) in [(30, "n".repeat(200), true), (4150, "d".into(), false)] {
        let commands = format!("mkdir {name}\ncd {name}\n").repeat(levels);
        let image = image(dir.path(), &format!("{commands}write one bottom\n"));
        let (status, said) = cp(&image, &["--archive", "/"], &deep);
        if complete {
            assert_eq!((status, said.as_str()), (Some(0), ""));
        } else {
            assert_eq!(status, Some(3));
            assert!(said.contains("nested too deep"), "{said}");
        }
        let found = shell(
            dir.path(),
            "find deep -type d | wc -l; find deep -name bottom | wc -l",
        );
        let mut found = found.lines().map(|n| n.parse::<usize>().unwrap());
        let directories = found.next().unwrap();
        if complete {
            // With the top and lost+found.
            assert_eq!(directories, levels + 2);
        } else {
            assert!((4090..4110).contains(&directories), "{directories}");
        }
        assert_eq!(found.next(), Some(usize::from(complete)));
        shell(dir.path(), "rm -rf deep");
    }
}

#[test]
fn what_is_at_the_destination() {
    let dir = workdir();
    let victim = Victim::new(dir.path());
    let image = image(
        dir.path(),
        "mkdir d\nwrite one d/pwned\nwrite one d/file\nwrite one f\nwrite one g\n",
    );
    let to = dir.path().join("to");
    let fresh = || {
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).unwrap();
        symlink(&victim.path, to.join("d")).unwrap();
        symlink(victim.path.join("file"), to.join("f")).unwrap();
        fs::write(to.join("g"), "mine").unwrap();
    };
    fresh();
    let (status, said) = cp(&image, &["-r", "/d", "/f", "/g"], &to);
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(said.matches("-f replaces").count(), 3, "{said}");
    victim.is_whole("links in the way");
    assert_eq!(fs::read(to.join("g")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 3);

    let (status, said) = cp(&image, &["-r", "-f", "/d", "/f", "/g"], &to);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    victim.is_whole("links replaced");
    for name in ["d", "f", "g"] {
        assert!(!fs::symlink_metadata(to.join(name)).unwrap().is_symlink());
    }
    assert_eq!(fs::read(to.join("d/pwned")).unwrap(), b"one\n");

    // The destination itself is a link to a file: replaced, not followed; a directory never is.
    fresh();
    assert_eq!(cp(&image, &["/f"], &to.join("f")).0, Some(1));
    assert_eq!(cp(&image, &["-f", "/f"], &to.join("f")).0, Some(0));
    assert!(!fs::symlink_metadata(to.join("f")).unwrap().is_symlink());
    fs::create_dir(to.join("x")).unwrap();
    fs::create_dir(to.join("x/f")).unwrap();
    let (status, said) = cp(&image, &["-f", "/f"], &to.join("x"));
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(fs::read_dir(to.join("x")).unwrap().count(), 1);
    victim.is_whole("the destination itself");
}

#[test]
fn a_full_disk() {
    if !is_root() {
        skip!("a small filesystem of its own needs root");
    }
    let dir = workdir();
    shell(dir.path(), "head -c 8M /dev/urandom > big");
    let image = image(
        dir.path(),
        "write big big\nmkdir d\nwrite one d/a\nwrite big d/b\nwrite one d/c\n",
    );
    let to = dir.path().join("small");
    fs::create_dir(&to).unwrap();
    run(tool("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&to));
    let single = cp(&image, &["/big"], &to);
    let after_single = fs::read_dir(&to).unwrap().count();
    let tree = cp(&image, &["-r", "/d"], &to);
    let left = shell(&to, "find . -printf '%P\\n' | sort");
    run(tool("umount").arg(&to));
    assert_eq!(single.0, Some(1), "{}", single.1);
    assert!(single.1.contains("No space left"), "{}", single.1);
    assert_eq!(single.1.lines().count(), 1, "{}", single.1);
    assert_eq!(after_single, 0);
    assert_eq!(tree.0, Some(3), "{}", tree.1);
    assert_eq!(tree.1.lines().count(), 1, "{}", tree.1);
    assert_eq!(left, "\nd\nd/a\n");
}

/// No root, no other program, no environment.
#[test]
fn as_nobody_with_nothing() {
    let dir = workdir();
    image(
        dir.path(),
        "mkdir d\nwrite one d/f\nlink d/f d/g\nsif d/f links_count 2\nsif d/f mode 0106755\nsif d/f uid 0\nmkdir d/e\nsif d/e mode 040000\n",
    );
    shell(
        dir.path(),
        "mkdir open closed; chmod 1777 open; chmod 0555 closed; chmod 755 .; chmod 644 guest.img",
    );
    let nobody = |arguments: &[&str]| {
        let mut command = guestlens_as_nobody(dir.path());
        command.env_clear().env("PATH", "/nonexistent");
        outcome(command.current_dir(dir.path()).args(arguments))
    };
    let (status, said) = nobody(&["cp", "guest.img", "/d/f", "closed/f"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let (status, said) = nobody(&["cp", "guest.img", "--archive", "--devices", "/d", "open"]);
    if is_root() {
        assert_eq!(status, Some(2), "{said}");
    }
    let done = nobody(&["cp", "guest.img", "--archive", "/d", "open"]);
    assert_eq!(done, (Some(0), String::new()));
    let file = fs::metadata(dir.path().join("open/d/f")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.nlink()), (0o755, 2));
    assert_ne!(file.uid(), 0);
    for verb in [
        &["cat", "guest.img", "/d/f"][..],
        &["tar-out", "guest.img", "/d"],
        &["ls", "-l", "guest.img", "/d"],
        &["find", "guest.img"],
        &["stat", "guest.img", "/d/f"],
        &["info", "guest.img"],
        &["filesystems", "guest.img"],
        &["df", "guest.img"],
        &["map", "guest.img"],
        &["capabilities"],
    ] {
        let (status, said) = nobody(verb);
        assert_eq!((status, said.as_str()), (Some(0), ""), "{verb:?}");
    }
    let owner = dir.path().join("open/d");
    shell_as_nobody(&format!(
        "chmod -R u+rwx '{0}'; rm -rf '{0}'",
        owner.display()
    ));
}

/// The host's kernel is asked to mount nothing, and no other program is run.
#[test]
fn no_mount_no_loop_device_no_program() {
    let there = Command::new("strace").arg("-V").output();
    if !there.is_ok_and(|output| output.status.success()) {
        skip!("strace is not installed");
    }
    let dir = workdir();
    image(dir.path(), "mkdir d\nwrite one d/f\nsymlink d/l f\n");
    let program = guestlens().get_program().to_owned();
    for (n, verb) in [
        &["cp", "-r", "guest.img", "/d", "to"][..],
        &["tar-out", "guest.img", "-o", "d.tar"],
        &["cat", "guest.img", "/d/f"],
        &["filesystems", "guest.img"],
    ]
    .into_iter()
    .enumerate()
    {
        let log = dir.path().join(format!("log-{n}"));
        run(tool("strace")
            .current_dir(dir.path())
            .args([
                "-f",
                "-qq",
                "-e",
                "trace=mount,fsopen,fsmount,move_mount,open_tree,execve,openat,open",
                "-o",
            ])
            .arg(&log)
            .arg(&program)
            .args(verb));
        let log = fs::read_to_string(&log).unwrap();
        let calls = |name: &str| log.matches(name).count();
        assert_eq!(calls("execve("), 1, "{log}");
        assert!(log.contains("guest.img\""), "{log}");
        for never in [
            "mount(",
            "fsopen(",
            "open_tree(",
            "/dev/loop",
            "/dev/nbd",
            "/dev/fuse",
        ] {
            assert_eq!(calls(never), 0, "{never} in {log}");
        }
    }
}
