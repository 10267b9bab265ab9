//! What all parts of the reader stand on: the device, the superblock, the caches.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lru::LruCache;
use parking_lot::Mutex;

use super::block_cache::{BlockCache, Kind};
use super::group::Group;
use super::inode::Inode;
use super::superblock::Superblock;
use crate::block::BlockDevice;
use crate::fs::error::{FsError, Result};

/// Metadata blocks kept, in bytes: directories and trees of the files in use.
const BLOCK_BUDGET: usize = 6 << 20;
/// Pieces of inode tables kept, in bytes. A piece is read at once ([`TABLE_CHUNK`]), so that a
/// walk over a tree reads each once.
const TABLE_BUDGET: usize = 4 << 20;
/// Bytes of an inode table read at once (a block, if blocks are larger).
pub const TABLE_CHUNK: u32 = 32 << 10;
/// Parsed inodes kept, each some 200 bytes.
const INODES: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// Descriptors kept.
const GROUPS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// An open filesystem; see the module text.
pub struct Volume {
    /// The device, with the journal replayed over it.
    pub device: BlockDevice,
    /// The superblock.
    pub sb: Superblock,
    /// Block of the superblock that was used; descriptors follow it.
    pub super_block: u64,
    /// Return data whose checksum is wrong.
    pub ignore_checksums: bool,
    /// Size of the internal journal in blocks.
    pub journal_blocks: u64,
    pub(super) blocks: BlockCache,
    pub(super) tables: BlockCache,
    pub(super) inodes: Mutex<LruCache<u32, Arc<Inode>>>,
    /// Where the last piece of an inode table was read from the device, in bytes.
    pub(super) last_table_miss: AtomicU64,
    pub(super) groups: Mutex<LruCache<u64, Group>>,
}

impl Volume {
    /// Stands on a device and a validated superblock that lies in block `super_block`.
    pub fn new(
        device: BlockDevice,
        sb: Superblock,
        super_block: u64,
        ignore_checksums: bool,
    ) -> Self {
        let chunk = crate::ondisk::units::usize_from_u32(TABLE_CHUNK.max(sb.block_size));
        let mut volume = Self {
            journal_blocks: 0,
            blocks: BlockCache::new(BLOCK_BUDGET, sb.block_len()),
            tables: BlockCache::new(TABLE_BUDGET, chunk),
            inodes: Mutex::new(LruCache::new(INODES)),
            last_table_miss: AtomicU64::new(u64::MAX),
            groups: Mutex::new(LruCache::new(GROUPS)),
            device,
            sb,
            super_block,
            ignore_checksums,
        };
        volume.journal_blocks = volume.internal_journal_blocks();
        volume
    }

    /// A metadata block, verified by `verify` when it comes from the device.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] if the block lies outside the filesystem, or what
    /// `verify` and the device report.
    pub fn block(
        &self,
        block: u64,
        kind: Kind,
        verify: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<Arc<[u8]>> {
        let offset = self.sb.byte_of(block).ok_or_else(|| {
            FsError::damaged(format!("block {block} lies outside the filesystem"))
        })?;
        self.blocks.get_or_load(block, kind, || {
            let bytes = self.device.read_vec(offset, self.sb.block_len())?;
            verify(&bytes)?;
            Ok(bytes.into())
        })
    }
}
