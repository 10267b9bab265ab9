//! Files of which one call fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guestlens::block::{BlockBackend, BlockDevice, BlockError, Extent, Geometry, Result};

/// The calls of several files, counted together.
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    seen: AtomicU64,
    fails: u64,
    /// Only this call, or all from there on.
    once: bool,
    has_failed: AtomicBool,
}

impl Calls {
    /// Call number `fails` fails.
    pub fn failing(fails: u64, once: bool) -> Self {
        let shared = Shared {
            seen: AtomicU64::new(0),
            fails,
            once,
            has_failed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Calls that changed or flushed something.
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Relaxed)
    }

    /// Whether one failed.
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed.load(Ordering::Relaxed)
    }

    /// Puts these calls before a device.
    pub fn before(&self, below: BlockDevice) -> BlockDevice {
        BlockDevice::growable(Arc::new(Failing {
            below,
            calls: self.clone(),
        }))
    }

    fn count(&self, what: &str) -> Result<()> {
        let number = self.shared.seen.fetch_add(1, Ordering::Relaxed);
        let fails = self.shared.fails;
        if number == fails || (number > fails && !self.shared.once) {
            self.shared.has_failed.store(true, Ordering::Relaxed);
            return Err(BlockError::io(
                format!("call {number}, {what}"),
                std::io::Error::from_raw_os_error(nix::libc::ENOSPC),
            ));
        }
        Ok(())
    }
}

struct Failing {
    below: BlockDevice,
    calls: Calls,
}

impl BlockBackend for Failing {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: 512,
            read_only: false,
        }
    }

    fn current_len(&self) -> u64 {
        self.below.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_exact_at(offset, buf)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below.extent_at(offset, len)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if let Err(error) = self.calls.count("a write") {
            // As on a full disk: the beginning is written.
            let half = buf.len() / 2 / 512 * 512;
            let _ = self.below.write_all_at(offset, &buf[..half]);
            return Err(error);
        }
        self.below.write_all_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        self.calls.count("zeroing")?;
        self.below.write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.calls.count("a discard")?;
        self.below.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.calls.count("a new length")?;
        self.below.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.calls.count("a flush")?;
        self.below.flush()
    }
}
