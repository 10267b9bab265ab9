//! Which host clusters hold metadata, so that nothing else is ever written there.
//!
//! Known are the header, the refcount table and its blocks, the active L1 table and its L2 tables,
//! the snapshot table, the L1 tables of snapshots and the encryption header. L2 tables of snapshots are protected by
//! their refcounts only. Two structures in one cluster are damage: such an image is not written to.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::block::{BlockError, Result};

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The first cluster.
    Header,
    /// The active L1 table.
    L1,
    /// An L2 table of the active L1 table.
    L2,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 table of a snapshot.
    SnapshotL1,
    /// The LUKS header of an encrypted image.
    Encryption,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::L1 => "the L1 table",
            Self::L2 => "an L2 table",
            Self::RefcountTable => "the refcount table",
            Self::RefcountBlock => "a refcount block",
            Self::SnapshotTable => "the snapshot table",
            Self::SnapshotL1 => "the L1 table of a snapshot",
            Self::Encryption => "the encryption header",
        }
    }
}

/// The clusters that hold metadata; see the module text.
#[derive(Default)]
pub struct Protected {
    /// By first cluster: end and use. They do not overlap.
    ranges: BTreeMap<u64, (u64, Use)>,
    clusters: HashMap<u64, Use>,
}

impl Protected {
    /// What the first protected cluster in a range is used for.
    pub fn find(&self, range: Range<u64>) -> Option<Use> {
        let before = self.ranges.range(..range.end).next_back();
        if let Some((_, &(end, used))) = before
            && end > range.start
        {
            return Some(used);
        }
        range
            .into_iter()
            .find_map(|cluster| self.clusters.get(&cluster).copied())
    }

    /// Checks that nothing is protected in a range.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`].
    pub fn check(&self, range: Range<u64>) -> Result<()> {
        match self.find(range.clone()) {
            None => Ok(()),
            Some(used) => Err(BlockError::damaged(format!(
                "clusters {}..{} are to be written but hold {}",
                range.start,
                range.end,
                used.name()
            ))),
        }
    }

    /// Protects a range.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`] if some of it is protected already.
    pub fn add(&mut self, range: Range<u64>, used: Use) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if let Some(other) = self.find(range.clone()) {
            return Err(BlockError::damaged(format!(
                "clusters {}..{} are used for {} and for {}",
                range.start,
                range.end,
                other.name(),
                used.name()
            )));
        }
        match used {
            // One cluster each, and there can be many.
            Use::L2 | Use::RefcountBlock => {
                self.clusters.extend(range.map(|cluster| (cluster, used)));
            }
            _ => {
                self.ranges.insert(range.start, (range.end, used));
            }
        }
        Ok(())
    }

    /// No longer protects what [`Protected::add`] did with the same start.
    pub fn remove(&mut self, range: Range<u64>) {
        self.ranges.remove(&range.start);
        for cluster in range {
            self.clusters.remove(&cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_clusters() {
        let mut p = Protected::default();
        p.add(0..1, Use::Header).unwrap();
        p.add(4..8, Use::L1).unwrap();
        p.add(9..10, Use::L2).unwrap();
        assert!(p.check(1..4).is_ok());
        assert_eq!(p.find(1..5), Some(Use::L1));
        assert_eq!(p.find(7..9), Some(Use::L1));
        assert_eq!(p.find(8..20), Some(Use::L2));
        assert!(p.add(7..8, Use::L2).is_err());
        assert!(p.add(9..10, Use::RefcountBlock).is_err());
        p.remove(4..8);
        p.remove(9..10);
        assert!(p.check(1..20).is_ok());
    }
}
