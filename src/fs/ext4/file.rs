//! Content of files: reads go from the device straight into the caller's buffer, one per run.

use super::inode::{Inode, InodeFlags};
use super::map::Target;
use super::volume::Volume;
use crate::fs::api::FileExtent;
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::fs::types::FileType;
use crate::ondisk::units::to_u64;

/// Runs joined by one call of [`Volume::extent_at`]; a longer stretch is told in pieces.
const MAX_JOINED_RUNS: usize = 256;

impl Volume {
    /// Checks that an inode is a regular file.
    fn expect_file(&self, inode: &Inode) -> Result<()> {
        match inode.file_type()? {
            FileType::Regular => Ok(()),
            FileType::Directory => Err(FsError::new(
                FsErrorKind::IsDirectory,
                format!("inode {} is a directory", inode.ino),
            )),
            _ => Err(FsError::new(
                FsErrorKind::Invalid,
                format!("inode {} is no regular file", inode.ino),
            )),
        }
    }

    /// [`crate::fs::FileSystem::read_at`].
    ///
    /// # Errors
    /// See there; [`FsErrorKind::NoKey`] for an encrypted file.
    pub fn read_file(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.expect_file(inode)?;
        if inode.has(InodeFlags::ENCRYPT) {
            return Err(no_key(inode));
        }
        self.read_content(inode, offset, buf)
    }

    /// Reads what an inode of any type stores in blocks or inline.
    ///
    /// # Errors
    /// As [`Volume::map`].
    pub fn read_content(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let available = inode.size.saturating_sub(offset);
        let len = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let Some(buf) = buf.get_mut(..len) else {
            return Ok(0);
        };
        if inode.has(InodeFlags::INLINE_DATA) {
            let data = self.inline_data(inode)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let stored = data.get(start..).unwrap_or_default();
            let stored = stored.get(..len).unwrap_or(stored);
            let (head, tail) = buf.split_at_mut(stored.len());
            head.copy_from_slice(stored);
            tail.fill(0);
            return Ok(len);
        }
        let block_size = u64::from(self.sb.block_size);
        let mut done = 0usize;
        while done < len {
            let at = offset.saturating_add(to_u64(done));
            let within = at & block_size.saturating_sub(1);
            let run = self.map(inode, at >> self.sb.block_size_log2)?;
            let run_bytes = run.len.saturating_mul(block_size).saturating_sub(within);
            let rest = buf.get_mut(done..).unwrap_or_default();
            let piece_len = usize::try_from(run_bytes)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let Some(piece @ [_, ..]) = rest.get_mut(..piece_len) else {
                return Err(FsError::damaged(format!(
                    "inode {}: an empty run",
                    inode.ino
                )));
            };
            match run.target {
                Target::Hole => piece.fill(0),
                Target::Stored(block) => {
                    let start = self.sb.byte_of(block).ok_or_else(|| {
                        FsError::damaged(format!("inode {}: block {block} lies outside", inode.ino))
                    })?;
                    self.device
                        .read_exact_at(start.saturating_add(within), piece)?;
                }
            }
            done = done.saturating_add(piece_len);
        }
        Ok(len)
    }

    /// [`crate::fs::FileSystem::extent_at`].
    ///
    /// # Errors
    /// See there.
    pub fn extent_at(&self, inode: &Inode, offset: u64) -> Result<FileExtent> {
        self.expect_file(inode)?;
        let Some(left @ 1..) = inode.size.checked_sub(offset) else {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                format!("offset {offset} is past the end of inode {}", inode.ino),
            ));
        };
        if inode.has(InodeFlags::INLINE_DATA) {
            return Ok(FileExtent {
                len: left,
                data: true,
            });
        }
        let first = offset >> self.sb.block_size_log2;
        let within = offset & u64::from(self.sb.block_size).saturating_sub(1);
        let mut data = None;
        let mut blocks = 0u64;
        for _ in 0..MAX_JOINED_RUNS {
            let bytes = blocks
                .saturating_mul(u64::from(self.sb.block_size))
                .saturating_sub(within);
            if blocks > 0 && bytes >= left {
                break;
            }
            let run = match self.map(inode, first.saturating_add(blocks)) {
                Ok(run) => run,
                // What is known so far is right; the next call reports the damage.
                Err(_) if blocks > 0 => break,
                Err(error) => return Err(error),
            };
            let stored = matches!(run.target, Target::Stored(_));
            if *data.get_or_insert(stored) != stored {
                break;
            }
            blocks = blocks.saturating_add(run.len);
        }
        let bytes = blocks
            .saturating_mul(u64::from(self.sb.block_size))
            .saturating_sub(within);
        Ok(FileExtent {
            len: bytes.min(left).max(1),
            data: data.unwrap_or(false),
        })
    }
}

/// The error for what only a key would show.
pub(super) fn no_key(inode: &Inode) -> FsError {
    FsError::new(
        FsErrorKind::NoKey,
        format!(
            "inode {} is encrypted and there is no key for it",
            inode.ino
        ),
    )
}
