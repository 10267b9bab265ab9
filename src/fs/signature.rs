//! Recognising what has no driver here, so that it is shown by its name instead of as unknown.
//!
//! Magics, UUIDs and labels as `blkid -p` of util-linux prints them. Nothing here follows a
//! pointer of the volume: each type is told by bytes at fixed places (btrfs, LVM and RAID included).

use serde::Serialize;

use super::error::Result;
use crate::block::BlockDevice;
use crate::ondisk::bytes::{array, le16, le32, le64, slice};
use crate::ondisk::text::{until_nul, utf16le};
use crate::ondisk::uuid::from_fs;

/// What a volume holds, by its magic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Type as `blkid` names it: `vfat`, `xfs`, `swap`, `LVM2_member`, `crypto_LUKS`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// UUID as udev writes it (`ABCD-1234` for FAT).
    pub uuid: Option<String>,
    /// Label.
    pub label: Option<String>,
}

/// Bytes read from the start of a volume: up to the end of the btrfs superblock.
const HEAD_BYTES: usize = 68 << 10;

/// Looks at the first 68 KiB of a volume (and the end, for RAID members with metadata there).
///
/// # Errors
/// [`super::FsErrorKind::Io`].
pub fn recognise(device: &BlockDevice) -> Result<Option<Signature>> {
    let mut head = vec![0; HEAD_BYTES];
    let len = device.read_some_at(0, &mut head)?;
    head.truncate(len);
    let by_head = [
        luks,
        lvm,
        raid_at_front,
        xfs,
        btrfs,
        squashfs,
        erofs,
        f2fs,
        ntfs,
        exfat,
        bitlocker,
        swap,
        vfat,
        iso9660,
    ];
    if let Some(found) = by_head.iter().find_map(|look| look(&head)) {
        return Ok(Some(found));
    }
    raid_at_end(device)
}

fn signature(kind: &'static str) -> Signature {
    Signature {
        kind,
        uuid: None,
        label: None,
    }
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    slice(head, at, magic.len()) == Some(magic)
}

fn uuid_at(head: &[u8], at: usize) -> Option<String> {
    from_fs(array(head, at)?).map(|u| u.to_string())
}

/// A fixed label field, without padding; `None` if empty.
fn label(field: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(until_nul(field))
        .trim_end()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// Text of a fixed field as the UUID (LUKS and LVM store it as text).
fn text_at(head: &[u8], at: usize, len: usize) -> Option<String> {
    label(slice(head, at, len)?)
}

fn luks(head: &[u8]) -> Option<Signature> {
    if !has(head, 0, b"LUKS\xba\xbe") {
        return None;
    }
    let label = match array::<2>(head, 6)? {
        [0, 2] => text_at(head, 24, 48),
        _ => None,
    };
    Some(Signature {
        uuid: text_at(head, 168, 40),
        label,
        ..signature("crypto_LUKS")
    })
}

/// LVM2 label: in one of the first four sectors (LVM2 `lib/label/label.h`).
fn lvm(head: &[u8]) -> Option<Signature> {
    let at = [0, 512, 1024, 1536].into_iter().find(|&at: &usize| {
        has(head, at, b"LABELONE")
            && at
                .checked_add(24)
                .is_some_and(|t| has(head, t, b"LVM2 001"))
    })?;
    let raw = text_at(head, at.checked_add(32)?, 32)?;
    // 32 characters, written in groups of 6-4-4-4-4-4-6.
    let mut uuid = String::new();
    for (i, c) in raw.chars().enumerate() {
        if matches!(i, 6 | 10 | 14 | 18 | 22 | 26) {
            uuid.push('-');
        }
        uuid.push(c);
    }
    Some(Signature {
        uuid: Some(uuid),
        ..signature("LVM2_member")
    })
}

/// Linux RAID, metadata 1.1 (at the start) and 1.2 (4 KiB in).
fn raid_at_front(head: &[u8]) -> Option<Signature> {
    [0usize, 4096]
        .into_iter()
        .find_map(|at| raid_v1(slice(head, at, 256)?))
}

fn raid_v1(block: &[u8]) -> Option<Signature> {
    if le32(block, 0)? != 0xa92b_4efc || le32(block, 4)? != 1 {
        return None;
    }
    Some(Signature {
        uuid: uuid_at(block, 16),
        label: text_at(block, 32, 32),
        ..signature("linux_raid_member")
    })
}

/// Metadata 1.0 (8 KiB before the end, 4 KiB aligned) and 0.90 (64 KiB aligned).
fn raid_at_end(device: &BlockDevice) -> Result<Option<Signature>> {
    let mut block = [0u8; 256];
    let sectors = device.len() >> 9;
    if let Some(at) = sectors
        .checked_sub(16)
        .and_then(|s| (s & !7).checked_mul(512))
    {
        device.read_some_at(at, &mut block)?;
        if let Some(found) = raid_v1(&block) {
            return Ok(Some(found));
        }
    }
    let Some(at) = (device.len() & !0xFFFF).checked_sub(0x1_0000) else {
        return Ok(None);
    };
    device.read_some_at(at, &mut block)?;
    if le32(&block, 0) == Some(0xa92b_4efc) && le32(&block, 4) == Some(0) {
        let mut words = [0u8; 16];
        for (to, from) in words.chunks_exact_mut(4).zip([20usize, 52, 56, 60]) {
            // Four host-endian words; little-endian on every common machine.
            if let Some(word) = le32(&block, from) {
                to.copy_from_slice(&word.to_be_bytes());
            }
        }
        let uuid = from_fs(words).map(|u| u.to_string());
        return Ok(Some(Signature {
            uuid,
            ..signature("linux_raid_member")
        }));
    }
    Ok(None)
}

fn xfs(head: &[u8]) -> Option<Signature> {
    has(head, 0, b"XFSB").then(|| Signature {
        uuid: uuid_at(head, 32),
        label: text_at(head, 108, 12),
        ..signature("xfs")
    })
}

fn btrfs(head: &[u8]) -> Option<Signature> {
    has(head, 0x1_0040, b"_BHRfS_M").then(|| Signature {
        uuid: uuid_at(head, 0x1_0020),
        label: text_at(head, 0x1_012b, 256),
        ..signature("btrfs")
    })
}

fn squashfs(head: &[u8]) -> Option<Signature> {
    has(head, 0, b"hsqs").then(|| signature("squashfs"))
}

fn erofs(head: &[u8]) -> Option<Signature> {
    (le32(head, 1024)? == 0xE0F5_E1E2).then(|| Signature {
        uuid: uuid_at(head, 1024 + 48),
        label: text_at(head, 1024 + 64, 16),
        ..signature("erofs")
    })
}

fn f2fs(head: &[u8]) -> Option<Signature> {
    (le32(head, 1024)? == 0xF2F5_2010).then(|| Signature {
        uuid: uuid_at(head, 1024 + 0x6C),
        label: slice(head, 1024 + 0x7C, 1024)
            .map(utf16le)
            .filter(|l| !l.is_empty()),
        ..signature("f2fs")
    })
}

fn ntfs(head: &[u8]) -> Option<Signature> {
    has(head, 3, b"NTFS    ").then(|| Signature {
        uuid: le64(head, 0x48).map(|serial| format!("{serial:016X}")),
        ..signature("ntfs")
    })
}

fn exfat(head: &[u8]) -> Option<Signature> {
    has(head, 3, b"EXFAT   ").then(|| Signature {
        uuid: le32(head, 100).map(fat_serial),
        ..signature("exfat")
    })
}

fn bitlocker(head: &[u8]) -> Option<Signature> {
    has(head, 3, b"-FVE-FS-").then(|| signature("BitLocker"))
}

/// Swap header: the magic ends the first page, whose size is the machine's that made it.
fn swap(head: &[u8]) -> Option<Signature> {
    [4096usize, 8192, 16384, 32768, 65536]
        .into_iter()
        .find_map(|page| {
            let magic = slice(head, page.checked_sub(10)?, 10)?;
            match magic {
                b"SWAPSPACE2" => Some(Signature {
                    uuid: uuid_at(head, 1024 + 12),
                    label: text_at(head, 1024 + 28, 16),
                    ..signature("swap")
                }),
                b"SWAP-SPACE" => Some(signature("swap")),
                b"S1SUSPEND\0" | b"S2SUSPEND\0" | b"ULSUSPEND\0" | b"LINHIB0001" => {
                    Some(Signature {
                        uuid: uuid_at(head, 1024 + 12),
                        ..signature("swsuspend")
                    })
                }
                _ => None,
            }
        })
}

fn fat_serial(serial: u32) -> String {
    format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF)
}

/// FAT12, FAT16, FAT32: the BIOS parameter block must make sense (Microsoft FAT specification,
/// "Boot Sector and BPB"), since the type strings are not to be relied on.
fn vfat(head: &[u8]) -> Option<Signature> {
    if !has(head, 510, &[0x55, 0xAA]) || !matches!(head.first()?, 0xEB | 0xE9) {
        return None;
    }
    let sector_size = le16(head, 11)?;
    let cluster_sectors = *head.get(13)?;
    let reserved = le16(head, 14)?;
    let fats = *head.get(16)?;
    let media = *head.get(21)?;
    let plausible = matches!(sector_size, 512 | 1024 | 2048 | 4096)
        && cluster_sectors.is_power_of_two()
        && reserved > 0
        && matches!(fats, 1 | 2)
        && (media == 0xF0 || media >= 0xF8);
    if !plausible {
        return None;
    }
    let fat32 = le16(head, 22)? == 0 && le32(head, 36)? > 0;
    let (boot_signature, serial, name) = if fat32 { (66, 67, 71) } else { (38, 39, 43) };
    let extended = matches!(head.get(boot_signature)?, 0x28 | 0x29);
    let uuid = le32(head, serial)
        .filter(|&s| extended && s != 0)
        .map(fat_serial);
    let label = text_at(head, name, 11).filter(|l| extended && l != "NO NAME");
    Some(Signature {
        uuid,
        label,
        ..signature("vfat")
    })
}

fn iso9660(head: &[u8]) -> Option<Signature> {
    if !has(head, 0x8001, b"CD001") {
        return None;
    }
    // Volume identifier; the UUID is the modification or creation time, digits grouped.
    let digits = |at: usize| {
        let field = slice(head, at, 16)?;
        field
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| String::from_utf8_lossy(field).into_owned())
    };
    let stamp = digits(0x8000 + 830)
        .filter(|d| d.bytes().any(|b| b != b'0'))
        .or_else(|| digits(0x8000 + 813).filter(|d| d.bytes().any(|b| b != b'0')));
    let uuid = stamp.and_then(|d| {
        let parts = [
            (0, 4),
            (4, 6),
            (6, 8),
            (8, 10),
            (10, 12),
            (12, 14),
            (14, 16),
        ];
        let parts: Option<Vec<&str>> = parts.iter().map(|&(a, b)| d.get(a..b)).collect();
        parts.map(|p| p.join("-"))
    });
    Some(Signature {
        uuid,
        label: text_at(head, 0x8028, 32),
        ..signature("iso9660")
    })
}

/// Kinds that are containers or swap rather than filesystems: nothing could be mounted from them
/// directly.
pub fn is_filesystem(kind: &str) -> bool {
    !matches!(
        kind,
        "swap" | "swsuspend" | "LVM2_member" | "linux_raid_member" | "crypto_LUKS" | "BitLocker"
    )
}
