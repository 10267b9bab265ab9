//! A device in memory.

use std::sync::Arc;

use parking_lot::RwLock;

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::{BlockError, BlockErrorKind, Result};
use crate::ondisk::units::to_u64;

/// Most bytes a device in memory can grow to; tests need no more.
const MAX_BYTES: usize = 1 << 30;

/// Bytes in memory as a writable block device.
pub struct MemoryBackend {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryBackend {
    /// A device that starts with `bytes` and keeps their length, unless it is made
    /// [growable](BlockDevice::growable).
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }

    /// A copy of what it holds now.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }

    /// A handle on the whole of it.
    pub fn into_device(self) -> BlockDevice {
        BlockDevice::new(Arc::new(self))
    }
}

/// The range a request covers, as indexes. `None` is a broken promise of the caller.
fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}

/// The bytes a write covers; the device grows to them. [`BlockDevice`] has refused what may not.
fn part(bytes: &mut Vec<u8>, offset: u64, len: usize) -> Result<&mut [u8]> {
    let range = range(offset, len)
        .filter(|r| r.end <= MAX_BYTES)
        .ok_or_else(outside)?;
    if range.end > bytes.len() {
        bytes.resize(range.end, 0);
    }
    bytes.get_mut(range).ok_or_else(outside)
}

fn outside() -> BlockError {
    BlockError::new(
        BlockErrorKind::OutOfRange,
        "a request lies outside a device in memory",
    )
}

impl BlockBackend for MemoryBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.current_len(),
            block_size: 512,
            read_only: false,
        }
    }

    fn current_len(&self) -> u64 {
        to_u64(self.bytes.read().len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let len = usize::try_from(len)
            .ok()
            .filter(|&len| len <= MAX_BYTES)
            .ok_or_else(outside)?;
        self.bytes.write().resize(len, 0);
        Ok(())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read();
        let from = range(offset, buf.len())
            .and_then(|r| bytes.get(r))
            .ok_or_else(outside)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.write();
        part(&mut bytes, offset, buf.len())?.copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| outside())?;
        part(&mut self.bytes.write(), offset, len)?.fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, true)
    }
}
