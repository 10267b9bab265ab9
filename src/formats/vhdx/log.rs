//! The log: updates of tables that may not have reached their place yet.
//!
//! An image that was not closed properly is read through what its log says, kept in memory; the
//! file stays as it is.
//!
//! The log is a ring of entries of whole sectors of 4096 bytes. The entries to replay are those of
//! the valid sequence with the highest number: each has a right checksum, the log's identity and
//! the number after the one before, and the last names the first as its tail.
//!
//! Specification: Microsoft, [MS-VHDX], 2.3 "Log".

use std::collections::BTreeMap;
use std::sync::Arc;

use super::damaged;
use super::header::{Header, sealed};
use crate::block::overlay::OverlayBackend;
use crate::block::{BlockBackend, BlockDevice, ExtentKind, Geometry, Result as BlockResult};
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::limits;
use crate::ondisk::bytes::{array, le32, le64, slice};
use crate::ondisk::units::{to_u64, to_usize, usize_from_u32};
use crate::ondisk::uuid::{Uuid, from_guid};

const SECTOR: u64 = 4096;
const SECTOR_BYTES: usize = 4096;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// Most bytes of entries that are looked at, and so the longest entry. Logs have 1 MiB as a rule.
const MAX_WORK: u64 = 256 << 20;
/// Most changes kept in memory, in bytes.
const MAX_CHANGES: u64 = 64 << 20;
/// Most ranges that are set to zero.
const MAX_ZEROED: usize = 65536;

/// The file as it is after its log was replayed.
pub struct Replayed {
    /// Its content.
    pub device: BlockDevice,
    /// Entries that were replayed.
    pub entries: usize,
}

/// Replays the log of a file, if it holds anything.
///
/// # Errors
/// [`FormatErrorKind::Damaged`], [`FormatErrorKind::Unsupported`] for a log too large for memory,
/// or what reading reports.
pub fn replay(file: &BlockDevice, header: &Header) -> Result<Option<Replayed>> {
    let Some(id) = header.log_id else {
        return Ok(None);
    };
    if header.log.len == 0 {
        return Ok(None);
    }
    let end = header.log.offset.checked_add(header.log.len);
    if end.is_none_or(|end| end > file.len()) {
        return Err(damaged("the log lies outside the file"));
    }
    let ring = Ring {
        log: file.slice(header.log.offset..end.unwrap_or(0))?,
        id,
    };
    let entries = ring.active_sequence()?;
    let Some(last) = entries.last() else {
        return Ok(None);
    };
    if last.flushed_len > file.len() {
        return Err(damaged(format!(
            "the file was cut short: it had {} bytes when its log was written",
            last.flushed_len
        )));
    }
    let mut changes = Changes {
        len: file.len().max(last.file_len),
        ..Changes::default()
    };
    for entry in &entries {
        changes.apply(&ring.read(entry.at, entry.len)?, entry)?;
    }
    Ok(Some(Replayed {
        device: changes.over(file.clone())?,
        entries: entries.len(),
    }))
}

/// The log as a ring.
struct Ring {
    log: BlockDevice,
    id: Uuid,
}

/// A valid entry.
#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    descriptors: u32,
    flushed_len: u64,
    file_len: u64,
}

impl Ring {
    fn wrapped(&self, at: u64) -> u64 {
        at.checked_rem(self.log.len()).unwrap_or(0)
    }

    /// Bytes from `at` on, around the end of the ring.
    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let size = to_usize(len.min(MAX_WORK)).unwrap_or(0);
        let mut buf = vec![0; size];
        let read = self.log.read_some_at(at, &mut buf)?;
        if let Some(rest @ [_, ..]) = buf.get_mut(read..) {
            self.log.read_exact_at(0, rest)?;
        }
        Ok(buf)
    }

    /// The entry at `at`, if there is a valid one. `work` is what may still be looked at.
    fn entry(&self, at: u64, work: &mut u64) -> Result<Option<Entry>> {
        let head = self.read(at, SECTOR)?;
        let parsed = (|| {
            let len: u64 = le32(&head, 8)?.into();
            let tail: u64 = le32(&head, 12)?.into();
            let entry = Entry {
                at,
                len,
                tail,
                sequence: le64(&head, 16)?,
                descriptors: le32(&head, 24)?,
                flushed_len: le64(&head, 48)?,
                file_len: le64(&head, 56)?,
            };
            let aligned = |n: u64| n.is_multiple_of(SECTOR);
            let table = entry.table_bytes();
            let good = head.starts_with(b"loge")
                && array(&head, 32).map(from_guid) == Some(self.id)
                && aligned(len)
                && (SECTOR..=self.log.len()).contains(&len)
                && aligned(tail)
                && tail < self.log.len()
                && entry.sequence > 0
                && table <= len;
            good.then_some(entry)
        })();
        let Some(entry) = parsed else {
            return Ok(None);
        };
        *work = work.checked_sub(entry.len).ok_or_else(too_large)?;
        let data = self.read(at, entry.len)?;
        Ok((sealed(&data, b"loge") && entry.is_consistent(&data)).then_some(entry))
    }

    /// The entries to replay, oldest first.
    fn active_sequence(&self) -> Result<Vec<Entry>> {
        let mut work = MAX_WORK;
        let mut best: Vec<Entry> = Vec::new();
        let mut at = 0;
        while at < self.log.len() {
            // A log is mostly a hole; nothing in there is an entry.
            let extent = self.log.extent_at(at, self.log.len().saturating_sub(at))?;
            if extent.kind != ExtentKind::Data && extent.len >= SECTOR {
                at = at.saturating_add(extent.len & !(SECTOR.wrapping_sub(1)));
                continue;
            }
            let sequence = self.sequence_at(at, &mut work)?;
            // Where the sequence ends; the ring may have been left at its end.
            let past: u64 = sequence.iter().map(|e| e.len).fold(0, u64::saturating_add);
            at = at.saturating_add(past.max(SECTOR));
            let Some(last) = sequence.last() else {
                work = work.checked_sub(SECTOR).ok_or_else(too_large)?;
                continue;
            };
            // Entries before the tail have reached their place.
            let Some(first) = sequence.iter().position(|e| e.at == last.tail) else {
                continue;
            };
            if best.last().is_none_or(|b| b.sequence < last.sequence) {
                best = sequence.get(first..).unwrap_or_default().to_vec();
            }
        }
        Ok(best)
    }

    /// The entries that follow each other from `at` on.
    fn sequence_at(&self, at: u64, work: &mut u64) -> Result<Vec<Entry>> {
        let mut sequence: Vec<Entry> = Vec::new();
        let mut room = self.log.len();
        let mut at = at;
        while room > 0 {
            let Some(entry) = self.entry(at, work)? else {
                break;
            };
            let follows = sequence
                .last()
                .is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || entry.len > room {
                break;
            }
            room = room.saturating_sub(entry.len);
            at = self.wrapped(at.saturating_add(entry.len));
            sequence.push(entry);
        }
        Ok(sequence)
    }
}

fn too_large() -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        "the image was not closed properly and its log is too large to be replayed in memory",
    )
    .with_hint("have the log replayed on a copy first: qemu-img check -r all")
}

impl Entry {
    /// Bytes of header and descriptors, whole sectors.
    fn table_bytes(&self) -> u64 {
        u64::from(self.descriptors)
            .saturating_mul(to_u64(DESCRIPTOR))
            .saturating_add(to_u64(ENTRY_HEADER))
            .checked_next_multiple_of(SECTOR)
            .unwrap_or(u64::MAX)
    }

    /// The changes of the entry in `data`; `None` where they contradict themselves.
    fn changes<'a>(&self, data: &'a [u8]) -> impl Iterator<Item = Option<Change<'a>>> {
        let sequence = self.sequence;
        let mut next = to_usize(self.table_bytes()).unwrap_or(usize::MAX);
        (0..usize_from_u32(self.descriptors)).map(move |number| {
            let at = number
                .saturating_mul(DESCRIPTOR)
                .saturating_add(ENTRY_HEADER);
            let descriptor = slice(data, at, DESCRIPTOR)?;
            let offset = le64(descriptor, 16)?;
            if le64(descriptor, 24)? != sequence || !offset.is_multiple_of(SECTOR) {
                return None;
            }
            if descriptor.starts_with(b"zero") {
                let len = le64(descriptor, 8)?;
                let end = offset.checked_add(len)?;
                let good = len.is_multiple_of(SECTOR) && end <= limits::MAX_DEVICE_BYTES;
                return good.then_some(Change::Zero { offset, end });
            }
            if !descriptor.starts_with(b"desc")
                || offset.checked_add(SECTOR)? > limits::MAX_DEVICE_BYTES
            {
                return None;
            }
            let sector = slice(data, next, SECTOR_BYTES)?;
            next = next.saturating_add(SECTOR_BYTES);
            let high = u64::from(le32(sector, 4)?) << 32;
            let number = high | u64::from(le32(sector, 4092)?);
            let good = sector.starts_with(b"data") && number == sequence;
            good.then_some(Change::Data {
                offset,
                leading: slice(descriptor, 8, 8)?,
                middle: slice(sector, 8, 4084)?,
                trailing: slice(descriptor, 4, 4)?,
            })
        })
    }

    fn is_consistent(&self, data: &[u8]) -> bool {
        self.changes(data).all(|change| change.is_some())
    }
}

enum Change<'a> {
    Zero {
        offset: u64,
        end: u64,
    },
    /// A sector; its first 8 and last 4 bytes lie in the descriptor.
    Data {
        offset: u64,
        leading: &'a [u8],
        middle: &'a [u8],
        trailing: &'a [u8],
    },
}

/// What differs from the file, as of the entries applied so far.
#[derive(Default)]
struct Changes {
    sectors: BTreeMap<u64, Vec<u8>>,
    /// Ranges that read as zeroes where there is no sector: start and end, apart from each other.
    zeroed: BTreeMap<u64, u64>,
    len: u64,
}

impl Changes {
    fn apply(&mut self, data: &[u8], entry: &Entry) -> Result<()> {
        for change in entry.changes(data) {
            let change = change.ok_or_else(|| damaged("a log entry changed while it was read"))?;
            match change {
                Change::Zero { offset, end } => self.zero(offset, end)?,
                Change::Data {
                    offset,
                    leading,
                    middle,
                    trailing,
                } => {
                    let sector = [leading, middle, trailing].concat();
                    self.len = self.len.max(offset.saturating_add(SECTOR));
                    self.sectors.insert(offset, sector);
                    if to_u64(self.sectors.len()).saturating_mul(SECTOR) > MAX_CHANGES {
                        return Err(too_large());
                    }
                }
            }
        }
        Ok(())
    }

    fn zero(&mut self, mut start: u64, mut end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        self.len = self.len.max(end);
        let mut rest = self.sectors.split_off(&start);
        let mut kept = rest.split_off(&end);
        self.sectors.append(&mut kept);
        // Ranges that touch this one become part of it.
        while let Some((&s, &e)) = self.zeroed.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.zeroed.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.zeroed.insert(start, end);
        if self.zeroed.len() > MAX_ZEROED {
            return Err(too_large());
        }
        Ok(())
    }

    fn over(self, file: BlockDevice) -> Result<BlockDevice> {
        let len = self.len.min(limits::MAX_DEVICE_BYTES);
        let below = BlockDevice::new(Arc::new(Zeroed {
            file,
            zeroed: self.zeroed,
            len,
        }));
        let overlay = OverlayBackend::new(below, 4096, MAX_CHANGES)?;
        let device = BlockDevice::new(Arc::new(overlay));
        for (offset, sector) in &self.sectors {
            device.write_all_at(*offset, sector)?;
        }
        Ok(device.into_read_only())
    }
}

/// A file, perhaps longer than it is, of which some ranges read as zeroes.
struct Zeroed {
    file: BlockDevice,
    zeroed: BTreeMap<u64, u64>,
    len: u64,
}

impl BlockBackend for Zeroed {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: self.file.block_size(),
            read_only: false,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> BlockResult<()> {
        let read = self.file.read_some_at(offset, buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        let end = offset.saturating_add(to_u64(buf.len()));
        // Apart from each other and in order: going back ends at the first that lies before.
        for (&s, &e) in self.zeroed.range(..end).rev() {
            if e <= offset {
                break;
            }
            let from = to_usize(s.saturating_sub(offset)).unwrap_or(usize::MAX);
            let to = to_usize(e.min(end).saturating_sub(offset)).unwrap_or(usize::MAX);
            buf.get_mut(from..to).unwrap_or_default().fill(0);
        }
        Ok(())
    }
}
