//! One path tree over several filesystems, and the path walk inside it.
//!
//! The walk never leaves the guest: an absolute symbolic link starts again at the guest's root,
//! `..` at the root stays there, at most [`limits::MAX_SYMLINKS`] links are followed. Mount points
//! are crossed downwards when a walk reaches the directory they cover, and upwards by `..`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::fs::{Attributes, FileSystem, FileType, FsError, FsErrorKind, InodeNo, Result};
use crate::limits;
use crate::ondisk::text::printable;

/// A filesystem at its place in the tree.
#[derive(Clone)]
pub struct Mount {
    /// Where it is mounted: absolute, normalised (`/`, `/boot/efi`).
    pub path: Vec<u8>,
    /// Index of its volume in [`super::Guest::volumes`].
    pub volume: usize,
    /// The filesystem.
    pub fs: Arc<dyn FileSystem>,
    /// The directory of the filesystem that appears at `path`; its root, but for subvolumes and
    /// bind mounts.
    pub root: InodeNo,
    /// The mount and directory it covers; `None` for the root mount.
    covers: Option<Node>,
}

/// A file in a [`GuestView`]: which mount, which inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Index into [`GuestView::mounts`].
    pub mount: usize,
    /// Inode within that mount's filesystem.
    pub ino: InodeNo,
}

/// Whether the last component of a path is followed if it is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowFinal {
    /// As `stat` does.
    Yes,
    /// As `lstat` does.
    No,
}

/// One path tree; see the module text.
pub struct GuestView {
    mounts: Vec<Mount>,
    /// Covered directory → the mount on top of it.
    crossings: HashMap<Node, usize>,
}

impl GuestView {
    /// A tree of one filesystem.
    pub fn new(fs: Arc<dyn FileSystem>, volume: usize) -> Self {
        let root = fs.root();
        Self {
            mounts: vec![Mount {
                path: b"/".to_vec(),
                volume,
                fs,
                root,
                covers: None,
            }],
            crossings: HashMap::new(),
        }
    }

    /// Puts a filesystem on top of the directory at `path` (absolute).
    ///
    /// # Errors
    /// What the walk to `path` reports; [`FsErrorKind::NotDirectory`] if it is no directory;
    /// [`FsErrorKind::Invalid`] if `path` is the root.
    pub fn mount(&mut self, path: &[u8], fs: Arc<dyn FileSystem>, volume: usize) -> Result<()> {
        let covered = self.resolve(path, FollowFinal::Yes)?;
        if self.attributes(covered)?.file_type != FileType::Directory {
            return Err(FsError::new(
                FsErrorKind::NotDirectory,
                "the mount point is no directory",
            ));
        }
        if self
            .mounts
            .first()
            .is_some_and(|root| root.root == covered.ino)
            && covered.mount == 0
        {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                "the root cannot be covered",
            ));
        }
        let index = self.mounts.len();
        let root = fs.root();
        self.mounts.push(Mount {
            path: normalise(path),
            volume,
            fs,
            root,
            covers: Some(covered),
        });
        // A walk that reaches an already covered directory lands on top of it, so `covered` is
        // never a key yet.
        self.crossings.insert(covered, index);
        Ok(())
    }

    /// Shows the directory `source` of this tree at `path` as well. What is mounted below `source`
    /// does not come along, as with a bind mount that is not recursive.
    ///
    /// # Errors
    /// As [`GuestView::mount`].
    pub fn bind(&mut self, path: &[u8], source: Node) -> Result<()> {
        let below = self.mounts.get(source.mount).cloned();
        let Some(below) = below else {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                "a node that belongs to another tree",
            ));
        };
        self.mount(path, below.fs, below.volume)?;
        if let Some(mount) = self.mounts.last_mut() {
            mount.root = source.ino;
        }
        Ok(())
    }

    /// All mounts, the root first.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The filesystem a node lives in.
    ///
    /// # Errors
    /// [`FsErrorKind::Invalid`] for a node of another view.
    pub fn fs(&self, node: Node) -> Result<&Arc<dyn FileSystem>> {
        self.mounts.get(node.mount).map(|m| &m.fs).ok_or_else(|| {
            FsError::new(FsErrorKind::Invalid, "a node that belongs to another tree")
        })
    }

    /// The root of the tree.
    pub fn root(&self) -> Node {
        let ino = self.mounts.first().map_or(InodeNo(0), |m| m.root);
        Node { mount: 0, ino }
    }

    /// The node seen where `node` is: the root of the filesystem mounted on it, if there is one.
    #[must_use]
    pub fn crossed(&self, mut node: Node) -> Node {
        // Each crossing leads to a mount of a higher index, so this ends.
        while let Some(&mount) = self.crossings.get(&node) {
            let Some(on_top) = self.mounts.get(mount) else {
                break;
            };
            node = Node {
                mount,
                ino: on_top.root,
            };
        }
        node
    }

    /// One step from a directory: a name, `.` or `..`, crossing mounts both ways. Symbolic links
    /// are not followed.
    ///
    /// # Errors
    /// As [`FileSystem::lookup`].
    pub fn step(&self, dir: Node, name: &[u8]) -> Result<Node> {
        let mut dir = dir;
        if name == b"." && self.attributes(dir)?.file_type == FileType::Directory {
            return Ok(dir);
        }
        if name == b".." {
            // Out of as many mounts as this directory is the root of.
            while let Some(mount) = self.mounts.get(dir.mount) {
                match mount.covers {
                    Some(covered) if mount.root == dir.ino => dir = covered,
                    _ => break,
                }
            }
            if dir == self.root() {
                return Ok(dir);
            }
        }
        let ino = self.fs(dir)?.lookup(dir.ino, name)?;
        Ok(self.crossed(Node {
            mount: dir.mount,
            ino,
        }))
    }

    /// Walks `path` from the root of the tree; a relative path is taken from the root as well.
    ///
    /// # Errors
    /// [`FsErrorKind::NotFound`], [`FsErrorKind::NotDirectory`], [`FsErrorKind::Loop`],
    /// [`FsErrorKind::NameTooLong`], or what the filesystem reports.
    pub fn resolve(&self, path: &[u8], follow: FollowFinal) -> Result<Node> {
        self.resolve_from(self.root(), path, follow)
    }

    /// Walks `path` from a directory; an absolute path starts at the root of the tree.
    ///
    /// # Errors
    /// As [`GuestView::resolve`].
    pub fn resolve_from(&self, start: Node, path: &[u8], follow: FollowFinal) -> Result<Node> {
        if path.len() > limits::MAX_PATH_BYTES {
            return Err(FsError::new(
                FsErrorKind::NameTooLong,
                "the path is too long",
            ));
        }
        if path.contains(&0) {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                "a path holds a NUL byte",
            ));
        }
        let mut links = 0usize;
        let mut here = if path.first() == Some(&b'/') {
            self.root()
        } else {
            start
        };
        // Components still to walk, the next one last. Each link puts its target's on top.
        let mut todo: Vec<Vec<u8>> = components_reversed(path);
        while let Some(name) = todo.pop() {
            let next = self.step(here, &name).map_err(|e| within(e, &name))?;
            let last = todo.is_empty();
            if (!last || follow == FollowFinal::Yes) && name != b".." && name != b"." {
                let attributes = self.attributes(next).map_err(|e| within(e, &name))?;
                if attributes.file_type == FileType::Symlink {
                    links = links.saturating_add(1);
                    if links > limits::MAX_SYMLINKS {
                        return Err(FsError::new(
                            FsErrorKind::Loop,
                            format!("too many symbolic links at {:?}", printable(&name)),
                        ));
                    }
                    let target = self.read_link(next).map_err(|e| within(e, &name))?;
                    if target.is_empty() {
                        return Err(FsError::new(FsErrorKind::NotFound, "an empty link target"));
                    }
                    if target.len() > limits::MAX_PATH_BYTES {
                        return Err(FsError::new(FsErrorKind::NameTooLong, "a link is too long"));
                    }
                    if target.first() == Some(&b'/') {
                        here = self.root();
                    }
                    todo.extend(components_reversed(&target));
                    continue;
                }
                if !todo.is_empty() && attributes.file_type != FileType::Directory {
                    return Err(FsError::new(
                        FsErrorKind::NotDirectory,
                        format!("{:?} is not a directory", printable(&name)),
                    ));
                }
            }
            here = next;
        }
        Ok(here)
    }

    /// What `stat` tells about a node.
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub fn attributes(&self, node: Node) -> Result<Attributes> {
        self.fs(node)?.attributes(node.ino)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As [`FileSystem::read_link`].
    pub fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        self.fs(node)?.read_link(node.ino)
    }

    /// The names in a directory with the nodes they lead to (mounts crossed), sorted by name.
    ///
    /// # Errors
    /// As [`FileSystem::read_dir`].
    pub fn list(&self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let mut names = Vec::new();
        self.fs(dir)?.read_dir(dir.ino, 0, &mut |entry| {
            let node = self.crossed(Node {
                mount: dir.mount,
                ino: entry.ino,
            });
            names.push((entry.name.to_vec(), node));
            ControlFlow::Continue(())
        })?;
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }

    /// A regular file of at most `max` bytes, whole. Symbolic links are followed.
    ///
    /// # Errors
    /// As [`GuestView::resolve`]; [`FsErrorKind::TooLarge`]; [`FsErrorKind::Invalid`] if it is no
    /// regular file.
    pub fn read_file(&self, path: &[u8], max: u64) -> Result<Vec<u8>> {
        self.read_node(self.resolve(path, FollowFinal::Yes)?, max)
    }

    /// A regular file of at most `max` bytes, whole.
    ///
    /// # Errors
    /// As [`GuestView::read_file`].
    pub fn read_node(&self, node: Node, max: u64) -> Result<Vec<u8>> {
        let attributes = self.attributes(node)?;
        if attributes.file_type != FileType::Regular {
            return Err(FsError::new(FsErrorKind::Invalid, "not a regular file"));
        }
        if attributes.size > max {
            return Err(FsError::new(
                FsErrorKind::TooLarge,
                format!(
                    "{} bytes are more than the {max} that are read whole",
                    attributes.size
                ),
            ));
        }
        let size = usize::try_from(attributes.size)
            .map_err(|_| FsError::new(FsErrorKind::TooLarge, "larger than memory"))?;
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
            let n = self.fs(node)?.read_at(node.ino, filled as u64, rest)?;
            if n == 0 {
                break;
            }
            filled = filled.saturating_add(n);
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Type of the file at `path`, following links; `None` if there is none or it cannot be
    /// reached.
    pub fn file_type(&self, path: &[u8]) -> Option<FileType> {
        let node = self.resolve(path, FollowFinal::Yes).ok()?;
        Some(self.attributes(node).ok()?.file_type)
    }

    /// Whether a regular file is at `path`, following links.
    pub fn is_file(&self, path: &[u8]) -> bool {
        self.file_type(path) == Some(FileType::Regular)
    }

    /// Whether a directory is at `path`, following links.
    pub fn is_dir(&self, path: &[u8]) -> bool {
        self.file_type(path) == Some(FileType::Directory)
    }
}

fn within(error: FsError, name: &[u8]) -> FsError {
    match error.kind() {
        // The plain outcomes of a walk say it all by themselves.
        FsErrorKind::NotFound => FsError::new(
            FsErrorKind::NotFound,
            format!("no such file: {:?}", printable(name)),
        ),
        _ => error.within(format!("at {:?}", printable(name))),
    }
}

/// The components of a path, the first one last; empty ones and `.` dropped. A slash at the end is
/// kept as a last `.`, because `link/` and `file/` mean a directory.
fn components_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let slash = path.last() == Some(&b'/') || path.ends_with(b"/.");
    let end = slash.then(|| b".".to_vec());
    let names = path
        .split(|&b| b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .rev()
        .map(<[u8]>::to_vec);
    end.into_iter().chain(names).collect()
}

/// An absolute path without empty components, `.` and a slash at the end. `..` is kept out of it
/// by dropping the component before, as fstab's mount points mean it.
pub fn normalise(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for part in &parts {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_paths() {
        for (path, want) in [
            ("///usr//local//", "/usr/local"),
            ("/", "/"),
            ("", "/"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
        ] {
            assert_eq!(normalise(path.as_bytes()), want.as_bytes(), "{path}");
        }
    }
}
