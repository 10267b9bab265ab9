//! Raw images: the file's bytes are the disk's bytes.
//!
//! A file that does not end on a 512-byte sector is shown with its last sector filled up with
//! zeroes, as QEMU does.

use std::sync::Arc;

use super::api::{Image, ImageInfo};
use super::error::Result;
use super::host_file::HostFile;
use crate::block::{BlockBackend, BlockDevice, Extent, Geometry, Result as BlockResult};

struct RawImage {
    info: ImageInfo,
    device: BlockDevice,
}

impl Image for RawImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }
}

/// Opens a raw image; of `info` the size is filled in.
///
/// # Errors
/// [`super::FormatErrorKind::Io`].
pub fn open(file: HostFile, mut info: ImageInfo) -> Result<Arc<dyn Image>> {
    let device = device(file)?;
    info.virtual_size = device.len();
    Ok(Arc::new(RawImage { info, device }))
}

/// The content of a raw file, whole sectors.
///
/// # Errors
/// [`super::FormatErrorKind::Io`].
pub fn device(file: HostFile) -> Result<BlockDevice> {
    let file = file.into_device()?;
    if file.len().is_multiple_of(512) {
        return Ok(file);
    }
    Ok(BlockDevice::new(Arc::new(Padded { file })))
}

struct Padded {
    file: BlockDevice,
}

impl BlockBackend for Padded {
    fn geometry(&self) -> Geometry {
        let len = self.file.len();
        Geometry {
            len: len.checked_next_multiple_of(512).unwrap_or(len),
            block_size: self.file.block_size(),
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> BlockResult<()> {
        let read = self.file.read_some_at(offset, buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> BlockResult<Extent> {
        match self.file.len().checked_sub(offset) {
            Some(inside @ 1..) => self.file.extent_at(offset, len.min(inside)),
            _ => Ok(Extent {
                host_offset: Some(offset),
                ..Extent::hole(len)
            }),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.file.prefetch(offset, len);
    }
}
