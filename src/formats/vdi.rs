//! VDI images (VirtualBox): fixed, dynamic and differencing.
//!
//! A header, a map with one 32-bit entry per block, blocks. A differencing image names its parent
//! by identity only: the parent is looked for among the VDI files of the directories that
//! references may lead to.
//!
//! Specification: there is none; the header is that of VirtualBox 1.1 images as QEMU documents
//! and reads it (`block/vdi.c`), whose bounds are kept.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::api::{Context, Image, ImageInfo};
use super::detect::Format;
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::HostFile;
use super::slices::Slices;
use crate::block::{
    BlockBackend, BlockDevice, BlockError, Extent, ExtentKind, Geometry, Result as BlockResult,
};
use crate::ondisk::bytes::{array, le32, le64};
use crate::ondisk::units::{round_up, to_u64, to_usize};

/// Magic number at offset 0x40.
const SIGNATURE: u32 = 0xbeda_107f;
/// The version that is read: 1.1.
const VERSION: u32 = 0x0001_0001;
/// Bytes of the header that are looked at.
const HEADER_BYTES: usize = 512;
/// Most blocks of one image; QEMU's bound.
const MAX_BLOCKS: u32 = 0x1fff_ff80;
/// Block sizes that are read. Written is 1 MiB.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=64 << 20;
/// Block map entry: nothing is stored here.
const FREE: u32 = 0xffff_ffff;
/// Block map entry: it reads as zeroes.
const ZERO: u32 = 0xffff_fffe;
/// Pieces joined to one run at most; a bound on the work of one lookup.
const MAX_PIECES: usize = 4096;
/// Most files of a directory that are looked at for a parent.
const MAX_CANDIDATES: usize = 4096;

/// What a header says, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    /// Size of the disk in bytes.
    len: u64,
    kind: Kind,
    /// Block size in bytes, a power of two.
    block: u64,
    /// Byte offset of the block map.
    map: u64,
    /// Byte offset of the first block.
    data: u64,
    blocks: u32,
    /// Identity of the image.
    id: Uuid,
    /// Identity of its content, which changes with it.
    content: Uuid,
    /// Both of the parent's, if there is a parent.
    parent: Option<(Uuid, Uuid)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Differencing,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Differencing => "differencing",
        }
    }
}

impl Header {
    fn parse(bytes: &[u8], file_len: u64) -> Result<Self> {
        let short = || damaged("the header is cut short");
        let word = |at| le32(bytes, at).ok_or_else(short);
        let id = |at| array(bytes, at).map(Uuid::from_bytes_le).ok_or_else(short);
        if le32(bytes, 0x40) != Some(SIGNATURE) {
            return Err(FormatError::new(
                FormatErrorKind::NotThisFormat,
                "not a VDI image",
            ));
        }
        let version = word(0x44)?;
        if version != VERSION {
            return Err(unsupported(format!(
                "VDI version {}.{} is not supported",
                version >> 16,
                version & 0xffff
            )));
        }
        let kind = match word(0x4c)? {
            1 => Kind::Dynamic,
            2 => Kind::Fixed,
            4 => Kind::Differencing,
            other => {
                return Err(unsupported(format!(
                    "VDI images of type {other} are not supported"
                )));
            }
        };
        let (map, data) = (word(0x154)?, word(0x158)?);
        if !map.is_multiple_of(512) || !data.is_multiple_of(512) {
            return Err(damaged("block map or blocks do not start at a sector"));
        }
        let sector = word(0x168)?;
        if sector != 512 {
            return Err(unsupported(format!(
                "sectors of {sector} bytes are not supported"
            )));
        }
        let len = le64(bytes, 0x170)
            .and_then(|len| round_up(len, 512))
            .ok_or_else(|| damaged("the disk would be too large"))?;
        let (block, extra, blocks) = (word(0x178)?, word(0x17c)?, word(0x180)?);
        if !BLOCK_SIZES.contains(&block) || !block.is_power_of_two() {
            return Err(unsupported(format!(
                "blocks of {block} bytes are not supported"
            )));
        }
        if extra != 0 {
            return Err(unsupported(
                "blocks with additional data are not supported".into(),
            ));
        }
        if blocks > MAX_BLOCKS {
            return Err(unsupported(format!(
                "an image of {blocks} blocks is too large"
            )));
        }
        if len > u64::from(block).saturating_mul(blocks.into()) {
            return Err(damaged("the disk is larger than its blocks"));
        }
        if u64::from(map).saturating_add(u64::from(blocks).saturating_mul(4)) > file_len {
            return Err(damaged(
                "the block map is outside the file, which may have been cut short",
            ));
        }
        let (parent, parent_content) = (id(0x1a8)?, id(0x1b8)?);
        let has_parent = !parent.is_nil() || !parent_content.is_nil();
        if has_parent != (kind == Kind::Differencing) {
            return Err(damaged(
                "the header contradicts itself: differencing images have a parent, others have none",
            ));
        }
        Ok(Self {
            len,
            kind,
            block: block.into(),
            map: map.into(),
            data: data.into(),
            blocks,
            id: id(0x188)?,
            content: id(0x198)?,
            parent: has_parent.then_some((parent, parent_content)),
        })
    }
}

fn damaged(what: &str) -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, what)
}

fn unsupported(what: String) -> FormatError {
    FormatError::new(FormatErrorKind::Unsupported, what)
}

fn read_header(file: &BlockDevice) -> Result<Header> {
    let mut bytes = [0; HEADER_BYTES];
    let len = file.read_some_at(0, &mut bytes)?;
    Header::parse(bytes.get(..len).unwrap_or_default(), file.len())
}

struct VdiImage {
    info: ImageInfo,
    device: BlockDevice,
    parent: Option<Arc<dyn Image>>,
}

impl Image for VdiImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.parent.as_ref()
    }
}

/// Opens an image; of `info` the format's own fields are filled in.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open(
    file: BlockDevice,
    mut info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let header = read_header(&file)?;
    let parent = match header.parent {
        None => None,
        Some(wanted) => {
            let name = wanted.0.to_string();
            info.backing_filename = Some(name.clone());
            info.backing_filename_format = Some("vdi".into());
            let open = |context: &mut Context<'_>, info: &mut ImageInfo| {
                open_parent(wanted, info, context)
            };
            Some(context.below(name.as_bytes(), &mut info, open)?)
        }
    };
    info.virtual_size = header.len;
    info.cluster_size = Some(header.block);
    info.format_specific = json!({
        "image-type": header.kind.name(),
        "uuid": header.id.to_string(),
        "modification-uuid": header.content.to_string(),
    });
    let cache = Arc::clone(&context.options().cache);
    let view = View {
        map: Slices::new(file.clone(), cache, info.live),
        file,
        header,
        parent: parent.as_ref().map(|p| p.device()),
    };
    Ok(Arc::new(VdiImage {
        info,
        device: BlockDevice::new(Arc::new(view)),
        parent,
    }))
}

/// Opens the image of identity `wanted`, and checks that its content is what it was.
fn open_parent(
    wanted: (Uuid, Uuid),
    info: &mut ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let (id, content) = wanted;
    let path = info.filename.clone();
    let directories = context.directories(&path);
    let Some(place) = directories.iter().find_map(|d| find_image(d, id)) else {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            format!(
                "the image's parent {id} was not found: no VDI file of that identity lies where references may lead"
            ),
        )
        .with_hint(
            "put the parent into the image's directory, or name the parent's directory with --allow-backing DIR",
        ));
    };
    let parent = context.open_backing(place.as_os_str().as_bytes(), Format::Vdi, &path)?;
    let is = |name: &str| {
        parent
            .info()
            .format_specific
            .get(name)
            .and_then(|v| v.as_str()?.parse::<Uuid>().ok())
    };
    if is("uuid") != Some(id) || (!content.is_nil() && is("modification-uuid") != Some(content)) {
        return Err(damaged(
            "the parent was changed since the image was made from it",
        ));
    }
    info.full_backing_filename = Some(parent.info().filename.clone());
    info.warnings.extend(parent.info().warnings.iter().cloned());
    Ok(parent)
}

/// The VDI file of a directory that has this identity.
fn find_image(directory: &Path, id: Uuid) -> Option<PathBuf> {
    std::fs::read_dir(directory)
        .ok()?
        .take(MAX_CANDIDATES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e.eq_ignore_ascii_case("vdi"))
        })
        // Links are followed only once policy has looked at them.
        .filter(|path| std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file()))
        .find(|path| {
            HostFile::open(path, false)
                .and_then(|file| read_header(&file.into_device(false)?))
                .is_ok_and(|header| header.id == id)
        })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Stored at this offset of the file.
    Data(u64),
    Zero,
    Absent,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    len: u64,
    mapping: Mapping,
}

struct View {
    file: BlockDevice,
    map: Slices,
    header: Header,
    parent: Option<BlockDevice>,
}

impl View {
    /// The run that starts at `at`, at most `max` bytes long.
    fn run_at(&self, at: u64, max: u64) -> BlockResult<Run> {
        let mut run = self.piece_at(at)?;
        for _ in 0..MAX_PIECES {
            if run.len >= max {
                break;
            }
            // An error belongs to the read that starts there.
            let Ok(next) = self.piece_at(at.saturating_add(run.len)) else {
                break;
            };
            let joins = match (run.mapping, next.mapping) {
                (Mapping::Data(a), Mapping::Data(b)) => a.checked_add(run.len) == Some(b),
                (a, b) => a == b,
            };
            if !joins {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        run.len = run.len.min(max);
        Ok(run)
    }

    /// A run within one block.
    fn piece_at(&self, at: u64) -> BlockResult<Run> {
        let within = at & self.header.block.wrapping_sub(1);
        let number = at.checked_div(self.header.block).unwrap_or(u64::MAX);
        let outside = || BlockError::damaged(format!("there is no block {number}"));
        if number >= self.header.blocks.into() {
            return Err(outside());
        }
        let entry_at = self.header.map.saturating_add(number.saturating_mul(4));
        let (slice, entry) = self.map.at(entry_at)?;
        let mapping = match le32(&slice, entry).ok_or_else(outside)? {
            FREE => Mapping::Absent,
            ZERO => Mapping::Zero,
            stored => u64::from(stored)
                .checked_mul(self.header.block)
                .and_then(|at| at.checked_add(self.header.data)?.checked_add(within))
                .map(Mapping::Data)
                .ok_or_else(outside)?,
        };
        Ok(Run {
            len: self.header.block.saturating_sub(within),
            mapping,
        })
    }

    /// Reads what is stored at `host` and belongs at `at` of the disk.
    fn read_data(&self, at: u64, host: u64, buf: &mut [u8]) -> BlockResult<()> {
        if self.file.read_some_at(host, buf)? == buf.len() {
            return Ok(());
        }
        let file = self.map.file();
        let read = file.read_some_at(host, buf)?;
        // The last block of a file need not be there to its end, but its beginning must be.
        let last = to_u64(buf.len()).saturating_sub(1);
        let within = at.saturating_add(last) & self.header.block.wrapping_sub(1);
        let block = host.saturating_add(last).saturating_sub(within);
        if block >= file.len() {
            return Err(BlockError::damaged(format!(
                "a block at {block} is outside the file, which may have been cut short"
            )));
        }
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl BlockBackend for View {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.header.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> BlockResult<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let run = self.run_at(at, to_u64(rest.len()))?;
            let len = to_usize(run.len).unwrap_or(usize::MAX).min(rest.len());
            let (piece, tail) = rest
                .split_at_mut_checked(len)
                .ok_or_else(|| BlockError::damaged("a run is too long"))?;
            match run.mapping {
                Mapping::Data(host) => self.read_data(at, host, piece)?,
                Mapping::Zero => piece.fill(0),
                Mapping::Absent => {
                    let read = match &self.parent {
                        Some(parent) => parent.read_some_at(at, piece)?,
                        None => 0,
                    };
                    piece.get_mut(read..).unwrap_or_default().fill(0);
                }
            }
            at = at.saturating_add(run.len);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> BlockResult<Extent> {
        let run = self.run_at(offset, len)?;
        Ok(match run.mapping {
            // All blocks of a fixed disk are there; which of them hold anything, the file knows.
            Mapping::Data(host) if self.header.kind == Kind::Fixed && host < self.file.len() => {
                let inside = self.file.len().saturating_sub(host);
                self.file.extent_at(host, run.len.min(inside))?
            }
            Mapping::Data(host) => Extent {
                host_offset: Some(host),
                ..Extent::data(run.len)
            },
            Mapping::Zero => Extent {
                kind: ExtentKind::Zero,
                ..Extent::data(run.len)
            },
            Mapping::Absent => match &self.parent {
                Some(parent) if offset < parent.len() => {
                    let inside = parent.len().saturating_sub(offset);
                    let below = parent.extent_at(offset, run.len.min(inside))?;
                    Extent {
                        depth: below.depth.saturating_add(1),
                        ..below
                    }
                }
                _ => Extent::hole(run.len),
            },
        })
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let Ok(run) = self.run_at(offset, len) else {
            return;
        };
        match (run.mapping, &self.parent) {
            (Mapping::Data(host), _) => self.file.prefetch(host, run.len),
            (Mapping::Absent, Some(parent)) => parent.prefetch(offset, run.len),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 512];
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for (at, value) in [
            (0x40, SIGNATURE),
            (0x44, VERSION),
            (0x4c, 1),
            (0x154, 512),
            (0x158, 1024),
            (0x168, 512),
            (0x170, 3 << 20),
            (0x178, 1 << 20),
            (0x180, 3),
        ] {
            put(at, value);
        }
        bytes
    }

    #[test]
    fn headers_are_not_believed() {
        use FormatErrorKind::{Damaged, NotThisFormat, Unsupported};
        let good = Header::parse(&header(), 1 << 30).unwrap();
        assert_eq!(
            (good.len, good.block, good.parent),
            (3 << 20, 1 << 20, None)
        );
        for (at, value, kind) in [
            (0x40, 0, NotThisFormat),
            (0x44, 1, Unsupported),
            (0x4c, 3, Unsupported),
            (0x4c, 4, Damaged),
            (0x154, 1, Damaged),
            (0x154, 0xffff_fe00, Damaged),
            (0x158, 7, Damaged),
            (0x168, 4096, Unsupported),
            (0x170, u32::MAX, Damaged),
            (0x174, u32::MAX, Damaged),
            (0x178, 0, Unsupported),
            (0x178, 3 << 20, Unsupported),
            (0x178, 1 << 31, Unsupported),
            (0x17c, 1, Unsupported),
            (0x180, 2, Damaged),
            (0x180, u32::MAX, Unsupported),
            (0x180, MAX_BLOCKS, Damaged),
            (0x1a8, 1, Damaged),
            (0x1b8, 1, Damaged),
        ] {
            let mut bytes = header();
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            let error = Header::parse(&bytes, 1 << 30).unwrap_err();
            assert_eq!(error.kind(), kind, "{at:#x} {value}: {error}");
        }
        assert_eq!(
            Header::parse(&header()[..0x180], 1 << 30)
                .unwrap_err()
                .kind(),
            Damaged
        );
    }
}
