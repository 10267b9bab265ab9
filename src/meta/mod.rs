//! Contents of the synthetic files: what is known about a guest → text and JSON.
//!
//! | module | file of `meta/` |
//! |---|---|
//! | [`os`] | `os`: who this guest is, safe to source by a shell |
//! | [`network`] | `network`, `network.d/` |
//! | [`disks`] | `disks`: disks, partitions, filesystems |
//! | [`image`] | `image`: the image files |
//! | [`session`] | `session`: how the guest is being looked at |
//! | [`problems`] | `problems`: what is wrong or incomplete |
//! | [`lines`] | a JSON value as lines |

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod disks;
pub mod image;
pub mod lines;
pub mod network;
pub mod os;
pub mod problems;
pub mod session;
