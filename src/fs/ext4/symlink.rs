//! Targets of symbolic links (kernel documentation, "Symbolic Links").

use super::features::Incompat;
use super::file::no_key;
use super::inode::{Inode, InodeFlags};
use super::volume::Volume;
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::fs::types::FileType;
use crate::limits::MAX_PATH_BYTES;
use crate::ondisk::text::until_nul;
use crate::ondisk::units::to_u64;

impl Volume {
    /// [`crate::fs::FileSystem::read_link`].
    ///
    /// # Errors
    /// See there; [`FsErrorKind::NoKey`] for an encrypted link.
    pub fn read_symlink(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.file_type()? != FileType::Symlink {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                format!("inode {} is no symbolic link", inode.ino),
            ));
        }
        if inode.has(InodeFlags::ENCRYPT) {
            return Err(no_key(inode));
        }
        if inode.size == 0 || inode.size > to_u64(MAX_PATH_BYTES) {
            return Err(FsError::damaged(format!(
                "symbolic link {} has a target of {} bytes",
                inode.ino, inode.size
            )));
        }
        let len = usize::try_from(inode.size).unwrap_or(0);
        let mut target = vec![0; len];
        if !inode.has(InodeFlags::INLINE_DATA) && self.is_fast(inode) {
            let stored = inode.i_block.get(..len).unwrap_or_default();
            return Ok(until_nul(stored).to_vec());
        }
        self.read_content(inode, 0, &mut target)?;
        // The kernel hands on what comes before the first NUL.
        Ok(until_nul(&target).to_vec())
    }

    /// Whether the target lies in `i_block`: it fits, and no block but one of extended attributes
    /// is owned.
    fn is_fast(&self, inode: &Inode) -> bool {
        if inode.size >= 60 {
            return false;
        }
        let attribute_sectors = match inode.file_acl {
            0 => 0,
            _ => u64::from(self.sb.block_size >> 9) << self.sb.cluster_log2,
        };
        self.sb.incompat.contains(Incompat::EA_INODE) || inode.sectors <= attribute_sectors
    }
}
