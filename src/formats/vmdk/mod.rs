//! VMware VMDK images.
//!
//! | module | responsibility |
//! |---|---|
//! | [`build`] | making streamOptimized images |
//! | [`descriptor`] | the text part, understood as a whole or refused |
//! | [`layout`] | headers and table entries of sparse extents |
//! | [`sparse`] | reading a sparse extent |
//! | [`flat`] | extents whose sectors are stored as they are, or nowhere |
//!
//! An image is a descriptor and extents laid end to end. One hosted sparse file can hold both
//! (monolithicSparse, streamOptimized); otherwise the descriptor is a text file that names its
//! extents and, for a delta disk, its parent. What it names is opened as the reference policy
//! allows: plain files, named relative to the descriptor.
//!
//! Specification: VMware Virtual Disk Format 5.0.

pub mod build;
pub mod descriptor;
pub mod flat;
pub mod layout;
pub mod sparse;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use self::descriptor::{Descriptor, ExtentLine, ExtentType};
use self::flat::{FlatExtent, ZeroExtent};
use self::layout::{Layout, SECTOR, SparseHeader};
use self::sparse::SparseExtent;
use super::api::{Context, Image, ImageInfo};
use super::detect::Format;
use super::error::{FormatError, FormatErrorKind, Result};
use super::{follow, windows_path};
use crate::block::BlockDevice;
use crate::block::concat::ConcatBackend;
use crate::limits;
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize};

/// Room in front of the end of a streamed image for its footer: three sectors.
const FOOTER_BYTES: u64 = 3 * SECTOR;

struct VmdkImage {
    info: ImageInfo,
    device: BlockDevice,
    parent: Option<Arc<dyn Image>>,
}

impl Image for VmdkImage {
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

/// Opens an image in `file` and the files it refers to, as far as policy allows.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let sector = first_sector(&file)?;
    let mut opening = Opening {
        info,
        context,
        parent: None,
        extents: Vec::new(),
        listed: Vec::new(),
        grains: Vec::new(),
    };
    let (cid, parent_cid, create_type) = if sector.starts_with(&layout::SPARSE_MAGIC) {
        opening.monolithic(&file, &sector)?
    } else if sector.starts_with(&layout::COWD_MAGIC) {
        return Err(no_descriptor());
    } else {
        opening.described(&read_descriptor(&file, 0, file.len())?)?
    };
    opening.finish(cid, parent_cid, create_type)
}

/// Content id, that of the parent, kind.
type Identity = (u32, u32, &'static str);

/// An image whose parts are being put together.
struct Opening<'a, 'b> {
    info: ImageInfo,
    context: &'a mut Context<'b>,
    parent: Option<Arc<dyn Image>>,
    extents: Vec<BlockDevice>,
    /// What `info` says of each extent.
    listed: Vec<serde_json::Value>,
    /// Grain size of each sparse extent.
    grains: Vec<u64>,
}

impl Opening<'_, '_> {
    /// One hosted sparse file with its descriptor inside.
    fn monolithic(&mut self, file: &BlockDevice, sector: &[u8]) -> Result<Identity> {
        let first = SparseHeader::parse(sector)?;
        let descriptor = match first.descriptor {
            Some((at, len)) => Some(read_descriptor(file, at, len)?),
            None => None,
        };
        // The extents of a split disk reserve room for a descriptor and leave it empty.
        let text = descriptor.filter(|text| text.first().is_some_and(|&b| b != 0));
        let Some(text) = text else {
            return Err(no_descriptor());
        };
        if first.layout.is_none() && !first.at_end {
            // A descriptor in a sparse file's clothes.
            return self.described(&text);
        }
        let (layout, header) = read_hosted(file, first)?;
        let descriptor = Descriptor::parse(&text)?;
        if !matches!(
            descriptor.create_type,
            "monolithicSparse" | "streamOptimized"
        ) {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                format!(
                    "the image contradicts itself: it is a sparse file, but its createType is {}",
                    descriptor.create_type
                ),
            ));
        }
        let listed = descriptor
            .extents
            .iter()
            .try_fold(0_u64, |sum, e| sum.checked_add(e.sectors));
        if listed != Some(layout.capacity / SECTOR) {
            self.info.warnings.push(
                "header and descriptor of the image disagree on its size; the header counts".into(),
            );
        }
        self.note_header(&header);
        self.open_parent(&descriptor)?;
        let name = self.info.filename.to_string_lossy().into_owned();
        self.add_sparse(file.clone(), layout, &name, "")?;
        Ok((
            descriptor.cid,
            descriptor.parent_cid,
            descriptor.create_type,
        ))
    }

    /// A descriptor that names its extents.
    fn described(&mut self, text: &[u8]) -> Result<Identity> {
        let descriptor = Descriptor::parse(text)?;
        if descriptor.extents.is_empty() {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                "the descriptor lists no extents",
            ));
        }
        self.open_parent(&descriptor)?;
        let mut files = BTreeMap::new();
        for line in &descriptor.extents {
            let added = self.add_line(line, &mut files).map_err(|e| {
                if line.name.is_empty() {
                    return e;
                }
                e.within(format!("extent '{}'", printable(&line.name)))
            });
            if let Err(error) = added {
                let warnings = &mut self.info.warnings;
                self.context.go_on_without(error, warnings)?;
                let len = line.sectors.checked_mul(SECTOR).ok_or_else(too_large)?;
                let name = printable(&line.name);
                self.extents
                    .push(follow::absent_len(&format!("extent '{name}'"), len));
                self.list(len, &name, &line.type_name, None);
            }
        }
        Ok((
            descriptor.cid,
            descriptor.parent_cid,
            descriptor.create_type,
        ))
    }

    /// Opens the parent of a delta disk, and checks that it is still what it was.
    fn open_parent(&mut self, descriptor: &Descriptor) -> Result<()> {
        let Some(name) = &descriptor.parent_hint else {
            return Ok(());
        };
        self.info.backing_filename = Some(printable(name));
        self.info.backing_filename_format = Some("vmdk".into());
        let parent = self.context.below(name, &mut self.info, |context, info| {
            Self::parent(name, descriptor.parent_cid, context, info)
        })?;
        self.info.full_backing_filename = Some(parent.info().filename.clone());
        self.parent = Some(parent);
        Ok(())
    }

    fn parent(
        name: &[u8],
        parent_cid: u32,
        context: &mut Context<'_>,
        info: &mut ImageInfo,
    ) -> Result<Arc<dyn Image>> {
        let path = info.filename.clone();
        let parent = if name.contains(&b'\\') {
            let name = String::from_utf8_lossy(name).into_owned();
            windows_path::open_parent(&[name], Format::Vmdk, &path, context)?
        } else {
            context.open_backing(name, Format::Vmdk, &path)?
        };
        let cid = parent.info().format_specific.get("cid");
        if cid.and_then(serde_json::Value::as_u64) != Some(parent_cid.into()) {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                format!(
                    "the parent '{}' was changed since this image was made from it (content id is not {:08x})",
                    printable(name),
                    parent_cid
                ),
            ));
        }
        info.warnings.extend(parent.info().warnings.iter().cloned());
        Ok(parent)
    }

    /// Adds what one line of a descriptor stands for. `files` are those opened so far.
    fn add_line(
        &mut self,
        line: &ExtentLine,
        files: &mut BTreeMap<Vec<u8>, BlockDevice>,
    ) -> Result<()> {
        let len = line.sectors.checked_mul(SECTOR).ok_or_else(too_large)?;
        if line.kind == ExtentType::Zero {
            self.extents
                .push(BlockDevice::new(Arc::new(ZeroExtent { len })));
            self.list(len, "", "ZERO", None);
            return Ok(());
        }
        let file = match files.get(&line.name) {
            Some(file) => file.clone(),
            None => {
                let path = self.info.filename.clone();
                let file =
                    self.context
                        .open_part(&line.name, "extent", &path, &mut self.info.warnings)?;
                files.insert(line.name.clone(), file.clone());
                file
            }
        };
        let name = printable(&line.name);
        let layout = match line.kind {
            ExtentType::Flat | ExtentType::Zero => {
                let start = line
                    .start_sector
                    .checked_mul(SECTOR)
                    .ok_or_else(too_large)?;
                let end = start.checked_add(len).ok_or_else(too_large)?;
                if end > file.len() {
                    self.info.warnings.push(format!(
                        "extent '{name}' was cut short: it has {} bytes of {end}; what is missing reads as zeroes",
                        file.len()
                    ));
                }
                self.extents
                    .push(BlockDevice::new(Arc::new(FlatExtent { file, start, len })));
                self.list(len, &name, &line.type_name, None);
                return Ok(());
            }
            ExtentType::Sparse => {
                let header = SparseHeader::parse(&first_sector(&file)?)?;
                let (layout, header) = read_hosted(&file, header)?;
                self.note_header(&header);
                layout
            }
            ExtentType::VmfsSparse => layout::parse_cowd(&first_sector(&file)?)?,
            ExtentType::SeSparse => {
                let constant = first_sector(&file)?;
                let at = layout::se_sparse_volatile_at(&constant)?;
                let volatile = file.read_vec(at, to_usize(SECTOR).unwrap_or(0))?;
                layout::parse_se_sparse(&constant, &volatile)?
            }
        };
        // The extent's own size may be rounded up to a whole grain.
        let rounding = layout.capacity.checked_sub(len);
        if rounding.is_none_or(|more| more >= layout.grain) {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                format!(
                    "the descriptor says {len} bytes, the extent itself {}",
                    layout.capacity
                ),
            ));
        }
        let layout = Layout {
            capacity: len,
            ..layout
        };
        self.add_sparse(file, layout, &name, &line.type_name)
    }

    fn add_sparse(
        &mut self,
        file: BlockDevice,
        mut layout: Layout,
        name: &str,
        type_name: &str,
    ) -> Result<()> {
        let directory_len = layout.directory_len();
        let inside = |at: u64| {
            at.checked_add(directory_len)
                .is_some_and(|end| end <= file.len())
        };
        if !inside(layout.directory) {
            match layout.redundant.take() {
                Some(copy) if inside(copy) => {
                    self.info.warnings.push(
                        "the grain directory is outside the file; its redundant copy is used"
                            .into(),
                    );
                    layout.directory = copy;
                }
                _ => {
                    return Err(FormatError::new(
                        FormatErrorKind::Damaged,
                        "the grain directory is outside the file, which may have been cut short",
                    ));
                }
            }
        }
        if layout.redundant.is_some_and(|copy| !inside(copy)) {
            layout.redundant = None;
        }
        let start = self.len();
        let parent = self.parent.as_ref().map(|p| p.device());
        let parent = match parent {
            Some(parent) if start < parent.len() => Some(parent.slice(start..parent.len())?),
            _ => None,
        };
        self.list(layout.capacity, name, type_name, Some(&layout));
        let cache = Arc::clone(&self.context.options().cache);
        let extent = SparseExtent::new(file, layout, parent, cache, self.info.live);
        self.extents.push(BlockDevice::new(Arc::new(extent)));
        Ok(())
    }

    /// Where the next extent starts.
    fn len(&self) -> u64 {
        self.extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.len()))
    }

    fn list(&mut self, len: u64, name: &str, type_name: &str, sparse: Option<&Layout>) {
        let mut entry = json!({
            "virtual-size": len,
            "filename": name,
            "format": type_name,
        });
        if let (Some(layout), Some(entry)) = (sparse, entry.as_object_mut()) {
            entry.insert("cluster-size".into(), layout.grain.into());
            if layout.compressed.is_some() {
                entry.insert("compressed".into(), true.into());
            }
            self.grains.push(layout.grain);
        }
        self.listed.push(entry);
    }

    fn note_header(&mut self, header: &SparseHeader) {
        if header.unclean {
            self.info.dirty_flag = true;
            self.info
                .warnings
                .push("the image was not closed properly".into());
        }
        if header.mangled {
            self.info.warnings.push(
                "the image may have been damaged by a transfer that changes line ends".into(),
            );
        }
    }

    fn finish(
        mut self,
        cid: u32,
        parent_cid: u32,
        create_type: &'static str,
    ) -> Result<Arc<dyn Image>> {
        let device = ConcatBackend::new(self.extents)?.into_device();
        if device.len() > limits::MAX_DEVICE_BYTES {
            return Err(too_large());
        }
        self.info.virtual_size = device.len();
        self.info.cluster_size = match self.grains.split_first() {
            Some((first, rest)) if rest.iter().all(|grain| grain == first) => Some(*first),
            _ => None,
        };
        self.info.format_specific = json!({
            "cid": cid,
            "parent-cid": parent_cid,
            "create-type": create_type,
            "extents": self.listed,
        });
        Ok(Arc::new(VmdkImage {
            info: self.info,
            device,
            parent: self.parent,
        }))
    }
}

fn no_descriptor() -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        "the file has no descriptor: it is an extent of a disk that consists of several files",
    )
    .with_hint("open the text file that lists the extents")
}

fn too_large() -> FormatError {
    FormatError::new(FormatErrorKind::Damaged, "the disk would be too large")
}

/// The first sector of a file, filled up with zeroes.
fn first_sector(file: &BlockDevice) -> Result<[u8; 512]> {
    let mut sector = [0; 512];
    file.read_some_at(0, &mut sector)?;
    Ok(sector)
}

fn read_descriptor(file: &BlockDevice, at: u64, len: u64) -> Result<Vec<u8>> {
    // An embedded one may be given more room than it needs.
    let longest = descriptor::MAX_BYTES.saturating_add(1);
    let room = file.len().saturating_sub(at).min(len).min(longest);
    let mut text = file.read_vec(at, to_usize(room).unwrap_or(0))?;
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    text.truncate(end);
    if to_u64(text.len()) > descriptor::MAX_BYTES {
        return Err(FormatError::new(
            FormatErrorKind::Damaged,
            format!(
                "the descriptor is longer than {} bytes",
                descriptor::MAX_BYTES
            ),
        ));
    }
    Ok(text)
}

/// The layout of a hosted sparse extent: that of its header, or of the one at its end.
fn read_hosted(file: &BlockDevice, first: SparseHeader) -> Result<(Layout, SparseHeader)> {
    let header = if first.at_end {
        let at = file.len().saturating_sub(FOOTER_BYTES);
        let mut footer = [0; 1536];
        file.read_some_at(at, &mut footer)?;
        layout::parse_footer(&footer)?
    } else {
        first
    };
    let layout = header
        .layout
        .ok_or_else(|| FormatError::new(FormatErrorKind::Damaged, "the extent has no capacity"))?;
    if header.overhead > file.len() {
        return Err(FormatError::new(
            FormatErrorKind::Damaged,
            format!(
                "the file was cut short: its metadata alone has {} bytes",
                header.overhead
            ),
        ));
    }
    Ok((layout, header))
}
