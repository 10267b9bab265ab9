//! A host file or block device as a block device.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use nix::unistd::{Whence, lseek};

use super::backend::{BlockBackend, Geometry};
use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;

/// An open host file. The file's cursor is used to look for holes only; I/O is positioned.
pub struct FileBackend {
    file: File,
    len: u64,
    block_size: u32,
    read_only: bool,
    regular: bool,
}

impl FileBackend {
    /// Takes an open file. Its length is fixed from here on.
    ///
    /// # Errors
    /// [`BlockErrorKind::Io`] if the file cannot be examined, [`BlockErrorKind::Unsupported`] if
    /// it is neither a regular file nor a block device.
    pub fn new(file: File, read_only: bool) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|e| BlockError::io("cannot examine the file", e))?;
        Ok(Self {
            len: measure(&file)?,
            file,
            block_size: 512,
            read_only,
            regular: metadata.file_type().is_file(),
        })
    }

    /// The open file, for locks and for examining it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the next data (or hole) starts at or after `offset`; `None` past the last one.
    fn seek(&self, offset: i64, whence: Whence) -> std::result::Result<Option<u64>, nix::Error> {
        match lseek(self.file.as_fd(), offset, whence) {
            Ok(at) => Ok(u64::try_from(at).ok()),
            Err(nix::Error::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Size of a regular file or block device in bytes.
fn measure(file: &File) -> Result<u64> {
    let metadata = file
        .metadata()
        .map_err(|e| BlockError::io("cannot examine the file", e))?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(metadata.size())
    } else if kind.is_block_device() {
        // A block device's size is where its end is.
        let end = lseek(file.as_fd(), 0, Whence::SeekEnd)
            .map_err(|e| BlockError::io("cannot measure the block device", e.into()))?;
        u64::try_from(end).map_err(|_| BlockError::damaged("a negative device size"))
    } else {
        Err(BlockError::new(
            BlockErrorKind::Unsupported,
            "neither a regular file nor a block device",
        ))
    }
}

impl BlockBackend for FileBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: self.block_size,
            read_only: self.read_only,
        }
    }

    fn current_len(&self) -> u64 {
        measure(&self.file).unwrap_or(self.len)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|e| {
            let mut what = format!("cannot read {} bytes at {offset} of the file", buf.len());
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                what.push_str(", which has become shorter since it was opened");
            }
            BlockError::io(what, e)
        })
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let stored = |len| Extent {
            host_offset: Some(offset),
            ..Extent::data(len)
        };
        let Ok(from) = i64::try_from(offset) else {
            return Ok(stored(len));
        };
        if !self.regular {
            return Ok(stored(len));
        }
        // Filesystems without hole support answer EINVAL or report one extent: all data.
        let Ok(data) = self.seek(from, Whence::SeekData) else {
            return Ok(stored(len));
        };
        match data {
            Some(data) if data <= offset => {
                let end = self
                    .seek(from, Whence::SeekHole)
                    .ok()
                    .flatten()
                    .unwrap_or(self.len);
                match end.checked_sub(offset) {
                    Some(run @ 1..) => Ok(stored(run.min(len))),
                    // The file changed between the two calls.
                    _ => Ok(stored(len)),
                }
            }
            Some(data) => Ok(Extent {
                host_offset: Some(offset),
                ..Extent::hole(data.saturating_sub(offset).min(len))
            }),
            None => Ok(Extent {
                host_offset: Some(offset),
                ..Extent::hole(len)
            }),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return;
        };
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let _ = nix::fcntl::posix_fadvise(self.file.as_fd(), offset, len, advice);
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.file.write_all_at(buf, offset).map_err(|e| {
            BlockError::io(
                format!("cannot write {} bytes at {offset} of the file", buf.len()),
                e,
            )
        })
    }

    fn write_zeroes(&self, mut offset: u64, mut len: u64, _may_unmap: bool) -> Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        while len > 0 {
            let piece = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROES.len());
            self.write_all_at(offset, ZEROES.get(..piece).unwrap_or(&ZEROES))?;
            let piece = crate::ondisk::units::to_u64(piece);
            offset = offset.saturating_add(piece);
            len = len.saturating_sub(piece);
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| BlockError::io("cannot flush the file", e))
    }
}
