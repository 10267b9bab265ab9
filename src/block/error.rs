//! The error of the block layer.
//!
//! [`BlockErrorKind`] is what a caller decides on; the context says which part of which image;
//! the source is what the layer below reported. Image formats report through this type as well
//! once an image is open, because a read of a guest sector can meet a damaged table.

use std::error::Error;
use std::fmt;

/// Result of the block layer.
pub type Result<T, E = BlockError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockErrorKind {
    /// The host reported an I/O error.
    Io,
    /// The request lies outside the device.
    OutOfRange,
    /// The device was opened read-only.
    ReadOnly,
    /// An earlier write or flush failed; the device refuses everything but reads until reopened.
    Failed,
    /// The image contradicts its own format.
    Damaged,
    /// The image uses something this program does not implement.
    Unsupported,
    /// A key is needed to read this.
    NoKey,
}

/// An error with its context; see the module text.
#[derive(Debug)]
pub struct BlockError {
    kind: BlockErrorKind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BlockError {
    /// An error that starts here.
    pub fn new(kind: BlockErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error of the host's I/O.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self {
            kind: BlockErrorKind::Io,
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }

    /// A contradiction inside an image.
    pub fn damaged(context: impl Into<String>) -> Self {
        Self::new(BlockErrorKind::Damaged, context)
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

    /// What the layer below reported, for a caller that takes over this error's own text.
    pub fn into_source(self) -> Option<Box<dyn Error + Send + Sync>> {
        self.source
    }

    /// The kind to match on.
    pub fn kind(&self) -> BlockErrorKind {
        self.kind
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn Error + 'static))
    }
}
