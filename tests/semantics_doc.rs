//! What `docs/semantics.md` says, one statement after the other, where no other test does.

mod support;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use support::mount::GuestMount;
use support::{run, shell, tool, workdir};

const TEXT: &str = include_str!("../docs/semantics.md");

#[test]
fn the_tests_it_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named: Vec<&str> = TEXT
        .split('`')
        .filter(|word| word.starts_with("tests/") || word.starts_with("src/"))
        .collect();
    assert!(named.len() >= 5, "{named:?}");
    for name in named {
        assert!(root.join(name).is_file(), "{name}");
    }
}

/// The first column of the table under "The tree".
fn rows() -> BTreeSet<String> {
    let section = TEXT
        .split("## ")
        .find(|s| s.starts_with("The tree"))
        .unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(['/', '`']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn statement_by_statement() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p d/a/x d/b; echo b > d/b/file; ln -s a/../b d/dots; ln -s /b/file d/a/absolute
         ln -s ../../../b d/a/climb; mkfifo d/pipe
         truncate -s 8M disk; mke2fs -q -F -t ext4 -d d disk",
    );
    let mount = GuestMount::new(dir.path(), "m", &[dir.path().join("disk")], &[]);
    // The tree: nothing that is not in the table; `roots/` is for several systems.
    let mut shown: BTreeSet<String> = std::fs::read_dir(mount.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(shown.insert("roots".to_owned()));
    assert_eq!(shown, rows());
    // stat
    let device = std::fs::metadata(mount.path()).unwrap().dev();
    for path in [
        "fs",
        "volumes/sda",
        "volumes/sda/b/file",
        "disks/sda",
        "meta/image",
    ] {
        let metadata = std::fs::metadata(mount.join(path)).unwrap();
        assert_eq!(metadata.dev(), device, "{path}");
        assert!(metadata.created().is_err(), "{path}");
    }
    for path in ["", "volumes", "disks", "snapshots", "meta"] {
        assert_eq!(
            std::fs::metadata(mount.join(path)).unwrap().nlink(),
            1,
            "{path}"
        );
    }
    let disk = std::fs::metadata(mount.join("disks/sda")).unwrap();
    assert_eq!(disk.mode() & 0o7777, 0o400);
    // readlink
    for (link, target) in [
        ("dots", "b"),
        ("a/absolute", "../b/file"),
        ("a/climb", "../b"),
    ] {
        let path = mount.join("volumes/sda").join(link);
        assert_eq!(
            std::fs::read_link(&path).unwrap(),
            Path::new(target),
            "{link}"
        );
        assert!(std::fs::metadata(&path).is_ok(), "{link}");
    }
    // readdir
    let first = run(tool("ls").arg("-f").arg(mount.join("volumes/sda")));
    assert!(first.stdout.starts_with(b".\n..\n"));
    // Pipes open nothing of the guest's; nobody is at the other end.
    let pipe = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(mount.join("volumes/sda/pipe"));
    assert_eq!(pipe.unwrap_err().raw_os_error(), Some(libc::ENXIO));
    // fsync, ioctl
    let file = File::open(mount.join("volumes/sda/b/file")).unwrap();
    file.sync_all().unwrap();
    let blocks = run(tool("python3")
        .args([
            "-c",
            "import fcntl, sys
try: fcntl.ioctl(open(sys.argv[1]), 0x80081272, bytes(8))
except OSError as e: print(e.errno)",
        ])
        .arg(mount.join("volumes/sda/b/file")));
    assert_eq!(
        blocks.stdout,
        format!("{}\n", Errno::ENOTTY as i32).as_bytes()
    );
    drop(file);
    // Source and type.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let at = format!("guestlens {} fuse ro,", mount.path().display());
    assert!(mounts.lines().any(|line| line.starts_with(&at)), "{at}");
    mount.umount();
}
