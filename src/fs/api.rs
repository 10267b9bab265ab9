//! What a filesystem driver implements.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::error::Result;
use super::types::{Attributes, FileType, InodeNo};
use crate::block::BlockDevice;
use crate::volumes::Probe;

/// How a filesystem is to be opened.
#[derive(Clone, Debug, Default)]
pub struct FsOptions {
    /// Return data whose metadata checksum is wrong instead of an error.
    pub ignore_checksums: bool,
    /// Look at the filesystem as it lies on disk, without replaying its journal into memory.
    pub no_replay: bool,
}

/// What is known about an open filesystem.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FsInfo {
    /// Type as `blkid` names it: `ext2`, `ext3`, `ext4`, …
    #[serde(rename = "type")]
    pub fs_type: String,
    /// UUID as udev writes it.
    pub uuid: Option<String>,
    /// Label; bytes chosen by the guest, invalid UTF-8 replaced.
    pub label: Option<String>,
    /// Block size in bytes.
    pub block_size: u32,
    /// Names of the features in use.
    pub features: Vec<String>,
    /// Whether it was unmounted cleanly.
    pub clean: bool,
    /// Whether a journal was replayed into memory for this view.
    pub journal_replayed: bool,
    /// What a user should know: what was replayed, what was ignored, what looked wrong.
    pub notices: Vec<String>,
    /// Why it could not be written to, even by a version that writes; empty if nothing stands
    /// against it.
    pub read_only_reasons: Vec<String>,
}

/// How full a filesystem is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsUsage {
    /// Unit of the block counts, in bytes.
    pub block_size: u32,
    /// Blocks usable for files (as `statfs` reports).
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks an ordinary user may take.
    pub blocks_available: u64,
    /// All inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The inode it leads to.
    pub ino: InodeNo,
    /// Its type, where the directory says so.
    pub file_type: Option<FileType>,
    /// The name: any bytes but `/` and NUL, never `.` or `..`.
    pub name: &'a [u8],
    /// Where to continue after this entry; never 0.
    pub next: u64,
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Length in bytes from the offset asked for, at least 1.
    pub len: u64,
    /// Whether bytes are stored (true) or the run is a hole (false; unwritten space counts as
    /// one).
    pub data: bool,
}

/// A filesystem type.
pub trait FsDriver: Sync {
    /// The driver's name.
    fn name(&self) -> &'static str;

    /// Whether the device holds this type. Looks at a few KiB, changes nothing.
    ///
    /// # Errors
    /// [`super::FsErrorKind::Io`].
    fn probe(&self, device: &BlockDevice) -> Result<Probe<()>>;

    /// Opens it.
    ///
    /// # Errors
    /// [`super::FsErrorKind::Damaged`], [`super::FsErrorKind::Unsupported`] (naming the feature
    /// bits), [`super::FsErrorKind::Io`].
    fn open(&self, device: &BlockDevice, options: &FsOptions) -> Result<Arc<dyn FileSystem>>;
}

/// An open filesystem. All calls may come from many threads at once.
///
/// Every call on an inode may also fail with [`super::FsErrorKind::Damaged`],
/// [`super::FsErrorKind::Unsupported`], [`super::FsErrorKind::NoKey`] or
/// [`super::FsErrorKind::Io`]; the errors listed below are in addition to these.
pub trait FileSystem: Send + Sync {
    /// What is known about it.
    fn info(&self) -> &FsInfo;

    /// How full it is.
    ///
    /// # Errors
    /// See the trait.
    fn usage(&self) -> Result<FsUsage>;

    /// The root directory.
    fn root(&self) -> InodeNo;

    /// The inode a name in a directory leads to. `..` gives the parent, `.` the directory.
    ///
    /// # Errors
    /// [`super::FsErrorKind::NotFound`], [`super::FsErrorKind::NotDirectory`],
    /// [`super::FsErrorKind::NameTooLong`].
    fn lookup(&self, dir: InodeNo, name: &[u8]) -> Result<InodeNo>;

    /// What `stat` tells.
    ///
    /// # Errors
    /// [`super::FsErrorKind::NotFound`] for a number that is out of range or not in use.
    fn attributes(&self, ino: InodeNo) -> Result<Attributes>;

    /// Reads from a regular file; fewer bytes than `buf` holds only at the end of the file.
    ///
    /// # Errors
    /// [`super::FsErrorKind::IsDirectory`], [`super::FsErrorKind::Invalid`] for other types.
    fn read_at(&self, ino: InodeNo, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// The run of a regular file that starts at `offset`, which must lie below its size.
    ///
    /// # Errors
    /// [`super::FsErrorKind::Invalid`] at or past the end.
    fn extent_at(&self, ino: InodeNo, offset: u64) -> Result<FileExtent>;

    /// Tells that a range of a regular file will be read soon. Advisory.
    fn prefetch(&self, ino: InodeNo, offset: u64, len: u64) {
        let _ = (ino, offset, len);
    }

    /// Tells that the attributes of these inodes will be asked for soon. Advisory.
    fn prefetch_attributes(&self, inos: &[InodeNo]) {
        let _ = inos;
    }

    /// Tells that these files and directories will be read from their beginning soon, about in this
    /// order. Advisory.
    fn prefetch_starts(&self, inos: &[InodeNo]) {
        let _ = inos;
    }

    /// Visits the names of a directory, without `.` and `..`, from `cookie` (0, or an entry's
    /// `next`) until the visitor breaks.
    ///
    /// # Errors
    /// [`super::FsErrorKind::NotDirectory`].
    fn read_dir(
        &self,
        dir: InodeNo,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`super::FsErrorKind::Invalid`] if it is not one.
    fn read_link(&self, ino: InodeNo) -> Result<Vec<u8>>;

    /// The value of an extended attribute, by its full Linux name (`security.selinux`).
    ///
    /// # Errors
    /// [`super::FsErrorKind::NoAttribute`].
    fn xattr(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>>;

    /// The full names of all extended attributes.
    ///
    /// # Errors
    /// See the trait.
    fn xattr_names(&self, ino: InodeNo) -> Result<Vec<Vec<u8>>>;
}

/// The drivers, in the order they are asked.
pub fn drivers() -> &'static [&'static dyn FsDriver] {
    &[&super::ext4::Ext4Driver]
}
