//! What a mount makes of callers and surroundings that mean it no good.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, Whence, access, lseek};
use support::mount::{GuestMount, guestlens_as_nobody, is_mounted, is_running, shell_as_nobody};
use support::{guestlens, guestlens_path, is_root, run, shell, skip, tool, workdir};

/// Two megabytes in `numbers` with a hole behind; attributes of all kinds on `labelled`.
fn image(dir: &Path) -> PathBuf {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    shell(
        dir,
        "mkdir -p d/sub; seq 1 300000 > d/numbers; truncate -s 4M d/numbers; echo x > d/labelled
         : > d/private; chmod 600 d/private; ln -s numbers d/link
         truncate -s 16M disk; mke2fs -q -F -t ext4 -d d disk; chmod 644 disk
         debugfs -w disk 2>/dev/null >&2 <<'E'
ea_set /labelled user.note plain
ea_set /labelled trusted.note hidden
ea_set /labelled security.selinux system_u:object_r:etc_t:s0
E",
    );
    dir.join("disk")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Each of these is refused with `EROFS`, whichever part of the mount it is about.
const WRITES: &str = r#"
import os, sys
def attempts(d, f):
    yield 'create', lambda: open(d + '/new', 'w')
    yield 'open r+', lambda: os.open(f, os.O_RDWR)
    yield 'open w', lambda: os.open(f, os.O_WRONLY)
    yield 'truncate', lambda: os.truncate(f, 0)
    yield 'mkdir', lambda: os.mkdir(d + '/new')
    yield 'rmdir', lambda: os.rmdir(d)
    yield 'mknod', lambda: os.mknod(d + '/new')
    yield 'mkfifo', lambda: os.mkfifo(d + '/new')
    yield 'symlink', lambda: os.symlink('x', d + '/new')
    yield 'link', lambda: os.link(f, d + '/new')
    yield 'unlink', lambda: os.unlink(f)
    yield 'rename', lambda: os.rename(f, d + '/new')
    yield 'chmod', lambda: os.chmod(f, 0o777)
    yield 'chown', lambda: os.chown(f, 1, 1)
    yield 'utime', lambda: os.utime(f)
    yield 'setxattr', lambda: os.setxattr(f, 'user.x', b'x')
    yield 'setxattr selinux', lambda: os.setxattr(f, 'security.selinux', b'x')
    yield 'removexattr', lambda: os.removexattr(f, 'user.note')
    yield 'tmpfile', lambda: os.open(d, os.O_TMPFILE | os.O_RDWR)
root = sys.argv[1]
for d, f in [('volumes/sda', 'labelled'), ('disks', 'sda'), ('meta', 'session'), ('', 'meta/image')]:
    d = os.path.join(root, d)
    for what, attempt in attempts(d, os.path.join(d, f)):
        if what == 'rmdir' and d.rstrip('/') == root.rstrip('/'): continue
        try: attempt()
        except OSError as e:
            assert e.errno == 30, (d, what, e)
        else: raise AssertionError((d, what, 'worked'))
"#;

#[test]
fn nothing_can_be_written() {
    if !is_root() {
        skip!("trusted attributes and remounting need root");
    }
    let dir = workdir();
    let image = image(dir.path());
    let before = std::fs::read(&image).unwrap();
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let writes = || run(tool("python3").args(["-c", WRITES]).arg(mount.path()));
    writes();
    let read_only = access(&mount.join("volumes/sda/labelled"), AccessFlags::W_OK);
    assert_eq!(read_only, Err(Errno::EROFS));
    // An administrator may take the kernel's own read-only flag away; ours stays.
    run(tool("mount")
        .args(["-i", "-o", "remount,rw"])
        .arg(mount.path()));
    let opened = OpenOptions::new()
        .write(true)
        .open(mount.join("volumes/sda/labelled"));
    if let Ok(mut file) = opened {
        let error = file
            .write_all(b"changed")
            .and_then(|()| file.sync_all())
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    }
    for made in [
        std::fs::create_dir(mount.join("volumes/sda/new")),
        std::fs::write(mount.join("volumes/sda/new"), "x"),
        std::fs::remove_file(mount.join("volumes/sda/labelled")),
        std::fs::remove_dir(mount.join("volumes/sda/sub")),
        std::fs::rename(
            mount.join("volumes/sda/labelled"),
            mount.join("volumes/sda/b"),
        ),
        std::os::unix::fs::symlink("x", mount.join("volumes/sda/new")),
        std::fs::hard_link(
            mount.join("volumes/sda/labelled"),
            mount.join("volumes/sda/b"),
        ),
        std::fs::set_permissions(
            mount.join("volumes/sda/labelled"),
            std::fs::Permissions::from_mode(0o777),
        ),
        xattr::set(mount.join("volumes/sda/labelled"), "user.x", b"x"),
        xattr::remove(mount.join("volumes/sda/labelled"), "user.note"),
    ] {
        let error = made.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    }
    mount.umount();
    assert_eq!(std::fs::read(&image).unwrap(), before);
}

#[test]
fn every_way_of_reading() {
    let dir = workdir();
    let image = image(dir.path());
    let want = std::fs::read(dir.path().join("d/numbers")).unwrap();
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    for (path, want) in [
        ("volumes/sda/numbers", want.clone()),
        ("disks/sda", std::fs::read(&image).unwrap()),
    ] {
        let path = mount.join(path);
        // Memory maps, O_DIRECT, sendfile and splice, as other programs use them.
        let script = r"
import mmap, os, sys
path, want = sys.argv[1], open(sys.argv[2], 'rb').read()
fd = os.open(path, os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
assert m[-5000:] == want[-5000:] and m[:] == want
out = os.memfd_create('x')
sent = 0
while n := os.sendfile(out, fd, sent, 1 << 20): sent += n
assert sent == len(want) and os.pread(out, 1 << 30, 0) == want
d = os.open(path, os.O_RDONLY | os.O_DIRECT)
buf = mmap.mmap(-1, 65536)
for at in (0, 4096, 1 << 20, (len(want) // 65536) * 65536 - 65536, len(want), len(want) + 65536):
    n = os.preadv(d, [buf], at)
    assert buf[:n] == want[at:at + 65536], at
assert os.pread(fd, 10, len(want)) == b'' and os.pread(fd, 100, len(want) - 3) == want[-3:]
r, w = os.pipe()
n = os.splice(fd, w, 4096, offset_src=100)
assert os.read(r, n) == want[100:100 + n]
";
        let truth = dir.path().join("truth");
        std::fs::write(&truth, &want).unwrap();
        run(tool("python3").args(["-c", script]).arg(&path).arg(&truth));
        let file = File::open(&path).unwrap();
        let end = i64::try_from(want.len()).unwrap();
        for whence in [Whence::SeekData, Whence::SeekHole] {
            for at in [end, end + 1, i64::MAX] {
                assert_eq!(lseek(file.as_fd(), at, whence), Err(Errno::ENXIO), "{at}");
            }
            // Linux says ENXIO also below 0.
            assert_eq!(lseek(file.as_fd(), -1, whence), Err(Errno::ENXIO));
        }
    }
    // In the hole at the end there is no more data; its end is a hole.
    let file = File::open(mount.join("volumes/sda/numbers")).unwrap();
    assert_eq!(
        lseek(file.as_fd(), 3 << 20, Whence::SeekData),
        Err(Errno::ENXIO)
    );
    assert_eq!(lseek(file.as_fd(), 3 << 20, Whence::SeekHole), Ok(3 << 20));
    assert_eq!(
        lseek(file.as_fd(), (4 << 20) - 1, Whence::SeekHole),
        Ok((4 << 20) - 1)
    );
    drop(file);
    let link = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(mount.join("volumes/sda/link"));
    assert_eq!(link.unwrap_err().raw_os_error(), Some(libc::ELOOP));
    mount.umount();
}

#[test]
fn attributes_by_who_asks() {
    if !is_root() {
        skip!("--allow-other needs root or user_allow_other");
    }
    let dir = workdir();
    let image = image(dir.path());
    let mount = GuestMount::new(dir.path(), "m", &[&image], &["--allow-other"]);
    let file = mount.join("volumes/sda/labelled");
    let mut names: Vec<String> = xattr::list(&file)
        .unwrap()
        .map(|n| n.into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["security.selinux", "trusted.note", "user.note"]);
    assert_eq!(
        xattr::get(&file, "trusted.note").unwrap().unwrap(),
        b"hidden"
    );
    // As everywhere in the kernel, others do not even see that there are any.
    let at = file.display();
    let listed = shell_as_nobody(&format!(
        "getfattr -d -m - {at} 2>&1; test -r {at} && echo r"
    ));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("user.note=\"plain\"") && listed.contains("security.selinux"),
        "{listed}"
    );
    assert!(
        !listed.contains("trusted") && listed.ends_with("r\n"),
        "{listed}"
    );
    // access(2) as somebody else.
    let private = mount.join("volumes/sda/private");
    let access = shell_as_nobody(&format!(
        "for t in -r -w -x; do test $t {} && echo $t; done; test -r {} && echo yes",
        private.display(),
        mount.join("volumes/sda/numbers").display()
    ));
    assert_eq!(String::from_utf8(access.stdout).unwrap(), "yes\n");
    mount.umount();
}

#[test]
fn statfs_says_what_the_filesystem_says() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    let dir = workdir();
    let image = image(dir.path());
    let kernel = support::KernelMount::new(&image, dir.path(), "");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let numbers = |path: &Path| {
        let output = run(tool("stat")
            .args(["-f", "-c", "%S %b %f %a %c %d %l"])
            .arg(path));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        numbers(&mount.join("volumes/sda/sub")),
        numbers(kernel.path())
    );
    assert!(numbers(mount.path()).starts_with("4096 0 0 0"));
    mount.umount();
}

#[test]
fn in_poor_surroundings() {
    let dir = workdir();
    let image = image(dir.path());
    let (image, dir) = (image.display(), dir.path());
    let program = guestlens_path();
    std::fs::create_dir(dir.join("m")).unwrap();
    std::fs::create_dir(dir.join("n\ne w\\x")).unwrap();
    for (what, script) in [
        (
            "closed descriptors",
            "G mount I \"$m\" <&- >&- 2>&-; check; G umount \"$m\" <&- >&- 2>&-",
        ),
        (
            "only the input closed",
            "G mount I \"$m\" <&-; check; G umount \"$m\" >&-",
        ),
        (
            "no environment",
            "env -i \"$g\" mount I \"$m\"; check; env -i \"$g\" umount \"$m\"",
        ),
        (
            "few descriptors",
            "ulimit -n 64; G mount I \"$m\"; check; G umount \"$m\"",
        ),
        (
            "hardly any",
            "ulimit -n 20; G mount I \"$m\"; check; G umount \"$m\"",
        ),
        (
            "little memory",
            "ulimit -v 524288; G mount I \"$m\"; check; G umount \"$m\"",
        ),
        (
            "no directory",
            "mkdir gone; cd gone; rmdir ../gone; G mount I \"$m\"; check; G umount \"$m\"",
        ),
        (
            "an odd name",
            "m=$PWD/$'n\\ne w\\\\x'; G mount I \"$m\"; check; G umount \"$m\"",
        ),
        (
            "files underneath",
            "mkdir -p full; echo > full/x; m=full; G mount I full; check; G umount full; test -e full/x",
        ),
        ("from inside", "cd m; G mount I .; check; G umount ."),
    ] {
        let script = format!(
            "g='{}'; G() {{ \"$g\" \"$@\"; }}; m=$PWD/m
             check() {{ cmp \"$m/volumes/sda/numbers\" '{}/d/numbers'; ls -l \"$m/meta\" \"$m\" | wc -l >/dev/null; }}
             {}
             ! grep -q ' {}/' /proc/self/mounts",
            program.display(),
            dir.display(),
            script.replace(" I ", &format!(" '{image}' ")),
            dir.display(),
        );
        let output = tool("timeout")
            .args(["60", "bash", "-ec"])
            .arg(&script)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{what}: {}{}",
            output.status,
            stderr(&output)
        );
    }
}

/// With no place for its record, a mount works; only `umount` cannot wait for the process.
#[test]
fn nowhere_to_leave_a_record() {
    if !is_root() {
        skip!("needs a mount namespace");
    }
    let dir = workdir();
    let image = image(dir.path());
    let point = dir.path().join("m");
    std::fs::create_dir(&point).unwrap();
    for (what, make) in [
        ("no inode left", "mount -t tmpfs -o nr_inodes=1 x /run"),
        (
            "no space left",
            "mount -t tmpfs -o size=4k x /run; cat /dev/zero > /run/fill 2>/dev/null || true",
        ),
        ("read-only", "mount -t tmpfs -o ro x /run"),
    ] {
        let script = format!(
            "mount --make-rprivate /; {make}
             touch /tmp/guestlens-0 2>/dev/null || true
             '{0}' mount '{1}' '{2}'; cat '{2}/volumes/sda/labelled'; '{0}' umount '{2}'
             test -z \"$(find /run/guestlens -name '*.json' 2>/dev/null)\"
             ! grep -q ' {2} ' /proc/self/mounts",
            guestlens_path().display(),
            image.display(),
            point.display()
        );
        let output = run(tool("timeout")
            .args(["60", "unshare", "-m", "bash", "-ec"])
            .arg(&script));
        assert_eq!(output.stdout, b"x\n", "{what}: {}", stderr(&output));
    }
}

/// The mount covers the place where the record would go.
#[test]
fn on_top_of_its_own_runtime_directory() {
    if !is_root() {
        skip!("needs a mount namespace");
    }
    let dir = workdir();
    let image = image(dir.path());
    let script = format!(
        "mount --make-rprivate /; mount -t tmpfs x /run
         '{0}' mount '{1}' /run; cat /run/volumes/sda/labelled; '{0}' umount /run; test ! -e /run/volumes",
        guestlens_path().display(),
        image.display()
    );
    let output = run(tool("timeout")
        .args(["60", "unshare", "-m", "bash", "-ec"])
        .arg(&script));
    assert_eq!(output.stdout, b"x\n", "{}", stderr(&output));
}

#[test]
fn many_at_once() {
    let dir = workdir();
    let image = image(dir.path());
    // At sixteen places.
    let mounts: Vec<GuestMount> = std::thread::scope(|scope| {
        let start = |n: usize| {
            let (dir, image) = (dir.path(), &image);
            scope.spawn(move || GuestMount::new(dir, &format!("m{n}"), &[image], &[]))
        };
        let all: Vec<_> = (0..16).map(start).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let servers: Vec<u32> = mounts.iter().map(GuestMount::server).collect();
    let different: std::collections::BTreeSet<u32> = servers.iter().copied().collect();
    assert_eq!(different.len(), 16);
    std::thread::scope(|scope| {
        for mount in mounts {
            scope.spawn(move || mount.umount());
        }
    });
    assert!(servers.iter().all(|&pid| !is_running(pid)));
    // And eight at one: exactly one of them is there.
    let point = dir.path().join("one");
    std::fs::create_dir(&point).unwrap();
    let guard = GuestMount::adopt(&point);
    let ended: Vec<Output> = std::thread::scope(|scope| {
        let start = |_| {
            let (image, point) = (&image, &point);
            scope.spawn(move || {
                guestlens()
                    .arg("mount")
                    .arg(image)
                    .arg(point)
                    .output()
                    .unwrap()
            })
        };
        let all: Vec<_> = (0..8).map(start).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let done = ended.iter().filter(|o| o.status.success()).count();
    assert_eq!(done, 1);
    guard.umount();
    assert!(!is_mounted(&point));
}

#[test]
fn readers_during_a_lazy_umount() {
    let dir = workdir();
    let image = image(dir.path());
    let want = std::fs::read(dir.path().join("d/numbers")).unwrap();
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let server = mount.server();
    let files: Vec<File> = (0..8)
        .map(|n| {
            let path = if n % 2 == 0 {
                "volumes/sda/numbers"
            } else {
                "fs/../volumes/sda/numbers"
            };
            OpenOptions::new()
                .read(true)
                .custom_flags(if n < 4 { libc::O_DIRECT } else { 0 })
                .open(mount.join(path))
                .unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for mut file in files {
            let want = &want;
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut got = vec![0u8; want.len()];
                    // O_DIRECT is lenient here: FUSE takes any buffer.
                    file.read_exact_at(&mut got, 0).unwrap();
                    assert!(got == *want);
                }
                let mut rest = Vec::new();
                file.read_to_end(&mut rest).unwrap();
            });
        }
        run(guestlens().args(["umount", "--lazy"]).arg(mount.path()));
    });
    assert!(!is_mounted(mount.path()));
    wait_until("the server ends", || !is_running(server));
    let twice = guestlens()
        .arg("umount")
        .arg(mount.path())
        .output()
        .unwrap();
    assert_eq!(twice.status.code(), Some(1));
    assert!(stderr(&twice).contains("nothing is mounted"));
}

#[test]
fn bad_images() {
    let dir = workdir();
    let image = image(dir.path());
    shell(
        dir.path(),
        "mkdir m; : > empty; mkfifo fifo; qemu-img convert -f raw -O qcow2 disk q
         head -c 100 q > short.qcow2; head -c 70000 q > half.qcow2; head -c 9000 disk > short.raw
         mkdir sub; ln -s loop loop; chmod 644 q short* half*",
    );
    let point = dir.path().join("m");
    for (name, says) in [
        ("missing", "missing"),
        ("empty", "empty"),
        ("fifo", "fifo"),
        ("short.qcow2", "short.qcow2"),
        ("half.qcow2", "half.qcow2"),
        ("sub", "sub"),
        ("loop", "loop"),
    ] {
        let output = tool("timeout")
            .arg("20")
            .arg(guestlens_path())
            .arg("mount")
            .arg(dir.path().join(name))
            .arg(&point)
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(says), "{name}: {text}");
        assert!(
            text.starts_with("guestlens: ") && text.lines().count() <= 2,
            "{name}: {text}"
        );
        assert!(!is_mounted(&point));
    }
    // A raw image has no bounds to be outside of: what is there is shown.
    let mount = GuestMount::new(dir.path(), "m", &[dir.path().join("short.raw")], &[]);
    assert!(
        !std::fs::read(mount.join("meta/problems"))
            .unwrap()
            .is_empty()
    );
    mount.umount();
    // Cut while it is mounted: what is gone is an error, and nothing more.
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let error = std::fs::read(mount.join("volumes/sda/numbers")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(is_running(mount.server()));
    mount.umount();
}

#[test]
fn a_mount_that_moves_or_vanishes() {
    if !is_root() {
        skip!("needs a mount namespace");
    }
    let dir = workdir();
    let image = image(dir.path());
    // The directory above gets another name: a signal still unmounts.
    shell(dir.path(), "mkdir -p above/m");
    run(guestlens()
        .arg("mount")
        .arg(&image)
        .arg(dir.path().join("above/m")));
    std::fs::rename(dir.path().join("above"), dir.path().join("moved")).unwrap();
    let mount = GuestMount::adopt(&dir.path().join("moved/m"));
    let server = mount.server();
    signal(server, Signal::SIGTERM);
    wait_until("the server ends", || !is_running(server));
    assert!(!is_mounted(mount.path()));
    drop(mount);
    // The mount point is deleted where it is not mounted, which takes the mount away everywhere.
    let mount = GuestMount::new(dir.path(), "gone", &[&image], &[]);
    let server = mount.server();
    let remove = format!("umount -l '{0}'; rmdir '{0}'", mount.path().display());
    run(tool("unshare")
        .args(["-m", "--propagation", "private", "bash", "-ec"])
        .arg(remove));
    wait_until("the server ends", || !is_running(server));
    let output = guestlens()
        .arg("umount")
        .arg(mount.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("nothing is mounted"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn others_mounts_are_left_alone() {
    if !is_root() {
        skip!("fuse2fs as another user's mount needs root");
    }
    let dir = workdir();
    let image = image(dir.path());
    shell(
        dir.path(),
        "mkdir foreign; cp disk copy; fuse2fs -o ro copy foreign",
    );
    let point = dir.path().join("foreign");
    let output = guestlens().arg("umount").arg(&point).output().unwrap();
    let still = is_mounted(&point);
    // Mounting on top of it is no accident of ours, but allowed; both go one by one.
    run(guestlens().arg("mount").arg(&image).arg(&point));
    run(guestlens().arg("umount").arg(&point));
    let below = point.join("labelled").exists();
    run(tool("umount").arg(&point));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("not one of guestlens"),
        "{}",
        stderr(&output)
    );
    assert!(still && below);
}

#[test]
fn an_ordinary_users_dead_mount_is_cleaned_up_by_him() {
    let dir = workdir();
    let image = image(dir.path());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o777)).unwrap();
    let point = home.join("m\nn");
    assert!(
        shell_as_nobody(&format!("mkdir $'{}/m\\nn'", home.display()))
            .status
            .success()
    );
    run(guestlens_as_nobody(dir.path())
        .arg("mount")
        .arg(&image)
        .arg(&point));
    let _guard = GuestMount::adopt(&point);
    let session = shell_as_nobody(&format!(
        "cat $'{}/m\\nn/meta/session.json'",
        home.display()
    ));
    let session: serde_json::Value = serde_json::from_slice(&session.stdout).unwrap();
    let server = u32::try_from(session["pid"].as_u64().unwrap()).unwrap();
    signal(server, Signal::SIGKILL);
    wait_until("the server ends", || !is_running(server));
    run(guestlens_as_nobody(dir.path()).arg("umount").arg(&point));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(home.to_str().unwrap()), "{mounts}");
    let mut left = String::new();
    if let Ok(mut file) = File::open("/tmp/guestlens-65534") {
        let _ = file.read_to_string(&mut left);
    }
}
