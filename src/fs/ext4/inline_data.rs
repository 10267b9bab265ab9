//! Content inside the inode: the first 60 bytes in `i_block`, the rest as the value of the
//! extended attribute `system.data` (kernel documentation, "Inline Data").

use super::inode::Inode;
use super::volume::Volume;
use super::xattr::SYSTEM_INDEX;
use crate::fs::error::Result;

impl Volume {
    /// All stored bytes, at most `i_size`. Fewer than that read as zero after them.
    ///
    /// # Errors
    /// [`crate::fs::FsErrorKind::Damaged`] if the attribute is.
    pub fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut data = inode.i_block.to_vec();
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        // A directory's size counts both parts as they are, so its rest is taken whole.
        if size > data.len()
            && let Some(rest) = self.body_xattr(inode, SYSTEM_INDEX, b"data")?
        {
            data.extend_from_slice(&rest);
        }
        data.truncate(size);
        Ok(data)
    }
}
