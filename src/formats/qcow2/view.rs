//! One readable content of an image: the active layer or a snapshot.
//!
//! Table slices and decompressed clusters live in the process-wide cluster cache, under two
//! identities per image; nothing else is kept, so an image costs the same whatever its size. No
//! lock is held during I/O or decompression.
//!
//! What the host file has past the end it had when it was opened is found, because the file is
//! measured again before anything is said to lie outside. A plain cluster past the end reads as
//! zeroes, as in QEMU; a table or compressed cluster there is damage.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::data::DataFile;
use super::decompress;
use super::layout::{Layout, Mapping, OFFSET_MASK, Run};
use super::live::{CacheIds, LiveTables};
use crate::block::cache::{Cluster, ClusterCache};
use crate::block::{
    BlockBackend, BlockDevice, BlockError, BlockErrorKind, Extent, ExtentKind, Geometry, Result,
};
use crate::ondisk::bytes::be64;
use crate::ondisk::units::{to_u64, to_usize};

/// Pieces joined to one run at most; a bound on the work of one lookup.
const MAX_PIECES: usize = 4096;
/// Reads larger than this are those of a copy, which reads everything once: they go past the cache
/// and decompress on their own thread, because there are several of them.
const BULK_BYTES: usize = 1 << 20;
/// Compressed bytes that a bulk reader reads at once.
const BULK_INPUT_BYTES: u64 = 256 << 10;
/// How far ahead of a sequential reader clusters are decompressed, in bytes.
const READ_AHEAD: u64 = 4 << 20;
/// Requests of one stream may arrive out of order by this much, in bytes.
const STREAM_SLACK: u64 = 1 << 20;
/// Sequential streams tracked at once.
const STREAMS: usize = 4;

/// What all views of an image share.
pub struct Source {
    /// The image file.
    pub file: BlockDevice,
    /// Where clusters are: the image file or the external data file.
    pub data: DataFile,
    /// How tables are read.
    pub layout: Layout,
    /// What unallocated clusters show.
    pub backing: Option<BlockDevice>,
    /// Slices and clusters.
    pub cache: Arc<ClusterCache>,
    /// Identities in the cache, where nobody changes the image.
    pub ids: CacheIds,
    /// What replaces them where somebody may.
    pub live: Option<LiveTables>,
}

impl Source {
    /// What slices and clusters read now are cached under.
    fn ids(&self) -> Result<CacheIds> {
        match &self.live {
            None => Ok(self.ids),
            Some(live) => live.ids(&self.file),
        }
    }

    /// In a live image, damage may only mean that it changed between two reads.
    fn explain(&self, error: BlockError) -> BlockError {
        if self.live.is_some() && error.kind() == BlockErrorKind::Damaged {
            return error.within(
                "the image may have changed while it was read (it was opened live); try again",
            );
        }
        error
    }

    /// The slice of a table that holds host offset `at`, and where `at` is in it.
    fn slice(&self, at: u64) -> Result<(Cluster, usize)> {
        let size = self.layout.slice_bytes();
        let within = at & size.wrapping_sub(1);
        let start = at.saturating_sub(within);
        let slice = self.cache.get_or_load(self.ids()?.tables, start, || {
            let mut slice = zeroed(size)?;
            let buf = Arc::get_mut(&mut slice).ok_or_else(shared)?;
            if read_present(&self.file, start, buf)? == 0 {
                return Err(BlockError::damaged(format!(
                    "a table at {at} is outside the file"
                )));
            }
            Ok(slice)
        })?;
        Ok((slice, to_usize(within).unwrap_or(usize::MAX)))
    }

    /// A compressed cluster's content; `len` is the most bytes it can take in the file.
    ///
    /// # Errors
    /// [`BlockErrorKind::Damaged`], or what reading reports.
    pub fn compressed(&self, host: u64, len: u64) -> Result<Cluster> {
        self.cache.get_or_load(self.ids()?.clusters, host, || {
            // The last sector the entry counts may be cut off by the end of the file.
            let file = self.file.remeasured();
            let len = len.min(file.len().saturating_sub(host));
            if len == 0 {
                return Err(BlockError::damaged(format!(
                    "a compressed cluster at {host} is outside the file"
                )));
            }
            // At most two clusters: the length field has cluster_bits - 8 bits, in sectors.
            let input = file.read_vec(host, to_usize(len).unwrap_or(usize::MAX))?;
            let mut cluster = zeroed(self.layout.cluster_size())?;
            let buf = Arc::get_mut(&mut cluster).ok_or_else(shared)?;
            decompress::decode(self.layout.compression, &input, buf)
                .map_err(|e| e.within(format!("compressed cluster at {host}")))?;
            Ok(cluster)
        })
    }

    /// The same past the cache: for readers that will not come back.
    fn compressed_into(
        &self,
        host: u64,
        len: u64,
        cluster: &mut [u8],
        input: &mut Input,
    ) -> Result<()> {
        let input = input.get(&self.file, host, len)?;
        decompress::decode(self.layout.compression, input, cluster)
            .map_err(|e| e.within(format!("compressed cluster at {host}")))
    }

    /// What the guest sees where the image itself has nothing.
    ///
    /// # Errors
    /// What the backing image reports.
    pub fn read_backing(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let read = match &self.backing {
            Some(backing) => backing.read_some_at(at, buf)?,
            None => 0,
        };
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// Reads as much as the file has now; returns the number of bytes.
///
/// # Errors
/// What the device reports.
pub fn read_present(file: &BlockDevice, at: u64, buf: &mut [u8]) -> Result<usize> {
    let read = file.read_some_at(at, buf)?;
    if read == buf.len() {
        return Ok(read);
    }
    let now = file.remeasured();
    if now.len() > file.len() {
        return now.read_some_at(at, buf);
    }
    Ok(read)
}

/// Compressed bytes of a bulk reader: clusters that were written one after the other lie behind
/// each other and are read together.
#[derive(Default)]
struct Input {
    start: u64,
    bytes: Vec<u8>,
}

impl Input {
    /// `len` bytes at `host`, or as many of them as the file has.
    fn get(&mut self, file: &BlockDevice, host: u64, len: u64) -> Result<&[u8]> {
        let end = self.start.saturating_add(to_u64(self.bytes.len()));
        let wanted = host.saturating_add(len);
        if host < self.start || wanted > end {
            // Only where one cluster followed the other is more worth reading.
            let follows = host >= self.start && host <= end && end > 0;
            let more = if follows { BULK_INPUT_BYTES } else { 0 };
            let file = file.remeasured();
            let rest = file.len().saturating_sub(host);
            if rest == 0 {
                return Err(BlockError::damaged(format!(
                    "a compressed cluster at {host} is outside the file"
                )));
            }
            // At most two clusters: the length field has cluster_bits - 8 bits, in sectors.
            let len = to_usize(len.max(more).min(rest)).unwrap_or(usize::MAX);
            self.bytes.resize(len, 0);
            self.start = host;
            file.read_exact_at(host, &mut self.bytes)?;
        }
        let from = to_usize(host.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(from..).unwrap_or_default();
        let len = to_usize(len).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes.get(..len).unwrap_or_default())
    }
}

fn zeroed(len: u64) -> Result<Cluster> {
    let len = to_usize(len).ok_or_else(shared)?;
    Ok(std::iter::repeat_n(0, len).collect())
}

fn shared() -> BlockError {
    BlockError::damaged("a new cluster is already in use")
}

/// Tables that say where guest bytes are.
pub trait Tables: Send + Sync {
    /// A run that starts at `at`, at least 1 byte long. It may be longer than `max`, and shorter
    /// than the real run.
    ///
    /// # Errors
    /// [`BlockErrorKind::Damaged`], or what reading the tables reports.
    fn piece_at(&self, at: u64, max: u64) -> Result<Run>;
}

/// Tables that nobody changes, or only a running guest: read through the cluster cache.
struct TablesInFile {
    source: Arc<Source>,
    l1_offset: u64,
}

/// A readable content; see the module text.
pub struct View {
    source: Arc<Source>,
    tables: Arc<dyn Tables>,
    len: u64,
    streams: Mutex<[Stream; STREAMS]>,
}

/// A reader that goes forward.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// End of the furthest read so far.
    end: u64,
    /// End of what was handed to the workers.
    ahead: u64,
    /// Reads that continued it.
    hits: u32,
}

impl Tables for TablesInFile {
    // A run within one slice of an L2 table, or the reach of an absent L2 table.
    fn piece_at(&self, at: u64, max: u64) -> Result<Run> {
        let layout = &self.source.layout;
        let reach = 1_u64.wrapping_shl(layout.l2_reach_bits());
        let l1_index = at.wrapping_shr(layout.l2_reach_bits());
        let l1_at = self.l1_offset.saturating_add(l1_index.saturating_mul(8));
        let (slice, within) = self.source.slice(l1_at)?;
        let l2_offset = be64(&slice, within).ok_or_else(outside)? & OFFSET_MASK;
        let in_reach = at & reach.wrapping_sub(1);
        if l2_offset == 0 {
            return Ok(Run {
                len: reach.saturating_sub(in_reach),
                mapping: Mapping::Unallocated,
            });
        }
        if !layout.aligned(l2_offset) {
            return Err(BlockError::damaged(format!(
                "the L2 table at {l2_offset} is not aligned"
            )));
        }
        let l2_index = in_reach.wrapping_shr(layout.cluster_bits);
        let entry_at = l2_offset.saturating_add(l2_index.wrapping_shl(layout.l2_entry_bits()));
        let (slice, mut within) = self.source.slice(entry_at)?;
        let mut decode = |at: u64| -> Option<Result<Run>> {
            let entry = be64(&slice, within)?;
            let bitmap = if layout.subclusters {
                be64(&slice, within.checked_add(8)?)?
            } else {
                0
            };
            within = within.checked_add(1_usize.wrapping_shl(layout.l2_entry_bits()))?;
            Some(layout.decode(entry, bitmap, at))
        };
        let mut run = decode(at).ok_or_else(outside)??;
        // Subclusters can end a run before its cluster ends; then there is nothing to join.
        while run.len < max && layout.aligned(at.saturating_add(run.len)) {
            let Some(Ok(next)) = decode(at.saturating_add(run.len)) else {
                break;
            };
            let Some(joined) = run.join(next) else { break };
            run = joined;
        }
        Ok(run)
    }
}

impl View {
    /// The content described by an L1 table that was checked to cover `len` bytes.
    pub fn new(source: Arc<Source>, l1_offset: u64, len: u64) -> Self {
        let tables = TablesInFile {
            source: Arc::clone(&source),
            l1_offset,
        };
        Self::over(source, Arc::new(tables), len)
    }

    /// The content described by other tables of the image.
    pub fn over(source: Arc<Source>, tables: Arc<dyn Tables>, len: u64) -> Self {
        Self {
            source,
            tables,
            len,
            streams: Mutex::default(),
        }
    }

    /// The run that starts at `at`, at most `max` bytes long.
    fn run_at(&self, at: u64, max: u64) -> Result<Run> {
        let mut run = self.tables.piece_at(at, max)?;
        for _ in 0..MAX_PIECES {
            if run.len >= max {
                break;
            }
            let next = self
                .tables
                .piece_at(at.saturating_add(run.len), max.saturating_sub(run.len));
            // An error belongs to the read that starts there.
            match next.ok().and_then(|next| run.join(next)) {
                Some(joined) => run = joined,
                None => break,
            }
        }
        Ok(Run {
            len: run.len.min(max),
            ..run
        })
    }

    /// Hands the compressed clusters of a range to the workers.
    fn decompress_soon(&self, mut at: u64, end: u64) {
        let end = end.min(self.len);
        while at < end {
            let Ok(run) = self.run_at(at, end.saturating_sub(at)) else {
                return;
            };
            if let Mapping::Compressed { host, len, .. } = run.mapping
                && let Ok(ids) = self.source.ids()
                && !self.source.cache.has_or_loads(ids.clusters, host)
            {
                // Weak, so that a job that waits does not keep the file open and locked.
                let source: Weak<Source> = Arc::downgrade(&self.source);
                let queued = decompress::submit(Box::new(move || {
                    if let Some(source) = source.upgrade() {
                        let _ = source.compressed(host, len);
                    }
                }));
                if !queued {
                    return;
                }
            }
            at = at.saturating_add(run.len);
        }
    }

    /// Notes a read of compressed data; returns the range to decompress ahead, if it belongs to a
    /// stream.
    fn note_read(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let mut streams = self.streams.lock();
        let near = |s: &Stream| {
            s.end > 0
                && start >= s.end.saturating_sub(STREAM_SLACK)
                && start <= s.end.saturating_add(STREAM_SLACK)
        };
        let Some(stream) = streams.iter_mut().find(|s| near(s)) else {
            streams.rotate_right(1);
            if let Some(first) = streams.first_mut() {
                *first = Stream {
                    end,
                    ahead: end,
                    hits: 0,
                };
            }
            return None;
        };
        if end > stream.end {
            stream.hits = stream.hits.saturating_add(1);
            stream.end = end;
        }
        let target = stream.end.saturating_add(READ_AHEAD);
        let from = stream.ahead.max(stream.end);
        // In portions, so that looking the range up is not done for every small read.
        if stream.hits < 2 || target.saturating_sub(from) < READ_AHEAD / 8 {
            return None;
        }
        stream.ahead = target;
        Some((from, target))
    }

    /// What [`BlockBackend::read_exact_at`] does.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(to_u64(buf.len()));
        let mut at = offset;
        let mut rest = buf;
        let mut noted = false;
        let bulk = rest.len() > BULK_BYTES && self.source.live.is_none();
        let mut input = Input::default();
        while !rest.is_empty() {
            let run = self
                .run_at(at, to_u64(rest.len()))
                .map_err(|e| e.within(format!("qcow2 mapping of guest offset {at}")))?;
            let len = to_usize(run.len).unwrap_or(usize::MAX).min(rest.len());
            let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
                return Err(outside());
            };
            match run.mapping {
                Mapping::Data { host } => self.source.data.read(host, at, piece)?,
                Mapping::Zero { .. } => piece.fill(0),
                Mapping::Unallocated => self.source.read_backing(at, piece)?,
                Mapping::Compressed { host, len, .. }
                    if bulk && to_u64(piece.len()) == self.source.layout.cluster_size() =>
                {
                    self.source.compressed_into(host, len, piece, &mut input)?;
                }
                Mapping::Compressed { host, len, within } => {
                    if !noted {
                        noted = true;
                        self.decompress_soon(at.saturating_add(run.len), end);
                        if let Some((from, to)) = self.note_read(offset, end) {
                            self.decompress_soon(from, to);
                        }
                    }
                    let cluster = self.source.compressed(host, len)?;
                    let from = to_usize(within)
                        .and_then(|w| crate::ondisk::bytes::slice(&cluster, w, piece.len()))
                        .ok_or_else(outside)?;
                    piece.copy_from_slice(from);
                }
            }
            at = at.saturating_add(run.len);
            rest = tail;
        }
        Ok(())
    }

    /// What [`BlockBackend::extent_at`] answers.
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.run_at(offset, len)?;
        let plain = Extent::data(run.len);
        // Only a cluster of the image itself has an offset in the image, and what is at the offset
        // of an encrypted one is not its content.
        let at = |host| (!self.source.data.scrambled()).then_some(host);
        Ok(match run.mapping {
            Mapping::Data { host } => Extent {
                host_offset: at(host),
                ..plain
            },
            Mapping::Zero { host } => Extent {
                kind: ExtentKind::Zero,
                host_offset: host.and_then(at),
                ..plain
            },
            Mapping::Compressed { .. } => Extent {
                compressed: true,
                ..plain
            },
            Mapping::Unallocated => match &self.source.backing {
                Some(backing) if offset < backing.len() => {
                    let below = backing
                        .extent_at(offset, run.len.min(backing.len().saturating_sub(offset)))?;
                    Extent {
                        depth: below.depth.saturating_add(1),
                        ..below
                    }
                }
                _ => Extent::hole(run.len),
            },
        })
    }
}

fn outside() -> BlockError {
    BlockError::damaged("a table ends before the entry that is needed")
}

impl BlockBackend for View {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf).map_err(|e| self.source.explain(e))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.extent(offset, len).map_err(|e| self.source.explain(e))
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len.min(READ_AHEAD.saturating_mul(2)));
        let mut at = offset;
        while at < end {
            let Ok(run) = self.run_at(at, end.saturating_sub(at)) else {
                return;
            };
            match run.mapping {
                Mapping::Data { host } => self.source.data.device().prefetch(host, run.len),
                Mapping::Compressed { .. } => {
                    self.decompress_soon(at, at.saturating_add(run.len));
                }
                Mapping::Unallocated => {
                    if let Some(backing) = &self.source.backing {
                        backing.prefetch(at, run.len);
                    }
                }
                Mapping::Zero { .. } => {}
            }
            at = at.saturating_add(run.len);
        }
    }
}
