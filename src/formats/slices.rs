//! Tables of an image file, read in slices through the cluster cache.
//!
//! Nothing is sized by a number from a header: a table costs what is looked at of it. In an image
//! that may change while it is read nothing is kept.

use std::sync::Arc;

use crate::block::cache::{Cluster, ClusterCache, SourceId};
use crate::block::{BlockDevice, BlockError, Result};
use crate::ondisk::units::to_usize;

/// Bytes read at once: enough for 512 entries, little enough to read one entry cheaply.
pub const SLICE_BYTES: u64 = 4096;

/// Slices of one image file.
pub struct Slices {
    file: BlockDevice,
    cache: Arc<ClusterCache>,
    id: SourceId,
    live: bool,
}

impl Slices {
    /// Slices of `file`; kept in `cache` unless the file is `live`.
    pub fn new(file: BlockDevice, cache: Arc<ClusterCache>, live: bool) -> Self {
        Self {
            file,
            cache,
            id: SourceId::fresh(),
            live,
        }
    }

    /// The file, as long as it is now.
    pub fn file(&self) -> BlockDevice {
        if self.live {
            return self.file.remeasured();
        }
        self.file.clone()
    }

    /// The slice that holds host offset `at`, and where `at` is in it. What a slice has past the
    /// end of the file is zero.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`] if `at` lies outside the file, or what reading
    /// reports.
    pub fn at(&self, at: u64) -> Result<(Cluster, usize)> {
        let within = at & SLICE_BYTES.wrapping_sub(1);
        let start = at.saturating_sub(within);
        let slice = if self.live {
            self.load(start)?
        } else {
            self.cache
                .get_or_load(self.id, start, || self.load(start))?
        };
        let within = to_usize(within).unwrap_or(usize::MAX);
        if at >= self.file().len() {
            return Err(outside(at));
        }
        Ok((slice, within))
    }

    fn load(&self, start: u64) -> Result<Cluster> {
        let mut bytes = vec![0; to_usize(SLICE_BYTES).unwrap_or(0)];
        if self.file().read_some_at(start, &mut bytes)? == 0 {
            return Err(outside(start));
        }
        Ok(bytes.into())
    }
}

fn outside(at: u64) -> BlockError {
    BlockError::damaged(format!("a table at {at} is outside the file"))
}
