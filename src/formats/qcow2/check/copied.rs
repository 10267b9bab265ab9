//! COPIED flags of the disk's own tables.
//!
//! The flag of an L1 or L2 entry is set exactly if the refcount of the cluster it names is 1. Those
//! of snapshots mean nothing.

use super::super::layout::OFFSET_MASK;
use super::report::Report;
use super::structures::Structures;
use super::walk::{Entry, decode, read_l2};
use super::window::Window;
use crate::formats::error::Result;
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

const COPIED: u64 = 1 << 63;

/// Checks the flags of entries that name clusters of a settled window. With `fix`, corrects those
/// whose refcount is right.
///
/// # Errors
/// What reading and writing report.
pub fn check(
    structures: &Structures<'_>,
    window: &Window,
    fix: bool,
    report: &mut Report,
) -> Result<()> {
    let layout = &structures.header.layout;
    let judge = |cluster: u64, copied: bool| -> Verdict {
        // Behind the file is no cluster with a refcount; that is said once.
        let one = match window.stored_one(cluster) {
            Some(one) => one,
            None if cluster >= structures.clusters() && window.start() == 0 => false,
            None => return Verdict::Right,
        };
        if one == copied {
            Verdict::Right
        } else if fix && window.agrees(cluster) {
            Verdict::Change
        } else {
            Verdict::Wrong
        }
    };
    for table in structures.l1.iter().filter(|t| t.active) {
        structures.walk_l1(table, |index, entry| {
            let offset = entry & OFFSET_MASK;
            if offset == 0 {
                return Ok(());
            }
            let cluster = structures.cluster_of(offset);
            match judge(cluster, entry & COPIED != 0) {
                Verdict::Right => {}
                Verdict::Wrong => report
                    .wrong(|| format!("the COPIED flag of L1 entry {index} is wrong: {entry:#x}")),
                Verdict::Change => {
                    let at = table.offset.saturating_add(index.saturating_mul(8));
                    structures
                        .file
                        .write_all_at(at, &(entry ^ COPIED).to_be_bytes())?;
                }
            }
            Ok(())
        })?;
    }
    let mut buffer = vec![0; to_usize(layout.cluster_size()).unwrap_or(0)];
    let entry_len = 1_usize.wrapping_shl(layout.l2_entry_bits());
    for table in structures.l2.iter().filter(|t| t.active > 0) {
        if !read_l2(structures, table, &mut buffer)? {
            continue;
        }
        let mut dirty = false;
        for (index, bytes) in buffer.chunks_exact_mut(entry_len).enumerate() {
            let entry = be64(bytes, 0).unwrap_or(0);
            let Entry::Cluster { offset, copied } = decode(structures, entry) else {
                continue;
            };
            let verdict = if layout.external_data {
                // Clusters of a data file have no refcounts and belong to this image alone.
                match (copied, window.start() == 0) {
                    (true, _) | (_, false) => Verdict::Right,
                    (false, true) if fix => Verdict::Change,
                    (false, true) => Verdict::Wrong,
                }
            } else {
                judge(structures.cluster_of(offset), copied)
            };
            match verdict {
                Verdict::Right => {}
                Verdict::Wrong => {
                    for _ in 0..table.active {
                        report.wrong(|| {
                            format!(
                                "the COPIED flag of L2 entry {index} of the table at {} is wrong: {entry:#x}",
                                table.offset
                            )
                        });
                    }
                }
                Verdict::Change => {
                    if let Some(to) = bytes.get_mut(..8) {
                        to.copy_from_slice(&(entry ^ COPIED).to_be_bytes());
                    }
                    dirty = true;
                }
            }
        }
        if dirty {
            let end = structures.file_len.saturating_sub(table.offset);
            let len = to_usize(end.min(to_u64(buffer.len()))).unwrap_or(0);
            structures
                .file
                .write_all_at(table.offset, buffer.get(..len).unwrap_or_default())?;
        }
    }
    Ok(())
}

enum Verdict {
    Right,
    Wrong,
    Change,
}
