//! The error of the remote layer: why a remote device could not be opened or offered. Once it is
//! open, requests fail with [`crate::block::BlockError`].

use std::error::Error;
use std::fmt;

/// Result of the remote layer.
pub type Result<T, E = RemoteError> = std::result::Result<T, E>;

/// What went wrong, as far as a caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemoteErrorKind {
    /// The network or the host reported an error, or the other side is not there.
    Io,
    /// What was named is no address of anything remote.
    Address,
    /// The other side does not keep to its protocol.
    Protocol,
    /// The other side, or this build, cannot do what is needed.
    Unsupported,
    /// The other side refuses.
    Refused,
}

/// An error with its context and, where the user can act, a hint.
#[derive(Debug)]
pub struct RemoteError {
    kind: RemoteErrorKind,
    context: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl RemoteError {
    /// An error that starts here.
    pub fn new(kind: RemoteErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            source: None,
        }
    }

    /// An error of the network or the host.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..Self::new(RemoteErrorKind::Io, context)
        }
    }

    /// The other side contradicts the protocol.
    pub fn protocol(context: impl Into<String>) -> Self {
        Self::new(RemoteErrorKind::Protocol, context)
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

    /// What the layer below reported, for a caller that takes over this error's own text.
    pub fn into_source(self) -> Option<Box<dyn Error + Send + Sync>> {
        self.source
    }

    /// The kind to match on.
    pub fn kind(&self) -> RemoteErrorKind {
        self.kind
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for RemoteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn Error + 'static))
    }
}
