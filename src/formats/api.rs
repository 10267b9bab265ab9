//! What an image format implements, and opening an image by path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::error::{FormatError, FormatErrorKind, Result};
use super::reference::ReferencePolicy;
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;
use crate::limits;

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

/// Opens an image by its path on the host.
///
/// # Errors
/// See [`FormatErrorKind`].
pub fn open_path(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    super::raw::open(path, options)
}
