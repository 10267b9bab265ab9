//! What changes an image as a whole is built from: snapshots, resizing.
//!
//! Inside [`Writer::exclusively`] no request is under way, and everything that was written before is
//! durable and in the file, so the file can be read and its metadata changed directly. The rules
//! that [`super::flush`] keeps for requests are kept here by the caller:
//!
//! * what refers to something is written after what it refers to is durable ([`Exclusive::flush`]);
//! * clusters are let go only after what referred to them is durably gone
//!   ([`Exclusive::release`]);
//! * counts are raised ([`Exclusive::raise`]) and flushed before the second reference is written.
//!
//! At the end, tables are read again from the file, so what was cached of them does not matter.

use std::ops::Range;

use super::overlap::Use;
use super::space::Freed;
use super::{Alloc, Writer};
use crate::block::{BlockDevice, Result};
use crate::formats::qcow2::header::Header;
use crate::formats::qcow2::header_fields::HeaderField;
use crate::formats::qcow2::layout::Layout;
use crate::ondisk::units::to_u64;

/// An image nobody else uses; see the module text.
pub struct Exclusive<'a> {
    writer: &'a Writer,
    alloc: &'a mut Alloc,
}

impl Writer {
    /// Runs `change` while no request is under way and everything is in the file.
    ///
    /// # Errors
    /// As [`Writer::flush`], or what `change` reports; after either, nothing is written any more.
    pub fn exclusively<T>(
        &self,
        change: impl FnOnce(&mut Exclusive<'_>) -> Result<T>,
    ) -> Result<T> {
        self.check_alive()?;
        let _nothing_under_way = self.gate.write();
        let mut alloc = self.alloc.lock();
        self.prepare(&mut alloc)?;
        self.write_back(&mut alloc)?;
        self.reclaim_now(&mut alloc)?;
        let mut exclusive = Exclusive {
            writer: self,
            alloc: &mut alloc,
        };
        let result = change(&mut exclusive).and_then(|value| {
            exclusive.reload()?;
            Ok(value)
        });
        result.map_err(|e| self.fatal(e))
    }
}

impl Exclusive<'_> {
    /// The image file.
    pub fn file(&self) -> &BlockDevice {
        self.writer.file()
    }

    /// How tables are laid out.
    pub fn layout(&self) -> &Layout {
        self.writer.layout()
    }

    /// The header as it is in the file, except for the refcount table.
    pub fn header(&self) -> &Header {
        &self.alloc.header
    }

    /// The backing image's content.
    pub fn backing(&self) -> Option<&BlockDevice> {
        self.writer.source.backing.as_ref()
    }

    /// Takes consecutive clusters for metadata, with a count of 1; returns their host offset. What
    /// they held is still there.
    ///
    /// # Errors
    /// If the image cannot get larger, or what I/O reports.
    pub fn allocate(&mut self, clusters: u64) -> Result<u64> {
        let space = self.alloc.space()?;
        let run = space.take_consecutive(clusters)?;
        Ok(space.offset(run.first))
    }

    /// How often a cluster is used.
    ///
    /// # Errors
    /// What I/O reports.
    pub fn refcount(&mut self, cluster: u64) -> Result<u64> {
        self.alloc.space()?.refcounts.get(cluster)
    }

    /// The highest count a cluster can have.
    ///
    /// # Errors
    /// None after preparation.
    pub fn max_refcount(&mut self) -> Result<u64> {
        Ok(self.alloc.space()?.refcounts.max())
    }

    /// Counts one more use of each cluster. In the file after [`Exclusive::flush`].
    ///
    /// # Errors
    /// If a count is as high as it can be, or what I/O reports.
    pub fn raise(&mut self, clusters: Range<u64>) -> Result<()> {
        let refcounts = &mut self.alloc.space()?.refcounts;
        for cluster in clusters {
            refcounts.raise(cluster)?;
        }
        Ok(())
    }

    /// Counts one use less of each cluster; nothing durable refers to it any more. What reaches 0
    /// is free at once. In the file after [`Exclusive::flush`].
    ///
    /// # Errors
    /// If a count is 0 already, or what I/O reports.
    pub fn release(&mut self, clusters: Range<u64>) -> Result<()> {
        self.alloc.space()?.reclaim(&Freed {
            clusters,
            punch: false,
        })
    }

    /// As [`Exclusive::release`]; the host gets the space of what reaches 0 back.
    ///
    /// # Errors
    /// As [`Exclusive::release`].
    pub fn discard(&mut self, clusters: Range<u64>) -> Result<()> {
        self.alloc.space()?.reclaim(&Freed {
            clusters,
            punch: true,
        })
    }

    /// Says that clusters hold metadata, and are not to be used for anything else.
    ///
    /// # Errors
    /// If they do already.
    pub fn protect(&mut self, clusters: Range<u64>, used: Use) -> Result<()> {
        self.alloc.space()?.protected.add(clusters, used)
    }

    /// Takes back [`Exclusive::protect`]; the range is the same.
    ///
    /// # Errors
    /// None after preparation.
    pub fn unprotect(&mut self, clusters: Range<u64>) -> Result<()> {
        self.alloc.space()?.protected.remove(clusters);
        Ok(())
    }

    /// Makes counts and everything that was written to the file durable.
    ///
    /// # Errors
    /// What I/O reports.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.write_back(self.alloc)
    }

    /// Changes header fields at once (one sector), and makes that durable. What they refer to is
    /// durable already.
    ///
    /// # Errors
    /// What I/O reports.
    pub fn set_header(&mut self, fields: &[HeaderField]) -> Result<()> {
        HeaderField::write_all(self.file(), fields)?;
        self.file().flush()?;
        let header = &mut self.alloc.header;
        for field in fields {
            match *field {
                HeaderField::Size(size) => header.size = size,
                HeaderField::L1Entries(entries) => header.l1_entries = entries,
                HeaderField::L1Offset(offset) => header.l1_offset = offset,
                HeaderField::RefcountTableOffset(offset) => header.refcount_table_offset = offset,
                HeaderField::RefcountTableClusters(count) => header.refcount_table_clusters = count,
                HeaderField::SnapshotCount(count) => header.snapshot_count = count,
                HeaderField::SnapshotsOffset(offset) => header.snapshots_offset = offset,
                HeaderField::Autoclear(bits) => header.autoclear = bits,
                HeaderField::Incompatible(_) => {}
            }
        }
        Ok(())
    }

    /// Reads the tables again, and where all the metadata is.
    fn reload(&mut self) -> Result<()> {
        self.flush()?;
        let writer = self.writer;
        let header = self.alloc.header.clone();
        writer
            .tables
            .write()
            .reload(writer.file(), header.l1_offset, header.l1_entries)?;
        self.alloc.own_l2.clear();
        let space = self.alloc.space.take();
        if let Some(mut space) = space {
            let entries = to_u64(space.refcounts.table().len());
            let clusters = writer.cluster(entries.saturating_mul(8));
            let header = Header {
                // It may have moved without us.
                refcount_table_offset: space.refcounts.table_offset(),
                refcount_table_clusters: u32::try_from(clusters).unwrap_or(u32::MAX),
                ..header
            };
            space.protected = writer.protect(&header, &space.refcounts)?;
            self.alloc.space = Some(space);
        }
        Ok(())
    }
}
