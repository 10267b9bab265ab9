//! The refcounts the image holds: compared with those counted, corrected in place.

use super::report::Report;
use super::structures::Structures;
use super::window::Window;
use crate::formats::error::Result;
use crate::ondisk::bytes::{array, be64};
use crate::ondisk::units::to_usize;

/// Bits of an entry of the refcount table that hold the offset of a refcount block.
const BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;

/// Which refcounts are corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// None.
    Nothing,
    /// Those that are too high.
    Lower,
    /// Those that are too low.
    Raise,
    /// All.
    All,
}

/// What a comparison found beside what it reported.
#[derive(Debug, Default)]
pub struct Compared {
    /// The first cluster after the last one in use.
    pub end: u64,
    /// Whether a cluster in use has no place for a refcount.
    pub block_missing: bool,
}

/// The largest refcount of a width.
pub fn max_refcount(order: u32) -> u64 {
    u64::MAX.wrapping_shr(64_u32.saturating_sub(1_u32.wrapping_shl(order)))
}

/// Refcounts in one block.
pub fn per_block(cluster_size: u64, order: u32) -> u64 {
    cluster_size.saturating_mul(8).wrapping_shr(order)
}

/// The refcount with an index in a block; 0 outside.
pub fn get(block: &[u8], order: u32, index: u64) -> u64 {
    let bit = index.wrapping_shl(order);
    let Some(at) = to_usize(bit.wrapping_shr(3)) else {
        return 0;
    };
    match order {
        0..=2 => {
            let byte = u64::from(block.get(at).copied().unwrap_or(0));
            byte.wrapping_shr(u32::try_from(bit & 7).unwrap_or(0)) & max_refcount(order)
        }
        3 => block.get(at).copied().map_or(0, u64::from),
        4 => array(block, at).map_or(0, |b| u64::from(u16::from_be_bytes(b))),
        5 => array(block, at).map_or(0, |b| u64::from(u32::from_be_bytes(b))),
        _ => be64(block, at).unwrap_or(0),
    }
}

/// Sets the refcount with an index in a block, which it fits into.
pub fn set(block: &mut [u8], order: u32, index: u64, value: u64) {
    let bit = index.wrapping_shl(order);
    let Some(at) = to_usize(bit.wrapping_shr(3)) else {
        return;
    };
    if order < 3 {
        let shift = u32::try_from(bit & 7).unwrap_or(0);
        if let Some(byte) = block.get_mut(at) {
            let mask = max_refcount(order).wrapping_shl(shift);
            let new = (u64::from(*byte) & !mask) | (value.wrapping_shl(shift) & mask);
            *byte = u8::try_from(new & 0xff).unwrap_or(0);
        }
        return;
    }
    let bytes = value.to_be_bytes();
    let len = 1_usize.wrapping_shl(order.saturating_sub(3));
    let from = bytes.len().saturating_sub(len);
    if let (Some(to), Some(low)) = (
        at.checked_add(len).and_then(|end| block.get_mut(at..end)),
        bytes.get(from..),
    ) {
        to.copy_from_slice(low);
    }
}

/// Compares the refcounts of a counted window, corrects what `fix` says, and settles the window.
///
/// # Errors
/// What reading and writing report.
pub fn compare(
    structures: &Structures<'_>,
    window: &mut Window,
    fix: Fix,
    report: &mut Report,
) -> Result<Compared> {
    let header = structures.header;
    let cluster_size = header.layout.cluster_size();
    let order = header.refcount_order;
    let per_block = per_block(cluster_size, order).max(1);
    let table_entries = u64::from(header.refcount_table_clusters)
        .saturating_mul(cluster_size)
        .wrapping_shr(3);
    let mut found = Compared::default();
    let mut buffer = vec![0; to_usize(cluster_size).unwrap_or(0)];
    let mut index = window.start().checked_div(per_block).unwrap_or(0);
    let mut cluster = window.start();
    while cluster < window.end() {
        let end = cluster.saturating_add(per_block).min(window.end());
        let at = if index < table_entries {
            read_entry(structures, index)?
        } else {
            None
        };
        if let Some(at) = at {
            let read = structures.file.read_some_at(at, &mut buffer)?;
            buffer.get_mut(read..).unwrap_or_default().fill(0);
        } else {
            buffer.fill(0);
        }
        let mut block = Block {
            refcounts: &mut buffer,
            order,
            stored: at.is_some(),
            dirty: false,
        };
        for within in 0..end.saturating_sub(cluster) {
            let here = cluster.saturating_add(within);
            // The one behind the end is only there because something may reach a little into it.
            if here >= structures.clusters() && window.count(here) == 0 {
                break;
            }
            compare_one(&mut block, within, here, window, fix, report, &mut found);
        }
        let dirty = block.dirty;
        if let (true, Some(at)) = (dirty, at) {
            structures.file.write_all_at(at, &buffer)?;
        }
        cluster = end;
        index = index.saturating_add(1);
    }
    Ok(found)
}

struct Block<'a> {
    refcounts: &'a mut [u8],
    order: u32,
    stored: bool,
    dirty: bool,
}

fn compare_one(
    block: &mut Block<'_>,
    within: u64,
    cluster: u64,
    window: &mut Window,
    fix: Fix,
    report: &mut Report,
    found: &mut Compared,
) {
    let counted = window.count(cluster);
    let mut stored = get(block.refcounts, block.order, within);
    if stored > 0 || counted > 0 {
        found.end = cluster.saturating_add(1);
    }
    if stored != counted {
        let fits = counted <= max_refcount(block.order);
        let wanted = match fix {
            Fix::Nothing => false,
            Fix::Lower => stored > counted,
            Fix::Raise => stored < counted,
            Fix::All => true,
        };
        if wanted && fits && block.stored {
            set(block.refcounts, block.order, within, counted);
            block.dirty = true;
            stored = counted;
        } else if !fits {
            report.overflows = report.overflows.saturating_add(1);
            report.error(|| {
                format!("cluster {cluster}: {counted} references are more than a refcount can be")
            });
        } else if stored < counted {
            found.block_missing |= !block.stored;
            report.wrong(|| format!("cluster {cluster}: refcount {stored}, {counted} references"));
        } else {
            report.leak(|| {
                format!("leaked cluster {cluster}: refcount {stored}, {counted} references")
            });
        }
    }
    window.settle(cluster, stored, counted);
}

/// Where a refcount block is; `None` if there is none, or none where it can be.
fn read_entry(structures: &Structures<'_>, index: u64) -> Result<Option<u64>> {
    let mut entry = [0; 8];
    let at = structures
        .header
        .refcount_table_offset
        .saturating_add(index.saturating_mul(8));
    if structures.file.read_some_at(at, &mut entry)? < entry.len() {
        return Ok(None);
    }
    let at = u64::from_be_bytes(entry) & BLOCK_MASK;
    let valid = at != 0 && structures.header.layout.aligned(at) && at < structures.file_len;
    Ok(valid.then_some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_all_widths() {
        for order in 0..=6 {
            let mut block = vec![0; 64];
            let count = 512_u64 >> order;
            for index in 0..count {
                set(&mut block, order, index, max_refcount(order));
                assert_eq!(get(&block, order, index), max_refcount(order));
                set(&mut block, order, index, index % 2);
            }
            for index in 0..count {
                assert_eq!(
                    get(&block, order, index),
                    index % 2,
                    "width {order}, {index}"
                );
            }
            assert_eq!(get(&block, order, count), 0);
        }
        assert_eq!(max_refcount(4), 65535);
        assert_eq!(max_refcount(6), u64::MAX);
        let mut block = [0; 2];
        set(&mut block, 4, 0, 0x1234);
        assert_eq!(block, [0x12, 0x34]);
        set(&mut block, 0, 9, 1);
        assert_eq!(block, [0x12, 0x36]);
    }
}
