//! The footer, which every VHD ends with and all but fixed ones also begin with.
//!
//! Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer
//! Format". All numbers are big-endian.

use crate::formats::error::Result;
use crate::ondisk::bytes::{array, be16, be32, be64};
use crate::ondisk::uuid::Uuid;

use super::damaged;

/// Bytes of a footer; images made before Virtual PC 2004 lack the last one.
pub const FOOTER_BYTES: usize = 512;
/// What it begins with.
pub const COOKIE: &[u8] = b"conectix";

/// Largest disk, in sectors of 512 bytes (2040 GiB), as in QEMU.
const MAX_SECTORS: u64 = 0xff00_0000;
/// The largest geometry: larger disks are stored with this one.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;

/// Where the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file, without the footer, is the disk.
    Fixed,
    /// In blocks.
    Dynamic,
    /// In blocks, over a parent.
    Differencing,
}

/// A validated footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// What kind of image it is.
    pub kind: Kind,
    /// Host offset of the header of an image in blocks.
    pub header_offset: u64,
    /// Who made it, as four bytes of text.
    pub creator: [u8; 4],
    /// When, in seconds since 2000 UTC.
    pub timestamp: u32,
    /// Size of the virtual disk in bytes.
    pub size: u64,
    /// What a child names its parent by.
    pub id: Uuid,
    /// Whether a machine was suspended with this disk.
    pub saved_state: bool,
}

impl Footer {
    /// Parses a footer; `data` may lack its last byte.
    ///
    /// # Errors
    /// [`crate::formats::FormatErrorKind::Damaged`], also if there is none.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut bytes = [0; FOOTER_BYTES];
        let len = data.len().min(FOOTER_BYTES);
        if len < FOOTER_BYTES.saturating_sub(1) || !data.starts_with(COOKIE) {
            return Err(damaged("there is no footer"));
        }
        if let (Some(to), Some(from)) = (bytes.get_mut(..len), data.get(..len)) {
            to.copy_from_slice(from);
        }
        let short = || damaged("the footer is cut short");
        let u32_at = |at| be32(&bytes, at).ok_or_else(short);
        let u64_at = |at| be64(&bytes, at).ok_or_else(short);
        if u32_at(64)? != checksum(&bytes, 64) {
            return Err(damaged("the footer's checksum is wrong"));
        }
        let kind = match u32_at(60)? {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(damaged(format!("unknown disk type {other}"))),
        };
        let creator: [u8; 4] = array(&bytes, 28).ok_or_else(short)?;
        let cylinders = be16(&bytes, 56).ok_or_else(short)?;
        let [heads, sectors] = array(&bytes, 58).ok_or_else(short)?;
        let geometry = u64::from(cylinders)
            .saturating_mul(heads.into())
            .saturating_mul(sectors.into());
        // Virtual PC, and QEMU imitating it, show a disk of the size its geometry gives; everybody
        // else the size that is stored.
        let by_geometry = matches!(&creator, b"vpc " | b"qemu") && geometry != MAX_GEOMETRY;
        let sectors = if by_geometry {
            geometry
        } else {
            u64_at(48)?.div_euclid(512)
        };
        if sectors > MAX_SECTORS {
            return Err(damaged(format!("a disk of {sectors} sectors")));
        }
        Ok(Self {
            kind,
            header_offset: u64_at(16)?,
            creator,
            timestamp: u32_at(24)?,
            size: sectors.saturating_mul(512),
            id: Uuid::from_bytes(array(&bytes, 68).ok_or_else(short)?),
            saved_state: bytes.get(84).is_some_and(|&b| b != 0),
        })
    }
}

/// The complement of the sum of all bytes but those of the checksum, which is at `at`.
pub fn checksum(data: &[u8], at: usize) -> u32 {
    let end = at.saturating_add(4);
    let sum = data
        .iter()
        .enumerate()
        .filter(|(n, _)| !(at..end).contains(n))
        .fold(0_u32, |sum, (_, &byte)| sum.wrapping_add(byte.into()));
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(creator: &[u8; 4], geometry: [u8; 4], size: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        data[..8].copy_from_slice(COOKIE);
        data[28..32].copy_from_slice(creator);
        data[48..56].copy_from_slice(&size.to_be_bytes());
        data[56..60].copy_from_slice(&geometry);
        data[63] = 2;
        let sum = checksum(&data, 64);
        data[64..68].copy_from_slice(&sum.to_be_bytes());
        data
    }

    #[test]
    fn the_creator_decides_which_size_counts() {
        let size = |creator, geometry| {
            Footer::parse(&footer(creator, geometry, 5120))
                .unwrap()
                .size
        };
        for creator in [b"vpc ", b"qemu"] {
            assert_eq!(size(creator, [0, 2, 3, 4]), 2 * 3 * 4 * 512);
            assert_eq!(size(creator, [255, 255, 16, 255]), 5120);
        }
        for creator in [
            b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"vs  ", b"vbox",
        ] {
            assert_eq!(size(creator, [0, 2, 3, 4]), 5120);
        }
    }

    #[test]
    fn damage() {
        let good = footer(b"win ", [0; 4], 5120);
        assert!(Footer::parse(&good).is_ok());
        assert!(Footer::parse(&good[..511]).is_ok());
        assert!(Footer::parse(&good[..510]).is_err());
        for at in 0..511 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Footer::parse(&bad).is_err(), "{at}");
        }
        assert!(Footer::parse(&footer(b"win ", [0; 4], u64::MAX)).is_err());
        assert!(Footer::parse(&[]).is_err());
    }
}
