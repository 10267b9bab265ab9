//! Encryption that image formats and volumes share.
//!
//! | module | responsibility |
//! |---|---|
//! | [`key`] | passphrases, and where they come from |
//!
//! Secrets are wiped when they are dropped and never appear in messages.

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

pub mod key;

pub use key::{KeyRequest, KeySource, Passphrase};
