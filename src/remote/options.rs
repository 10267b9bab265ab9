//! How remote devices are opened.

use std::path::PathBuf;

/// How remote devices are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteOptions {
    /// Of encrypted connections.
    pub tls: TlsOptions,
}

/// Whom to trust and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of authorities (PEM) to trust instead of the public ones.
    pub authorities: Option<PathBuf>,
    /// Our own certificate and its key (PEM, both in one file), for servers that ask.
    pub identity: Option<PathBuf>,
}
