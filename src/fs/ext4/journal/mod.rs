//! jbd2: bringing a filesystem to its last committed state, in memory (kernel documentation,
//! "Journal (jbd2)").
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

/// Recovers into memory.
pub fn recover(_volume: &Volume) -> Outcome {
    Outcome::Failed {
        reason: "replay is not there yet".into(),
    }
}
