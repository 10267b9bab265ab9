//! The namespace a user sees: `fs/`, `volumes/`, `disks/`, `snapshots/`, `meta/` as one tree of
//! nodes with stable numbers.
//!
//! | module | responsibility |
//! |---|---|
//! | [`node`] | [`node::NodeId`]: which appearance of which filesystem, which inode, in 64 bits |
//! | [`inodes`] | what stands behind a number: filesystems and synthetic files |
//! | [`namespace`] | [`namespace::Tree`]: look up, attributes, list, read, seek, links, xattrs |
//! | [`symlink`] | keeping link targets inside the tree they are in |
//! | [`readahead`] | noticing that a file is read from front to back |
//! | [`layout`] | an opened guest → the directories above |
//!
//! Nothing here grows with the number of files looked at: a file's number says by itself where the
//! file is, so there is no table of known inodes and nothing to forget.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod inodes;
pub mod layout;
pub mod namespace;
pub mod node;
pub mod readahead;
pub mod symlink;
#[cfg(test)]
mod tests;

pub use namespace::{Tree, TreeOptions};
pub use node::NodeId;
