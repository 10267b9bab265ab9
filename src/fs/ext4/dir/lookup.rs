//! Finding one name.

use std::ops::ControlFlow;

use super::encrypted::shown_name;
use super::entry::Entry;
use super::read::bad_entry;
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::fs::ext4::inode::{Inode, InodeFlags};
use crate::fs::ext4::superblock::ROOT_INO;
use crate::fs::ext4::volume::Volume;
use crate::fs::types::InodeNo;
use crate::limits::MAX_NAME_BYTES;
use crate::ondisk::bytes::le32;
use crate::ondisk::text::printable;

impl Volume {
    /// [`crate::fs::FileSystem::lookup`].
    ///
    /// # Errors
    /// See there.
    pub fn find_name(&self, dir: &Inode, name: &[u8]) -> Result<InodeNo> {
        self.expect_directory(dir)?;
        if name.len() > MAX_NAME_BYTES {
            return Err(FsError::new(FsErrorKind::NameTooLong, "a name is too long"));
        }
        match name {
            b"." => return Ok(InodeNo(u64::from(dir.ino))),
            b".." => return self.parent(dir),
            _ => {}
        }
        let target = match self.hashed(dir, name) {
            Some(Ok(found)) => found,
            // No index, or one that cannot be trusted: the names are all there without it.
            Some(Err(_)) | None => self.find_linearly(dir, name)?,
        };
        let target = target.ok_or_else(|| {
            FsError::new(
                FsErrorKind::NotFound,
                format!("directory {} has no {}", dir.ino, printable(name)),
            )
        })?;
        self.entry_target(dir, target)
    }

    fn hashed(&self, dir: &Inode, name: &[u8]) -> Option<Result<Option<u32>>> {
        let usable = dir.has(InodeFlags::INDEX)
            && !dir.has(InodeFlags::INLINE_DATA)
            && !dir.has(InodeFlags::ENCRYPT)
            && !dir.has(InodeFlags::CASEFOLD);
        // A directory of one or two blocks is searched as quickly without.
        (usable && self.directory_blocks(dir) > 2).then(|| self.find_hashed(dir, name))
    }

    fn parent(&self, dir: &Inode) -> Result<InodeNo> {
        if dir.ino == ROOT_INO {
            return Ok(InodeNo(u64::from(ROOT_INO)));
        }
        let target = if dir.has(InodeFlags::INLINE_DATA) {
            le32(&dir.i_block, 0)
        } else {
            let raw = self.directory_block(dir, 0, false)?;
            raw.as_deref().and_then(|raw| {
                let dot = Entry::parse(raw, 0)?;
                let dots = Entry::parse(raw, dot.next)?;
                (dots.name == b"..").then_some(dots.ino)
            })
        };
        let target = target
            .ok_or_else(|| FsError::damaged(format!("directory {} has no valid `..`", dir.ino)))?;
        self.entry_target(dir, target)
    }

    fn find_linearly(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let encrypted = dir.has(InodeFlags::ENCRYPT);
        let matches = |entry: &Entry<'_>| match encrypted {
            true => {
                entry.ino != 0
                    && !matches!(entry.name, b"" | b"." | b"..")
                    && shown_name(entry.name) == name
            }
            false => entry.name == name && entry.is_name(),
        };
        let mut found = None;
        if dir.has(InodeFlags::INLINE_DATA) {
            let data = self.inline_data(dir)?;
            self.walk_inline(dir, &data, 0, |entry, _| match matches(entry) {
                true => {
                    found = Some(entry.ino);
                    ControlFlow::Break(())
                }
                false => ControlFlow::Continue(()),
            })?;
            return Ok(found);
        }
        self.walk_directory(dir, 0, |block, raw| {
            found = find_in_block(dir, block, raw, matches)?;
            Ok(match found {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            })
        })?;
        Ok(found)
    }
}

/// The inode of the entry in a block that `matches`.
pub(super) fn find_in_block(
    dir: &Inode,
    block: u64,
    raw: &[u8],
    matches: impl Fn(&Entry<'_>) -> bool,
) -> Result<Option<u32>> {
    let mut at = 0;
    while at < raw.len() {
        let entry = Entry::parse(raw, at).ok_or_else(|| bad_entry(dir, block, at))?;
        if matches(&entry) {
            return Ok(Some(entry.ino));
        }
        at = entry.next;
    }
    Ok(None)
}
