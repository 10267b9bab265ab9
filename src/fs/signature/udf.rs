//! UDF: a volume recognition sequence from 32 KiB on (ECMA-167, part 2), in which `NSR02` or
//! `NSR03` stands for UDF.

use super::{Look, Signature};
use crate::ondisk::bytes::{le16, le32, slice};

/// Descriptors of the recognition sequence that are looked at, as in blkid.
const MAX_DESCRIPTORS: u64 = 64;

pub(super) fn find(look: &Look<'_>) -> Option<Signature> {
    // Descriptors are 2048 bytes apart, or one block where blocks are larger.
    for step in [2048u64, 4096] {
        for number in 0..MAX_DESCRIPTORS {
            let at = number.checked_mul(step)?.checked_add(32768)?;
            let Some(raw) = look.bytes(at, 7) else { break };
            match slice(&raw, 1, 5)? {
                b"NSR02" | b"NSR03" => {
                    let (uuid, label) = identity(look).unwrap_or_default();
                    return Some(Signature {
                        uuid,
                        label,
                        ..Signature::new("udf")
                    });
                }
                b"BEA01" | b"BOOT2" | b"CD001" | b"CDW02" | b"TEA01" => {}
                _ => break,
            }
        }
    }
    None
}

/// UUID and label: from the anchor at block 256 to the volume descriptor sequence, in which they
/// are the volume set identifier and the logical volume identifier.
fn identity(look: &Look<'_>) -> Option<(Option<String>, Option<String>)> {
    for block in [512u64, 2048, 1024, 4096] {
        let anchor = look.bytes(block.checked_mul(256)?, 512);
        let Some(anchor) = anchor.filter(|a| le16(a, 0) == Some(2) && le32(a, 12) == Some(256))
        else {
            continue;
        };
        let count = u64::from(le32(&anchor, 16)?)
            .checked_div(block)?
            .min(MAX_DESCRIPTORS);
        let first = u64::from(le32(&anchor, 20)?);
        let (mut uuid, mut label) = (None, None);
        for number in 0..count {
            let at = first.checked_add(number)?.checked_mul(block)?;
            let Some(raw) = look.bytes(at, 512) else {
                break;
            };
            match le16(&raw, 0)? {
                // Primary volume descriptor.
                1 => uuid = dstring(slice(&raw, 72, 128)?).and_then(|set| set_uuid(&set)),
                // Logical volume descriptor.
                6 => label = dstring(slice(&raw, 84, 128)?),
                // Terminating descriptor.
                8 => break,
                _ => {}
            }
        }
        return Some((uuid, label));
    }
    None
}

/// 16 hexadecimal digits from the start of the volume set identifier, as udev does it: the first
/// 16 characters if they are digits, else the first 8 and four bytes as digits, else eight bytes.
fn set_uuid(set: &str) -> Option<String> {
    let set = set.as_bytes();
    let digits = set.iter().take(16).take_while(|b| b.is_ascii_hexdigit());
    let literal = match digits.count() {
        0..8 => 0,
        8..16 => 8,
        _ => 16,
    };
    let (text, bytes) = set.split_at_checked(literal)?;
    let mut out = String::from_utf8_lossy(text).to_ascii_lowercase();
    // Two digits for each byte of what is left of the 16.
    let missing = 16usize.checked_sub(literal)?.checked_div(2)?;
    for byte in bytes.get(..missing)? {
        out.push_str(&format!("{byte:02x}"));
    }
    Some(out)
}

/// OSTA compressed Unicode in a field whose last byte is the length used (UDF 2.60, 2.1.3).
fn dstring(field: &[u8]) -> Option<String> {
    let (&len, text) = field.split_last()?;
    let (&width, text) = text.get(..usize::from(len))?.split_first()?;
    let text: String = match width {
        8 | 254 => text.iter().map(|&b| char::from(b)).collect(),
        16 | 255 => {
            let units = text
                .chunks_exact(2)
                .filter_map(|p| Some(u16::from_be_bytes(p.try_into().ok()?)));
            char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        }
        _ => return None,
    };
    super::label_text(text.as_bytes())
}
