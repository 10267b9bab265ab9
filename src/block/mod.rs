//! Block devices: positioned I/O on something that has a length.
//!
//! | module | responsibility |
//! |---|---|
//! | [`backend`] | what an implementer writes: [`backend::BlockBackend`] |
//! | [`device`] | what everybody else holds: [`device::BlockDevice`], checked and sliceable |
//! | [`error`] | [`error::BlockError`] |
//! | [`extent`] | where data is and where it is not |
//! | [`file`] | a host file or block device |
//! | [`lock`] | QEMU-compatible byte-range locks on host files |
//! | [`memory`] | a device in memory, for tests and small synthetic disks |
//! | [`overlay`] | changes kept in memory over a device that is never written |
//! | [`concat`] | several devices, one after the other |
//! | [`cache`] | the sharded, budgeted cluster cache; never holds unwritten data |
//! | [`record`] | records every write and flush, for crash tests |
//! | [`fault`] | fails on demand, for error-path tests |
//! | [`users`] | who else uses a host file, as far as the kernel tells |
//!
//! `flush` is the only ordering primitive: what was written before it is durable once it returns,
//! and nothing is implied about the order of writes between two flushes.

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

pub mod backend;
pub mod cache;
pub mod concat;
pub mod device;
pub mod error;
pub mod extent;
pub mod fault;
pub mod file;
pub mod lock;
pub mod memory;
pub mod overlay;
pub mod record;
pub mod users;

pub use backend::{BlockBackend, Geometry};
pub use device::BlockDevice;
pub use error::{BlockError, BlockErrorKind, Result};
pub use extent::{Extent, ExtentKind};
