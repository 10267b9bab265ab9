//! Descriptor blocks: a header, then one tag per logged copy that follows.

use super::superblock::{Incompat, JournalSuperblock};
use crate::ondisk::bytes::{be16, be32, slice};

/// Bytes of a block's header: magic, type, sequence.
pub const HEADER_LEN: usize = 12;
/// The copy's first four bytes were zeroed because they equal the magic number.
const ESCAPED: u32 = 1;
/// No UUID follows the tag.
const SAME_UUID: u32 = 2;
/// The last tag of the block.
const LAST: u32 = 8;

/// One tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The block the copy belongs to.
    pub target: u64,
    /// See [`ESCAPED`].
    pub escaped: bool,
    /// Stored checksum of the copy; 16 bits of it in v2.
    pub checksum: u32,
}

/// Bytes of one tag (`journal_tag_bytes` in the kernel, with its quirk for v2).
pub fn tag_len(sb: &JournalSuperblock) -> usize {
    if sb.incompat.contains(Incompat::CSUM_V3) {
        return 16;
    }
    let base: usize = if sb.incompat.contains(Incompat::BIT64) {
        12
    } else {
        8
    };
    if sb.incompat.contains(Incompat::CSUM_V2) {
        base.saturating_add(2)
    } else {
        base
    }
}

/// The tags of a descriptor block. Ends: each takes at least eight bytes.
pub fn tags(sb: &JournalSuperblock, block: &[u8]) -> Vec<Tag> {
    let len = tag_len(sb);
    let tail = if sb.has_checksums() { 4 } else { 0 };
    let body = block
        .get(..block.len().saturating_sub(tail))
        .unwrap_or_default();
    let mut out = Vec::new();
    let mut at = HEADER_LEN;
    while let Some(raw) = slice(body, at, len) {
        let Some((tag, flags)) = parse(sb, raw) else {
            break;
        };
        out.push(tag);
        let uuid = if flags & SAME_UUID == 0 { 16 } else { 0 };
        at = at.saturating_add(len).saturating_add(uuid);
        if flags & LAST != 0 {
            break;
        }
    }
    out
}

fn parse(sb: &JournalSuperblock, raw: &[u8]) -> Option<(Tag, u32)> {
    let v3 = sb.incompat.contains(Incompat::CSUM_V3);
    let (flags, checksum) = if v3 {
        (be32(raw, 4)?, be32(raw, 12)?)
    } else {
        (u32::from(be16(raw, 6)?), u32::from(be16(raw, 4)?))
    };
    let high = match sb.incompat.contains(Incompat::BIT64) {
        true => u64::from(be32(raw, 8)?) << 32,
        false => 0,
    };
    let tag = Tag {
        target: u64::from(be32(raw, 0)?) | high,
        escaped: flags & ESCAPED != 0,
        checksum,
    };
    Some((tag, flags))
}
