//! Raw disks inside gzip, xz and zstd streams.

use std::sync::Arc;

use super::api::{Context, Image, ImageInfo};
use super::error::{FormatError, FormatErrorKind, Result};
use crate::block::BlockDevice;

/// Opens a raw disk in gzip data.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open_gzip(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let _ = (file, info, context);
    Err(FormatError::new(
        FormatErrorKind::Unsupported,
        "gzip streams are not supported",
    ))
}

/// Opens a raw disk in xz data.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open_xz(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let _ = (file, info, context);
    Err(FormatError::new(
        FormatErrorKind::Unsupported,
        "xz streams are not supported",
    ))
}

/// Opens a raw disk in zstd data.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open_zstd(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let _ = (file, info, context);
    Err(FormatError::new(
        FormatErrorKind::Unsupported,
        "zstd streams are not supported",
    ))
}
