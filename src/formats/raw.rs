//! Raw images: the file's bytes are the disk's bytes.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::api::{Image, ImageInfo, OpenOptions};
use super::error::{FormatError, Result};
use crate::block::BlockDevice;
use crate::block::file::FileBackend;

struct RawImage {
    info: ImageInfo,
    device: BlockDevice,
}

impl Image for RawImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }
}

/// Opens a raw image.
///
/// # Errors
/// [`super::FormatErrorKind::Io`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    let file = File::open(path).map_err(|e| FormatError::io("cannot open the image", e))?;
    let actual_size = file
        .metadata()
        .map_err(|e| FormatError::io("cannot examine the image", e))?
        .blocks()
        .saturating_mul(512);
    let device = BlockDevice::new(Arc::new(FileBackend::new(file, true)?));
    let info = ImageInfo {
        filename: path.to_owned(),
        format: "raw",
        format_detected: options.format.is_none(),
        virtual_size: device.len(),
        actual_size,
        cluster_size: None,
        dirty_flag: false,
        live: false,
        backing_filename: None,
        backing_filename_format: None,
        full_backing_filename: None,
        encrypted: false,
        snapshots: Vec::new(),
        format_specific: serde_json::Value::Null,
        warnings: Vec::new(),
    };
    Ok(Arc::new(RawImage { info, device }))
}
