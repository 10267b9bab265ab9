//! What an implementer of a block device writes. Everybody else uses [`super::BlockDevice`],
//! which has already checked range, overflow, write permission and earlier failure.

use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;

/// The fixed properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub len: u64,
    /// Smallest unit the device itself addresses, in bytes (512 or 4096 on disks, 1 in memory).
    /// A hint for partition tables; reads may be unaligned.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Positioned I/O without a cursor, callable from many threads.
///
/// Callers (that is [`super::BlockDevice`]) promise: the range is not empty and lies inside
/// `geometry().len` (or, on a handle made by [`super::BlockDevice::growable`], reads lie inside
/// `current_len()` and writes may end anywhere), and writes are only issued when `read_only` is
/// false.
pub trait BlockBackend: Send + Sync {
    /// The device's properties; constant for the life of the backend.
    fn geometry(&self) -> Geometry;

    /// Size in bytes now, where that can have grown since `geometry` was asked.
    fn current_len(&self) -> u64 {
        self.geometry().len
    }

    /// Fills `buf` from `offset`.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The run that starts at `offset`, at most `len` bytes long. May be shorter than the real
    /// run; never reports a hole where data is stored.
    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let _ = offset;
        Ok(Extent::data(len))
    }

    /// Tells that `offset..offset + len` will be read soon, in order. Advisory.
    fn prefetch(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Writes `buf` at `offset`. Durable only after [`BlockBackend::flush`].
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let _ = (offset, buf);
        Err(read_only())
    }

    /// Makes `offset..offset + len` read as zeroes; `may_unmap` allows giving the space back.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let _ = (offset, len, may_unmap);
        Err(read_only())
    }

    /// Tells that the content of the range is no longer needed. What it reads as afterwards is
    /// undefined.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(read_only())
    }

    /// Makes the device `len` bytes long: bytes beyond are lost, new ones read as zeroes. Only for
    /// devices that are [growable](super::BlockDevice::growable).
    fn set_len(&self, len: u64) -> Result<()> {
        let _ = len;
        Err(BlockError::new(
            BlockErrorKind::Unsupported,
            "the size of this device is fixed",
        ))
    }

    /// Makes everything written before this call durable, and the length as well.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

fn read_only() -> BlockError {
    BlockError::new(BlockErrorKind::ReadOnly, "the device is read-only")
}
