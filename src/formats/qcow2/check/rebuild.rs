//! New refcount structures beside the old ones.
//!
//! 1. The clusters in use are counted without the old refcount table and its blocks.
//! 2. Behind the end of the file: the new blocks, then the new table, which count themselves.
//! 3. Flush.
//! 4. The header is switched: offset and size of the table, in one write within its first sector.
//! 5. Flush.
//!
//! A crash before step 4 leaves the image as it was, with bytes behind its end that nothing refers
//! to; after it, the new refcounts count and what the old ones took is free.

use super::stored::{max_refcount, per_block, set};
use super::structures::Structures;
use super::walk::Walk;
use super::window::{WINDOW_CLUSTERS, Window};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::units::to_usize;

/// Largest refcount table in bytes, as in QEMU.
const MAX_TABLE_BYTES: u64 = 8 << 20;
/// Where the header says where the refcount table is: its offset, then its clusters.
const TABLE_AT: u64 = 48;
/// Most rounds until a layout that covers itself is found; each adds less than the one before.
const MAX_ROUNDS: usize = 64;

/// Builds them. The header is to be read again afterwards.
///
/// # Errors
/// [`FormatErrorKind::Damaged`] if that is not possible, in which case nothing was changed; what
/// reading and writing report.
pub fn rebuild(structures: &Structures<'_>) -> Result<()> {
    let layout = plan(structures)?;
    let header = structures.header;
    let cluster_size = header.layout.cluster_size();
    let mut table =
        vec![0; to_usize(layout.table_clusters.saturating_mul(cluster_size)).unwrap_or(0)];
    let mut block = vec![0; to_usize(cluster_size).unwrap_or(0)];
    let mut place = layout.start.saturating_add(layout.table_clusters);
    let mut start = 0;
    while start < layout.end {
        let window = count(structures, start, layout.end)?;
        let mut cluster = start;
        while cluster < window.end() {
            let index = cluster.checked_div(layout.per_block).unwrap_or(0);
            let end = cluster.saturating_add(layout.per_block).min(window.end());
            if layout.needed(index) {
                block.fill(0);
                for here in cluster..end {
                    let new = here >= layout.start && here < layout.end;
                    let count = if new { 1 } else { window.count(here) };
                    if count > 0 {
                        set(
                            &mut block,
                            header.refcount_order,
                            here.saturating_sub(cluster),
                            count,
                        );
                    }
                }
                let at = place.saturating_mul(cluster_size);
                structures.file.write_all_at(at, &block)?;
                set(&mut table, 6, index, at);
                place = place.saturating_add(1);
            }
            cluster = end;
        }
        start = window.end();
    }
    let table_at = layout.start.saturating_mul(cluster_size);
    structures.file.write_all_at(table_at, &table)?;
    structures.file.flush()?;
    let mut fields = table_at.to_be_bytes().to_vec();
    let clusters = u32::try_from(layout.table_clusters).unwrap_or(u32::MAX);
    fields.extend_from_slice(&clusters.to_be_bytes());
    structures.file.write_all_at(TABLE_AT, &fields)?;
    structures.file.flush()?;
    Ok(())
}

/// What goes where.
struct Plan {
    per_block: u64,
    /// A bit for each refcount block: whether there will be one.
    blocks: Vec<u64>,
    /// First cluster of the new structures, which is that of the table.
    start: u64,
    table_clusters: u64,
    /// First cluster behind them.
    end: u64,
}

impl Plan {
    fn needed(&self, index: u64) -> bool {
        let word = to_usize(index.wrapping_shr(6)).and_then(|word| self.blocks.get(word));
        word.is_some_and(|word| word.wrapping_shr(u32::try_from(index & 63).unwrap_or(0)) & 1 != 0)
    }

    fn need(&mut self, index: u64) {
        let Some(word) = to_usize(index.wrapping_shr(6)) else {
            return;
        };
        if word >= self.blocks.len() {
            self.blocks.resize(word.saturating_add(1), 0);
        }
        if let Some(word) = self.blocks.get_mut(word) {
            *word |= 1_u64.wrapping_shl(u32::try_from(index & 63).unwrap_or(0));
        }
    }
}

fn plan(structures: &Structures<'_>) -> Result<Plan> {
    let header = structures.header;
    let cluster_size = header.layout.cluster_size();
    let per_block = per_block(cluster_size, header.refcount_order).max(1);
    // Something may reach into the cluster behind the end.
    let used_end = structures.clusters().saturating_add(1);
    let mut plan = Plan {
        per_block,
        blocks: Vec::new(),
        start: used_end,
        table_clusters: 0,
        end: used_end,
    };
    let mut start = 0;
    while start < used_end {
        let window = count(structures, start, used_end)?;
        for cluster in start..window.end() {
            let count = window.count(cluster);
            if count > max_refcount(header.refcount_order) {
                return Err(FormatError::new(
                    FormatErrorKind::Damaged,
                    format!(
                        "cluster {cluster} has {count} references, more than a refcount can count"
                    ),
                ));
            }
            if count > 0 {
                plan.need(cluster.checked_div(per_block).unwrap_or(0));
            }
        }
        start = window.end();
    }
    for _ in 0..MAX_ROUNDS {
        let (first, last) = (
            plan.start.checked_div(per_block).unwrap_or(0),
            plan.end
                .saturating_sub(1)
                .checked_div(per_block)
                .unwrap_or(0),
        );
        for index in first..=last {
            plan.need(index);
        }
        let blocks: u64 = plan.blocks.iter().map(|w| u64::from(w.count_ones())).sum();
        let table_bytes = last.saturating_add(1).saturating_mul(8);
        if table_bytes > MAX_TABLE_BYTES {
            break;
        }
        plan.table_clusters = table_bytes.div_ceil(cluster_size);
        let end = plan
            .start
            .saturating_add(plan.table_clusters)
            .saturating_add(blocks);
        if end <= plan.end {
            return Ok(plan);
        }
        plan.end = end;
    }
    Err(FormatError::new(
        FormatErrorKind::Unsupported,
        "the refcount table would be larger than 8 MiB",
    ))
}

/// Counts everything but the refcount structures, from cluster `start` on.
fn count(structures: &Structures<'_>, start: u64, end: u64) -> Result<Window> {
    let len = end.saturating_sub(start).min(WINDOW_CLUSTERS);
    let mut window = Window::new(start, len);
    Walk::new(structures, &mut window, None).contents()?;
    Ok(window)
}
