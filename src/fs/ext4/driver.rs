//! Recognising and opening.
//!
//! Order of an open: find a superblock that can be used (the primary one, else a backup), check the
//! features, replay the journal into memory if it is needed, read the superblock again.

use std::sync::Arc;

use super::features::{Compat, Incompat, RoCompat};
use super::filesystem::Ext4;
use super::journal::{self, Outcome};
use super::superblock::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, Superblock};
use super::volume::Volume;
use crate::block::BlockDevice;
use crate::fs::api::{FileSystem, FsDriver, FsInfo, FsOptions};
use crate::fs::error::{FsError, FsErrorKind, Result};
use crate::ondisk::bytes::{array, is_zero, le16, le32};
use crate::ondisk::uuid::from_fs;
use crate::volumes::Probe;

/// ext2, ext3 and ext4.
pub struct Ext4Driver;

/// A superblock and where it was found.
struct Found {
    sb: Superblock,
    /// Block it lies in.
    block: u64,
    /// What was wrong with the primary one, if this is a backup.
    damage: Option<String>,
}

fn read_superblock(device: &BlockDevice, offset: u64) -> Result<Option<[u8; SUPERBLOCK_LEN]>> {
    let mut raw = [0; SUPERBLOCK_LEN];
    Ok((device.read_some_at(offset, &mut raw)? == raw.len()).then_some(raw))
}

/// The block of a superblock at `offset`: with 1 KiB blocks it fills one, with larger ones the
/// primary lies inside block 0.
fn block_of(sb: &Superblock, offset: u64) -> u64 {
    offset >> sb.block_size_log2
}

/// Looks for a backup: at the start of groups 1, 3, 5, 7, 9 and 25, for each block size with the
/// largest (and usual) number of blocks per group.
fn find_backup(device: &BlockDevice) -> Result<Option<Found>> {
    for log in 0..=6u32 {
        let block_size = 1024u64.checked_shl(log).unwrap_or(1024);
        let first = u64::from(log == 0);
        for group in [1u64, 3, 5, 7, 9, 25] {
            let block = group
                .saturating_mul(block_size.saturating_mul(8))
                .saturating_add(first);
            let offset = block.saturating_mul(block_size);
            if offset.saturating_add(1024) > device.len() {
                break;
            }
            let Some(raw) = read_superblock(device, offset)? else {
                continue;
            };
            if le32(&raw, 0x18) != Some(log) || le16(&raw, 0x5A).map(u64::from) != Some(group) {
                continue;
            }
            if let Ok(sb) = Superblock::parse(&raw)
                && sb.checksum_ok
            {
                return Ok(Some(Found {
                    sb,
                    block,
                    damage: None,
                }));
            }
        }
    }
    Ok(None)
}

/// Whether the start of the device belongs to something else: a backup superblock may survive in a
/// volume that was formatted anew.
fn taken_over(device: &BlockDevice) -> Result<bool> {
    let mut head = vec![0; 4096];
    let len = device.read_some_at(0, &mut head)?;
    head.truncate(len);
    let mut btrfs = [0; 8];
    device.read_some_at(0x1_0040, &mut btrfs)?;
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    Ok(at(0, b"XFSB")
        || at(0, b"LUKS")
        || at(510, &[0x55, 0xAA])
        || at(512, b"LABELONE")
        || at(4086, b"SWAPSPACE2")
        || &btrfs == b"_BHRfS_M")
}

fn is_journal_device(raw: &[u8]) -> bool {
    Superblock::has_magic(raw)
        && le32(raw, 0x60).is_some_and(|bits| bits & Incompat::JOURNAL_DEV.bits() != 0)
}

/// A superblock to work with; `None` if this is something else.
fn find_superblock(device: &BlockDevice, ignore_checksums: bool) -> Result<Option<Found>> {
    let Some(raw) = read_superblock(device, SUPERBLOCK_OFFSET)? else {
        return Ok(None);
    };
    // A journal by itself holds no files (and lacks what a filesystem's superblock must have).
    if is_journal_device(&raw) {
        return Err(FsError::unsupported(
            "an external journal, not a filesystem",
        ));
    }
    let primary = Superblock::parse(&raw);
    let damage = match primary {
        Ok(sb) if sb.checksum_ok || ignore_checksums => {
            let block = block_of(&sb, SUPERBLOCK_OFFSET);
            return Ok(Some(Found {
                sb,
                block,
                damage: None,
            }));
        }
        Ok(_) => "the checksum of the superblock is wrong".to_owned(),
        Err(error) if error.kind() == FsErrorKind::Unsupported => return Err(error),
        Err(error) => error.to_string(),
    };
    let has_magic = Superblock::has_magic(&raw);
    if !has_magic && taken_over(device)? {
        return Ok(None);
    }
    let Some(backup) = find_backup(device)? else {
        return if has_magic {
            Err(FsError::damaged(damage))
        } else {
            Ok(None)
        };
    };
    // Without the magic number: only what was wiped or is still recognisably ours.
    let uuid: Option<[u8; 16]> = array(&raw, 0x68);
    if !has_magic && !is_zero(&raw) && uuid != Some(backup.sb.uuid) {
        return Ok(None);
    }
    Ok(Some(Found {
        damage: Some(damage),
        ..backup
    }))
}

fn check_features(sb: &Superblock) -> Result<()> {
    let unknown = sb.incompat.difference(Incompat::READABLE);
    if unknown.is_empty() {
        return Ok(());
    }
    Err(FsError::unsupported(format!(
        "the filesystem needs features that are not implemented: {}",
        unknown.names("incompat").join(", ")
    )))
}

impl FsDriver for Ext4Driver {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn probe(&self, device: &BlockDevice) -> Result<Probe<()>> {
        if let Some(raw) = read_superblock(device, SUPERBLOCK_OFFSET)?
            && is_journal_device(&raw)
        {
            return Ok(Probe::NotMine);
        }
        match find_superblock(device, false) {
            Ok(None) => Ok(Probe::NotMine),
            Ok(Some(Found {
                damage: Some(damage),
                ..
            })) => Ok(Probe::Damaged((), damage)),
            Ok(Some(_)) => Ok(Probe::Mine(())),
            Err(error) if error.kind() == FsErrorKind::Io => Err(error),
            Err(error) => Ok(Probe::Damaged((), error.to_string())),
        }
    }

    fn open(&self, device: &BlockDevice, options: &FsOptions) -> Result<Arc<dyn FileSystem>> {
        let found = find_superblock(device, options.ignore_checksums)?
            .ok_or_else(|| FsError::damaged("there is no ext2, ext3 or ext4 superblock"))?;
        check_features(&found.sb)?;

        let mut notices = Vec::new();
        let mut reasons = Vec::new();
        if let Some(damage) = &found.damage {
            notices.push(format!(
                "{damage}; the backup in block {} is used",
                found.block
            ));
            reasons.push("the primary superblock is damaged".to_owned());
        }
        let needs_recovery = found.sb.incompat.contains(Incompat::RECOVER);
        let mut volume = Volume::new(
            device.clone(),
            found.sb,
            found.block,
            options.ignore_checksums,
        );
        let mut replayed = false;
        if needs_recovery && options.no_replay {
            notices.push("the journal holds changes; they are not shown".to_owned());
        } else if needs_recovery {
            match journal::recover(&volume) {
                Outcome::Replayed {
                    device,
                    notices: told,
                } => {
                    notices.extend(told);
                    replayed = true;
                    // The replay may have brought a newer superblock.
                    let sb = read_again(&device, &volume)?;
                    volume = Volume::new(device, sb, volume.super_block, options.ignore_checksums);
                }
                Outcome::Nothing { notices: told } => notices.extend(told),
                Outcome::Failed { reason } => {
                    notices.push(format!("{reason}; the journal is not replayed"));
                    reasons.push("the journal cannot be replayed".to_owned());
                }
            }
        }
        check_features(&volume.sb)?;
        let info = describe(&volume, needs_recovery, replayed, notices, reasons);
        Ok(Arc::new(Ext4 { volume, info }))
    }
}

/// The superblock after a replay; the one from before if the new one cannot be used.
fn read_again(device: &BlockDevice, volume: &Volume) -> Result<Superblock> {
    let offset = match volume.super_block {
        0 | 1 => SUPERBLOCK_OFFSET,
        block => volume.sb.byte_of(block).unwrap_or(SUPERBLOCK_OFFSET),
    };
    let fresh = read_superblock(device, offset)?
        .and_then(|raw| Superblock::parse(&raw).ok())
        .filter(|sb| {
            (sb.checksum_ok || volume.ignore_checksums) && sb.block_size == volume.sb.block_size
        });
    Ok(fresh.unwrap_or_else(|| volume.sb.clone()))
}

/// What the multi-mount protection record says, if someone seems to be at work.
fn mmp_notice(volume: &Volume) -> Option<String> {
    const CLEAN: u32 = 0xFF4D_4D50;
    const FSCK: u32 = 0xE24D_4D50;
    if !volume.sb.incompat.contains(Incompat::MMP) {
        return None;
    }
    let offset = volume.sb.byte_of(volume.sb.mmp_block)?;
    let raw = volume.device.read_vec(offset, 1024).ok()?;
    let sequence = le32(&raw, 4).filter(|_| le32(&raw, 0) == Some(0x004D_4D50))?;
    match sequence {
        CLEAN => None,
        FSCK => Some("another host is checking the filesystem; what is read may be inconsistent".to_owned()),
        _ => Some(
            "another host may have the filesystem mounted (multi-mount protection); what is read may be inconsistent"
                .to_owned(),
        ),
    }
}

fn describe(
    volume: &Volume,
    needs_recovery: bool,
    journal_replayed: bool,
    mut notices: Vec<String>,
    mut reasons: Vec<String>,
) -> FsInfo {
    let sb = &volume.sb;
    const ERRORS: u16 = 2;
    if sb.state & ERRORS != 0 {
        notices.push("the filesystem is marked as having errors; run e2fsck".to_owned());
        reasons.push("the filesystem is marked as having errors".to_owned());
    }
    if let Some(notice) = mmp_notice(volume) {
        notices.push(notice);
        reasons.push("multi-mount protection says it is in use".to_owned());
    }
    let size = sb
        .blocks_count
        .checked_shl(sb.block_size_log2)
        .unwrap_or(u64::MAX);
    if size > volume.device.len() {
        notices.push(format!(
            "the filesystem has {size} bytes but its device only {}; files beyond cannot be read",
            volume.device.len()
        ));
        reasons.push("the device is shorter than the filesystem".to_owned());
    }
    if sb.last_orphan != 0 || sb.ro_compat.contains(RoCompat::ORPHAN_PRESENT) {
        notices.push("files that were deleted while open still take space".to_owned());
    }
    let unwritable = sb.ro_compat.difference(RoCompat::WRITABLE);
    for name in unwritable.names("ro_compat") {
        reasons.push(format!("feature {name}"));
    }
    for (bit, name) in [
        (Compat::IMAGIC_INODES, "imagic_inodes"),
        (Compat::LAZY_BG, "lazy_bg"),
        (Compat::SNAPSHOT_BITMAP, "snapshot_bitmap"),
    ] {
        if sb.compat.contains(bit) {
            reasons.push(format!("feature {name}"));
        }
    }
    if sb.incompat.contains(Incompat::DIRDATA) {
        reasons.push("feature dirdata".to_owned());
    }
    if sb.block_size > 4096 {
        reasons.push(format!("blocks of {} bytes", sb.block_size));
    }
    let mut features = sb.compat.names("compat");
    features.extend(sb.incompat.names("incompat"));
    features.extend(sb.ro_compat.names("ro_compat"));
    FsInfo {
        fs_type: sb.type_name().to_owned(),
        uuid: from_fs(sb.uuid).map(|uuid| uuid.to_string()),
        label: (!sb.label.is_empty()).then(|| String::from_utf8_lossy(&sb.label).into_owned()),
        block_size: sb.block_size,
        features,
        clean: sb.state & 1 != 0 && sb.state & ERRORS == 0 && !needs_recovery,
        journal_replayed,
        notices,
        read_only_reasons: reasons,
    }
}
