//! Making raw disks: in a file or block device, or on a stream that only goes forward.

use parking_lot::Mutex;

use super::build::{Builder, Chunk, Encoder, FindZeroes, Unit};
use crate::block::{BlockDevice, BlockError, Result};
use crate::ondisk::units::{to_u64, to_usize};

/// Zeroes smaller than this are written, as in `qemu-img convert`; also the smallest unit in which
/// files have holes.
pub const SPARSE_BYTES: usize = 4096;

/// A raw disk in a file or block device.
pub struct RawBuilder {
    file: BlockDevice,
    len: u64,
    unit: usize,
    /// Whether what is not written reads as zeroes.
    fresh: bool,
    /// Whether zeroes need not occupy space.
    unmap: bool,
}

impl RawBuilder {
    /// A disk of `len` bytes in `file`, which is an empty file or a block device. Runs of zeroes of
    /// `sparse` bytes and more become holes; `None`: no holes.
    ///
    /// # Errors
    /// If the file cannot be made that long.
    pub fn new(file: BlockDevice, len: u64, sparse: Option<usize>) -> Result<Self> {
        let fresh = file.is_empty();
        if fresh {
            file.set_len(len)?;
        } else if file.len() < len {
            return Err(too_small(&file, len));
        }
        Ok(Self {
            file,
            len,
            unit: sparse.unwrap_or(SPARSE_BYTES),
            fresh: fresh && sparse.is_some(),
            unmap: sparse.is_some(),
        })
    }
}

/// The error for a block device that is smaller than what is to be in it.
pub fn too_small(file: &BlockDevice, len: u64) -> BlockError {
    BlockError::new(
        crate::block::BlockErrorKind::OutOfRange,
        format!("it has {} bytes, but {len} are needed", file.len()),
    )
}

impl Builder for RawBuilder {
    fn unit(&self) -> usize {
        self.unit
    }

    fn ordered(&self) -> bool {
        false
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(FindZeroes { unit: self.unit }))
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        let units = std::mem::take(&mut chunk.units);
        let mut from = 0_usize;
        for unit in &units {
            let to = from.saturating_add(self.unit).min(chunk.inside);
            if *unit == Unit::Data {
                let host = chunk.at.saturating_add(to_u64(from));
                chunk.add_write(host, from..to, false);
            }
            from = to;
        }
        chunk.units = units;
        Ok(())
    }

    fn write(&self, chunk: &mut Chunk) -> Result<()> {
        if !self.fresh {
            let mut from = 0_usize;
            for run in chunk.units.chunk_by(|a, b| a == b) {
                let bytes = run.len().saturating_mul(self.unit);
                let to = from.saturating_add(bytes).min(chunk.inside);
                if run.first() == Some(&Unit::Zero) {
                    let at = chunk.at.saturating_add(to_u64(from));
                    self.zeroes(at, to_u64(to.saturating_sub(from)))?;
                }
                from = to;
            }
        }
        chunk.write_to(&self.file)
    }

    fn zeroes(&self, at: u64, len: u64) -> Result<()> {
        if self.fresh {
            return Ok(());
        }
        self.file
            .write_zeroes(at, len.min(self.len.saturating_sub(at)), self.unmap)
    }

    fn finish(&self) -> Result<()> {
        self.file.flush()
    }
}

/// A raw disk on a stream: zeroes are written like everything else.
pub struct RawStream<W> {
    out: Mutex<W>,
}

impl<W: std::io::Write + Send> RawStream<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out: Mutex::new(out),
        }
    }

    /// The stream, after the last byte.
    pub fn into_inner(self) -> W {
        self.out.into_inner()
    }
}

fn stream_error(error: std::io::Error) -> BlockError {
    BlockError::io("cannot write to the stream", error)
}

struct AsItIs;

impl Encoder for AsItIs {
    fn encode(&mut self, _: &mut Chunk) -> Result<()> {
        Ok(())
    }
}

impl<W: std::io::Write + Send> Builder for RawStream<W> {
    fn unit(&self) -> usize {
        SPARSE_BYTES
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(AsItIs))
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        let data = chunk.data.get(..chunk.inside).unwrap_or_default();
        self.out.lock().write_all(data).map_err(stream_error)
    }

    fn write(&self, _: &mut Chunk) -> Result<()> {
        Ok(())
    }

    fn zeroes(&self, _: u64, mut len: u64) -> Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut out = self.out.lock();
        while len > 0 {
            let piece = to_usize(len).unwrap_or(usize::MAX).min(ZEROES.len());
            out.write_all(ZEROES.get(..piece).unwrap_or_default())
                .map_err(stream_error)?;
            len = len.saturating_sub(to_u64(piece));
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.out.lock().flush().map_err(stream_error)
    }
}
