//! Noticing that a file is read from front to back.
//!
//! The kernel asks for 128 KiB at a time, far less than it takes to keep several cores busy
//! decompressing, so what follows is announced to the filesystem ahead of the kernel's requests.
//!
//! And noticing that the files of a directory are read one after the other, as `tar`, `cp -r` and
//! `grep -r` do: each is too small to read ahead in, so the beginnings of the next ones are
//! announced.

use std::collections::VecDeque;
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

/// Listings remembered: a walk is in as many directories at a time as it is deep.
const LISTINGS: usize = 32;
/// Files remembered in all listings together.
const LISTED: usize = 64 << 10;
/// Files announced ahead of the reader.
const FILES_AHEAD: usize = 64;
/// How far behind the last file read in a listing the next one may be: some are not read.
const LOOK: usize = 256;
/// Files read as listed before any are announced.
const ENOUGH: u32 = 4;
const MOST: u32 = 2 * ENOUGH;

#[derive(Default)]
struct Listing {
    dir: Option<NodeId>,
    /// Its regular files, as listed.
    files: Vec<NodeId>,
    /// Files up to the one read last.
    read: usize,
    /// Files announced.
    announced: usize,
}

impl Listing {
    /// What to announce next, at least half of [`FILES_AHEAD`].
    fn ahead(&mut self) -> Vec<NodeId> {
        let from = self.announced.max(self.read);
        let until = self.read.saturating_add(FILES_AHEAD).min(self.files.len());
        let worth = until.saturating_sub(from) >= FILES_AHEAD / 2 || until == self.files.len();
        if !worth || from >= until {
            return Vec::new();
        }
        self.announced = until;
        self.files.get(from..until).unwrap_or_default().to_vec()
    }
}

/// The directories listed last, the most recent one first.
#[derive(Default)]
pub struct Listings {
    state: Mutex<ListingsState>,
}

#[derive(Default)]
struct ListingsState {
    listings: VecDeque<Listing>,
    /// Files in all of them.
    listed: usize,
    /// Rises with each file that is read as it was listed, halves with each that is not.
    evidence: u32,
}

impl Listings {
    /// Takes note of a piece of a listing, the `first` or a later one: its regular files. Returns
    /// files to announce, if files are being read as listed.
    pub fn note(
        &self,
        dir: NodeId,
        first: bool,
        files: impl Iterator<Item = NodeId>,
    ) -> Vec<NodeId> {
        let mut state = self.state.lock();
        let known = state.listings.iter().position(|l| l.dir == Some(dir));
        let known = known.and_then(|at| state.listings.remove(at));
        let mut listing = match known {
            Some(listing) if !first => listing,
            // The later part of one that was forgotten.
            None if !first => return Vec::new(),
            old => {
                let old = old.map_or(0, |l| l.files.len());
                state.listed = state.listed.saturating_sub(old);
                Listing {
                    dir: Some(dir),
                    ..Listing::default()
                }
            }
        };
        let before = listing.files.len();
        let room = (LISTED / 2).saturating_sub(before);
        listing.files.extend(files.take(room));
        let added = listing.files.len().saturating_sub(before);
        state.listed = state.listed.saturating_add(added);
        let ahead = if state.evidence >= ENOUGH {
            listing.ahead()
        } else {
            Vec::new()
        };
        state.listings.push_front(listing);
        while state.listings.len() > LISTINGS || state.listed > LISTED {
            let Some(oldest) = state.listings.pop_back() else {
                break;
            };
            state.listed = state.listed.saturating_sub(oldest.files.len());
        }
        ahead
    }

    /// Takes note that a file is read from its beginning; returns files to announce.
    pub fn opened(&self, file: NodeId) -> Vec<NodeId> {
        let mut state = self.state.lock();
        let found = state.listings.iter().enumerate().find_map(|(at, listing)| {
            let window = listing.files.iter().skip(listing.read).take(LOOK);
            let distance = window.into_iter().position(|&id| id == file)?;
            Some((at, distance))
        });
        let Some((at, distance)) = found else {
            state.evidence /= 2;
            return Vec::new();
        };
        state.evidence = state.evidence.saturating_add(1).min(MOST);
        let enough = state.evidence >= ENOUGH;
        let Some(listing) = state.listings.get_mut(at) else {
            return Vec::new();
        };
        listing.read = listing.read.saturating_add(distance).saturating_add(1);
        if enough { listing.ahead() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(range: std::ops::Range<usize>) -> impl Iterator<Item = NodeId> {
        range.map(NodeId::synthetic)
    }

    #[test]
    fn files_read_as_listed_are_announced_once_each() {
        let listings = Listings::default();
        assert!(listings.note(NodeId::ROOT, true, files(1..100)).is_empty());
        assert!(
            listings
                .note(NodeId::ROOT, false, files(100..1000))
                .is_empty()
        );
        let mut announced = Vec::new();
        for (n, id) in files(1..1000).enumerate() {
            // Every third is empty, so it is not read.
            if n % 3 != 0 {
                announced.extend(listings.opened(id));
            }
        }
        assert!(announced.len() > 900, "{}", announced.len());
        let mut once = announced.clone();
        once.dedup();
        assert_eq!(once, announced);
        assert_eq!(announced.last(), files(999..1000).next().as_ref());
        // The next directory is announced when it is listed.
        let other = NodeId::synthetic(5000);
        assert!(!listings.note(other, true, files(6000..6010)).is_empty());
    }

    #[test]
    fn files_read_by_chance_announce_nothing() {
        let listings = Listings::default();
        listings.note(NodeId::ROOT, true, files(1..30_000));
        for n in 0..500 {
            let id = NodeId::synthetic(1 + (n * 7919) % 30_000);
            assert!(listings.opened(id).is_empty());
        }
    }

    #[test]
    fn listings_are_forgotten() {
        let listings = Listings::default();
        for n in 0..1000 {
            listings.note(NodeId::synthetic(n), true, files(0..10_000));
        }
        let state = listings.state.lock();
        let held: usize = state.listings.iter().map(|l| l.files.len()).sum();
        assert_eq!(held, state.listed);
        assert!(held <= LISTED, "{held}");
    }

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
