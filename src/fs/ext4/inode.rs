//! Inodes (kernel documentation, "Index Nodes").

use std::sync::Arc;

use super::block_cache::Kind;
use super::features::{Incompat, RoCompat};
use super::group::INODE_UNINIT;
use super::superblock::{ROOT_INO, Superblock};
use super::volume::{TABLE_CHUNK, Volume};
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::fs::types::{Attributes, DeviceNo, FileType, InodeNo, Timestamp};
use crate::ondisk::bytes::{array, le16, le32, slice};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::units::{to_u64, usize_from_u32};

bitflags::bitflags! {
    /// `i_flags` that change how an inode is read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Encrypted content (and names, for a directory).
        const ENCRYPT = 0x800;
        /// Hashed directory.
        const INDEX = 0x1000;
        /// `i_blocks` counts filesystem blocks.
        const HUGE_FILE = 0x4_0000;
        /// Mapped by an extent tree.
        const EXTENTS = 0x8_0000;
        /// Holds the value of an extended attribute.
        const EA_INODE = 0x20_0000;
        /// Content lies in the inode.
        const INLINE_DATA = 0x1000_0000;
        /// Names of the directory ignore case.
        const CASEFOLD = 0x4000_0000;
        const _ = !0;
    }
}

/// Size of the inode without extra fields.
const GOOD_OLD_SIZE: usize = 128;

/// A validated inode.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub ino: u32,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Links; 0 means not in use.
    pub links: u16,
    /// Flags.
    pub flags: InodeFlags,
    /// Space taken in units of 512 bytes.
    pub sectors: u64,
    /// The block map, the extent root, a short link target, a device number or inline data.
    pub i_block: [u8; 60],
    /// Generation.
    pub generation: u32,
    /// Block of extended attributes, 0 if none.
    pub file_acl: u64,
    /// Times.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, if there is room for it.
    pub crtime: Option<Timestamp>,
    /// Start of this inode's checksums of other blocks.
    pub checksum_seed: u32,
    /// Bytes after the extra fields, if extended attributes are there.
    pub body_xattrs: Box<[u8]>,
}

/// Seconds with the two epoch bits, and nanoseconds, of the pair of fields.
fn timestamp(seconds: u32, extra: Option<u32>) -> Timestamp {
    let low = i64::from(seconds.cast_signed());
    let Some(extra) = extra else {
        return Timestamp {
            secs: low,
            nanos: 0,
        };
    };
    Timestamp {
        secs: low.saturating_add(i64::from(extra & 3) << 32),
        nanos: (extra >> 2).min(999_999_999),
    }
}

impl Inode {
    /// Parses and validates one inode of `s_inode_size` bytes.
    ///
    /// # Errors
    /// [`FsErrorKind::Damaged`] for a wrong checksum or sizes that contradict each other.
    pub fn parse(sb: &Superblock, ino: u32, raw: &[u8], ignore_checksums: bool) -> Result<Self> {
        let wrong = |what: &str| FsError::damaged(format!("inode {ino}: {what}"));
        if raw.len() < GOOD_OLD_SIZE {
            return Err(wrong("too short"));
        }
        // Offsets below are constants under 128, or optional.
        let u16_at = |offset| le16(raw, offset).unwrap_or(0);
        let u32_at = |offset| le32(raw, offset).unwrap_or(0);
        let mode = u16_at(0);
        let links = u16_at(0x1A);
        let extra_size = match raw.len() > GOOD_OLD_SIZE {
            true => usize::from(u16_at(0x80)),
            false => 0,
        };
        let generation = u32_at(0x64);
        let checksum_seed = crc32c_raw(
            crc32c_raw(sb.checksum_seed, &ino.to_le_bytes()),
            &generation.to_le_bytes(),
        );
        let extra_end = GOOD_OLD_SIZE.saturating_add(extra_size);
        // Before the sizes are judged: a wrong checksum says more than what follows from it. An
        // inode that is all zeroes was never used and has no checksum.
        let unused = mode == 0 && links == 0;
        if sb.metadata_csum()
            && !ignore_checksums
            && !unused
            && !checksum_ok(raw, checksum_seed, extra_end)
        {
            return Err(wrong("its checksum is wrong"));
        }
        if extra_end > raw.len() || extra_size & 3 != 0 {
            return Err(wrong("i_isize_extra does not fit"));
        }
        let extra = |offset: usize| {
            let end = offset.checked_add(4)?;
            (end <= extra_end).then(|| le32(raw, offset)).flatten()
        };
        let flags = InodeFlags::from_bits_retain(u32_at(0x20));
        let is_file = mode & 0o170000 == 0o100000;
        let size_high = is_file || sb.incompat.contains(Incompat::LARGEDIR);
        let size = u64::from(u32_at(4))
            | if size_high {
                u64::from(u32_at(0x6C)) << 32
            } else {
                0
            };
        if i64::try_from(size).is_err() {
            return Err(wrong("i_size is negative"));
        }
        let mut sectors = u64::from(u32_at(0x1C));
        if sb.ro_compat.contains(RoCompat::HUGE_FILE) {
            sectors |= u64::from(u16_at(0x74)) << 32;
            if flags.contains(InodeFlags::HUGE_FILE) {
                sectors = sectors.saturating_mul(u64::from(sb.block_size >> 9));
            }
        }
        let mut file_acl = u64::from(u32_at(0x68));
        if sb.incompat.contains(Incompat::BIT64) {
            file_acl |= u64::from(u16_at(0x76)) << 32;
        }
        // Extended attributes start with a magic number; without it the space is unused.
        let body = raw.get(extra_end..).unwrap_or_default();
        let has_xattrs = raw.len() > GOOD_OLD_SIZE && le32(body, 0) == Some(super::xattr::MAGIC);
        Ok(Self {
            ino,
            mode,
            uid: u32::from(u16_at(2)) | u32::from(u16_at(0x78)) << 16,
            gid: u32::from(u16_at(0x18)) | u32::from(u16_at(0x7A)) << 16,
            size,
            links,
            flags,
            sectors,
            i_block: array(raw, 0x28).unwrap_or([0; 60]),
            generation,
            file_acl,
            atime: timestamp(u32_at(0x8), extra(0x8C)),
            ctime: timestamp(u32_at(0xC), extra(0x84)),
            mtime: timestamp(u32_at(0x10), extra(0x88)),
            crtime: extra(0x90).map(|seconds| timestamp(seconds, extra(0x94))),
            checksum_seed,
            body_xattrs: if has_xattrs {
                body.into()
            } else {
                Box::default()
            },
        })
    }

    /// The type.
    ///
    /// # Errors
    /// [`FsErrorKind::Damaged`] for type bits that mean nothing.
    pub fn file_type(&self) -> Result<FileType> {
        FileType::from_mode(u32::from(self.mode)).ok_or_else(|| {
            FsError::damaged(format!(
                "inode {}: mode {:#o} has no type",
                self.ino, self.mode
            ))
        })
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: InodeFlags) -> bool {
        self.flags.contains(flag)
    }

    /// Number of a device node, in the old (8+8 bits) or the new (12+20 bits) encoding.
    fn device(&self) -> DeviceNo {
        let old = le32(&self.i_block, 0).unwrap_or(0);
        if old != 0 {
            return DeviceNo {
                major: (old >> 8) & 0xFF,
                minor: old & 0xFF,
            };
        }
        let new = le32(&self.i_block, 4).unwrap_or(0);
        DeviceNo {
            major: (new & 0xF_FF00) >> 8,
            minor: (new & 0xFF) | ((new >> 12) & 0xF_FF00),
        }
    }

    /// What `stat` tells.
    ///
    /// # Errors
    /// [`FsErrorKind::Damaged`] for an unknown type.
    pub fn attributes(&self, sb: &Superblock) -> Result<Attributes> {
        let file_type = self.file_type()?;
        let mut blocks = self.sectors;
        // As the kernel does for files that own no block, so that nothing takes them for sparse.
        if file_type == FileType::Regular && self.has(InodeFlags::INLINE_DATA) {
            blocks = blocks.saturating_add(self.size.div_ceil(512));
        }
        Ok(Attributes {
            ino: InodeNo(u64::from(self.ino)),
            generation: self.generation,
            file_type,
            permissions: self.mode & 0o7777,
            nlink: u32::from(self.links),
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            blocks,
            block_size: sb.block_size,
            device: matches!(file_type, FileType::CharDevice | FileType::BlockDevice)
                .then(|| self.device()),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
        })
    }
}

fn checksum_ok(raw: &[u8], seed: u32, extra_end: usize) -> bool {
    let has_high = extra_end >= 0x84;
    let stored = u32::from(le16(raw, 0x7C).unwrap_or(0));
    let mut crc = crc32c_raw(seed, raw.get(..0x7C).unwrap_or_default());
    crc = crc32c_raw(crc, &[0, 0]);
    if raw.len() <= GOOD_OLD_SIZE {
        return crc32c_raw(crc, raw.get(0x7E..).unwrap_or_default()) & 0xFFFF == stored;
    }
    if !has_high {
        return crc32c_raw(crc, raw.get(0x7E..).unwrap_or_default()) & 0xFFFF == stored;
    }
    crc = crc32c_raw(crc, raw.get(0x7E..0x82).unwrap_or_default());
    crc = crc32c_raw(crc, &[0, 0]);
    crc = crc32c_raw(crc, raw.get(0x84..).unwrap_or_default());
    crc == stored | u32::from(le16(raw, 0x82).unwrap_or(0)) << 16
}

impl Volume {
    /// An inode in use.
    ///
    /// # Errors
    /// [`FsErrorKind::NotFound`] if the number is out of range or the inode not in use,
    /// [`FsErrorKind::Damaged`] if it cannot be trusted.
    pub fn inode(&self, ino: InodeNo) -> Result<Arc<Inode>> {
        let none = || FsError::new(FsErrorKind::NotFound, format!("inode {ino} is not in use"));
        let number = u32::try_from(ino.0).map_err(|_| none())?;
        let inode = self.raw_inode(number)?;
        if inode.links == 0 {
            return Err(none());
        }
        Ok(inode)
    }

    /// The inode a directory entry names: one of the reserved ones cannot be meant, but the root.
    ///
    /// # Errors
    /// As [`Volume::inode`].
    pub fn entry_target(&self, dir: &Inode, target: u32) -> Result<InodeNo> {
        if (target < self.sb.first_inode && target != ROOT_INO) || target > self.sb.inodes_count {
            return Err(FsError::damaged(format!(
                "directory {} names inode {target}, which no file can have",
                dir.ino
            )));
        }
        Ok(InodeNo(u64::from(target)))
    }

    /// An inode by number, also one that is reserved or free.
    ///
    /// # Errors
    /// As [`Volume::inode`].
    pub fn raw_inode(&self, ino: u32) -> Result<Arc<Inode>> {
        if let Some(known) = self.inodes.lock().get(&ino) {
            return Ok(Arc::clone(known));
        }
        let inode = Arc::new(self.load_inode(ino)?);
        self.inodes.lock().put(ino, Arc::clone(&inode));
        Ok(inode)
    }

    fn load_inode(&self, ino: u32) -> Result<Inode> {
        let place = self.inode_place(ino)?;
        let bytes = self.tables.get_or_load(place.start, Kind::InodeTable, || {
            self.note_table_miss(place.start, place.table_end);
            Ok(self.device.read_vec(place.start, place.len)?.into())
        })?;
        let raw =
            slice(&bytes, place.within, usize_from_u32(self.sb.inode_size)).ok_or_else(|| {
                FsError::damaged(format!(
                    "the device ends before inode {ino} ({} bytes)",
                    to_u64(place.len)
                ))
            })?;
        Inode::parse(&self.sb, ino, raw, self.ignore_checksums)
    }

    /// Where an inode is.
    ///
    /// # Errors
    /// [`FsErrorKind::NotFound`] if there is no such number or its table was never written, or
    /// what reading the group's descriptor reports.
    pub(super) fn inode_place(&self, ino: u32) -> Result<InodePlace> {
        let sb = &self.sb;
        let none = || FsError::new(FsErrorKind::NotFound, format!("there is no inode {ino}"));
        let index = ino
            .checked_sub(1)
            .filter(|_| ino <= sb.inodes_count)
            .ok_or_else(none)?;
        let number = index.checked_div(sb.inodes_per_group).ok_or_else(none)?;
        let within = index.checked_rem(sb.inodes_per_group).ok_or_else(none)?;
        let group = self.group(u64::from(number))?;
        let lazy = sb.metadata_csum() || sb.ro_compat.contains(RoCompat::GDT_CSUM);
        if lazy && group.flags & INODE_UNINIT != 0 {
            return Err(none());
        }
        // Byte offset in the group's table, then the piece of the table it lies in. Both sizes
        // are powers of two and the inode's is the smaller, so it never crosses the border.
        let offset = u64::from(within).saturating_mul(u64::from(sb.inode_size));
        let chunk_len = u64::from(TABLE_CHUNK.max(sb.block_size));
        let in_chunk = offset.checked_rem(chunk_len).ok_or_else(none)?;
        let chunk = offset.saturating_sub(in_chunk);
        let table = sb.byte_of(group.inode_table).ok_or_else(none)?;
        let table_len = sb
            .inode_table_blocks()
            .saturating_mul(u64::from(sb.block_size));
        let start = table.saturating_add(chunk);
        let len = chunk_len
            .min(table_len.saturating_sub(chunk))
            .min(self.device.len().saturating_sub(start));
        Ok(InodePlace {
            start,
            len: usize::try_from(len).map_err(|_| none())?,
            within: usize::try_from(in_chunk).map_err(|_| none())?,
            table_end: table.saturating_add(table_len),
        })
    }
}

/// Where an inode is: in which piece of its group's inode table.
pub(super) struct InodePlace {
    /// First byte of the piece.
    pub start: u64,
    /// Bytes of it that the device has.
    pub len: usize,
    /// First byte of the inode within the piece.
    pub within: usize,
    /// End of the table in bytes.
    pub table_end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    // The table of the kernel's documentation, "Inode Timestamps".
    #[test]
    fn epoch_bits_extend_the_signed_seconds() {
        assert_eq!(timestamp(0x8000_0000, Some(0)).secs, -0x8000_0000);
        assert_eq!(timestamp(0x7FFF_FFFF, Some(0)).secs, 0x7FFF_FFFF);
        assert_eq!(timestamp(0x8000_0000, Some(1)).secs, 0x8000_0000);
        assert_eq!(timestamp(0, Some(1)).secs, 0x1_0000_0000);
        assert_eq!(timestamp(0x7FFF_FFFF, Some(3)).secs, 0x3_7FFF_FFFF);
        assert_eq!(timestamp(1, Some(5 << 2)), Timestamp { secs: 1, nanos: 5 });
        assert_eq!(timestamp(u32::MAX, None).secs, -1);
    }
}
