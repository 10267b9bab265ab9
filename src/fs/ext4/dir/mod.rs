//! Directories.
//!
//! | module | responsibility |
//! |---|---|
//! | [`entry`] | one directory entry, and the checks it must pass |
//! | [`read`] | visiting all names: linear blocks, also of hashed directories; inline |
//! | [`lookup`] | one name: by the hash tree if there is one that can be trusted, else linearly |
//! | [`htree`] | the hash tree |
//! | [`hash`] | its hash functions |
//! | [`encrypted`] | names of encrypted directories, shown without their key |
//!
//! Cookies: the byte offset of the next entry in the directory. Nothing changes under a reader, and
//! the blocks of a hash tree's index look like empty directory blocks, so this serves both sorts.

pub mod encrypted;
pub mod entry;
pub mod hash;
pub mod htree;
pub mod lookup;
pub mod read;
