//! guestlens opens guest disk images and shows what is inside, without a virtual machine, root or
//! kernel mounts, and without trusting a byte of them.
//!
//! # Layers
//!
//! One folder per layer; a lower layer never names a higher one (`tests/tidy.rs` enforces it):
//!
//! `ondisk → crypto → block → remote → formats, volumes → fs → guest → inspect, network → meta →
//! tree → fuse → cli`
//!
//! | layer | turns | into |
//! |---|---|---|
//! | [`ondisk`] | bytes nobody vouches for | checked integers, checksums, text |
//! | [`crypto`] | passphrases and headers | ciphers for sectors |
//! | [`block`] | host files | block devices: positioned I/O, overlay, slice, cache |
//! | [`remote`] | NBD exports, HTTP objects | block devices; and a block device into an NBD export |
//! | [`formats`] | an image file | a block device; and back |
//! | [`volumes`] | a block device | partitions |
//! | [`fs`] | a volume | files by inode |
//! | [`guest`] | a set of images | disks, volumes, filesystems, one path tree |
//! | [`inspect`] | a guest's files | facts: which system, version, hostname … each with its source |
//! | [`network`] | a guest's network files | one common model |
//! | [`meta`] | facts and model | the text of the synthetic files |
//! | [`tree`] | all of the above | the namespace a user sees |
//! | [`fuse`] | kernel requests | calls on the tree, and nothing else |
//! | [`cli`] | arguments | verbs; the only layer that prints or exits |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod block;
pub mod cli;
pub mod crypto;
pub mod formats;
pub mod fs;
pub mod fuse;
pub mod guest;
pub mod inspect;
pub mod limits;
pub mod meta;
pub mod network;
pub mod ondisk;
pub mod remote;
pub mod tree;
pub mod volumes;
