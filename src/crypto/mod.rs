//! Encryption that image formats and volumes share.
//!
//! | module | responsibility |
//! |---|---|
//! | [`key`] | passphrases, and where they come from |
//! | [`luks1`] | LUKS version 1: header, keyslots |
//! | [`af`] | the anti-forensic splitter of LUKS |
//! | [`hash`] | hash functions by name, PBKDF2 |
//! | [`cipher`] | encryption of sectors, by name |
//! | [`xts`], [`cbc`], [`iv`] | its modes and initialisation vectors |
//! | [`aes`] | AES with a key size known at run time |
//! | [`error`] | [`CryptoError`] |
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

pub mod aes;
pub mod af;
pub mod cbc;
pub mod cipher;
pub mod error;
pub mod hash;
pub mod iv;
pub mod key;
pub mod luks1;
pub mod xts;

pub use error::{CryptoError, CryptoErrorKind};
pub use key::{KeyRequest, KeySource, Passphrase};

/// Bytes from hexadecimal digits; other characters are skipped.
#[cfg(test)]
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let pairs = digits.chunks_exact(2);
    pairs.map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}
