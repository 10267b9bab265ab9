//! The kernel's side: requests forwarded to the tree, and nothing else.
//!
//! | module | responsibility |
//! |---|---|
//! | [`adapter`] | FUSE requests → calls on [`crate::tree::Tree`] |
//! | [`errno`] | error kinds → errno |
//! | [`options`] | what a mount is allowed to do |
//! | [`session`] | mounting, as root or through `fusermount3`; serving; taking it away again |
//! | [`mounts`] | which mounts there are, without touching them |
//! | [`state`] | which process serves which mount |

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod adapter;
pub mod errno;
pub mod mounts;
pub mod options;
pub mod session;
pub mod state;
