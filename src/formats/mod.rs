//! Image files as block devices.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | [`api::Image`], [`api::ImageFormat`], the table of formats, opening by path |
//! | [`error`] | [`error::FormatError`] |
//! | [`reference`] | which files an image may make us open |
//! | [`raw`] | raw images |

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

pub mod api;
pub mod error;
pub mod raw;
pub mod reference;

pub use api::{Image, ImageInfo, OpenOptions, SnapshotInfo, open_path};
pub use error::{FormatError, FormatErrorKind};
