//! What wraps other volumes.

use super::{Look, Signature};
use crate::ondisk::bytes::{array, be64, le16, le32, le64, slice};
use crate::ondisk::text::until_nul;
use crate::ondisk::uuid::Uuid;

/// `md_magic` of the Linux kernel's `md_p.h`.
const MD_MAGIC: u32 = 0xA92B_4EFC;

/// Containers whose header lies in the first 8 KiB.
pub(super) fn at_start(look: &Look<'_>) -> Option<Signature> {
    luks(look)
        .or_else(|| lvm2(look))
        .or_else(|| md_1(look, 0))
        .or_else(|| md_1(look, 4096))
        .or_else(|| bitlocker(look))
        .or_else(|| bcache(look))
}

/// Containers that are told by what lies further inside, where an old one may have left it.
pub(super) fn traces(look: &Look<'_>) -> Option<Signature> {
    zfs(look).or_else(|| luks_second(look))
}

/// LUKS: version 1 and 2 keep the UUID as text at the same place (LUKS2 specification, 2.1).
fn luks_header(look: &Look<'_>, at: u64, magic: &[u8; 6]) -> Option<Signature> {
    if !look.has(at, magic) {
        return None;
    }
    let header = look.bytes(at, 512)?;
    let version = array(&header, 6).map(u16::from_be_bytes)?;
    let uuid = until_nul(slice(&header, 168, 40)?);
    Some(Signature {
        uuid: (!uuid.is_empty()).then(|| String::from_utf8_lossy(uuid).into_owned()),
        ..Signature::new("crypto_LUKS").label(if version == 2 {
            slice(&header, 24, 48)
        } else {
            None
        })
    })
}

fn luks(look: &Look<'_>) -> Option<Signature> {
    luks_header(look, 0, b"LUKS\xba\xbe")
}

/// The second LUKS2 header, which stands in where the first one is destroyed; its place depends
/// on the size of the metadata area (LUKS2 specification, 2.2).
fn luks_second(look: &Look<'_>) -> Option<Signature> {
    const PLACES: [u64; 9] = [
        0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x10_0000, 0x20_0000, 0x40_0000,
    ];
    PLACES
        .iter()
        .find_map(|&at| luks_header(look, at, b"SKUL\xba\xbe"))
}

/// An LVM2 physical volume: a label in one of the first four sectors (LVM2 `format_text`).
fn lvm2(look: &Look<'_>) -> Option<Signature> {
    (0..4u64).find_map(|sector| {
        let at = sector.checked_mul(512)?;
        let label = look.bytes(at, 512)?;
        if slice(&label, 0, 8)? != b"LABELONE" || slice(&label, 24, 8)? != b"LVM2 001" {
            return None;
        }
        // The label names the sector it lies in; the checksum covers what follows it (`crc_xl`).
        let sound = le64(&label, 8)? == sector
            && le32(&label, 16)? == lvm_crc(slice(&label, 20, 512usize.checked_sub(20)?)?);
        if !sound {
            return None;
        }
        let header = usize::try_from(le32(&label, 20)?).ok()?;
        let raw = slice(&label, header, 32)?;
        Some(Signature {
            uuid: Some(lvm_uuid(raw)),
            ..Signature::new("LVM2_member")
        })
    })
}

/// CRC-32 as LVM2 starts it (`INITIAL_CRC`), not inverted.
fn lvm_crc(data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(!0xF597_A6CF);
    crc.update(data);
    !crc.finalize()
}

/// 32 characters in groups of 6-4-4-4-4-4-6.
fn lvm_uuid(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if matches!(i, 6 | 10 | 14 | 18 | 22 | 26) {
            out.push('-');
        }
        out.push(c);
    }
    out
}

/// A version 1.x md superblock (`struct mdp_superblock_1`).
fn md_1(look: &Look<'_>, at: u64) -> Option<Signature> {
    let raw = look.bytes(at, 256)?;
    if le32(&raw, 0)? != MD_MAGIC || le32(&raw, 4)? != 1 {
        return None;
    }
    // `super_offset`, in sectors, must be where it was found.
    let offset = array(&raw, 144).map(u64::from_le_bytes)?;
    if offset.checked_mul(512)? != at || md_1_checksum(look, at, &raw)? != le32(&raw, 216)? {
        return None;
    }
    Some(
        Signature::new("linux_raid_member")
            .uuid(array(&raw, 16))
            .label(slice(&raw, 32, 32)),
    )
}

/// The sum a version 1.x superblock should carry (`calc_sb_1_csum`): that of its words and of the
/// two bytes for each device that follow, with the field of the sum itself left out.
fn md_1_checksum(look: &Look<'_>, at: u64, raw: &[u8]) -> Option<u32> {
    let max_dev = le32(raw, 220)?;
    // The superblock has 4 KiB for itself (linux `super_1_load`).
    if max_dev > (4096 - 256) / 2 {
        return None;
    }
    let len = usize::try_from(max_dev).ok()?.checked_mul(2)?;
    let all = look.bytes(at, len.checked_add(256)?)?;
    let mut sum = 0u64;
    // At most 1024 words of 32 bits: no overflow in 64.
    for word in all.chunks(4) {
        let value = match word.try_into() {
            Ok(four) => u32::from_le_bytes(four),
            // Half a word is left over where the number of devices is odd.
            Err(_) => u32::from(le16(word, 0)?),
        };
        sum = sum.checked_add(u64::from(value))?;
    }
    fold(sum.checked_sub(u64::from(le32(raw, 216)?))?)
}

/// A sum of words with what it carried out of 32 bits added once.
fn fold(sum: u64) -> Option<u32> {
    let folded = (sum & 0xFFFF_FFFF).checked_add(sum >> 32)?;
    u32::try_from(folded & 0xFFFF_FFFF).ok()
}

/// md superblocks at the end: version 1.0 and 0.90.
pub(super) fn md_at_end(look: &Look<'_>) -> Option<Signature> {
    // 1.0: at least 8 KiB before the end, 4 KiB aligned.
    let v1 = look.len().checked_sub(8 << 10).map(|at| at & !0xFFF);
    if let Some(found) = v1.and_then(|at| md_1(look, at)) {
        return Some(found);
    }
    // 0.90: the last but one 64 KiB boundary.
    let at = (look.len() & !0xFFFF).checked_sub(64 << 10)?;
    let raw = look.bytes(at, 4096)?;
    if le32(&raw, 0)? != MD_MAGIC || le32(&raw, 4)? != 0 {
        return None;
    }
    // `calc_sb_csum`, without the field of the sum itself.
    let sum = raw
        .chunks_exact(4)
        .filter_map(|word| le32(word, 0))
        .try_fold(0u64, |sum, word| sum.checked_add(u64::from(word)))?;
    let own = le32(&raw, 38 * 4)?;
    if fold(sum.checked_sub(u64::from(own))?)? != own {
        return None;
    }
    let mut uuid = [0u8; 16];
    for (word, place) in uuid.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
        word.copy_from_slice(&le32(&raw, place)?.to_be_bytes());
    }
    Some(Signature {
        uuid: Some(Uuid::from_bytes(uuid).to_string()),
        ..Signature::new("linux_raid_member")
    })
}

/// BitLocker: the OEM name of the boot sector.
fn bitlocker(look: &Look<'_>) -> Option<Signature> {
    look.has(3, b"-FVE-FS-")
        .then(|| Signature::new("BitLocker"))
}

/// bcache: a superblock at 4 KiB (`struct cache_sb`).
fn bcache(look: &Look<'_>) -> Option<Signature> {
    const MAGIC: [u8; 16] = [
        0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D,
        0x81,
    ];
    if !look.has(4096 + 24, &MAGIC) {
        return None;
    }
    let raw = look.bytes(4096, 128)?;
    // `offset`, in sectors, must be where it was found.
    if le64(&raw, 8)? != 8 {
        return None;
    }
    Some(
        Signature::new("bcache")
            .uuid(array(&raw, 40))
            .label(slice(&raw, 72, 32)),
    )
}

/// A ZFS pool member: uberblocks in the first label, 1 KiB apart from 128 KiB on. The pool's name
/// and number are in an XDR list at 16 KiB, which is searched for the two keys.
fn zfs(look: &Look<'_>) -> Option<Signature> {
    const MAGIC: u64 = 0x00BA_B10C;
    let ring = look.bytes(128 << 10, 128 << 10)?;
    let uberblocks = ring
        .chunks_exact(1024)
        .filter(|slot| {
            be64(slot, 0) == Some(MAGIC) || be64(slot, 0).map(u64::swap_bytes) == Some(MAGIC)
        })
        .count();
    // As many as blkid asks for.
    if uberblocks < 4 {
        return None;
    }
    let list = look.bytes(16 << 10, 112 << 10)?;
    let guid = xdr_value(&list, b"pool_guid", 8).and_then(|at| be64(&list, at));
    let name = xdr_value(&list, b"name", 9).and_then(|at| {
        let len = usize::try_from(array(&list, at).map(u32::from_be_bytes)?).ok()?;
        slice(&list, at.checked_add(4)?, len.min(256))
    });
    Some(Signature {
        uuid: guid.map(|g| g.to_string()),
        ..Signature::new("zfs_member").label(name)
    })
}

/// Where the value of the first pair `key` of an XDR name/value list starts: after the length of
/// the key, the key padded to four bytes, the type and the count.
fn xdr_value(list: &[u8], key: &[u8], value_type: u32) -> Option<usize> {
    let key_len = u32::try_from(key.len()).ok()?.to_be_bytes();
    let at = list
        .windows(key.len().checked_add(4)?)
        .position(|w| w.starts_with(&key_len) && w.ends_with(key))?;
    let padded = key.len().checked_next_multiple_of(4)?;
    let kind = at.checked_add(4)?.checked_add(padded)?;
    if array(list, kind).map(u32::from_be_bytes)? != value_type {
        return None;
    }
    kind.checked_add(8)
}
