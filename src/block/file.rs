//! A host file or block device as a block device.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;

use super::backend::{BlockBackend, Geometry};
use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;
use crate::ondisk::units::to_u64;

/// An open host file. The file's cursor is used to look for holes only; I/O is positioned.
pub struct FileBackend {
    file: File,
    len: u64,
    block_size: u32,
    read_only: bool,
    regular: bool,
    /// The length of a file that is written to, which is locked, so that nobody else changes it.
    written_len: AtomicU64,
    /// Held while the file gets longer or shorter.
    resizing: Mutex<()>,
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
        let len = measure(&file)?;
        Ok(Self {
            len,
            written_len: AtomicU64::new(len),
            resizing: Mutex::new(()),
            block_size: logical_block_size(&file, &metadata),
            file,
            read_only,
            regular: metadata.file_type().is_file(),
        })
    }

    /// The open file, for locks and for examining it.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> bool {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return false;
        };
        fallocate(self.file.as_fd(), mode, offset, len).is_ok()
    }

    /// Zeroes without writing them, where the host can: as a hole, or as reserved space.
    fn zero_range(&self, offset: u64, len: u64, may_unmap: bool) -> bool {
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let end = offset.saturating_add(len);
        // Neither may leave the file shorter than a write would.
        if self.regular && end > self.current_len() && self.lengthen(end).is_err() {
            return false;
        }
        (may_unmap && self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, offset, len))
            || self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, offset, len)
    }

    /// The part of a range that the host can zero or give back without writing: of a file all of
    /// it, of a block device whole sectors. Start and length; the latter may be 0.
    fn whole_sectors(&self, offset: u64, len: u64) -> (u64, u64) {
        if self.regular {
            return (offset, len);
        }
        let sector = u64::from(self.block_size);
        let start = offset.checked_next_multiple_of(sector).unwrap_or(offset);
        let end = offset.saturating_add(len);
        let end = end.saturating_sub(end.checked_rem(sector).unwrap_or(0));
        (start, end.saturating_sub(start))
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        while len > 0 {
            let piece = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROES.len());
            self.write_all_at(offset, ZEROES.get(..piece).unwrap_or(&ZEROES))?;
            let piece = to_u64(piece);
            offset = offset.saturating_add(piece);
            len = len.saturating_sub(piece);
        }
        Ok(())
    }

    /// Makes the file at least `len` bytes long.
    fn lengthen(&self, len: u64) -> std::io::Result<()> {
        let _held = self.resizing.lock();
        if len > self.written_len.load(Ordering::Acquire) {
            self.file.set_len(len)?;
            self.written_len.store(len, Ordering::Release);
        }
        Ok(())
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

/// Bytes of a block device's logical sector; of a file, those of a usual disk's.
fn logical_block_size(file: &File, metadata: &Metadata) -> u32 {
    let of_device = || rustix::fs::ioctl_blksszget(file).ok();
    metadata
        .file_type()
        .is_block_device()
        .then(of_device)
        .flatten()
        .filter(|size| size.is_power_of_two() && (512..=64 << 10).contains(size))
        .unwrap_or(512)
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
        if self.read_only {
            return measure(&self.file).unwrap_or(self.len);
        }
        self.written_len.load(Ordering::Acquire)
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
        let end = offset.saturating_add(to_u64(buf.len()));
        let longer = end > self.written_len.load(Ordering::Acquire);
        // A write and `lengthen` must not undo each other.
        let _held = longer.then(|| self.resizing.lock());
        self.file.write_all_at(buf, offset).map_err(|e| {
            BlockError::io(
                format!("cannot write {} bytes at {offset} of the file", buf.len()),
                e,
            )
        })?;
        // Only now can it be read that far.
        self.written_len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let (start, inside) = self.whole_sectors(offset, len);
        if inside > 0 && self.zero_range(start, inside, may_unmap) {
            let end = start.saturating_add(inside);
            self.write_zero_bytes(offset, start.saturating_sub(offset))?;
            return self.write_zero_bytes(end, offset.saturating_add(len).saturating_sub(end));
        }
        self.write_zero_bytes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // A hint: where the host cannot give space back, the bytes stay as they are.
        let (start, len) = self.whole_sectors(offset, len);
        if len > 0 {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = self.fallocate(mode, start, len);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if !self.regular {
            return Err(BlockError::new(
                BlockErrorKind::Unsupported,
                "a block device cannot be made longer or shorter",
            ));
        }
        let _held = self.resizing.lock();
        self.written_len.fetch_min(len, Ordering::AcqRel);
        self.file
            .set_len(len)
            .map_err(|e| BlockError::io(format!("cannot make the file {len} bytes long"), e))?;
        self.written_len.store(len, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| BlockError::io("cannot flush the file", e))
    }
}
