//! VMware VMDK images.

use std::sync::Arc;

use super::api::{Context, Image, ImageInfo};
use super::error::{FormatError, FormatErrorKind, Result};
use crate::block::BlockDevice;

/// Opens an image; of `info` the format's own fields are filled in.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let _ = (file, info, context);
    Err(FormatError::new(
        FormatErrorKind::Unsupported,
        "the format vmdk is not supported",
    ))
}
