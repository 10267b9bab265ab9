//! Making a new image: what a target format implements.
//!
//! The content of a disk arrives in [`Chunk`]s. Each goes through three steps, so that everything
//! costly happens on many threads and a chunk still lies behind the one before it:
//!
//! 1. [`Encoder::encode`], any order, many threads: finds zeroes, compresses.
//! 2. [`Builder::place`], in guest order, one at a time: decides where it goes. No I/O to speak of.
//! 3. [`Builder::write`], any order, many threads: writes it there.
//!
//! [`Builder::finish`] writes tables and, after a flush, the header, so that what was interrupted
//! is never taken for an image.

use std::ops::Range;

use crate::block::{BlockDevice, BlockError, Result};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::units::to_u64;

/// Most guest bytes in one chunk; a multiple of every builder's unit.
pub const CHUNK_BYTES: usize = 2 << 20;

/// What becomes of one unit (cluster, grain, block) of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Not looked at yet, or stored verbatim.
    Data,
    /// Zeroes.
    Zero,
    /// What the backing file shows there.
    Below,
    /// Stored as these bytes of [`Chunk::packed`].
    Packed(Range<usize>),
}

/// Something to write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Where to, in the image file.
    pub host: u64,
    /// Which bytes of [`Chunk::packed`], or else of [`Chunk::data`].
    pub range: Range<usize>,
    /// Which of the two.
    pub packed: bool,
}

/// A piece of the disk on its way; its buffers are used again for the next one.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Guest offset; a multiple of the builder's unit.
    pub at: u64,
    /// The content, whole units; zeroes past the end of the disk.
    pub data: Vec<u8>,
    /// How much of it is inside the disk.
    pub inside: usize,
    /// One for each unit of the data.
    pub units: Vec<Unit>,
    /// Encoded units, one after the other.
    pub packed: Vec<u8>,
    /// What [`Builder::write`] is to write.
    pub writes: Vec<Write>,
}

impl Chunk {
    /// Marks the units that are zero; `unit` is their size.
    pub fn find_zeroes(&mut self, unit: usize) {
        for (state, data) in self.units.iter_mut().zip(self.data.chunks(unit.max(1))) {
            if *state == Unit::Data && is_zero(data) {
                *state = Unit::Zero;
            }
        }
    }

    /// Has `range` written to `host`, in one go with what comes right before it.
    pub fn add_write(&mut self, host: u64, range: Range<usize>, packed: bool) {
        if let Some(last) = self.writes.last_mut()
            && last.packed == packed
            && last.range.end == range.start
            && last.host.checked_add(to_u64(last.range.len())) == Some(host)
        {
            last.range.end = range.end;
            return;
        }
        self.writes.push(Write {
            host,
            range,
            packed,
        });
    }

    /// The bytes of a write.
    pub fn bytes(&self, write: &Write) -> &[u8] {
        let from = if write.packed {
            &self.packed
        } else {
            &self.data
        };
        from.get(write.range.clone()).unwrap_or_default()
    }

    /// Writes what was placed.
    ///
    /// # Errors
    /// What the device reports.
    pub fn write_to(&self, file: &BlockDevice) -> Result<()> {
        for write in &self.writes {
            file.write_all_at(write.host, self.bytes(write))?;
        }
        Ok(())
    }
}

/// Prepares chunks on one thread.
pub trait Encoder {
    /// Decides for each unit that is not [`Unit::Below`] what becomes of it.
    ///
    /// # Errors
    /// Of the compressor.
    fn encode(&mut self, chunk: &mut Chunk) -> Result<()>;
}

/// An encoder that only looks for zeroes.
pub struct FindZeroes {
    /// Size of a unit in bytes.
    pub unit: usize,
}

impl Encoder for FindZeroes {
    fn encode(&mut self, chunk: &mut Chunk) -> Result<()> {
        chunk.find_zeroes(self.unit);
        Ok(())
    }
}

/// A new image being made; see the module text for the order of calls.
pub trait Builder: Send + Sync {
    /// Size of a unit in bytes: a power of two, at most [`CHUNK_BYTES`].
    fn unit(&self) -> usize;

    /// Whether [`Builder::place`] and [`Builder::zeroes`] must be called in guest order.
    fn ordered(&self) -> bool {
        true
    }

    /// What one thread prepares chunks with.
    ///
    /// # Errors
    /// If there is no memory for a compressor.
    fn encoder(&self) -> Result<Box<dyn Encoder>>;

    /// Gives a chunk its place.
    ///
    /// # Errors
    /// If the format cannot hold it, or of writing tables.
    fn place(&self, chunk: &mut Chunk) -> Result<()>;

    /// Writes a chunk that has its place.
    ///
    /// # Errors
    /// What the device reports.
    fn write(&self, chunk: &mut Chunk) -> Result<()>;

    /// A run that reads as zeroes: whole units, except at the end of the disk.
    ///
    /// # Errors
    /// As [`Builder::place`].
    fn zeroes(&self, at: u64, len: u64) -> Result<()>;

    /// Completes the image and makes it durable.
    ///
    /// # Errors
    /// What the device reports.
    fn finish(&self) -> Result<()>;
}

/// The error for a range that does not lie where this program put it.
pub fn inconsistent() -> BlockError {
    BlockError::damaged("a chunk does not fit the image being made")
}
