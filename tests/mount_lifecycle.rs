//! `mount` and `umount`: what they wait for, what they say, what they leave behind.

mod support;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::mount::{
    GuestMount, guestlens_as_nobody, is_mounted, is_running, mount_options, shell_as_nobody,
};
use support::{guestlens, is_root, run, shell, skip, workdir};

/// A small filesystem without a partition table that everybody may read.
fn image(dir: &Path, name: &str) -> PathBuf {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    shell(
        dir,
        &format!(
            "mkdir -p {name}.d/sub; echo {name} > {name}.d/name; echo secret > {name}.d/secret
             chmod 600 {name}.d/secret; ln -s /name {name}.d/sub/link
             truncate -s 8M {name}; mke2fs -q -F -t ext4 -d {name}.d {name}; chmod 644 {name}"
        ),
    );
    dir.join(name)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

#[test]
fn mount_answers_and_umount_waits() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    assert_eq!(
        std::fs::read(mount.join("volumes/sda/name")).unwrap(),
        b"disk\n"
    );
    let options = mount_options(mount.path()).unwrap();
    for option in ["ro", "nodev", "nosuid"] {
        assert!(
            options.split(',').any(|o| o == option),
            "{option}: {options}"
        );
    }
    let write = File::create(mount.join("volumes/sda/new")).unwrap_err();
    assert_eq!(write.raw_os_error(), Some(libc::EROFS));
    let server = mount.server();
    assert!(is_running(server));
    let point = mount.path().to_owned();
    mount.umount();
    assert!(!is_mounted(&point));
    assert!(
        !is_running(server),
        "umount returned before process {server} had ended"
    );
    // Nothing is left, so the same works again.
    GuestMount::new(dir.path(), "m", &[&image], &["--noexec"]).umount();
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let mut program = guestlens_as_nobody(dir.path());
    // The mount point must be the user's own.
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, PermissionsExt::from_mode(0o777)).unwrap();
    let point = home.join("m");
    assert!(
        shell_as_nobody(&format!("mkdir {}", point.display()))
            .status
            .success()
    );
    run(program.arg("mount").arg(&image).arg(&point));
    let _mount = GuestMount::adopt(&point);
    let options = mount_options(&point).unwrap();
    for option in ["ro", "nodev", "nosuid"] {
        assert!(
            options.split(',').any(|o| o == option),
            "{option}: {options}"
        );
    }
    let at = point.display();
    // The owner acts as the guest's root.
    let cat = shell_as_nobody(&format!(
        "cat {at}/volumes/sda/secret {at}/meta/session.json"
    ));
    let text = String::from_utf8(cat.stdout).unwrap();
    let (secret, session) = text.split_once('\n').unwrap();
    assert_eq!(secret, "secret");
    let session: serde_json::Value = serde_json::from_str(session).unwrap();
    let server = u32::try_from(session["pid"].as_u64().unwrap()).unwrap();
    assert!(session["mountpoint"].as_str().unwrap().starts_with('/'));
    if is_root() {
        // Nobody else gets in, not even root.
        let denied = std::fs::metadata(point.join("fs")).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
    }
    run(guestlens_as_nobody(dir.path()).arg("umount").arg(&point));
    assert!(!is_mounted(&point) && !is_running(server));
}

#[test]
fn allow_other_enforces_the_guests_permissions() {
    if !is_root() {
        skip!("--allow-other needs root or user_allow_other");
    }
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let read = |mount: &GuestMount, path: &str| {
        let at = mount.join(path);
        shell_as_nobody(&format!("cat {} 2>&1 >/dev/null", at.display()))
    };
    let mount = GuestMount::new(dir.path(), "owner", &[&image], &[]);
    assert!(!read(&mount, "volumes/sda/name").status.success());
    mount.umount();
    let mount = GuestMount::new(dir.path(), "all", &[&image], &["--allow-other"]);
    assert!(read(&mount, "volumes/sda/name").status.success());
    assert!(!read(&mount, "volumes/sda/secret").status.success());
    assert!(!read(&mount, "disks/sda").status.success());
    assert!(read(&mount, "meta/session").status.success());
    mount.umount();
}

#[test]
fn a_killed_server_is_cleaned_up() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let point = mount.path().to_owned();
    let server = mount.server();
    signal(server, Signal::SIGKILL);
    wait_until("the server ends", || !is_running(server));
    // A request that meets the end of the connection is aborted; the next ones find none.
    wait_until("the connection ends", || {
        let dead = std::fs::read_dir(point.join("fs")).unwrap_err();
        let dead = dead.raw_os_error();
        assert!(
            matches!(dead, Some(libc::ENOTCONN | libc::ECONNABORTED)),
            "{dead:?}"
        );
        dead == Some(libc::ENOTCONN)
    });
    // Mounting over it says what to do.
    let again = guestlens()
        .arg("mount")
        .arg(&image)
        .arg(&point)
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("guestlens umount"),
        "{}",
        stderr(&again)
    );
    mount.umount();
    assert!(!is_mounted(&point));
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    // Nor is a living mount covered by another.
    let again = guestlens()
        .arg("mount")
        .arg(&image)
        .arg(&point)
        .output()
        .unwrap();
    assert!(stderr(&again).contains("already"), "{}", stderr(&again));
    mount.umount();
    assert!(!is_mounted(&point));
}

#[test]
fn a_mount_in_use_stays() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let server = mount.server();
    let mut file = File::open(mount.join("volumes/sda/name")).unwrap();
    let busy = guestlens()
        .arg("umount")
        .arg(mount.path())
        .output()
        .unwrap();
    assert_eq!(busy.status.code(), Some(1));
    assert!(stderr(&busy).contains("in use"), "{}", stderr(&busy));
    assert!(mount.join("volumes/sda/secret").exists() && is_running(server));
    // Lazily it goes away, and the open file stays readable until it is closed.
    run(guestlens().args(["umount", "--lazy"]).arg(mount.path()));
    assert!(!is_mounted(mount.path()) && is_running(server));
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "disk\n");
    drop(file);
    wait_until("the server ends with the last file", || !is_running(server));
}

#[test]
fn umount_does_not_hang_with_its_server() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let mount = GuestMount::new(dir.path(), "m", &[&image], &[]);
    let server = mount.server();
    signal(server, Signal::SIGSTOP);
    let started = Instant::now();
    let output = guestlens()
        .args(["umount", "--timeout", "1"])
        .arg(mount.path())
        .output()
        .unwrap();
    signal(server, Signal::SIGCONT);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&server.to_string()),
        "{}",
        stderr(&output)
    );
    wait_until("the server ends once it can", || !is_running(server));
}

#[test]
fn signals_unmount() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    for (n, sent) in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .enumerate()
    {
        let mount = GuestMount::new(dir.path(), &format!("m{n}"), &[&image], &[]);
        let server = mount.server();
        signal(server, sent);
        wait_until("the server ends", || !is_running(server));
        assert!(!is_mounted(mount.path()), "{sent}");
    }
}

#[test]
fn in_the_foreground() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let point = dir.path().join("m");
    std::fs::create_dir(&point).unwrap();
    let mut server = guestlens()
        .args(["mount", "--foreground"])
        .arg(&image)
        .arg(&point)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mount = GuestMount::adopt(&point);
    wait_until("it is mounted", || is_mounted(&point));
    assert_eq!(mount.server(), server.id());
    mount.umount();
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

#[test]
fn failures_have_a_reason() {
    let dir = workdir();
    let good = image(dir.path(), "disk");
    let point = dir.path().join("m");
    std::fs::create_dir(&point).unwrap();
    let missing = dir.path().join("missing");
    for (image, point, code, says) in [
        (missing.as_path(), point.as_path(), 1, "missing"),
        (dir.path(), &point, 1, "is a directory"),
        (&good, &missing, 1, "missing"),
        (&good, &good, 1, "disk"),
    ] {
        let output = guestlens()
            .arg("mount")
            .arg(image)
            .arg(point)
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(
            text.contains(says) && text.starts_with("guestlens: "),
            "{text}"
        );
        assert!(output.stdout.is_empty());
        assert!(!is_mounted(point));
    }
    let output = guestlens().arg("mount").arg(&good).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for (point, says) in [
        (point.as_path(), "nothing is mounted"),
        (&missing, "nothing is mounted"),
        (Path::new("/proc"), "not one of guestlens"),
    ] {
        let output = guestlens().arg("umount").arg(point).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    assert!(std::fs::read_dir("/proc").unwrap().count() > 0);
}

#[test]
fn the_log_goes_to_a_file() {
    let dir = workdir();
    let image = image(dir.path(), "disk");
    let log = dir.path().join("log");
    let arguments = ["--log-file", log.to_str().unwrap(), "-v"];
    let mount = GuestMount::new(dir.path(), "m", &[&image], &arguments);
    mount.umount();
    assert!(log.exists());
}

#[test]
fn through_a_link_and_relative_names() {
    let dir = workdir();
    image(dir.path(), "disk");
    shell(dir.path(), "mkdir m; ln -s m link");
    let mut mount = guestlens();
    run(mount
        .current_dir(dir.path())
        .args(["mount", "disk", "link"]));
    let guard = GuestMount::adopt(&dir.path().join("m"));
    assert!(is_mounted(guard.path()) && guard.join("meta/session").exists());
    run(guestlens()
        .current_dir(dir.path())
        .args(["umount", "./link"]));
    assert!(!is_mounted(guard.path()));
}

#[test]
fn two_images_are_two_disks() {
    let dir = workdir();
    let (one, two) = (image(dir.path(), "one"), image(dir.path(), "two"));
    let mount = GuestMount::new(dir.path(), "m", &[&one, &two], &[]);
    assert_eq!(
        std::fs::read(mount.join("volumes/sda/name")).unwrap(),
        b"one\n"
    );
    assert_eq!(
        std::fs::read(mount.join("volumes/sdb/name")).unwrap(),
        b"two\n"
    );
    assert_eq!(
        std::fs::read(mount.join("disks/sdb")).unwrap(),
        std::fs::read(two).unwrap()
    );
    mount.umount();
}
