//! An opened guest → the directories a user sees.
//!
//! ```text
//! fs/              the guest's own tree: that of its first operating system
//! roots/NAME/      every operating system's tree, if there are several; named by its root volume
//! volumes/NAME/    every filesystem by itself
//! disks/NAME       every disk and every volume as a flat file
//! snapshots/ID/    the same for each internal snapshot, opened when it is looked into
//! meta/            what is known about the guest, each file made when it is looked at
//! ```
//!
//! Without an operating system there is an empty `fs/`; the rest is there all the same.

use std::sync::Arc;

use super::namespace::Tree;
use super::node::NodeId;
use crate::fs::{FsError, FsErrorKind, Result};
use crate::guest::{Content, Guest, GuestOptions, GuestView};
use crate::inspect::System;

/// A file of `meta/`.
pub struct MetaFile {
    /// Path below `meta/`; at most one directory deep.
    pub path: &'static str,
    /// Permission bits.
    pub permissions: u16,
    /// Makes the content.
    pub make: super::inodes::Make,
}

/// A guest's operating systems.
pub type Roots = Arc<Vec<System>>;

/// Lists the files of `meta/`.
pub type MetaFiles = Arc<dyn Fn(&Arc<Guest>, &Roots, Option<&str>) -> Vec<MetaFile> + Send + Sync>;

/// How a guest is shown.
#[derive(Clone)]
pub struct Layout {
    /// How snapshots are opened.
    pub options: GuestOptions,
    /// Assembles the trees of a guest's operating systems.
    pub roots: fn(&Guest) -> Roots,
    /// The files of `meta/` of a guest; the id is that of the snapshot it is, if it is one.
    pub meta: MetaFiles,
}

impl Layout {
    /// Shows a guest in the root of a tree.
    ///
    /// # Errors
    /// If something has a name that is taken, or there are too many filesystems.
    pub fn show(&self, tree: &Tree, guest: &Arc<Guest>) -> Result<()> {
        self.show_in(tree, NodeId::ROOT, guest, None)?;
        let ids = guest.snapshot_ids();
        let snapshots = tree.add_directory(NodeId::ROOT, b"snapshots")?;
        for id in ids {
            let layout = self.clone();
            let guest = Arc::clone(guest);
            let name = file_name(&id);
            let fill = Box::new(move |tree: &Tree, directory: NodeId| {
                let then = guest.open_snapshot(&id, &layout.options).map_err(|error| {
                    let why = crate::ondisk::text::printable(error.to_string().as_bytes());
                    tracing::error!("snapshot {id:?} cannot be opened: {why}");
                    FsError::new(FsErrorKind::Io, format!("snapshot: {why}"))
                })?;
                layout.show_in(tree, directory, &Arc::new(then), Some(&id))
            });
            // Ids are the image's to choose, and their names here can be made to be the same.
            if tree.add_lazy_directory(snapshots, &name, fill).is_err() {
                tracing::warn!("a snapshot has the name of another one and is not shown");
            }
        }
        Ok(())
    }

    fn show_in(
        &self,
        tree: &Tree,
        parent: NodeId,
        guest: &Arc<Guest>,
        snapshot: Option<&str>,
    ) -> Result<()> {
        let roots = (self.roots)(guest);
        match roots.first() {
            Some(root) => tree.add_view(parent, b"fs", Arc::clone(&root.view))?,
            None => tree.add_directory(parent, b"fs")?,
        };
        if roots.len() > 1 {
            let directory = tree.add_directory(parent, b"roots")?;
            for root in roots.iter() {
                tree.add_view(directory, &file_name(&root.name), Arc::clone(&root.view))?;
            }
        }
        let volumes = tree.add_directory(parent, b"volumes")?;
        for (index, volume) in guest.volumes().iter().enumerate() {
            if let Content::FileSystem(fs) = &volume.content {
                let view = Arc::new(GuestView::new(Arc::clone(fs), index));
                tree.add_view(volumes, &file_name(&volume.name), view)?;
            }
        }
        let disks = tree.add_directory(parent, b"disks")?;
        for disk in guest.disks() {
            tree.add_device(disks, &file_name(&disk.name), disk.device.clone())?;
        }
        for volume in guest.volumes().iter().filter(|v| v.partition.is_some()) {
            tree.add_device(disks, &file_name(&volume.name), volume.device.clone())?;
        }
        let meta = tree.add_directory(parent, b"meta")?;
        let mut below: Vec<(&str, NodeId)> = Vec::new();
        for file in (self.meta)(guest, &roots, snapshot) {
            let (directory, name) = match file.path.split_once('/') {
                None => (meta, file.path),
                Some((directory, name)) => {
                    let known = below.iter().find(|(n, _)| *n == directory);
                    let id = match known {
                        Some((_, id)) => *id,
                        None => {
                            let id = tree.add_directory(meta, directory.as_bytes())?;
                            below.push((directory, id));
                            id
                        }
                    };
                    (id, name)
                }
            };
            tree.add_file(directory, name.as_bytes(), file.permissions, file.make)?;
        }
        Ok(())
    }
}

/// An id or name of the image's choosing as a file name: `/`, `%`, NUL and control characters as
/// `%XX`, and so are the names `.` and `..` and the end of one that is too long.
pub fn file_name(id: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(id.len());
    let dots = id == "." || id == "..";
    for byte in id.bytes() {
        if dots || byte == b'/' || byte == b'%' || byte < 0x20 || byte == 0x7f {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    if out.is_empty() {
        out.extend_from_slice(b"%");
    }
    if out.len() > crate::limits::MAX_NAME_BYTES {
        // Two such ids are told apart by a checksum of the whole.
        let sum = crc32c::crc32c(id.as_bytes());
        out.truncate(240);
        out.extend_from_slice(format!("%{sum:08x}").as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_names() {
        for (id, want) in [
            ("1", "1"),
            ("a/b", "a%2Fb"),
            ("..", "%2E%2E"),
            ("5%", "5%25"),
            ("", "%"),
        ] {
            assert_eq!(file_name(id), want.as_bytes(), "{id}");
        }
        assert!(file_name(&"x".repeat(1000)).len() <= 255);
        assert_ne!(file_name(&"x".repeat(1000)), file_name(&"x".repeat(1001)));
    }
}
