//! Extended attributes: in the inode, in one block, or (large values) in an inode of their own
//! (kernel documentation, "Extended Attributes").

use std::sync::Arc;

use super::block_cache::Kind;
use super::features::Incompat;
use super::inode::{Inode, InodeFlags};
use super::volume::Volume;
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::ondisk::bytes::{le16, le32, slice};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::units::usize_from_u32;

/// Of the block's header, and of the part in the inode.
pub const MAGIC: u32 = 0xEA02_0000;
/// Name index of `system.`; its only attribute, `system.data`, is inline content and not shown.
pub const SYSTEM_INDEX: u8 = 7;
/// Length of an entry without its name.
const ENTRY_LEN: usize = 16;
/// Largest value Linux hands to a program (`XATTR_SIZE_MAX`).
const MAX_VALUE: u32 = 65536;
/// Length of a block's header.
const BLOCK_HEADER: usize = 32;

const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;

/// What an index stands for at the start of a name; `None` for those Linux does not show.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        ACL_ACCESS => b"system.posix_acl_access",
        ACL_DEFAULT => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        10 => b"gnu.",
        _ => return None,
    })
}

/// One attribute: its name, and where its value is.
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value_offset: usize,
    value_inode: u32,
    value_len: u32,
}

impl Entry<'_> {
    fn full_name(&self) -> Option<Vec<u8>> {
        let prefix = prefix(self.index)?;
        let acl = matches!(self.index, ACL_ACCESS | ACL_DEFAULT);
        // An ACL has no name of its own, all others have one.
        (acl == self.name.is_empty()).then(|| [prefix, self.name].concat())
    }
}

/// The list of entries in `area`, up to the four zero bytes that end it. The loop ends: each entry
/// takes at least 16 bytes.
fn entries(area: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    let mut position = Some(0usize);
    std::iter::from_fn(move || {
        let at = position?;
        match le32(area, at) {
            Some(0) | None => {
                position = None;
                return None;
            }
            Some(_) => {}
        }
        let entry = parse_entry(area, at);
        position = entry.as_ref().and_then(|entry| {
            let len = ENTRY_LEN
                .checked_add(entry.name.len())?
                .checked_next_multiple_of(4)?;
            at.checked_add(len)
        });
        Some(entry)
    })
}

fn parse_entry(area: &[u8], at: usize) -> Option<Entry<'_>> {
    let raw = area.get(at..)?;
    let name_len = usize::from(*raw.first()?);
    Some(Entry {
        index: *raw.get(1)?,
        value_offset: usize::from(le16(raw, 2)?),
        value_inode: le32(raw, 4)?,
        value_len: le32(raw, 8)?,
        name: slice(raw, ENTRY_LEN, name_len)?,
    })
}

/// Where entries start and what value offsets count from.
struct Area {
    bytes: Arc<[u8]>,
    entries_at: usize,
    values_at: usize,
}

impl Volume {
    /// The parts that hold attributes, the inode's first.
    fn xattr_areas(&self, inode: &Inode) -> Result<Vec<Area>> {
        let mut areas = Vec::new();
        if !inode.body_xattrs.is_empty() {
            areas.push(Area {
                bytes: Arc::from(&*inode.body_xattrs),
                entries_at: 4,
                values_at: 4,
            });
        }
        if inode.file_acl != 0 {
            areas.push(Area {
                bytes: self.xattr_block(inode)?,
                entries_at: BLOCK_HEADER,
                values_at: 0,
            });
        }
        Ok(areas)
    }

    fn xattr_block(&self, inode: &Inode) -> Result<Arc<[u8]>> {
        let number = inode.file_acl;
        let wrong = |what: &str| {
            FsError::damaged(format!(
                "attribute block {number} of inode {}: {what}",
                inode.ino
            ))
        };
        if !self.in_data_area(number, 1) {
            return Err(wrong("it lies outside the filesystem"));
        }
        self.block(number, Kind::Xattr, |raw| {
            if le32(raw, 0) != Some(MAGIC) || le32(raw, 8) != Some(1) {
                return Err(wrong("it has no valid header"));
            }
            if self.sb.metadata_csum() && !self.ignore_checksums {
                let crc = crc32c_raw(self.sb.checksum_seed, &number.to_le_bytes());
                let crc = crc32c_raw(crc, raw.get(..0x10).unwrap_or_default());
                let crc = crc32c_raw(crc, &[0; 4]);
                let crc = crc32c_raw(crc, raw.get(0x14..).unwrap_or_default());
                if le32(raw, 0x10) != Some(crc) {
                    return Err(wrong("its checksum is wrong"));
                }
            }
            Ok(())
        })
    }

    /// Calls `visit` for each entry until it gives something.
    fn find_entry<T>(
        &self,
        inode: &Inode,
        areas: &[Area],
        mut visit: impl FnMut(&Area, &Entry<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        for area in areas {
            for entry in entries(area.bytes.get(area.entries_at..).unwrap_or_default()) {
                let entry = entry.ok_or_else(|| malformed(inode))?;
                if let Some(found) = visit(area, &entry) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn entry_value(&self, inode: &Inode, area: &Area, entry: &Entry<'_>) -> Result<Vec<u8>> {
        if entry.value_len > MAX_VALUE {
            return Err(malformed(inode));
        }
        let len = usize_from_u32(entry.value_len);
        if entry.value_inode != 0 && self.sb.incompat.contains(Incompat::EA_INODE) {
            let holder = self.raw_inode(entry.value_inode)?;
            if !holder.has(InodeFlags::EA_INODE) || holder.size != u64::from(entry.value_len) {
                return Err(FsError::damaged(format!(
                    "inode {}: the value of an attribute is said to be in inode {}, which is none",
                    inode.ino, entry.value_inode
                )));
            }
            let mut value = vec![0; len];
            self.read_content(&holder, 0, &mut value)?;
            return Ok(value);
        }
        if len == 0 {
            return Ok(Vec::new());
        }
        area.values_at
            .checked_add(entry.value_offset)
            .and_then(|at| slice(&area.bytes, at, len))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| malformed(inode))
    }

    /// The value of an attribute inside the inode, by index and rest of the name.
    ///
    /// # Errors
    /// [`FsErrorKind::Damaged`].
    pub fn body_xattr(&self, inode: &Inode, index: u8, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if inode.body_xattrs.is_empty() {
            return Ok(None);
        }
        let areas = [Area {
            bytes: Arc::from(&*inode.body_xattrs),
            entries_at: 4,
            values_at: 4,
        }];
        self.find_entry(inode, &areas, |area, entry| {
            (entry.index == index && entry.name == name)
                .then(|| self.entry_value(inode, area, entry))
        })?
        .transpose()
    }

    /// [`crate::fs::FileSystem::xattr`].
    ///
    /// # Errors
    /// See there.
    pub fn read_xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        let none = || FsError::new(FsErrorKind::NoAttribute, "no such extended attribute");
        let areas = self.xattr_areas(inode)?;
        let (index, value) = self
            .find_entry(inode, &areas, |area, entry| {
                (entry.full_name().as_deref() == Some(name))
                    .then(|| (entry.index, self.entry_value(inode, area, entry)))
            })?
            .ok_or_else(none)?;
        let value = value?;
        if matches!(index, ACL_ACCESS | ACL_DEFAULT) {
            return super::acl::to_xattr(&value)
                .ok_or_else(|| FsError::damaged(format!("inode {}: a malformed ACL", inode.ino)));
        }
        Ok(value)
    }

    /// [`crate::fs::FileSystem::xattr_names`].
    ///
    /// # Errors
    /// See there.
    pub fn list_xattrs(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let areas = self.xattr_areas(inode)?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        self.find_entry(inode, &areas, |_, entry| -> Option<()> {
            // At most a few thousand entries fit in a block of 64 KiB.
            names.extend(entry.full_name());
            None
        })?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

fn malformed(inode: &Inode) -> FsError {
    FsError::damaged(format!(
        "inode {}: malformed extended attributes",
        inode.ino
    ))
}
