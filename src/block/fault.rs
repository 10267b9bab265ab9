//! A device that fails on demand, for tests of error paths.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::{BlockError, Result};
use super::extent::Extent;
use crate::ondisk::units::to_u64;

/// What fails, and when. Counts start at 0: `fail_write: Some(2)` fails the third write and every
/// later one.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Reads that touch this byte range fail.
    pub fail_reads_in: Option<Range<u64>>,
    /// Writes (also zeroing, discarding and resizing) from this count on fail.
    pub fail_write: Option<u64>,
    /// Flushes from this count on fail.
    pub fail_flush: Option<u64>,
}

/// Passes everything on until the plan says to fail.
pub struct FaultBackend {
    below: BlockDevice,
    plan: FaultPlan,
    writes: AtomicU64,
    flushes: AtomicU64,
}

impl FaultBackend {
    /// Fails over `below` as `plan` says.
    pub fn new(below: BlockDevice, plan: FaultPlan) -> Self {
        Self {
            below,
            plan,
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    fn count(counter: &AtomicU64, limit: Option<u64>, what: &str) -> Result<()> {
        let seen = counter.fetch_add(1, Ordering::Relaxed);
        match limit {
            Some(limit) if seen >= limit => Err(injected(what)),
            _ => Ok(()),
        }
    }
}

fn injected(what: &str) -> BlockError {
    BlockError::io(
        format!("injected {what} failure"),
        std::io::Error::other("injected"),
    )
}

impl BlockBackend for FaultBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: self.below.block_size(),
            read_only: self.below.read_only(),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(bad) = &self.plan.fail_reads_in {
            let end = offset.saturating_add(to_u64(buf.len()));
            if offset < bad.end && bad.start < end {
                return Err(injected("read"));
            }
        }
        self.below.read_exact_at(offset, buf)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below.extent_at(offset, len)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        Self::count(&self.writes, self.plan.fail_write, "write")?;
        self.below.write_all_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        Self::count(&self.writes, self.plan.fail_write, "write")?;
        self.below.write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        Self::count(&self.writes, self.plan.fail_write, "write")?;
        self.below.discard(offset, len)
    }

    fn current_len(&self) -> u64 {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        Self::count(&self.writes, self.plan.fail_write, "write")?;
        self.below.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        Self::count(&self.flushes, self.plan.fail_flush, "flush")?;
        self.below.flush()
    }
}
