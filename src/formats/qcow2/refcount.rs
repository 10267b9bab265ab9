//! Where an image ends, by its refcounts.
//!
//! Reading needs no refcounts. But a file that was cut short, as by an interrupted copy, still
//! opens, and what is missing reads as zeroes; the last cluster that is in use tells.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Host cluster management".

use super::header::Header;
use crate::block::{BlockDevice, Result};
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

/// Bits of an entry of the refcount table that hold the offset of a refcount block.
const BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;
/// Bytes of the table read at once; it has at most 8 MiB.
const PIECE: u64 = 64 << 10;

/// The host offset of something the image uses that lies past the end of the file. `None`: there
/// is nothing, or the refcounts do not say.
///
/// # Errors
/// What reading reports.
pub fn missing_end(file: &BlockDevice, header: &Header) -> Result<Option<u64>> {
    if header.refcount_table_offset >= file.len() {
        return Ok(Some(header.refcount_table_offset));
    }
    let Some((index, block_at)) = last_block(file, header)? else {
        return Ok(None);
    };
    let layout = &header.layout;
    let cluster_size = layout.cluster_size();
    if !layout.aligned(block_at) {
        return Ok(None);
    }
    if block_at >= file.len() {
        return Ok(Some(block_at));
    }
    let mut block = vec![0; to_usize(cluster_size).unwrap_or_default()];
    file.read_some_at(block_at, &mut block)?;
    let Some(entry) = last_entry(&block, header.refcount_order) else {
        return Ok(None);
    };
    // A cluster has 8 << cluster_bits bits, and a refcount 1 << refcount_order of them.
    let per_block = cluster_size
        .saturating_mul(8)
        .wrapping_shr(header.refcount_order);
    let cluster = index
        .checked_mul(per_block)
        .and_then(|first| first.checked_add(entry));
    let start = cluster.and_then(|c| c.checked_mul(cluster_size));
    Ok(start.filter(|&start| start >= file.len()))
}

/// The last entry in use of the refcount table, and the offset of its block.
fn last_block(file: &BlockDevice, header: &Header) -> Result<Option<(u64, u64)>> {
    let mut end = u64::from(header.refcount_table_clusters)
        .saturating_mul(header.layout.cluster_size())
        .min(file.len().saturating_sub(header.refcount_table_offset));
    // Backwards, a piece at a time; the length of the table bounds it.
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        let len = to_usize(end.saturating_sub(start)).unwrap_or_default();
        let piece = file.read_vec(header.refcount_table_offset.saturating_add(start), len)?;
        let found = piece
            .chunks_exact(8)
            .enumerate()
            .rev()
            .find_map(|(n, entry)| {
                let at = be64(entry, 0)? & BLOCK_MASK;
                let index = start.wrapping_shr(3).checked_add(to_u64(n))?;
                (at != 0).then_some((index, at))
            });
        if found.is_some() {
            return Ok(found);
        }
        end = start;
    }
    Ok(None)
}

/// The last refcount of a block that is not 0.
fn last_entry(block: &[u8], order: u32) -> Option<u64> {
    let at = block.iter().rposition(|&b| b != 0)?;
    let bit = to_u64(at).checked_mul(8)?;
    if order >= 3 {
        return Some(bit.wrapping_shr(order));
    }
    // Refcounts narrower than a byte: the first is in the lowest bits.
    let highest = block.get(at)?.checked_ilog2()?;
    Some(bit.checked_add(highest.into())?.wrapping_shr(order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refcount() {
        assert_eq!(last_entry(&[0; 8], 4), None);
        assert_eq!(last_entry(&[0, 1, 0, 1, 0, 0], 4), Some(1));
        assert_eq!(last_entry(&[0, 1, 1, 0, 0, 0], 4), Some(1));
        assert_eq!(last_entry(&[1, 0, 0, 0], 3), Some(0));
        assert_eq!(last_entry(&[1, 0b0001_0000, 0], 0), Some(12));
        assert_eq!(last_entry(&[1, 0b0001_0000, 0], 1), Some(6));
        assert_eq!(last_entry(&[1, 0b0001_0000, 0], 2), Some(3));
        let mut wide = [0; 24];
        wide[15] = 1;
        assert_eq!(last_entry(&wide, 6), Some(1));
    }
}
