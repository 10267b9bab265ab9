//! Devices as volumes: partition tables today.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | [`api::Partition`], [`api::Table`], finding the table of a disk |
//! | [`error`] | [`error::VolumeError`] |
//! | [`table`] | which scheme a disk has |
//! | [`gpt`] | GUID partition tables |
//! | [`mbr`] | DOS partition tables |

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
pub mod gpt;
pub mod mbr;
pub mod table;

pub use api::{FoundTable, Partition, Probe, Table, TableKind, find_table};
pub use error::{VolumeError, VolumeErrorKind};
