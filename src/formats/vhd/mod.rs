//! VHD images (Connectix, Microsoft Virtual PC; QEMU calls them vpc).
//!
//! | module | responsibility |
//! |---|---|
//! | [`build`] | making dynamic and fixed images |
//! | [`footer`] | kind and size of the disk |
//! | [`header`] | block size, table, parent |
//! | [`view`] | the content of an image in blocks |
//!
//! Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0.
//!
//! The footer at the end counts. Its copy at the start of an image in blocks is used where the end
//! is damaged; in a fixed image the first sector belongs to the guest, so it never outweighs the
//! end.

pub mod build;
pub mod footer;
pub mod header;
pub mod view;

use std::sync::Arc;

use serde_json::json;

use self::footer::{COOKIE, FOOTER_BYTES, Footer, Kind};
use self::header::Header;
use self::view::{UNALLOCATED, View};
use super::api::{Context, Image, ImageInfo};
use super::detect::Format;
use super::error::{FormatError, FormatErrorKind, Result};
use super::mapped::Mapped;
use super::slices::Slices;
use super::windows_path;
use crate::block::cache::ClusterCache;
use crate::block::{BlockBackend, BlockDevice, Extent, Geometry, Result as BlockResult};
use crate::ondisk::bytes::be32;
use crate::ondisk::text::printable;
use crate::ondisk::units::to_usize;

/// Bytes of the table that are looked through at opening, to see whether the file is complete:
/// enough for 2 TiB in blocks of 2 MiB.
const SCANNED_BYTES: u64 = 4 << 20;

fn damaged(what: impl Into<String>) -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, format!("VHD: {}", what.into()))
        .with_hint("perhaps the file was not copied completely; if it is no VHD, say --format raw")
}

/// An image's validated structures.
pub struct Layout {
    /// The footer.
    pub footer: Footer,
    /// The header, of an image in blocks.
    pub header: Option<Header>,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// Reads and validates what describes an image.
///
/// # Errors
/// [`FormatErrorKind::NotThisFormat`], [`FormatErrorKind::Damaged`], or what reading reports.
pub fn read_layout(file: &BlockDevice) -> Result<Layout> {
    let mut warnings = Vec::new();
    let footer = read_footer(file, &mut warnings)?;
    if footer.kind == Kind::Fixed {
        let content = file.len().saturating_sub(511);
        if content < footer.size {
            warnings.push(cut_short(file, footer.size));
        }
        return Ok(Layout {
            footer,
            header: None,
            warnings,
        });
    }
    let header = Header::read(file, footer.header_offset)?;
    check_table(file, &footer, &header, &mut warnings)?;
    Ok(Layout {
        footer,
        header: Some(header),
        warnings,
    })
}

fn cut_short(file: &BlockDevice, end: u64) -> String {
    format!(
        "the file was cut short: it has {} bytes, but the image uses byte {} as well",
        file.len(),
        end.saturating_sub(1)
    )
}

/// The footer at the end, or the copy at the start.
fn read_footer(file: &BlockDevice, warnings: &mut Vec<String>) -> Result<Footer> {
    let mut head = [0; FOOTER_BYTES];
    let len = file.read_some_at(0, &mut head)?;
    let head = head.get(..len).unwrap_or_default();
    let mut tail = [0; FOOTER_BYTES];
    let mut tail_len = 0;
    if let Some(at) = footer_at_end(file.len()) {
        tail_len = file.read_some_at(at, &mut tail)?;
    }
    let tail = tail.get(..tail_len).unwrap_or_default();
    if !head.starts_with(COOKIE) && !tail.starts_with(COOKIE) {
        return Err(FormatError::new(
            FormatErrorKind::NotThisFormat,
            "the file has no VHD footer, neither at its end nor at its start",
        )
        .with_hint("give its format with --format"));
    }
    match (Footer::parse(tail), Footer::parse(head)) {
        (Ok(footer), Ok(copy)) if footer.kind != Kind::Fixed && footer != copy => {
            warnings.push("the footer and its copy at the start differ; the footer is used".into());
            Ok(footer)
        }
        (Ok(footer), Err(_)) if footer.kind != Kind::Fixed => {
            warnings.push("the copy of the footer at the start is damaged".into());
            Ok(footer)
        }
        (Ok(footer), _) => Ok(footer),
        (Err(e), Ok(copy)) if copy.kind != Kind::Fixed => {
            warnings.push(format!(
                "the footer at the end cannot be used ({e}); its copy at the start is"
            ));
            Ok(copy)
        }
        (Err(at_end), Ok(_)) => Err(at_end),
        (Err(at_end), Err(at_start)) => Err(if tail.starts_with(COOKIE) {
            at_end
        } else {
            at_start
        }),
    }
}

/// Where the footer of a file of `len` bytes begins. It fills the last sector, of which the last
/// byte may be missing.
pub fn footer_at_end(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(512)?.checked_sub(512)
}

/// Checks the block allocation table: large enough for the disk, inside the file. Blocks outside
/// the file only make a warning.
fn check_table(
    file: &BlockDevice,
    footer: &Footer,
    header: &Header,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let block_size = u64::from(header.block_size);
    let needed = footer.size.div_ceil(block_size);
    if needed > header.entries.into() {
        return Err(damaged(format!(
            "a table of {} blocks of {block_size} bytes is too small for a disk of {} bytes",
            header.entries, footer.size
        )));
    }
    let bytes = needed.saturating_mul(4);
    let inside = header
        .table_offset
        .checked_add(bytes)
        .is_some_and(|end| end <= file.len());
    if !inside {
        return Err(damaged(format!(
            "a block allocation table at {} of {bytes} bytes is outside the file",
            header.table_offset
        )));
    }
    let mut buf = vec![0; to_usize(bytes.min(SCANNED_BYTES)).unwrap_or(0)];
    file.read_exact_at(header.table_offset, &mut buf)?;
    let last = buf
        .chunks_exact(4)
        .filter_map(|entry| be32(entry, 0))
        .filter(|&sector| sector != UNALLOCATED)
        .max();
    if let Some(last) = last {
        let end = u64::from(last)
            .saturating_mul(512)
            .saturating_add(View::bitmap_size(block_size))
            .saturating_add(block_size);
        if end > file.len() {
            warnings.push(cut_short(file, end));
        }
    }
    Ok(())
}

/// Opens an image; of `info` the format's own fields are filled in.
///
/// # Errors
/// [`FormatErrorKind::NotThisFormat`], [`FormatErrorKind::Damaged`], as
/// [`Context::open_backing`], or what reading reports.
pub fn open(
    file: BlockDevice,
    mut info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let layout = read_layout(&file)?;
    let mut parent = None;
    if let (Kind::Differencing, Some(header)) = (layout.footer.kind, &layout.header) {
        let paths = header.parent_paths(&file)?;
        info.backing_filename = paths.first().map(|p| printable(p.as_bytes()));
        info.backing_filename_format = Some(Format::Vhd.name().into());
        let path = info.filename.clone();
        let name = paths.first().map(String::as_bytes).unwrap_or_default();
        let image = context.below(name, &mut info, |context, info| {
            let image = windows_path::open_parent(&paths, Format::Vhd, &path, context)?;
            check_parent(header, image.info())?;
            info.full_backing_filename = Some(image.info().filename.clone());
            info.warnings.extend(image.info().warnings.iter().cloned());
            Ok(image)
        })?;
        parent = Some(image);
    }
    let cache = Arc::clone(&context.options().cache);
    Ok(open_device(file, layout, parent, cache, info))
}

/// The parent must be the one the image was made over, by its identity.
fn check_parent(header: &Header, parent: &ImageInfo) -> Result<()> {
    let found = parent.format_specific.get("unique-id");
    let wanted = header.parent_id.to_string();
    if found.and_then(|id| id.as_str()) == Some(wanted.as_str()) {
        return Ok(());
    }
    Err(damaged(format!(
        "{} is not the parent this image was made over: it is not the disk {wanted}",
        super::host_file::shown(&parent.filename)
    ))
    .with_hint("put the parent the image was made over beside it"))
}

/// Opens an image in `file` whose parent, if it has one, is open.
pub fn open_device(
    file: BlockDevice,
    layout: Layout,
    parent: Option<Arc<dyn Image>>,
    cache: Arc<ClusterCache>,
    mut info: ImageInfo,
) -> Arc<dyn Image> {
    let Layout {
        footer,
        header,
        warnings,
    } = layout;
    info.warnings.extend(warnings);
    fill_info(&mut info, &footer, header.as_ref());
    let backend: Arc<dyn BlockBackend> = match header {
        None => Arc::new(Fixed {
            file,
            len: footer.size,
        }),
        Some(header) => {
            let block_size = header.block_size.into();
            Arc::new(Mapped(View {
                slices: Slices::new(file, cache, info.live),
                table_offset: header.table_offset,
                block_size,
                bitmap_size: View::bitmap_size(block_size),
                len: footer.size,
                parent: parent.as_ref().map(|p| p.device()),
            }))
        }
    };
    Arc::new(VhdImage {
        info,
        device: BlockDevice::new(backend),
        parent,
    })
}

fn fill_info(info: &mut ImageInfo, footer: &Footer, header: Option<&Header>) {
    info.virtual_size = footer.size;
    info.cluster_size = header.map(|h| h.block_size.into());
    if footer.saved_state {
        info.warnings
            .push("a suspended machine was using the disk".into());
    }
    let subformat = match footer.kind {
        Kind::Fixed => "fixed",
        Kind::Dynamic => "dynamic",
        Kind::Differencing => "differencing",
    };
    let mut specific = json!({
        "subformat": subformat,
        "creator": printable(&footer.creator),
        "unique-id": footer.id.to_string(),
        "timestamp": footer.timestamp,
    });
    if let (Kind::Differencing, Some(header), Some(more)) =
        (footer.kind, header, specific.as_object_mut())
    {
        more.insert("parent-id".into(), header.parent_id.to_string().into());
        more.insert("parent-timestamp".into(), header.parent_timestamp.into());
    }
    info.format_specific = specific;
}

struct VhdImage {
    info: ImageInfo,
    device: BlockDevice,
    parent: Option<Arc<dyn Image>>,
}

impl Image for VhdImage {
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

/// The content of a fixed image: the file's own bytes, and zeroes where it is too short.
struct Fixed {
    file: BlockDevice,
    len: u64,
}

impl BlockBackend for Fixed {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> BlockResult<()> {
        let read = self.file.read_some_at(offset, buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> BlockResult<Extent> {
        match self.file.len().checked_sub(offset) {
            Some(inside @ 1..) => self.file.extent_at(offset, len.min(inside)),
            _ => Ok(Extent {
                host_offset: Some(offset),
                ..Extent::hole(len)
            }),
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.file.prefetch(offset, len);
    }
}
