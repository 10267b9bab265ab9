//! Noticing that a file is read from front to back.
//!
//! The kernel asks for 128 KiB at a time, far less than it takes to keep several cores busy
//! decompressing, so what follows is announced to the filesystem ahead of the kernel's requests.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::node::NodeId;

/// Bytes announced ahead of the reader.
const WINDOW: u64 = 4 << 20;
/// Bytes read in a row before anything is announced.
const START: u64 = 256 << 10;
/// How far from the expected offset a read may be: the kernel's own requests overtake each other.
const SLACK: u64 = 512 << 10;
/// Files followed at a time, per shard.
const STREAMS_PER_SHARD: NonZeroUsize = NonZeroUsize::new(16).unwrap();
const SHARDS: usize = 8;

struct Stream {
    /// End of the furthest read.
    next: u64,
    /// Bytes read in a row.
    run: u64,
    /// End of what was announced.
    announced: u64,
}

/// The files being read, the least recently read one forgotten first.
pub struct Streams {
    shards: [Mutex<LruCache<NodeId, Stream>>; SHARDS],
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(LruCache::new(STREAMS_PER_SHARD))),
        }
    }
}

impl Streams {
    /// Takes note of a read; returns the range (offset, length) to announce, if any.
    pub fn note(&self, id: NodeId, offset: u64, len: u64) -> Option<(u64, u64)> {
        let shard = usize::try_from(id.raw() % SHARDS as u64).unwrap_or(0);
        let mut streams = self.shards.get(shard)?.lock();
        let end = offset.saturating_add(len);
        let Some(stream) = streams.get_mut(&id) else {
            let stream = Stream {
                next: end,
                run: len,
                announced: end,
            };
            streams.put(id, stream);
            return None;
        };
        if offset.abs_diff(stream.next) > SLACK {
            *stream = Stream {
                next: end,
                run: len,
                announced: end,
            };
            return None;
        }
        // Small steps to and fro are no stream: only ground gained counts.
        stream.run = stream.run.saturating_add(end.saturating_sub(stream.next));
        stream.next = stream.next.max(end);
        if stream.run < START {
            return None;
        }
        let from = stream.announced.max(stream.next);
        if from.saturating_sub(stream.next) > WINDOW / 2 {
            return None;
        }
        stream.announced = stream.next.saturating_add(WINDOW);
        Some((from, stream.announced.saturating_sub(from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_announced_once_each_byte() {
        let streams = Streams::default();
        let step = 128 << 10;
        let mut covered = None::<u64>;
        for n in 0..400 {
            if let Some((from, len)) = streams.note(NodeId::ROOT, n * step, step) {
                if let Some(end) = covered {
                    assert_eq!(from, end);
                }
                covered = Some(from + len);
            }
        }
        assert!(covered.unwrap() > 400 * step);
    }

    #[test]
    fn random_reads_announce_nothing() {
        let streams = Streams::default();
        let mut at = 1u64;
        for _ in 0..1000 {
            at = at
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            assert_eq!(streams.note(NodeId::ROOT, (at >> 24) << 12, 4096), None);
        }
        for _ in 0..1000 {
            assert_eq!(
                streams.note(NodeId::ROOT, 0, 4096),
                None,
                "the same block again"
            );
        }
    }
}
