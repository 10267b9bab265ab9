//! Scan, revoke, replay; see [`super`].
//!
//! Transaction numbers wrap around: `a` is at or after `b` if `a - b`, as a signed number, is not
//! negative.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::Outcome;
use super::log::Log;
use super::superblock::{Incompat, MAGIC};
use super::tag::{HEADER_LEN, Tag, tags};
use crate::block::BlockDevice;
use crate::block::overlay::OverlayBackend;
use crate::fs::error::{FsError, Result};
use crate::fs::ext4::volume::Volume;
use crate::ondisk::bytes::{be32, be64, le16, le32};
use crate::ondisk::checksum::{crc32_be, crc32c_raw};
use crate::ondisk::units::to_u64;

/// Most memory a replay may take, in bytes. Journals of guests have 64 MiB to 1 GiB, of which a
/// crash leaves a part; distinct blocks are fewer still.
const MAX_OVERLAY_BYTES: u64 = 512 << 20;
/// Most entries of the revoke and the replay table.
const MAX_ENTRIES: usize = 1 << 20;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

/// One block of the log that is the journal's own.
struct Record {
    kind: u32,
    sequence: u32,
    raw: Vec<u8>,
    /// Its place; logged copies follow it.
    at: u32,
}

/// Where the scan ended.
struct End {
    /// First transaction that is not to be replayed.
    sequence: u32,
    /// What a user should know.
    notices: Vec<String>,
}

/// Runs the recovery.
///
/// # Errors
/// When nothing should be replayed: a journal that is damaged before its end.
pub fn run(volume: &Volume) -> Result<Outcome> {
    if volume.sb.journal_inode == 0 {
        return Err(FsError::unsupported("the journal is on another device"));
    }
    let log = Log::open(volume)?;
    if log.sb.start == 0 {
        return Ok(Outcome::Nothing {
            notices: fast_commit_notice(&log, log.sb.sequence),
        });
    }
    let end = scan(&log)?;
    let revoked = revokes(&log, end.sequence)?;
    let mut notices = end.notices;
    let copies = collect(volume, &log, end.sequence, &revoked, &mut notices)?;
    notices.extend(fast_commit_notice(&log, end.sequence));

    let overlay = OverlayBackend::new(
        volume.device.clone(),
        volume.sb.block_size,
        MAX_OVERLAY_BYTES,
    )?;
    let writable = BlockDevice::new(Arc::new(overlay));
    for (&target, &(at, escaped)) in &copies {
        let mut raw = log.block(at)?;
        if escaped && let Some(head) = raw.get_mut(..4) {
            head.copy_from_slice(&MAGIC.to_be_bytes());
        }
        let offset = volume.sb.byte_of(target).ok_or_else(|| {
            FsError::damaged(format!(
                "the journal holds block {target}, outside the filesystem"
            ))
        })?;
        writable.write_all_at(offset, &raw)?;
    }
    let transactions = end.sequence.wrapping_sub(log.sb.sequence);
    notices.insert(
        0,
        format!(
            "the journal was replayed in memory: {transactions} transactions, {} blocks",
            copies.len()
        ),
    );
    Ok(Outcome::Replayed {
        device: writable.into_read_only(),
        notices,
    })
}

fn at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}

/// Walks the journal's own blocks in order, from `s_start`. `visit` gets each with the number of
/// the transaction that is expected, and says how many logged copies to step over and whether the
/// transaction is complete. Ends at a block that does not continue the log; returns the number
/// expected there.
fn walk(
    log: &Log<'_>,
    until: Option<u32>,
    mut visit: impl FnMut(&Record) -> Result<ControlFlow<(), (u32, bool)>>,
) -> Result<u32> {
    let mut expected = log.sb.sequence;
    let mut at = log.sb.start;
    // No block is visited twice.
    let mut left = log.len();
    while left > 0 && until != Some(expected) {
        let raw = log.block(at)?;
        let (Some(MAGIC), Some(kind), Some(sequence)) =
            (be32(&raw, 0), be32(&raw, 4), be32(&raw, 8))
        else {
            break;
        };
        if sequence != expected {
            break;
        }
        let record = Record {
            kind,
            sequence,
            raw,
            at,
        };
        let ControlFlow::Continue((copies, complete)) = visit(&record)? else {
            break;
        };
        if complete {
            expected = expected.wrapping_add(1);
        }
        let step = copies.saturating_add(1);
        let Some(rest) = left.checked_sub(step) else {
            break;
        };
        left = rest;
        at = log.after(at, step);
    }
    Ok(expected)
}

/// Whether the checksum in the last four bytes of a descriptor or revoke block is right.
fn tail_ok(log: &Log<'_>, raw: &[u8]) -> bool {
    let Some((body, tail)) = raw
        .len()
        .checked_sub(4)
        .and_then(|at| raw.split_at_checked(at))
    else {
        return false;
    };
    !log.sb.has_checksums()
        || be32(tail, 0) == Some(crc32c_raw(crc32c_raw(log.sb.seed, body), &[0; 4]))
}

/// Whether a commit block's own checksum is right, for v2 and v3.
fn commit_ok(log: &Log<'_>, raw: &[u8]) -> bool {
    /// Where `h_chksum[0]` lies.
    const AT: usize = 16;
    if !log.sb.has_checksums() {
        return true;
    }
    let crc = crc32c_raw(log.sb.seed, raw.get(..AT).unwrap_or_default());
    let crc = crc32c_raw(crc, &[0; 4]);
    be32(raw, AT) == Some(crc32c_raw(crc, raw.get(20..).unwrap_or_default()))
}

/// Checksum v1: the CRC over descriptors and copies of the transaction, or none was stored.
fn commit_v1_ok(raw: &[u8], crc: u32) -> bool {
    const CRC32: u8 = 1;
    const CRC32_LEN: u8 = 4;
    let (kind, size) = (raw.get(12).copied(), raw.get(13).copied());
    let stored = be32(raw, 16);
    (stored == Some(crc) && kind == Some(CRC32) && size == Some(CRC32_LEN))
        || (stored == Some(0) && kind == Some(0) && size == Some(0))
}

/// Pass 1: where the log ends.
fn scan(log: &Log<'_>) -> Result<End> {
    let mut notices = Vec::new();
    // A block whose checksum is wrong is damage if a newer commit follows it, and an old leftover
    // if the commit is older than the last one.
    let mut suspicious = false;
    let mut last_commit_time = 0u64;
    let mut crc_v1 = !0u32;
    // Set where a commit's checksum was wrong: transactions from there on do not count.
    let mut cut: Option<u32> = None;
    let reached = walk(log, None, |record| {
        let go_on = |copies, complete| Ok(ControlFlow::Continue((copies, complete)));
        match record.kind {
            DESCRIPTOR => {
                suspicious |= !tail_ok(log, &record.raw);
                let copies = u32::try_from(tags(&log.sb, &record.raw).len()).unwrap_or(u32::MAX);
                if log.sb.checksum_v1 && cut.is_none() {
                    crc_v1 = crc32_be(crc_v1, &record.raw);
                    for step in 1..=copies.min(log.len()) {
                        crc_v1 = crc32_be(crc_v1, &log.block(log.after(record.at, step))?);
                    }
                }
                go_on(copies, false)
            }
            REVOKE => {
                suspicious |= !tail_ok(log, &record.raw);
                go_on(0, false)
            }
            COMMIT => {
                let time = be64(&record.raw, 48).unwrap_or(0);
                if suspicious {
                    if time >= last_commit_time {
                        return Err(FsError::damaged(format!(
                            "the journal is damaged in transaction {}",
                            record.sequence
                        )));
                    }
                    return Ok(ControlFlow::Break(()));
                }
                let good = match log.sb.checksum_v1 {
                    true if cut.is_some() => return Ok(ControlFlow::Break(())),
                    true => commit_v1_ok(&record.raw, crc_v1),
                    false => commit_ok(log, &record.raw),
                };
                if !good {
                    if time < last_commit_time {
                        return Ok(ControlFlow::Break(()));
                    }
                    cut.get_or_insert(record.sequence);
                    notices.push(format!(
                        "transaction {} of the journal is torn and was left out",
                        record.sequence
                    ));
                    if !log.sb.incompat.contains(Incompat::ASYNC_COMMIT) {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                crc_v1 = !0;
                last_commit_time = time;
                go_on(0, true)
            }
            _ => Ok(ControlFlow::Break(())),
        }
    })?;
    Ok(End {
        sequence: cut.unwrap_or(reached),
        notices,
    })
}

/// Pass 2: each revoked block with the last transaction that revokes it.
fn revokes(log: &Log<'_>, end: u32) -> Result<BTreeMap<u64, u32>> {
    let mut revoked = BTreeMap::new();
    let wide = log.sb.incompat.contains(Incompat::BIT64);
    walk(log, Some(end), |record| {
        if record.kind == DESCRIPTOR {
            let copies = tags(&log.sb, &record.raw).len();
            return Ok(ControlFlow::Continue((
                u32::try_from(copies).unwrap_or(u32::MAX),
                false,
            )));
        }
        if record.kind == REVOKE {
            let tail = if log.sb.has_checksums() { 4 } else { 0 };
            let used = be32(&record.raw, HEADER_LEN).and_then(|used| usize::try_from(used).ok());
            let body = used
                .filter(|&used| used <= record.raw.len().saturating_sub(tail))
                .and_then(|used| record.raw.get(16..used.max(16)))
                .ok_or_else(|| FsError::damaged("a revoke block of the journal is too long"))?;
            for entry in body.chunks_exact(if wide { 8 } else { 4 }) {
                let block = if wide {
                    be64(entry, 0)
                } else {
                    be32(entry, 0).map(u64::from)
                };
                revoked.insert(block.unwrap_or(0), record.sequence);
                if revoked.len() > MAX_ENTRIES {
                    return Err(FsError::damaged("the journal revokes too many blocks"));
                }
            }
        }
        Ok(ControlFlow::Continue((0, record.kind == COMMIT)))
    })?;
    Ok(revoked)
}

/// Whether a logged copy is what was logged.
fn copy_ok(log: &Log<'_>, tag: &Tag, sequence: u32, raw: &[u8]) -> bool {
    if !log.sb.has_checksums() {
        return true;
    }
    let crc = crc32c_raw(crc32c_raw(log.sb.seed, &sequence.to_be_bytes()), raw);
    match log.sb.incompat.contains(Incompat::CSUM_V3) {
        true => crc == tag.checksum,
        false => crc & 0xFFFF == tag.checksum,
    }
}

/// Pass 3: for each block, where its newest copy lies in the log, and whether it is escaped.
fn collect(
    volume: &Volume,
    log: &Log<'_>,
    end: u32,
    revoked: &BTreeMap<u64, u32>,
    notices: &mut Vec<String>,
) -> Result<BTreeMap<u64, (u32, bool)>> {
    let mut copies = BTreeMap::new();
    let (mut bad, mut outside) = (0u64, 0u64);
    walk(log, Some(end), |record| {
        if record.kind != DESCRIPTOR {
            return Ok(ControlFlow::Continue((0, record.kind == COMMIT)));
        }
        let tags = tags(&log.sb, &record.raw);
        let count = u32::try_from(tags.len()).unwrap_or(u32::MAX);
        for (tag, step) in tags.iter().zip(1..=log.len()) {
            let at = log.after(record.at, step);
            let cancelled = revoked
                .get(&tag.target)
                .is_some_and(|&last| at_or_after(last, record.sequence));
            if cancelled {
                continue;
            }
            if tag.target >= volume.sb.blocks_count {
                outside = outside.saturating_add(1);
                continue;
            }
            // As e2fsck does: what is good around a bad copy is still replayed.
            if log.sb.has_checksums() && !copy_ok(log, tag, record.sequence, &log.block(at)?) {
                bad = bad.saturating_add(1);
                continue;
            }
            copies.insert(tag.target, (at, tag.escaped));
            let bytes = to_u64(copies.len()).saturating_mul(u64::from(volume.sb.block_size));
            if copies.len() > MAX_ENTRIES || bytes > MAX_OVERLAY_BYTES {
                return Err(FsError::unsupported(
                    "the journal holds more changes than fit in memory",
                ));
            }
        }
        Ok(ControlFlow::Continue((count, false)))
    })?;
    if bad > 0 {
        notices.push(format!(
            "{bad} blocks of the journal have wrong checksums and were left out; run e2fsck"
        ));
    }
    if outside > 0 {
        notices.push(format!(
            "{outside} blocks of the journal belong outside the filesystem; run e2fsck"
        ));
    }
    Ok(copies)
}

/// Whether the fast-commit area continues the log; it is not replayed.
fn fast_commit_notice(log: &Log<'_>, sequence: u32) -> Vec<String> {
    /// `EXT4_FC_TAG_HEAD`.
    const HEAD: u16 = 9;
    if log.sb.end == log.sb.fast_commit_end {
        return Vec::new();
    }
    let starts_here = |raw: &[u8]| le16(raw, 0) == Some(HEAD) && le32(raw, 8) == Some(sequence);
    // The kernel starts one block after the log's end.
    let first = log
        .sb
        .end
        .saturating_add(1)
        .min(log.sb.fast_commit_end.saturating_sub(1));
    match log.block(first) {
        Ok(raw) if starts_here(&raw) => vec![
            "the journal's fast-commit area holds newer changes; they are not shown".to_owned(),
        ],
        _ => Vec::new(),
    }
}
