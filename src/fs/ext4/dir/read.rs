//! Visiting the names of a directory.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::encrypted::shown_name;
use super::entry::{Entry, record_len};
use crate::fs::api::DirEntry;
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::fs::ext4::block_cache::Kind;
use crate::fs::ext4::features::Incompat;
use crate::fs::ext4::inode::{Inode, InodeFlags};
use crate::fs::ext4::map::Target;
use crate::fs::ext4::volume::Volume;
use crate::fs::types::{FileType, InodeNo};
use crate::ondisk::bytes::{le16, le32};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::units::to_u64;

/// The checksum entry at the end of a directory block: inode 0, length 12, name length 0, type.
const TAIL: [u8; 8] = [0, 0, 0, 0, 12, 0, 0, 0xDE];
const TAIL_LEN: usize = 12;

/// Bytes of a directory announced when its listing starts.
const READ_AHEAD: u64 = 1 << 20;

/// Bytes at the start of an inline directory that hold the parent's number.
pub const INLINE_PARENT_LEN: usize = 4;
/// Where the second part of an inline directory starts.
const INLINE_SECOND: usize = 60;

impl Volume {
    /// Checks that an inode is a directory.
    ///
    /// # Errors
    /// [`FsErrorKind::NotDirectory`].
    pub fn expect_directory(&self, inode: &Inode) -> Result<()> {
        match inode.file_type()? {
            FileType::Directory => Ok(()),
            _ => Err(FsError::new(
                FsErrorKind::NotDirectory,
                format!("inode {} is no directory", inode.ino),
            )),
        }
    }

    /// Number of blocks of a directory. One with more than the filesystem has contradicts itself;
    /// what is beyond is not looked at.
    pub(super) fn directory_blocks(&self, dir: &Inode) -> u64 {
        (dir.size >> self.sb.block_size_log2).min(u64::from(u32::MAX))
    }

    /// A directory's block by its number in the directory, verified; `None` for a hole.
    pub(super) fn directory_block(
        &self,
        dir: &Inode,
        block: u64,
        index: bool,
    ) -> Result<Option<Arc<[u8]>>> {
        match self.map(dir, block)?.target {
            Target::Hole => Ok(None),
            Target::Stored(start) => self.directory_block_at(dir, block, start, index).map(Some),
        }
    }

    fn directory_block_at(
        &self,
        dir: &Inode,
        block: u64,
        start: u64,
        index: bool,
    ) -> Result<Arc<[u8]>> {
        let (ino, generation) = (dir.ino, dir.generation);
        let kind = match index {
            true => Kind::DirIndex { ino, generation },
            false => Kind::DirLeaf { ino, generation },
        };
        self.block(start, kind, |raw| {
            if !self.sb.metadata_csum() || self.ignore_checksums {
                return Ok(());
            }
            let good = match index || (dir.has(InodeFlags::INDEX) && is_index(raw, block)) {
                // Verified by the hash tree's own code; for a reader of names it holds none.
                true => !index || super::htree::checksum_ok(dir, raw),
                false => leaf_checksum_ok(dir, raw),
            };
            if good {
                return Ok(());
            }
            Err(FsError::damaged(format!(
                "directory {ino}: the checksum of its block {block} is wrong"
            )))
        })
    }

    /// Calls `visit` with each block that may hold names, from the one at `first`, and its number.
    /// Goes on after a block that cannot be used, and reports the first such at the end.
    pub(super) fn walk_directory(
        &self,
        dir: &Inode,
        first: u64,
        mut visit: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut damage = None;
        let count = self.directory_blocks(dir);
        // Distinct blocks that are stored: no more than the filesystem has.
        let mut budget = self.sb.blocks_count;
        let mut block = first;
        while block < count {
            let run = self.map(dir, block)?;
            let Target::Stored(start) = run.target else {
                block = block.saturating_add(run.len);
                continue;
            };
            for step in 0..run.len.min(count.saturating_sub(block)) {
                budget = budget.checked_sub(1).ok_or_else(|| {
                    FsError::damaged(format!("directory {} has more blocks than exist", dir.ino))
                })?;
                let number = block.saturating_add(step);
                let result = self
                    .directory_block_at(dir, number, start.saturating_add(step), false)
                    .and_then(|raw| visit(number, &raw));
                match result {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    // Without the device the rest will not be better.
                    Err(error) if error.kind() == FsErrorKind::Io => return Err(error),
                    Err(error) => {
                        damage.get_or_insert(error);
                    }
                }
            }
            block = block.saturating_add(run.len);
        }
        damage.map_or(Ok(()), Err)
    }

    /// [`crate::fs::FileSystem::read_dir`].
    ///
    /// # Errors
    /// See there.
    pub fn read_directory(
        &self,
        dir: &Inode,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.expect_directory(dir)?;
        let encrypted = dir.has(InodeFlags::ENCRYPT);
        let typed = self.sb.incompat.contains(Incompat::FILETYPE);
        let mut show = |entry: &Entry<'_>, next: u64| {
            let usable = match encrypted {
                true => entry.ino != 0 && !matches!(entry.name, b"" | b"." | b".."),
                false => entry.is_name(),
            };
            if !usable || entry.ino > self.sb.inodes_count {
                return ControlFlow::Continue(());
            }
            let shown;
            let name = match encrypted {
                true => {
                    shown = shown_name(entry.name);
                    &shown
                }
                false => entry.name,
            };
            visit(DirEntry {
                ino: InodeNo(u64::from(entry.ino)),
                file_type: if typed { entry.file_type() } else { None },
                name,
                next,
            })
        };
        if dir.has(InodeFlags::INLINE_DATA) {
            let data = self.inline_data(dir)?;
            return self.walk_inline(
                dir,
                &data,
                usize::try_from(cookie).unwrap_or(usize::MAX),
                |entry, next| show(entry, to_u64(next)),
            );
        }
        if cookie == 0 && self.directory_blocks(dir) > 1 {
            self.prefetch_file(dir, 0, READ_AHEAD);
        }
        let first = cookie >> self.sb.block_size_log2;
        let within = cookie & u64::from(self.sb.block_size).saturating_sub(1);
        self.walk_directory(dir, first, |block, raw| {
            let mut at = if block == first {
                usize::try_from(within).unwrap_or(0)
            } else {
                0
            };
            while at < raw.len() {
                let Some(entry) = Entry::parse(raw, at) else {
                    return Err(bad_entry(dir, block, at));
                };
                let next = (block << self.sb.block_size_log2).saturating_add(to_u64(entry.next));
                if show(&entry, next).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                at = entry.next;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Visits the entries of an inline directory from byte `from` of its data.
    pub(super) fn walk_inline(
        &self,
        dir: &Inode,
        data: &[u8],
        from: usize,
        mut visit: impl FnMut(&Entry<'_>, usize) -> ControlFlow<()>,
    ) -> Result<()> {
        let split = INLINE_SECOND.min(data.len());
        let mut at = from.max(INLINE_PARENT_LEN);
        // The two parts are areas of their own: no entry crosses from one to the other.
        while at < data.len() {
            let end = if at < split { split } else { data.len() };
            let (base, area) = match at < split {
                true => (0, data.get(..split).unwrap_or_default()),
                false => (split, data.get(split..end).unwrap_or_default()),
            };
            let entry = at
                .checked_sub(base)
                .and_then(|offset| Entry::parse(area, offset));
            let Some(entry) = entry else {
                return Err(bad_entry(dir, 0, at));
            };
            at = base.saturating_add(entry.next);
            if visit(&entry, at).is_break() {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn bad_entry(dir: &Inode, block: u64, at: usize) -> FsError {
    FsError::damaged(format!(
        "directory {}: the entry at byte {at} of block {block} is not valid",
        dir.ino
    ))
}

/// Whether a block of a hashed directory holds hashes: the first, and those that look like one
/// free slot as long as the block.
fn is_index(raw: &[u8], block: u64) -> bool {
    block == 0
        || le16(raw, 4).is_some_and(|stored| record_len(stored, raw.len()) == raw.len())
            && le32(raw, 0) == Some(0)
}

fn leaf_checksum_ok(dir: &Inode, raw: &[u8]) -> bool {
    let Some(at) = raw.len().checked_sub(TAIL_LEN) else {
        return false;
    };
    let (body, tail) = raw.split_at(at.min(raw.len()));
    tail.starts_with(&TAIL) && le32(tail, 8) == Some(crc32c_raw(dir.checksum_seed, body))
}
