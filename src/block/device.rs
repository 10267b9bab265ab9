//! The handle everybody holds: a window onto a backend, checked once, cheap to clone.
//!
//! After a failed write or flush the device stays failed until it is reopened: Linux may have
//! dropped the dirty pages, so a later flush that succeeds would prove nothing. Reads go on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::{BlockBackend, Geometry};
use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;
use crate::ondisk::units::to_u64;

/// A checked window onto a [`BlockBackend`].
#[derive(Clone)]
pub struct BlockDevice {
    backend: Arc<dyn BlockBackend>,
    failed: Arc<AtomicBool>,
    start: u64,
    len: u64,
    block_size: u32,
    read_only: bool,
    growable: bool,
}

impl std::fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockDevice")
            .field("start", &self.start)
            .field("len", &self.len)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl BlockDevice {
    /// A handle on the whole of `backend`.
    pub fn new(backend: Arc<dyn BlockBackend>) -> Self {
        let Geometry {
            len,
            block_size,
            read_only,
        } = backend.geometry();
        Self {
            backend,
            failed: Arc::default(),
            start: 0,
            len,
            block_size,
            read_only,
            growable: false,
        }
    }

    /// A handle on the whole of `backend` whose length is always the present one: a write past
    /// the end makes the device longer (what lies between reads as zeroes), and
    /// [`BlockDevice::set_len`] works. What an image format writes its own file through.
    pub fn growable(backend: Arc<dyn BlockBackend>) -> Self {
        Self {
            growable: true,
            ..Self::new(backend)
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        if self.growable {
            return self.backend.current_len();
        }
        self.len
    }

    /// Whether the device has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device's own addressing unit in bytes; see [`Geometry::block_size`].
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The same device, refusing writes.
    #[must_use]
    pub fn into_read_only(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    /// The same device with another addressing unit, in bytes.
    #[must_use]
    pub fn with_block_size(self, block_size: u32) -> Self {
        Self { block_size, ..self }
    }

    /// A window onto `range` of this device.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`] if the range does not lie inside the device.
    pub fn slice(&self, range: Range<u64>) -> Result<Self> {
        let len = range
            .end
            .checked_sub(range.start)
            .ok_or_else(|| self.outside(range.start, 0))?;
        self.check(range.start, len)?;
        let start = self
            .start
            .checked_add(range.start)
            .ok_or_else(|| self.outside(0, len))?;
        Ok(Self {
            start,
            len,
            growable: false,
            ..self.clone()
        })
    }

    /// The same device as long as it is now, if the file behind it has grown since it was opened
    /// (a running guest's image does); a window stays as it is.
    #[must_use]
    pub fn remeasured(&self) -> Self {
        let now = self.backend.current_len();
        let whole = self.start == 0 && self.len == self.backend.geometry().len;
        Self {
            len: if whole { now.max(self.len) } else { self.len },
            ..self.clone()
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`], or what the backend reports.
    pub fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = self.check(offset, to_u64(buf.len()))?;
        if buf.is_empty() {
            return Ok(());
        }
        self.backend.read_exact_at(at, buf)
    }

    /// `len` bytes from `offset` in a new buffer. `len` must have a bound the image does not
    /// choose.
    ///
    /// # Errors
    /// As [`BlockDevice::read_exact_at`].
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        // Checked first, so that a length beyond the device allocates nothing.
        self.check(offset, to_u64(len))?;
        let mut buf = vec![0; len];
        self.read_exact_at(offset, &mut buf)?;
        Ok(buf)
    }

    /// Fills as much of `buf` as the device has from `offset`; returns the number of bytes.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn read_some_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let available = self.len().saturating_sub(offset);
        let len = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let Some(head @ [_, ..]) = buf.get_mut(..len) else {
            return Ok(0);
        };
        self.read_exact_at(offset, head)?;
        Ok(len)
    }

    /// The run that starts at `offset`, at most `len` bytes long.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`] (also for an empty range), or what the backend reports.
    pub fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let at = self.check(offset, len)?;
        if len == 0 {
            return Err(self.outside(offset, len));
        }
        let extent = self.backend.extent_at(at, len)?;
        if extent.len == 0 {
            return Err(BlockError::damaged(
                "a backend reported an extent of no length",
            ));
        }
        Ok(extent.truncated(len))
    }

    /// Tells that the range will be read soon. Advisory; a range outside is ignored.
    pub fn prefetch(&self, offset: u64, len: u64) {
        let len = len.min(self.len().saturating_sub(offset));
        if let (true, Ok(at)) = (len > 0, self.check(offset, len)) {
            self.backend.prefetch(at, len);
        }
    }

    /// Writes `buf` at `offset`; durable after [`BlockDevice::flush`].
    ///
    /// # Errors
    /// [`BlockErrorKind::ReadOnly`], [`BlockErrorKind::Failed`], [`BlockErrorKind::OutOfRange`],
    /// or what the backend reports.
    pub fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let at = self.check_write(offset, to_u64(buf.len()))?;
        if buf.is_empty() {
            return Ok(());
        }
        self.remember(self.backend.write_all_at(at, buf))
    }

    /// Makes a range read as zeroes; see [`BlockBackend::write_zeroes`].
    ///
    /// # Errors
    /// As [`BlockDevice::write_all_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let at = self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.remember(self.backend.write_zeroes(at, len, may_unmap))
    }

    /// Gives the space of a range back; see [`BlockBackend::discard`].
    ///
    /// # Errors
    /// As [`BlockDevice::write_all_at`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let at = self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.remember(self.backend.discard(at, len))
    }

    /// Makes a [growable](BlockDevice::growable) device `len` bytes long; see
    /// [`BlockBackend::set_len`].
    ///
    /// # Errors
    /// [`BlockErrorKind::Unsupported`] on any other device; as [`BlockDevice::write_all_at`].
    pub fn set_len(&self, len: u64) -> Result<()> {
        if !self.growable {
            return Err(BlockError::new(
                BlockErrorKind::Unsupported,
                "the size of this device is fixed",
            ));
        }
        self.check_write(0, len)?;
        self.remember(self.backend.set_len(len))
    }

    /// Makes everything written before this call durable.
    ///
    /// # Errors
    /// [`BlockErrorKind::Failed`], or what the backend reports.
    pub fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.check_alive()?;
        self.remember(self.backend.flush())
    }

    /// Absolute offset of a range that lies inside the window.
    fn check(&self, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => self
                .start
                .checked_add(offset)
                .ok_or_else(|| self.outside(offset, len)),
            _ => Err(self.outside(offset, len)),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if self.read_only {
            return Err(BlockError::new(
                BlockErrorKind::ReadOnly,
                "the device is read-only",
            ));
        }
        self.check_alive()?;
        if self.growable {
            // Nothing is as long as an offset can be; the host has its own limit below this one.
            let end = offset.checked_add(len);
            return match end {
                Some(end) if end <= crate::limits::MAX_DEVICE_BYTES => Ok(offset),
                _ => Err(self.outside(offset, len)),
            };
        }
        self.check(offset, len)
    }

    fn check_alive(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(BlockError::new(
                BlockErrorKind::Failed,
                "an earlier write failed; the device takes no more until it is reopened",
            ));
        }
        Ok(())
    }

    fn remember<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    fn outside(&self, offset: u64, len: u64) -> BlockError {
        BlockError::new(
            BlockErrorKind::OutOfRange,
            format!(
                "bytes {offset}+{len} lie outside a device of {} bytes",
                self.len
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::fault::{FaultBackend, FaultPlan};
    use crate::block::memory::MemoryBackend;

    fn device(len: usize) -> BlockDevice {
        MemoryBackend::from_bytes((0..len).map(|i| i as u8).collect()).into_device()
    }

    #[test]
    fn slices_of_slices_read_the_right_bytes() {
        let d = device(100).slice(10..90).unwrap().slice(5..15).unwrap();
        assert_eq!(d.len(), 10);
        assert_eq!(d.read_vec(0, 10).unwrap(), (15..25).collect::<Vec<u8>>());
        assert_eq!(
            d.read_vec(9, 2).unwrap_err().kind(),
            BlockErrorKind::OutOfRange
        );
        assert_eq!(
            d.read_vec(u64::MAX, 2).unwrap_err().kind(),
            BlockErrorKind::OutOfRange
        );
        assert!(device(10).slice(5..11).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 6..5;
        assert!(device(10).slice(reversed).is_err());
    }

    #[test]
    fn read_some_stops_at_the_end() {
        let mut buf = [0xFF; 8];
        assert_eq!(device(10).read_some_at(6, &mut buf).unwrap(), 4);
        assert_eq!(buf[..4], [6, 7, 8, 9]);
        assert_eq!(device(10).read_some_at(10, &mut buf).unwrap(), 0);
        assert_eq!(device(10).read_some_at(u64::MAX, &mut buf).unwrap(), 0);
    }

    #[test]
    fn read_only_refuses_writes() {
        let d = device(10).into_read_only();
        assert_eq!(
            d.write_all_at(0, b"x").unwrap_err().kind(),
            BlockErrorKind::ReadOnly
        );
        assert!(d.flush().is_ok());
    }

    #[test]
    fn stays_failed_after_a_failed_flush() {
        let plan = FaultPlan {
            fail_flush: Some(0),
            ..FaultPlan::default()
        };
        let backend = FaultBackend::new(device(10), plan);
        let d = BlockDevice::new(Arc::new(backend));
        d.write_all_at(0, b"x").unwrap();
        assert_eq!(d.flush().unwrap_err().kind(), BlockErrorKind::Io);
        assert_eq!(d.flush().unwrap_err().kind(), BlockErrorKind::Failed);
        assert_eq!(
            d.slice(0..5).unwrap().flush().unwrap_err().kind(),
            BlockErrorKind::Failed
        );
        assert_eq!(
            d.write_all_at(0, b"x").unwrap_err().kind(),
            BlockErrorKind::Failed
        );
        assert_eq!(d.read_vec(0, 1).unwrap(), b"x");
    }
}
