//! The superblock: 1024 bytes at byte 1024 (kernel documentation, "Super Block").
//!
//! [`Superblock::parse`] is the only validation; what it returns can be calculated with.

use super::features::{Compat, Incompat, RoCompat};
use crate::fs::error::{FsError, Result};
use crate::ondisk::bytes::{array, le16, le32};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::text::until_nul;

/// Bytes of a superblock, and where the primary one lies.
pub const SUPERBLOCK_LEN: usize = 1024;
/// Byte offset of the primary superblock.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xEF53;
/// Number of the root directory's inode.
pub const ROOT_INO: u32 = 2;

/// A validated superblock.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// Block size in bytes: 1 to 64 KiB, a power of two.
    pub block_size: u32,
    /// Its binary logarithm.
    pub block_size_log2: u32,
    /// log2 of blocks per cluster (0 without bigalloc).
    pub cluster_log2: u32,
    /// All blocks; at least 1.
    pub blocks_count: u64,
    /// Blocks for the super-user.
    pub reserved_blocks: u64,
    /// Free blocks as last noted (stale while mounted).
    pub free_blocks: u64,
    /// Inodes.
    pub inodes_count: u32,
    /// Free inodes as last noted.
    pub free_inodes: u32,
    /// Block of group 0's start.
    pub first_data_block: u32,
    /// At least 1.
    pub blocks_per_group: u32,
    /// At least 1.
    pub inodes_per_group: u32,
    /// Bytes per inode: a power of two from 128 to the block size.
    pub inode_size: u32,
    /// Bytes per group descriptor: a power of two from 32 to 1024.
    pub desc_size: u32,
    /// Number of groups; at least 1.
    pub group_count: u64,
    /// First inode that is not reserved.
    pub first_inode: u32,
    /// Compatible features.
    pub compat: Compat,
    /// Incompatible features.
    pub incompat: Incompat,
    /// Read-only compatible features.
    pub ro_compat: RoCompat,
    /// UUID.
    pub uuid: [u8; 16],
    /// Label, up to the first NUL.
    pub label: Vec<u8>,
    /// `s_state`: 1 clean, 2 errors.
    pub state: u16,
    /// Inode of the internal journal.
    pub journal_inode: u32,
    /// UUID of an external journal.
    pub journal_uuid: [u8; 16],
    /// Copy of the journal inode's `i_block` and size, if `s_jnl_backup_type` says so.
    pub journal_backup: Option<[u8; 68]>,
    /// Head of the list of orphaned inodes.
    pub last_orphan: u32,
    /// Seeds of directory hashes.
    pub hash_seed: [u32; 4],
    /// Whether directory hashes take characters as unsigned.
    pub hash_unsigned: bool,
    /// Blocks kept behind the descriptors for growing.
    pub reserved_gdt_blocks: u16,
    /// First group whose descriptors lie in their own metagroup.
    pub first_meta_bg: u32,
    /// The two groups with backups under `sparse_super2`.
    pub backup_groups: [u32; 2],
    /// `s_overhead_clusters`.
    pub overhead_clusters: u32,
    /// Block of the multi-mount protection record.
    pub mmp_block: u64,
    /// Starting value of metadata checksums.
    pub checksum_seed: u32,
    /// Whether the stored checksum of the superblock matches (true without checksums).
    pub checksum_ok: bool,
}

fn no(what: impl std::fmt::Display) -> FsError {
    FsError::damaged(format!("the superblock is not valid: {what}"))
}

impl Superblock {
    /// Whether the magic number is there.
    pub fn has_magic(raw: &[u8]) -> bool {
        le16(raw, 0x38) == Some(MAGIC)
    }

    /// Validates a superblock.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] naming the field.
    pub fn parse(raw: &[u8; SUPERBLOCK_LEN]) -> Result<Self> {
        // All offsets below are constants inside the array.
        let u16_at = |offset| le16(raw, offset).unwrap_or(0);
        let u32_at = |offset| le32(raw, offset).unwrap_or(0);
        let u8_at = |offset: usize| raw.get(offset).copied().unwrap_or(0);
        let wide = |low, high| u64::from(u32_at(low)) | (u64::from(u32_at(high)) << 32);

        if !Self::has_magic(raw) {
            return Err(no("no magic number"));
        }
        let compat = Compat::from_bits_retain(u32_at(0x5C));
        let incompat = Incompat::from_bits_retain(u32_at(0x60));
        let ro_compat = RoCompat::from_bits_retain(u32_at(0x64));
        let is_64bit = incompat.contains(Incompat::BIT64);
        let metadata_csum = ro_compat.contains(RoCompat::METADATA_CSUM);

        let log = u32_at(0x18);
        if log > 6 {
            return Err(no(format_args!("s_log_block_size is {log}")));
        }
        let block_size_log2 = log.saturating_add(10);
        let block_size = 1u32.checked_shl(block_size_log2).unwrap_or(1024);
        let max_bits = block_size.saturating_mul(8);

        let bigalloc = ro_compat.contains(RoCompat::BIGALLOC);
        let cluster_log2 = if bigalloc {
            u32_at(0x1C)
                .checked_sub(log)
                .filter(|&difference| difference <= 20)
                .ok_or_else(|| no("s_log_cluster_size is out of range"))?
        } else {
            0
        };

        let revision = u32_at(0x4C);
        let (inode_size, first_inode) = match revision {
            0 => (128, 11),
            _ => (u32::from(u16_at(0x58)), u32_at(0x54)),
        };
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > block_size {
            return Err(no(format_args!("s_inode_size is {inode_size}")));
        }
        let desc_size = if is_64bit {
            u32::from(u16_at(0xFE))
        } else {
            32
        };
        if !desc_size.is_power_of_two() || !(32..=1024).contains(&desc_size) {
            return Err(no(format_args!("s_desc_size is {desc_size}")));
        }

        let high = |offset| {
            if is_64bit {
                u64::from(u32_at(offset)) << 32
            } else {
                0
            }
        };
        let blocks_count = u64::from(u32_at(0x4)) | high(0x150);
        let first_data_block = u32_at(0x14);
        if u64::from(first_data_block) >= blocks_count || first_data_block > 1 {
            return Err(no(format_args!(
                "s_first_data_block is {first_data_block} of {blocks_count} blocks"
            )));
        }
        if blocks_count > (u64::MAX >> block_size_log2) {
            return Err(no(format_args!("s_blocks_count is {blocks_count}")));
        }
        let blocks_per_group = u32_at(0x20);
        let clusters_per_group = if bigalloc {
            u32_at(0x24)
        } else {
            blocks_per_group
        };
        if blocks_per_group == 0 || clusters_per_group == 0 || clusters_per_group > max_bits {
            return Err(no(format_args!("s_blocks_per_group is {blocks_per_group}")));
        }
        let inodes_per_group = u32_at(0x28);
        if inodes_per_group == 0 || inodes_per_group > max_bits {
            return Err(no(format_args!("s_inodes_per_group is {inodes_per_group}")));
        }
        let group_count = blocks_count
            .saturating_sub(u64::from(first_data_block))
            .div_ceil(u64::from(blocks_per_group));
        let inodes_count = u32_at(0);
        if inodes_count == 0
            || u64::from(inodes_count) > group_count.saturating_mul(u64::from(inodes_per_group))
        {
            return Err(no(format_args!("s_inodes_count is {inodes_count}")));
        }

        let uuid = array(raw, 0x68).unwrap_or_default();
        let checksum_seed = if incompat.contains(Incompat::CSUM_SEED) {
            u32_at(0x270)
        } else {
            crc32c_raw(!0, &uuid)
        };
        let checksum_ok = !metadata_csum
            || raw.get(..0x3FC).map(|body| crc32c_raw(!0, body)) == Some(u32_at(0x3FC));
        if metadata_csum && u8_at(0x175) != 1 {
            return Err(FsError::unsupported(format!(
                "metadata checksums of type {}; only crc32c (1) is known",
                u8_at(0x175)
            )));
        }
        let mut hash_seed = [0; 4];
        for (index, word) in hash_seed.iter_mut().enumerate() {
            *word = u32_at(0xEC_usize.saturating_add(index.saturating_mul(4)));
        }
        Ok(Self {
            block_size,
            block_size_log2,
            cluster_log2,
            blocks_count,
            reserved_blocks: u64::from(u32_at(0x8)) | high(0x154),
            free_blocks: u64::from(u32_at(0xC)) | high(0x158),
            inodes_count,
            free_inodes: u32_at(0x10),
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inode_size,
            desc_size,
            group_count,
            first_inode: first_inode.max(11),
            compat,
            incompat,
            ro_compat,
            uuid,
            label: until_nul(raw.get(0x78..0x88).unwrap_or_default()).to_vec(),
            state: u16_at(0x3A),
            journal_inode: u32_at(0xE0),
            journal_uuid: array(raw, 0xD0).unwrap_or_default(),
            journal_backup: (u8_at(0xFD) == 1).then(|| array(raw, 0x10C)).flatten(),
            last_orphan: u32_at(0xE8),
            hash_seed,
            hash_unsigned: u32_at(0x160) & 2 != 0,
            reserved_gdt_blocks: u16_at(0xCE),
            first_meta_bg: u32_at(0x104),
            backup_groups: [u32_at(0x24C), u32_at(0x250)],
            overhead_clusters: u32_at(0x248),
            mmp_block: wide(0x168, 0x16C),
            checksum_seed,
            checksum_ok,
        })
    }

    /// The block size, for slicing buffers.
    pub fn block_len(&self) -> usize {
        crate::ondisk::units::usize_from_u32(self.block_size)
    }

    /// Byte offset of a block; `None` outside the filesystem.
    pub fn byte_of(&self, block: u64) -> Option<u64> {
        (block < self.blocks_count).then(|| block.checked_shl(self.block_size_log2))?
    }

    /// Whether metadata carries crc32c checksums.
    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// First block of a group; saturates.
    pub fn group_start(&self, group: u64) -> u64 {
        group
            .saturating_mul(u64::from(self.blocks_per_group))
            .saturating_add(u64::from(self.first_data_block))
    }

    /// Blocks one group's inode table takes.
    pub fn inode_table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group)
            .saturating_mul(u64::from(self.inode_size))
            .div_ceil(u64::from(self.block_size))
    }

    /// Group descriptors in one block; at least 1, for blocks are no smaller than descriptors.
    pub fn descriptors_per_block(&self) -> u64 {
        u64::from(self.block_size)
            .checked_div(u64::from(self.desc_size))
            .unwrap_or(1)
            .max(1)
    }

    /// Whether a group starts with a copy of the superblock.
    pub fn group_has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_groups.iter().any(|&g| u64::from(g) == group);
        }
        if group == 1 || !self.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        [3u64, 5, 7].iter().any(|&base| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        })
    }

    /// The type as `blkid` names it.
    pub fn type_name(&self) -> &'static str {
        let ext3_incompat = Incompat::FILETYPE | Incompat::RECOVER | Incompat::META_BG;
        let ext3_ro = RoCompat::SPARSE_SUPER | RoCompat::LARGE_FILE | RoCompat::BTREE_DIR;
        if !ext3_incompat.contains(self.incompat) || !ext3_ro.contains(self.ro_compat) {
            "ext4"
        } else if self.compat.contains(Compat::HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }
}
