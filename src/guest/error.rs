//! The error of the guest layer, and the problems that do not stop it.

use serde::Serialize;

use crate::formats::{FormatError, FormatErrorKind};

/// Result of the guest layer.
pub type Result<T, E = GuestError> = std::result::Result<T, E>;

/// Why a set of images could not be opened as a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// One image could not be opened.
    #[error("{path}")]
    Image {
        /// The image as it was named, printable.
        path: String,
        /// Why.
        source: FormatError,
    },
    /// More images than can be named, or none.
    #[error("{0}")]
    Arguments(String),
    /// There is no internal snapshot of that id or name in any of the images.
    #[error("no image has a snapshot {0:?}")]
    NoSnapshot(String),
}

impl GuestError {
    /// The kind of the failed image, if it was an image that failed.
    pub fn format_kind(&self) -> Option<FormatErrorKind> {
        match self {
            Self::Image { source, .. } => Some(source.kind()),
            Self::Arguments(_) | Self::NoSnapshot(_) => None,
        }
    }
}

/// Something that is wrong or incomplete but did not stop the rest. Shown in `meta/problems`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it concerns: `sda`, `sda1`, `etc/fstab:4`, … printable.
    pub subject: String,
    /// What is wrong, in one line, printable.
    pub message: String,
}

impl Problem {
    /// A problem of one subject. Both texts must be printable; see [`crate::ondisk::text`].
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            message: message.into(),
        }
    }
}
