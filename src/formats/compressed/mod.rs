//! Raw disks inside gzip, xz and zstd data.
//!
//! | module | responsibility |
//! |---|---|
//! | [`units`] | the parts that can be decompressed by themselves |
//! | [`gzip`], [`xz`], [`zstd`] | finding these parts, decoding one |
//! | [`view`] | what comes out, as a device |
//!
//! Reading from the middle needs parts: BGZF or other gzip members, xz blocks, zstd frames. Data
//! that are one large part cannot be read that way and are refused, unless the reader says that
//! it goes from the beginning to the end
//! ([`sequential`](crate::formats::OpenOptions::sequential)). What comes out is a raw disk whatever
//! its bytes look like; no format is looked for inside.

pub mod gzip;
pub mod units;
pub mod view;
pub mod xz;
pub mod zstd;

use std::sync::Arc;

use serde_json::json;

use self::units::{MAX_UNIT, Units};
use self::view::View;
use super::api::{Context, Image, ImageInfo};
use super::error::{FormatError, FormatErrorKind, Result};
use super::raw;
use crate::block::BlockDevice;

/// What a user can do about data that cannot be read from the middle.
const HINT: &str = "unpack it first, convert it (guestlens convert reads it from the beginning to the end), or compress it in parts: bgzip, xz --block-size=16MiB, pzstd";

/// The kinds of compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// gzip, with or without BGZF's additions.
    Gzip,
    /// xz.
    Xz,
    /// zstd, with or without a seek table.
    Zstd,
}

struct CompressedImage {
    info: ImageInfo,
    device: BlockDevice,
}

impl Image for CompressedImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }
}

/// Opens a raw disk in gzip data.
///
/// # Errors
/// [`FormatErrorKind`].
pub fn open_gzip(
    file: BlockDevice,
    info: ImageInfo,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let units = gzip::find(&file, context.options().sequential)?;
    open(file, Kind::Gzip, units, info, context)
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
    let units = xz::find(&file)?;
    open(file, Kind::Xz, units, info, context)
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
    let units = zstd::find(&file, context.options().sequential)?;
    open(file, Kind::Zstd, units, info, context)
}

fn open(
    file: BlockDevice,
    kind: Kind,
    units: Units,
    mut info: ImageInfo,
    context: &Context<'_>,
) -> Result<Arc<dyn Image>> {
    if units.total_len() == 0 {
        return Err(FormatError::new(
            FormatErrorKind::Damaged,
            "nothing comes out of the compressed data",
        ));
    }
    let largest = units.largest();
    if largest > MAX_UNIT && !context.options().sequential {
        return Err(no_random_access(info.format, largest));
    }
    info.format_specific = json!({
        "parts": units.count(),
        "largest-part": largest,
    });
    let cache = Arc::clone(&context.options().cache);
    let view = View::new(file, kind, units, cache);
    let device = raw::padded(BlockDevice::new(Arc::new(view)));
    info.virtual_size = device.len();
    Ok(Arc::new(CompressedImage { info, device }))
}

/// Why data of one part of `len` bytes (or more) are refused.
fn no_random_access(kind: &str, len: u64) -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        format!(
            "the {kind} data cannot be read from the middle: a part of at least {len} bytes could only be unpacked as a whole, and {MAX_UNIT} is the most that is"
        ),
    )
    .with_hint(HINT)
}
