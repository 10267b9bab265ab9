//! The header section: file identifier, two headers, two region tables.
//!
//! Specification: Microsoft, [MS-VHDX], 2.2 "Header Section". All numbers are little-endian.

use super::damaged;
use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{array, le16, le32, le64};
use crate::ondisk::checksum::crc32c_raw;
use crate::ondisk::units::usize_from_u32;
use crate::ondisk::uuid::{Uuid, from_guid};

/// What a file begins with.
pub const SIGNATURE: &[u8] = b"vhdxfile";
/// Bytes of the header section, and the alignment of every region.
pub const MIB: u64 = 1 << 20;

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
/// Most entries of a region table, as many as fit.
const MAX_REGIONS: u32 = 2047;

const BAT: Uuid = Uuid::from_u128(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);
const METADATA: Uuid = Uuid::from_u128(0x8B7C_A206_4790_4B9A_B8FE_575F_050F_886E);

/// The current header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rises with every update.
    pub sequence: u64,
    /// Changes when the content does: what a child knows its parent by.
    pub data_write_id: Uuid,
    /// Identity of the log's entries; `None` if the log is empty.
    pub log_id: Option<Uuid>,
    /// Where the log is.
    pub log: Region,
}

/// A part of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Host offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Region {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Checks the identifier; reads the header that counts.
///
/// # Errors
/// [`FormatErrorKind::NotThisFormat`], [`FormatErrorKind::Damaged`],
/// [`FormatErrorKind::Unsupported`], or what reading reports.
pub fn read(file: &BlockDevice, warnings: &mut Vec<String>) -> Result<Header> {
    let mut signature = [0; 8];
    file.read_some_at(0, &mut signature)?;
    if signature != SIGNATURE {
        return Err(FormatError::new(
            FormatErrorKind::NotThisFormat,
            "the file does not begin with VHDX's signature",
        )
        .with_hint("give its format with --format"));
    }
    let mut found: Vec<Vec<u8>> = Vec::new();
    for at in HEADERS {
        let mut data = vec![0; HEADER_BYTES];
        if file.read_some_at(at, &mut data)? == HEADER_BYTES && sealed(&data, b"head") {
            found.push(data);
        }
    }
    let sequence = |data: &Vec<u8>| le64(data, 8).unwrap_or(0);
    let header = match found.as_slice() {
        [] => return Err(damaged("neither of the two headers is valid")),
        [one] => {
            warnings.push("one of the two headers is damaged; the other is used".into());
            one
        }
        [first, second, ..] if sequence(first) == sequence(second) => {
            // The same update written twice; anything else leaves open which one counts.
            if first != second {
                return Err(damaged("two different headers with the same number"));
            }
            first
        }
        [first, second, ..] if sequence(first) > sequence(second) => first,
        [_, second, ..] => second,
    };
    parse(header)
}

fn parse(data: &[u8]) -> Result<Header> {
    let short = || damaged("a header is cut short");
    let guid = |at| array(data, at).map(from_guid).ok_or_else(short);
    let log_id = guid(48)?;
    let log_version = le16(data, 64).ok_or_else(short)?;
    let version = le16(data, 66).ok_or_else(short)?;
    if version != 1 || (log_version != 0 && !log_id.is_nil()) {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!(
                "VHDX version {version} with log version {log_version} is not supported, only 1 with 0"
            ),
        ));
    }
    let log = Region {
        offset: le64(data, 72).ok_or_else(short)?,
        len: le32(data, 68).ok_or_else(short)?.into(),
    };
    if !log.offset.is_multiple_of(MIB) || !log.len.is_multiple_of(MIB) || log.offset < MIB {
        return Err(damaged(format!(
            "a log of {} bytes cannot be at {}",
            log.len, log.offset
        )));
    }
    Ok(Header {
        sequence: le64(data, 8).ok_or_else(short)?,
        data_write_id: guid(32)?,
        log_id: (!log_id.is_nil()).then_some(log_id),
        log,
    })
}

/// Whether a structure has its signature and a right CRC-32C, which follows the signature and was
/// computed as if it were zero.
pub fn sealed(data: &[u8], signature: &[u8; 4]) -> bool {
    let (Some(head), Some(rest)) = (data.get(..4), data.get(8..)) else {
        return false;
    };
    head == signature && le32(data, 4) == Some(crc32c(head, rest))
}

/// CRC-32C over `head`, four zero bytes, `rest`.
fn crc32c(head: &[u8], rest: &[u8]) -> u32 {
    !crc32c_raw(crc32c_raw(crc32c_raw(!0, head), &[0; 4]), rest)
}

/// The regions of a file that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The block allocation table.
    pub bat: Region,
    /// The metadata.
    pub metadata: Region,
}

/// Reads the region table, the second one if the first is damaged.
///
/// # Errors
/// [`FormatErrorKind::Damaged`], [`FormatErrorKind::Unsupported`] for a region that is required
/// and not known, or what reading reports.
pub fn read_regions(
    file: &BlockDevice,
    log: Region,
    warnings: &mut Vec<String>,
) -> Result<Regions> {
    for (number, at) in REGION_TABLES.into_iter().enumerate() {
        let mut data = vec![0; REGION_TABLE_BYTES];
        if file.read_some_at(at, &mut data)? == REGION_TABLE_BYTES && sealed(&data, b"regi") {
            if number > 0 {
                warnings.push("the first region table is damaged; the second is used".into());
            }
            return parse_regions(&data, log, file.len());
        }
    }
    Err(damaged("neither of the two region tables is valid"))
}

fn parse_regions(data: &[u8], log: Region, file_len: u64) -> Result<Regions> {
    let count = le32(data, 8).unwrap_or(0);
    if count > MAX_REGIONS {
        return Err(damaged(format!("{count} regions, more than {MAX_REGIONS}")));
    }
    let mut used = vec![
        Region {
            offset: 0,
            len: MIB,
        },
        log,
    ];
    let (mut bat, mut metadata) = (None, None);
    for number in 0..usize_from_u32(count) {
        let at = number.saturating_mul(32).saturating_add(16);
        let short = || damaged("the region table is cut short");
        let id = array(data, at).map(from_guid).ok_or_else(short)?;
        let field = at.saturating_add(16);
        let region = Region {
            offset: le64(data, field).ok_or_else(short)?,
            len: le32(data, field.saturating_add(8))
                .ok_or_else(short)?
                .into(),
        };
        let required = le32(data, field.saturating_add(12)).ok_or_else(short)? & 1 != 0;
        if region
            .offset
            .checked_add(region.len)
            .is_none_or(|end| end > file_len)
        {
            return Err(damaged(format!(
                "the region {id} of {} bytes at {} is outside the file",
                region.len, region.offset
            )));
        }
        used.push(region);
        let known = match id {
            BAT => &mut bat,
            METADATA => &mut metadata,
            _ if required => {
                return Err(FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!("the image requires the unknown region {id}"),
                ));
            }
            _ => continue,
        };
        if known.replace(region).is_some() {
            return Err(damaged(format!("the region {id} is there twice")));
        }
    }
    used.retain(|region| region.len > 0);
    used.sort_unstable_by_key(|region| region.offset);
    for pair in used.windows(2) {
        if let [a, b] = pair
            && a.end() > b.offset
        {
            return Err(damaged(format!(
                "the regions at {} and {} overlap",
                a.offset, b.offset
            )));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        (None, _) => Err(damaged("there is no block allocation table")),
        (_, None) => Err(damaged("there is no metadata region")),
    }
}
