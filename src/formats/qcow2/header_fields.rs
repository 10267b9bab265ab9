//! Changing fields of the header in place.
//!
//! All of them are in the first 512 bytes, which are written as one: a crash leaves the old fields
//! or the new ones. The caller flushes before and after, as its own order demands.

use crate::block::{BlockDevice, BlockError, Result};
use crate::ondisk::units::to_u64;

/// A field and its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderField {
    /// Size of the virtual disk in bytes.
    Size(u64),
    /// Entries of the active L1 table.
    L1Entries(u32),
    /// Host offset of the active L1 table.
    L1Offset(u64),
    /// Host offset of the refcount table.
    RefcountTableOffset(u64),
    /// Clusters of the refcount table.
    RefcountTableClusters(u32),
    /// Number of internal snapshots.
    SnapshotCount(u32),
    /// Host offset of the snapshot table.
    SnapshotsOffset(u64),
    /// Incompatible feature bits; version 3 only.
    Incompatible(u64),
    /// Autoclear feature bits; version 3 only.
    Autoclear(u64),
}

impl HeaderField {
    fn place(self) -> (usize, [u8; 8], usize) {
        let wide = |at, value: u64| (at, value.to_be_bytes(), 8);
        let narrow = |at, value: u32| (at, u64::from(value).wrapping_shl(32).to_be_bytes(), 4);
        match self {
            Self::Size(v) => wide(24, v),
            Self::L1Entries(v) => narrow(36, v),
            Self::L1Offset(v) => wide(40, v),
            Self::RefcountTableOffset(v) => wide(48, v),
            Self::RefcountTableClusters(v) => narrow(56, v),
            Self::SnapshotCount(v) => narrow(60, v),
            Self::SnapshotsOffset(v) => wide(64, v),
            Self::Incompatible(v) => wide(72, v),
            Self::Autoclear(v) => wide(88, v),
        }
    }

    /// Writes some fields at once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn write_all(file: &BlockDevice, fields: &[Self]) -> Result<()> {
        let mut sector = [0; 512];
        let len = file.read_some_at(0, &mut sector)?;
        let head = sector
            .get_mut(..len)
            .ok_or_else(|| BlockError::damaged("the header is cut short"))?;
        for field in fields {
            let (at, bytes, width) = field.place();
            let target = at
                .checked_add(width)
                .and_then(|end| head.get_mut(at..end))
                .zip(bytes.get(..width));
            let Some((target, bytes)) = target else {
                return Err(BlockError::damaged(format!(
                    "a header of {} bytes has no byte {at}",
                    to_u64(len)
                )));
            };
            target.copy_from_slice(bytes);
        }
        file.write_all_at(0, head)
    }
}
