//! FAT12, FAT16, FAT32 and exFAT. The label is an entry of the root directory.

use super::{Look, Signature, label_text};
use crate::ondisk::bytes::{array, le16, le32, slice};

/// Clusters of a root directory that are searched for the label; blkid stops there as well.
const MAX_ROOT_CLUSTERS: usize = 100;

/// Largest part of a root directory read at once, in bytes.
const MAX_READ: u64 = 1 << 20;

pub(super) fn find(look: &Look<'_>) -> Option<Signature> {
    exfat(look).or_else(|| vfat(look))
}

/// A volume serial number as it is written.
fn serial(raw: u32) -> Option<String> {
    (raw != 0).then(|| format!("{:04X}-{:04X}", raw >> 16, raw & 0xFFFF))
}

/// The numbers of a FAT's BIOS parameter block (FAT specification 1.03, "Boot Sector and BPB").
struct Bpb {
    sector: u64,
    cluster: u64,
    reserved: u64,
    fats: u64,
    root_entries: u64,
    fat_len: u64,
    root_cluster: Option<u32>,
    serial: Option<u32>,
}

impl Bpb {
    fn parse(raw: &[u8]) -> Option<Self> {
        let [jump] = array(raw, 0)?;
        let sector = le16(raw, 11)?;
        let [sectors_per_cluster] = array(raw, 13)?;
        let reserved = le16(raw, 14)?;
        let [fats] = array(raw, 16)?;
        let root_entries = le16(raw, 17)?;
        let [media] = array(raw, 21)?;
        let fat16_len = le16(raw, 22)?;
        let small = le16(raw, 19)?;
        let total = if small != 0 {
            u32::from(small)
        } else {
            le32(raw, 32)?
        };
        let magic = |at, name: &[u8]| slice(raw, at, name.len()) == Some(name);
        let named = magic(54, b"FAT1")
            || magic(54, b"FAT ")
            || magic(82, b"FAT32")
            || magic(54, b"MSDOS")
            || magic(82, b"MSWIN");
        let sound = (named || matches!(jump, 0xEB | 0xE9) && array(raw, 510) == Some([0x55, 0xAA]))
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && sectors_per_cluster.is_power_of_two()
            && reserved > 0
            && fats > 0
            && (media == 0xF0 || media >= 0xF8)
            && total > 0;
        if !sound {
            return None;
        }
        let (fat_len, root_cluster, serial_at, signature_at) = if fat16_len == 0 {
            (le32(raw, 36)?, Some(le32(raw, 44)?), 67, 66)
        } else {
            (u32::from(fat16_len), None, 39, 38)
        };
        if fat_len == 0 || root_cluster.is_none() && root_entries == 0 {
            return None;
        }
        let [signature] = array(raw, signature_at)?;
        let sector = u64::from(sector);
        Some(Self {
            sector,
            cluster: sector.checked_mul(u64::from(sectors_per_cluster))?,
            reserved: u64::from(reserved),
            fats: u64::from(fats),
            root_entries: u64::from(root_entries),
            fat_len: u64::from(fat_len),
            root_cluster,
            serial: matches!(signature, 0x28 | 0x29)
                .then(|| le32(raw, serial_at))
                .flatten(),
        })
    }

    /// Where the fixed root directory or the first cluster is, in bytes.
    fn after_fats(&self) -> Option<u64> {
        self.fats
            .checked_mul(self.fat_len)?
            .checked_add(self.reserved)?
            .checked_mul(self.sector)
    }

    fn label(&self, look: &Look<'_>) -> Option<String> {
        let Some(first) = self.root_cluster else {
            let len = self.root_entries.checked_mul(32)?.min(MAX_READ);
            let raw = look.bytes(self.after_fats()?, usize::try_from(len).ok()?)?;
            return find_label(&raw).flatten();
        };
        let fat = self.reserved.checked_mul(self.sector)?;
        let mut cluster = first & 0x0FFF_FFFF;
        for _ in 0..MAX_ROOT_CLUSTERS {
            if !(2..0x0FFF_FFF0).contains(&cluster) {
                return None;
            }
            let at = u64::from(cluster)
                .checked_sub(2)?
                .checked_mul(self.cluster)?
                .checked_add(self.after_fats()?)?;
            let raw = look.bytes(at, usize::try_from(self.cluster).ok()?)?;
            if let Some(found) = find_label(&raw) {
                return found;
            }
            let entry = look.bytes(u64::from(cluster).checked_mul(4)?.checked_add(fat)?, 4)?;
            cluster = le32(&entry, 0)? & 0x0FFF_FFFF;
        }
        None
    }
}

/// The label among the entries of a directory; `Some(None)` if the directory ends without one.
fn find_label(entries: &[u8]) -> Option<Option<String>> {
    for entry in entries.chunks_exact(32) {
        let (Some([first]), Some([attributes])) = (array(entry, 0), array(entry, 11)) else {
            break;
        };
        if first == 0 {
            return Some(None);
        }
        let cluster = le16(entry, 20) != Some(0) || le16(entry, 26) != Some(0);
        let long_name = attributes & 0x3F == 0x0F;
        if first == 0xE5 || cluster || long_name || attributes & 0x18 != 0x08 {
            continue;
        }
        let mut name = slice(entry, 0, 11).unwrap_or_default().to_vec();
        // 0x05 stands for a first byte that would mean "deleted".
        if let Some(first @ 0x05) = name.first_mut() {
            *first = 0xE5;
        }
        return Some(label_text(&name));
    }
    None
}

fn vfat(look: &Look<'_>) -> Option<Signature> {
    let bpb = Bpb::parse(&look.bytes(0, 512)?)?;
    Some(Signature {
        kind: "vfat",
        uuid: bpb.serial.and_then(serial),
        label: bpb.label(look),
    })
}

/// exFAT (Microsoft's specification, sections 3.1 and 7.3).
fn exfat(look: &Look<'_>) -> Option<Signature> {
    let raw = look.bytes(0, 512)?;
    if slice(&raw, 3, 8)? != b"EXFAT   " {
        return None;
    }
    Some(Signature {
        kind: "exfat",
        uuid: serial(le32(&raw, 100)?),
        label: exfat_label(look, &raw),
    })
}

fn exfat_label(look: &Look<'_>, boot: &[u8]) -> Option<String> {
    let sector = 1u64
        .checked_shl(u32::from(*boot.get(108)?))
        .filter(|s| (512..=4096).contains(s))?;
    let cluster_len = sector
        .checked_mul(1u64.checked_shl(u32::from(*boot.get(109)?))?)
        .filter(|&len| len <= 32 << 20)?;
    let fat = u64::from(le32(boot, 80)?).checked_mul(sector)?;
    let heap = u64::from(le32(boot, 88)?).checked_mul(sector)?;
    let mut cluster = le32(boot, 96)?;
    for _ in 0..MAX_ROOT_CLUSTERS {
        let at = u64::from(cluster.checked_sub(2)?)
            .checked_mul(cluster_len)?
            .checked_add(heap)?;
        let raw = look.bytes(at, usize::try_from(cluster_len.min(MAX_READ)).ok()?)?;
        for entry in raw.chunks_exact(32) {
            match entry.first()? {
                0 => return None,
                // Volume label: a count of UTF-16 units, then at most 11 of them.
                0x83 => {
                    let units = usize::from(*entry.get(1)?).min(11);
                    let text = slice(entry, 2, units.checked_mul(2)?)?;
                    return label_text(crate::ondisk::text::utf16le(text).as_bytes());
                }
                _ => {}
            }
        }
        let next = look.bytes(u64::from(cluster).checked_mul(4)?.checked_add(fat)?, 4)?;
        cluster = le32(&next, 0)?;
    }
    None
}
