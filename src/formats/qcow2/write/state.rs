//! What an L2 entry says about a whole cluster, in the form a writer changes it.
//!
//! A cluster without subclusters is treated as one with a single subcluster, so that there is one
//! code path: bit n of [`ClusterState::data`] and [`ClusterState::zero`] belongs to subcluster n.

use crate::block::{BlockError, Result};
use crate::formats::qcow2::layout::{Layout, Mapping, OFFSET_MASK};

/// L1 or L2 entry: the refcount of what it points to is exactly 1.
pub const COPIED: u64 = 1 << 63;
/// L2 entry: a compressed cluster.
pub const COMPRESSED: u64 = 1 << 62;
/// L2 entry without subclusters: reads as zeroes.
const ZERO: u64 = 1;

/// Subclusters of a cluster that has them.
const SUBCLUSTERS: u32 = 32;

/// How clusters divide into what has a state of its own.
#[derive(Clone, Copy, Debug)]
pub struct Granules {
    /// Bytes of one.
    pub size: u64,
    /// All of them, as a bitmap.
    pub all: u32,
}

impl Granules {
    /// Of an image.
    pub fn of(layout: &Layout) -> Self {
        if layout.subclusters {
            Self {
                size: layout.cluster_size().wrapping_shr(SUBCLUSTERS.ilog2()),
                all: u32::MAX,
            }
        } else {
            Self {
                size: layout.cluster_size(),
                all: 1,
            }
        }
    }

    fn index(self, within: u64) -> u32 {
        u32::try_from(within.checked_div(self.size).unwrap_or(0)).unwrap_or(u32::MAX)
    }

    /// Those that `from..to` (within a cluster) touches.
    pub fn touched(self, from: u64, to: u64) -> u32 {
        let end = to.div_ceil(self.size.max(1));
        self.range(self.index(from), u32::try_from(end).unwrap_or(u32::MAX))
    }

    /// Those that lie wholly in `from..to`.
    pub fn inside(self, from: u64, to: u64) -> u32 {
        let start = from.div_ceil(self.size.max(1));
        self.range(u32::try_from(start).unwrap_or(u32::MAX), self.index(to))
    }

    fn range(self, start: u32, end: u32) -> u32 {
        let below = |n: u32| 1_u32.checked_shl(n).map_or(u32::MAX, |b| b.wrapping_sub(1));
        below(end) & !below(start) & self.all
    }

    /// Where the one with `within` starts.
    pub fn start(self, within: u64) -> u64 {
        within.saturating_sub(within.checked_rem(self.size).unwrap_or(0))
    }

    /// Where the one that ends at or after `within` ends.
    pub fn end(self, within: u64) -> u64 {
        within.checked_next_multiple_of(self.size).unwrap_or(within)
    }

    /// The bit of the one with `within`.
    pub fn bit(self, within: u64) -> u32 {
        1_u32.checked_shl(self.index(within)).unwrap_or(0)
    }

    /// First byte of the lowest and end of the highest one in `bits`, within the cluster.
    pub fn span(self, bits: u32) -> Option<(u64, u64)> {
        let low = bits.checked_ilog2().map(|_| bits.trailing_zeros())?;
        let high = bits.checked_ilog2()?.saturating_add(1);
        Some((
            u64::from(low).saturating_mul(self.size),
            u64::from(high).saturating_mul(self.size),
        ))
    }
}

/// A decoded L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClusterState {
    /// Host offset of the cluster that belongs to it.
    pub host: Option<u64>,
    /// Nobody else uses that cluster.
    pub copied: bool,
    /// Host offset and most bytes of a compressed cluster; excludes everything else.
    pub compressed: Option<(u64, u64)>,
    /// Subclusters stored in `host`.
    pub data: u32,
    /// Subclusters that read as zeroes. What is in neither is in the backing file.
    pub zero: u32,
}

impl ClusterState {
    /// Reads the entry of the cluster at guest offset `at`.
    ///
    /// # Errors
    /// [`crate::block::BlockErrorKind::Damaged`].
    pub fn decode(layout: &Layout, entry: u64, bitmap: u64, at: u64) -> Result<Self> {
        // Checks what can be wrong with an entry, except with the bitmap behind its first bits.
        let run = layout.decode(entry, bitmap, at)?;
        if let Mapping::Compressed { host, len, .. } = run.mapping {
            return Ok(Self {
                compressed: Some((host, len)),
                ..Self::default()
            });
        }
        let offset = entry & OFFSET_MASK;
        let allocated = offset != 0 || (layout.external_data && entry & COPIED != 0);
        let host = allocated.then_some(offset);
        let (data, zero) = if layout.subclusters {
            let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
            (low(bitmap), low(bitmap.wrapping_shr(32)))
        } else if entry & ZERO != 0 {
            (0, 1)
        } else {
            (u32::from(allocated), 0)
        };
        if data & zero != 0 || (data != 0 && !allocated) {
            return Err(BlockError::damaged("an impossible subcluster bitmap"));
        }
        Ok(Self {
            host,
            copied: allocated && entry & COPIED != 0,
            compressed: None,
            data,
            zero,
        })
    }

    /// Writes an entry; the counterpart of [`ClusterState::decode`] for all but compressed
    /// clusters, which are never written.
    pub fn encode(&self, layout: &Layout) -> (u64, u64) {
        let copied = if self.copied { COPIED } else { 0 };
        let entry = self.host.map_or(0, |host| host | copied);
        if layout.subclusters {
            let bitmap = u64::from(self.zero).wrapping_shl(32) | u64::from(self.data);
            (entry, bitmap)
        } else if self.zero != 0 {
            (entry | ZERO, 0)
        } else {
            (entry, 0)
        }
    }

    /// Whether a write can go to the cluster it has.
    pub fn writable(&self) -> bool {
        self.host.is_some() && self.copied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::qcow2::layout::Compression;

    fn layout(subclusters: bool) -> Layout {
        Layout {
            cluster_bits: 16,
            subclusters,
            version: 3,
            external_data: false,
            compression: Compression::Deflate,
        }
    }

    #[test]
    fn granules_of_a_range() {
        let whole = Granules::of(&layout(false));
        assert_eq!(whole.touched(0, 1), 1);
        assert_eq!(whole.inside(0, 1), 0);
        assert_eq!(whole.inside(0, 65536), 1);
        let sub = Granules::of(&layout(true));
        assert_eq!(sub.size, 2048);
        assert_eq!(sub.touched(2047, 2049), 0b11);
        assert_eq!(sub.inside(2047, 2049), 0);
        assert_eq!(sub.inside(2047, 8192), 0b1110);
        assert_eq!(sub.touched(0, 65536), u32::MAX);
        assert_eq!(sub.inside(0, 65536), u32::MAX);
        assert_eq!(sub.span(0b0110), Some((2048, 6144)));
        assert_eq!(sub.span(0), None);
        assert_eq!((sub.start(2049), sub.end(2049)), (2048, 4096));
    }

    #[test]
    fn entries_survive() {
        for (subclusters, entry, bitmap) in [
            (false, 0, 0),
            (false, ZERO, 0),
            (false, 0x10000 | COPIED, 0),
            (false, 0x10000, 0),
            (false, 0x10000 | COPIED | ZERO, 0),
            (true, 0, 0xf000_0000_0000_0000),
            (true, 0x20000 | COPIED, 0x0000_00f0_0000_000f),
        ] {
            let layout = layout(subclusters);
            let state = ClusterState::decode(&layout, entry, bitmap, 0).unwrap();
            assert_eq!(state.encode(&layout), (entry, bitmap));
        }
        assert!(ClusterState::decode(&layout(true), 0, 1, 0).is_err());
        assert!(ClusterState::decode(&layout(true), 0x10000, 1 | 1 << 32, 0).is_err());
        assert!(ClusterState::decode(&layout(false), 0x10200, 0, 0).is_err());
    }

    #[test]
    fn in_a_data_file_everything_is_where_it_is_for_the_guest() {
        for subclusters in [false, true] {
            let layout = Layout {
                external_data: true,
                ..layout(subclusters)
            };
            let decode = |entry, at| ClusterState::decode(&layout, entry, 1, at);
            assert_eq!(decode(COPIED, 0).unwrap().host, Some(0));
            assert_eq!(
                decode(0x30000 | COPIED, 0x30000).unwrap().host,
                Some(0x30000)
            );
            assert!(decode(COPIED, 0x10000).is_err());
            assert!(decode(0x20000 | COPIED, 0x30000).is_err());
            assert!(layout.decode(0x30000 | COPIED, 1, 0x30200).is_ok());
            assert!(layout.decode(0x40000 | COPIED, 1, 0x30200).is_err());
            // Also where the cluster is only reserved.
            assert!(ClusterState::decode(&layout, 0x20000, 0, 0x30000).is_err());
        }
    }
}
