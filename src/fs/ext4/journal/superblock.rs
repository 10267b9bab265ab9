//! The journal's superblock: big-endian, the first 1024 bytes of its first block.

use crate::fs::error::{FsError, Result};
use crate::ondisk::bytes::{array, be32};
use crate::ondisk::checksum::crc32c_raw;

/// Magic number at the start of every block of the journal's own.
pub const MAGIC: u32 = 0xC03B_3998;
/// Shortest journal the kernel uses, without its fast-commit area.
const MIN_BLOCKS: u32 = 1024;
/// Length.
const LEN: usize = 1024;

bitflags::bitflags! {
    /// `s_feature_incompat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// There may be revoke blocks.
        const REVOKE = 1;
        /// Block numbers have 64 bits.
        const BIT64 = 2;
        /// A commit block may reach the disk before what it commits.
        const ASYNC_COMMIT = 4;
        /// Checksums in each block, 16 bits for logged copies.
        const CSUM_V2 = 8;
        /// Checksums in each block, 32 bits for logged copies.
        const CSUM_V3 = 0x10;
        /// There is a fast-commit area.
        const FAST_COMMIT = 0x20;
        const _ = !0;
    }
}

/// A validated journal superblock.
#[derive(Clone, Debug)]
pub struct JournalSuperblock {
    /// First block of the log.
    pub first: u32,
    /// Block after the last of the log (where a fast-commit area starts, if there is one).
    pub end: u32,
    /// Block after the fast-commit area.
    pub fast_commit_end: u32,
    /// First transaction expected in the log.
    pub sequence: u32,
    /// Where it starts; 0 says that the log is empty.
    pub start: u32,
    /// Features.
    pub incompat: Incompat,
    /// Checksum v1: one CRC in the commit block over the whole transaction.
    pub checksum_v1: bool,
    /// Starting value of v2 and v3 checksums.
    pub seed: u32,
}

impl JournalSuperblock {
    /// Whether blocks carry v2 or v3 checksums.
    pub fn has_checksums(&self) -> bool {
        self.incompat
            .intersects(Incompat::CSUM_V2 | Incompat::CSUM_V3)
    }

    /// Validates the first block of a journal of `blocks` blocks of `block_size` bytes.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`], [`crate::fs::FsErrorKind::Unsupported`].
    pub fn parse(raw: &[u8], block_size: u32, blocks: u64) -> Result<Self> {
        let wrong = |what: &str| FsError::damaged(format!("the journal's superblock: {what}"));
        let raw = raw.get(..LEN).ok_or_else(|| wrong("too short"))?;
        let field = |offset| be32(raw, offset).unwrap_or(0);
        if field(0) != MAGIC {
            return Err(wrong("no magic number"));
        }
        let v2 = match field(4) {
            3 => false,
            4 => true,
            _ => return Err(wrong("an unknown version")),
        };
        if field(0xC) != block_size {
            return Err(wrong("another block size than the filesystem's"));
        }
        let (compat, incompat) = if v2 {
            (field(0x24), field(0x28))
        } else {
            (0, 0)
        };
        let incompat = Incompat::from_bits_retain(incompat);
        let unknown = incompat.bits() & !0x3F;
        if unknown != 0 {
            return Err(FsError::unsupported(format!(
                "journal features {unknown:#x}"
            )));
        }
        if incompat.contains(Incompat::CSUM_V2 | Incompat::CSUM_V3) {
            return Err(wrong("two sorts of checksums at once"));
        }
        let checksums = incompat.intersects(Incompat::CSUM_V2 | Incompat::CSUM_V3);
        if checksums {
            const CRC32C: u8 = 4;
            if raw.get(0x50) != Some(&CRC32C) {
                return Err(FsError::unsupported("journal checksums other than crc32c"));
            }
            let crc = crc32c_raw(!0, raw.get(..0xFC).unwrap_or_default());
            let crc = crc32c_raw(crc, &[0; 4]);
            if crc32c_raw(crc, raw.get(0x100..).unwrap_or_default()) != field(0xFC) {
                return Err(wrong("its checksum is wrong"));
            }
        }
        let max = field(0x10);
        let first = field(0x14);
        if u64::from(max) > blocks || first == 0 || first >= max {
            return Err(wrong("its length does not fit the journal's inode"));
        }
        let mut end = max;
        if incompat.contains(Incompat::FAST_COMMIT) {
            let area = match field(0x54) {
                0 => 256,
                area => area,
            };
            match max.checked_sub(area) {
                Some(rest) if rest >= MIN_BLOCKS && rest > first => end = rest,
                _ => {}
            }
        }
        let start = field(0x1C);
        if start != 0 && (start < first || start >= end) {
            return Err(wrong("the log starts outside the journal"));
        }
        let uuid: [u8; 16] = array(raw, 0x30).unwrap_or_default();
        Ok(Self {
            first,
            end,
            fast_commit_end: max,
            sequence: field(0x18),
            start,
            incompat,
            checksum_v1: compat & 1 != 0,
            seed: crc32c_raw(!0, &uuid),
        })
    }
}
