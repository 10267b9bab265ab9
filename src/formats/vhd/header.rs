//! The header of an image in blocks: where the block allocation table is, and who the parent is.
//!
//! Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0, "Dynamic Disk
//! Header Format". All numbers are big-endian.

use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::ondisk::bytes::{array, be32, be64, slice};
use crate::ondisk::text::until_nul;
use crate::ondisk::units::usize_from_u32;
use crate::ondisk::uuid::Uuid;

use super::damaged;
use super::footer::checksum;

const HEADER_BYTES: usize = 1024;
const LOCATORS: usize = 8;
/// Longest path read from a locator, in bytes.
const MAX_LOCATOR_BYTES: u32 = 4096;

/// A validated header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Host offset of the block allocation table.
    pub table_offset: u64,
    /// Entries of the table, one for each block.
    pub entries: u32,
    /// Bytes of a block, without the bitmap in front of it; a power of two, at least 512.
    pub block_size: u32,
    /// The parent's identity.
    pub parent_id: Uuid,
    /// When the parent was changed last, in seconds since 2000 UTC.
    pub parent_timestamp: u32,
    /// The parent's name.
    pub parent_name: String,
    locators: Vec<Locator>,
}

/// Where a further name of the parent is.
#[derive(Clone, Debug)]
struct Locator {
    platform: [u8; 4],
    len: u32,
    offset: u64,
}

impl Header {
    /// Reads and validates the header at `at`.
    ///
    /// # Errors
    /// [`crate::formats::FormatErrorKind::Damaged`], or what reading reports.
    pub fn read(file: &BlockDevice, at: u64) -> Result<Self> {
        Self::parse(&file.read_vec(at, HEADER_BYTES)?)
    }

    fn parse(data: &[u8]) -> Result<Self> {
        let short = || damaged("the dynamic disk header is cut short");
        let u32_at = |at| be32(data, at).ok_or_else(short);
        let u64_at = |at| be64(data, at).ok_or_else(short);
        if !data.starts_with(b"cxsparse") {
            return Err(damaged("there is no dynamic disk header"));
        }
        if u32_at(36)? != checksum(data, 36) {
            return Err(damaged("the dynamic disk header's checksum is wrong"));
        }
        let block_size = u32_at(32)?;
        if !block_size.is_power_of_two() || block_size < 512 {
            return Err(damaged(format!("blocks of {block_size} bytes")));
        }
        let name = slice(data, 64, 512).ok_or_else(short)?;
        let mut locators = Vec::new();
        for number in 0..LOCATORS {
            let at = number.saturating_mul(24).saturating_add(576);
            let platform: [u8; 4] = array(data, at).ok_or_else(short)?;
            let len = u32_at(at.saturating_add(8))?;
            if platform != [0; 4] && (1..=MAX_LOCATOR_BYTES).contains(&len) {
                locators.push(Locator {
                    platform,
                    len,
                    offset: u64_at(at.saturating_add(16))?,
                });
            }
        }
        Ok(Self {
            table_offset: u64_at(16)?,
            entries: u32_at(28)?,
            block_size,
            parent_id: Uuid::from_bytes(array(data, 40).ok_or_else(short)?),
            parent_timestamp: u32_at(56)?,
            parent_name: utf16(name, u16::from_be_bytes),
            locators,
        })
    }

    /// The paths the parent is named by, those first that say most.
    ///
    /// # Errors
    /// What reading reports; a locator that lies outside the file is left out.
    pub fn parent_paths(&self, file: &BlockDevice) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (rank, platform) in [b"W2ru", b"W2ku", b"Wi2r", b"Wi2k", b"MacX"]
            .into_iter()
            .enumerate()
        {
            for locator in self.locators.iter().filter(|l| &l.platform == platform) {
                let inside = locator
                    .offset
                    .checked_add(locator.len.into())
                    .is_some_and(|end| end <= file.len());
                if !inside {
                    continue;
                }
                let bytes = file.read_vec(locator.offset, usize_from_u32(locator.len))?;
                let path = match rank {
                    0 | 1 => utf16(&bytes, u16::from_le_bytes),
                    _ => String::from_utf8_lossy(until_nul(&bytes)).into_owned(),
                };
                found.push(path);
            }
        }
        found.push(self.parent_name.clone());
        found.retain(|path| !path.is_empty());
        Ok(found)
    }
}

/// UTF-16 up to the first NUL; unpaired surrogates become U+FFFD.
fn utf16(field: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = field
        .chunks_exact(2)
        .filter_map(|pair| Some(unit(pair.try_into().ok()?)))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
