//! qcow2 written in place.
//!
//! | module | responsibility |
//! |---|---|
//! | [`prepare`] | what has to be so before the first change |
//! | [`state`] | what an L2 entry says, in the form a writer changes it |
//! | [`tables`] | the L1 table and slices of L2 tables, in memory |
//! | [`refcounts`] | refcount table and blocks, in memory |
//! | [`space`] | free clusters, streams, growth of the refcount table |
//! | [`overlap`] | where metadata is, so that nothing else is written there |
//! | [`cow`] | writing data, copying what a cluster held before |
//! | [`zero`] | zeroing and discarding |
//! | [`flush`] | the order in which changes reach the file |
//! | [`exclusive`] | what changes of the image as a whole are built from |
//! | [`trees`] | an L1 table with everything below it |
//! | [`snapshots`] | taking, applying and deleting them |
//! | [`resize`] | a longer, shorter or empty disk |
//! | [`image`] | [`crate::formats::api::ImageWriter`] |
//!
//! # Invariants
//!
//! * Dirty state is in two places: [`tables::TableCache`] and [`refcounts::Refcounts`]. Data goes to
//!   the file at once.
//! * An L2 entry in memory changes only after its data has been written; in the file, only after
//!   data and refcounts are durable ([`flush`]).
//! * A cluster that lost a use goes through three stages: `unhooked` (the file may still refer to
//!   it), `removable` (it does not, but a reader may be under way), then its count falls, and at 0 it
//!   is free.
//!
//! # Locks
//!
//! Outermost first: `gate` → `alloc` → `tables`.
//!
//! * `gate` is held shared while a request is carried out, from looking up where bytes are to the
//!   end of their I/O, and exclusively to let go of clusters. So what a lookup found stays what it
//!   was. It is not taken twice by one thread.
//! * `alloc` is held to change the mapping, refcounts or header, also during that I/O. Reads and
//!   writes in place do not take it.
//! * `tables` is held for moments, never during I/O.
//!
//! # For what is built on this
//!
//! Snapshots, resizing and the like run in [`Writer::exclusively`]: no request is under way, and
//! everything is in the file. Inside, [`Exclusive`] has clusters to take and give back, counts to
//! raise, and the L1 table to replace, with the order each of them needs.

pub mod cow;
pub mod exclusive;
pub mod flush;
pub mod image;
pub mod overlap;
pub mod prepare;
pub mod refcounts;
pub mod resize;
pub mod snapshots;
pub mod space;
pub mod state;
pub mod tables;
pub mod trees;
pub mod zero;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

pub use self::exclusive::Exclusive;
use self::space::{Freed, Space};
use self::state::{ClusterState, Granules};
use self::tables::{Found, TableCache, read_words};
use super::header::Header;
use super::layout::{Layout, Run};
use super::view::{Source, Tables, View};
use crate::block::{
    BlockBackend, BlockDevice, BlockError, BlockErrorKind, Extent, Geometry, Result,
};
use crate::ondisk::units::to_u64;

/// An image that is written to; see the module text.
pub struct Writer {
    source: Arc<Source>,
    granules: Granules,
    /// Size of the virtual disk. Changes when the image is resized.
    size: AtomicU64,
    gate: RwLock<()>,
    alloc: Mutex<Alloc>,
    tables: RwLock<TableCache>,
    /// Why nothing is written any more.
    failure: OnceLock<(BlockErrorKind, String)>,
}

/// What the allocation lock protects.
struct Alloc {
    header: Header,
    /// There from the first change on.
    space: Option<Space>,
    /// Clusters that the file may still refer to.
    unhooked: Vec<Freed>,
    /// Clusters that the file no longer refers to.
    removable: Vec<Freed>,
    /// L2 tables, by index in the L1 table, whose refcount was seen to be 1.
    own_l2: std::collections::HashSet<usize>,
}

impl Alloc {
    /// The free space; [`Writer::prepare`] has run.
    fn space(&mut self) -> Result<&mut Space> {
        self.space
            .as_mut()
            .ok_or_else(|| BlockError::damaged("the image was not prepared for writing"))
    }

    /// Checks that clusters that are in use are counted: others would be given to somebody else
    /// while the file still refers to them.
    fn check_counted(&mut self, clusters: std::ops::Range<u64>) -> Result<()> {
        let refcounts = &mut self.space()?.refcounts;
        for cluster in clusters {
            if refcounts.get(cluster)? == 0 {
                return Err(BlockError::damaged(format!(
                    "cluster {cluster} is in use although its refcount is 0"
                )));
            }
        }
        Ok(())
    }

    /// Notes that clusters lost a use.
    fn unhook(&mut self, clusters: std::ops::Range<u64>, punch: bool) {
        if let Some(last) = self.unhooked.last_mut()
            && last.clusters.end == clusters.start
            && last.punch == punch
        {
            last.clusters.end = clusters.end;
            return;
        }
        self.unhooked.push(Freed { clusters, punch });
    }
}

impl Writer {
    /// Takes over an image. Nothing is written until something is changed.
    ///
    /// # Errors
    /// What reading the L1 table reports.
    pub fn new(source: Arc<Source>, header: Header) -> Result<Self> {
        let tables = TableCache::load(
            &source.file,
            header.layout,
            header.l1_offset,
            header.l1_entries,
        )?;
        Ok(Self {
            granules: Granules::of(&header.layout),
            size: AtomicU64::new(header.size),
            gate: RwLock::new(()),
            alloc: Mutex::new(Alloc {
                header,
                space: None,
                unhooked: Vec::new(),
                removable: Vec::new(),
                own_l2: std::collections::HashSet::new(),
            }),
            tables: RwLock::new(tables),
            failure: OnceLock::new(),
            source,
        })
    }

    /// The content as a device.
    pub fn device(self: &Arc<Self>) -> BlockDevice {
        let tables: Arc<dyn Tables> = Arc::clone(self) as Arc<dyn Tables>;
        let view = View::over(Arc::clone(&self.source), tables, self.size());
        BlockDevice::new(Arc::new(Content {
            writer: Arc::clone(self),
            view,
        }))
    }

    /// Size of the virtual disk in bytes.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn set_size(&self, len: u64) {
        self.size.store(len, Ordering::Release);
    }

    fn layout(&self) -> &Layout {
        &self.source.layout
    }

    fn file(&self) -> &BlockDevice {
        &self.source.file
    }

    /// Number of the cluster at a host or guest offset.
    fn cluster(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.layout().cluster_bits)
    }

    /// Fails if nothing is written any more.
    fn check_alive(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some((kind, why)) => Err(BlockError::new(
                *kind,
                format!("the image is no longer written to: {why}"),
            )),
        }
    }

    /// From an error that leaves memory and file apart, or that shows damage: nothing is written
    /// after it, so the image stays as of the last flush.
    fn fatal(&self, error: BlockError) -> BlockError {
        let why = std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |e| {
            e.source()
        })
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
        let kind = match error.kind() {
            BlockErrorKind::Io => BlockErrorKind::Failed,
            kind => kind,
        };
        if self.failure.set((kind, why)).is_ok() {
            tracing::error!("qcow2: writing ends: {error}");
        }
        error
    }

    /// Reads the slice with the entry of `at`, which is at `host`.
    fn load(&self, at: u64, host: u64, version: u64) -> Result<()> {
        let len = self.layout().slice_bytes();
        let file = self.file();
        if host.checked_add(len).is_none_or(|end| end > file.len()) {
            return Err(BlockError::damaged(format!(
                "a table at {host} is outside the file"
            )));
        }
        let words = read_words(file, host, len)?;
        self.tables.write().keep(at, version, words);
        Ok(())
    }

    /// States of clusters from the one with `at` on, as [`TableCache::states`].
    fn states(&self, at: u64, max: usize) -> Result<Vec<ClusterState>> {
        // With the allocation lock held, nothing can make a load outdated.
        loop {
            let found = self.tables.read().states(at, max)?;
            match found {
                Found::Here(states) => return Ok(states),
                Found::NotLoaded { host, version } => self.load(at, host, version)?,
                Found::NoTable(_) => return Ok(Vec::new()),
            }
        }
    }

    /// Whether nothing of the backing image shows in a range, so that unallocated reads as zero.
    fn nothing_below(&self, at: u64, len: u64) -> bool {
        match &self.source.backing {
            Some(backing) if at < backing.len() => {
                let len = len.min(backing.len().saturating_sub(at));
                backing
                    .extent_at(at, len)
                    .is_ok_and(|e| e.reads_zero() && e.len >= len)
            }
            _ => true,
        }
    }
}

impl Tables for Writer {
    fn piece_at(&self, at: u64, max: u64) -> Result<Run> {
        /// Loads that turn out to be outdated before the writer is kept away.
        const ATTEMPTS: u32 = 8;
        for _ in 0..ATTEMPTS {
            let found = self.tables.read().run(at, max)?;
            match found {
                Found::Here(run) => return Ok(run),
                Found::NotLoaded { host, version } => self.load(at, host, version)?,
                Found::NoTable(_) => break,
            }
        }
        let _quiet = self.alloc.lock();
        loop {
            let found = self.tables.read().run(at, max)?;
            match found {
                Found::Here(run) => return Ok(run),
                Found::NotLoaded { host, version } => self.load(at, host, version)?,
                Found::NoTable(_) => return Err(BlockError::damaged("no run")),
            }
        }
    }
}

/// The content of a [`Writer`].
struct Content {
    writer: Arc<Writer>,
    view: View,
}

impl Content {
    /// The disk may have become shorter than the device says.
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        self.writer.check_alive()?;
        let size = self.writer.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(BlockError::new(
                BlockErrorKind::OutOfRange,
                format!("bytes {offset}+{len} lie outside a disk of {size} bytes"),
            )),
        }
    }
}

impl BlockBackend for Content {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: false,
            ..self.view.geometry()
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _under_way = self.writer.gate.read();
        self.view.read_exact_at(offset, buf)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let _under_way = self.writer.gate.read();
        self.view.extent_at(offset, len)
    }

    fn prefetch(&self, offset: u64, len: u64) {
        let _under_way = self.writer.gate.read();
        self.view.prefetch(offset, len);
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let _under_way = self.writer.gate.read();
        self.check(offset, to_u64(buf.len()))?;
        self.writer
            .write(offset, buf)
            .map_err(|e| e.within(format!("writing {} bytes at {offset}", to_u64(buf.len()))))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let _under_way = self.writer.gate.read();
        self.check(offset, len)?;
        self.writer
            .write_zeroes(offset, len, may_unmap)
            .map_err(|e| e.within(format!("zeroing {len} bytes at {offset}")))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _under_way = self.writer.gate.read();
        self.check(offset, len)?;
        self.writer
            .discard(offset, len)
            .map_err(|e| e.within(format!("discarding {len} bytes at {offset}")))
    }

    fn flush(&self) -> Result<()> {
        self.writer.flush()
    }
}
