//! The content of a VHDX.
//!
//! Each entry of the block allocation table is a state and the MiB at which a block begins. After
//! as many entries as one sector bitmap block covers comes the entry of that bitmap, which only a
//! differencing image uses: a bit for each sector, least significant first, says whether it is
//! here or in the parent.
//!
//! Specification: Microsoft, [MS-VHDX], 2.5 "BAT".

use super::header::MIB;
use crate::block::{BlockDevice, BlockError, Result};
use crate::formats::mapped::{Mapping, Place, Run};
use crate::formats::slices::Slices;
use crate::ondisk::bytes::le64;
use crate::ondisk::units::{to_u64, to_usize};

/// Bits of an entry that hold the state.
const STATE_MASK: u64 = 7;
/// Bits of an entry that hold the host offset.
pub const OFFSET_MASK: u64 = !(MIB - 1);

const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// State of a block that is in the file; of a bitmap as well.
pub const PRESENT: u64 = 6;
/// State of a block of which some sectors are in the parent.
pub const PARTIALLY_PRESENT: u64 = 7;

/// How blocks and their bitmaps are numbered.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes of a block; a power of two.
    pub block_size: u64,
    /// Bytes of a sector; a power of two.
    pub sector_size: u32,
    /// Size of the virtual disk in bytes.
    pub size: u64,
}

impl Geometry {
    /// Blocks that one sector bitmap block of 1 MiB covers.
    pub fn chunk_ratio(&self) -> u64 {
        (1_u64 << 23)
            .saturating_mul(self.sector_size.into())
            .checked_div(self.block_size)
            .unwrap_or(1)
            .max(1)
    }

    /// Entries the table must have.
    pub fn entries(&self, differencing: bool) -> u64 {
        let blocks = self.size.div_ceil(self.block_size.max(1));
        let ratio = self.chunk_ratio();
        if differencing {
            let bitmaps = blocks.div_ceil(ratio);
            bitmaps.saturating_mul(ratio.saturating_add(1))
        } else {
            let bitmaps = blocks.saturating_sub(1).checked_div(ratio).unwrap_or(0);
            blocks.saturating_add(bitmaps)
        }
    }
}

/// A readable content; see the module text.
pub struct View {
    /// The image file, its log replayed, and its tables.
    pub slices: Slices,
    /// Host offset of the block allocation table, which has an entry for every block.
    pub bat_offset: u64,
    /// How blocks are numbered.
    pub geometry: Geometry,
    /// Whether the file is read as it lies on the host.
    pub verbatim: bool,
    /// What a sector that is not in a differencing image shows.
    pub parent: Option<BlockDevice>,
}

impl View {
    fn entry(&self, index: u64) -> Result<u64> {
        let at = self.bat_offset.saturating_add(index.saturating_mul(8));
        // Regions are aligned, so no entry is cut by the end of a slice.
        let (slice, within) = self.slices.at(at)?;
        le64(&slice, within).ok_or_else(|| BlockError::damaged("a table is cut short"))
    }

    fn offset(entry: u64, what: &str) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        if offset < MIB {
            return Err(BlockError::damaged(format!(
                "{what} is said to be at {offset}"
            )));
        }
        Ok(offset)
    }
}

impl Mapping for View {
    const NAME: &'static str = "VHDX";

    fn disk_len(&self) -> u64 {
        self.geometry.size
    }

    fn sector_size(&self) -> u32 {
        self.geometry.sector_size
    }

    fn file(&self) -> BlockDevice {
        self.slices.file()
    }

    fn verbatim(&self) -> bool {
        self.verbatim
    }

    fn parent(&self) -> Option<&BlockDevice> {
        self.parent.as_ref()
    }

    fn piece_at(&self, at: u64) -> Result<Run> {
        let block_size = self.geometry.block_size;
        let ratio = self.geometry.chunk_ratio();
        let within = at & block_size.wrapping_sub(1);
        let rest = block_size.saturating_sub(within);
        let block = at.checked_div(block_size).unwrap_or(u64::MAX);
        let chunk = block.checked_div(ratio).unwrap_or(0);
        let entry = self.entry(block.saturating_add(chunk))?;
        let whole = |place| Ok(Run { len: rest, place });
        match entry & STATE_MASK {
            NOT_PRESENT => whole(Place::Below),
            UNDEFINED | ZERO | UNMAPPED => whole(Place::Zero),
            PRESENT => {
                let host = Self::offset(entry, "a block")?;
                whole(Place::Here(host.saturating_add(within)))
            }
            PARTIALLY_PRESENT if self.parent.is_some() => {
                let host = Self::offset(entry, "a block")?;
                // Behind the entries of the chunk's blocks.
                let index = chunk
                    .saturating_add(1)
                    .saturating_mul(ratio)
                    .saturating_add(chunk);
                let bitmap = self.entry(index)?;
                if bitmap & STATE_MASK != PRESENT {
                    return Err(BlockError::damaged(
                        "a block is present in part, but there is no bitmap of its sectors",
                    ));
                }
                let bitmap = Self::offset(bitmap, "a sector bitmap")?;
                let sector_size = u64::from(self.geometry.sector_size);
                // Sectors of the chunk, which one bitmap block counts.
                let in_chunk = at & ratio.saturating_mul(block_size).wrapping_sub(1);
                let first = in_chunk.checked_div(sector_size).unwrap_or(0);
                let (slice, byte) = self.slices.at(bitmap.saturating_add(first.div_euclid(8)))?;
                let base = first & !7;
                let bits = to_u64(slice.len().saturating_sub(byte)).saturating_mul(8);
                let bit = |sector: u64| {
                    let within = sector.saturating_sub(base);
                    let value = to_usize(within.div_euclid(8))
                        .and_then(|n| slice.get(byte.checked_add(n)?))
                        .copied()
                        .unwrap_or(0);
                    let shift = u32::try_from(within & 7).unwrap_or(0);
                    value.wrapping_shr(shift) & 1 != 0
                };
                let here = bit(first);
                let end = base.saturating_add(bits);
                let mut past = first.saturating_add(1);
                while past < end && bit(past) == here {
                    past = past.saturating_add(1);
                }
                let len = past.saturating_mul(sector_size).saturating_sub(in_chunk);
                Ok(Run {
                    len: len.min(rest),
                    place: if here {
                        Place::Here(host.saturating_add(within))
                    } else {
                        Place::Below
                    },
                })
            }
            state => Err(BlockError::damaged(format!(
                "a block has the impossible state {state}"
            ))),
        }
    }
}
