//! Large directories, many files and large disks through the mount.

mod support;

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use support::ext::{fill, mke2fs};
use support::mount::GuestMount;
use support::walk::host_data_runs;
use support::{is_root, run, shell, skip, tool, workdir};

/// Value of a line of `/proc/PID/status`, in KiB.
fn status(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap()
}

/// 200,000 names in `big`, 20,000 small files in `small`.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("disk");
    mke2fs(&image, "2G", "-t ext4 -N 300000");
    fill(
        &image,
        "",
        "python3 - <<'P'
import os
os.mkdir('big'); os.mkdir('small')
for i in range(200000):
    os.close(os.open('big/a-name-of-some-length-%06d' % i, os.O_CREAT | os.O_WRONLY))
for i in range(20000):
    with open('small/s%05d' % i, 'w') as f: f.write('content of %d\\n' % i)
P",
    );
    image
}

#[test]
fn a_directory_of_200000_names() {
    if !is_root() {
        skip!("the kernel's own mount makes the directory in time, and needs root");
    }
    let dir = workdir();
    let image = image(dir.path());
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let count = |script: &str| {
        let started = Instant::now();
        let printed = shell(&mount.join("volumes/sda"), script);
        (printed.trim().parse::<u64>().unwrap(), started.elapsed())
    };
    let (files, short) = count("find small -type f -printf '%s\\n' | wc -l");
    assert_eq!(files, 20_000);
    let archive = shell(
        &mount.join("volumes/sda"),
        "tar -C small -cf - . | tar -xO | sort | sha256sum; \
         for i in $(seq 0 19999); do echo content of $i; done | sort | sha256sum",
    );
    let sums: Vec<&str> = archive.lines().collect();
    assert_eq!(sums[0], sums[1]);
    let server = mount.server();
    // The whole program is a debug build here; what is its own is what counts.
    let anonymous = status(server, "RssAnon:");
    assert!(anonymous < 32 << 10, "{anonymous} KiB after 20,000 files");
    let (names, listed) = count("ls -f big | sort -u | wc -l");
    assert_eq!(names, 200_002);
    let (found, walked) = count("find big -type f -printf '%s\\n' | wc -l");
    assert_eq!(found, 200_000);
    // Ten times the names; a hundred times the time would be a square.
    let bound = short.max(std::time::Duration::from_millis(200)) * 50;
    assert!(
        listed < bound && walked < bound,
        "{short:?} {listed:?} {walked:?}"
    );
    let anonymous = status(server, "RssAnon:");
    assert!(anonymous < 48 << 10, "{anonymous} KiB after all files");
    // seekdir goes back to where telldir was, and rewinddir to the start, each name once.
    let script = r"
import ctypes, os, sys
c = ctypes.CDLL(None, use_errno=True)
class D(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_uint64), ('off', ctypes.c_int64), ('len', ctypes.c_uint16),
                ('type', ctypes.c_uint8), ('name', ctypes.c_char * 256)]
c.opendir.restype = c.readdir.restype = ctypes.c_void_p
c.telldir.restype = ctypes.c_long
for f, a in ((c.readdir, []), (c.telldir, []), (c.rewinddir, []), (c.seekdir, [ctypes.c_long])):
    f.argtypes = [ctypes.c_void_p] + a
d = c.opendir(sys.argv[1].encode())
def read():
    e = c.readdir(d)
    return ctypes.cast(e, ctypes.POINTER(D)).contents.name if e else None
names, marks = [], {}
while True:
    if len(names) % 9973 == 0: marks[len(names)] = c.telldir(d)
    n = read()
    if n is None: break
    names.append(n)
assert len(names) == len(set(names)) == 200002, len(names)
for at in reversed(sorted(marks)):
    c.seekdir(d, marks[at])
    for n in names[at:at + 300]: assert read() == n, at
c.rewinddir(d)
for n in names[:1000]: assert read() == n
";
    run(tool("python3")
        .args(["-c", script])
        .arg(mount.join("volumes/sda/big")));
    mount.umount();
}

#[test]
fn a_disk_of_one_tebibyte() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 1T disk; mke2fs -q -F -t ext4 -E lazy_itable_init=1,nodiscard disk
         qemu-img create -q -f qcow2 empty 1T",
    );
    let image = dir.path().join("disk");
    let started = Instant::now();
    let mount = GuestMount::new(dir.path(), "m", &[&image, &dir.path().join("empty")], &[]);
    assert!(mount.join("volumes/sda/lost+found").is_dir());
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    for (name, path) in [("sda", &image), ("sdb", &dir.path().join("empty"))] {
        let disk = File::open(mount.join("disks").join(name)).unwrap();
        let metadata = disk.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 40);
        let data = host_data_runs(&disk, 1 << 40);
        if name == "sda" {
            assert_eq!(data, host_data_runs(&File::open(path).unwrap(), 1 << 40));
            assert!(metadata.blocks() < 1 << 30);
        } else {
            assert_eq!((data.len(), metadata.blocks()), (0, 0));
        }
    }
    mount.umount();
}
