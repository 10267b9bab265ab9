//! The cluster cache: decoded clusters of images, shared by all images of a process.
//!
//! Sharded, so that readers of different clusters rarely meet; budgeted in bytes; never dirty
//! (writers go through to the image and invalidate). Two readers that miss the same cluster at the
//! same time decode it once: the second waits for the first.
//!
//! Lock order: a shard's lock is innermost; no I/O happens under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::error::Result;
use crate::ondisk::units::to_u64;

/// A cached cluster. Cheap to clone.
pub type Cluster = Arc<[u8]>;

/// Which image an entry belongs to; unique for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(u64);

impl SourceId {
    /// An identity no other image has.
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

type Key = (SourceId, u64);

/// Sharded LRU; see the module text.
pub struct ClusterCache {
    shards: Box<[Shard]>,
    shard_budget: usize,
}

struct Shard {
    state: Mutex<ShardState>,
    loaded: Condvar,
}

struct ShardState {
    entries: LruCache<Key, Cluster>,
    bytes: usize,
    /// Keys being decoded right now.
    loading: Vec<Key>,
}

/// Number of shards: enough for the worker threads of one process to rarely collide.
const SHARDS: usize = 16;

impl ClusterCache {
    /// A cache that holds at most about `budget` bytes. An entry larger than a shard's share of
    /// the budget is never kept.
    pub fn new(budget: usize) -> Self {
        let shard = || Shard {
            state: Mutex::new(ShardState {
                entries: LruCache::unbounded(),
                bytes: 0,
                loading: Vec::new(),
            }),
            loaded: Condvar::new(),
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            shard_budget: budget.div_ceil(SHARDS),
        }
    }

    /// The cluster of `source` at `offset`, loading it with `load` if it is not here.
    ///
    /// # Errors
    /// What `load` reports; nothing is kept then, and the next reader tries again.
    pub fn get_or_load(
        &self,
        source: SourceId,
        offset: u64,
        load: impl FnOnce() -> Result<Cluster>,
    ) -> Result<Cluster> {
        let key = (source, offset);
        let Some(shard) = self.shard(key) else {
            return load();
        };
        {
            let mut state = shard.state.lock();
            loop {
                if let Some(hit) = state.entries.get(&key) {
                    return Ok(Arc::clone(hit));
                }
                if !state.loading.contains(&key) {
                    break;
                }
                shard.loaded.wait(&mut state);
            }
            state.loading.push(key);
        }
        // Removes the mark also when `load` fails or panics, so that no reader waits for ever.
        let mark = LoadMark { shard, key };
        let cluster = load()?;
        mark.finish(&cluster, self.shard_budget);
        Ok(cluster)
    }

    /// The cluster if it is here; does not wait for one being loaded.
    pub fn get(&self, source: SourceId, offset: u64) -> Option<Cluster> {
        let key = (source, offset);
        self.shard(key)?.state.lock().entries.get(&key).cloned()
    }

    /// Whether the cluster is here or being loaded.
    pub fn has_or_loads(&self, source: SourceId, offset: u64) -> bool {
        let key = (source, offset);
        self.shard(key).is_some_and(|shard| {
            let state = shard.state.lock();
            state.loading.contains(&key) || state.entries.contains(&key)
        })
    }

    /// Keeps a cluster that was not asked for, unless it is here already. `false`: somebody is
    /// loading it right now, and it was not kept.
    pub fn offer(&self, source: SourceId, offset: u64, cluster: &Cluster) -> bool {
        let key = (source, offset);
        let Some(shard) = self.shard(key) else {
            return true;
        };
        let mut state = shard.state.lock();
        if state.loading.contains(&key) {
            return false;
        }
        if !state.entries.contains(&key) {
            state.put(key, cluster, self.shard_budget);
        }
        true
    }

    /// Forgets one cluster.
    pub fn invalidate(&self, source: SourceId, offset: u64) {
        let key = (source, offset);
        if let Some(shard) = self.shard(key) {
            let mut state = shard.state.lock();
            if let Some(old) = state.entries.pop(&key) {
                state.bytes = state.bytes.saturating_sub(old.len());
            }
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| s.state.lock().bytes).sum()
    }

    fn shard(&self, (source, offset): Key) -> Option<&Shard> {
        // Fibonacci hashing: neighbouring clusters land on different shards whatever their size.
        let mixed = (source.0.wrapping_mul(31) ^ offset).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let index = (mixed >> 32).checked_rem(to_u64(self.shards.len()))?;
        self.shards.get(usize::try_from(index).ok()?)
    }
}

impl ShardState {
    fn put(&mut self, key: Key, cluster: &Cluster, budget: usize) {
        if cluster.len() > budget {
            return;
        }
        if let Some(old) = self.entries.put(key, Arc::clone(cluster)) {
            self.bytes = self.bytes.saturating_sub(old.len());
        }
        self.bytes = self.bytes.saturating_add(cluster.len());
        while self.bytes > budget {
            let Some((_, old)) = self.entries.pop_lru() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(old.len());
        }
    }
}

struct LoadMark<'a> {
    shard: &'a Shard,
    key: Key,
}

impl LoadMark<'_> {
    fn finish(self, cluster: &Cluster, budget: usize) {
        self.shard.state.lock().put(self.key, cluster, budget);
    }
}

impl Drop for LoadMark<'_> {
    fn drop(&mut self) {
        let mut state = self.shard.state.lock();
        state.loading.retain(|key| *key != self.key);
        self.shard.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::error::BlockError;
    use std::sync::atomic::AtomicUsize;

    fn cluster(len: usize) -> Cluster {
        vec![0u8; len].into()
    }

    #[test]
    fn stays_within_its_budget() {
        let cache = ClusterCache::new(16 * 1000);
        let source = SourceId::fresh();
        for i in 0..1000 {
            cache
                .get_or_load(source, i * 512, || Ok(cluster(100)))
                .unwrap();
        }
        assert!(cache.bytes() <= 16 * 1000, "{}", cache.bytes());
        assert!(cache.bytes() > 8 * 1000, "{}", cache.bytes());
    }

    #[test]
    fn one_load_for_simultaneous_readers() {
        let cache = ClusterCache::new(1 << 20);
        let source = SourceId::fresh();
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let got = cache.get_or_load(source, 0, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(cluster(10))
                    });
                    assert_eq!(got.unwrap().len(), 10);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let cache = ClusterCache::new(1 << 20);
        let source = SourceId::fresh();
        assert!(
            cache
                .get_or_load(source, 0, || Err(BlockError::damaged("x")))
                .is_err()
        );
        assert!(cache.get_or_load(source, 0, || Ok(cluster(1))).is_ok());
        assert!(cache.get(source, 0).is_some());
        assert!(cache.get(SourceId::fresh(), 0).is_none());
        assert!(cache.offer(source, 7, &cluster(3)));
        assert_eq!(cache.get(source, 7).unwrap().len(), 3);
        let nested = cache.get_or_load(source, 8, || {
            assert!(!cache.offer(source, 8, &cluster(2)));
            Ok(cluster(1))
        });
        assert_eq!(nested.unwrap().len(), 1);
        cache.invalidate(source, 7);
        cache.invalidate(source, 8);
        cache.invalidate(source, 0);
        assert!(cache.get(source, 0).is_none());
        assert_eq!(cache.bytes(), 0);
    }
}
