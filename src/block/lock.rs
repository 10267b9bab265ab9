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
//!
//! Not every program that uses images takes these locks: [`find_others`].

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, fstatfs};
use rustix::fs::{FlockOperation, flock};

use super::users;

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
        match fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, at))) {
            Ok(_) => {}
            // Somebody holds the byte exclusively. QEMU never does, but it says "not you".
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Ok(LockOutcome::Conflict(Conflict {
                    what: "holds it exclusively",
                    live_would_do: false,
                    holder: users::lock_holder(file, at),
                }));
            }
            Err(e) => return without_locks(e),
        }
    }
    for test in test {
        let mut probe = one_byte(libc::F_WRLCK, test.at);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
            Ok(_) if libc::c_int::from(probe.l_type) == libc::F_UNLCK => {}
            Ok(_) => {
                return Ok(LockOutcome::Conflict(Conflict {
                    what: test.what,
                    live_would_do: test.live_would_do,
                    holder: users::lock_holder(file, test.at),
                }));
            }
            Err(e) => return without_locks(e),
        }
    }
    Ok(LockOutcome::Held)
}

/// What the locks of QEMU do not show: takes a `flock` for the programs that look at those (some
/// hypervisors, udev), and looks for a loop device and for a process that writes to the file
/// without any locks. For a file that is about to be written to, after [`acquire`].
///
/// # Errors
/// What the host reports, other than that there are no such locks on this filesystem.
pub fn find_others(file: &File) -> std::io::Result<Option<Conflict>> {
    let conflict = |what, holder| Conflict {
        what,
        live_would_do: false,
        holder,
    };
    if !flock_is_a_byte_range(file) {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Some(conflict(
                    "has locked it (flock)",
                    users::flock_holder(file),
                )));
            }
            Err(
                rustix::io::Errno::INVAL
                | rustix::io::Errno::NOLCK
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS,
            ) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if let Some(device) = users::loop_device(file) {
        return Ok(Some(conflict(
            "shows it as a disk of this host",
            Some(device),
        )));
    }
    Ok(users::writer(file).map(|who| conflict("has it open for writing", Some(who))))
}

/// On network filesystems a `flock` is a lock of all bytes, and so in the way of our own.
fn flock_is_a_byte_range(file: &File) -> bool {
    const CIFS: FsType = FsType(0xFF53_4D42);
    const SMB2: FsType = FsType(0xFE53_4D42);
    fstatfs(file).is_ok_and(|s| [NFS_SUPER_MAGIC, CIFS, SMB2].contains(&s.filesystem_type()))
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
fn one_byte(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        // Must be zero for open-file-description locks.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
