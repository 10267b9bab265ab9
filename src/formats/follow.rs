//! What becomes of an image when a file it refers to is not opened.
//!
//! Whoever reads content needs every file, and an image that lacks one is refused. Whoever only
//! asks about the image does not: it is opened with a stand-in for the file, each read of which
//! fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::api::{Image, ImageInfo};
use super::error::FormatError;
use crate::block::{
    BlockBackend, BlockDevice, BlockError, BlockErrorKind, Extent, Geometry, Result,
};
use crate::limits;
use crate::ondisk::text::printable;

/// Which files an image refers to must be there.
#[derive(Clone, Debug, Default)]
pub enum Follow {
    /// All: what policy refuses or is missing fails the open.
    #[default]
    All,
    /// Those that can be opened are; what cannot is a warning of the image, and noted.
    IfPossible(Arc<Incomplete>),
    /// As [`Follow::IfPossible`] for the files the disk is stored in (extents), but no backing and
    /// no data file is looked at.
    ImageOnly(Arc<Incomplete>),
}

/// Whether a file could not be opened.
#[derive(Debug, Default)]
pub struct Incomplete(AtomicBool);

impl Incomplete {
    /// Whether there was one.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the place of an open that failed: one line for the user.
    pub(super) fn note(&self, error: &FormatError) -> String {
        self.0.store(true, Ordering::Relaxed);
        let mut line = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        if let Some(hint) = error.hint() {
            line.push_str(" (");
            line.push_str(hint);
            line.push(')');
        }
        line
    }
}

/// The place a plain name leads to from `referrer`; a name with a protocol leads nowhere, and
/// stays as it is. Nothing is opened.
pub(super) fn full_name(name: &[u8], referrer: &Path) -> PathBuf {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let path = Path::new(OsStr::from_bytes(name));
    let first = name.iter().find(|b| matches!(b, b':' | b'/'));
    match referrer.parent() {
        Some(directory) if first != Some(&b':') => directory.join(path),
        _ => path.to_owned(),
    }
}

/// A device of which nothing can be read.
pub(super) fn absent_device(what: &str) -> BlockDevice {
    absent_len(what, limits::MAX_DEVICE_BYTES)
}

/// The same, of a length.
pub(super) fn absent_len(what: &str, len: u64) -> BlockDevice {
    BlockDevice::new(Arc::new(Absent {
        what: what.to_owned(),
        len,
    }))
}

/// A stand-in for a backing image that is not open.
pub(super) fn absent_image(like: &ImageInfo, name: &[u8]) -> Arc<dyn Image> {
    Arc::new(AbsentImage {
        info: ImageInfo {
            warnings: Vec::new(),
            filename: full_name(name, &like.filename),
            ..like.clone()
        },
        device: absent_device(&format!("backing file '{}'", printable(name))),
    })
}

struct AbsentImage {
    info: ImageInfo,
    device: BlockDevice,
}

impl Image for AbsentImage {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn device(&self) -> BlockDevice {
        self.device.clone()
    }

    fn is_absent(&self) -> bool {
        true
    }
}

struct Absent {
    what: String,
    len: u64,
}

impl Absent {
    fn error(&self) -> BlockError {
        BlockError::new(
            BlockErrorKind::Io,
            format!("the content is in the {}, which is not open", self.what),
        )
    }
}

impl BlockBackend for Absent {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(self.error())
    }

    fn extent_at(&self, _offset: u64, _len: u64) -> Result<Extent> {
        Err(self.error())
    }
}
