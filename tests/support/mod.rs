//! What integration tests share: running the tools that know the truth, kernel mounts to compare
//! with, and counting what could not be tested.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses its own part"
)]

pub mod crash;
pub mod disk;
pub mod ext;
pub mod failing;
pub mod fuzz;
pub mod guest;
pub mod guest_disk;
pub mod hostile;
pub mod images;
pub mod mount;
pub mod netplan;
pub mod qcow2_run;
pub mod qcow2_seeds;
pub mod qemu_io;
pub mod storage_daemon;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod walk;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Ends the test as skipped, with the reason. `scripts/test.sh` counts these and shows them; a test
/// never returns quietly.
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::support::record_skip(&format!($($reason)*));
        return;
    }};
}
pub(crate) use skip;

/// Notes a skipped test in the file `scripts/test.sh` names, and on stderr.
pub fn record_skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("GUESTLENS_SKIP_LOG") {
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("skip log");
        // One write a line: test threads append at the same time.
        log.write_all(format!("{test}: {reason}\n").as_bytes())
            .expect("skip log");
    }
}

/// Whether the tests run as root, and so may ask the kernel to mount images.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that must exist; its absence fails the test with what to do.
pub fn tool(name: &str) -> Command {
    let found = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>())
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    let Some(path) = found else {
        panic!("{name} is needed by this test; scripts/test.sh installs it");
    };
    let mut command = Command::new(path);
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    command
}

/// Runs a command that must succeed; returns its output.
pub fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a shell script (bash, `set -eu -o pipefail`) that must succeed, in `dir`; returns stdout.
pub fn shell(dir: &Path, script: &str) -> String {
    let output = run(tool("bash")
        .current_dir(dir)
        .env("PATH", with_sbin())
        .arg("-c")
        .arg(format!("set -eu -o pipefail\n{script}")));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn with_sbin() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

/// Where the binary under test is. `GUESTLENS_BIN` names a copy of it: an ordinary user may not be
/// able to reach the directory it was built in.
pub fn guestlens_path() -> PathBuf {
    std::env::var_os("GUESTLENS_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_guestlens")),
        PathBuf::from,
    )
}

/// The binary under test.
pub fn guestlens() -> Command {
    let mut command = Command::new(guestlens_path());
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    command
}

/// A directory that goes away at the end of the test.
pub fn workdir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("guestlens-test-")
        .tempdir()
        .expect("a temporary directory")
}

/// The kernel's own read-only mount of an image, the reference to compare with. Root only.
pub struct KernelMount {
    point: PathBuf,
}

impl KernelMount {
    /// Mounts `image` on a new directory inside `dir`. `options` go to `mount -o` after `loop,ro`.
    pub fn new(image: &Path, dir: &Path, options: &str) -> Self {
        let point = dir.join(format!(
            "kernel-{}",
            image.file_name().unwrap().to_string_lossy()
        ));
        std::fs::create_dir_all(&point).unwrap();
        let all = if options.is_empty() {
            "loop,ro".into()
        } else {
            format!("loop,ro,{options}")
        };
        run(tool("mount").arg("-o").arg(all).arg(image).arg(&point));
        Self { point }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let _ = tool("umount").arg("-l").arg(&self.point).status();
    }
}
