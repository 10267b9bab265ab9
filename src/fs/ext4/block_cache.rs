//! A bounded, sharded cache of metadata blocks.
//!
//! A block is verified when it is inserted, for the structure it was read as ([`Kind`]). A block
//! that two structures claim is verified again for the second: nothing verified as one thing is
//! ever interpreted as another.
//!
//! Locks: a shard's lock is innermost; no I/O happens under it.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::fs::error::Result;

/// What a block was verified as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No checksum and no structure of its own: indirect blocks, slow symbolic links.
    Plain,
    /// Group descriptors (each is verified by itself).
    Descriptors,
    /// A piece of an inode table (each inode is verified by itself).
    InodeTable,
    /// A node of an inode's extent tree, at a depth.
    Extent {
        /// The inode.
        ino: u32,
        /// Its generation.
        generation: u32,
        /// `eh_depth` the parent promises.
        depth: u16,
    },
    /// A directory block with entries.
    DirLeaf {
        /// The inode.
        ino: u32,
        /// Its generation.
        generation: u32,
    },
    /// A directory block with hashes.
    DirIndex {
        /// The inode.
        ino: u32,
        /// Its generation.
        generation: u32,
    },
    /// Extended attributes.
    Xattr,
}

struct Entry {
    kind: Kind,
    bytes: Arc<[u8]>,
}

/// See the module text.
pub struct BlockCache {
    shards: Box<[Mutex<LruCache<u64, Entry>>]>,
    per_shard: usize,
}

/// Few threads read metadata at once.
const SHARDS: usize = 8;

impl BlockCache {
    /// A cache for about `budget` bytes in blocks of `block_len`.
    pub fn new(budget: usize, block_len: usize) -> Self {
        let blocks = budget.checked_div(block_len).unwrap_or(0);
        Self {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(LruCache::unbounded()))
                .collect(),
            per_shard: blocks.div_ceil(SHARDS).max(4),
        }
    }

    fn shard(&self, key: u64) -> Option<&Mutex<LruCache<u64, Entry>>> {
        // Multiplicative hashing: neighbouring blocks and chunks spread over the shards.
        let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let index = hash.checked_rem(crate::ondisk::units::to_u64(self.shards.len()))?;
        self.shards.get(usize::try_from(index).ok()?)
    }

    /// Whether something is kept at `key`, whatever it was verified as.
    pub fn contains(&self, key: u64) -> bool {
        self.shard(key)
            .is_some_and(|shard| shard.lock().contains(&key))
    }

    /// The block at `key` as `kind`, loaded and verified by `load` if it is not here.
    ///
    /// # Errors
    /// What `load` reports; nothing is kept then.
    pub fn get_or_load(
        &self,
        key: u64,
        kind: Kind,
        load: impl FnOnce() -> Result<Arc<[u8]>>,
    ) -> Result<Arc<[u8]>> {
        let Some(shard) = self.shard(key) else {
            return load();
        };
        if let Some(entry) = shard.lock().get(&key)
            && entry.kind == kind
        {
            return Ok(Arc::clone(&entry.bytes));
        }
        let bytes = load()?;
        let mut shard = shard.lock();
        shard.put(
            key,
            Entry {
                kind,
                bytes: Arc::clone(&bytes),
            },
        );
        while shard.len() > self.per_shard {
            shard.pop_lru();
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kind_is_loaded_again_and_the_budget_holds() {
        let cache = BlockCache::new(8 * 4 * 16, 16);
        let mut loads = 0;
        for kind in [Kind::Plain, Kind::Plain, Kind::Xattr] {
            cache
                .get_or_load(1, kind, || {
                    loads += 1;
                    Ok(vec![0; 16].into())
                })
                .unwrap();
        }
        assert_eq!(loads, 2);
        for key in 0..1000 {
            cache
                .get_or_load(key, Kind::Plain, || Ok(vec![0; 16].into()))
                .unwrap();
        }
        let held: usize = cache.shards.iter().map(|s| s.lock().len()).sum();
        assert!(held <= 32, "{held}");
    }
}
