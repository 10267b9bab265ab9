//! zstd: frames, each for itself.
//!
//! Where frames are is read from the seek table of the seekable format, or by going from block
//! header to block header. How long a frame is when it is unpacked is in its header, or found by
//! decompressing it once.
//!
//! Specification: RFC 8878; Zstandard seekable format 0.1.0.

use zstd::stream::raw::{DParameter, Decoder as RawDecoder, InBuffer, Operation, OutBuffer};

use super::units::{Feed, MAX_SCAN, MAX_UNIT, Units};
use super::view::Decoder;
use crate::block::{BlockDevice, BlockError};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{array, le16, le32, le64};
use crate::ondisk::units::{to_u64, to_usize};

const MAGIC: u32 = 0xfd2f_b528;
/// Of skippable frames, but for the last four bits.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Of the frame that holds a seek table, and of the table's end.
const SEEK_TABLE: u32 = 0x184d_2a5e;
const SEEKABLE: u32 = 0x8f92_eab1;
/// Largest window of a frame, as a power of two: that of `zstd --ultra` and `--long`.
const WINDOW_LOG: u32 = 27;
/// Longest frame header.
const MAX_HEADER: usize = 18;

fn damaged(what: impl std::fmt::Display) -> FormatError {
    FormatError::new(
        FormatErrorKind::Damaged,
        format!("the zstd data are damaged: {what}"),
    )
}

/// Finds the frames. `any_size`: also where nothing can be read from the middle of one.
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] if they are too large or too many, [`FormatErrorKind::Damaged`].
pub fn find(file: &BlockDevice, any_size: bool) -> Result<Units> {
    match find_by_table(file)? {
        Some(units) => Ok(units),
        None => find_by_headers(file, any_size),
    }
}

/// Whether data begin with a skippable frame and a zstd frame behind it, as pzstd writes them.
pub fn is_behind_skippable(head: &[u8]) -> bool {
    let frame = |at: usize| le32(head, at);
    frame(0).is_some_and(|magic| magic & !0xf == SKIPPABLE)
        && frame(4)
            .and_then(|len| to_usize(u64::from(len).saturating_add(8)))
            .and_then(frame)
            == Some(MAGIC)
}

/// Reads the seek table, if there is one that agrees with the file.
fn find_by_table(file: &BlockDevice) -> Result<Option<Units>> {
    let Some(footer_at) = file.len().checked_sub(9) else {
        return Ok(None);
    };
    let footer: [u8; 9] = array(&file.read_vec(footer_at, 9)?, 0).unwrap_or_default();
    if le32(&footer, 5) != Some(SEEKABLE) {
        return Ok(None);
    }
    let frames = le32(&footer, 0).map_or(0, u64::from);
    let descriptor = array::<1>(&footer, 4).unwrap_or_default();
    let entry = if descriptor[0] & 0x80 != 0 { 12 } else { 8 };
    // The number of frames is bounded before anything is read by it.
    if frames > 1 << 20 || descriptor[0] & 0x7c != 0 {
        return Ok(None);
    }
    let table = frames.saturating_mul(to_u64(entry));
    let Some(start) = footer_at
        .checked_sub(table)
        .and_then(|at| at.checked_sub(8))
    else {
        return Ok(None);
    };
    let bytes = file.read_vec(start, to_usize(table.saturating_add(8)).unwrap_or(0))?;
    let size = le32(&bytes, 4).map(u64::from);
    if le32(&bytes, 0) != Some(SEEK_TABLE) || size != Some(table.saturating_add(9)) {
        return Ok(None);
    }
    let mut units = Units::default();
    let mut at = 0_u64;
    for entry in bytes.get(8..).unwrap_or_default().chunks_exact(entry) {
        let (Some(stored), Some(len)) = (le32(entry, 0), le32(entry, 4)) else {
            return Ok(None);
        };
        units.push(at, stored.into(), len.into(), 0)?;
        at = at.saturating_add(stored.into());
    }
    Ok((at == start).then_some(units))
}

/// What a frame's header says.
struct FrameHeader {
    len: usize,
    content: Option<u64>,
    checksum: bool,
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let descriptor = *bytes.get(4)?;
        let single = descriptor & 0x20 != 0;
        let mut at = 5_usize;
        if !single {
            at = at.checked_add(1)?;
        }
        at = at.checked_add([0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?)?;
        let (width, content) = match descriptor >> 6 {
            0 if single => (1, Some(u64::from(*bytes.get(at)?))),
            0 => (0, None),
            1 => (2, Some(u64::from(le16(bytes, at)?).saturating_add(256))),
            2 => (4, Some(u64::from(le32(bytes, at)?))),
            _ => (8, Some(le64(bytes, at)?)),
        };
        Some(Self {
            len: at.checked_add(width)?,
            content,
            checksum: descriptor & 4 != 0,
        })
    }
}

fn find_by_headers(file: &BlockDevice, any_size: bool) -> Result<Units> {
    let mut feed = Feed::new(file.clone(), 0, file.len());
    let mut units = Units::default();
    let mut scanned = 0_u64;
    while feed.position() < file.len() {
        let at = feed.position();
        let head = feed.peek_at_least(MAX_HEADER)?;
        let magic = le32(head, 0).ok_or_else(|| damaged("they are cut short"))?;
        if magic & !0xf == SKIPPABLE {
            let len = le32(head, 4).ok_or_else(|| damaged("they are cut short"))?;
            feed.skip_to(at.saturating_add(8).saturating_add(len.into()));
            if feed.position() > file.len() {
                return Err(damaged("they are cut short"));
            }
            continue;
        }
        if magic != MAGIC {
            return Err(damaged(format!("there is no frame at {at}")));
        }
        let header = FrameHeader::parse(head).ok_or_else(|| damaged("they are cut short"))?;
        feed.take(header.len);
        skip_blocks(&mut feed, file.len())?;
        if header.checksum {
            feed.skip_to(feed.position().saturating_add(4));
        }
        let end = feed.position();
        if end > file.len() {
            return Err(damaged("they are cut short"));
        }
        let stored = end.saturating_sub(at);
        let len = match header.content {
            Some(len) => len,
            None => {
                let len = measure(file, at, stored, any_size)?;
                scanned = scanned.saturating_add(len);
                if !any_size && scanned > MAX_SCAN {
                    return Err(FormatError::new(
                        FormatErrorKind::Unsupported,
                        format!("the zstd data say nowhere how long they are, and unpack to more than the {MAX_SCAN} bytes that are searched"),
                    )
                    .with_hint(super::HINT));
                }
                len
            }
        };
        units.push(at, stored, len, 0)?;
    }
    Ok(units)
}

/// Goes from block header to block header to the end of a frame's blocks.
fn skip_blocks(feed: &mut Feed, end: u64) -> Result<()> {
    loop {
        let [a, b, c]: [u8; 3] =
            array(feed.peek_at_least(3)?, 0).ok_or_else(|| damaged("they are cut short"))?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        let size = match (header >> 1) & 3 {
            // One byte, repeated.
            1 => 1,
            0 | 2 => header >> 3,
            _ => return Err(damaged("a block is of no known type")),
        };
        let next = feed
            .position()
            .saturating_add(3)
            .saturating_add(size.into());
        if next > end {
            return Err(damaged("they are cut short"));
        }
        feed.skip_to(next);
        if header & 1 != 0 {
            return Ok(());
        }
    }
}

/// How long a frame is when it is unpacked.
fn measure(file: &BlockDevice, at: u64, stored: u64, any_size: bool) -> Result<u64> {
    let mut frame = Frame::new(file, at, stored)?;
    let mut scratch = vec![0; 256 << 10];
    let mut len = 0_u64;
    loop {
        match frame.fill(&mut scratch)? {
            0 => return Ok(len),
            more => len = len.saturating_add(to_u64(more)),
        }
        if !any_size && len > MAX_UNIT {
            return Err(super::no_random_access("zstd", len));
        }
    }
}

/// Decoder of one frame.
pub struct Frame {
    feed: Feed,
    decoder: RawDecoder<'static>,
    ended: bool,
}

impl Frame {
    /// The frame in `stored` bytes at `at`.
    ///
    /// # Errors
    /// If the decoder cannot be set up.
    pub fn new(file: &BlockDevice, at: u64, stored: u64) -> crate::block::Result<Self> {
        let failed = |e| BlockError::io("cannot set up a zstd decoder", e);
        let mut decoder = RawDecoder::new().map_err(failed)?;
        decoder
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
            .map_err(failed)?;
        Ok(Self {
            feed: Feed::new(file.clone(), at, stored),
            decoder,
            ended: false,
        })
    }
}

impl Decoder for Frame {
    fn fill(&mut self, out: &mut [u8]) -> crate::block::Result<usize> {
        while !self.ended {
            let input = self.feed.peek()?;
            let at_end = input.is_empty();
            let mut input = InBuffer::around(input);
            let mut output = OutBuffer::around(&mut *out);
            let more = self
                .decoder
                .run(&mut input, &mut output)
                .map_err(|e| BlockError::damaged(format!("a zstd frame cannot be decoded: {e}")))?;
            let (read, written) = (input.pos(), output.pos());
            self.feed.take(read);
            self.ended = more == 0;
            if written > 0 {
                return Ok(written);
            }
            if !self.ended && (at_end || read == 0) {
                return Err(BlockError::damaged("a zstd frame ends too early"));
            }
        }
        Ok(0)
    }

    fn finish(&mut self) -> crate::block::Result<()> {
        if self.fill(&mut [0; 1])? != 0 || !self.feed.peek()?.is_empty() {
            return Err(BlockError::damaged(
                "a zstd frame is not as long as it says",
            ));
        }
        Ok(())
    }
}
