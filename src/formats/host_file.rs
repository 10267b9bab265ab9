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
use crate::block::lock::{self, LockMode, LockOutcome};
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
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            // Should the path have become a FIFO since, this must not wait for a writer.
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
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
    /// # Errors
    /// [`FormatErrorKind::Busy`] if another process uses the file in a way `mode` excludes.
    pub fn lock(&self, mode: LockMode) -> Result<Vec<String>> {
        let path = shown(&self.path);
        match lock::acquire(&self.file, mode) {
            Ok(LockOutcome::Held) if mode == LockMode::ReadLive => Ok(vec![format!(
                "{path} was opened live: a guest may change it while it is read"
            )]),
            Ok(LockOutcome::Held) => Ok(Vec::new()),
            Ok(LockOutcome::Unsupported(e)) => Ok(vec![format!(
                "the host filesystem has no locks ({e}): nothing shows whether a guest is using {path}"
            )]),
            Ok(LockOutcome::Conflict(conflict)) => {
                let who = conflict.holder.as_deref().unwrap_or("another process");
                let error = FormatError::new(
                    FormatErrorKind::Busy,
                    format!("{path} is in use: {who} {}", conflict.what),
                );
                Err(if conflict.live_would_do {
                    error.with_hint(
                        "shut the guest down, or read it as it runs with --live (what is read may be inconsistent)",
                    )
                } else {
                    error.with_hint("wait until the other process has finished")
                })
            }
            Err(e) => Err(FormatError::io(format!("cannot lock {path}"), e)),
        }
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

/// A path as it is shown to people.
pub fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    printable(path.as_os_str().as_bytes())
}

fn not_opened(path: &Path, write: bool, error: std::io::Error) -> FormatError {
    let kind = error.kind();
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
