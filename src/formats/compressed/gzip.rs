//! gzip: members, each a deflate stream with a header and a trailer.
//!
//! BGZF, the blocked form of bgzip and htslib, says in each member's header how long the member is.
//! Where that is missing, the members are found by decompressing everything once.
//!
//! Specification: RFC 1952; SAM/BAM format specification, section 4.1 (BGZF).

use flate2::{Decompress, FlushDecompress, Status};

use super::units::{Feed, MAX_SCAN, MAX_UNIT, Units};
use super::view::Decoder;
use crate::block::{BlockDevice, BlockError};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::bytes::{le16, le32, slice};
use crate::ondisk::units::{to_u64, to_usize};

/// Longest header that is read: names and comments have no bound of their own.
const MAX_HEADER: usize = 64 << 10;
/// Bytes behind the deflate stream: checksum (4), length (4).
const TRAILER: usize = 8;
/// Padding that is looked at behind the last member.
const MAX_PADDING: u64 = 1 << 20;

/// A member's header.
struct MemberHeader {
    len: usize,
    /// Size of the whole member, where BGZF says so.
    member: Option<u64>,
}

impl MemberHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        const CHECKSUM: u8 = 2;
        const EXTRA: u8 = 4;
        const NAME: u8 = 8;
        const COMMENT: u8 = 16;
        if bytes.get(..3)? != b"\x1f\x8b\x08" {
            return None;
        }
        let flags = *bytes.get(3)?;
        let mut at = 10_usize;
        let mut member = None;
        if flags & EXTRA != 0 {
            let len = usize::from(le16(bytes, at)?);
            at = at.checked_add(2)?;
            let mut extra = slice(bytes, at, len)?;
            while let (Some(id), Some(size)) = (extra.get(..2), le16(extra, 2)) {
                let size = usize::from(size);
                let value = slice(extra, 4, size)?;
                if id == b"BC" && size == 2 {
                    member = le16(value, 0).map(|last| u64::from(last).saturating_add(1));
                }
                extra = extra.get(size.checked_add(4)?..)?;
            }
            at = at.checked_add(len)?;
        }
        for flag in [NAME, COMMENT] {
            if flags & flag != 0 {
                let text = bytes.get(at..)?;
                let end = text.iter().position(|&b| b == 0)?;
                at = at.checked_add(end)?.checked_add(1)?;
            }
        }
        if flags & CHECKSUM != 0 {
            at = at.checked_add(2)?;
        }
        bytes.get(..at)?;
        Some(Self { len: at, member })
    }

    fn read(feed: &mut Feed) -> Result<Self, BlockError> {
        // Most headers are short; a long one is read again as a whole.
        if let Some(header) = Self::parse(feed.peek_at_least(512)?) {
            return Ok(header);
        }
        Self::parse(feed.peek_at_least(MAX_HEADER)?)
            .ok_or_else(|| BlockError::damaged("a gzip member has no valid header"))
    }
}

/// Finds the members. `any_size`: also where nothing can be read from the middle of one.
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] if they are too large or too many, [`FormatErrorKind::Damaged`].
pub fn find(file: &BlockDevice, any_size: bool) -> Result<Units> {
    match find_blocked(file)? {
        Some(units) => Ok(units),
        None => find_by_decoding(file, any_size),
    }
}

fn find_blocked(file: &BlockDevice) -> Result<Option<Units>> {
    let mut feed = Feed::new(file.clone(), 0, file.len());
    let mut units = Units::default();
    while feed.position() < file.len() {
        let at = feed.position();
        let Ok(header) = MemberHeader::read(&mut feed) else {
            return Ok(None);
        };
        let Some(len) = header.member else {
            return Ok(None);
        };
        let end = at.saturating_add(len);
        if end > file.len() || len < to_u64(header.len.saturating_add(TRAILER)) {
            return Ok(None);
        }
        feed.skip_to(end.saturating_sub(4));
        let Some(out) = le32(feed.peek_at_least(4)?, 0) else {
            return Ok(None);
        };
        feed.take(4);
        units.push(at, len, out.into(), 0)?;
    }
    Ok(Some(units))
}

fn find_by_decoding(file: &BlockDevice, any_size: bool) -> Result<Units> {
    let mut units = Units::default();
    let mut at = 0;
    let mut scratch = vec![0; 256 << 10];
    while at < file.len() {
        if at > 0 && is_padding(file, at)? {
            break;
        }
        let mut member = Member::new(file, at, file.len().saturating_sub(at));
        let mut len = 0_u64;
        loop {
            match member.fill(&mut scratch)? {
                0 => break,
                more => len = len.saturating_add(to_u64(more)),
            }
            if !any_size && len > MAX_UNIT {
                return Err(super::no_random_access("gzip", len));
            }
            if !any_size && units.total_len().saturating_add(len) > MAX_SCAN {
                return Err(FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!("the gzip data say nowhere where their members are, and unpack to more than the {MAX_SCAN} bytes that are searched"),
                )
                .with_hint(super::HINT));
            }
        }
        member.finish()?;
        let end = member.feed.position();
        units.push(at, end.saturating_sub(at), len, 0)?;
        at = end;
    }
    Ok(units)
}

/// Whether only zeroes follow, as on tapes and devices.
fn is_padding(file: &BlockDevice, at: u64) -> Result<bool> {
    let mut head = [0; 2];
    file.read_some_at(at, &mut head)?;
    if head != [0; 2] {
        return Ok(false);
    }
    let len = file.len().saturating_sub(at).min(MAX_PADDING);
    let rest = file.read_vec(at, to_usize(len).unwrap_or(0))?;
    Ok(crate::ondisk::bytes::is_zero(&rest))
}

/// Decoder of one member.
pub struct Member {
    feed: Feed,
    inflate: Decompress,
    started: bool,
    ended: bool,
    checksum: crc32fast::Hasher,
    len: u64,
}

impl Member {
    /// The member in `stored` bytes at `at`.
    pub fn new(file: &BlockDevice, at: u64, stored: u64) -> Self {
        Self {
            feed: Feed::new(file.clone(), at, stored),
            inflate: Decompress::new(false),
            started: false,
            ended: false,
            checksum: crc32fast::Hasher::new(),
            len: 0,
        }
    }
}

impl Decoder for Member {
    fn fill(&mut self, out: &mut [u8]) -> crate::block::Result<usize> {
        if !self.started {
            let header = MemberHeader::read(&mut self.feed)?;
            self.feed.take(header.len);
            self.started = true;
        }
        while !self.ended {
            let input = self.feed.peek()?;
            let at_end = input.is_empty();
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, out, FlushDecompress::None)
                .map_err(|_| BlockError::damaged("the deflate data are damaged"))?;
            let read = self.inflate.total_in().saturating_sub(read);
            let written = self.inflate.total_out().saturating_sub(written);
            self.feed.take(to_usize(read).unwrap_or(usize::MAX));
            self.ended = status == Status::StreamEnd;
            if written > 0 {
                let written = to_usize(written).unwrap_or(usize::MAX);
                self.checksum.update(out.get(..written).unwrap_or_default());
                self.len = self.len.saturating_add(to_u64(written));
                return Ok(written);
            }
            if !self.ended && (at_end || read == 0) {
                return Err(BlockError::damaged("the gzip data end too early"));
            }
        }
        Ok(0)
    }

    fn finish(&mut self) -> crate::block::Result<()> {
        if !self.ended && self.fill(&mut [0; 1])? != 0 {
            return Err(BlockError::damaged("a gzip member is longer than it says"));
        }
        let trailer = self.feed.peek_at_least(TRAILER)?;
        let (checksum, len) = (le32(trailer, 0), le32(trailer, 4));
        let expected = self.checksum.clone().finalize();
        // The length is kept modulo 2^32.
        let same_len = len.map(u64::from) == Some(self.len & u64::from(u32::MAX));
        if checksum != Some(expected) || !same_len {
            return Err(BlockError::damaged(
                "the checksum of a gzip member is wrong",
            ));
        }
        self.feed.take(TRAILER);
        Ok(())
    }
}
