//! QEMU-compatible byte-range locks on host files.
//!
//! QEMU announces what it does to an image by shared open-file-description locks of one byte each
//! (`block/file-posix.c`, "shared locks"): byte `100 + i` says *I use permission i*, byte
//! `200 + i` says *I do not share permission i*. The permissions: 0 consistent read, 1 write,
//! 2 write unchanged, 3 resize. A lock is taken shared and then tested as if it were exclusive:
//!
//! | opened | holds | tests |
//! |---|---|---|
//! | read-only | 100, 201, 203 | 200, 101, 103 |
//! | read-only, live | 100 | 200 |
//! | for writing | 100, 101, 103, 201, 203 | 200, 201, 203, 101, 103 |
//!
//! So a guest cannot start to write under a read-only open, and a read-only open notices one that
//! already writes. The locks belong to the open file: they last until its last descriptor closes,
//! and a killed process leaves none behind.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Byte of "I use permission 0".
const USES: i64 = 100;
/// Byte of "I do not share permission 0".
const UNSHARED: i64 = 200;
/// Permission to read consistent data.
const CONSISTENT_READ: i64 = 0;
/// Permission to write.
const WRITE: i64 = 1;
/// Permission to change the size.
const RESIZE: i64 = 3;

/// Most entries of `/proc` looked at to name the holder of a lock.
const MAX_PROC_ENTRIES: usize = 100_000;

/// Longest name shown for a process; a longer one is cut to what the kernel keeps.
const MAX_PROCESS_NAME: usize = 64;

/// What is about to be done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Read, and let nobody write meanwhile.
    Read,
    /// Read although somebody may write.
    ReadLive,
    /// Write, and let nobody write, resize or read what is assumed not to change meanwhile.
    Write,
}

/// How taking the locks went.
#[derive(Debug)]
pub enum LockOutcome {
    /// The locks are held until the file is closed.
    Held,
    /// The host filesystem knows no such locks; nobody is protected from anybody.
    Unsupported(std::io::Error),
    /// Another process uses the file in a way that does not go together with ours.
    Conflict(Conflict),
}

/// Who stands in the way.
#[derive(Debug)]
pub struct Conflict {
    /// What the other process does.
    pub what: &'static str,
    /// Whether reading live would be possible instead.
    pub live_would_do: bool,
    /// The other process, `name (pid N)`, where `/proc` tells.
    pub holder: Option<String>,
}

/// Takes the locks of `mode` on an open file.
///
/// # Errors
/// What the host reports, other than that there are no such locks on this filesystem.
pub fn acquire(file: &File, mode: LockMode) -> std::io::Result<LockOutcome> {
    let (hold, test): (&[i64], &[Test]) = match mode {
        LockMode::Read => (
            &[
                byte(USES, CONSISTENT_READ),
                byte(UNSHARED, WRITE),
                byte(UNSHARED, RESIZE),
            ],
            &[EXCLUSIVE_TEST, WRITER_TEST, RESIZER_TEST],
        ),
        LockMode::ReadLive => (&[byte(USES, CONSISTENT_READ)], &[EXCLUSIVE_TEST]),
        LockMode::Write => (
            &[
                byte(USES, CONSISTENT_READ),
                byte(USES, WRITE),
                byte(USES, RESIZE),
                byte(UNSHARED, WRITE),
                byte(UNSHARED, RESIZE),
            ],
            &[
                EXCLUSIVE_TEST,
                WRITER_TEST,
                RESIZER_TEST,
                READER_TEST,
                FIXED_SIZE_TEST,
            ],
        ),
    };
    for &at in hold {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, at))) {
            Ok(_) => {}
            // Somebody holds the byte exclusively. QEMU never does, but it says "not you".
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Ok(LockOutcome::Conflict(Conflict {
                    what: "holds it exclusively",
                    live_would_do: false,
                    holder: holder(file, at),
                }));
            }
            Err(e) => return without_locks(e),
        }
    }
    for test in test {
        let mut probe = flock(libc::F_WRLCK, test.at);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
            Ok(_) if libc::c_int::from(probe.l_type) == libc::F_UNLCK => {}
            Ok(_) => {
                return Ok(LockOutcome::Conflict(Conflict {
                    what: test.what,
                    live_would_do: test.live_would_do,
                    holder: holder(file, test.at),
                }));
            }
            Err(e) => return without_locks(e),
        }
    }
    Ok(LockOutcome::Held)
}

struct Test {
    at: i64,
    what: &'static str,
    live_would_do: bool,
}

const EXCLUSIVE_TEST: Test = Test {
    at: byte(UNSHARED, CONSISTENT_READ),
    what: "lets nobody read it",
    live_would_do: false,
};
const WRITER_TEST: Test = Test {
    at: byte(USES, WRITE),
    what: "is writing to it",
    live_would_do: true,
};
const RESIZER_TEST: Test = Test {
    at: byte(USES, RESIZE),
    what: "may resize it",
    live_would_do: true,
};

const READER_TEST: Test = Test {
    at: byte(UNSHARED, WRITE),
    what: "reads it and lets nobody write to it",
    live_would_do: false,
};
const FIXED_SIZE_TEST: Test = Test {
    at: byte(UNSHARED, RESIZE),
    what: "lets nobody resize it",
    live_would_do: false,
};

#[allow(clippy::arithmetic_side_effects, reason = "small constants")]
const fn byte(base: i64, permission: i64) -> i64 {
    base + permission
}

fn without_locks(error: Errno) -> std::io::Result<LockOutcome> {
    match error {
        Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS => {
            Ok(LockOutcome::Unsupported(error.into()))
        }
        e => Err(e.into()),
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "lock types and SEEK_SET are 0, 1 and 2"
)]
fn flock(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        // Must be zero for open-file-description locks.
        l_pid: 0,
    }
}

/// The process that holds a lock on byte `at` of the file. The kernel does not say (the locks
/// belong to no process), but each process shows the locks of its descriptors.
fn holder(file: &File, at: i64) -> Option<String> {
    let ours = file.metadata().ok()?;
    let me = std::process::id().to_string();
    let mut looked_at = 0_usize;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        if pid == me {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            looked_at = looked_at.saturating_add(1);
            if looked_at > MAX_PROC_ENTRIES {
                return None;
            }
            let same = std::fs::metadata(descriptor.path())
                .is_ok_and(|m| m.dev() == ours.dev() && m.ino() == ours.ino());
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            if same && std::fs::read_to_string(info).is_ok_and(|text| shows_lock(&text, at)) {
                return Some(format!("{} (pid {pid})", process_name(&process.path())));
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
    let program = crate::ondisk::text::until_nul(&command);
    let name = program.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let whole = name.starts_with(comm) && name.len() <= MAX_PROCESS_NAME;
    crate::ondisk::text::printable(if whole { name } else { comm })
}

/// Whether an `fdinfo` text has an open-file-description lock that covers byte `at`. A line reads
/// `lock:  1: OFDLCK ADVISORY READ -1 08:01:1234 100 101`.
fn shows_lock(text: &str, at: i64) -> bool {
    text.lines()
        .filter(|l| l.starts_with("lock:") && l.contains("OFDLCK"))
        .any(|line| {
            let mut words = line.split_ascii_whitespace().rev();
            let end = words
                .next()
                .map(|w| if w == "EOF" { Ok(i64::MAX) } else { w.parse() });
            let start = words.next().map(str::parse::<i64>);
            matches!((start, end), (Some(Ok(start)), Some(Ok(end))) if start <= at && at <= end)
        })
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
    fn two_readers_go_together() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (file.reopen().unwrap(), file.reopen().unwrap());
        assert!(matches!(
            acquire(&a, LockMode::Read).unwrap(),
            LockOutcome::Held
        ));
        assert!(matches!(
            acquire(&b, LockMode::Read).unwrap(),
            LockOutcome::Held
        ));
    }
}
