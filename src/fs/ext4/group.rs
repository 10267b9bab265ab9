//! Block group descriptors (kernel documentation, "Block Group Descriptors").

use super::block_cache::Kind;
use super::features::{Incompat, RoCompat};
use super::superblock::Superblock;
use super::volume::Volume;
use crate::fs::error::{FsError, Result};
use crate::ondisk::bytes::{le16, le32, slice};
use crate::ondisk::checksum::{crc16, crc32c_raw};
use crate::ondisk::units::usize_from_u32;

/// `bg_flags`: the inode table and bitmap were never written.
pub const INODE_UNINIT: u16 = 1;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// First block of the inode table.
    pub inode_table: u64,
    /// Free clusters.
    pub free_clusters: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// `bg_flags`.
    pub flags: u16,
}

impl Group {
    /// Reads the fields of a descriptor of `s_desc_size` bytes.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        // The upper halves exist in 64-byte descriptors only.
        let high16 = |offset| u32::from(le16(raw, offset).unwrap_or(0)) << 16;
        let high32 = |offset| u64::from(le32(raw, offset).unwrap_or(0)) << 32;
        Some(Self {
            inode_table: u64::from(le32(raw, 0x8)?) | high32(0x28),
            free_clusters: u32::from(le16(raw, 0xC)?) | high16(0x2C),
            free_inodes: u32::from(le16(raw, 0xE)?) | high16(0x2E),
            flags: le16(raw, 0x12)?,
        })
    }
}

/// Whether a descriptor's checksum is right (true if there are none).
pub fn checksum_ok(sb: &Superblock, group: u64, raw: &[u8]) -> bool {
    let (Some(stored), Some(head), Ok(number)) =
        (le16(raw, 0x1E), raw.get(..0x1E), u32::try_from(group))
    else {
        return false;
    };
    let number = number.to_le_bytes();
    let tail = raw.get(0x20..).unwrap_or_default();
    if sb.metadata_csum() {
        let crc = crc32c_raw(sb.checksum_seed, &number);
        let crc = crc32c_raw(crc32c_raw(crc, head), &[0, 0]);
        crc32c_raw(crc, tail) & 0xFFFF == u32::from(stored)
    } else if sb.ro_compat.contains(RoCompat::GDT_CSUM) {
        let crc = crc16(crc16(crc16(!0, &sb.uuid), &number), head);
        let crc = if sb.incompat.contains(Incompat::BIT64) {
            crc16(crc, tail)
        } else {
            crc
        };
        crc == stored
    } else {
        true
    }
}

/// Block that holds the `index`th block of descriptors, next to the superblock at `super_block`.
pub fn descriptor_block(sb: &Superblock, super_block: u64, index: u64) -> u64 {
    let meta_bg = sb.incompat.contains(Incompat::META_BG);
    if !meta_bg || index < u64::from(sb.first_meta_bg) {
        return super_block.saturating_add(1).saturating_add(index);
    }
    let group = index.saturating_mul(sb.descriptors_per_block());
    let mut past_super = u64::from(sb.group_has_super(group));
    // With 1 KiB blocks and first_data_block 0 (bigalloc) block 0 is the boot block.
    if sb.block_size == 1024 && index == 0 && sb.first_data_block == 0 {
        past_super = past_super.saturating_add(1);
    }
    sb.group_start(group).saturating_add(past_super)
}

impl Volume {
    /// The descriptor of a group.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] if there is no such group, its checksum is wrong or its
    /// inode table lies outside the filesystem.
    pub fn group(&self, group: u64) -> Result<Group> {
        if let Some(known) = self.groups.lock().get(&group) {
            return Ok(*known);
        }
        let found = self.load_group(group)?;
        self.groups.lock().put(group, found);
        Ok(found)
    }

    fn load_group(&self, group: u64) -> Result<Group> {
        let sb = &self.sb;
        let none = || FsError::damaged(format!("there is no block group {group}"));
        if group >= sb.group_count {
            return Err(none());
        }
        let index = group
            .checked_div(sb.descriptors_per_block())
            .ok_or_else(none)?;
        let within = group
            .checked_rem(sb.descriptors_per_block())
            .ok_or_else(none)?;
        let block = self.block(
            descriptor_block(sb, self.super_block, index),
            Kind::Descriptors,
            |_| Ok(()),
        )?;
        let len = usize_from_u32(sb.desc_size);
        let offset = usize::try_from(within)
            .ok()
            .and_then(|w| w.checked_mul(len))
            .ok_or_else(none)?;
        let raw = slice(&block, offset, len).ok_or_else(none)?;
        if !self.ignore_checksums && !checksum_ok(sb, group, raw) {
            return Err(FsError::damaged(format!(
                "the checksum of block group descriptor {group} is wrong"
            )));
        }
        let found = Group::parse(raw).ok_or_else(none)?;
        let end = found.inode_table.checked_add(sb.inode_table_blocks());
        if found.inode_table <= u64::from(sb.first_data_block)
            || end.is_none_or(|end| end > sb.blocks_count)
        {
            return Err(FsError::damaged(format!(
                "the inode table of block group {group} lies at block {}, outside the filesystem",
                found.inode_table
            )));
        }
        Ok(found)
    }
}
