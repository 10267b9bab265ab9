//! Images → disks → partitions → filesystems.
//!
//! Nothing here fails because one part is odd: a volume that cannot be opened is still listed,
//! with the reason in [`Guest::problems`].

use std::path::PathBuf;
use std::sync::Arc;

use crate::block::BlockDevice;
use crate::formats::{Image, OpenOptions};
use crate::fs::{FileSystem, FsOptions};
use crate::volumes::{Partition, Table};

use super::error::{Problem, Result};

/// One image as the user names it.
#[derive(Clone, Debug)]
pub struct ImageArgument {
    /// Path on the host.
    pub path: PathBuf,
    /// Format, if the user states it.
    pub format: Option<String>,
}

/// How a guest is to be opened.
#[derive(Clone, Default)]
pub struct GuestOptions {
    /// How each image is opened (its `format` comes from the [`ImageArgument`]).
    pub image: OpenOptions,
    /// How each filesystem is opened.
    pub fs: FsOptions,
    /// Sector size of the disks in bytes, if the user states it.
    pub sector_size: Option<u32>,
}

/// One disk of the guest.
pub struct Disk {
    /// `sda`, `sdb`, … in the order the images were given.
    pub name: String,
    /// The image behind it.
    pub image: Arc<dyn Image>,
    /// The disk's content (of the snapshot, if the guest is a snapshot's view).
    pub device: BlockDevice,
    /// Its partition table, if it has one.
    pub table: Option<Table>,
}

/// A whole disk without a table, or a partition.
pub struct Volume {
    /// `sda1`, or `sda` for a disk without partitions.
    pub name: String,
    /// Index in [`Guest::disks`].
    pub disk: usize,
    /// The partition's bytes.
    pub device: BlockDevice,
    /// The partition, if it is one.
    pub partition: Option<Partition>,
    /// What is in it.
    pub content: Content,
}

/// What a volume holds.
#[derive(Clone)]
pub enum Content {
    /// A filesystem that is open.
    FileSystem(Arc<dyn FileSystem>),
    /// A known type without a driver here (or one that is no filesystem: swap, a PV, LUKS).
    Recognised(crate::fs::signature::Signature),
    /// A filesystem that could not be opened, and why.
    Failed {
        /// The driver that knows the type.
        fs_type: &'static str,
        /// Why, in one printable line.
        reason: String,
    },
    /// Nothing known.
    Unknown,
}

/// An opened set of images.
pub struct Guest {
    disks: Vec<Disk>,
    volumes: Vec<Volume>,
    problems: Vec<Problem>,
}

impl Guest {
    /// Opens `images` as the disks of one guest, in order.
    ///
    /// # Errors
    /// If an image cannot be opened. What is wrong inside an image ends up in
    /// [`Guest::problems`].
    pub fn open(images: &[ImageArgument], options: &GuestOptions) -> Result<Self> {
        let _ = (images, options);
        Err(super::GuestError::Arguments("not there yet".into()))
    }

    /// The disks, in the order the images were given.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The volumes, disk by disk, by partition number.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// What is wrong or incomplete.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Ids of all internal snapshots of all images, each once, in the order of the tables.
    pub fn snapshot_ids(&self) -> Vec<String> {
        Vec::new()
    }

    /// The same guest as it was in an internal snapshot, by id or else by name. Images that do
    /// not have it keep their present content, which is reported as a problem.
    ///
    /// # Errors
    /// [`super::GuestError::NoSnapshot`] if no image has it.
    pub fn open_snapshot(&self, id: &str, options: &GuestOptions) -> Result<Self> {
        let _ = options;
        Err(super::GuestError::NoSnapshot(id.into()))
    }
}
