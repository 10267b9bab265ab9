//! How full the filesystem is, as Linux reports it in `statfs` (linux `fs/ext4/super.c`,
//! `ext4_statfs` and `ext4_calculate_overhead`).

use super::block_cache::Kind;
use super::features::{Compat, Incompat, RoCompat};
use super::group::{Group, descriptor_block};
use super::volume::Volume;
use crate::fs::api::FsUsage;
use crate::fs::error::Result;
use crate::ondisk::units::usize_from_u32;

/// Groups summed up; with more (beyond 128 TiB of 4 KiB blocks) the superblock's counts serve.
const MAX_GROUPS: u64 = 1 << 20;

impl Volume {
    /// [`crate::fs::FileSystem::usage`].
    ///
    /// # Errors
    /// What reading the descriptors reports.
    pub fn usage(&self) -> Result<FsUsage> {
        let sb = &self.sb;
        let (clusters_free, inodes_free) = self.free_counts()?;
        let blocks_free = clusters_free
            .checked_shl(sb.cluster_log2)
            .unwrap_or(u64::MAX);
        // Linux keeps 2 %, at most 4096 clusters, for converting unwritten extents.
        let kept = match sb.incompat.contains(Incompat::EXTENTS) {
            true => {
                let clusters = sb.blocks_count.checked_shr(sb.cluster_log2).unwrap_or(0);
                (clusters / 50)
                    .min(4096)
                    .checked_shl(sb.cluster_log2)
                    .unwrap_or(0)
            }
            false => 0,
        };
        let withheld = sb.reserved_blocks.saturating_add(kept);
        Ok(FsUsage {
            block_size: sb.block_size,
            blocks: sb.blocks_count.saturating_sub(self.overhead_blocks()),
            blocks_free,
            blocks_available: blocks_free.saturating_sub(withheld),
            inodes: u64::from(sb.inodes_count),
            inodes_free,
        })
    }

    /// Free clusters and inodes, summed over the descriptors: the superblock's own counts are
    /// stale while a filesystem is mounted.
    fn free_counts(&self) -> Result<(u64, u64)> {
        let sb = &self.sb;
        let noted = (
            sb.free_blocks.checked_shr(sb.cluster_log2).unwrap_or(0),
            u64::from(sb.free_inodes),
        );
        if sb.group_count > MAX_GROUPS {
            return Ok(noted);
        }
        let per_block = sb.descriptors_per_block();
        let mut totals = (0u64, 0u64);
        let mut left = sb.group_count;
        let mut index = 0u64;
        while left > 0 {
            let block = descriptor_block(sb, self.super_block, index);
            let raw = self.block(block, Kind::Descriptors, |_| Ok(()))?;
            let here = usize::try_from(left.min(per_block)).unwrap_or(0);
            for descriptor in raw.chunks_exact(usize_from_u32(sb.desc_size)).take(here) {
                if let Some(group) = Group::parse(descriptor) {
                    totals.0 = totals.0.saturating_add(u64::from(group.free_clusters));
                    totals.1 = totals.1.saturating_add(u64::from(group.free_inodes));
                }
            }
            left = left.saturating_sub(per_block);
            index = index.saturating_add(1);
        }
        Ok(totals)
    }

    /// Blocks that metadata takes and no file can.
    fn overhead_blocks(&self) -> u64 {
        let sb = &self.sb;
        if sb.ro_compat.contains(RoCompat::BIGALLOC) && sb.overhead_clusters != 0 {
            return u64::from(sb.overhead_clusters) << sb.cluster_log2;
        }
        let per_group = sb.inode_table_blocks().saturating_add(2);
        let descriptor_blocks = sb.group_count.div_ceil(sb.descriptors_per_block());
        let mut total =
            u64::from(sb.first_data_block).saturating_add(per_group.saturating_mul(sb.group_count));
        for group in 0..sb.group_count.min(MAX_GROUPS) {
            let has_super = sb.group_has_super(group);
            total = total
                .saturating_add(u64::from(has_super))
                .saturating_add(self.descriptor_blocks_in(group, has_super, descriptor_blocks));
        }
        total.saturating_add(self.journal_blocks)
    }

    /// Blocks of descriptors in one group.
    fn descriptor_blocks_in(&self, group: u64, has_super: bool, all: u64) -> u64 {
        let sb = &self.sb;
        let per_block = sb.descriptors_per_block();
        let meta_bg = sb.incompat.contains(Incompat::META_BG);
        let metagroup = group.checked_div(per_block).unwrap_or(0);
        if !meta_bg || metagroup < u64::from(sb.first_meta_bg) {
            let descriptors = match (has_super, meta_bg) {
                (false, _) => return 0,
                (true, true) => u64::from(sb.first_meta_bg),
                (true, false) => all,
            };
            return descriptors.saturating_add(u64::from(sb.reserved_gdt_blocks));
        }
        let within = group.checked_rem(per_block).unwrap_or(0);
        u64::from(within <= 1 || within == per_block.saturating_sub(1))
    }

    /// Size of the internal journal in blocks, 0 if there is none.
    pub(super) fn internal_journal_blocks(&self) -> u64 {
        if !self.sb.compat.contains(Compat::HAS_JOURNAL) || self.sb.journal_inode == 0 {
            return 0;
        }
        self.raw_inode(self.sb.journal_inode)
            .map_or(0, |inode| inode.size >> self.sb.block_size_log2)
    }
}
