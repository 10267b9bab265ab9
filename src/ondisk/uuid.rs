//! UUIDs as they are stored on disks and written by people.

pub use uuid::Uuid;

/// A GPT GUID: the first three fields are little-endian on disk (UEFI 2.10, appendix A).
pub fn from_guid(bytes: [u8; 16]) -> Uuid {
    Uuid::from_bytes_le(bytes)
}

/// A filesystem UUID: stored in the order it is written. All zeroes mean "none".
pub fn from_fs(bytes: [u8; 16]) -> Option<Uuid> {
    let uuid = Uuid::from_bytes(bytes);
    (!uuid.is_nil()).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn esp_type_guid() {
        let raw = [
            0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E,
            0xC9, 0x3B,
        ];
        assert_eq!(
            from_guid(raw).to_string(),
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
        );
        assert_eq!(from_fs([0; 16]), None);
    }
}
