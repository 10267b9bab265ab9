//! A device in memory.

use std::sync::Arc;

use parking_lot::RwLock;

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::{BlockError, BlockErrorKind, Result};
use crate::ondisk::units::to_u64;

/// Bytes in memory as a writable block device.
pub struct MemoryBackend {
    bytes: RwLock<Vec<u8>>,
    len: u64,
}

impl MemoryBackend {
    /// A device that starts with `bytes` and keeps their length.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            len: to_u64(bytes.len()),
            bytes: RwLock::new(bytes),
        }
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

fn outside() -> BlockError {
    BlockError::new(
        BlockErrorKind::OutOfRange,
        "a request lies outside a device in memory",
    )
}

impl BlockBackend for MemoryBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: false,
        }
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
        let to = range(offset, buf.len())
            .and_then(|r| bytes.get_mut(r))
            .ok_or_else(outside)?;
        to.copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| outside())?;
        let mut bytes = self.bytes.write();
        range(offset, len)
            .and_then(|r| bytes.get_mut(r))
            .ok_or_else(outside)?
            .fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, true)
    }
}
