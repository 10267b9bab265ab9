//! Numbers of nodes.
//!
//! ```text
//! bits 63..48   space: 0 synthetic, else one appearance of one filesystem
//! bits 47..40   symbolic links that are confined: depth of the directory the link is in
//! bits 39..0    inode number within the filesystem, or index of the synthetic node
//! ```
//!
//! The number is FUSE's node id and `st_ino` at once, so hard links share it and two filesystems
//! never do. A filesystem that appears twice (`fs/` and `volumes/sda1/`) has two spaces: a
//! directory with two parents would be refused by the kernel.
//!
//! The depth is part of a confined link's number because its target depends on it (see
//! [`super::symlink`]), and a number is all that a request carries. Two hard links of one symbolic
//! link at different depths so have two numbers.

use crate::fs::{FsError, FsErrorKind, InodeNo, Result};

const INO_BITS: u32 = 40;
const DEPTH_BITS: u32 = 8;
const MAX_INO: u64 = (1 << INO_BITS) - 1;

/// Most appearances of filesystems in one tree.
pub const MAX_SPACES: usize = u16::MAX as usize;

/// Depth that stands for itself and all greater ones.
pub const MAX_DEPTH: usize = (1 << DEPTH_BITS) - 1;

/// Number of a node; see the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// The root of the tree, as FUSE numbers it.
    pub const ROOT: Self = Self(1);

    /// An inode of a filesystem. `space` is 1 or more.
    ///
    /// # Errors
    /// [`FsErrorKind::Unsupported`] if the inode number takes more than 40 bits.
    pub fn in_space(space: u16, ino: InodeNo) -> Result<Self> {
        if ino.0 > MAX_INO {
            return Err(FsError::new(
                FsErrorKind::Unsupported,
                format!("inode number {ino} is larger than this tree can show"),
            ));
        }
        Ok(Self(u64::from(space) << (INO_BITS + DEPTH_BITS) | ino.0))
    }

    /// A synthetic node; the root has index 0.
    pub fn synthetic(index: usize) -> Self {
        // An index of a Vec in memory is far below 2^40.
        Self((index as u64).saturating_add(1) & MAX_INO)
    }

    /// As the kernel says it.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// For the kernel.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The same node as a link in a directory `depth` levels below the root of its tree.
    #[must_use]
    pub fn at_depth(self, depth: usize) -> Self {
        Self(self.0 & !((MAX_DEPTH as u64) << INO_BITS) | (depth.min(MAX_DEPTH) as u64) << INO_BITS)
    }

    /// The depth given by [`NodeId::at_depth`].
    pub fn depth(self) -> usize {
        usize::from((self.0 >> INO_BITS).to_le_bytes()[0])
    }

    /// The space; 0 is synthetic.
    pub fn space(self) -> u16 {
        let bytes = self.0.to_le_bytes();
        u16::from_le_bytes([bytes[6], bytes[7]])
    }

    /// The inode within the space's filesystem.
    pub fn ino(self) -> InodeNo {
        InodeNo(self.0 & MAX_INO)
    }

    /// The index of a synthetic node.
    pub fn index(self) -> Option<usize> {
        if self.space() != 0 {
            return None;
        }
        usize::try_from(self.0 & MAX_INO).ok()?.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        for (space, ino, depth) in [(1, 2, 0), (7, MAX_INO, 255), (u16::MAX, 0, 12)] {
            let id = NodeId::in_space(space, InodeNo(ino)).unwrap();
            assert_eq!((id.space(), id.ino().0, id.depth()), (space, ino, 0));
            let link = id.at_depth(depth);
            assert_eq!(
                (link.space(), link.ino().0, link.depth()),
                (space, ino, depth)
            );
            assert_eq!(link.at_depth(0), id);
            assert_eq!(id.index(), None);
        }
        assert_eq!(NodeId::synthetic(0), NodeId::ROOT);
        assert_eq!(NodeId::synthetic(5).index(), Some(5));
        assert_eq!(NodeId::ROOT.at_depth(1000).depth(), MAX_DEPTH);
        assert!(NodeId::in_space(1, InodeNo(MAX_INO + 1)).is_err());
        assert_eq!(NodeId::from_raw(0).index(), None);
    }
}
