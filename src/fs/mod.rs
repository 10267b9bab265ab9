//! Volumes as files, by inode.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | [`api::FileSystem`], [`api::FsDriver`], the table of drivers |
//! | [`types`] | inode numbers, attributes, times |
//! | [`error`] | [`error::FsError`] |
//! | [`ext4`] | ext2, ext3, ext4 |
//!
//! Operations are by inode number. Paths, `..` and symbolic links belong to [`crate::guest`].

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
pub mod ext4;
pub mod signature;
pub mod types;

pub use api::{DirEntry, FileExtent, FileSystem, FsDriver, FsInfo, FsOptions, FsUsage};
pub use error::{FsError, FsErrorKind, Result};
pub use types::{Attributes, DeviceNo, FileType, InodeNo, Timestamp};
