//! jbd2: bringing a filesystem to its last committed state, in memory (kernel documentation,
//! "Journal (jbd2)"; what it leaves open as linux `fs/jbd2/recovery.c` does it).
//!
//! | module | responsibility |
//! |---|---|
//! | [`superblock`] | the journal's superblock |
//! | [`log`] | reading blocks of the log, wherever the journal's inode maps them |
//! | [`tag`] | descriptor blocks: which block each logged copy belongs to |
//! | [`recovery`] | scan, revoke, replay |
//!
//! Recovery in three passes:
//!
//! 1. *scan* from `s_start` until the sequence breaks: that is where the last transaction that
//!    was wholly committed ends. A torn last transaction is dropped by this.
//! 2. *revoke*: blocks that a transaction says must not be replayed from it or an earlier one.
//! 3. *replay*: the newest copy of each remaining block goes into an overlay.
//!
//! Each pass visits each block of the log at most once. Every target must lie inside the
//! filesystem. The device is never written.

pub mod log;
pub mod recovery;
pub mod superblock;
pub mod tag;

use super::volume::Volume;
use crate::block::BlockDevice;

/// What came of a recovery.
pub enum Outcome {
    /// The journal's changes lie over the device.
    Replayed {
        /// The device with them.
        device: BlockDevice,
        /// What a user should know.
        notices: Vec<String>,
    },
    /// There was nothing to replay.
    Nothing {
        /// What a user should know.
        notices: Vec<String>,
    },
    /// It could not be done; the filesystem is shown as it lies on the device.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Recovers the journal of `volume` into memory.
pub fn recover(volume: &Volume) -> Outcome {
    recovery::run(volume).unwrap_or_else(|error| Outcome::Failed {
        reason: match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    })
}
