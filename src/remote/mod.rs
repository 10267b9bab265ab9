//! Block devices over a network or a socket, and the server that offers one.
//!
//! | module | responsibility |
//! |---|---|
//! | [`url`] | which names are remote, and what they consist of |
//! | [`error`] | [`error::RemoteError`]: why a remote device could not be opened |
//! | [`options`] | how remote devices are opened |
//! | [`nbd`] | the NBD protocol: client and server |
//! | `http` | objects of web servers (feature `remote`) |
//! | `tls` | encrypted connections (feature `remote`) |
//!
//! Only what a user names is ever opened this way; a name inside an image never is.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod error;
#[cfg(feature = "remote")]
pub mod http;
pub mod nbd;
pub mod options;
#[cfg(feature = "remote")]
pub mod tls;
pub mod url;

use std::sync::Arc;

pub use error::{RemoteError, RemoteErrorKind, Result};
pub use options::{RemoteOptions, TlsOptions};

use self::nbd::client::Client;
use self::url::Url;
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;

/// Schemes of names that this build opens.
pub const SCHEMES: &[&str] = if cfg!(feature = "remote") {
    &["nbd", "nbd+unix", "nbds", "nbds+unix", "http", "https"]
} else {
    &["nbd", "nbd+unix"]
};

/// Opens what a user named.
///
/// # Errors
/// See [`RemoteErrorKind`].
pub fn open(
    url: &Url,
    write: bool,
    options: &RemoteOptions,
    cache: &Arc<ClusterCache>,
) -> Result<BlockDevice> {
    match url {
        Url::Nbd(url) => Ok(BlockDevice::new(Arc::new(Client::connect(
            url, write, options,
        )?))),
        Url::Http(_) if write => Err(RemoteError::new(
            RemoteErrorKind::Unsupported,
            "objects of web servers are only read",
        )),
        Url::Http(name) => open_http(name, options, cache),
    }
}

#[cfg(feature = "remote")]
fn open_http(
    name: &str,
    options: &RemoteOptions,
    cache: &Arc<ClusterCache>,
) -> Result<BlockDevice> {
    let object = http::HttpObject::open(name, options, Arc::clone(cache))?;
    Ok(BlockDevice::new(Arc::new(object)))
}

#[cfg(not(feature = "remote"))]
fn open_http(_: &str, _: &RemoteOptions, _: &Arc<ClusterCache>) -> Result<BlockDevice> {
    Err(not_built("reading from web servers"))
}

/// What a build without the feature says.
#[cfg(not(feature = "remote"))]
fn not_built(what: &str) -> RemoteError {
    RemoteError::new(
        RemoteErrorKind::Unsupported,
        format!("this build of guestlens was made without {what}"),
    )
    .with_hint("build it with `cargo build --features remote` (which is the default)")
}
