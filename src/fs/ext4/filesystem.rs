//! The outside face: forwards to the modules that do the work.

use std::ops::ControlFlow;

use super::superblock::ROOT_INO;
use super::volume::Volume;
use crate::fs::api::{DirEntry, FileExtent, FileSystem, FsInfo, FsUsage};
use crate::fs::error::Result;
use crate::fs::types::{Attributes, InodeNo};

/// An open ext2, ext3 or ext4 filesystem.
pub struct Ext4 {
    pub(super) volume: Volume,
    pub(super) info: FsInfo,
}

impl FileSystem for Ext4 {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn usage(&self) -> Result<FsUsage> {
        self.volume.usage()
    }

    fn root(&self) -> InodeNo {
        InodeNo(u64::from(ROOT_INO))
    }

    fn lookup(&self, dir: InodeNo, name: &[u8]) -> Result<InodeNo> {
        self.volume.find_name(&*self.volume.inode(dir)?, name)
    }

    fn attributes(&self, ino: InodeNo) -> Result<Attributes> {
        self.volume.inode(ino)?.attributes(&self.volume.sb)
    }

    fn read_at(&self, ino: InodeNo, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.volume
            .read_file(&*self.volume.inode(ino)?, offset, buf)
    }

    fn extent_at(&self, ino: InodeNo, offset: u64) -> Result<FileExtent> {
        self.volume.extent_at(&*self.volume.inode(ino)?, offset)
    }

    fn prefetch(&self, ino: InodeNo, offset: u64, len: u64) {
        if let Ok(inode) = self.volume.inode(ino) {
            self.volume.prefetch_file(&inode, offset, len);
        }
    }

    fn prefetch_attributes(&self, inos: &[InodeNo]) {
        self.volume.prefetch_inodes(inos);
    }

    fn prefetch_starts(&self, inos: &[InodeNo]) {
        self.volume.prefetch_starts(inos);
    }

    fn read_dir(
        &self,
        dir: InodeNo,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.volume
            .read_directory(&*self.volume.inode(dir)?, cookie, visit)
    }

    fn read_link(&self, ino: InodeNo) -> Result<Vec<u8>> {
        self.volume.read_symlink(&*self.volume.inode(ino)?)
    }

    fn xattr(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>> {
        self.volume.read_xattr(&*self.volume.inode(ino)?, name)
    }

    fn xattr_names(&self, ino: InodeNo) -> Result<Vec<Vec<u8>>> {
        self.volume.list_xattrs(&*self.volume.inode(ino)?)
    }
}
