//! Making the virtual disk longer or shorter, and emptying it.
//!
//! Growing:
//!
//! 1. a longer L1 table, if it is needed: written to new clusters; flush; the header points to it;
//!    flush; the old one is given back. The disk is as long as before;
//! 2. what the larger disk would show that is not zero (the rest of its last cluster, a backing file
//!    that is longer than the disk was, what a shrink that was cut short left behind the end) is
//!    zeroed; flush;
//! 3. the size in the header; flush. This is the moment. A crash before leaves the disk as it was,
//!    with tables that reach further than it does.
//!
//! Shrinking:
//!
//! 1. the size in the header; flush. This is the moment. A crash after it leaves clusters behind the
//!    end of the disk that are in use and not shown;
//! 2. the clusters behind the end are given up where they share an L2 table with the rest; flush;
//! 3. L1 entries behind the end are cleared; flush;
//! 4. what they led to is given back; flush.
//!
//! Emptying is 3 and 4 for all entries. It is for an image whose backing file shows the same, so a
//! crash in the middle of 3 leaves what it was.

use super::{Exclusive, Writer};
use crate::block::Result as BlockResult;
use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::formats::qcow2::header_fields::HeaderField;
use crate::ondisk::units::to_usize;

/// Largest L1 table in bytes, as in QEMU.
const MAX_L1_BYTES: u64 = 32 << 20;

impl Writer {
    /// Makes the disk `len` bytes long.
    pub(super) fn resize_disk(&self, len: u64) -> Result<()> {
        let (old, snapshots, raw) = {
            let alloc = self.alloc.lock();
            let header = &alloc.header;
            // Not what requests see: a snapshot of another size may have been applied since.
            (header.size, header.snapshot_count, header.data_file_raw)
        };
        if !len.is_multiple_of(512) {
            return Err(unsupported("the size of a disk is a multiple of 512 bytes"));
        }
        if self.layout().version < 3 && snapshots > 0 {
            return Err(unsupported(
                "an image of version 2 that has snapshots is not resized: they do not record how large they are",
            ));
        }
        let l1_bytes = self.layout().l1_entries_for(len).saturating_mul(8);
        if len > crate::limits::MAX_DEVICE_BYTES || l1_bytes > MAX_L1_BYTES {
            return Err(unsupported(
                "the disk would be larger than the clusters of this image allow",
            ));
        }
        if len > old {
            self.grow(old, len, raw)
        } else if len < old {
            self.shrink(old, len, raw)
        } else {
            Ok(())
        }
    }

    fn grow(&self, old: u64, len: u64, raw: bool) -> Result<()> {
        // 1.
        self.exclusively(|image| image.lengthen_l1(len))?;
        // 2.
        self.set_size(len);
        let result = {
            let _under_way = self.gate.read();
            self.write_zeroes(old, len.saturating_sub(old), true)
        };
        if result.is_err() {
            self.set_size(old);
        }
        result?;
        if raw {
            let data = self.source.data.device();
            if data.len() < len {
                data.set_len(len)?;
            }
        }
        self.settle()?;
        // 3.
        self.exclusively(|image| image.set_header(&[HeaderField::Size(len)]))?;
        Ok(())
    }

    fn shrink(&self, old: u64, len: u64, raw: bool) -> Result<()> {
        // 1.
        self.exclusively(|image| image.set_header(&[HeaderField::Size(len)]))?;
        // 2.
        let reach = 1_u64.wrapping_shl(self.layout().l2_reach_bits());
        let from = len.next_multiple_of(self.layout().cluster_size());
        let to = len
            .checked_next_multiple_of(reach)
            .unwrap_or(u64::MAX)
            .min(old);
        if from < to {
            let _under_way = self.gate.read();
            self.discard(from, to.saturating_sub(from))?;
        }
        self.set_size(len);
        self.settle()?;
        // 3 and 4.
        let keep = self.layout().l1_entries_for(len);
        self.exclusively(|image| image.cut_l1(keep))?;
        if raw {
            let data = self.source.data.device();
            data.set_len(len)?;
            data.flush()?;
        }
        Ok(())
    }

    /// Gives everything up that the image itself holds of the disk.
    pub(super) fn empty(&self) -> Result<()> {
        if self.layout().external_data {
            return Err(unsupported(
                "an image with an external data file is not emptied",
            ));
        }
        self.exclusively(|image| image.cut_l1(0))?;
        Ok(())
    }
}

impl Exclusive<'_> {
    /// Makes the L1 table long enough for a disk of `len` bytes.
    fn lengthen_l1(&mut self, len: u64) -> BlockResult<()> {
        let (offset, entries) = (self.header().l1_offset, self.header().l1_entries);
        let needed = self.layout().l1_entries_for(len);
        if needed <= u64::from(entries) {
            return Ok(());
        }
        let mut l1 = self.read_l1(offset, entries)?;
        l1.resize(to_usize(needed).unwrap_or(l1.len()), 0);
        let bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        let new = self.write_new(bytes)?;
        self.flush()?;
        self.set_header(&[
            HeaderField::L1Entries(u32::try_from(l1.len()).unwrap_or(u32::MAX)),
            HeaderField::L1Offset(new),
        ])?;
        self.release(self.l1_clusters(offset, entries))?;
        self.flush()
    }

    /// Clears the L1 entries from `keep` on, and gives back what they led to.
    fn cut_l1(&mut self, keep: u64) -> BlockResult<()> {
        let (offset, entries) = (self.header().l1_offset, self.header().l1_entries);
        let l1 = self.read_l1(offset, entries)?;
        let Some(cut @ [_, ..]) = to_usize(keep).and_then(|keep| l1.get(keep..)) else {
            return Ok(());
        };
        if cut.iter().all(|e| *e == 0) {
            return Ok(());
        }
        let at = offset.saturating_add(keep.saturating_mul(8));
        let zeroes = vec![0; cut.len().saturating_mul(8)];
        self.file().write_all_at(at, &zeroes)?;
        self.flush()?;
        self.discard_tree(cut)?;
        self.flush()
    }

    /// As [`Exclusive::release_tree`]; the host gets the space back.
    fn discard_tree(&mut self, l1: &[u64]) -> BlockResult<()> {
        self.walk_tree(l1, Self::discard)
    }
}

fn unsupported(what: &str) -> FormatError {
    FormatError::new(FormatErrorKind::Unsupported, what)
}
