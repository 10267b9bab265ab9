//! The tree's operations, by node.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::inodes::{Body, Directory, Fill, Make, Space, Synthetic};
use super::node::{MAX_DEPTH, MAX_SPACES, NodeId};
use super::readahead::{Listings, Streams};
use super::symlink::{self, Symlinks};
use crate::block::BlockDevice;
use crate::fs::{
    Attributes, FileSystem, FileType, FsError, FsErrorKind, FsUsage, InodeNo, Result, Timestamp,
};
use crate::guest::{GuestView, Node};
use crate::limits;

/// Directories whose depth is remembered.
const DEPTHS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How long the allocated space of a disk may be counted for one `stat`.
const COUNTING_TIME: Duration = Duration::from_millis(20);

/// Offsets of `.` and `..` in a directory; a filesystem's own cookies follow after them.
const OWN_COOKIES: u64 = 2;

/// How the tree is shown.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// What is done with link targets.
    pub symlinks: Symlinks,
    /// Owner of the synthetic files.
    pub uid: u32,
    /// Group of the synthetic files.
    pub gid: u32,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Where it leads.
    pub id: NodeId,
    /// Its type, where the directory says so.
    pub file_type: Option<FileType>,
    /// The name.
    pub name: Vec<u8>,
    /// Where to continue after it.
    pub next: u64,
}

/// What a seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Stored bytes.
    Data,
    /// A hole, or the end.
    Hole,
}

/// The namespace. All calls may come from many threads at once.
///
/// Lock order: a directory's fill, then the tables below; no lock is held during I/O but the fill.
pub struct Tree {
    options: TreeOptions,
    spaces: RwLock<Vec<Arc<Space>>>,
    synthetic: RwLock<Vec<Arc<Synthetic>>>,
    depths: Mutex<LruCache<NodeId, usize>>,
    streams: Streams,
    listings: Listings,
    born: Timestamp,
}

/// A node, taken apart.
enum Place {
    Own(NodeId, Arc<Synthetic>),
    Guest(NodeId, Arc<Space>),
}

impl Tree {
    /// An empty tree.
    pub fn new(options: TreeOptions) -> Self {
        let root = Synthetic {
            parent: NodeId::ROOT,
            permissions: 0o755,
            body: Body::Directory(Directory::default()),
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            options,
            spaces: RwLock::default(),
            synthetic: RwLock::new(vec![Arc::new(root)]),
            depths: Mutex::new(LruCache::new(DEPTHS)),
            streams: Streams::default(),
            listings: Listings::default(),
            born: Timestamp {
                secs: i64::try_from(now.as_secs()).unwrap_or(0),
                nanos: now.subsec_nanos(),
            },
        }
    }

    /// Adds an empty directory of our own.
    ///
    /// # Errors
    /// [`FsErrorKind::NotDirectory`] if `parent` is no directory of our own;
    /// [`FsErrorKind::Invalid`] if the name is there or is none.
    pub fn add_directory(&self, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        self.add(parent, name, 0o755, Body::Directory(Directory::default()))
    }

    /// Adds a directory that is filled when it is looked into.
    ///
    /// # Errors
    /// As [`Tree::add_directory`].
    pub fn add_lazy_directory(&self, parent: NodeId, name: &[u8], fill: Fill) -> Result<NodeId> {
        self.add(parent, name, 0o755, Body::Directory(Directory::lazy(fill)))
    }

    /// Adds a file whose content is made when it is looked at.
    ///
    /// # Errors
    /// As [`Tree::add_directory`].
    pub fn add_file(
        &self,
        parent: NodeId,
        name: &[u8],
        permissions: u16,
        make: Make,
    ) -> Result<NodeId> {
        let content = OnceLock::new();
        self.add(parent, name, permissions, Body::File { make, content })
    }

    /// Adds a block device as a flat file. Only its owner may read it: everything is in there,
    /// whatever the guest's permissions say.
    ///
    /// # Errors
    /// As [`Tree::add_directory`].
    pub fn add_device(&self, parent: NodeId, name: &[u8], device: BlockDevice) -> Result<NodeId> {
        let blocks = OnceLock::new();
        self.add(parent, name, 0o400, Body::Device { device, blocks })
    }

    /// Adds a guest's tree. A view that is added twice is shown twice.
    ///
    /// # Errors
    /// As [`Tree::add_directory`]; [`FsErrorKind::TooLarge`] if there are too many filesystems.
    pub fn add_view(&self, parent: NodeId, name: &[u8], view: Arc<GuestView>) -> Result<NodeId> {
        let first = {
            let mut spaces = self.spaces.write();
            let mounts = view.mounts().len();
            if spaces.len().saturating_add(mounts) > MAX_SPACES {
                return Err(FsError::new(
                    FsErrorKind::TooLarge,
                    "more filesystems than one tree can show",
                ));
            }
            let first = u16::try_from(spaces.len().saturating_add(1))
                .map_err(|_| FsError::new(FsErrorKind::TooLarge, "too many filesystems"))?;
            spaces.extend((0..mounts).map(|mount| {
                Arc::new(Space {
                    view: Arc::clone(&view),
                    mount,
                    first,
                    parent,
                })
            }));
            first
        };
        let root = view.crossed(view.root());
        let id = node_id(first, root)?;
        self.insert(parent, name, id)?;
        Ok(id)
    }

    fn add(&self, parent: NodeId, name: &[u8], permissions: u16, body: Body) -> Result<NodeId> {
        let id = {
            let mut synthetic = self.synthetic.write();
            let id = NodeId::synthetic(synthetic.len());
            synthetic.push(Arc::new(Synthetic {
                parent,
                permissions,
                body,
            }));
            id
        };
        self.insert(parent, name, id)?;
        Ok(id)
    }

    fn insert(&self, parent: NodeId, name: &[u8], id: NodeId) -> Result<()> {
        let Place::Own(_, node) = self.place(parent)? else {
            return Err(not_directory());
        };
        let Body::Directory(directory) = &node.body else {
            return Err(not_directory());
        };
        let bad = name.is_empty()
            || name == b"."
            || name == b".."
            || name.len() > limits::MAX_NAME_BYTES
            || name.contains(&b'/')
            || name.contains(&0);
        let mut children = directory.children.write();
        if bad || children.contains_key(name) {
            return Err(FsError::new(
                FsErrorKind::Invalid,
                "a name that cannot be used",
            ));
        }
        children.insert(name.to_vec(), id);
        Ok(())
    }

    fn place(&self, id: NodeId) -> Result<Place> {
        let stale = || FsError::new(FsErrorKind::NotFound, "no such node");
        if let Some(index) = id.index() {
            let node = self.synthetic.read().get(index).cloned();
            return Ok(Place::Own(id, node.ok_or_else(stale)?));
        }
        let index = usize::from(id.space()).checked_sub(1).ok_or_else(stale)?;
        let space = self.spaces.read().get(index).cloned();
        Ok(Place::Guest(id, space.ok_or_else(stale)?))
    }

    /// What a name in a directory leads to; `.` and `..` too.
    ///
    /// # Errors
    /// As [`FileSystem::lookup`].
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<(NodeId, Attributes)> {
        if name == b"." {
            return Ok((dir, self.attributes(dir)?));
        }
        match self.place(dir)? {
            Place::Own(id, node) => {
                let Body::Directory(directory) = &node.body else {
                    return Err(not_directory());
                };
                if name == b".." {
                    return Ok((node.parent, self.attributes(node.parent)?));
                }
                directory.filled(self, id)?;
                let child = directory.children.read().get(name).copied();
                let child = child.ok_or_else(|| {
                    FsError::new(FsErrorKind::NotFound, "no such file in the tree's own part")
                })?;
                Ok((child, self.attributes(child)?))
            }
            Place::Guest(id, space) => {
                if name.len() > limits::MAX_NAME_BYTES {
                    return Err(FsError::new(
                        FsErrorKind::NameTooLong,
                        "the name is too long",
                    ));
                }
                let here = space.node(id);
                if name == b".." && here == space.view.crossed(space.view.root()) {
                    return Ok((space.parent, self.attributes(space.parent)?));
                }
                let child = space.view.step(here, name)?;
                let child_id = node_id(space.first, child)?;
                let mut attributes = space.view.attributes(child)?;
                let child_id = if attributes.file_type == FileType::Symlink {
                    let child_id = self.link_id(child_id, id, &space)?;
                    self.confine_size(child_id, &space, &mut attributes)?;
                    child_id
                } else {
                    child_id
                };
                Ok((child_id, attributes))
            }
        }
    }

    /// The number of a symbolic link in `dir`.
    fn link_id(&self, id: NodeId, dir: NodeId, space: &Space) -> Result<NodeId> {
        match self.options.symlinks {
            Symlinks::Raw => Ok(id),
            Symlinks::Confine => Ok(id.at_depth(self.depth(dir, space)?)),
        }
    }

    /// How far a directory is below the root of its view.
    fn depth(&self, dir: NodeId, space: &Space) -> Result<usize> {
        if let Some(&depth) = self.depths.lock().get(&dir) {
            return Ok(depth);
        }
        let view = &space.view;
        let root = view.crossed(view.root());
        let mut here = space.node(dir);
        let mut depth = 0usize;
        while here != root {
            depth = depth.saturating_add(1);
            if depth > limits::MAX_TREE_DEPTH {
                return Err(FsError::damaged(
                    "a directory that is nowhere below the root",
                ));
            }
            here = view.step(here, b"..")?;
        }
        self.depths.lock().put(dir, depth);
        Ok(depth)
    }

    /// POSIX wants a link's size to be its target's length.
    fn confine_size(&self, id: NodeId, space: &Space, attributes: &mut Attributes) -> Result<()> {
        if self.options.symlinks == Symlinks::Confine {
            attributes.size = self.target(id, space)?.len() as u64;
        }
        Ok(())
    }

    fn target(&self, id: NodeId, space: &Space) -> Result<Vec<u8>> {
        let target = space.view.read_link(space.node(id))?;
        match self.options.symlinks {
            Symlinks::Raw => Ok(target),
            Symlinks::Confine => {
                let depth = id.depth();
                if depth >= MAX_DEPTH {
                    return Err(FsError::new(
                        FsErrorKind::NameTooLong,
                        "a symbolic link too deep in the tree to be kept inside it",
                    ));
                }
                Ok(symlink::confine(&target, depth).into_owned())
            }
        }
    }

    /// What `stat` tells. The inode number to show is the node's.
    ///
    /// # Errors
    /// As [`FileSystem::attributes`].
    pub fn attributes(&self, id: NodeId) -> Result<Attributes> {
        match self.place(id)? {
            Place::Own(_, node) => Ok(self.own_attributes(id, &node)),
            Place::Guest(id, space) => {
                let mut attributes = space.view.attributes(space.node(id))?;
                if attributes.file_type == FileType::Symlink {
                    self.confine_size(id, &space, &mut attributes)?;
                }
                Ok(attributes)
            }
        }
    }

    fn own_attributes(&self, id: NodeId, node: &Synthetic) -> Attributes {
        let (file_type, size, blocks) = match &node.body {
            Body::Directory(_) => (FileType::Directory, 0, 0),
            Body::File { make, content } => {
                let size = content.get_or_init(make).len() as u64;
                (FileType::Regular, size, size.div_ceil(512))
            }
            Body::Device { device, blocks } => {
                let blocks = *blocks.get_or_init(|| allocated(device));
                (FileType::Regular, device.len(), blocks)
            }
        };
        Attributes {
            ino: InodeNo(id.raw()),
            generation: 0,
            file_type,
            permissions: node.permissions,
            // As btrfs and others do: subdirectories are not counted.
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            size,
            blocks,
            block_size: 4096,
            device: None,
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            crtime: Some(self.born),
        }
    }

    /// At most `max` names of a directory, `.` and `..` first, from `cookie` (0, or an entry's
    /// `next`). Empty at the end.
    ///
    /// # Errors
    /// As [`FileSystem::read_dir`].
    pub fn read_dir(&self, dir: NodeId, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        let mut entries = Vec::new();
        let mut add_own = |name: &[u8], id: NodeId, next: u64| {
            if cookie < next {
                entries.push(TreeEntry {
                    id,
                    file_type: Some(FileType::Directory),
                    name: name.to_vec(),
                    next,
                });
            }
        };
        match self.place(dir)? {
            Place::Own(id, node) => {
                let Body::Directory(directory) = &node.body else {
                    return Err(not_directory());
                };
                directory.filled(self, id)?;
                add_own(b".", id, 1);
                add_own(b"..", node.parent, 2);
                let skip =
                    usize::try_from(cookie.saturating_sub(OWN_COOKIES)).unwrap_or(usize::MAX);
                for (n, (name, &id)) in directory.children.read().iter().enumerate().skip(skip) {
                    if entries.len() >= max {
                        break;
                    }
                    entries.push(TreeEntry {
                        id,
                        file_type: None,
                        name: name.clone(),
                        next: (n as u64).saturating_add(OWN_COOKIES).saturating_add(1),
                    });
                }
            }
            Place::Guest(id, space) => {
                if cookie < OWN_COOKIES {
                    add_own(b".", id, 1);
                    let (parent, _) = self
                        .lookup(id, b"..")
                        .unwrap_or((space.parent, self.attributes(space.parent)?));
                    add_own(b"..", parent, 2);
                }
                self.read_guest_dir(id, &space, cookie, max, &mut entries)?;
            }
        }
        Ok(entries)
    }

    fn read_guest_dir(
        &self,
        id: NodeId,
        space: &Space,
        cookie: u64,
        max: usize,
        entries: &mut Vec<TreeEntry>,
    ) -> Result<()> {
        let mut wrong = None;
        let from = cookie.saturating_sub(OWN_COOKIES);
        let crosses = space.view.mounts().len() > 1;
        space.fs()?.read_dir(id.ino(), from, &mut |entry| {
            if entries.len() >= max {
                return ControlFlow::Break(());
            }
            let mut node = Node {
                mount: space.mount,
                ino: entry.ino,
            };
            if crosses {
                node = space.view.crossed(node);
            }
            let next = entry.next.checked_add(OWN_COOKIES);
            let (Ok(child), Some(next)) = (node_id(space.first, node), next) else {
                wrong = Some(FsError::new(
                    FsErrorKind::Unsupported,
                    "a directory entry that cannot be numbered",
                ));
                return ControlFlow::Break(());
            };
            entries.push(TreeEntry {
                id: child,
                file_type: entry.file_type,
                name: entry.name.to_vec(),
                next,
            });
            ControlFlow::Continue(())
        })?;
        if let (Some(error), true) = (wrong, entries.is_empty()) {
            return Err(error);
        }
        // Only now, when the filesystem's directory is let go: numbers of links need more reading.
        if self.options.symlinks == Symlinks::Confine {
            let mut depth = None;
            for entry in entries.iter_mut().filter(|e| e.id.space() != 0) {
                if entry.file_type.is_none() {
                    entry.file_type = self.attributes(entry.id).ok().map(|a| a.file_type);
                }
                if entry.file_type == Some(FileType::Symlink) {
                    let depth = match depth {
                        Some(depth) => depth,
                        None => *depth.insert(self.depth(id, space)?),
                    };
                    entry.id = entry.id.at_depth(depth);
                }
            }
        }
        Ok(())
    }

    /// Reads from a regular file; fewer bytes than `buf` holds only at its end.
    ///
    /// # Errors
    /// As [`FileSystem::read_at`].
    pub fn read(&self, id: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match self.place(id)? {
            Place::Own(_, node) => match &node.body {
                Body::Directory(_) => Err(FsError::new(FsErrorKind::IsDirectory, "a directory")),
                Body::File { make, content } => {
                    let content = content.get_or_init(make);
                    let rest = usize::try_from(offset)
                        .ok()
                        .and_then(|from| content.get(from..))
                        .unwrap_or_default();
                    let n = rest.len().min(buf.len());
                    if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
                        to.copy_from_slice(from);
                    }
                    Ok(n)
                }
                Body::Device { device, .. } => {
                    if let Some((from, len)) = self.streams.note(id, offset, buf.len() as u64) {
                        device.prefetch(from, len.min(device.len().saturating_sub(from)));
                    }
                    Ok(device.read_some_at(offset, buf)?)
                }
            },
            Place::Guest(id, space) => {
                let fs = space.fs()?;
                if offset == 0 {
                    self.announce(&self.listings.opened(id));
                }
                if let Some((from, len)) = self.streams.note(id, offset, buf.len() as u64) {
                    fs.prefetch(id.ino(), from, len);
                }
                fs.read_at(id.ino(), offset, buf)
            }
        }
    }

    /// Takes note of a piece of a directory's listing that was given to a reader who also got the
    /// attributes, the `first` or a later one, and announces what such a reader wants next: the
    /// names in the directories listed, and the files if files are being read. Advisory.
    pub fn listed(&self, dir: NodeId, first: bool, entries: &[TreeEntry]) {
        if dir.space() == 0 {
            return;
        }
        let of = |file_type| {
            let wanted = move |e: &&TreeEntry| {
                e.file_type == Some(file_type) && e.id.space() != 0 && e.next > OWN_COOKIES
            };
            entries.iter().filter(wanted).map(|e| e.id)
        };
        let files = self.listings.note(dir, first, of(FileType::Regular));
        let directories: Vec<NodeId> = of(FileType::Directory).collect();
        self.announce(&directories);
        self.announce(&files);
    }

    /// Tells that the attributes of these entries are wanted next. Advisory.
    pub fn prefetch_attributes(&self, entries: &[TreeEntry]) {
        let ids: Vec<NodeId> = entries.iter().map(|e| e.id).collect();
        self.tell(&ids, |fs, inos| fs.prefetch_attributes(inos));
    }

    /// Tells the filesystems that the beginnings of these nodes will be read soon.
    fn announce(&self, ids: &[NodeId]) {
        self.tell(ids, |fs, inos| fs.prefetch_starts(inos));
    }

    fn tell(&self, ids: &[NodeId], tell: impl Fn(&dyn FileSystem, &[InodeNo])) {
        for same in ids.chunk_by(|a, b| a.space() == b.space()) {
            let Some(Ok(Place::Guest(_, space))) = same.first().map(|&id| self.place(id)) else {
                continue;
            };
            if let Ok(fs) = space.fs() {
                let inos: Vec<InodeNo> = same.iter().map(|id| id.ino()).collect();
                tell(&**fs, &inos);
            }
        }
    }

    /// The first offset from `offset` on with data or a hole (the end of a file is one); `None` if
    /// there is none or `offset` is not inside the file.
    ///
    /// # Errors
    /// As [`FileSystem::extent_at`].
    pub fn seek(&self, id: NodeId, offset: u64, what: Seek) -> Result<Option<u64>> {
        let size = self.attributes(id)?.size;
        if offset >= size {
            return Ok(None);
        }
        let place = self.place(id)?;
        let mut at = offset;
        while at < size {
            let (len, data) = match &place {
                Place::Own(_, node) => match &node.body {
                    Body::Directory(_) => {
                        return Err(FsError::new(FsErrorKind::IsDirectory, "a directory"));
                    }
                    Body::File { .. } => (size.saturating_sub(at), true),
                    Body::Device { device, .. } => {
                        let extent = device.extent_at(at, size.saturating_sub(at))?;
                        (extent.len, !extent.reads_zero())
                    }
                },
                Place::Guest(id, space) => {
                    let extent = space.fs()?.extent_at(id.ino(), at)?;
                    (extent.len, extent.data)
                }
            };
            if data == (what == Seek::Data) {
                return Ok(Some(at));
            }
            at = at.saturating_add(len.max(1));
        }
        Ok((what == Seek::Hole).then_some(size))
    }

    /// The target of a symbolic link, as the tree shows it.
    ///
    /// # Errors
    /// As [`FileSystem::read_link`].
    pub fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        match self.place(id)? {
            Place::Own(..) => Err(FsError::new(FsErrorKind::Invalid, "not a symbolic link")),
            Place::Guest(id, space) => self.target(id, &space),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// As [`FileSystem::xattr`].
    pub fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match self.place(id)? {
            Place::Own(..) => Err(FsError::new(FsErrorKind::NoAttribute, "no such attribute")),
            Place::Guest(id, space) => space.fs()?.xattr(id.ino(), name),
        }
    }

    /// The names of all extended attributes.
    ///
    /// # Errors
    /// As [`FileSystem::xattr_names`].
    pub fn xattr_names(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        match self.place(id)? {
            Place::Own(..) => Ok(Vec::new()),
            Place::Guest(id, space) => space.fs()?.xattr_names(id.ino()),
        }
    }

    /// How full the filesystem around a node is; all zero for the tree's own part.
    ///
    /// # Errors
    /// As [`FileSystem::usage`].
    pub fn usage(&self, id: NodeId) -> Result<FsUsage> {
        match self.place(id)? {
            Place::Own(..) => Ok(FsUsage {
                block_size: 4096,
                ..FsUsage::default()
            }),
            Place::Guest(_, space) => space.fs()?.usage(),
        }
    }
}

impl Space {
    fn node(&self, id: NodeId) -> Node {
        Node {
            mount: self.mount,
            ino: id.ino(),
        }
    }

    fn fs(&self) -> Result<&Arc<dyn FileSystem>> {
        self.view.fs(Node {
            mount: self.mount,
            ino: InodeNo(0),
        })
    }
}

fn node_id(first: u16, node: Node) -> Result<NodeId> {
    let space = u16::try_from(node.mount)
        .ok()
        .and_then(|mount| first.checked_add(mount))
        .ok_or_else(|| FsError::new(FsErrorKind::TooLarge, "too many filesystems"))?;
    NodeId::in_space(space, node.ino)
}

fn not_directory() -> FsError {
    FsError::new(FsErrorKind::NotDirectory, "not a directory")
}

/// Space a device takes, in units of 512 bytes; what could not be counted in time counts as
/// taken.
fn allocated(device: &BlockDevice) -> u64 {
    let started = Instant::now();
    let size = device.len();
    let (mut at, mut taken) = (0u64, 0u64);
    while at < size {
        let rest = size.saturating_sub(at);
        let extent = match device.extent_at(at, rest) {
            Ok(extent) if started.elapsed() < COUNTING_TIME => extent,
            _ => {
                taken = taken.saturating_add(rest);
                break;
            }
        };
        if !extent.reads_zero() {
            taken = taken.saturating_add(extent.len);
        }
        at = at.saturating_add(extent.len.max(1));
    }
    taken.div_ceil(512)
}
