//! Several devices, one after the other.

use std::sync::Arc;

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::{BlockError, BlockErrorKind, Result};
use super::extent::Extent;
use crate::ondisk::units::to_u64;

/// Members laid end to end; member `i` starts where member `i - 1` ends.
pub struct ConcatBackend {
    /// Start offset of each member, rising, beside the member. Empty members are dropped.
    members: Vec<(u64, BlockDevice)>,
    len: u64,
}

impl ConcatBackend {
    /// Joins `members` in order.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`] if the total length overflows.
    pub fn new(members: Vec<BlockDevice>) -> Result<Self> {
        let mut len = 0u64;
        let mut placed = Vec::with_capacity(members.len());
        for member in members.into_iter().filter(|m| !m.is_empty()) {
            let start = len;
            len = len.checked_add(member.len()).ok_or_else(outside)?;
            placed.push((start, member));
        }
        Ok(Self {
            members: placed,
            len,
        })
    }

    /// A handle on the whole of it.
    pub fn into_device(self) -> BlockDevice {
        BlockDevice::new(Arc::new(self))
    }

    /// The member that holds `offset`, the offset inside it, and the bytes it has from there.
    fn find(&self, offset: u64) -> Result<(&BlockDevice, u64, u64)> {
        let index = self.members.partition_point(|(start, _)| *start <= offset);
        let (start, member) = index
            .checked_sub(1)
            .and_then(|i| self.members.get(i))
            .ok_or_else(outside)?;
        let within = offset.checked_sub(*start).ok_or_else(outside)?;
        match member.len().checked_sub(within) {
            Some(room) if room > 0 => Ok((member, within, room)),
            _ => Err(outside()),
        }
    }

    /// Calls `each` with every member piece of the range and the piece's offset in the request.
    fn pieces(
        &self,
        mut offset: u64,
        len: u64,
        mut each: impl FnMut(&BlockDevice, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0u64;
        while let Some(left @ 1..) = len.checked_sub(done) {
            let (member, within, room) = self.find(offset)?;
            let piece = room.min(left);
            each(member, within, done, piece)?;
            done = done.saturating_add(piece);
            offset = offset.checked_add(piece).ok_or_else(outside)?;
        }
        Ok(())
    }
}

fn outside() -> BlockError {
    BlockError::new(
        BlockErrorKind::OutOfRange,
        "a request lies outside a joined device",
    )
}

/// Indexes of a piece inside the request's buffer.
fn span(at: u64, len: u64) -> Option<std::ops::Range<usize>> {
    Some(usize::try_from(at).ok()?..usize::try_from(at.checked_add(len)?).ok()?)
}

impl BlockBackend for ConcatBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: self
                .members
                .iter()
                .map(|(_, m)| m.block_size())
                .max()
                .unwrap_or(512),
            read_only: self.members.iter().any(|(_, m)| m.read_only()),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.pieces(offset, to_u64(buf.len()), |member, within, at, len| {
            let piece = span(at, len)
                .and_then(|s| buf.get_mut(s))
                .ok_or_else(outside)?;
            member.read_exact_at(within, piece)
        })
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let (member, within, room) = self.find(offset)?;
        member.extent_at(within, room.min(len))
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let _ = self.pieces(offset, len, |member, within, _, len| {
            member.prefetch(within, len);
            Ok(())
        });
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.pieces(offset, to_u64(buf.len()), |member, within, at, len| {
            let piece = span(at, len).and_then(|s| buf.get(s)).ok_or_else(outside)?;
            member.write_all_at(within, piece)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.pieces(offset, len, |member, within, _, len| {
            member.write_zeroes(within, len, may_unmap)
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pieces(offset, len, |member, within, _, len| {
            member.discard(within, len)
        })
    }

    fn flush(&self) -> Result<()> {
        self.members
            .iter()
            .try_for_each(|(_, member)| member.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::MemoryBackend;

    #[test]
    fn joined_reads_and_writes_equal_one_buffer() {
        let memory = |bytes: &[u8]| MemoryBackend::from_bytes(bytes.to_vec()).into_device();
        let d = ConcatBackend::new(vec![
            memory(b"abc"),
            memory(b""),
            memory(b"d"),
            memory(b"efgh"),
        ])
        .unwrap()
        .into_device();
        let mut model = b"abcdefgh".to_vec();
        d.write_all_at(2, b"XYZ").unwrap();
        model[2..5].copy_from_slice(b"XYZ");
        for start in 0..8 {
            for end in start..=8 {
                assert_eq!(
                    d.read_vec(start as u64, end - start).unwrap(),
                    model[start..end]
                );
            }
        }
        assert!(d.read_vec(8, 1).is_err());
        assert_eq!(d.extent_at(2, 6).unwrap().len, 1);
    }
}
