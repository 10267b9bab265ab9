//! Every bound that cuts across modules, with its reason.
//!
//! An image chooses the numbers in its headers, so each number that drives a loop, a recursion or
//! an allocation has a bound. A bound that belongs to one on-disk structure stands beside that
//! structure; the ones shared by several modules stand here. Reaching a bound is an error the
//! caller sees, never an assertion.

/// Longest backing chain that is opened. QEMU has no limit; chains beyond a few dozen only occur
/// in attacks and in runaway snapshot scripts, and each link costs a file descriptor.
pub const MAX_CHAIN_DEPTH: usize = 64;

/// Most files one image may consist of, its whole chain included. A VMDK split into extents of
/// 2 GiB has 512 of them for 1 TiB; each costs a file descriptor.
pub const MAX_CHAIN_FILES: usize = 900;

/// Largest virtual disk size accepted from an image header: 2^63 - 1 bytes, what a signed file
/// offset can address. Nothing is ever sized by it.
pub const MAX_DEVICE_BYTES: u64 = i64::MAX as u64;

/// Most partitions listed on one disk. GPT's usual array holds 128 and Linux stops at 256 minors.
pub const MAX_PARTITIONS: usize = 256;

/// Symbolic links followed in one path walk, as in Linux (`MAXSYMLINKS`).
pub const MAX_SYMLINKS: usize = 40;

/// Longest path handed to the guest path walk, as in Linux (`PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Longest name of one directory entry, as in Linux (`NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;

/// Deepest directory nesting followed by recursive walks. Linux has no limit by itself; a tree
/// deeper than this is a loop made by a damaged image.
pub const MAX_TREE_DEPTH: usize = 4096;

/// Largest guest text file read whole for inspection or configuration (release files, fstab,
/// network configuration). Real ones are a few KiB.
pub const MAX_CONFIG_BYTES: u64 = 2 << 20;

/// Default budget of the cluster cache shared by all images of a process, in bytes.
pub const CLUSTER_CACHE_BYTES: usize = 64 << 20;

/// Default budget of decoded filesystem metadata blocks per process, in bytes.
pub const METADATA_CACHE_BYTES: usize = 32 << 20;
