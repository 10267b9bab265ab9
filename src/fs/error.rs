//! The error of the filesystem layer.

use std::error::Error;
use std::fmt;

use crate::block::{BlockError, BlockErrorKind};

/// Result of the filesystem layer.
pub type Result<T, E = FsError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it. `fuse/errno.rs` turns it into an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsErrorKind {
    /// There is no such name, inode or attribute.
    NotFound,
    /// There is no such extended attribute.
    NoAttribute,
    /// A directory was needed.
    NotDirectory,
    /// Something other than a directory was needed.
    IsDirectory,
    /// The operation does not fit the file's type, or an argument is out of range.
    Invalid,
    /// Too many symbolic links in a path.
    Loop,
    /// A name or path is too long.
    NameTooLong,
    /// The filesystem contradicts itself, or a checksum is wrong.
    Damaged,
    /// The filesystem uses something this program does not implement.
    Unsupported,
    /// A key is needed to read this.
    NoKey,
    /// Nothing may be written here.
    ReadOnly,
    /// Policy does not allow it.
    NotAllowed,
    /// A result would be larger than a bound of this program.
    TooLarge,
    /// The device below could not be read.
    Io,
}

/// An error with its context: which structure, which inode.
#[derive(Debug)]
pub struct FsError {
    kind: FsErrorKind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl FsError {
    /// An error that starts here.
    pub fn new(kind: FsErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// A contradiction inside the filesystem.
    pub fn damaged(context: impl Into<String>) -> Self {
        Self::new(FsErrorKind::Damaged, context)
    }

    /// Something this program does not implement.
    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(FsErrorKind::Unsupported, context)
    }

    /// The same error seen from one level further up; the kind stays.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            context: context.into(),
            source: Some(Box::new(self)),
        }
    }

    /// The kind to match on.
    pub fn kind(&self) -> FsErrorKind {
        self.kind
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for FsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn Error + 'static))
    }
}

impl From<BlockError> for FsError {
    fn from(error: BlockError) -> Self {
        let kind = match error.kind() {
            BlockErrorKind::Io | BlockErrorKind::Failed => FsErrorKind::Io,
            // A filesystem that points past its device is damaged (or its device is cut short).
            BlockErrorKind::OutOfRange | BlockErrorKind::Damaged => FsErrorKind::Damaged,
            BlockErrorKind::ReadOnly => FsErrorKind::ReadOnly,
            BlockErrorKind::Unsupported => FsErrorKind::Unsupported,
            BlockErrorKind::NoKey => FsErrorKind::NoKey,
        };
        Self {
            kind,
            context: error.to_string(),
            source: error.into_source(),
        }
    }
}
