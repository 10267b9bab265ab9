//! Extents without metadata of their own.

use crate::block::{BlockBackend, BlockDevice, Extent, ExtentKind, Geometry, Result};

/// Sectors stored as they are, from `start` of a file. What the file lacks reads as zeroes.
pub struct FlatExtent {
    /// The file.
    pub file: BlockDevice,
    /// Byte offset in it.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl BlockBackend for FlatExtent {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self
            .file
            .read_some_at(self.start.saturating_add(offset), buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let at = self.start.saturating_add(offset);
        match self.file.len().checked_sub(at) {
            Some(inside @ 1..) => self.file.extent_at(at, len.min(inside)),
            _ => Ok(Extent {
                host_offset: Some(at),
                ..Extent::hole(len)
            }),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.file.prefetch(self.start.saturating_add(offset), len);
    }
}

/// An extent that is stored nowhere.
pub struct ZeroExtent {
    /// Length in bytes.
    pub len: u64,
}

impl BlockBackend for ZeroExtent {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn extent_at(&self, _offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent {
            kind: ExtentKind::Zero,
            ..Extent::hole(len)
        })
    }
}
