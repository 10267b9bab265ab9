//! The error of the crypto layer. No message contains a secret.

use std::error::Error;
use std::fmt;

/// Result of the crypto layer.
pub type Result<T, E = CryptoError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CryptoErrorKind {
    /// A header contradicts its own format.
    Damaged,
    /// An algorithm or version this program does not implement, or a cost it does not pay.
    Unsupported,
    /// The host gave no random numbers.
    Random,
}

/// An error with its context.
#[derive(Debug)]
pub struct CryptoError {
    kind: CryptoErrorKind,
    context: String,
}

impl CryptoError {
    /// An error that starts here.
    pub fn new(kind: CryptoErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
        }
    }

    /// A contradiction in a header.
    pub fn damaged(context: impl Into<String>) -> Self {
        Self::new(CryptoErrorKind::Damaged, context)
    }

    /// Something not implemented.
    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(CryptoErrorKind::Unsupported, context)
    }

    /// The kind to match on.
    pub fn kind(&self) -> CryptoErrorKind {
        self.kind
    }
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for CryptoError {}
