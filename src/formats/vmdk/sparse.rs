//! Reading a sparse extent: grain directory, grain table, grain.
//!
//! Table slices and decompressed grains live in the process-wide cluster cache; nothing else is
//! kept. No lock is held during I/O or decompression.
//! A table entry that leads outside the file is tried again in the redundant grain directory,
//! where there is one.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use flate2::{Decompress, FlushDecompress, Status};

use super::layout::{Grain, Layout};
use crate::block::cache::{Cluster, ClusterCache, SourceId};
use crate::block::{BlockBackend, BlockDevice, BlockError, Extent, ExtentKind, Geometry, Result};
use crate::formats::qcow2::decompress::submit;
use crate::formats::read_ahead::{READ_AHEAD, Streams};
use crate::formats::slices::Slices;
use crate::ondisk::bytes::{le32, le64, slice};
use crate::ondisk::units::{to_u64, to_usize};

/// Pieces joined to one run at most; a bound on the work of one lookup.
const MAX_PIECES: usize = 4096;
/// Bytes read with a grain's marker, in the hope that the whole grain is among them.
const FIRST_READ: u64 = 16 << 10;
/// Bytes of a grain marker in front of the compressed data: guest sector (8), data length (4).
const MARKER: u64 = 12;

thread_local! {
    static INFLATE: RefCell<Option<Decompress>> = const { RefCell::new(None) };
}

/// What a run of the extent is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Stored at this offset of the file.
    Data(u64),
    /// One compressed grain at this offset of the file.
    Compressed(u64),
    Zero,
    Absent,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    len: u64,
    mapping: Mapping,
}

impl Run {
    /// This run with `next` behind it, if they are one.
    fn join(self, next: Self) -> Option<Self> {
        let joins = match (self.mapping, next.mapping) {
            (Mapping::Data(a), Mapping::Data(b)) => a.checked_add(self.len) == Some(b),
            (Mapping::Zero, Mapping::Zero) | (Mapping::Absent, Mapping::Absent) => true,
            _ => false,
        };
        joins.then(|| Self {
            len: self.len.saturating_add(next.len),
            ..self
        })
    }
}

struct Source {
    file: BlockDevice,
    layout: Layout,
    cache: Arc<ClusterCache>,
    tables: Slices,
    grains: SourceId,
    /// Somebody may change the tables while they are read.
    live: bool,
}

/// A sparse extent; see the module text.
pub struct SparseExtent {
    source: Arc<Source>,
    parent: Option<BlockDevice>,
    streams: Streams,
}

impl SparseExtent {
    /// The extent in `file`. What it lacks is read from `parent`, at the same offsets.
    pub fn new(
        file: BlockDevice,
        layout: Layout,
        parent: Option<BlockDevice>,
        cache: Arc<ClusterCache>,
        live: bool,
    ) -> Self {
        Self {
            source: Arc::new(Source {
                tables: Slices::new(file.clone(), Arc::clone(&cache), live),
                file,
                layout,
                cache,
                grains: SourceId::fresh(),
                live,
            }),
            parent,
            streams: Streams::default(),
        }
    }

    /// The run that starts at `at`, at most `max` bytes long.
    fn run_at(&self, at: u64, max: u64) -> Result<Run> {
        let mut run = self.source.piece_at(at, max)?;
        for _ in 0..MAX_PIECES {
            if run.len >= max {
                break;
            }
            let next = self
                .source
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

    /// Hands the compressed grains of a range to the workers.
    fn decompress_soon(&self, mut at: u64, end: u64) {
        let end = end.min(self.source.layout.capacity);
        while at < end {
            let Ok(run) = self.run_at(at, end.saturating_sub(at)) else {
                return;
            };
            if let Mapping::Compressed(host) = run.mapping {
                let (start, _) = self.source.grain_of(at);
                let source = &self.source;
                if !source.cache.has_or_loads(source.grains, start) {
                    // Weak, so that a job that waits does not keep the file open and locked.
                    let source: Weak<Source> = Arc::downgrade(source);
                    let queued = submit(Box::new(move || {
                        if let Some(source) = source.upgrade() {
                            let _ = source.compressed(start, host);
                        }
                    }));
                    if !queued {
                        return;
                    }
                }
            }
            at = at.saturating_add(run.len);
        }
    }

    fn read_parent(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let read = match &self.parent {
            Some(parent) => parent.read_some_at(at, buf)?,
            None => 0,
        };
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl Source {
    /// Start of the grain that holds `at`, and where `at` is in it.
    fn grain_of(&self, at: u64) -> (u64, u64) {
        let within = at & self.layout.grain.wrapping_sub(1);
        (at.saturating_sub(within), within)
    }

    fn entry(&self, slice: &[u8], at: usize) -> Option<u64> {
        match self.layout.entry_size() {
            4 => le32(slice, at).map(u64::from),
            _ => le64(slice, at),
        }
    }

    /// The grain table of number `table`, by a grain directory at `directory`.
    fn table_at(&self, directory: u64, table: u64) -> Result<Option<u64>> {
        let size = self.layout.entry_size();
        let (slice, within) = self
            .tables
            .at(directory.saturating_add(table.saturating_mul(size)))?;
        let entry = self.entry(&slice, within).ok_or_else(outside)?;
        let table = self.layout.table_at(entry).map_err(BlockError::damaged)?;
        match table {
            Some(at) if at >= self.tables.file().len() => Err(BlockError::damaged(format!(
                "the grain table at {at} is outside the file"
            ))),
            table => Ok(table),
        }
    }

    /// A run within one slice of a grain table, or the reach of an absent table.
    fn piece_at(&self, at: u64, max: u64) -> Result<Run> {
        let layout = &self.layout;
        let reach = layout.table_reach();
        let number = at.checked_div(reach).ok_or_else(outside)?;
        let in_reach = at.checked_rem(reach).ok_or_else(outside)?;
        let found = match (self.table_at(layout.directory, number), layout.redundant) {
            (Err(e), Some(copy)) => self.table_at(copy, number).map_err(|_| e),
            (found, _) => found,
        };
        let left = layout.capacity.saturating_sub(at);
        let Some(table) = found? else {
            return Ok(Run {
                len: reach.saturating_sub(in_reach).min(left),
                mapping: Mapping::Absent,
            });
        };
        let index = in_reach.checked_div(layout.grain).ok_or_else(outside)?;
        let size = layout.entry_size();
        let (slice, mut within) = self
            .tables
            .at(table.saturating_add(index.saturating_mul(size)))?;
        let (_, in_grain) = self.grain_of(at);
        let mut decode = |in_grain: u64| -> Option<Result<Run>> {
            let entry = self.entry(&slice, within)?;
            within = within.checked_add(to_usize(size)?)?;
            let mapping = match layout.grain_at(entry) {
                Err(e) => return Some(Err(BlockError::damaged(e))),
                Ok(Grain::Absent) => Mapping::Absent,
                Ok(Grain::Zero) => Mapping::Zero,
                Ok(Grain::At(host)) if layout.compressed.is_some() => Mapping::Compressed(host),
                Ok(Grain::At(host)) => Mapping::Data(host.saturating_add(in_grain)),
            };
            Some(Ok(Run {
                len: layout.grain.saturating_sub(in_grain),
                mapping,
            }))
        };
        let mut run = decode(in_grain).ok_or_else(outside)??;
        // No further than the table: what follows it is another one.
        let in_table = reach.saturating_sub(in_reach);
        while run.len < max && run.len < in_table {
            let Some(Ok(next)) = decode(0) else { break };
            let Some(joined) = run.join(next) else { break };
            run = joined;
        }
        Ok(Run {
            len: run.len.min(left),
            ..run
        })
    }

    /// The grain that starts at `start` of the extent and is stored compressed at `host`.
    fn compressed(&self, start: u64, host: u64) -> Result<Cluster> {
        let load = || {
            self.decompress(start, host)
                .map_err(|e| e.within(format!("compressed grain at {host}")))
        };
        if self.live {
            return load();
        }
        self.cache.get_or_load(self.grains, start, load)
    }

    fn decompress(&self, start: u64, host: u64) -> Result<Cluster> {
        let cut = || BlockError::damaged("the grain is not completely in the file");
        let available = self.tables.file().len().saturating_sub(host);
        // As QEMU: marker and data are at most twice a grain.
        let most = self.layout.grain.saturating_mul(2).min(available);
        let first = to_usize(FIRST_READ.min(most)).ok_or_else(cut)?;
        let mut input = self.tables.file().read_vec(host, first)?;
        let markers = self.layout.compressed == Some(true);
        let wanted = if markers {
            let len = le32(&input, 8).map(u64::from).ok_or_else(cut)?;
            let whole = len.saturating_add(MARKER);
            if len == 0 || whole > most {
                return Err(BlockError::damaged(format!(
                    "the grain's marker announces {len} bytes, which cannot be"
                )));
            }
            to_usize(whole)
        } else {
            to_usize(most)
        }
        .ok_or_else(cut)?;
        if let Some(more @ 1..) = wanted.checked_sub(first) {
            let at = host.saturating_add(to_u64(first));
            input.extend(self.tables.file().read_vec(at, more)?);
        }
        let skip = if markers {
            to_usize(MARKER).unwrap_or(0)
        } else {
            0
        };
        let data = input.get(skip..wanted).ok_or_else(cut)?;
        let mut grain: Cluster =
            std::iter::repeat_n(0, to_usize(self.layout.grain).ok_or_else(cut)?).collect();
        let buf = Arc::get_mut(&mut grain).ok_or_else(cut)?;
        let written = inflate(data, buf)?;
        // The last grain of a disk may end with the disk.
        let needed = self.layout.capacity.saturating_sub(start);
        if written < needed.min(self.layout.grain) {
            return Err(BlockError::damaged(
                "the grain is shorter than it should be when decompressed",
            ));
        }
        Ok(grain)
    }

    /// Reads what is stored at `host` and belongs at `at` of the extent.
    fn read_data(&self, at: u64, host: u64, buf: &mut [u8]) -> Result<()> {
        let mut read = self.file.read_some_at(host, buf)?;
        if read == buf.len() {
            return Ok(());
        }
        let file = self.tables.file();
        read = file.read_some_at(host, buf)?;
        // The last grain of a file need not be there to its end, but its beginning must be.
        let last = to_u64(buf.len()).saturating_sub(1);
        let (_, in_grain) = self.grain_of(at.saturating_add(last));
        let grain = host.saturating_add(last).saturating_sub(in_grain);
        if grain >= file.len() {
            return Err(BlockError::damaged(format!(
                "a grain at {grain} is outside the file, which may have been cut short"
            )));
        }
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// Decompresses one zlib stream, after which `input` may hold anything; returns its length.
fn inflate(input: &[u8], grain: &mut [u8]) -> Result<u64> {
    INFLATE.with_borrow_mut(|decoder| {
        let decoder = match decoder {
            Some(decoder) => {
                decoder.reset(true);
                decoder
            }
            None => decoder.insert(Decompress::new(true)),
        };
        match decoder.decompress(input, grain, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => Ok(decoder.total_out()),
            _ => Err(BlockError::damaged(
                "the grain's data are no zlib stream of at most one grain",
            )),
        }
    })
}

fn outside() -> BlockError {
    BlockError::damaged("a table ends before the entry that is needed")
}

impl BlockBackend for SparseExtent {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.source.layout.capacity,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(to_u64(buf.len()));
        let mut at = offset;
        let mut rest = buf;
        let mut noted = false;
        while !rest.is_empty() {
            let run = self
                .run_at(at, to_u64(rest.len()))
                .map_err(|e| e.within(format!("vmdk mapping of offset {at} of the extent")))?;
            let len = to_usize(run.len).unwrap_or(usize::MAX).min(rest.len());
            let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
                return Err(outside());
            };
            match run.mapping {
                Mapping::Data(host) => self.source.read_data(at, host, piece)?,
                Mapping::Zero => piece.fill(0),
                Mapping::Absent => self.read_parent(at, piece)?,
                Mapping::Compressed(host) => {
                    if !noted {
                        noted = true;
                        self.decompress_soon(at.saturating_add(run.len), end);
                        if let Some((from, to)) = self.streams.note(offset, end) {
                            self.decompress_soon(from, to);
                        }
                    }
                    let (start, within) = self.source.grain_of(at);
                    let grain = self.source.compressed(start, host)?;
                    let from = to_usize(within)
                        .and_then(|w| slice(&grain, w, piece.len()))
                        .ok_or_else(outside)?;
                    piece.copy_from_slice(from);
                }
            }
            at = at.saturating_add(run.len);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.run_at(offset, len)?;
        let plain = Extent::data(run.len);
        Ok(match run.mapping {
            Mapping::Data(host) => Extent {
                host_offset: Some(host),
                ..plain
            },
            Mapping::Zero => Extent {
                kind: ExtentKind::Zero,
                ..plain
            },
            Mapping::Compressed(_) => Extent {
                compressed: true,
                ..plain
            },
            Mapping::Absent => match &self.parent {
                Some(parent) if offset < parent.len() => {
                    let inside = parent.len().saturating_sub(offset);
                    let below = parent.extent_at(offset, run.len.min(inside))?;
                    Extent {
                        depth: below.depth.saturating_add(1),
                        ..below
                    }
                }
                _ => Extent::hole(run.len),
            },
        })
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len.min(READ_AHEAD.saturating_mul(2)));
        let mut at = offset;
        while at < end {
            let Ok(run) = self.run_at(at, end.saturating_sub(at)) else {
                return;
            };
            match run.mapping {
                Mapping::Data(host) => self.source.file.prefetch(host, run.len),
                Mapping::Compressed(_) => self.decompress_soon(at, at.saturating_add(run.len)),
                Mapping::Absent => {
                    if let Some(parent) = &self.parent {
                        parent.prefetch(at, run.len);
                    }
                }
                Mapping::Zero => {}
            }
            at = at.saturating_add(run.len);
        }
    }
}
