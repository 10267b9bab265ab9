//! What comes out of compressed data, as a device.
//!
//! Decoders go forward only. What they produce is cut into pieces that live in the process-wide
//! cluster cache; a decoder that was not used up is kept for the next piece of its part, so that
//! readers who go forward pay for each byte once, also where several take turns. For that, parts
//! of more than one piece are decoded under a lock, of which there are [`LANES`]. Beyond the cache,
//! an image costs its list of parts and one decoder for each lane.
//!
//! Lock order: a piece's mark in the cache, then a lane. Nothing waits for a mark in a lane.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::units::{Unit, Units};
use super::{Kind, gzip, xz, zstd};
use crate::block::cache::{Cluster, ClusterCache, SourceId};
use crate::block::{BlockBackend, BlockDevice, BlockError, Extent, Geometry, Result};
use crate::formats::qcow2::decompress::submit;
use crate::formats::read_ahead::{READ_AHEAD, Streams};
use crate::ondisk::bytes::slice;
use crate::ondisk::units::{to_u64, to_usize};

/// What is decoded and kept at once, in bytes, where a part is larger.
const PIECE: u64 = 1 << 20;
/// Large parts that can be decoded at the same time.
const LANES: usize = 4;
/// Pieces kept for readers who wait for them, in each lane.
const MAX_PASSED: usize = 16;

/// Decodes one part from its beginning to its end.
pub trait Decoder: Send {
    /// Fills the beginning of `out`; returns the length, 0 only at the end of the part.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`], or what reading reports.
    fn fill(&mut self, out: &mut [u8]) -> Result<usize>;

    /// Checks that the part ends here, and its checksum.
    ///
    /// # Errors
    /// As [`Decoder::fill`].
    fn finish(&mut self) -> Result<()>;
}

/// A decoder on its way through a part.
struct Cursor {
    unit: usize,
    position: u64,
    decoder: Box<dyn Decoder>,
}

struct Source {
    file: BlockDevice,
    kind: Kind,
    units: Units,
    cache: Arc<ClusterCache>,
    id: SourceId,
    lanes: [Mutex<Lane>; LANES],
}

/// Where decoding of large parts stands.
#[derive(Default)]
struct Lane {
    cursor: Option<Cursor>,
    /// Pieces that were decoded on the way to another while somebody waited for them.
    passed: Vec<(u64, Cluster)>,
}

impl Source {
    fn decoder(&self, unit: &Unit) -> Result<Box<dyn Decoder>> {
        let Unit { at, stored, .. } = *unit;
        Ok(match self.kind {
            Kind::Gzip => Box::new(gzip::Member::new(&self.file, at, stored)),
            Kind::Xz => Box::new(xz::Block::new(&self.file, at, stored, unit.flags)),
            Kind::Zstd => Box::new(zstd::Frame::new(&self.file, at, stored)?),
        })
    }

    fn start(&self, number: usize, unit: &Unit) -> Result<Cursor> {
        Ok(Cursor {
            unit: number,
            position: 0,
            decoder: self.decoder(unit)?,
        })
    }

    /// The piece that starts at `target` of part `number`.
    fn piece(&self, number: usize, target: u64) -> Result<Cluster> {
        let unit = *self.units.get(number).ok_or_else(outside)?;
        let key = unit.start.saturating_add(target);
        self.cache.get_or_load(self.id, key, || {
            if unit.len <= PIECE {
                return next_piece(&mut self.start(number, &unit)?, &unit);
            }
            let lane = number.checked_rem(LANES).and_then(|n| self.lanes.get(n));
            let mut lane = lane.ok_or_else(outside)?.lock();
            self.decode_to(&mut lane, number, &unit, target)
        })
    }

    /// Decodes a large part up to the piece that starts at `target`.
    fn decode_to(
        &self,
        lane: &mut Lane,
        number: usize,
        unit: &Unit,
        target: u64,
    ) -> Result<Cluster> {
        let key = |position: u64| unit.start.saturating_add(position);
        let passed = lane.passed.iter().position(|(k, _)| *k == key(target));
        if let Some(index) = passed {
            return Ok(lane.passed.swap_remove(index).1);
        }
        // An error drops the cursor with what it got wrong.
        let mut cursor = match lane.cursor.take() {
            Some(cursor) if cursor.unit == number && cursor.position <= target => cursor,
            _ => self.start(number, unit)?,
        };
        loop {
            let position = cursor.position;
            let piece = next_piece(&mut cursor, unit)?;
            if position == target {
                if cursor.position < unit.len {
                    lane.cursor = Some(cursor);
                }
                return Ok(piece);
            }
            if !self.cache.offer(self.id, key(position), &piece) {
                if lane.passed.len() >= MAX_PASSED {
                    lane.passed.remove(0);
                }
                lane.passed.push((key(position), piece));
            }
        }
    }
}

/// Decodes the next piece of a part; checks the part after its last.
fn next_piece(cursor: &mut Cursor, unit: &Unit) -> Result<Cluster> {
    decode_piece(cursor, unit)
        .map_err(|e| e.within(format!("the compressed data at {} of the file", unit.at)))
}

fn decode_piece(cursor: &mut Cursor, unit: &Unit) -> Result<Cluster> {
    let len = unit.len.saturating_sub(cursor.position).min(PIECE);
    let len = to_usize(len).filter(|len| *len > 0).ok_or_else(outside)?;
    let mut piece: Cluster = std::iter::repeat_n(0, len).collect();
    let mut rest = Arc::get_mut(&mut piece).ok_or_else(outside)?;
    while !rest.is_empty() {
        let written = cursor.decoder.fill(rest)?;
        if written == 0 {
            return Err(BlockError::damaged("they unpack to less than they say"));
        }
        rest = rest.get_mut(written..).ok_or_else(outside)?;
    }
    cursor.position = cursor.position.saturating_add(to_u64(len));
    if cursor.position == unit.len {
        cursor.decoder.finish()?;
    }
    Ok(piece)
}

fn outside() -> BlockError {
    BlockError::damaged("there is no such place in the compressed data")
}

/// See the module text.
pub struct View {
    source: Arc<Source>,
    streams: Streams,
}

impl View {
    /// What comes out of the parts `units` of `file`.
    pub fn new(file: BlockDevice, kind: Kind, units: Units, cache: Arc<ClusterCache>) -> Self {
        Self {
            source: Arc::new(Source {
                file,
                kind,
                units,
                cache,
                id: SourceId::fresh(),
                lanes: Default::default(),
            }),
            streams: Streams::default(),
        }
    }

    /// Hands parts of one piece to the workers. Larger ones would be decoded several times over
    /// if they were started in the middle.
    fn decompress_soon(&self, from: u64, end: u64) {
        let units = &self.source.units;
        let Some(mut number) = units.find(from) else {
            return;
        };
        while let Some(unit) = units.get(number).filter(|unit| unit.start < end) {
            let source = &self.source;
            if unit.len <= PIECE && !source.cache.has_or_loads(source.id, unit.start) {
                // Weak, so that a job that waits does not keep the file open and locked.
                let source: Weak<Source> = Arc::downgrade(source);
                let queued = submit(Box::new(move || {
                    if let Some(source) = source.upgrade() {
                        let _ = source.piece(number, 0);
                    }
                }));
                if !queued {
                    return;
                }
            }
            number = number.saturating_add(1);
        }
    }
}

impl BlockBackend for View {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.source.units.total_len(),
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(to_u64(buf.len()));
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let number = self.source.units.find(at).ok_or_else(outside)?;
            let unit = self.source.units.get(number).ok_or_else(outside)?;
            if at == offset {
                let unit_end = unit.start.saturating_add(unit.len);
                self.decompress_soon(unit_end, end);
                if let Some((from, to)) = self.streams.note(offset, end) {
                    self.decompress_soon(from, to);
                }
            }
            let in_unit = at.saturating_sub(unit.start);
            let within = in_unit.checked_rem(PIECE).ok_or_else(outside)?;
            let piece = self.source.piece(number, in_unit.saturating_sub(within))?;
            let within = to_usize(within).ok_or_else(outside)?;
            let len = piece.len().saturating_sub(within).min(rest.len());
            let from = slice(&piece, within, len)
                .filter(|from| !from.is_empty())
                .ok_or_else(outside)?;
            let (head, tail) = rest.split_at_mut_checked(len).ok_or_else(outside)?;
            head.copy_from_slice(from);
            at = at.saturating_add(to_u64(len));
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, _offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent {
            compressed: true,
            ..Extent::data(len)
        })
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let len = len.min(READ_AHEAD.saturating_mul(2));
        self.decompress_soon(offset, offset.saturating_add(len));
    }
}
