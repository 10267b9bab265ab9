//! The metadata region: sizes, and the parent's names.
//!
//! Specification: Microsoft, [MS-VHDX], 2.6 "Metadata Region". All numbers are little-endian.

use super::damaged;
use super::header::Region;
use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{array, le16, le32, le64, slice};
use crate::ondisk::text::utf16le;
use crate::ondisk::units::usize_from_u32;
use crate::ondisk::uuid::{Uuid, from_guid};

const TABLE_BYTES: u32 = 64 << 10;
/// Most items, as many as fit into the table.
const MAX_ITEMS: u16 = 2047;
/// Longest item, as the specification says.
const MAX_ITEM_BYTES: u32 = 1 << 20;
/// Most entries of a parent locator; five keys are defined.
const MAX_LOCATOR_ENTRIES: u16 = 64;
/// Longest path taken from a parent locator, in bytes.
const MAX_LOCATOR_VALUE: u16 = 8192;
/// Largest disk, as the specification says.
const MAX_DISK_BYTES: u64 = 64 << 40;

const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xCAA1_6737_FA36_4D43_B3B6_33F0_AA44_E76B);
const DISK_SIZE: Uuid = Uuid::from_u128(0x2FA5_4224_CD1B_4876_B211_5DBE_D83B_F4B8);
const DISK_ID: Uuid = Uuid::from_u128(0xBECA_12AB_B2E6_4523_93EF_C309_E000_C746);
const LOGICAL_SECTOR: Uuid = Uuid::from_u128(0x8141_BF1D_A96F_4709_BA47_F233_A8FA_AB5F);
const PHYSICAL_SECTOR: Uuid = Uuid::from_u128(0xCDA3_48C7_445D_4471_9CC9_E988_5251_C556);
const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xA8D3_5F2D_B30B_454D_ABF7_D3D8_4834_AB0C);
/// The one type of parent locator that is defined.
const LOCATOR_TYPE: Uuid = Uuid::from_u128(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);

/// What the metadata says.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Bytes of a block; a power of two, 1 to 256 MiB.
    pub block_size: u32,
    /// Whether all blocks are to stay allocated: a fixed image.
    pub fixed: bool,
    /// Size of the virtual disk in bytes.
    pub size: u64,
    /// Sector size of the virtual disk, 512 or 4096.
    pub logical_sector: u32,
    /// Sector size the disk reports as its physical one.
    pub physical_sector: u32,
    /// Identity of the virtual disk.
    pub disk_id: Uuid,
    /// The parent of a differencing image.
    pub parent: Option<Parent>,
}

/// A parent, as its child knows it.
#[derive(Clone, Debug, Default)]
pub struct Parent {
    /// The data write identities the parent may have.
    pub linkage: Vec<Uuid>,
    /// The paths it is named by, those first that say most.
    pub paths: Vec<String>,
}

#[derive(Clone, Copy)]
struct Item {
    id: Uuid,
    offset: u32,
    len: u32,
}

/// Reads and validates the metadata in `region`.
///
/// # Errors
/// [`FormatErrorKind::Damaged`], [`FormatErrorKind::Unsupported`] for an item that is required and
/// not known, or what reading reports.
pub fn read(file: &BlockDevice, region: Region) -> Result<Metadata> {
    if region.len < TABLE_BYTES.into() {
        return Err(damaged("the metadata region is too small"));
    }
    let table = file.read_vec(region.offset, usize_from_u32(TABLE_BYTES))?;
    let items = parse_table(&table, region)?;
    let find = |id: Uuid, name: &str| -> Result<Vec<u8>> {
        let item = items
            .iter()
            .find(|item| item.id == id)
            .ok_or_else(|| damaged(format!("the metadata lacks the {name}")))?;
        let at = region.offset.saturating_add(item.offset.into());
        Ok(file.read_vec(at, usize_from_u32(item.len))?)
    };
    let short = |name: &'static str| move || damaged(format!("the {name} is cut short"));

    let parameters = find(FILE_PARAMETERS, "file parameters")?;
    let block_size = le32(&parameters, 0).ok_or_else(short("file parameters"))?;
    let flags = le32(&parameters, 4).ok_or_else(short("file parameters"))?;
    if !block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_size) {
        return Err(damaged(format!("blocks of {block_size} bytes")));
    }
    let sector = |id, name| -> Result<u32> {
        match le32(&find(id, name)?, 0) {
            Some(size @ (512 | 4096)) => Ok(size),
            other => Err(damaged(format!("a {name} of {} bytes", other.unwrap_or(0)))),
        }
    };
    let logical_sector = sector(LOGICAL_SECTOR, "logical sector size")?;
    let physical_sector = sector(PHYSICAL_SECTOR, "physical sector size")?;
    let size =
        le64(&find(DISK_SIZE, "virtual disk size")?, 0).ok_or_else(short("virtual disk size"))?;
    if size > MAX_DISK_BYTES || !size.is_multiple_of(logical_sector.into()) {
        return Err(damaged(format!("a virtual disk of {size} bytes")));
    }
    let disk_id = array(&find(DISK_ID, "virtual disk id")?, 0)
        .map(from_guid)
        .ok_or_else(short("virtual disk id"))?;
    let parent = if flags & 2 != 0 {
        Some(parse_locator(&find(PARENT_LOCATOR, "parent locator")?)?)
    } else {
        None
    };
    Ok(Metadata {
        block_size,
        fixed: flags & 1 != 0,
        size,
        logical_sector,
        physical_sector,
        disk_id,
        parent,
    })
}

fn parse_table(table: &[u8], region: Region) -> Result<Vec<Item>> {
    if !table.starts_with(b"metadata") {
        return Err(damaged("the metadata region has no signature"));
    }
    let short = || damaged("the metadata table is cut short");
    let count = le16(table, 10).ok_or_else(short)?;
    if count > MAX_ITEMS {
        return Err(damaged(format!(
            "{count} metadata items, more than {MAX_ITEMS}"
        )));
    }
    let mut items: Vec<Item> = Vec::new();
    for number in 0..usize::from(count) {
        let at = number.saturating_mul(32).saturating_add(32);
        let u32_at = |off| le32(table, at.saturating_add(off)).ok_or_else(short);
        let id = array(table, at).map(from_guid).ok_or_else(short)?;
        let (offset, len, flags) = (u32_at(16)?, u32_at(20)?, u32_at(24)?);
        let (user, required) = (flags & 1 != 0, flags & 4 != 0);
        let known = !user
            && [
                FILE_PARAMETERS,
                DISK_SIZE,
                DISK_ID,
                LOGICAL_SECTOR,
                PHYSICAL_SECTOR,
                PARENT_LOCATOR,
            ]
            .contains(&id);
        if !known {
            if required {
                return Err(FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!("the image requires the unknown metadata item {id}"),
                ));
            }
            continue;
        }
        let end = u64::from(offset).saturating_add(len.into());
        if offset < TABLE_BYTES || len > MAX_ITEM_BYTES || end > region.len {
            return Err(damaged(format!(
                "the metadata item {id} of {len} bytes cannot be at {offset}"
            )));
        }
        if items.iter().any(|item| item.id == id) {
            return Err(damaged(format!("the metadata item {id} is there twice")));
        }
        items.push(Item { id, offset, len });
    }
    Ok(items)
}

fn parse_locator(data: &[u8]) -> Result<Parent> {
    let short = || damaged("the parent locator is cut short");
    let kind = array(data, 0).map(from_guid).ok_or_else(short)?;
    if kind != LOCATOR_TYPE {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("the parent is named in the unknown way {kind}"),
        ));
    }
    let count = le16(data, 18).ok_or_else(short)?;
    if count > MAX_LOCATOR_ENTRIES {
        return Err(damaged(format!("a parent locator with {count} entries")));
    }
    let mut entries = Vec::new();
    for number in 0..usize::from(count) {
        let at = number.saturating_mul(12).saturating_add(20);
        let text = |offset: usize, len: usize| -> Result<String> {
            let from = le32(data, at.saturating_add(offset)).ok_or_else(short)?;
            let len = le16(data, at.saturating_add(len)).ok_or_else(short)?;
            let bytes = slice(
                data,
                usize_from_u32(from),
                len.min(MAX_LOCATOR_VALUE).into(),
            );
            Ok(utf16le(bytes.ok_or_else(short)?))
        };
        entries.push((text(0, 8)?, text(4, 10)?));
    }
    let all = |key: &'static str| {
        entries
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value)
    };
    Ok(Parent {
        linkage: all("parent_linkage")
            .chain(all("parent_linkage2"))
            .filter_map(|id| Uuid::try_parse(id.trim()).ok())
            .collect(),
        paths: ["relative_path", "absolute_win32_path", "volume_path"]
            .into_iter()
            .flat_map(all)
            .filter(|path| !path.is_empty())
            .cloned()
            .collect(),
    })
}
