//! VHDX images (Microsoft Hyper-V), reading.
//!
//! | module | responsibility |
//! |---|---|
//! | [`header`] | headers and region tables |
//! | [`log`] | replaying the log in memory |
//! | [`metadata`] | sizes and parent |
//! | [`view`] | the content |
//!
//! Specification: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format".

pub mod header;
pub mod log;
pub mod metadata;
pub mod view;

use std::sync::Arc;

use serde_json::json;

use self::header::{Header, Region};
use self::metadata::{Metadata, Parent};
use self::view::View;
use super::api::{Context, Image, ImageInfo};
use super::detect::Format;
use super::error::{FormatError, FormatErrorKind, Result};
use super::mapped::Mapped;
use super::slices::Slices;
use super::windows_path;
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;
use crate::ondisk::bytes::le64;
use crate::ondisk::text::printable;
use crate::ondisk::units::to_usize;
use crate::ondisk::uuid::Uuid;

/// Bytes of the block allocation table that are looked through at opening, to see whether the
/// file is complete.
const SCANNED_BYTES: u64 = 4 << 20;

fn damaged(what: impl Into<String>) -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, format!("VHDX: {}", what.into()))
        .with_hint("perhaps the file was not copied completely")
}

/// An image's validated structures.
pub struct Layout {
    /// The file, its log replayed.
    pub device: BlockDevice,
    /// The header.
    pub header: Header,
    /// The block allocation table.
    pub bat: Region,
    /// Sizes and parent.
    pub metadata: Metadata,
    /// Entries of the log that were replayed.
    pub replayed: usize,
    /// What a user should know.
    pub warnings: Vec<String>,
}

impl Layout {
    fn geometry(&self) -> view::Geometry {
        view::Geometry {
            block_size: self.metadata.block_size.into(),
            sector_size: self.metadata.logical_sector,
            size: self.metadata.size,
        }
    }
}

/// Reads and validates what describes an image, after its log was replayed in memory unless
/// somebody may be writing to it (`live`).
///
/// # Errors
/// [`FormatErrorKind`].
pub fn read_layout(file: &BlockDevice, live: bool) -> Result<Layout> {
    let mut warnings = Vec::new();
    let header = header::read(file, &mut warnings)?;
    let mut device = file.clone();
    let mut replayed = 0;
    if live {
        // Tables are written right after the log is; what was replayed now would soon be old.
    } else if let Some(log) = log::replay(file, &header)? {
        device = log.device;
        replayed = log.entries;
        warnings.push(format!(
            "the image was not closed properly: its log ({replayed} entries) was replayed in memory"
        ));
    }
    let regions = header::read_regions(&device, header.log, &mut warnings)?;
    let metadata = metadata::read(&device, regions.metadata)?;
    let mut layout = Layout {
        device,
        header,
        bat: regions.bat,
        metadata,
        replayed,
        warnings,
    };
    check_table(&mut layout)?;
    Ok(layout)
}

/// Checks the block allocation table: large enough for the disk. Blocks outside the file only make
/// a warning.
fn check_table(layout: &mut Layout) -> Result<()> {
    let geometry = layout.geometry();
    let needed = geometry.entries(layout.metadata.parent.is_some());
    let bytes = needed.saturating_mul(8);
    if bytes > layout.bat.len {
        return Err(damaged(format!(
            "a block allocation table of {} bytes is too small for a disk of {} bytes",
            layout.bat.len, geometry.size
        )));
    }
    let len = layout.device.len();
    let mut buf = vec![0; to_usize(bytes.min(SCANNED_BYTES)).unwrap_or(0)];
    layout.device.read_exact_at(layout.bat.offset, &mut buf)?;
    let last = buf
        .chunks_exact(8)
        .filter_map(|entry| le64(entry, 0))
        .filter(|entry| matches!(entry & 7, view::PRESENT | view::PARTIALLY_PRESENT))
        .map(|entry| entry & view::OFFSET_MASK)
        .max();
    if last.is_some_and(|last| last >= len) {
        layout.warnings.push(format!(
            "the file was cut short: it has {len} bytes, but the image uses byte {} as well",
            last.unwrap_or(0)
        ));
    }
    Ok(())
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
    let layout = read_layout(&file, info.live)?;
    let mut parent = None;
    if let Some(named) = &layout.metadata.parent {
        info.backing_filename = named.paths.first().map(|p| printable(p.as_bytes()));
        info.backing_filename_format = Some(Format::Vhdx.name().into());
        let path = info.filename.clone();
        let name = named.paths.first().map(String::as_bytes);
        let image = context.below(name.unwrap_or_default(), &mut info, |context, info| {
            let image = windows_path::open_parent(&named.paths, Format::Vhdx, &path, context)?;
            check_parent(named, image.info())?;
            info.full_backing_filename = Some(image.info().filename.clone());
            info.warnings.extend(image.info().warnings.iter().cloned());
            Ok(image)
        })?;
        parent = Some(image);
    }
    let cache = Arc::clone(&context.options().cache);
    Ok(open_device(layout, parent, cache, info))
}

/// The parent must hold what it held when the image was made over it.
fn check_parent(named: &Parent, parent: &ImageInfo) -> Result<()> {
    let found = parent
        .format_specific
        .get("data-write-id")
        .and_then(|id| Uuid::try_parse(id.as_str()?).ok());
    if found.is_some_and(|id| named.linkage.contains(&id)) {
        return Ok(());
    }
    Err(damaged(format!(
        "{} is not the parent this image was made over, or was changed since: its data write id is not among those the image knows",
        super::host_file::shown(&parent.filename)
    ))
    .with_hint("put the unchanged parent the image was made over beside it"))
}

/// Opens an image whose parent, if it has one, is open.
pub fn open_device(
    layout: Layout,
    parent: Option<Arc<dyn Image>>,
    cache: Arc<ClusterCache>,
    mut info: ImageInfo,
) -> Arc<dyn Image> {
    let geometry = layout.geometry();
    fill_info(&mut info, &layout);
    let view = View {
        slices: Slices::new(layout.device, cache, info.live),
        bat_offset: layout.bat.offset,
        geometry,
        verbatim: layout.replayed == 0,
        parent: parent.as_ref().map(|p| p.device()),
    };
    Arc::new(VhdxImage {
        info,
        device: BlockDevice::new(Arc::new(Mapped(view))),
        parent,
    })
}

fn fill_info(info: &mut ImageInfo, layout: &Layout) {
    let metadata = &layout.metadata;
    info.warnings.extend(layout.warnings.iter().cloned());
    info.virtual_size = metadata.size;
    info.cluster_size = Some(metadata.block_size.into());
    info.dirty_flag = layout.replayed > 0;
    let subformat = match (&metadata.parent, metadata.fixed) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    info.format_specific = json!({
        "subformat": subformat,
        "log-size": layout.header.log.len,
        "logical-sector-size": metadata.logical_sector,
        "physical-sector-size": metadata.physical_sector,
        "disk-id": metadata.disk_id.to_string(),
        "data-write-id": layout.header.data_write_id.to_string(),
    });
    if let (Some(parent), Some(more)) = (&metadata.parent, info.format_specific.as_object_mut()) {
        let ids: Vec<String> = parent.linkage.iter().map(Uuid::to_string).collect();
        more.insert("parent-linkage".into(), ids.into());
    }
}

struct VhdxImage {
    info: ImageInfo,
    device: BlockDevice,
    parent: Option<Arc<dyn Image>>,
}

impl Image for VhdxImage {
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
