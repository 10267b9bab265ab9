//! Making new streamOptimized VMDK images: grains of 64 KiB, each compressed, in guest order.
//!
//! Specification: VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents".
//!
//! Header, descriptor, grains with the grain tables after those they describe, grain directory,
//! footer (the header again, now with the place of the directory), end of stream: nothing refers
//! forwards, so the image can also be written to a pipe. In a file the header is written last.

use std::collections::BTreeMap;
use std::io::Write;

use parking_lot::Mutex;

use crate::block::{BlockDevice, BlockError, Result};
use crate::formats::build::{Builder, Chunk, Encoder, Unit, inconsistent};
use crate::formats::compressor::{Compressor, Method};
use crate::formats::error::{FormatError, FormatErrorKind, Result as FormatResult};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::units::{to_u64, to_usize};

const SECTOR: usize = 512;
const GRAIN_BYTES: usize = 64 << 10;
/// Grains one grain table describes.
const TABLE_ENTRIES: usize = 512;
const TABLE_REACH: u64 = (GRAIN_BYTES * TABLE_ENTRIES) as u64;
/// Sectors of the embedded descriptor, which follows the header.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Sectors before the first grain.
const OVERHEAD_SECTORS: u64 = 128;
/// Value of the directory's offset in the header of an image that has a footer.
const AT_END: u64 = u64::MAX;

/// Kinds of metadata markers.
#[derive(Clone, Copy)]
enum Marker {
    EndOfStream = 0,
    GrainTable = 1,
    GrainDirectory = 2,
    Footer = 3,
}

enum Out {
    File(BlockDevice),
    Stream(Mutex<Box<dyn Write + Send>>),
}

impl Out {
    /// Writes what comes next, which is at `at`.
    fn next(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File(file) => file.write_all_at(at, bytes),
            Self::Stream(out) => out
                .lock()
                .write_all(bytes)
                .map_err(|e| BlockError::io("cannot write to the stream", e)),
        }
    }
}

/// A VMDK image being made.
pub struct StreamBuilder {
    out: Out,
    len: u64,
    level: i32,
    descriptor: Vec<u8>,
    state: Mutex<State>,
}

struct State {
    /// First byte after what was handed out; a multiple of a sector.
    end: u64,
    /// Grain tables that are not complete, by number.
    tables: BTreeMap<usize, Vec<u32>>,
    /// First sectors of the tables that are written.
    directory: Vec<u32>,
}

impl StreamBuilder {
    /// A disk of `len` bytes, rounded up to whole sectors, in an empty file or a block device.
    /// `name` is what the image's own descriptor calls it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn in_file(file: BlockDevice, len: u64, level: i32, name: &str) -> FormatResult<Self> {
        if !file.is_empty() {
            // Not taken for what was there before.
            file.write_zeroes(0, to_u64(SECTOR), true)?;
            file.flush()?;
        }
        Self::new(Out::File(file), len, level, name)
    }

    /// The same on a stream.
    ///
    /// # Errors
    /// Of writing.
    pub fn on_stream(
        out: Box<dyn Write + Send>,
        len: u64,
        level: i32,
        name: &str,
    ) -> FormatResult<Self> {
        Self::new(Out::Stream(Mutex::new(out)), len, level, name)
    }

    fn new(out: Out, len: u64, level: i32, name: &str) -> FormatResult<Self> {
        let tables = to_usize(len.div_ceil(TABLE_REACH)).unwrap_or(usize::MAX);
        // The directory is kept in memory: 64 TiB, as VMware's largest disks are.
        if tables > 2 << 20 {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!("a disk of {len} bytes is too large for VMDK"),
            ));
        }
        let len = len.next_multiple_of(to_u64(SECTOR));
        let builder = Self {
            descriptor: descriptor(len, name)?,
            out,
            len,
            level,
            state: Mutex::new(State {
                end: OVERHEAD_SECTORS.saturating_mul(to_u64(SECTOR)),
                tables: BTreeMap::new(),
                directory: vec![0; tables],
            }),
        };
        // A file begins with zeroes until it is complete.
        let streamed = matches!(builder.out, Out::Stream(_));
        let first = if streamed {
            builder.header(AT_END)
        } else {
            vec![0; SECTOR]
        };
        builder.out.next(0, &first)?;
        let mut rest = builder.descriptor.clone();
        let overhead = to_usize(OVERHEAD_SECTORS).unwrap_or(0);
        rest.resize(overhead.saturating_sub(1).saturating_mul(SECTOR), 0);
        builder.out.next(to_u64(SECTOR), &rest)?;
        Ok(builder)
    }

    /// The header, or, with the place of the grain directory, the footer.
    fn header(&self, directory_sector: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR);
        bytes.extend_from_slice(b"KDMV");
        bytes.extend_from_slice(&3_u32.to_le_bytes());
        // Line ends can be checked, grains are compressed, there are markers.
        bytes.extend_from_slice(&0x3_0001_u32.to_le_bytes());
        let sectors = self.len.div_euclid(to_u64(SECTOR));
        let grain = to_u64(GRAIN_BYTES / SECTOR);
        for value in [sectors, grain, 1, DESCRIPTOR_SECTORS] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let entries = u32::try_from(TABLE_ENTRIES).unwrap_or(0);
        bytes.extend_from_slice(&entries.to_le_bytes());
        // No second directory; the directory; what comes before the first grain.
        for value in [0, directory_sector, OVERHEAD_SECTORS] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        // Closed properly; the characters of line ends; deflate.
        bytes.extend_from_slice(b"\0\n \r\n\x01\0");
        bytes.resize(SECTOR, 0);
        bytes
    }

    /// Writes tables that no further grain belongs to.
    fn write_tables(&self, state: &mut State, before: usize) -> Result<()> {
        while let Some(entry) = state.tables.first_entry() {
            let index = *entry.key();
            if index >= before {
                break;
            }
            let table = entry.remove();
            let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_le_bytes()).collect();
            let sector = self.metadata(state, Marker::GrainTable, &bytes)?;
            *state.directory.get_mut(index).ok_or_else(inconsistent)? = sector;
        }
        Ok(())
    }

    /// Writes a marker and what it announces; returns the sector of the latter.
    fn metadata(&self, state: &mut State, marker: Marker, body: &[u8]) -> Result<u32> {
        let whole = body.len().next_multiple_of(SECTOR);
        let mut bytes = Vec::with_capacity(whole.saturating_add(SECTOR));
        bytes.extend_from_slice(&to_u64(whole / SECTOR).to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&(marker as u32).to_le_bytes());
        bytes.resize(SECTOR, 0);
        bytes.extend_from_slice(body);
        bytes.resize(whole.saturating_add(SECTOR), 0);
        let at = state.end;
        self.out.next(at, &bytes)?;
        state.end = at.saturating_add(to_u64(bytes.len()));
        sector_of(at.saturating_add(to_u64(SECTOR)))
    }
}

fn sector_of(at: u64) -> Result<u32> {
    u32::try_from(at.div_euclid(to_u64(SECTOR))).map_err(|_| {
        BlockError::new(
            crate::block::BlockErrorKind::Unsupported,
            "the image becomes larger than 2 TiB, where VMDK ends",
        )
    })
}

/// The text that describes the image.
fn descriptor(len: u64, name: &str) -> Result<Vec<u8>> {
    let id = getrandom::u32()
        .map_err(|e| BlockError::io("there are no random numbers", std::io::Error::other(e)))?;
    let sectors = len.div_euclid(to_u64(SECTOR));
    // 0xffffffff and 0xfffffffe mean something of their own.
    let id = id & 0x7fff_ffff;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = if !name.is_empty() && name.len() < 256 && name.chars().all(plain) {
        name
    } else {
        "disk.vmdk"
    };
    let cylinders = sectors.div_euclid(16 * 63).min(16383);
    Ok(format!(
        "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"ide\"\n"
    )
    .into_bytes())
}

/// Compresses grains, each with its marker, filled up to whole sectors.
struct PackGrains {
    compressor: Compressor,
}

impl Encoder for PackGrains {
    fn encode(&mut self, chunk: &mut Chunk) -> Result<()> {
        let mut at = chunk.at;
        for (state, data) in chunk.units.iter_mut().zip(chunk.data.chunks(GRAIN_BYTES)) {
            if is_zero(data) {
                *state = Unit::Zero;
            } else {
                let packed = self.compressor.compress(data)?.ok_or_else(inconsistent)?;
                let start = chunk.packed.len();
                let sector = at.div_euclid(to_u64(SECTOR));
                let len = u32::try_from(packed.len()).map_err(|_| inconsistent())?;
                chunk.packed.extend_from_slice(&sector.to_le_bytes());
                chunk.packed.extend_from_slice(&len.to_le_bytes());
                chunk.packed.extend_from_slice(packed);
                let end = chunk.packed.len().next_multiple_of(SECTOR);
                chunk.packed.resize(end, 0);
                *state = Unit::Packed(start..end);
            }
            at = at.saturating_add(to_u64(GRAIN_BYTES));
        }
        Ok(())
    }
}

impl Builder for StreamBuilder {
    fn unit(&self) -> usize {
        GRAIN_BYTES
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        // Grains that do not shrink are stored in deflate's own way, a few bytes longer.
        let most = GRAIN_BYTES.saturating_add(1024);
        let compressor = Compressor::new(Method::Zlib, self.level, most)?;
        Ok(Box::new(PackGrains { compressor }))
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        let mut state = self.state.lock();
        let first = to_usize(chunk.at.div_euclid(TABLE_REACH)).ok_or_else(inconsistent)?;
        self.write_tables(&mut state, first)?;
        let base = state.end;
        let mut at = chunk.at;
        for unit in &chunk.units {
            if let Unit::Packed(range) = unit {
                let sector = sector_of(base.saturating_add(to_u64(range.start)))?;
                let index = to_usize(at.div_euclid(TABLE_REACH)).ok_or_else(inconsistent)?;
                let within = to_usize(at.rem_euclid(TABLE_REACH)).ok_or_else(inconsistent)?;
                let table = state
                    .tables
                    .entry(index)
                    .or_insert_with(|| vec![0; TABLE_ENTRIES]);
                let entry = table.get_mut(within / GRAIN_BYTES);
                *entry.ok_or_else(inconsistent)? = sector;
            }
            at = at.saturating_add(to_u64(GRAIN_BYTES));
        }
        state.end = base.saturating_add(to_u64(chunk.packed.len()));
        match &self.out {
            Out::File(_) => chunk.add_write(base, 0..chunk.packed.len(), true),
            Out::Stream(_) => self.out.next(base, &chunk.packed)?,
        }
        Ok(())
    }

    fn write(&self, chunk: &mut Chunk) -> Result<()> {
        match &self.out {
            Out::File(file) => chunk.write_to(file),
            Out::Stream(_) => Ok(()),
        }
    }

    fn zeroes(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let mut state = self.state.lock();
        self.write_tables(&mut state, usize::MAX)?;
        let directory: Vec<u8> = state
            .directory
            .iter()
            .flat_map(|e| e.to_le_bytes())
            .collect();
        let sector = self.metadata(&mut state, Marker::GrainDirectory, &directory)?;
        let footer = self.header(sector.into());
        self.metadata(&mut state, Marker::Footer, &footer)?;
        self.metadata(&mut state, Marker::EndOfStream, &[])?;
        match &self.out {
            Out::File(file) => {
                file.flush()?;
                file.write_all_at(0, &self.header(AT_END))?;
                file.flush()
            }
            Out::Stream(out) => out
                .lock()
                .flush()
                .map_err(|e| BlockError::io("cannot write to the stream", e)),
        }
    }
}
