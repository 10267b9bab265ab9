//! LUKS version 1: a header with eight keyslots, each of which holds the master key, encrypted with
//! a passphrase and spread over many stripes.
//!
//! | module | responsibility |
//! |---|---|
//! | [`header`] | the header, validated, and writing one |
//! | [`unlock`] | the master key, from a passphrase |
//! | [`create`] | a new header with one keyslot |
//!
//! A volume begins with the header; a qcow2 image has it in clusters of its own. Nothing here
//! reads or writes a device: offsets are relative to the header's first byte.
//!
//! Specification: "LUKS On-Disk Format Specification", version 1.2.3.

pub mod create;
pub mod header;
pub mod unlock;

pub use create::{CreateOptions, create};
pub use header::{Header, Keyslot, SlotState};
pub use unlock::MasterKey;

/// Bytes of the header without key material.
pub const HEADER_BYTES: usize = 592;
/// Keyslots of a header.
pub const KEYSLOTS: usize = 8;
/// Stripes every known program writes.
pub const STRIPES: u32 = 4000;
/// Most stripes accepted: with the longest key 1 MiB of key material.
const MAX_STRIPES: u32 = 16384;
/// Most PBKDF2 iterations of a keyslot or of the master key's digest that are paid for. Programs
/// choose what takes them two seconds; a fast machine of today gets 9 million in that time. At some
/// 0.2 µs each this is several seconds.
pub const MAX_ITERATIONS: u32 = 32_000_000;
/// Most iterations of all keyslots together: eight of that fast machine.
pub const MAX_TOTAL_ITERATIONS: u32 = 96_000_000;
/// Unit of offsets, and of encryption of the key material.
const SECTOR: u64 = SECTOR_BYTES as u64;
const SECTOR_BYTES: usize = 512;
/// Bytes of the digest of the master key, whatever the hash.
const DIGEST_BYTES: usize = 20;
/// Bytes of a salt.
const SALT_BYTES: usize = 32;
