//! An image that a running guest changes while it is read.
//!
//! Tables and decompressed clusters are used for [`LIVE_FOR`] after they were read and then read
//! again, so that clusters the guest has added are found and space it has given back is not shown
//! as what it used to be. Two reads within that time may still see different moments of the guest;
//! what a filesystem driver has decoded stays as it was decoded.
//!
//! The active L1 table moves when the disk is resized, and may when a snapshot with VM state is
//! taken. Then the old place holds something else and reading ends in an error that says so.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::header::Header;
use crate::block::cache::SourceId;
use crate::block::{BlockDevice, BlockError, Result};
use crate::ondisk::bytes::be64;

/// How long what was read of a live image's tables counts.
pub const LIVE_FOR: Duration = Duration::from_secs(1);

/// Identities of what is cached of an image.
#[derive(Clone, Copy, Debug)]
pub struct CacheIds {
    /// Of table slices.
    pub tables: SourceId,
    /// Of decompressed clusters.
    pub clusters: SourceId,
}

impl CacheIds {
    /// Identities under which nothing is cached yet.
    pub fn fresh() -> Self {
        Self {
            tables: SourceId::fresh(),
            clusters: SourceId::fresh(),
        }
    }
}

/// Identities that change with time; see the module text.
pub struct LiveTables {
    l1_offset: u64,
    current: Mutex<Current>,
}

struct Current {
    ids: CacheIds,
    since: Instant,
    moved: bool,
}

impl LiveTables {
    /// Starts with the header as it was read at opening.
    pub fn new(header: &Header) -> Self {
        Self {
            l1_offset: header.l1_offset,
            current: Mutex::new(Current {
                ids: CacheIds::fresh(),
                since: Instant::now(),
                moved: false,
            }),
        }
    }

    /// The identities that count now.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`] if the active L1 table is somewhere else now.
    pub fn ids(&self, file: &BlockDevice) -> Result<CacheIds> {
        {
            let current = self.current.lock();
            if current.moved {
                return Err(moved());
            }
            if current.since.elapsed() < LIVE_FOR {
                return Ok(current.ids);
            }
        }
        // Several threads may look; they see the same.
        let head = file.read_vec(0, 48)?;
        let same = be64(&head, 40) == Some(self.l1_offset);
        let mut current = self.current.lock();
        if !same {
            current.moved = true;
            return Err(moved());
        }
        if current.since.elapsed() >= LIVE_FOR {
            current.ids = CacheIds::fresh();
            current.since = Instant::now();
        }
        Ok(current.ids)
    }
}

fn moved() -> BlockError {
    BlockError::damaged(
        "the image's L1 table moved after it was opened (resize or snapshot): open it again",
    )
}
