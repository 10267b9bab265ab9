//! ext2, ext3 and ext4, read-only.
//!
//! | module | responsibility |
//! |---|---|
//! | [`driver`] | probe, open (with journal replay), backup superblocks |
//! | [`filesystem`] | the [`super::FileSystem`] trait; forwards only |
//! | [`superblock`], [`features`] | the superblock, validated once; what the feature bits mean |
//! | [`group`] | where group descriptors are, and one descriptor |
//! | [`volume`] | what the others stand on: device, superblock, caches, checksum seeds |
//! | [`block_cache`] | bounded cache of metadata blocks, verified on insertion |
//! | [`inode`] | inodes |
//! | [`map`], [`extent`], [`indirect`] | file block → disk block |
//! | [`file`], [`inline_data`], [`symlink`] | content |
//! | [`readahead`] | telling the device what will be read next |
//! | [`dir`] | directories: linear, hashed, inline, encrypted names |
//! | [`xattr`], [`acl`] | extended attributes |
//! | [`journal`] | jbd2 recovery into memory |
//! | [`usage`] | what `statfs` reports |
//!
//! Follows the Linux kernel's documentation `Documentation/filesystems/ext4/` (on-disk layout);
//! where that is silent, what the kernel's driver does.
//!
//! Invariants: nothing is allocated by a number from a header; descriptors, tables and trees are
//! read when they are needed. Every block that is interpreted lies inside the filesystem.

pub mod acl;
pub mod block_cache;
pub mod dir;
pub mod driver;
pub mod extent;
pub mod features;
pub mod file;
pub mod filesystem;
pub mod group;
pub mod indirect;
pub mod inline_data;
pub mod inode;
pub mod journal;
pub mod map;
pub mod readahead;
pub mod superblock;
pub mod symlink;
pub mod usage;
pub mod volume;
pub mod xattr;

pub use driver::Ext4Driver;
