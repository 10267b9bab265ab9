//! Block devices over a network or a socket, and the server that offers one.
//!
//! | module | responsibility |
//! |---|---|
//! | [`url`] | which names are remote, and what they consist of |
//! | [`error`] | [`error::RemoteError`]: why a remote device could not be opened |
//! | [`nbd`] | the NBD protocol: client and server |
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
pub mod nbd;
pub mod url;

pub use error::{RemoteError, RemoteErrorKind, Result};
