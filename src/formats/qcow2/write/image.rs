//! The image as a whole.

use super::Writer;
use crate::formats::api::ImageWriter;
use crate::formats::error::{FormatError, FormatErrorKind, Result};

impl ImageWriter for Writer {
    fn resize(&self, len: u64) -> Result<()> {
        let _ = len;
        Err(FormatError::new(
            FormatErrorKind::Unsupported,
            "qcow2 images are not resized yet",
        ))
    }

    fn close(&self) -> Result<()> {
        self.settle()?;
        if let Some(space) = &mut self.alloc.lock().space {
            space.forget_streams();
        }
        Ok(())
    }
}
