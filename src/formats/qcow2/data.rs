//! Where plain (not compressed) clusters are: the image file or its external data file.
//!
//! Every guest byte of such a cluster goes through [`DataFile::read`] and [`DataFile::write`], which
//! know both of its addresses; this is where a cipher for sectors belongs.

use super::view::read_present;
use crate::block::{BlockDevice, Result};

/// The file with the clusters.
pub struct DataFile {
    device: BlockDevice,
}

impl DataFile {
    /// Clusters in `device`.
    pub fn new(device: BlockDevice) -> Self {
        Self { device }
    }

    /// The file itself, for what is not about content.
    pub fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// Whether zero bytes in the file are not zero bytes for the guest: then nothing can be left
    /// to a hole in the file, and nothing be zeroed without writing it.
    pub fn scrambled(&self) -> bool {
        false
    }

    /// Reads guest bytes that are at `host` in the file and at `guest` on the virtual disk. What
    /// lies past the end of the file reads as zeroes.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self, host: u64, guest: u64, buf: &mut [u8]) -> Result<()> {
        let _ = guest;
        let read = read_present(&self.device, host, buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }

    /// Writes guest bytes; the counterpart of [`DataFile::read`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn write(&self, host: u64, guest: u64, buf: &[u8]) -> Result<()> {
        let _ = guest;
        self.device.write_all_at(host, buf)
    }
}
