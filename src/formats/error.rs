//! The error of the formats layer: why an image could not be opened.

use std::error::Error;
use std::fmt;

use crate::block::{BlockError, BlockErrorKind};
use crate::remote::{RemoteError, RemoteErrorKind};

/// Result of the formats layer.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatErrorKind {
    /// The host reported an I/O error, or the file is not there.
    Io,
    /// The file is not of the format that was asked for.
    NotThisFormat,
    /// The image contradicts its own format.
    Damaged,
    /// The image uses something this program does not implement.
    Unsupported,
    /// Policy does not allow what the image asks for (backing file, data file, guessed format).
    NotAllowed,
    /// Another process uses the image.
    Busy,
    /// A key is needed.
    NoKey,
    /// There is no snapshot of that name.
    NoSnapshot,
}

/// An error with its context and, where the user can act, a hint.
#[derive(Debug)]
pub struct FormatError {
    kind: FormatErrorKind,
    context: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl FormatError {
    /// An error that starts here.
    pub fn new(kind: FormatErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            source: None,
        }
    }

    /// An error of the host's I/O.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..Self::new(FormatErrorKind::Io, context)
        }
    }

    /// The same error seen from one level further up; kind and hint stay.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            context: context.into(),
            hint: self.hint.clone(),
            source: Some(Box::new(self)),
        }
    }

    /// The same error with advice for the user.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The kind to match on.
    pub fn kind(&self) -> FormatErrorKind {
        self.kind
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for FormatError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn Error + 'static))
    }
}

impl From<RemoteError> for FormatError {
    fn from(error: RemoteError) -> Self {
        let kind = match error.kind() {
            RemoteErrorKind::Io | RemoteErrorKind::Protocol | RemoteErrorKind::Address => {
                FormatErrorKind::Io
            }
            RemoteErrorKind::Unsupported => FormatErrorKind::Unsupported,
            RemoteErrorKind::Refused => FormatErrorKind::NotAllowed,
        };
        Self {
            kind,
            context: error.to_string(),
            hint: error.hint().map(str::to_owned),
            source: error.into_source(),
        }
    }
}

impl From<BlockError> for FormatError {
    fn from(error: BlockError) -> Self {
        let kind = match error.kind() {
            BlockErrorKind::Io | BlockErrorKind::Failed | BlockErrorKind::ReadOnly => {
                FormatErrorKind::Io
            }
            // Structures that point outside their file.
            BlockErrorKind::OutOfRange | BlockErrorKind::Damaged => FormatErrorKind::Damaged,
            BlockErrorKind::Unsupported => FormatErrorKind::Unsupported,
            BlockErrorKind::NoKey => FormatErrorKind::NoKey,
        };
        Self {
            kind,
            context: error.to_string(),
            hint: None,
            source: error.into_source(),
        }
    }
}
