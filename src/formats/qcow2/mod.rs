//! qcow2, versions 2 and 3.
//!
//! | module | responsibility |
//! |---|---|
//! | [`backing`] | recording another backing file |
//! | [`check`] | consistency check and repair |
//! | [`build`] | making new images |
//! | [`header`] | header and extensions, validated |
//! | [`header_fields`] | changing the header |
//! | [`layout`] | table geometry; what an L2 entry says |
//! | [`data`] | reading and writing the bytes of plain clusters |
//! | [`encryption`] | the cipher of an encrypted image |
//! | [`view`] | one readable content: lookup, reading, read-ahead |
//! | [`live`] | how long what was read of a running guest's tables counts |
//! | [`decompress`] | compressed clusters and the worker threads |
//! | [`snapshot`] | the snapshot table |
//! | [`refcount`] | whether the file was cut short |
//! | [`write`] | changing the image in place |
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`. Refcounts are not needed to read and only
//! tell where the image should end; when reading, bitmaps, VM state and unknown autoclear features
//! are ignored and nothing is sized by a number from the header.

pub mod backing;
pub mod build;
pub mod check;
pub mod data;
pub mod decompress;
pub mod encryption;
pub mod header;
pub mod header_fields;
pub mod layout;
pub mod live;
pub mod refcount;
pub mod snapshot;
pub mod view;
pub mod write;

use std::sync::Arc;

use serde_json::json;

use self::data::DataFile;
use self::encryption::Encryption;
use self::header::Header;
use self::layout::Compression;
use self::live::{CacheIds, LiveTables};
use self::snapshot::Snapshot;
use self::view::{Source, View};
use self::write::Writer;
use super::api::{Context, Image, ImageInfo, ImageWriter, OpenOptions, backing_format};
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::shown;
use super::raw;
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;
use crate::ondisk::text::printable;

/// What an image refers to, opened by the caller as policy allows.
#[derive(Default)]
pub struct References {
    /// The backing image.
    pub backing: Option<Arc<dyn Image>>,
    /// The external data file.
    pub data_file: Option<BlockDevice>,
    /// The cipher of an encrypted image.
    pub encryption: Option<Encryption>,
}

/// Reads and validates the header of an image.
///
/// # Errors
/// As [`Header::parse`], or what reading reports.
pub fn read_header(file: &BlockDevice) -> Result<Header> {
    let mut head = [0; 24];
    let len = file.read_some_at(0, &mut head)?;
    let mut first = vec![0; header::first_cluster_len(head.get(..len).unwrap_or_default())?];
    let len = file.read_some_at(0, &mut first)?;
    Header::parse(first.get(..len).unwrap_or_default(), file.len())
}

/// Opens an image in `file` and the files it refers to, as far as policy allows.
///
/// # Errors
/// See [`FormatErrorKind`].
pub fn open(
    file: BlockDevice,
    mut info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let header = read_header(&file)?;
    let path = info.filename.clone();
    let mut references = References::default();
    if let Some(name) = &header.data_file {
        let data = context.open_data_file(name, &mut info)?;
        // To be written it has to be able to grow; what it lacks reads as zeroes anyway.
        references.data_file = Some(if context.write() {
            data
        } else {
            raw::padded(data)
        });
    }
    let options = context.options();
    references.encryption = Encryption::open(&file, &header, &options.keys, &shown(&path))?;
    if let Some(name) = &header.backing_name {
        let backing = context.below(name, &mut info, |context, info| {
            let format = backing_format(name, header.backing_format.as_deref())?;
            let backing = context.open_backing(name, format, &path)?;
            info.warnings
                .extend(backing.info().warnings.iter().cloned());
            Ok(backing)
        })?;
        info.full_backing_filename = Some(backing.info().filename.clone());
        references.backing = Some(backing);
    }
    let cache = Arc::clone(&options.cache);
    Ok(Arc::new(assemble(
        file,
        &header,
        references,
        cache,
        info,
        context.write(),
    )?))
}

/// Opens an image in a device, with the files it refers to opened by the caller; for writing if
/// `options` say so, and then the devices must be [growable](BlockDevice::growable). Of `info` the
/// name, actual size and lock state are kept.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    file: BlockDevice,
    references: References,
    options: &OpenOptions,
    info: ImageInfo,
) -> Result<Qcow2Image> {
    let header = read_header(&file)?;
    let cache = Arc::clone(&options.cache);
    assemble(file, &header, references, cache, info, options.write)
}

/// As [`open_with`], over `references.backing`, or over nothing, whatever backing file the image
/// names.
///
/// # Errors
/// As [`open`].
pub fn open_over(
    file: BlockDevice,
    references: References,
    options: &OpenOptions,
    info: ImageInfo,
) -> Result<Qcow2Image> {
    let header = Header {
        backing_name: None,
        ..read_header(&file)?
    };
    let cache = Arc::clone(&options.cache);
    assemble(file, &header, references, cache, info, options.write)
}

/// Opens an image in `file` for reading. Of `info` the name, actual size and lock state are kept.
///
/// # Errors
/// [`FormatErrorKind::NotAllowed`] if the header names a file that `references` lacks, or what
/// reading the snapshot table reports.
pub fn open_device(
    file: BlockDevice,
    header: &Header,
    references: References,
    cache: Arc<ClusterCache>,
    info: ImageInfo,
) -> Result<Qcow2Image> {
    assemble(file, header, references, cache, info, false)
}

fn assemble(
    file: BlockDevice,
    header: &Header,
    references: References,
    cache: Arc<ClusterCache>,
    mut info: ImageInfo,
    write: bool,
) -> Result<Qcow2Image> {
    if write {
        write::prepare::check_writable(header)?;
        if let Some(encryption) = &references.encryption {
            encryption.check_writable()?;
        }
        info.warnings.extend(write::prepare::warnings(header));
    }
    let data = match (&header.data_file, references.data_file) {
        (None, _) => file.clone(),
        (Some(_), Some(data)) => data,
        (Some(_), None) => return Err(unopened("external data file")),
    };
    if header.backing_name.is_some() && references.backing.is_none() {
        return Err(unopened("backing file"));
    }
    if header.encryption.is_some() != references.encryption.is_some() {
        return Err(unopened("encryption"));
    }
    let snapshots = match snapshot::read_table(&file, header) {
        Ok(snapshots) => snapshots,
        // The active content does not depend on it.
        Err(e) if e.kind() == FormatErrorKind::Damaged => {
            info.warnings
                .push(format!("no snapshot can be opened: {e}"));
            Vec::new()
        }
        Err(e) => return Err(e),
    };
    if header.corrupt {
        info.warnings
            .push("the image is marked as corrupt: run guestlens check".into());
    }
    if header.dirty {
        info.warnings
            .push("the image was not closed properly (dirty refcounts)".into());
    }
    // Refcounts that may be wrong, or may have changed already, say nothing.
    if !(header.dirty || header.corrupt || info.live)
        && let Some(at) = refcount::missing_end(&file, header)?
    {
        info.warnings.push(format!(
            "the file was cut short: it has {} bytes, but the image uses byte {at} as well; \
             what is missing reads as zeroes or not at all",
            file.len()
        ));
    }
    fill_info(
        &mut info,
        header,
        &snapshots,
        references.encryption.as_ref(),
    );
    let source = Arc::new(Source {
        file,
        data: DataFile::new(data, references.encryption),
        layout: header.layout,
        backing: references.backing.as_ref().map(|b| b.device()),
        cache,
        ids: CacheIds::fresh(),
        live: info.live.then(|| LiveTables::new(header)),
    });
    let (device, writer) = if write {
        let writer = Arc::new(Writer::new(Arc::clone(&source), header.clone())?);
        (writer.device(), Some(writer))
    } else {
        let view = View::new(Arc::clone(&source), header.l1_offset, header.size);
        (BlockDevice::new(Arc::new(view)), None)
    };
    Ok(Qcow2Image {
        info,
        device,
        writer,
        source,
        backing: references.backing,
        snapshots,
    })
}

fn unopened(role: &str) -> FormatError {
    FormatError::new(
        FormatErrorKind::NotAllowed,
        format!("the image's {role} was not opened"),
    )
}

fn fill_info(
    info: &mut ImageInfo,
    header: &Header,
    snapshots: &[Snapshot],
    encryption: Option<&Encryption>,
) {
    info.encrypted = encryption.is_some();
    info.virtual_size = header.size;
    info.cluster_size = Some(header.layout.cluster_size());
    info.dirty_flag = header.dirty;
    info.backing_filename = header.backing_name.as_deref().map(printable);
    info.backing_filename_format = header.backing_format.as_deref().map(printable);
    info.snapshots = snapshots.iter().map(|s| s.info.clone()).collect();
    let compression = match header.layout.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    let refcount_bits = 1_u64.wrapping_shl(header.refcount_order);
    let mut specific = json!({
        "compat": if header.layout.version == 2 { "0.10" } else { "1.1" },
        "compression-type": compression,
        "refcount-bits": refcount_bits,
    });
    if let (Some(encryption), Some(more)) = (encryption, specific.as_object_mut()) {
        more.insert("encrypt".into(), encryption.specific().clone());
    }
    if let (3.., Some(more)) = (header.layout.version, specific.as_object_mut()) {
        more.insert("lazy-refcounts".into(), header.lazy_refcounts.into());
        more.insert("corrupt".into(), header.corrupt.into());
        more.insert("extended-l2".into(), header.layout.subclusters.into());
        if let Some(name) = &header.data_file {
            more.insert("data-file".into(), printable(name).into());
            more.insert("data-file-raw".into(), header.data_file_raw.into());
        }
    }
    info.format_specific = specific;
}

/// An opened image.
pub struct Qcow2Image {
    info: ImageInfo,
    device: BlockDevice,
    writer: Option<Arc<Writer>>,
    source: Arc<Source>,
    backing: Option<Arc<dyn Image>>,
    snapshots: Vec<Snapshot>,
}

impl Image for Qcow2Image {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }

    fn locked(&self) -> Option<FormatError> {
        let encryption = self.source.data.encryption()?;
        encryption
            .cipher()
            .is_none()
            .then(|| encryption::no_key(encryption.scheme()))
    }

    fn writer(&self) -> Option<&dyn ImageWriter> {
        self.writer.as_deref().map(|w| w as &dyn ImageWriter)
    }

    fn open_snapshot(&self, index: usize) -> Result<BlockDevice> {
        let snapshot = self.snapshots.get(index).ok_or_else(|| {
            FormatError::new(
                FormatErrorKind::NoSnapshot,
                format!("there is no snapshot {index}"),
            )
        })?;
        let size = snapshot.info.virtual_size;
        let (at, entries) = (snapshot.l1_offset, snapshot.l1_entries);
        header::check_l1(
            &self.source.layout,
            size,
            at,
            entries,
            self.source.file.len(),
        )
        .map_err(|e| e.within(format!("snapshot '{}' is damaged", snapshot.info.name)))?;
        let view = View::new(Arc::clone(&self.source), at, size);
        Ok(BlockDevice::new(Arc::new(view)))
    }
}
