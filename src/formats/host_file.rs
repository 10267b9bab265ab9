//! Opening a file of the host with the care a path from anywhere needs: examined before it is
//! opened, never blocking, locked.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use super::error::{FormatError, FormatErrorKind, Result};
use crate::block::BlockDevice;
use crate::block::file::FileBackend;
use crate::block::lock::{self, Conflict, LockMode, LockOutcome};
use crate::ondisk::text::printable;

/// What makes two paths the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    /// Of an open or examined file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
        }
    }
}

/// An open regular file or block device.
pub struct HostFile {
    file: File,
    path: PathBuf,
    id: FileId,
    actual_size: u64,
}

impl HostFile {
    /// Opens what the user named.
    ///
    /// # Errors
    /// [`FormatErrorKind::Io`] if it is not there, not readable or no image can be in it.
    pub fn open(path: &Path, write: bool) -> Result<Self> {
        // Looked at first: opening a device node can already have effects.
        let metadata = std::fs::metadata(path).map_err(|e| not_opened(path, write, e))?;
        suitable(&metadata, path)?;
        // A block device that this host has mounted, or assembled into another one, is not
        // written to; that is what this flag means for devices.
        let exclusive = if write && metadata.file_type().is_block_device() {
            libc::O_EXCL
        } else {
            0
        };
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            // Should the path have become a FIFO since, this must not wait for a writer.
            .custom_flags(exclusive | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| not_opened(path, write, e))?;
        Self::from_open(file, path.to_owned())
    }

    /// Takes an open file after looking at what it is.
    ///
    /// # Errors
    /// As [`HostFile::open`].
    pub fn from_open(file: File, path: PathBuf) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|e| FormatError::io(format!("cannot examine {}", shown(&path)), e))?;
        suitable(&metadata, &path)?;
        Ok(Self {
            file,
            id: FileId::of(&metadata),
            actual_size: metadata.blocks().saturating_mul(512),
            path,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity on the host.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Bytes it occupies on the host.
    pub fn actual_size(&self) -> u64 {
        self.actual_size
    }

    /// Takes the locks; returns what the user should know.
    ///
    /// For writing, more is looked at than QEMU's locks ([`lock::find_others`]), and a filesystem
    /// without locks is not enough, unless `force` says that the user knows better. It never
    /// overrules a lock of QEMU's.
    ///
    /// # Errors
    /// [`FormatErrorKind::Busy`] if another process uses the file in a way `mode` excludes,
    /// [`FormatErrorKind::NotAllowed`] if nothing can show whether one does.
    pub fn lock(&self, mode: LockMode, force: bool) -> Result<Vec<String>> {
        let path = shown(&self.path);
        let failed = |e| FormatError::io(format!("cannot lock {path}"), e);
        let outcome = lock::acquire(&self.file, mode).map_err(failed)?;
        let mut warnings = Vec::from_iter(judge(&path, outcome, mode, force)?);
        if mode == LockMode::Write {
            self.check_path()?;
            match lock::find_others(&self.file).map_err(failed)? {
                None => {}
                Some(conflict) if force => warnings.push(in_use(&path, &conflict)),
                Some(conflict) => {
                    return Err(
                        FormatError::new(FormatErrorKind::Busy, in_use(&path, &conflict))
                            .with_hint("end that first; --force writes all the same"),
                    );
                }
            }
        }
        Ok(warnings)
    }

    /// That the path still leads to the file that was opened: another program may have put a new
    /// file there before this one was locked.
    fn check_path(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path);
        if now.is_ok_and(|m| FileId::of(&m) == self.id) {
            return Ok(());
        }
        Err(FormatError::new(
            FormatErrorKind::Busy,
            format!(
                "{} was replaced or removed while it was opened",
                shown(&self.path)
            ),
        )
        .with_hint("try again"))
    }

    /// The content as a block device, which can grow if it is written to; the locks stay held
    /// while it lives.
    ///
    /// # Errors
    /// [`FormatErrorKind::Io`].
    pub fn into_device(self, write: bool) -> Result<BlockDevice> {
        let backend = Arc::new(FileBackend::new(self.file, !write)?);
        Ok(if write {
            BlockDevice::growable(backend)
        } else {
            BlockDevice::new(backend)
        })
    }
}

/// What an attempt to take the locks means; perhaps something the user should know.
fn judge(path: &str, outcome: LockOutcome, mode: LockMode, force: bool) -> Result<Option<String>> {
    match outcome {
        LockOutcome::Held => Ok((mode == LockMode::ReadLive)
            .then(|| format!("{path} was opened live: a guest may change it while it is read"))),
        LockOutcome::Unsupported(e) => {
            let text = format!(
                "the host filesystem has no locks ({e}): nothing shows whether a guest is using {path}"
            );
            if mode != LockMode::Write || force {
                return Ok(Some(text));
            }
            Err(FormatError::new(FormatErrorKind::NotAllowed, text)
                .with_hint("make sure that nothing uses the image, and say --force"))
        }
        LockOutcome::Conflict(conflict) => Err(busy(path, &conflict, mode)),
    }
}

fn in_use(path: &str, conflict: &Conflict) -> String {
    let who = conflict.holder.as_deref().unwrap_or("another process");
    format!("{path} is in use: {who} {}", conflict.what)
}

fn busy(path: &str, conflict: &Conflict, mode: LockMode) -> FormatError {
    FormatError::new(FormatErrorKind::Busy, in_use(path, conflict)).with_hint(
        match (mode, conflict.live_would_do) {
            (LockMode::Write, true) => {
                "shut the guest down first: an image in use is never written to"
            }
            (_, true) => {
                "shut the guest down, or read it as it runs with --live (what is read may be inconsistent)"
            }
            (_, false) => "wait until the other process has finished",
        },
    )
}

/// A path as it is shown to people.
pub fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let name = path.as_os_str().as_bytes();
    if crate::remote::url::is_remote(name) {
        // Without the secrets such a name may have in it.
        return crate::remote::url::shown(name);
    }
    printable(name)
}

fn not_opened(path: &Path, write: bool, error: std::io::Error) -> FormatError {
    let kind = error.kind();
    if write && kind == std::io::ErrorKind::ResourceBusy {
        return FormatError::new(
            FormatErrorKind::Busy,
            format!("{} is in use by this host", shown(path)),
        )
        .with_hint("unmount it, and whatever is built on it, before it is written to");
    }
    let failed = FormatError::io(format!("cannot open {}", shown(path)), error);
    match kind {
        std::io::ErrorKind::PermissionDenied if write => {
            failed.with_hint("run guestlens as a user who may write to this file")
        }
        std::io::ErrorKind::PermissionDenied => failed.with_hint(
            "guestlens reads images with the rights of the user who runs it: run it as one who may read this file",
        ),
        std::io::ErrorKind::NotFound => failed.with_hint("check the path for typing errors"),
        _ => failed,
    }
}

/// Refuses what cannot hold an image.
pub fn suitable(metadata: &Metadata, path: &Path) -> Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_file() && metadata.len() == 0 {
        "is an empty file"
    } else if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "is a directory"
    } else if kind.is_fifo() {
        "is a FIFO"
    } else if kind.is_socket() {
        "is a socket"
    } else if kind.is_char_device() {
        "is a character device"
    } else {
        "is neither a regular file nor a block device"
    };
    Err(FormatError::new(
        FormatErrorKind::NotThisFormat,
        format!("{} {what}, not a disk image", shown(path)),
    )
    .with_hint("give a regular file or a block device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_locks_only_reading_goes_on() {
        let outcome = || LockOutcome::Unsupported(nix::errno::Errno::ENOLCK.into());
        let judged = |mode, force| judge("x", outcome(), mode, force);
        for mode in [LockMode::Read, LockMode::ReadLive] {
            assert!(judged(mode, false).unwrap().unwrap().contains("no locks"));
        }
        let error = judged(LockMode::Write, false).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
        assert!(error.hint().unwrap().contains("--force"));
        assert!(judged(LockMode::Write, true).unwrap().is_some());
    }

    #[test]
    fn a_file_that_was_replaced_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let file = HostFile::open(&path, true).unwrap();
        std::fs::write(dir.path().join("new"), [0; 512]).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        let error = file.lock(LockMode::Write, true).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::Busy);
        assert!(file.lock(LockMode::Read, false).is_ok());
    }
}
