//! The content of an image in blocks.
//!
//! Each entry of the block allocation table is the sector at which a block begins: a bitmap with
//! a bit for each sector of the block, most significant first, then the sectors. In a differencing
//! image a clear bit means the sector is the parent's. In a dynamic one the bitmap says nothing
//! that matters and is not looked at, as in QEMU.

use crate::block::{BlockDevice, Result};
use crate::formats::mapped::{Mapping, Place, Run};
use crate::formats::slices::Slices;
use crate::ondisk::bytes::be32;
use crate::ondisk::units::{to_u64, to_usize};

/// A table entry of a block that is not there.
pub const UNALLOCATED: u32 = u32::MAX;

/// A readable content; see the module text.
pub struct View {
    /// The image file, and its table and bitmaps.
    pub slices: Slices,
    /// Host offset of the block allocation table, which has an entry for every block of the disk.
    pub table_offset: u64,
    /// Bytes of a block; a power of two.
    pub block_size: u64,
    /// Bytes of the bitmap in front of a block.
    pub bitmap_size: u64,
    /// Size of the virtual disk in bytes.
    pub len: u64,
    /// What a sector that is not in a differencing image shows; `None` in a dynamic image.
    pub parent: Option<BlockDevice>,
}

impl View {
    /// Bytes of the bitmap in front of a block of `block_size` bytes.
    pub fn bitmap_size(block_size: u64) -> u64 {
        block_size.div_euclid(512 * 8).max(1).next_multiple_of(512)
    }
}

impl Mapping for View {
    const NAME: &'static str = "VHD";

    fn disk_len(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn file(&self) -> BlockDevice {
        self.slices.file()
    }

    fn parent(&self) -> Option<&BlockDevice> {
        self.parent.as_ref()
    }

    /// A run within one block.
    fn piece_at(&self, at: u64) -> Result<Run> {
        let within = at & self.block_size.wrapping_sub(1);
        let index = at.checked_div(self.block_size).unwrap_or(u64::MAX);
        let rest = self.block_size.saturating_sub(within);
        let entry_at = self.table_offset.saturating_add(index.saturating_mul(4));
        let (slice, entry) = self.slices.at(entry_at)?;
        let sector = match be32(&slice, entry) {
            Some(sector) => sector,
            // An entry that is cut by the end of a slice: the table need not be aligned.
            None => {
                let mut bytes = [0; 4];
                self.slices.file().read_exact_at(entry_at, &mut bytes)?;
                u32::from_be_bytes(bytes)
            }
        };
        if sector == UNALLOCATED {
            return Ok(Run {
                len: rest,
                place: Place::Below,
            });
        }
        let block = u64::from(sector).saturating_mul(512);
        let host = block
            .saturating_add(self.bitmap_size)
            .saturating_add(within);
        if self.parent.is_none() {
            return Ok(Run {
                len: rest,
                place: Place::Here(host),
            });
        }
        let first = within.div_euclid(512);
        let sectors = self.block_size.div_euclid(512);
        let (slice, byte) = self.slices.at(block.saturating_add(first.div_euclid(8)))?;
        // The bits of this slice that belong to this block.
        let bits = to_u64(slice.len().saturating_sub(byte)).saturating_mul(8);
        let base = first & !7;
        let end = sectors.min(base.saturating_add(bits));
        let bit = |sector: u64| {
            let within = sector.saturating_sub(base);
            let byte = to_usize(within.div_euclid(8))
                .and_then(|n| slice.get(byte.checked_add(n)?))
                .copied()
                .unwrap_or(0);
            let shift = u32::try_from(within & 7).unwrap_or(0);
            byte & 0x80_u8.wrapping_shr(shift) != 0
        };
        let here = bit(first);
        let mut past = first.saturating_add(1);
        while past < end && bit(past) == here {
            past = past.saturating_add(1);
        }
        Ok(Run {
            len: past.saturating_mul(512).saturating_sub(within),
            place: if here {
                Place::Here(host)
            } else {
                Place::Below
            },
        })
    }
}
