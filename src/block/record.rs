//! A device that records every write, zeroing, discard and flush in order, for crash tests: any
//! prefix (or any subset within a flush epoch) of the log can be replayed onto a copy of the
//! original.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backend::{BlockBackend, Geometry};
use super::device::BlockDevice;
use super::error::Result;
use super::extent::Extent;

/// One recorded operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes written at an offset.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What was written.
        bytes: Arc<[u8]>,
    },
    /// A range made to read as zeroes.
    WriteZeroes {
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range whose content is no longer needed.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The device made longer or shorter.
    SetLen {
        /// New length in bytes.
        len: u64,
    },
    /// Everything before is durable.
    Flush,
}

/// Passes everything on and records what changes the device. Clones of the log handle see the
/// same log.
pub struct RecordBackend {
    below: BlockDevice,
    log: Arc<Mutex<Vec<Event>>>,
}

impl RecordBackend {
    /// Records what is done to `below`.
    pub fn new(below: BlockDevice) -> Self {
        Self {
            below,
            log: Arc::default(),
        }
    }

    /// The log, shared with the backend.
    pub fn log(&self) -> Arc<Mutex<Vec<Event>>> {
        Arc::clone(&self.log)
    }
}

/// Applies recorded events to a device (flushes are nothing to do), which must be
/// [growable](BlockDevice::growable) if the recorded one was.
///
/// # Errors
/// What the device reports.
pub fn replay(events: &[Event], device: &BlockDevice) -> Result<()> {
    for event in events {
        match event {
            Event::Write { offset, bytes } => device.write_all_at(*offset, bytes)?,
            Event::WriteZeroes { offset, len } => device.write_zeroes(*offset, *len, false)?,
            Event::Discard { offset, len } => device.discard(*offset, *len)?,
            Event::SetLen { len } => device.set_len(*len)?,
            Event::Flush => {}
        }
    }
    Ok(())
}

impl BlockBackend for RecordBackend {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: self.below.block_size(),
            read_only: self.below.read_only(),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_exact_at(offset, buf)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below.extent_at(offset, len)
    }

    // Each call holds the log while the device changes, so that the log's order is the order in
    // which concurrent writers reached the device.

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut log = self.log.lock();
        self.below.write_all_at(offset, buf)?;
        log.push(Event::Write {
            offset,
            bytes: buf.into(),
        });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let mut log = self.log.lock();
        self.below.write_zeroes(offset, len, may_unmap)?;
        log.push(Event::WriteZeroes { offset, len });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut log = self.log.lock();
        self.below.discard(offset, len)?;
        log.push(Event::Discard { offset, len });
        Ok(())
    }

    fn current_len(&self) -> u64 {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut log = self.log.lock();
        self.below.set_len(len)?;
        log.push(Event::SetLen { len });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut log = self.log.lock();
        self.below.flush()?;
        log.push(Event::Flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::MemoryBackend;

    #[test]
    fn replaying_the_log_rebuilds_the_device() {
        let recorder = RecordBackend::new(MemoryBackend::from_bytes(vec![7; 64]).into_device());
        let log = recorder.log();
        let device = BlockDevice::new(Arc::new(recorder));
        device.write_all_at(3, b"hello").unwrap();
        device.flush().unwrap();
        device.write_zeroes(5, 10, true).unwrap();
        let events = log.lock().clone();
        assert_eq!(events.len(), 3);
        assert_eq!(events[1], Event::Flush);
        let copy = MemoryBackend::from_bytes(vec![7; 64]).into_device();
        replay(&events, &copy).unwrap();
        assert_eq!(
            copy.read_vec(0, 64).unwrap(),
            device.read_vec(0, 64).unwrap()
        );
    }
}
