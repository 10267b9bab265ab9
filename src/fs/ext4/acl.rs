//! POSIX ACLs: ext4 stores version 1 with short entries, Linux shows version 2 with fixed ones
//! (linux `fs/ext4/acl.h`, `include/uapi/linux/posix_acl_xattr.h`).

use crate::ondisk::bytes::{Cursor, le32};

/// Tags whose entries name a user or a group.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
/// Tags without: owner, owning group, mask, others.
const WITHOUT_ID: [u16; 4] = [0x01, 0x04, 0x10, 0x20];

/// The value as `getxattr` gives it, or `None` if the stored one is malformed.
pub fn to_xattr(stored: &[u8]) -> Option<Vec<u8>> {
    if le32(stored, 0)? != 1 {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut cursor = Cursor::new(stored.get(4..)?);
    while cursor.remaining() > 0 {
        let tag: [u8; 2] = cursor.take_array()?;
        let permissions: [u8; 2] = cursor.take_array()?;
        let id = match u16::from_le_bytes(tag) {
            USER | GROUP => cursor.take_array()?,
            tag if WITHOUT_ID.contains(&tag) => [0xFF; 4],
            _ => return None,
        };
        out.extend_from_slice(&tag);
        out.extend_from_slice(&permissions);
        out.extend_from_slice(&id);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_entries_grow() {
        let stored = [
            1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xE8, 3, 0, 0, 4, 0, 4, 0,
        ];
        let shown = to_xattr(&stored).unwrap();
        assert_eq!(shown[..4], [2, 0, 0, 0]);
        assert_eq!(shown[4..12], [1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(shown[12..20], [2, 0, 4, 0, 0xE8, 3, 0, 0]);
        assert_eq!(shown.len(), 28);
        assert_eq!(to_xattr(&stored[..13]), None);
        assert_eq!(to_xattr(&[2, 0, 0, 0]), None);
    }
}
