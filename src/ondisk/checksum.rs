//! The CRCs of disk formats, in the conventions those formats use.

/// CRC-32C continued from `initial`, with **no** inversion before or after: the form ext4 and jbd2
/// store. Start with `!0` for a fresh checksum (linux `lib/crc32`, `crc32c_le`).
pub fn crc32c_raw(initial: u32, data: &[u8]) -> u32 {
    // The crate inverts its running value on both ends; undo both.
    !crc32c::crc32c_append(!initial, data)
}

/// CRC-32 (IEEE 802.3, as in GPT headers and zlib), inverted at both ends.
pub fn crc32(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

/// CRC-32 in the big-endian bit order of jbd2's checksum v1 (linux `crc32_be`), continued from
/// `initial`, not inverted.
pub fn crc32_be(initial: u32, data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0u32;
        while i < 256 {
            let mut crc = i << 24;
            let mut bit = 0u32;
            while bit < 8 {
                crc = if crc & 0x8000_0000 != 0 {
                    (crc << 1) ^ 0x04C1_1DB7
                } else {
                    crc << 1
                };
                bit = bit.wrapping_add(1);
            }
            #[allow(clippy::indexing_slicing, reason = "constant evaluation; i < 256")]
            {
                table[i as usize] = crc;
            }
            i = i.wrapping_add(1);
        }
        table
    };
    data.iter().fold(initial, |crc, &byte| {
        let [top, ..] = crc.to_be_bytes();
        (crc << 8) ^ TABLE.get(usize::from(top ^ byte)).copied().unwrap_or(0)
    })
}

/// CRC-16 (polynomial 0xA001, reflected) continued from `initial`: ext4's `uninit_bg` group
/// descriptor checksum.
pub fn crc16(initial: u16, data: &[u8]) -> u16 {
    data.iter().fold(initial, |mut crc, &byte| {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 {
                (crc >> 1) ^ 0xA001
            } else {
                crc >> 1
            };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Check values of the catalogue of parametrised CRC algorithms for "123456789".
    #[test]
    fn check_values() {
        let data = b"123456789";
        assert_eq!(!crc32c_raw(!0, data), 0xE306_9283);
        assert_eq!(crc32(data), 0xCBF4_3926);
        assert_eq!(!crc32_be(!0, data), 0xFC89_1918); // CRC-32/BZIP2
        assert_eq!(crc16(0, data), 0xBB3D); // CRC-16/ARC
        assert_eq!(crc16(0xFFFF, data), 0x4B37); // CRC-16/MODBUS
    }

    #[test]
    fn raw_crc32c_continues() {
        let whole = crc32c_raw(!0, b"123456789");
        assert_eq!(crc32c_raw(crc32c_raw(!0, b"1234"), b"56789"), whole);
    }
}
