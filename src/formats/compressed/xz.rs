//! xz: streams of blocks, with an index at the end of each stream.
//!
//! Only the index is read to find the blocks; a block is decoded by itself. The decoder is a crate
//! that was not written for hostile input in the first place, so a panic in it is caught and is
//! damage.
//!
//! Specification: The .xz File Format, version 1.2.0.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lzma_rust2::{Action, XzStream};

use super::units::{Feed, Units};
use super::view::Decoder;
use crate::block::{BlockDevice, BlockError};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{array, is_zero, le32, slice};
use crate::ondisk::units::{to_u64, to_usize};

const HEADER: u64 = 12;
const MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// Longest index of one stream.
const MAX_INDEX: u64 = 32 << 20;
/// Memory for one decoder in KiB: a dictionary of 64 MiB (`xz -9`), and a little.
const MEMORY_KIB: u32 = 72 << 10;
/// Zeroes behind a stream that are skipped.
const MAX_PADDING: u64 = 1 << 20;

fn damaged(what: &str) -> FormatError {
    FormatError::new(
        FormatErrorKind::Damaged,
        format!("the xz data are damaged: {what}"),
    )
}

/// A variable-length integer at `at` of `bytes`, and where it ends.
fn integer(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(at)?;
        at = at.checked_add(1)?;
        value |= u64::from(byte & 0x7f).wrapping_shl(shift);
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// One stream: where it starts, and its blocks as (stored, unpacked) bytes.
struct Stream {
    start: u64,
    flags: u16,
    blocks: Vec<(u64, u64)>,
}

/// Finds the blocks of all streams.
///
/// # Errors
/// [`FormatErrorKind::Damaged`], [`FormatErrorKind::Unsupported`] if there are too many.
pub fn find(file: &BlockDevice) -> Result<Units> {
    let mut streams = Vec::new();
    let mut end = file.len();
    let mut blocks = 0_usize;
    while end > 0 {
        let stream = read_stream(file, skip_padding(file, end)?)?;
        end = stream.start;
        blocks = blocks.saturating_add(stream.blocks.len());
        // The streams come last to first, so what there is of them is bounded before it is listed.
        if streams.len() > 1 << 16 || blocks > 1 << 21 {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                "the xz data consist of too many blocks",
            )
            .with_hint(super::HINT));
        }
        streams.push(stream);
    }
    let mut units = Units::default();
    for stream in streams.into_iter().rev() {
        let mut at = stream.start.saturating_add(HEADER);
        for (stored, unpacked) in stream.blocks {
            units.push(at, stored, unpacked, stream.flags)?;
            at = at.saturating_add(stored);
        }
    }
    Ok(units)
}

/// Where the zeroes in front of `end` begin, which come in fours.
fn skip_padding(file: &BlockDevice, end: u64) -> Result<u64> {
    let from = end.saturating_sub(MAX_PADDING);
    // Looked at closely only if there is any.
    let mut last = [1; 4];
    if let Some(at) = end.checked_sub(4) {
        file.read_exact_at(at, &mut last)?;
    }
    if last != [0; 4] {
        return Ok(end);
    }
    let tail = file.read_vec(from, to_usize(end.saturating_sub(from)).unwrap_or(0))?;
    let zeroes = tail.iter().rev().take_while(|b| **b == 0).count();
    Ok(end.saturating_sub(to_u64(zeroes) & !3))
}

fn read_stream(file: &BlockDevice, end: u64) -> Result<Stream> {
    let cut = || damaged("the end is not that of an xz stream; they may have been cut short");
    let footer_at = end.checked_sub(HEADER).ok_or_else(cut)?;
    let footer: [u8; 12] = array(&file.read_vec(footer_at, 12)?, 0).ok_or_else(cut)?;
    if array(&footer, 10) != Some(FOOTER_MAGIC)
        || le32(&footer, 0) != Some(crc32fast::hash(footer.get(4..10).unwrap_or_default()))
    {
        return Err(cut());
    }
    let size = le32(&footer, 4).map(u64::from).ok_or_else(cut)?;
    let index_len = size.saturating_add(1).saturating_mul(4);
    if index_len > MAX_INDEX {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("an xz index of {index_len} bytes is too large"),
        )
        .with_hint(super::HINT));
    }
    let index_at = footer_at.checked_sub(index_len).ok_or_else(cut)?;
    let index = file.read_vec(index_at, to_usize(index_len).unwrap_or(0))?;
    let blocks = parse_index(&index).ok_or_else(|| damaged("an index is not valid"))?;
    let stored = blocks
        .iter()
        .try_fold(0_u64, |sum, (stored, _)| sum.checked_add(*stored));
    let start = stored
        .and_then(|stored| index_at.checked_sub(stored)?.checked_sub(HEADER))
        .ok_or_else(|| damaged("an index leads outside the file"))?;
    let header = file.read_vec(start, 12)?;
    let flags = slice(&header, 6, 2);
    if !header.starts_with(MAGIC)
        || flags != slice(&footer, 8, 2)
        || le32(&header, 8) != flags.map(crc32fast::hash)
    {
        return Err(damaged(
            "an index does not lead to the beginning of its stream",
        ));
    }
    let flags = flags
        .and_then(|f| Some(u16::from_le_bytes(f.try_into().ok()?)))
        .unwrap_or(0);
    Ok(Stream {
        start,
        flags,
        blocks,
    })
}

/// The records of an index: stored size with padding, unpacked size.
fn parse_index(index: &[u8]) -> Option<Vec<(u64, u64)>> {
    let body = index.get(..index.len().checked_sub(4)?)?;
    if le32(index, body.len())? != crc32fast::hash(body) || *body.first()? != 0 {
        return None;
    }
    let (count, mut at) = integer(body, 1)?;
    // Two bytes a record at least.
    if count > to_u64(body.len()) / 2 {
        return None;
    }
    let mut blocks = Vec::with_capacity(to_usize(count)?);
    for _ in 0..count {
        let (stored, next) = integer(body, at)?;
        let (unpacked, next) = integer(body, next)?;
        at = next;
        if stored == 0 {
            return None;
        }
        blocks.push((stored.checked_next_multiple_of(4)?, unpacked));
    }
    let padding = body.get(at..)?;
    (padding.len() < 4 && is_zero(padding)).then_some(blocks)
}

/// Decoder of one block.
pub struct Block {
    feed: Feed,
    stream: XzStream,
    header: Vec<u8>,
    failed: bool,
}

impl Block {
    /// The block in `stored` bytes at `at`, of a stream with these flags.
    pub fn new(file: &BlockDevice, at: u64, stored: u64, flags: u16) -> Self {
        let flags = flags.to_le_bytes();
        let mut header = MAGIC.to_vec();
        header.extend(flags);
        header.extend(crc32fast::hash(&flags).to_le_bytes());
        Self {
            feed: Feed::new(file.clone(), at, stored),
            stream: XzStream::new_mem_limit(false, MEMORY_KIB),
            header,
            failed: false,
        }
    }

    /// Decodes into `out` until that is full or nothing is left to decode; returns the length.
    fn decode(&mut self, out: &mut [u8]) -> crate::block::Result<usize> {
        let mut written = 0_usize;
        loop {
            let from_header = !self.header.is_empty();
            let input = if from_header {
                self.header.as_slice()
            } else {
                self.feed.peek()?
            };
            let given = input.len();
            let rest = out.get_mut(written..).unwrap_or_default();
            let stream = &mut self.stream;
            let result = catch_unwind(AssertUnwindSafe(|| {
                stream.process(input, rest, Action::Run)
            }));
            let result = match result {
                Ok(Ok(result)) => result,
                other => {
                    self.failed = true;
                    let why = match other {
                        Ok(Err(e)) => e.to_string(),
                        _ => "the decoder failed".into(),
                    };
                    return Err(BlockError::damaged(format!(
                        "an xz block cannot be decoded: {why}"
                    )));
                }
            };
            if from_header {
                self.header
                    .drain(..result.bytes_consumed.min(self.header.len()));
            } else {
                self.feed.take(result.bytes_consumed);
            }
            written = written.saturating_add(result.bytes_produced);
            let idle = result.bytes_consumed == 0 && result.bytes_produced == 0;
            if written >= out.len() && !out.is_empty() || given == 0 || idle {
                return Ok(written);
            }
        }
    }
}

impl Decoder for Block {
    fn fill(&mut self, out: &mut [u8]) -> crate::block::Result<usize> {
        if self.failed {
            return Err(BlockError::damaged("an xz block cannot be decoded"));
        }
        self.decode(out)
    }

    fn finish(&mut self) -> crate::block::Result<()> {
        // Padding and checksum are input that is left, and are checked as they are taken.
        if self.fill(&mut [0; 1])? != 0 || !self.feed.peek()?.is_empty() {
            return Err(BlockError::damaged(
                "an xz block is not as long as the index says",
            ));
        }
        Ok(())
    }
}
