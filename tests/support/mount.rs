//! Our own mount, made by the binary under test.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{guestlens, guestlens_path, is_root, run, tool};

/// The user that stands for all ordinary ones.
pub const NOBODY: u32 = 65534;

/// `guestlens` as an ordinary user. As root this needs a copy of the program that everybody can
/// reach, which is made in `dir`.
pub fn guestlens_as_nobody(dir: &Path) -> Command {
    if !is_root() {
        return guestlens();
    }
    let program = dir.join("guestlens");
    if !program.exists() {
        std::fs::copy(guestlens_path(), &program).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = tool("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .arg("--clear-groups")
        .arg(program);
    command
}

/// A shell command as the same user.
pub fn shell_as_nobody(script: &str) -> Output {
    let mut command = if is_root() {
        let mut command = tool("setpriv");
        command
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"))
            .args(["--clear-groups", "bash"]);
        command
    } else {
        tool("bash")
    };
    command.arg("-c").arg(script).output().unwrap()
}

/// A mount that goes away at the end of the test.
pub struct GuestMount {
    point: PathBuf,
}

impl GuestMount {
    /// `guestlens mount ARGS IMAGES… POINT` on a new directory in `dir`.
    pub fn new<S: AsRef<OsStr>>(dir: &Path, name: &str, images: &[S], args: &[&str]) -> Self {
        let point = dir.join(name);
        std::fs::create_dir_all(&point).unwrap();
        run(guestlens().arg("mount").args(args).args(images).arg(&point));
        Self { point }
    }

    /// Watches over a mount made otherwise.
    pub fn adopt(point: &Path) -> Self {
        Self {
            point: point.to_owned(),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path in it.
    pub fn join(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    /// `meta/session`'s process.
    pub fn server(&self) -> u32 {
        let text = std::fs::read(self.join("meta/session.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        u32::try_from(json["pid"].as_u64().unwrap()).unwrap()
    }

    /// `guestlens umount`, which must succeed.
    pub fn umount(self) {
        run(guestlens().arg("umount").arg(&self.point));
    }
}

impl Drop for GuestMount {
    fn drop(&mut self) {
        if is_mounted(&self.point) {
            let _ = guestlens()
                .args(["umount", "--lazy"])
                .arg(&self.point)
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// Whether something is mounted there, without touching it.
pub fn is_mounted(point: &Path) -> bool {
    mount_options(point).is_some()
}

/// Options of the mount at `point`.
pub fn mount_options(point: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let at = fields.nth(1)?;
        let options = fields.nth(1)?;
        (Path::new(at) == point).then(|| options.to_owned())
    })
}

/// Whether a process is there and has not ended.
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}
