//! The parts of compressed data that can be decompressed by themselves, and where they belong in
//! what comes out.

use crate::block::BlockDevice;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::limits;
use crate::ondisk::units::to_usize;

/// Largest part that is decompressed to read from its middle, in bytes.
pub const MAX_UNIT: u64 = 64 << 20;
/// Most parts of one file: those of 64 GiB in BGZF, whose parts are the smallest in use.
const MAX_UNITS: usize = 1 << 20;
/// Most bytes decompressed to find the parts where nothing tells where they are.
pub const MAX_SCAN: u64 = 8 << 30;

/// One such part: a gzip member, an xz block, a zstd frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where it starts in what comes out.
    pub start: u64,
    /// How long it is there; not 0.
    pub len: u64,
    /// Where it is in the file.
    pub at: u64,
    /// How long it is there.
    pub stored: u64,
    /// What a decoder has to know beside that: for xz, the stream flags.
    pub flags: u16,
}

/// All parts in order.
#[derive(Debug, Default)]
pub struct Units {
    list: Vec<Unit>,
    len: u64,
}

impl Units {
    /// Adds the next part: `len` bytes that are stored in `stored` bytes at `at`.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] if there are too many, [`FormatErrorKind::Damaged`] if
    /// they are too large together.
    pub fn push(&mut self, at: u64, stored: u64, len: u64, flags: u16) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if self.list.len() >= MAX_UNITS {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!("the compressed data consist of more than {MAX_UNITS} parts"),
            )
            .with_hint("unpack it first"));
        }
        let start = self.len;
        self.len = start
            .checked_add(len)
            .filter(|end| *end <= limits::MAX_DEVICE_BYTES)
            .ok_or_else(|| {
                FormatError::new(FormatErrorKind::Damaged, "the disk would be too large")
            })?;
        self.list.push(Unit {
            start,
            len,
            at,
            stored,
            flags,
        });
        Ok(())
    }

    /// Bytes that come out.
    pub fn total_len(&self) -> u64 {
        self.len
    }

    /// Number of parts.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Length of the largest part.
    pub fn largest(&self) -> u64 {
        self.list.iter().map(|unit| unit.len).max().unwrap_or(0)
    }

    /// The part of this number.
    pub fn get(&self, number: usize) -> Option<&Unit> {
        self.list.get(number)
    }

    /// Number of the part that holds `offset` of what comes out.
    pub fn find(&self, offset: u64) -> Option<usize> {
        let after = self.list.partition_point(|unit| unit.start <= offset);
        after.checked_sub(1).filter(|_| offset < self.len)
    }
}

/// Reads a stretch of a file forward through a buffer.
pub struct Feed {
    file: BlockDevice,
    /// File offset of the first byte of `buffer` that was not taken.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    taken: usize,
}

/// Bytes read at once.
const FEED_BYTES: u64 = 64 << 10;

impl Feed {
    /// The `len` bytes at `at`, as far as the file has them.
    pub fn new(file: BlockDevice, at: u64, len: u64) -> Self {
        let end = at.saturating_add(len).min(file.len());
        Self {
            file,
            at,
            end,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// File offset of the next byte.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The bytes that come next; none at the end.
    ///
    /// # Errors
    /// What reading reports.
    pub fn peek(&mut self) -> crate::block::Result<&[u8]> {
        self.peek_at_least(1)
    }

    /// The same, at least `len` of them unless the end comes first. `len` is small.
    ///
    /// # Errors
    /// What reading reports.
    pub fn peek_at_least(&mut self, len: usize) -> crate::block::Result<&[u8]> {
        let have = self.buffer.len().saturating_sub(self.taken);
        if have < len {
            let more = self.end.saturating_sub(self.at);
            let size = more.min(FEED_BYTES.max(crate::ondisk::units::to_u64(len)));
            self.buffer = self.file.read_vec(self.at, to_usize(size).unwrap_or(0))?;
            self.taken = 0;
        }
        Ok(self.buffer.get(self.taken..).unwrap_or_default())
    }

    /// Takes the next `len` bytes, which were seen.
    pub fn take(&mut self, len: usize) {
        self.taken = self.taken.saturating_add(len);
        self.at = self.at.saturating_add(crate::ondisk::units::to_u64(len));
    }

    /// Goes to a file offset further on.
    pub fn skip_to(&mut self, at: u64) {
        let ahead = to_usize(at.saturating_sub(self.at)).unwrap_or(usize::MAX);
        if self.taken.saturating_add(ahead) <= self.buffer.len() {
            self.take(ahead);
        } else {
            self.buffer.clear();
            self.taken = 0;
            self.at = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::MemoryBackend;

    #[test]
    fn parts_are_found() {
        let mut units = Units::default();
        for len in [5, 0, 1, 10] {
            units.push(0, 1, len, 0).unwrap();
        }
        let found: Vec<_> = (0..18).map(|at| units.find(at)).collect();
        assert_eq!(
            found[..6],
            [Some(0), Some(0), Some(0), Some(0), Some(0), Some(1)]
        );
        assert!(found[6..16].iter().all(|f| *f == Some(2)));
        assert_eq!(found[16..], [None, None]);
        assert!(units.push(0, 1, u64::MAX - 3, 0).is_err());
    }

    #[test]
    fn a_feed_goes_forward() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let file = MemoryBackend::from_bytes(bytes.clone()).into_device();
        let mut feed = Feed::new(file, 10, 150_000);
        assert_eq!(feed.peek_at_least(4).unwrap()[..4], bytes[10..14]);
        feed.take(3);
        feed.skip_to(66_000);
        feed.take(1);
        assert_eq!(feed.peek().unwrap()[..9], bytes[66_001..66_010]);
        feed.skip_to(150_000);
        assert_eq!(feed.peek_at_least(20).unwrap(), &bytes[150_000..150_010]);
        feed.take(10);
        assert!(feed.peek().unwrap().is_empty());
    }
}
