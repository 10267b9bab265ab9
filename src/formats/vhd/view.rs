//! The content of an image in blocks.
//!
//! Each entry of the block allocation table is the sector at which a block begins: a bitmap with
//! a bit for each sector of the block, most significant first, then the sectors. In a differencing
//! image a clear bit means the sector is the parent's. In a dynamic one the bitmap says nothing
//! that matters and is not looked at, as in QEMU.

use crate::block::{BlockBackend, BlockDevice, BlockError, Extent, Geometry, Result};
use crate::formats::slices::Slices;
use crate::ondisk::bytes::be32;
use crate::ondisk::units::{to_u64, to_usize};

/// Pieces joined to one run at most; a bound on the work of one lookup.
const MAX_PIECES: usize = 4096;
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

#[derive(Clone, Copy)]
enum Place {
    /// At a host offset.
    Here(u64),
    /// In the parent, or nowhere.
    Below,
}

#[derive(Clone, Copy)]
struct Run {
    len: u64,
    place: Place,
}

impl View {
    /// Bytes of the bitmap in front of a block of `block_size` bytes.
    pub fn bitmap_size(block_size: u64) -> u64 {
        block_size.div_euclid(512 * 8).max(1).next_multiple_of(512)
    }

    fn run_at(&self, at: u64, max: u64) -> Result<Run> {
        let mut run = self.piece_at(at)?;
        for _ in 0..MAX_PIECES {
            if run.len >= max {
                break;
            }
            let next = match self.piece_at(at.saturating_add(run.len)) {
                Ok(next) => next,
                // An error belongs to the read that starts there.
                Err(_) => break,
            };
            let continues = match (run.place, next.place) {
                (Place::Below, Place::Below) => true,
                (Place::Here(a), Place::Here(b)) => a.checked_add(run.len) == Some(b),
                _ => false,
            };
            if !continues {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        run.len = run.len.min(max);
        Ok(run)
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

    fn read_here(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.slices.file().read_some_at(host, buf)?;
        if read < buf.len() {
            return Err(BlockError::damaged(format!(
                "a block with bytes at {host}+{} is outside the file",
                buf.len()
            )));
        }
        Ok(())
    }

    fn read_below(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let read = match &self.parent {
            Some(parent) => parent.read_some_at(at, buf)?,
            None => 0,
        };
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl BlockBackend for View {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let run = self
                .run_at(at, to_u64(rest.len()))
                .map_err(|e| e.within(format!("VHD mapping of guest offset {at}")))?;
            let len = to_usize(run.len).unwrap_or(usize::MAX).min(rest.len());
            let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
                return Err(BlockError::damaged("a run longer than the request"));
            };
            match run.place {
                Place::Here(host) => self.read_here(host, piece)?,
                Place::Below => self.read_below(at, piece)?,
            }
            at = at.saturating_add(run.len);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.run_at(offset, len)?;
        match (run.place, &self.parent) {
            (Place::Here(host), _) => Ok(Extent {
                host_offset: Some(host),
                ..Extent::data(run.len)
            }),
            (Place::Below, Some(parent)) => extent_below(parent, offset, run.len),
            (Place::Below, None) => Ok(Extent::hole(run.len)),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        if let Ok(run) = self.run_at(offset, len) {
            match (run.place, &self.parent) {
                (Place::Here(host), _) => self.slices.file().prefetch(host, run.len),
                (Place::Below, Some(parent)) => parent.prefetch(offset, run.len),
                (Place::Below, None) => {}
            }
        }
    }
}

/// The extent of a parent, seen from its child; a hole where the parent is shorter.
///
/// # Errors
/// What the parent reports.
pub fn extent_below(parent: &BlockDevice, offset: u64, len: u64) -> Result<Extent> {
    match parent.len().checked_sub(offset) {
        Some(inside @ 1..) => {
            let below = parent.extent_at(offset, len.min(inside))?;
            Ok(Extent {
                depth: below.depth.saturating_add(1),
                ..below
            })
        }
        _ => Ok(Extent::hole(len)),
    }
}
