//! How far into its volume something that was recognised reaches, where its header says so.

use super::{Look, Signature};
use crate::ondisk::bytes::{array, le16, le32, le64};

/// Where it ends, in bytes from the start of the volume; `None` where that cannot be told.
pub(super) fn end(look: &Look<'_>, signature: &Signature) -> Option<u64> {
    match signature.kind {
        "vfat" => fat(look),
        "exfat" => exfat(look),
        "ntfs" => ntfs(look),
        "f2fs" => f2fs(look),
        "swap" => swap(look),
        "LVM2_member" => lvm2(look),
        _ => None,
    }
    .filter(|&end| end > 0)
}

/// Microsoft's FAT specification, section 3: `BPB_TotSec16`, `BPB_TotSec32`.
fn fat(look: &Look<'_>) -> Option<u64> {
    let boot = look.bytes(0, 512)?;
    let sectors = match le16(&boot, 19)? {
        0 => le32(&boot, 32)?,
        few => few.into(),
    };
    u64::from(sectors).checked_mul(le16(&boot, 11)?.into())
}

/// Microsoft's exFAT specification, section 3.1: `VolumeLength`, `BytesPerSectorShift`.
fn exfat(look: &Look<'_>) -> Option<u64> {
    let boot = look.bytes(0, 512)?;
    let [shift] = array(&boot, 108)?;
    le64(&boot, 72)?.checked_mul(1_u64.checked_shl(shift.into())?)
}

/// The sectors that the boot sector counts, and its own copy behind them.
fn ntfs(look: &Look<'_>) -> Option<u64> {
    let boot = look.bytes(0, 512)?;
    le64(&boot, 40)?
        .checked_add(1)?
        .checked_mul(le16(&boot, 11)?.into())
}

/// Linux, `include/linux/f2fs_fs.h`, `struct f2fs_super_block`: `log_blocksize`, `block_count`.
fn f2fs(look: &Look<'_>) -> Option<u64> {
    let raw = look.bytes(1024, 64)?;
    let block = 1_u64.checked_shl(le32(&raw, 16)?)?;
    le64(&raw, 36)?.checked_mul(block)
}

/// Linux, `include/linux/swap.h`, `union swap_header`: `last_page`, in pages of the size that the
/// place of the magic tells.
fn swap(look: &Look<'_>) -> Option<u64> {
    let page = [4096_u64, 8192, 16384, 32768, 65536]
        .into_iter()
        .find(|page| {
            page.checked_sub(10)
                .is_some_and(|at| look.has(at, b"SWAPSPACE2"))
        })?;
    let raw = look.bytes(1024, 8)?;
    if le32(&raw, 0)? != 1 {
        return None;
    }
    u64::from(le32(&raw, 4)?).checked_add(1)?.checked_mul(page)
}

/// LVM2, `struct label_header` and `struct pv_header`: `device_size_xl`.
fn lvm2(look: &Look<'_>) -> Option<u64> {
    (0..4_u64).find_map(|sector| {
        let label = look.bytes(sector.checked_mul(512)?, 512)?;
        if !label.starts_with(b"LABELONE") {
            return None;
        }
        let header = usize::try_from(le32(&label, 20)?).ok()?;
        le64(&label, header.checked_add(32)?)
    })
}
