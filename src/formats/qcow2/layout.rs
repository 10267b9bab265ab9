//! How tables are laid out, and what an L2 entry says.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, "Cluster mapping" and "Extended L2 Entries".

use crate::block::{BlockError, Result};

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate with a window of 4 KiB.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// What decides how tables are read; constant for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// L2 entries are 16 bytes long and describe 32 subclusters.
    pub subclusters: bool,
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Clusters are in another file.
    pub external_data: bool,
    /// Of compressed clusters.
    pub compression: Compression,
}

/// Bits of an L1 or L2 entry that hold a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Table bytes read at once: enough for 512 entries, little enough to read one entry cheaply.
const SLICE_BYTES: u64 = 4096;

impl Layout {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1_u64.wrapping_shl(self.cluster_bits)
    }

    /// `offset` within its cluster.
    pub fn within_cluster(&self, offset: u64) -> u64 {
        offset & self.cluster_size().wrapping_sub(1)
    }

    /// Whether a host offset starts a cluster.
    pub fn aligned(&self, offset: u64) -> bool {
        self.within_cluster(offset) == 0
    }

    /// Log2 of the bytes of an L2 entry.
    pub fn l2_entry_bits(&self) -> u32 {
        if self.subclusters { 4 } else { 3 }
    }

    /// Log2 of the guest bytes one L2 table covers.
    pub fn l2_reach_bits(&self) -> u32 {
        self.cluster_bits
            .saturating_mul(2)
            .saturating_sub(self.l2_entry_bits())
    }

    /// Entries an L1 table needs for a disk of `size` bytes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(1_u64.wrapping_shl(self.l2_reach_bits()))
    }

    /// Bytes of tables read at once; divides the cluster size.
    pub fn slice_bytes(&self) -> u64 {
        SLICE_BYTES.min(self.cluster_size())
    }

    /// What the entry says about the cluster with guest offset `at`, from there on. The run does not
    /// leave the cluster.
    ///
    /// In an external data file everything is where it is for the guest, as QEMU demands too.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`].
    pub fn decode(&self, entry: u64, bitmap: u64, at: u64) -> Result<Run> {
        let within = self.within_cluster(at);
        let rest = self.cluster_size().saturating_sub(within);
        if entry & COMPRESSED != 0 {
            if self.external_data {
                return Err(BlockError::damaged(
                    "a compressed cluster in an external data file",
                ));
            }
            return Ok(Run {
                len: rest,
                mapping: self.decode_compressed(entry, within),
            });
        }
        let host = entry & OFFSET_MASK;
        // Offset 0 means unallocated, except that an external data file can have a cluster there.
        let allocated = host != 0 || (self.external_data && entry & COPIED != 0);
        if allocated && !self.aligned(host) {
            return Err(BlockError::damaged(format!(
                "a cluster at {host} is not aligned"
            )));
        }
        if allocated && self.external_data && host != at.saturating_sub(within) {
            return Err(BlockError::damaged(format!(
                "the cluster of guest offset {} is at {host} of the external data file, not at the same offset",
                at.saturating_sub(within)
            )));
        }
        let at = host.saturating_add(within);
        if self.subclusters {
            return self.decode_subclusters(allocated.then_some(at), bitmap, within);
        }
        let mapping = if entry & ZERO != 0 {
            if self.version < 3 {
                return Err(BlockError::damaged("a zero cluster in a version 2 image"));
            }
            Mapping::Zero {
                host: allocated.then_some(at),
            }
        } else if allocated {
            Mapping::Data { host: at }
        } else {
            Mapping::Unallocated
        };
        Ok(Run { len: rest, mapping })
    }

    fn decode_compressed(&self, entry: u64, within: u64) -> Mapping {
        // 62 - (cluster_bits - 8) bits of offset, the rest of the 62 counts further sectors.
        let offset_bits = 70_u32.saturating_sub(self.cluster_bits);
        let descriptor = entry & COMPRESSED.wrapping_sub(1);
        let host = descriptor & 1_u64.wrapping_shl(offset_bits).wrapping_sub(1);
        let sectors = descriptor.wrapping_shr(offset_bits).saturating_add(1);
        let len = sectors.saturating_mul(512).saturating_sub(host & 511);
        Mapping::Compressed { host, len, within }
    }

    fn decode_subclusters(&self, at: Option<u64>, bitmap: u64, within: u64) -> Result<Run> {
        let subcluster_bits = self.cluster_bits.saturating_sub(5);
        let first = within.wrapping_shr(subcluster_bits);
        let state = |index: u64| -> Result<Subcluster> {
            let index = u32::try_from(index & 31).unwrap_or(0);
            let bits = bitmap.wrapping_shr(index);
            match (bits & 1 != 0, bits & (1 << 32) != 0) {
                (false, false) => Ok(Subcluster::Unallocated),
                (false, true) => Ok(Subcluster::Zero),
                (true, false) if at.is_some() => Ok(Subcluster::Data),
                _ => Err(BlockError::damaged("an impossible subcluster bitmap")),
            }
        };
        let kind = state(first)?;
        let mut end = first.saturating_add(1);
        while end < 32 && state(end).is_ok_and(|s| s == kind) {
            end = end.saturating_add(1);
        }
        let len = end.wrapping_shl(subcluster_bits).saturating_sub(within);
        let mapping = match (kind, at) {
            (Subcluster::Data, Some(host)) => Mapping::Data { host },
            (Subcluster::Zero, host) => Mapping::Zero { host },
            _ => Mapping::Unallocated,
        };
        Ok(Run { len, mapping })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subcluster {
    Unallocated,
    Zero,
    Data,
}

/// Where guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// In the backing file, or nowhere.
    Unallocated,
    /// Zeroes; `host` is set where space is reserved for them.
    Zero {
        /// Host offset of the reserved space.
        host: Option<u64>,
    },
    /// Stored verbatim.
    Data {
        /// Host offset in the data file (which usually is the image).
        host: u64,
    },
    /// In one compressed cluster.
    Compressed {
        /// Host offset of the compressed bytes.
        host: u64,
        /// Most bytes they can take.
        len: u64,
        /// Offset of the run in the decompressed cluster.
        within: u64,
    },
}

/// Guest bytes with the same mapping, consecutive in the host file where they are there at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Where the first byte is.
    pub mapping: Mapping,
}

impl Run {
    /// Both as one run, if `next` continues this one.
    pub fn join(self, next: Self) -> Option<Self> {
        let continues = |a: u64, b: u64| a.checked_add(self.len) == Some(b);
        let joins = match (self.mapping, next.mapping) {
            (Mapping::Unallocated, Mapping::Unallocated)
            | (Mapping::Zero { host: None }, Mapping::Zero { host: None }) => true,
            (Mapping::Zero { host: Some(a) }, Mapping::Zero { host: Some(b) })
            | (Mapping::Data { host: a }, Mapping::Data { host: b }) => continues(a, b),
            _ => false,
        };
        joins.then(|| Self {
            len: self.len.saturating_add(next.len),
            ..self
        })
    }
}
