//! Raw images: the file's bytes are the disk's bytes.
//!
//! A file that does not end on a 512-byte sector is shown with its last sector filled up with
//! zeroes, as QEMU does.

use std::sync::Arc;

use super::api::{Context, Image, ImageInfo, ImageWriter};
use super::error::Result;
use crate::block::{BlockBackend, BlockDevice, Extent, Geometry, Result as BlockResult};

struct RawImage {
    info: ImageInfo,
    device: BlockDevice,
    writer: Option<RawWriter>,
}

impl Image for RawImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }

    fn writer(&self) -> Option<&dyn ImageWriter> {
        self.writer.as_ref().map(|w| w as &dyn ImageWriter)
    }
}

/// Opens a raw image; of `info` the size is filled in.
///
/// # Errors
/// None; the signature is that of every format.
pub fn open(
    file: BlockDevice,
    mut info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let writer = context.write().then(|| RawWriter { file: file.clone() });
    let device = padded(file);
    // Only `resize` makes the file longer, not a write behind its end.
    let len = device.len();
    let device = if context.write() {
        device.slice(0..len)?
    } else {
        device
    };
    info.virtual_size = device.len();
    Ok(Arc::new(RawImage {
        info,
        device,
        writer,
    }))
}

/// The content of a raw file, whole sectors.
pub fn padded(file: BlockDevice) -> BlockDevice {
    if file.len().is_multiple_of(512) {
        return file;
    }
    BlockDevice::new(Arc::new(Padded { file }))
}

struct RawWriter {
    file: BlockDevice,
}

impl ImageWriter for RawWriter {
    fn resize(&self, len: u64) -> Result<()> {
        self.file.set_len(len)?;
        Ok(self.file.flush()?)
    }

    fn close(&self) -> Result<()> {
        Ok(self.file.flush()?)
    }
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
            read_only: self.file.read_only(),
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

    // Writing to the last, incomplete sector makes the file as long as the disk is shown.

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> BlockResult<()> {
        self.file.write_all_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> BlockResult<()> {
        self.file.write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> BlockResult<()> {
        let inside = len.min(self.file.len().saturating_sub(offset));
        self.file.discard(offset, inside)
    }

    fn flush(&self) -> BlockResult<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::block::memory::MemoryBackend;
    use crate::formats::{OpenOptions, open_device};

    #[test]
    fn only_resizing_makes_a_disk_longer() {
        let memory = Arc::new(MemoryBackend::from_bytes(vec![7; 1024]));
        let options = OpenOptions {
            format: Some("raw".into()),
            write: true,
            ..OpenOptions::default()
        };
        let file = BlockDevice::growable(Arc::clone(&memory) as Arc<dyn BlockBackend>);
        let image = open_device(file, Path::new("x"), &options).unwrap();
        image.device().write_all_at(512, &[1; 512]).unwrap();
        assert!(image.device().write_all_at(1020, &[1; 8]).is_err());
        assert!(image.device().write_zeroes(1024, 1, true).is_err());
        assert_eq!(memory.to_bytes().len(), 1024);
        image.writer().unwrap().resize(2048).unwrap();
        assert_eq!(memory.to_bytes().len(), 2048);
    }
}
