//! NTFS. The label is an attribute of the file `$Volume`, the fourth record of the MFT.

use super::{Look, Signature, label_text};
use crate::ondisk::bytes::{array, le16, le32, le64, slice};
use crate::ondisk::text::utf16le;

/// Number of the record of `$Volume`.
const VOLUME_RECORD: u64 = 3;

/// Type of the attribute `$VOLUME_NAME`.
const VOLUME_NAME: u32 = 0x60;

pub(super) fn find(look: &Look<'_>) -> Option<Signature> {
    let boot = look.bytes(0, 512)?;
    if slice(&boot, 3, 8)? != b"NTFS    " {
        return None;
    }
    Some(Signature {
        kind: "ntfs",
        uuid: Some(format!("{:016X}", le64(&boot, 72)?)),
        label: label(look, &boot),
    })
}

fn label(look: &Look<'_>, boot: &[u8]) -> Option<String> {
    let sector = u64::from(le16(boot, 11)?);
    let cluster = sector.checked_mul(match *boot.get(13)? {
        // Above 128 the field is the negative logarithm of the count.
        n @ 0..=128 => u64::from(n),
        n => 1u64.checked_shl(256u32.checked_sub(u32::from(n))?)?,
    })?;
    let record_len = match i8::from_ne_bytes([*boot.get(64)?]) {
        n @ 1.. => cluster.checked_mul(u64::from(n.unsigned_abs()))?,
        n => 1u64.checked_shl(u32::from(n.unsigned_abs()))?,
    };
    // 1 KiB in practice, 4 KiB on disks with large sectors.
    let len = usize::try_from(record_len)
        .ok()
        .filter(|len| (512..=64 << 10).contains(len))?;
    let at = le64(boot, 48)?
        .checked_mul(cluster)?
        .checked_add(VOLUME_RECORD.checked_mul(record_len)?)?;
    let mut record = look.bytes(at, len)?;
    if !record.starts_with(b"FILE") {
        return None;
    }
    fix_up(&mut record)?;
    let mut attribute = usize::from(le16(&record, 20)?);
    // Attributes have a length of at least 16 bytes, so this ends within the record.
    loop {
        let kind = le32(&record, attribute)?;
        let size = usize::try_from(le32(&record, attribute.checked_add(4)?)?).ok()?;
        if kind == u32::MAX || size < 16 {
            return None;
        }
        if kind == VOLUME_NAME {
            let body = slice(&record, attribute, size)?;
            let len = usize::try_from(le32(body, 16)?).ok()?;
            let text = slice(body, usize::from(le16(body, 20)?), len)?;
            return label_text(utf16le(text).as_bytes());
        }
        attribute = attribute.checked_add(size)?;
    }
}

/// Puts back the last two bytes of each 512, which the update sequence holds.
fn fix_up(record: &mut [u8]) -> Option<()> {
    let from = usize::from(le16(record, 4)?);
    let count = usize::from(le16(record, 6)?);
    let sequence = slice(record, from, count.checked_mul(2)?)?.to_vec();
    for (chunk, saved) in record
        .chunks_exact_mut(512)
        .zip(sequence.chunks_exact(2).skip(1))
    {
        let saved: [u8; 2] = array(saved, 0)?;
        chunk.get_mut(510..512)?.copy_from_slice(&saved);
    }
    Some(())
}
