//! Who else uses a host file, as far as the kernel tells: `/proc` shows the descriptors and locks
//! of the processes one may look at, `/sys/block` the files behind loop devices.
//!
//! Nothing here is a lock. A process of another user is not seen, and one that opens the file a
//! moment later neither.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::ondisk::text::{printable, until_nul};

/// Most descriptors of other processes looked at.
const MAX_DESCRIPTORS: usize = 100_000;
/// Most loop devices looked at.
const MAX_BLOCK_DEVICES: usize = 10_000;
/// Longest name shown for a process; a longer one is cut to what the kernel keeps.
const MAX_PROCESS_NAME: usize = 64;

/// The process that holds an open-file-description lock on byte `at` of the file, as
/// `name (pid N)`. The kernel does not say whose lock it is (they belong to no process), but each
/// process shows the locks of its descriptors.
pub fn lock_holder(file: &File, at: i64) -> Option<String> {
    find(file, |info| shows_lock(info, at))
}

/// The process that holds a `flock` on the file.
pub fn flock_holder(file: &File) -> Option<String> {
    find(file, |info| {
        lock_lines(info).any(|line| line.contains(" FLOCK "))
    })
}

/// Another process that has the file open for writing, with or without locks.
pub fn writer(file: &File) -> Option<String> {
    let me = std::process::id();
    find_process(file, |pid, info| pid != me && opened_for_writing(info))
}

/// The loop device that shows the file as a disk to this host's kernel.
pub fn loop_device(file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    let devices = std::fs::read_dir("/sys/block").ok()?.flatten();
    for device in devices.take(MAX_BLOCK_DEVICES) {
        let Ok(text) = std::fs::read(device.path().join("loop/backing_file")) else {
            continue;
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(text.trim_ascii_end()));
        if std::fs::metadata(path).is_ok_and(|m| same(&m, &ours)) {
            return Some(format!("/dev/{}", printable(device.file_name().as_bytes())));
        }
    }
    None
}

/// Whether both are one file, or nodes of one block device.
fn same(a: &Metadata, b: &Metadata) -> bool {
    let blocks = a.file_type().is_block_device() && b.file_type().is_block_device();
    (a.dev() == b.dev() && a.ino() == b.ino()) || (blocks && a.rdev() == b.rdev())
}

fn find(file: &File, matches: impl Fn(&str) -> bool) -> Option<String> {
    find_process(file, |_, info| matches(info))
}

/// The first process with a descriptor of the file, other than this descriptor, whose `fdinfo`
/// text matches.
fn find_process(file: &File, matches: impl Fn(u32, &str) -> bool) -> Option<String> {
    let ours = file.metadata().ok()?;
    let me = std::process::id();
    let own_descriptor = PathBuf::from(file.as_raw_fd().to_string());
    let mut looked_at = 0_usize;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            looked_at = looked_at.saturating_add(1);
            if looked_at > MAX_DESCRIPTORS {
                return None;
            }
            if pid == me && descriptor.file_name() == own_descriptor.as_os_str() {
                continue;
            }
            if !std::fs::metadata(descriptor.path()).is_ok_and(|m| same(&m, &ours)) {
                continue;
            }
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            if std::fs::read_to_string(info).is_ok_and(|text| matches(pid, &text)) {
                return Some(if pid == me {
                    "this process itself".into()
                } else {
                    format!("{} (pid {pid})", process_name(&process.path()))
                });
            }
        }
    }
    None
}

/// The name of the process `/proc/N` describes. The kernel keeps 15 bytes of it, so the command
/// line serves where it begins with those.
fn process_name(process: &Path) -> String {
    let comm = std::fs::read(process.join("comm")).unwrap_or_default();
    let comm = comm.trim_ascii_end();
    let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let program = until_nul(&command);
    let name = program.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let whole = name.starts_with(comm) && name.len() <= MAX_PROCESS_NAME;
    printable(if whole { name } else { comm })
}

fn lock_lines(info: &str) -> impl Iterator<Item = &str> {
    info.lines().filter(|l| l.starts_with("lock:"))
}

/// Whether an `fdinfo` text has an open-file-description lock that covers byte `at`. A line reads
/// `lock:  1: OFDLCK ADVISORY READ -1 08:01:1234 100 101`.
fn shows_lock(info: &str, at: i64) -> bool {
    lock_lines(info)
        .filter(|l| l.contains("OFDLCK"))
        .any(|line| {
            let mut words = line.split_ascii_whitespace().rev();
            let end = words
                .next()
                .map(|w| if w == "EOF" { Ok(i64::MAX) } else { w.parse() });
            let start = words.next().map(str::parse::<i64>);
            matches!((start, end), (Some(Ok(start)), Some(Ok(end))) if start <= at && at <= end)
        })
}

/// Whether an `fdinfo` text has the flags (octal, as of `open`) of a descriptor that may write.
fn opened_for_writing(info: &str) -> bool {
    info.lines()
        .find_map(|l| l.strip_prefix("flags:"))
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        // O_WRONLY or O_RDWR; but a name opened by O_PATH alone writes nothing.
        .is_some_and(|flags| flags & 0o3 != 0 && flags & 0o10_000_000 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_lines_of_fdinfo() {
        let text = "pos:\t0\nlock:\t1: OFDLCK  ADVISORY  READ -1 fe:01:77 100 101\n";
        assert!(shows_lock(text, 100) && shows_lock(text, 101));
        assert!(!shows_lock(text, 102));
        assert!(shows_lock(
            "lock:\t1: OFDLCK ADVISORY READ -1 fe:01:77 7 EOF\n",
            201
        ));
        assert!(!shows_lock(
            "lock:\t1: POSIX ADVISORY READ 5 fe:01:77 0 EOF\n",
            201
        ));
        assert!(!shows_lock("lock:\n", 0));
    }

    #[test]
    fn flags_of_fdinfo() {
        assert!(opened_for_writing("pos:\t0\nflags:\t02100002\n"));
        assert!(opened_for_writing("flags:\t0100001\n"));
        assert!(!opened_for_writing("flags:\t0100000\n"));
        assert!(!opened_for_writing("flags:\t012000002\n"));
        assert!(!opened_for_writing("flags:\tx\n") && !opened_for_writing(""));
    }
}
