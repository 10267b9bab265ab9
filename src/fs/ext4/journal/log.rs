//! Blocks of the log, by their number in the journal.

use super::superblock::JournalSuperblock;
use crate::fs::error::{FsError, Result};
use crate::fs::ext4::inode::{Inode, InodeFlags};
use crate::fs::ext4::map::Target;
use crate::fs::ext4::volume::Volume;

/// The journal's inode, or the copy of its map in the superblock if that one is damaged.
pub fn journal_inode(volume: &Volume) -> Result<Inode> {
    let number = volume.sb.journal_inode;
    let found = volume.raw_inode(number);
    let usable = |inode: &Inode| inode.mode & 0o170000 == 0o100000 && inode.links > 0;
    match (found, volume.sb.journal_backup) {
        (Ok(inode), _) if usable(&inode) => Ok((*inode).clone()),
        (Ok(_), None) => Err(FsError::damaged("the journal's inode is no file")),
        (Err(error), None) => Err(error),
        (_, Some(backup)) => from_backup(number, &backup),
    }
}

/// An inode made from `s_jnl_blocks`: `i_block`, then the size's upper and lower half.
fn from_backup(number: u32, backup: &[u8; 68]) -> Result<Inode> {
    let wrong = || FsError::damaged("the copy of the journal's map in the superblock is damaged");
    let (map, size) = backup.split_at_checked(60).ok_or_else(wrong)?;
    let high = crate::ondisk::bytes::le32(size, 0).ok_or_else(wrong)?;
    let low = crate::ondisk::bytes::le32(size, 4).ok_or_else(wrong)?;
    let i_block: [u8; 60] = map.try_into().map_err(|_| wrong())?;
    // An extent root starts with its magic number, a map of pointers with a block's number.
    let extents = i_block.starts_with(&[0x0A, 0xF3]);
    Ok(Inode {
        ino: number,
        mode: 0o100600,
        uid: 0,
        gid: 0,
        size: u64::from(low) | u64::from(high) << 32,
        links: 1,
        flags: if extents {
            InodeFlags::EXTENTS
        } else {
            InodeFlags::empty()
        },
        sectors: 0,
        i_block,
        generation: 0,
        file_acl: 0,
        atime: crate::fs::Timestamp::default(),
        mtime: crate::fs::Timestamp::default(),
        ctime: crate::fs::Timestamp::default(),
        crtime: None,
        checksum_seed: crate::ondisk::checksum::crc32c_raw(0, &[]),
        body_xattrs: Box::default(),
    })
}

/// The log of one filesystem.
pub struct Log<'a> {
    volume: &'a Volume,
    inode: Inode,
    /// Its superblock.
    pub sb: JournalSuperblock,
}

impl<'a> Log<'a> {
    /// Reads and validates the journal's superblock.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`], [`crate::fs::FsErrorKind::Unsupported`].
    pub fn open(volume: &'a Volume) -> Result<Self> {
        let inode = journal_inode(volume)?;
        let blocks = inode.size >> volume.sb.block_size_log2;
        let raw = read(volume, &inode, 0)?;
        let sb = JournalSuperblock::parse(&raw, volume.sb.block_size, blocks)?;
        Ok(Self { volume, inode, sb })
    }

    /// A block of the journal.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] if it is not mapped.
    pub fn block(&self, number: u32) -> Result<Vec<u8>> {
        read(self.volume, &self.inode, number)
    }

    /// The block after another, around the end.
    pub fn after(&self, block: u32, count: u32) -> u32 {
        let len = self.sb.end.saturating_sub(self.sb.first).max(1);
        let within =
            u64::from(block.saturating_sub(self.sb.first)).saturating_add(u64::from(count));
        let within = within.checked_rem(u64::from(len)).unwrap_or(0);
        self.sb
            .first
            .saturating_add(u32::try_from(within).unwrap_or(0))
    }

    /// Blocks of the log.
    pub fn len(&self) -> u32 {
        self.sb.end.saturating_sub(self.sb.first)
    }

    /// Whether the log has no blocks (it never has none: [`JournalSuperblock::parse`] sees to it).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn read(volume: &Volume, inode: &Inode, number: u32) -> Result<Vec<u8>> {
    let unmapped = || FsError::damaged(format!("block {number} of the journal is not there"));
    let Target::Stored(block) = volume.map(inode, u64::from(number))?.target else {
        return Err(unmapped());
    };
    let offset = volume.sb.byte_of(block).ok_or_else(unmapped)?;
    Ok(volume.device.read_vec(offset, volume.sb.block_len())?)
}
