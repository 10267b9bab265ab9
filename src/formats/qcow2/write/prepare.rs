//! What has to be so before the first change of an image.
//!
//! 1. The image is not marked as corrupt; if it was not closed properly, its refcounts are rebuilt.
//! 2. Refcount table, L1 table and snapshot table are read, and no two structures overlap.
//! 3. Autoclear features that this program does not keep up to date are cleared; flush. A crash
//!    after this leaves an image without them, which is what the next change would have done.
//!
//! All of this happens with the first change and not at opening, so that an image that is only
//! looked at stays as it is.

use super::overlap::{Protected, Use};
use super::refcounts::Refcounts;
use super::space::Space;
use super::{Alloc, Writer};
use crate::block::{BlockError, BlockErrorKind, Result};
use crate::formats::FormatError;
use crate::formats::error::FormatErrorKind;
use crate::formats::qcow2::check;
use crate::formats::qcow2::header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, EncryptionHeader, Header,
};
use crate::formats::qcow2::header_fields::HeaderField;
use crate::formats::qcow2::layout::OFFSET_MASK;
use crate::formats::qcow2::{read_header, snapshot};

/// Whether an image may be opened for writing at all.
///
/// # Errors
/// [`FormatErrorKind::Damaged`].
pub fn check_writable(header: &Header) -> std::result::Result<(), FormatError> {
    if header.corrupt {
        return Err(FormatError::new(
            FormatErrorKind::Damaged,
            "the image is marked as corrupt and is only read",
        )
        .with_hint("repair it first: guestlens check --repair"));
    }
    Ok(())
}

/// What a user should know before an image is written to.
pub fn warnings(header: &Header) -> Vec<String> {
    let mut warnings = Vec::new();
    if header.autoclear & AUTOCLEAR_BITMAPS != 0 {
        warnings.push(
            "the image has dirty bitmaps, which writing makes invalid: the next incremental backup must be a full one"
                .into(),
        );
    }
    warnings
}

impl Writer {
    /// Makes the image ready for a change, once; see the module text.
    pub(super) fn prepare(&self, alloc: &mut Alloc) -> Result<()> {
        self.check_alive()?;
        if alloc.space.is_some() {
            return Ok(());
        }
        // 1.
        if alloc.header.dirty {
            self.repair(alloc)?;
        }
        // 2.
        let header = alloc.header.clone();
        let refcounts = Refcounts::load(self.file().clone(), &header)
            .map_err(|e| e.within("cannot read the refcount table"))?;
        let protected = self.protect(&header, &refcounts)?;
        // 3.
        let kept = if header.data_file_raw {
            AUTOCLEAR_DATA_FILE_RAW
        } else {
            0
        };
        if header.autoclear & !kept != 0 {
            if header.autoclear & AUTOCLEAR_BITMAPS != 0 {
                tracing::warn!("qcow2: the image's dirty bitmaps become invalid");
            }
            let autoclear = header.autoclear & kept;
            HeaderField::write_all(self.file(), &[HeaderField::Autoclear(autoclear)])
                .and_then(|()| self.file().flush())
                .map_err(|e| self.fatal(e))?;
            alloc.header.autoclear = autoclear;
        }
        alloc.space = Some(Space::new(
            self.file().clone(),
            header.layout.cluster_bits,
            refcounts,
            protected,
        ));
        Ok(())
    }

    /// Rebuilds the refcounts of an image that was not closed properly.
    fn repair(&self, alloc: &mut Alloc) -> Result<()> {
        tracing::warn!("qcow2: the image was not closed properly; its refcounts are rebuilt");
        let header = check::repair_refcounts(self.file(), &alloc.header)
            .and_then(|_| read_header(self.file()))
            .map_err(|e| {
                let error = BlockError::new(
                    BlockErrorKind::Damaged,
                    format!("the image was not closed properly and cannot be repaired: {e}"),
                );
                self.fatal(error)
            })?;
        self.tables
            .write()
            .reload(self.file(), header.l1_offset, header.l1_entries)?;
        alloc.header = header;
        Ok(())
    }

    /// Where all the metadata is.
    pub(super) fn protect(&self, header: &Header, refcounts: &Refcounts) -> Result<Protected> {
        let layout = self.layout();
        let clusters = |at: u64, len: u64| {
            if !layout.aligned(at) {
                return Err(BlockError::damaged(format!(
                    "a table at {at} is not aligned"
                )));
            }
            let first = self.cluster(at);
            Ok(first..first.saturating_add(len.div_ceil(layout.cluster_size())))
        };
        let mut protected = Protected::default();
        protected.add(0..1, Use::Header)?;
        let l1_len = u64::from(header.l1_entries).saturating_mul(8);
        protected.add(clusters(header.l1_offset, l1_len)?, Use::L1)?;
        let table_len =
            u64::from(header.refcount_table_clusters).saturating_mul(layout.cluster_size());
        protected.add(
            clusters(header.refcount_table_offset, table_len)?,
            Use::RefcountTable,
        )?;
        for &block in refcounts.table().iter().filter(|&&at| at != 0) {
            protected.add(clusters(block, 1)?, Use::RefcountBlock)?;
        }
        let tables = self.tables.read();
        for &entry in tables.l1() {
            let table = entry & OFFSET_MASK;
            if table != 0 {
                protected.add(clusters(table, 1)?, Use::L2)?;
            }
        }
        drop(tables);
        let snapshots = snapshot::read_table(self.file(), header).map_err(|e| {
            BlockError::new(
                BlockErrorKind::Damaged,
                format!("an image whose snapshot table is unreadable is not written to: {e}"),
            )
        })?;
        let table_len = snapshot::table_len(header, &snapshots);
        if table_len > 0 {
            protected.add(
                clusters(header.snapshots_offset, table_len)?,
                Use::SnapshotTable,
            )?;
        }
        if let Some(EncryptionHeader::Luks { offset, len }) = header.encryption {
            protected.add(clusters(offset, len)?, Use::Encryption)?;
        }
        for snapshot in &snapshots {
            let len = u64::from(snapshot.l1_entries).saturating_mul(8);
            protected.add(clusters(snapshot.l1_offset, len)?, Use::SnapshotL1)?;
        }
        Ok(protected)
    }
}
