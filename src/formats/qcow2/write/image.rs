//! The image as a whole.

use super::Writer;
use crate::formats::api::{ImageWriter, SnapshotInfo};
use crate::formats::error::Result;
use crate::formats::qcow2::backing;

impl ImageWriter for Writer {
    fn resize(&self, len: u64) -> Result<()> {
        self.resize_disk(len)
    }

    fn create_snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.take_snapshot(name.as_bytes())
    }

    fn apply_snapshot(&self, index: usize) -> Result<()> {
        self.restore_snapshot(index)
    }

    fn delete_snapshot(&self, index: usize) -> Result<()> {
        self.drop_snapshot(index)
    }

    fn set_backing(&self, backing: Option<(&[u8], &[u8])>) -> Result<()> {
        self.exclusively(|image| Ok(backing::set(image.file(), image.header(), backing)))?
    }

    fn make_empty(&self) -> Result<()> {
        self.empty()
    }

    fn close(&self) -> Result<()> {
        self.settle()?;
        if let Some(space) = &mut self.alloc.lock().space {
            space.forget_streams();
        }
        Ok(())
    }
}
