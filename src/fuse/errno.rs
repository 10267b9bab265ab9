//! Errors → errno, here and nowhere else.

use fuser::Errno;

use crate::fs::FsErrorKind;

/// What the caller of a system call gets to see.
pub fn errno(kind: FsErrorKind) -> Errno {
    match kind {
        FsErrorKind::NotFound => Errno::ENOENT,
        FsErrorKind::NoAttribute => Errno::ENODATA,
        FsErrorKind::NotDirectory => Errno::ENOTDIR,
        FsErrorKind::IsDirectory => Errno::EISDIR,
        FsErrorKind::Invalid => Errno::EINVAL,
        FsErrorKind::Loop => Errno::ELOOP,
        FsErrorKind::NameTooLong => Errno::ENAMETOOLONG,
        FsErrorKind::Damaged => Errno::from_i32(nix::libc::EUCLEAN),
        FsErrorKind::Unsupported => Errno::EOPNOTSUPP,
        FsErrorKind::NoKey => Errno::from_i32(nix::libc::ENOKEY),
        FsErrorKind::ReadOnly => Errno::EROFS,
        FsErrorKind::NotAllowed => Errno::EACCES,
        FsErrorKind::TooLarge => Errno::EFBIG,
        FsErrorKind::Io => Errno::EIO,
    }
}

/// Whether the failure belongs in the log: a caller's ordinary questions do not.
pub fn is_noteworthy(kind: FsErrorKind) -> bool {
    match kind {
        FsErrorKind::Damaged
        | FsErrorKind::Unsupported
        | FsErrorKind::NoKey
        | FsErrorKind::TooLarge
        | FsErrorKind::Io => true,
        FsErrorKind::NotFound
        | FsErrorKind::NoAttribute
        | FsErrorKind::NotDirectory
        | FsErrorKind::IsDirectory
        | FsErrorKind::Invalid
        | FsErrorKind::Loop
        | FsErrorKind::NameTooLong
        | FsErrorKind::ReadOnly
        | FsErrorKind::NotAllowed => false,
    }
}
