//! How the three kinds of sparse extents are laid out: their headers, validated, and what the
//! entries of their tables say.
//!
//! All three have a grain directory that points to grain tables that point to grains.
//!
//! Specification: VMware Virtual Disk Format 5.0, "Hosted Sparse Extents", "ESX Server Sparse
//! Extents", "Stream-Optimized Compressed Sparse Extents"; for seSparse, which has none, what
//! QEMU reads (`block/vmdk.c`).

use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::limits;
use crate::ondisk::bytes::{array, is_zero, le16, le32, le64};

/// Unit of all offsets and lengths of the format, in bytes.
pub const SECTOR: u64 = 512;
/// Largest grain, in sectors; QEMU's bound.
const MAX_GRAIN_SECTORS: u64 = 0x20_0000;
/// Largest grain that is decompressed, in bytes. Written are 64 KiB.
const MAX_COMPRESSED_GRAIN: u64 = 16 << 20;
/// Most entries of a hosted grain table; QEMU's bound, and what everybody writes.
const MAX_GTES: u32 = 512;
/// Entries of an ESX grain table.
const COWD_GTES: u64 = 4096;
/// Grain directory offset of a streamed image, whose real header is at the end.
const GD_AT_END: u64 = u64::MAX;

const FLAG_NEWLINES: u32 = 1;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZERO_GRAIN: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

/// Magic number of hosted sparse extents.
pub const SPARSE_MAGIC: [u8; 4] = *b"KDMV";
/// Magic number of ESX copy-on-write disks.
pub const COWD_MAGIC: [u8; 4] = *b"COWD";
const SE_CONST_MAGIC: u64 = 0xcafe_babe;
const SE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const SE_VERSION: u64 = 0x2_0000_0001;

/// Where the grains of an extent are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the extent in bytes.
    pub capacity: u64,
    /// Size of a grain in bytes, a power of two.
    pub grain: u64,
    /// Entries of one grain table.
    pub gtes: u64,
    /// Byte offset of the grain directory.
    pub directory: u64,
    /// Byte offset of its copy, which points to copies of the grain tables.
    pub redundant: Option<u64>,
    /// What the entries are.
    pub entries: Entries,
    /// Whether grains are compressed, and if so, whether a marker precedes each.
    pub compressed: Option<bool>,
}

/// The kinds of table entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Sector numbers of 32 bits.
    Sectors {
        /// Whether 1 stands for a grain of zeroes.
        zeroed: bool,
    },
    /// 64 bits, counting tables and grains from these sectors.
    SeSparse {
        /// First grain table.
        tables: u64,
        /// First grain.
        grains: u64,
    },
}

/// Where a grain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// In the parent, if there is one.
    Absent,
    /// It reads as zeroes.
    Zero,
    /// Stored at this byte offset.
    At(u64),
}

impl Layout {
    /// Size of a table entry in bytes.
    pub fn entry_size(&self) -> u64 {
        match self.entries {
            Entries::Sectors { .. } => 4,
            Entries::SeSparse { .. } => 8,
        }
    }

    /// Bytes one grain table covers.
    pub fn table_reach(&self) -> u64 {
        self.grain.saturating_mul(self.gtes)
    }

    /// Size of the grain directory in bytes.
    pub fn directory_len(&self) -> u64 {
        let entries = self.capacity.div_ceil(self.table_reach().max(1));
        entries.saturating_mul(self.entry_size())
    }

    /// Byte offset of the grain table a directory entry points to; `None`: there is none.
    ///
    /// # Errors
    /// What is wrong with the entry.
    pub fn table_at(&self, entry: u64) -> Result<Option<u64>, &'static str> {
        if entry == 0 {
            return Ok(None);
        }
        let sector = match self.entries {
            Entries::Sectors { .. } => Some(entry),
            Entries::SeSparse { tables, .. } => {
                // The first nibble says that it is allocated; 32 bits suffice for 64 TiB.
                if entry >> 32 != 0x1000_0000 {
                    return Err("a grain directory entry is not valid");
                }
                let table_sectors = self.gtes.saturating_mul(8) / SECTOR;
                (entry & 0xffff_ffff)
                    .checked_mul(table_sectors)
                    .and_then(|at| at.checked_add(tables))
            }
        };
        sector
            .and_then(|sector| sector.checked_mul(SECTOR))
            .map(Some)
            .ok_or("a grain directory entry points too far")
    }

    /// Where the grain is that a grain table entry points to.
    ///
    /// # Errors
    /// What is wrong with the entry.
    pub fn grain_at(&self, entry: u64) -> Result<Grain, &'static str> {
        let sector = match self.entries {
            Entries::Sectors { zeroed } => match entry {
                0 => return Ok(Grain::Absent),
                1 if zeroed => return Ok(Grain::Zero),
                sector => Some(sector),
            },
            Entries::SeSparse { grains, .. } => match entry >> 60 {
                0 if entry == 0 => return Ok(Grain::Absent),
                // Unmapped by the guest, and zeroed.
                1 | 2 => return Ok(Grain::Zero),
                3 => {
                    let high = entry >> 48 & 0xfff;
                    let low = entry & 0xffff_ffff_ffff;
                    (low << 12 | high)
                        .checked_mul(self.grain / SECTOR)
                        .and_then(|at| at.checked_add(grains))
                }
                _ => return Err("a grain table entry is not valid"),
            },
        };
        sector
            .and_then(|sector| sector.checked_mul(SECTOR))
            .map(Grain::At)
            .ok_or("a grain table entry points too far")
    }

    /// Checks what would otherwise drive arithmetic or memory.
    fn checked(self) -> Result<Self> {
        let sectors = self.grain / SECTOR;
        if sectors == 0 || sectors > MAX_GRAIN_SECTORS || !sectors.is_power_of_two() {
            return Err(damaged(format!(
                "a grain of {} bytes is not valid",
                self.grain
            )));
        }
        if self.compressed.is_some() && self.grain > MAX_COMPRESSED_GRAIN {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "compressed grains of {} bytes are larger than the {MAX_COMPRESSED_GRAIN} that are supported",
                    self.grain
                ),
            ));
        }
        if self.capacity == 0 || self.capacity > limits::MAX_DEVICE_BYTES {
            return Err(damaged("the capacity is not valid"));
        }
        Ok(self)
    }
}

fn damaged(what: impl Into<String>) -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, what)
}

fn bytes_of(sectors: u64) -> Result<u64> {
    sectors
        .checked_mul(SECTOR)
        .ok_or_else(|| damaged("a header field points too far"))
}

/// Header of a hosted sparse extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseHeader {
    /// Layout, if the header does not refer to the one at the end of the file or to other files.
    pub layout: Option<Layout>,
    /// Whether the valid header is at the end of the file.
    pub at_end: bool,
    /// Byte offset and length of the embedded descriptor.
    pub descriptor: Option<(u64, u64)>,
    /// Bytes of metadata in front of the first grain.
    pub overhead: u64,
    /// Whether the image was not closed properly.
    pub unclean: bool,
    /// Whether the bytes that show damage by a transfer as text are wrong.
    pub mangled: bool,
}

impl SparseHeader {
    /// Validates the first sector of an extent (or the header in its footer).
    ///
    /// # Errors
    /// [`FormatErrorKind::NotThisFormat`], [`FormatErrorKind::Damaged`],
    /// [`FormatErrorKind::Unsupported`].
    pub fn parse(sector: &[u8]) -> Result<Self> {
        let short = || damaged("the header is cut short");
        if array(sector, 0) != Some(SPARSE_MAGIC) {
            return Err(FormatError::new(
                FormatErrorKind::NotThisFormat,
                "not a hosted sparse extent (no KDMV magic)",
            ));
        }
        let word = |at| le32(sector, at).ok_or_else(short);
        let long = |at| le64(sector, at).ok_or_else(short);
        let (version, flags) = (word(4)?, word(8)?);
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!(
                "VMDK version {version} is not supported"
            )));
        }
        let (capacity, grain) = (long(12)?, long(20)?);
        let (descriptor_at, descriptor_len) = (long(28)?, long(36)?);
        let gtes = word(44)?;
        let (redundant, directory) = (long(48)?, long(56)?);
        let unclean = sector.get(72).ok_or_else(short)? != &0;
        let newlines: [u8; 4] = array(sector, 73).ok_or_else(short)?;
        let algorithm = le16(sector, 77).ok_or_else(short)?;
        let compressed = match (algorithm, flags & FLAG_COMPRESSED) {
            (0, 0) => None,
            (1, _) => Some(flags & FLAG_MARKERS != 0),
            (0, _) => return Err(damaged("grains are compressed, but by no algorithm")),
            _ => {
                return Err(unsupported(format!(
                    "compression algorithm {algorithm} is not supported"
                )));
            }
        };
        let descriptor = match descriptor_at {
            0 => None,
            at => Some((bytes_of(at)?, bytes_of(descriptor_len)?)),
        };
        let at_end = directory == GD_AT_END;
        let layout = if at_end || capacity == 0 {
            None
        } else {
            if gtes == 0 || gtes > MAX_GTES {
                return Err(damaged(format!(
                    "grain tables of {gtes} entries are not valid"
                )));
            }
            let has_copy = flags & FLAG_REDUNDANT != 0 && redundant != 0;
            let layout = Layout {
                capacity: bytes_of(capacity)?,
                grain: bytes_of(grain)?,
                gtes: gtes.into(),
                directory: bytes_of(directory)?,
                redundant: has_copy.then(|| bytes_of(redundant)).transpose()?,
                entries: Entries::Sectors {
                    zeroed: flags & FLAG_ZERO_GRAIN != 0,
                },
                compressed,
            };
            Some(layout.checked()?)
        };
        Ok(Self {
            layout,
            at_end,
            descriptor,
            overhead: bytes_of(long(64)?)?,
            unclean,
            mangled: flags & FLAG_NEWLINES != 0 && newlines != *b"\n \r\n",
        })
    }
}

fn unsupported(what: String) -> FormatError {
    FormatError::new(FormatErrorKind::Unsupported, what)
}

/// The header in the last three sectors of a streamed image: footer marker, header, marker of the
/// end.
///
/// # Errors
/// As [`SparseHeader::parse`]; [`FormatErrorKind::Damaged`] if they are not these.
pub fn parse_footer(sectors: &[u8]) -> Result<SparseHeader> {
    const FOOTER: u32 = 3;
    let cut =
        || damaged("the footer at the end of the image is not valid: it was cut short or changed");
    let marker = |at: usize| -> Option<(u64, u32, u32)> {
        Some((
            le64(sectors, at)?,
            le32(sectors, at.checked_add(8)?)?,
            le32(sectors, at.checked_add(12)?)?,
        ))
    };
    let (_, size, kind) = marker(0).ok_or_else(cut)?;
    if (size, kind) != (0, FOOTER) || marker(1024) != Some((0, 0, 0)) {
        return Err(cut());
    }
    let header = SparseHeader::parse(sectors.get(512..1024).unwrap_or_default()).map_err(|e| {
        match e.kind() {
            FormatErrorKind::NotThisFormat => cut(),
            _ => e,
        }
    })?;
    if header.layout.is_none() {
        return Err(cut());
    }
    Ok(header)
}

/// Validates the header of an ESX copy-on-write disk.
///
/// # Errors
/// As [`SparseHeader::parse`].
pub fn parse_cowd(sector: &[u8]) -> Result<Layout> {
    if array(sector, 0) != Some(COWD_MAGIC) {
        return Err(FormatError::new(
            FormatErrorKind::NotThisFormat,
            "not an ESX sparse extent (no COWD magic)",
        ));
    }
    let word = |at| {
        le32(sector, at)
            .map(u64::from)
            .ok_or_else(|| damaged("the header is cut short"))
    };
    let version = word(4)?;
    if version != 1 {
        return Err(unsupported(format!(
            "COWD version {version} is not supported"
        )));
    }
    let layout = Layout {
        capacity: bytes_of(word(12)?)?,
        grain: bytes_of(word(16)?)?,
        gtes: COWD_GTES,
        directory: bytes_of(word(20)?)?,
        redundant: None,
        entries: Entries::Sectors { zeroed: false },
        compressed: None,
    }
    .checked()?;
    if word(24)?.saturating_mul(4) < layout.directory_len() {
        return Err(damaged("the grain directory is too small for the disk"));
    }
    Ok(layout)
}

/// Byte offset of the second header of a seSparse extent, given its first.
///
/// # Errors
/// As [`SparseHeader::parse`].
pub fn se_sparse_volatile_at(sector: &[u8]) -> Result<u64> {
    if le64(sector, 0) != Some(SE_CONST_MAGIC) {
        return Err(FormatError::new(
            FormatErrorKind::NotThisFormat,
            "not an seSparse extent",
        ));
    }
    bytes_of(le64(sector, 80).ok_or_else(|| damaged("the header is cut short"))?)
}

/// Validates the two headers of an seSparse extent.
///
/// # Errors
/// As [`SparseHeader::parse`].
pub fn parse_se_sparse(constant: &[u8], volatile: &[u8]) -> Result<Layout> {
    let long = |at| le64(constant, at).ok_or_else(|| damaged("the header is cut short"));
    let version = long(8)?;
    if version != SE_VERSION {
        return Err(unsupported(format!(
            "seSparse version {version:#x} is not supported"
        )));
    }
    if (long(24)?, long(32)?) != (8, 64) {
        return Err(unsupported(
            "only seSparse extents with grains of 4 KiB and tables of 32 KiB are supported".into(),
        ));
    }
    let flags = long(40)?;
    let rest = constant.get(48..80).unwrap_or_default();
    let padding = constant.get(208..512).unwrap_or_default();
    if flags != 0 || !is_zero(rest) || !is_zero(padding) {
        return Err(unsupported(format!(
            "seSparse extent with unknown features (flags {flags:#x})"
        )));
    }
    if le64(volatile, 0) != Some(SE_VOLATILE_MAGIC) {
        return Err(damaged("the second header is not valid"));
    }
    if le64(volatile, 24) != Some(0) {
        return Err(unsupported(
            "the seSparse extent was not closed properly: its journal would have to be replayed"
                .into(),
        ));
    }
    if !volatile.get(32..512).is_some_and(is_zero) {
        return Err(unsupported("seSparse extent with unknown state".into()));
    }
    let layout = Layout {
        capacity: bytes_of(long(16)?)?,
        grain: 4096,
        gtes: 4096,
        directory: bytes_of(long(128)?)?,
        redundant: None,
        entries: Entries::SeSparse {
            tables: long(144)?,
            grains: long(192)?,
        },
        compressed: None,
    }
    .checked()?;
    if bytes_of(long(136)?)? < layout.directory_len() {
        return Err(damaged("the grain directory is too small for the disk"));
    }
    Ok(layout)
}
