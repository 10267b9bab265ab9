//! Facts about a guest, each with the file it came from.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | [`systems`]: a guest → its operating systems with their [`Facts`] |
//! | [`roots`] | which filesystem is the root of an operating system |
//! | [`evidence`] | reading the guest's files with bounds; what fails is a problem, not the end |
//! | [`assignments`] | `KEY=value` files: shell quoting understood, nothing evaluated |
//! | [`os_release`] | os-release(5) |
//! | [`release_files`] | what distributions had before os-release |
//! | [`identity`] | all of these together: which distribution, which version |
//! | [`packages`] | package format and package manager |
//! | [`elf`] | the architecture of a program |
//! | [`settings`] | host name, machine id, time zone, init system, kernels |
//!
//! Everything is read from the guest's own tree by [`crate::guest::GuestView`]; nothing is run and
//! nothing is handed to another program. No fact is lost because one file is odd: what cannot be
//! read is a [`crate::guest::Problem`], and the next source is asked.
//!
//! Text facts are what the guest says, invalid UTF-8 replaced by U+FFFD, and may hold control
//! characters: whoever prints them escapes them.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod api;
pub mod assignments;
pub mod elf;
pub mod evidence;
pub mod identity;
pub mod os_release;
pub mod packages;
pub mod release_files;
pub mod roots;
pub mod settings;

pub use api::{Fact, Facts, Mountpoint, System, facts_of, systems};
