//! One opened set of images: its disks, volumes and filesystems, and the path tree they form.
//!
//! | module | responsibility |
//! |---|---|
//! | [`discover`] | [`discover::Guest`]: images → disks → partitions → filesystems |
//! | [`mounts`] | the guest's fstab → which filesystem goes where |
//! | [`reach`] | what of a disk must not be cut off |
//! | [`view`] | [`view::GuestView`]: one path tree over several filesystems, our own path walk |
//! | [`error`] | [`error::GuestError`] |
//!
//! Guest paths are resolved here and nowhere else; the host kernel never resolves a guest symlink.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod discover;
pub mod error;
pub mod mounts;
pub mod reach;
pub mod view;

pub use discover::{Content, Disk, Guest, GuestOptions, ImageArgument, Volume};
pub use error::{GuestError, Problem};
pub use view::{GuestView, Mount, Node};
