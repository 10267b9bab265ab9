//! The error of the volumes layer.

use std::error::Error;
use std::fmt;

use crate::block::BlockError;

/// Result of the volumes layer.
pub type Result<T, E = VolumeError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeErrorKind {
    /// The device below could not be read.
    Io,
    /// The table contradicts itself.
    Damaged,
    /// The table uses something this program does not implement.
    Unsupported,
}

/// An error with its context.
#[derive(Debug)]
pub struct VolumeError {
    kind: VolumeErrorKind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl VolumeError {
    /// An error that starts here.
    pub fn new(kind: VolumeErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// The kind to match on.
    pub fn kind(&self) -> VolumeErrorKind {
        self.kind
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for VolumeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn Error + 'static))
    }
}

impl From<BlockError> for VolumeError {
    fn from(error: BlockError) -> Self {
        Self {
            kind: VolumeErrorKind::Io,
            context: "cannot read the partition table".into(),
            source: Some(Box::new(error)),
        }
    }
}
