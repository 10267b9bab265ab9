//! The guest's network configuration in one common model. Pure functions, no I/O.
//!
//! [`read`] looks at the native files of whatever stacks a guest has (through [`NetworkFiles`]) and
//! returns a [`Document`]: the netplan v2 data model under `network`, and beside it, under `guest`,
//! everything netplan has no word for.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | how the files come in: [`NetworkFiles`], the in-memory implementation, [`read`] |
//! | [`model`] | the document's types, in the order of the netplan reference |
//! | [`yaml`] | the canonical text: a YAML emitter whose output YAML 1.1 and 1.2 read alike |
//! | [`ledger`] | proof that every byte of every file read ended in the document |
//! | [`select`] | which stacks are there, which of them act at boot |
//! | [`address`] | addresses, prefixes, MACs in canonical form |
//! | [`iproute`] | arguments of `ip route`, `ip rule`, `ip addr` and `route` |
//! | [`resolver`] | hostname, `hosts`, `resolv.conf` |
//! | [`identity`] | interface names bound to MACs outside the configuration files |
//! | [`codec`] | one module per native format |
//!
//! Invariants: text of the guest is parsed, never evaluated; secrets never reach the document; what
//! a codec does not understand becomes an entry of `guest.unmapped`; nothing here panics on any
//! input. Sizes, file counts and include depths are bounded in [`api`].

#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod address;
pub mod api;
pub mod codec;
pub mod identity;
pub mod iproute;
pub mod ledger;
pub mod model;
pub mod resolver;
pub mod select;
pub mod yaml;

pub use api::{Entry, EntryKind, MemoryFiles, NetworkFiles, ReadFailure, read};
pub use model::Document;
