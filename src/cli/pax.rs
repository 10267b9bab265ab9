//! The pax interchange format (POSIX.1-2001 `pax`, "pax Interchange Format"), as far as it is
//! written: headers, extended records, GNU's sparse maps, ACLs as star writes them.

use crate::fs::Attributes;
use crate::ondisk::bytes::{le16, le32};

/// Unit of a tar archive.
pub const BLOCK: usize = 512;

/// Largest number of eleven octal digits, the size field.
pub const MAX_SIZE: u64 = 0o77_777_777_777;

/// Largest number of seven octal digits, the owner fields.
pub const MAX_ID: u32 = 0o7_777_777;

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
pub fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while body + len.to_string().len() != len {
        len = body + len.to_string().len();
    }
    pax.extend_from_slice(len.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// Seconds with a fraction, also before 1970.
pub fn seconds(secs: i64, nanos: u32) -> String {
    if secs < 0 && nanos > 0 {
        let whole = secs.saturating_add(1);
        let sign = if whole == 0 { "-" } else { "" };
        return format!(
            "{sign}{whole}.{:09}",
            1_000_000_000u32.saturating_sub(nanos)
        );
    }
    format!("{secs}.{nanos:09}")
}

/// A `ustar` header. What does not fit is cut or 0, and must be in an extended header.
pub fn header(name: &[u8], linked: &[u8], a: &Attributes, size: u64, type_flag: u8) -> [u8; BLOCK] {
    let mut h = [0; BLOCK];
    let mut put = |at: usize, max: usize, bytes: &[u8]| {
        let bytes = bytes.get(..bytes.len().min(max)).unwrap_or_default();
        if let Some(field) = h.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    // A number too large for its field is in the pax header.
    let octal = |digits: usize, value: u64| {
        let most = (1u64 << (3 * digits)) - 1;
        format!("{:0digits$o}", if value > most { 0 } else { value })
    };
    put(0, 100, name);
    put(100, 8, octal(7, u64::from(a.permissions)).as_bytes());
    put(108, 8, octal(7, u64::from(a.uid)).as_bytes());
    put(116, 8, octal(7, u64::from(a.gid)).as_bytes());
    put(124, 12, octal(11, size).as_bytes());
    put(
        136,
        12,
        octal(11, u64::try_from(a.mtime.secs).unwrap_or(0)).as_bytes(),
    );
    put(148, 8, b"        ");
    put(156, 1, &[type_flag]);
    put(157, 100, linked);
    put(257, 8, b"ustar\x0000");
    if let Some(device) = a.device {
        put(329, 8, octal(7, u64::from(device.major)).as_bytes());
        put(337, 8, octal(7, u64::from(device.minor)).as_bytes());
    }
    let sum: u64 = h.iter().map(|&b| u64::from(b)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = h.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    h
}

/// Bytes from the end of `len` bytes to the end of the block.
pub fn padding(len: u64) -> usize {
    let over = len % BLOCK as u64;
    if over == 0 {
        return 0;
    }
    BLOCK.saturating_sub(usize::try_from(over).unwrap_or(0))
}

/// Runs of data `(offset, length)` as GNU tar's format 1.0 wants them: ascending, on borders of
/// blocks (but for the end of the file), and an empty one at the end if that is a hole.
#[derive(Debug, Default)]
pub struct SparseMap {
    runs: Vec<(u64, u64)>,
}

/// Most runs of a map. Files of more are written as if the rest were data.
const MAX_RUNS: usize = 1 << 20;

impl SparseMap {
    /// Adds data; in ascending order.
    pub fn add(&mut self, start: u64, end: u64, size: u64) {
        let start = start - start % BLOCK as u64;
        let end = end
            .checked_next_multiple_of(BLOCK as u64)
            .unwrap_or(u64::MAX)
            .min(size);
        let full = self.runs.len() >= MAX_RUNS;
        match self.runs.last_mut() {
            Some((at, len)) if full || at.saturating_add(*len) >= start => {
                *len = end.saturating_sub(*at).max(*len);
            }
            _ => self.runs.push((start, end.saturating_sub(start))),
        }
    }

    /// The runs.
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }

    /// Bytes of data.
    pub fn data_len(&self) -> u64 {
        self.runs.iter().fold(0, |sum, r| sum.saturating_add(r.1))
    }

    /// What stands before the data of a member of `size` bytes, padded to whole blocks.
    pub fn encode(&self, size: u64) -> Vec<u8> {
        let at_end = self
            .runs
            .last()
            .is_none_or(|(at, len)| at.saturating_add(*len) < size);
        let count = self.runs.len() + usize::from(at_end);
        let mut text = format!("{count}\n");
        let end = at_end.then_some((size, 0));
        for (at, len) in self.runs.iter().copied().chain(end) {
            text.push_str(&format!("{at}\n{len}\n"));
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// The text form of a POSIX ACL given as the value of `system.posix_acl_access` or `_default`
/// (linux `include/uapi/linux/posix_acl_xattr.h`, version 2), with numbers for users and groups.
pub fn acl_text(value: &[u8]) -> Option<String> {
    if le32(value, 0)? != 2 {
        return None;
    }
    let mut text = String::new();
    for entry in value.get(4..)?.chunks_exact(8) {
        let (tag, bits, id) = (le16(entry, 0)?, le16(entry, 2)?, le32(entry, 4)?);
        let who = match tag {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        text.push_str(&who);
        text.push(':');
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if bits & bit != 0 { letter } else { '-' });
        }
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        // The length has one digit more from ten on, which is then counted too.
        for (len, want) in [(1, "6 k=x\n"), (4, "9 k=xxxx\n"), (5, "11 k=xxxxx\n")] {
            let mut pax = Vec::new();
            record(&mut pax, b"k", "x".repeat(len).as_bytes());
            assert_eq!(String::from_utf8(pax).unwrap(), want);
        }
    }

    #[test]
    fn times_before_1970() {
        assert_eq!(seconds(5, 1), "5.000000001");
        assert_eq!(seconds(-1, 0), "-1.000000000");
        assert_eq!(seconds(-1, 750_000_000), "-0.250000000");
        assert_eq!(seconds(-3, 750_000_000), "-2.250000000");
    }

    #[test]
    fn sparse_maps_lie_on_blocks() {
        let mut map = SparseMap::default();
        assert_eq!(&map.encode(1 << 40)[..19], b"1\n1099511627776\n0\n\0");
        map.add(1000, 1100, 5000);
        map.add(1536, 1537, 5000);
        map.add(4608, 5000, 5000);
        assert_eq!(map.runs(), [(512, 1536), (4608, 392)]);
        assert_eq!(map.data_len(), 1928);
        assert_eq!(&map.encode(5000)[..19], b"2\n512\n1536\n4608\n392");
        assert_eq!(map.encode(5000).len(), BLOCK);
    }
}
