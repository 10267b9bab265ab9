//! Directory entries (kernel documentation, "Directory Entries").

use crate::fs::types::FileType;
use crate::ondisk::bytes::{le16, le32, slice};

/// Shortest entry: header and a name of up to four bytes.
const MIN_LEN: usize = 12;
/// Bytes before the name.
const HEADER_LEN: usize = 8;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Inode; 0 for a free slot.
    pub ino: u32,
    /// `file_type`.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
    /// Offset after this entry.
    pub next: usize,
}

impl<'a> Entry<'a> {
    /// The entry at `offset` of a directory block (or an inline area).
    pub fn parse(block: &'a [u8], offset: usize) -> Option<Self> {
        let raw = block.get(offset..)?;
        let len = record_len(le16(raw, 4)?, block.len());
        let name_len = usize::from(*raw.get(6)?);
        let needed = HEADER_LEN
            .checked_add(name_len)?
            .checked_next_multiple_of(4)?;
        if len < MIN_LEN || len & 3 != 0 || len < needed || len > raw.len() {
            return None;
        }
        Some(Self {
            ino: le32(raw, 0)?,
            kind: *raw.get(7)?,
            name: slice(raw, HEADER_LEN, name_len)?,
            next: offset.checked_add(len)?,
        })
    }

    /// Whether this is a name to show: in use, and one a directory may hold.
    pub fn is_name(&self) -> bool {
        self.ino != 0
            && !self.name.is_empty()
            && self.name != b"."
            && self.name != b".."
            && !self.name.iter().any(|&byte| byte == b'/' || byte == 0)
    }

    /// The type the entry states.
    pub fn file_type(&self) -> Option<FileType> {
        Some(match self.kind & 7 {
            1 => FileType::Regular,
            2 => FileType::Directory,
            3 => FileType::CharDevice,
            4 => FileType::BlockDevice,
            5 => FileType::Fifo,
            6 => FileType::Socket,
            7 => FileType::Symlink,
            _ => return None,
        })
    }
}

/// `rec_len`; in blocks of 64 KiB the two low bits are the high ones and 0 or 65535 mean "all".
pub fn record_len(stored: u16, block_len: usize) -> usize {
    if block_len < 65536 {
        return usize::from(stored);
    }
    match stored {
        0 | u16::MAX => block_len,
        _ => usize::from(stored & !3) | usize::from(stored & 3) << 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rec_len: u16, name_len: u8) -> Vec<u8> {
        let mut raw = vec![5, 0, 0, 0];
        raw.extend(rec_len.to_le_bytes());
        raw.extend([name_len, 1]);
        raw.extend([b'a'; 24]);
        raw
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(Entry::parse(&entry(32, 24), 0).unwrap().next, 32);
        for (rec_len, name_len) in [(0, 1), (8, 0), (13, 1), (16, 9), (36, 1), (16, 255)] {
            assert!(
                Entry::parse(&entry(rec_len, name_len), 0).is_none(),
                "{rec_len} {name_len}"
            );
        }
        assert!(Entry::parse(&entry(32, 24), 28).is_none());
    }

    #[test]
    fn large_blocks_have_their_own_lengths() {
        assert_eq!(record_len(65535, 65536), 65536);
        assert_eq!(record_len(0, 65536), 65536);
        assert_eq!(record_len(65532, 65536), 65532);
        assert_eq!(record_len(0, 4096), 0);
    }
}
