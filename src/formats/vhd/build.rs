//! Making new VHD images, dynamic and fixed.
//!
//! Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0. The disk has exactly
//! the size that was asked for: the creator is given as `qem2`, which in QEMU means that the size
//! counts and not the geometry (so `qemu-img create -o force_size=on` writes it); everybody else
//! goes by the size anyway.
//!
//! Order: blocks, block allocation table, footer at the end, flush, footer at the beginning, flush.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::footer::{COOKIE, FOOTER_BYTES, checksum};
use crate::block::{BlockDevice, BlockError, Result};
use crate::formats::build::{Builder, CHUNK_BYTES, Chunk, Encoder, FindZeroes, Unit, inconsistent};
use crate::formats::error::{FormatError, FormatErrorKind, Result as FormatResult};
use crate::formats::raw_build::{RawBuilder, SPARSE_BYTES};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::units::{to_u64, to_usize};

/// Largest disk, in sectors, as in QEMU.
const MAX_SECTORS: u64 = 0xff00_0000;
/// Seconds from 1970 to 2000, from where VHD counts.
const EPOCH: Duration = Duration::from_secs(946_684_800);
/// The usual size of a block.
const BLOCK_BYTES: usize = CHUNK_BYTES;
/// One bit for each sector of a block, in whole sectors.
const BITMAP: [u8; BLOCK_BYTES / 512 / 8] = [0xff; BLOCK_BYTES / 512 / 8];
const HEADER_OFFSET: u64 = 512;
const TABLE_OFFSET: u64 = 1536;
/// What the table says of a block that is not there.
const ABSENT: u32 = u32::MAX;

/// Cylinders, heads and sectors of a disk, as the specification's appendix computes them.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65535 * 16 * 255);
    let (per_track, heads, tracks) = if total >= 65535 * 16 * 63 {
        (255, 16, total.div_euclid(255))
    } else {
        let tracks = total.div_euclid(17);
        let heads = tracks.saturating_add(1023).div_euclid(1024).max(4);
        if tracks < heads.saturating_mul(1024) && heads <= 16 {
            (17, heads, tracks)
        } else if total.div_euclid(31) < 16 * 1024 {
            (31, 16, total.div_euclid(31))
        } else {
            (63, 16, total.div_euclid(63))
        }
    };
    let cylinders = tracks.checked_div(heads).unwrap_or(0);
    (
        u16::try_from(cylinders).unwrap_or(u16::MAX),
        u8::try_from(heads).unwrap_or(16),
        per_track,
    )
}

/// A footer; `header_offset` is that of the dynamic header, if there is one.
fn footer(len: u64, header_offset: Option<u64>) -> Result<Vec<u8>> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| BlockError::io("there are no random numbers", std::io::Error::other(e)))?;
    // A random UUID says so in its version and variant.
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut id;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or(EPOCH).saturating_sub(EPOCH).as_secs();
    let (cylinders, heads, per_track) = geometry(len.div_euclid(512));
    let mut bytes = Vec::with_capacity(FOOTER_BYTES);
    bytes.extend_from_slice(COOKIE);
    // Features (one bit is always set), version of the format.
    bytes.extend_from_slice(&[0, 0, 0, 2, 0, 1, 0, 0]);
    bytes.extend_from_slice(&header_offset.unwrap_or(u64::MAX).to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(now).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(b"qem2\0\x05\0\x03Wi2k");
    // Size at first and now.
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&cylinders.to_be_bytes());
    bytes.extend_from_slice(&[heads, per_track]);
    let kind = if header_offset.is_some() { 3_u32 } else { 2 };
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&id);
    bytes.resize(FOOTER_BYTES, 0);
    put_checksum(&mut bytes, 64);
    Ok(bytes)
}

fn put_checksum(bytes: &mut [u8], at: usize) {
    let sum = checksum(bytes, at).to_be_bytes();
    if let Some(place) = bytes.get_mut(at..at.saturating_add(4)) {
        place.copy_from_slice(&sum);
    }
}

/// The header of an image in blocks.
fn dynamic_header(blocks: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    bytes.extend_from_slice(b"cxsparse");
    bytes.extend_from_slice(&u64::MAX.to_be_bytes());
    bytes.extend_from_slice(&TABLE_OFFSET.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, 0, 0]);
    bytes.extend_from_slice(&blocks.to_be_bytes());
    let block = u32::try_from(BLOCK_BYTES).unwrap_or(0);
    bytes.extend_from_slice(&block.to_be_bytes());
    bytes.resize(1024, 0);
    put_checksum(&mut bytes, 36);
    bytes
}

/// The size of the disk in whole sectors.
fn whole(len: u64) -> FormatResult<u64> {
    let sectors = len.div_ceil(512);
    if sectors > MAX_SECTORS {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("a disk of {len} bytes is too large for VHD, which ends at 2040 GiB"),
        ));
    }
    Ok(sectors.saturating_mul(512))
}

/// A dynamic VHD being made.
pub struct DynamicBuilder {
    file: BlockDevice,
    len: u64,
    fresh: bool,
    state: Mutex<State>,
}

struct State {
    /// First byte after what was handed out.
    end: u64,
    table: Vec<u32>,
}

impl DynamicBuilder {
    /// A disk of `len` bytes, rounded up to whole sectors, in an empty file or a block device.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] if it is too large, or what the device reports.
    pub fn new(file: BlockDevice, len: u64) -> FormatResult<Self> {
        let len = whole(len)?;
        let fresh = file.is_empty();
        if !fresh {
            file.write_zeroes(0, TABLE_OFFSET, true)?;
            file.flush()?;
        }
        let blocks = to_usize(len.div_ceil(to_u64(BLOCK_BYTES))).unwrap_or(usize::MAX);
        // At most a million, as the size was checked.
        let table = vec![ABSENT; blocks];
        let table_bytes = to_u64(blocks).saturating_mul(4).next_multiple_of(512);
        Ok(Self {
            file,
            len,
            fresh,
            state: Mutex::new(State {
                end: TABLE_OFFSET.saturating_add(table_bytes),
                table,
            }),
        })
    }
}

impl Builder for DynamicBuilder {
    fn unit(&self) -> usize {
        BLOCK_BYTES
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(FindZeroes { unit: BLOCK_BYTES }))
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        // A chunk is one block.
        if chunk.units.first() != Some(&Unit::Data) {
            return Ok(());
        }
        let mut state = self.state.lock();
        // The bitmap, then data on a page of its own.
        let bitmap = to_u64(BITMAP.len());
        let data = state
            .end
            .saturating_add(bitmap)
            .next_multiple_of(to_u64(SPARSE_BYTES));
        let start = data.saturating_sub(bitmap);
        state.end = data.saturating_add(to_u64(BLOCK_BYTES));
        let index = to_usize(chunk.at.div_euclid(to_u64(BLOCK_BYTES)));
        let entry = index.and_then(|i| state.table.get_mut(i));
        let sector = u32::try_from(start.div_euclid(512)).map_err(|_| inconsistent())?;
        *entry.ok_or_else(inconsistent)? = sector;
        chunk.packed.extend_from_slice(&BITMAP);
        chunk.add_write(start, 0..BITMAP.len(), true);
        if !self.fresh {
            chunk.add_write(data, 0..chunk.data.len(), false);
            return Ok(());
        }
        let mut from = 0_usize;
        while from < chunk.data.len() {
            let to = from.saturating_add(SPARSE_BYTES).min(chunk.data.len());
            if !is_zero(chunk.data.get(from..to).unwrap_or_default()) {
                chunk.add_write(data.saturating_add(to_u64(from)), from..to, false);
            }
            from = to;
        }
        Ok(())
    }

    fn write(&self, chunk: &mut Chunk) -> Result<()> {
        chunk.write_to(&self.file)
    }

    fn zeroes(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let state = self.state.lock();
        let mut table: Vec<u8> = state.table.iter().flat_map(|e| e.to_be_bytes()).collect();
        table.resize(table.len().next_multiple_of(512), 0xff);
        self.file.write_all_at(TABLE_OFFSET, &table)?;
        let blocks = u32::try_from(state.table.len()).map_err(|_| inconsistent())?;
        self.file
            .write_all_at(HEADER_OFFSET, &dynamic_header(blocks))?;
        let footer = footer(self.len, Some(HEADER_OFFSET))?;
        self.file.write_all_at(state.end, &footer)?;
        self.file.flush()?;
        self.file.write_all_at(0, &footer)?;
        self.file.flush()
    }
}

/// A fixed VHD being made: a raw disk and a footer.
pub struct FixedBuilder {
    raw: RawBuilder,
    file: BlockDevice,
    len: u64,
}

impl FixedBuilder {
    /// As [`DynamicBuilder::new`].
    ///
    /// # Errors
    /// As [`DynamicBuilder::new`].
    pub fn new(file: BlockDevice, len: u64) -> FormatResult<Self> {
        let len = whole(len)?;
        Ok(Self {
            raw: RawBuilder::new(file.clone(), len, Some(SPARSE_BYTES))?,
            file,
            len,
        })
    }
}

impl Builder for FixedBuilder {
    fn unit(&self) -> usize {
        self.raw.unit()
    }

    fn ordered(&self) -> bool {
        self.raw.ordered()
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        self.raw.encoder()
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        self.raw.place(chunk)
    }

    fn write(&self, chunk: &mut Chunk) -> Result<()> {
        self.raw.write(chunk)
    }

    fn zeroes(&self, at: u64, len: u64) -> Result<()> {
        self.raw.zeroes(at, len)
    }

    fn finish(&self) -> Result<()> {
        self.file.flush()?;
        self.file.write_all_at(self.len, &footer(self.len, None)?)?;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_of_the_appendix() {
        assert_eq!(geometry(65535 * 16 * 255 + 1), (65535, 16, 255));
        assert_eq!(geometry(20480), (301, 4, 17));
        let (c, h, s) = geometry(1 << 24);
        assert!(u64::from(c) * u64::from(h) * u64::from(s) <= 1 << 24);
    }
}
