//! What an image format implements, and opening an image by path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::detect::{self, Format};
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::{HostFile, shown};
use super::reference::{Chain, ReferencePolicy};
use super::{qcow2, raw};
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;
use crate::limits;
use crate::ondisk::text::printable;

/// How an image is to be opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// The format as the user states it; `None` detects it, which is allowed for reading only and
    /// only if the detected format names no other files outside policy.
    pub format: Option<String>,
    /// Open also while a running guest writes to the image.
    pub live: bool,
    /// Which references may be followed.
    pub policy: ReferencePolicy,
    /// Decoded clusters, shared by all images of the process.
    pub cache: Arc<ClusterCache>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: None,
            live: false,
            policy: ReferencePolicy::default(),
            cache: Arc::new(ClusterCache::new(limits::CLUSTER_CACHE_BYTES)),
        }
    }
}

/// What is known about an opened image, in the field names of `qemu-img info --output=json`
/// where that has one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Path as it was opened.
    pub filename: PathBuf,
    /// Name of the format.
    pub format: &'static str,
    /// Whether the format was guessed from the content rather than stated.
    pub format_detected: bool,
    /// Size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// Bytes the host file occupies.
    pub actual_size: u64,
    /// Cluster size in bytes, for formats that have clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Whether the image was not closed properly.
    pub dirty_flag: bool,
    /// Whether a running guest may be writing to it.
    pub live: bool,
    /// The backing file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The backing file's format as the image states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// The backing file as it was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<PathBuf>,
    /// Whether the content is encrypted.
    pub encrypted: bool,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// What only this format has, as a JSON object (`format-specific`'s `data` of qemu-img).
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub format_specific: serde_json::Value,
    /// What a user should know about the state of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One internal snapshot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Unique id, as the image stores it (usually a number).
    pub id: String,
    /// Name given by the user; need not be unique.
    pub name: String,
    /// When it was taken, seconds since 1970 UTC.
    pub date_sec: u64,
    /// Nanoseconds of that.
    pub date_nsec: u32,
    /// Guest run time at that moment, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of saved VM state; 0 for a disk-only snapshot.
    pub vm_state_size: u64,
    /// Size of the virtual disk in that snapshot, in bytes.
    pub virtual_size: u64,
}

/// An opened image.
pub trait Image: Send + Sync {
    /// What is known about it.
    fn info(&self) -> &ImageInfo;

    /// Its present content.
    fn device(&self) -> BlockDevice;

    /// The backing image, if there is one.
    fn backing(&self) -> Option<&Arc<dyn Image>> {
        None
    }

    /// The content of an internal snapshot, by position in [`ImageInfo::snapshots`].
    ///
    /// # Errors
    /// [`FormatErrorKind::NoSnapshot`], or what reading its tables reports.
    fn open_snapshot(&self, index: usize) -> Result<BlockDevice> {
        Err(FormatError::new(
            FormatErrorKind::NoSnapshot,
            format!("there is no snapshot {index}"),
        ))
    }
}

/// Opens an image by its path on the host, with the files it refers to as far as policy allows.
///
/// # Errors
/// See [`FormatErrorKind`].
pub fn open_path(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    let stated = options.format.as_deref().map(Format::by_name).transpose()?;
    let file = HostFile::open(path)?;
    let mut chain = Chain::new(&options.policy, &file);
    open_file(file, stated, options, &mut chain)
        .map_err(|e| e.within(format!("cannot open {}", shown(path))))
}

/// Opens one file of a chain and what lies below it. The recursion ends with the chain, whose
/// length is bounded.
fn open_file(
    file: HostFile,
    stated: Option<Format>,
    options: &OpenOptions,
    chain: &mut Chain<'_>,
) -> Result<Arc<dyn Image>> {
    // Locked before the first byte is looked at.
    let warnings = file.lock(options.live)?;
    let mut info = ImageInfo {
        filename: file.path().to_owned(),
        format: Format::Raw.name(),
        format_detected: stated.is_none(),
        virtual_size: 0,
        actual_size: file.actual_size(),
        cluster_size: None,
        dirty_flag: false,
        live: options.live,
        backing_filename: None,
        backing_filename_format: None,
        full_backing_filename: None,
        encrypted: false,
        snapshots: Vec::new(),
        format_specific: serde_json::Value::Null,
        warnings,
    };
    let path = file.path().to_owned();
    let (format, file) = match stated {
        Some(Format::Raw) => return raw::open(file, info),
        Some(format) => (format, file.into_device()?),
        None => {
            // Raw disks get their sector padding, the others must not.
            let (file, probe) = file.duplicate()?;
            match detect::detect(&probe)? {
                Format::Raw => return raw::open(file, info),
                format => (format, file.into_device()?),
            }
        }
    };
    info.format = format.name();
    let header = qcow2::read_header(&file)?;
    let mut references = qcow2::References::default();
    if let Some(name) = &header.data_file {
        let data = chain.follow(name, "data file", &path)?;
        info.warnings.extend(data.lock(options.live)?);
        references.data_file = Some(raw::device(data)?);
    }
    if let Some(name) = &header.backing_name {
        let format = backing_format(name, header.backing_format.as_deref())?;
        let backing = chain.follow(name, "backing file", &path)?;
        info.full_backing_filename = Some(backing.path().to_owned());
        let place = shown(backing.path());
        let backing = open_file(backing, Some(format), options, chain)
            .map_err(|e| e.within(format!("backing file {place}")))?;
        info.warnings
            .extend(backing.info().warnings.iter().cloned());
        references.backing = Some(backing);
    }
    let cache = Arc::clone(&options.cache);
    Ok(Arc::new(qcow2::open_device(
        file, &header, references, cache, info,
    )?))
}

/// The format of a backing file, which only the image can state: guessing it would let a guest
/// that writes to a raw disk decide which files are opened next.
fn backing_format(name: &[u8], stated: Option<&[u8]>) -> Result<Format> {
    let name = printable(name);
    let Some(stated) = stated else {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            format!("the image does not state the format of its backing file '{name}'"),
        )
        .with_hint(format!(
            "state it in the image: qemu-img rebase -u -F raw|qcow2 -b '{name}' IMAGE (--allow-backing DIR does not replace this)"
        )));
    };
    Format::by_name(&String::from_utf8_lossy(stated))
        .map_err(|e| e.within(format!("backing file '{name}'")))
}
