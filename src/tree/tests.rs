//! The namespace over filesystems in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::namespace::{Seek, Tree, TreeOptions};
use super::node::NodeId;
use super::symlink::Symlinks;
use crate::block::memory;
use crate::fs::{
    Attributes, DirEntry, FileExtent, FileSystem, FileType, FsError, FsErrorKind, FsInfo, FsUsage,
    InodeNo, Result, Timestamp,
};
use crate::guest::GuestView;

enum Kind {
    File(Vec<u8>),
    Dir(Vec<(Vec<u8>, u64)>, u64),
    Link(Vec<u8>),
}

/// A filesystem of a few nodes; inode 2 is the root.
struct Fake {
    info: FsInfo,
    nodes: BTreeMap<u64, Kind>,
    prefetched: AtomicU64,
}

impl Fake {
    fn new(nodes: Vec<(u64, Kind)>) -> Arc<Self> {
        Arc::new(Self {
            info: FsInfo::default(),
            nodes: nodes.into_iter().collect(),
            prefetched: AtomicU64::new(0),
        })
    }

    fn node(&self, ino: InodeNo) -> Result<&Kind> {
        self.nodes
            .get(&ino.0)
            .ok_or_else(|| FsError::new(FsErrorKind::NotFound, "no such inode"))
    }
}

impl FileSystem for Fake {
    fn info(&self) -> &FsInfo {
        &self.info
    }
    fn usage(&self) -> Result<FsUsage> {
        Ok(FsUsage::default())
    }
    fn root(&self) -> InodeNo {
        InodeNo(2)
    }
    fn lookup(&self, dir: InodeNo, name: &[u8]) -> Result<InodeNo> {
        let Kind::Dir(entries, parent) = self.node(dir)? else {
            return Err(FsError::new(FsErrorKind::NotDirectory, "no directory"));
        };
        if name == b".." {
            return Ok(InodeNo(*parent));
        }
        let found = entries.iter().find(|(n, _)| n == name);
        found
            .map(|(_, ino)| InodeNo(*ino))
            .ok_or_else(|| FsError::new(FsErrorKind::NotFound, "no such name"))
    }
    fn attributes(&self, ino: InodeNo) -> Result<Attributes> {
        let (file_type, size) = match self.node(ino)? {
            Kind::File(data) => (FileType::Regular, data.len()),
            Kind::Dir(..) => (FileType::Directory, 0),
            Kind::Link(target) => (FileType::Symlink, target.len()),
        };
        Ok(Attributes {
            ino,
            generation: 0,
            file_type,
            permissions: 0o644,
            nlink: 1,
            uid: 1,
            gid: 2,
            size: size as u64,
            blocks: 0,
            block_size: 4096,
            device: None,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: None,
        })
    }
    fn read_at(&self, ino: InodeNo, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let Kind::File(data) = self.node(ino)? else {
            return Err(FsError::new(FsErrorKind::Invalid, "no file"));
        };
        let rest = data.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn extent_at(&self, ino: InodeNo, offset: u64) -> Result<FileExtent> {
        // Pages of zeroes are holes.
        let Kind::File(data) = self.node(ino)? else {
            return Err(FsError::new(FsErrorKind::Invalid, "no file"));
        };
        let page = offset as usize / 4096 * 4096;
        let end = (page + 4096).min(data.len());
        Ok(FileExtent {
            len: end as u64 - offset,
            data: data[page..end].iter().any(|&b| b != 0),
        })
    }
    fn prefetch(&self, _ino: InodeNo, offset: u64, len: u64) {
        self.prefetched.fetch_max(offset + len, Ordering::Relaxed);
    }
    fn read_dir(
        &self,
        dir: InodeNo,
        cookie: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let Kind::Dir(entries, _) = self.node(dir)? else {
            return Err(FsError::new(FsErrorKind::NotDirectory, "no directory"));
        };
        for (n, (name, ino)) in entries.iter().enumerate().skip(cookie as usize) {
            let file_type = Some(self.attributes(InodeNo(*ino))?.file_type);
            let entry = DirEntry {
                ino: InodeNo(*ino),
                file_type,
                name,
                next: n as u64 + 1,
            };
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn read_link(&self, ino: InodeNo) -> Result<Vec<u8>> {
        match self.node(ino)? {
            Kind::Link(target) => Ok(target.clone()),
            _ => Err(FsError::new(FsErrorKind::Invalid, "no link")),
        }
    }
    fn xattr(&self, _ino: InodeNo, _name: &[u8]) -> Result<Vec<u8>> {
        Err(FsError::new(FsErrorKind::NoAttribute, "none"))
    }
    fn xattr_names(&self, _ino: InodeNo) -> Result<Vec<Vec<u8>>> {
        Ok(vec![b"user.x".to_vec()])
    }
}

fn names(list: &[(&str, u64)]) -> Vec<(Vec<u8>, u64)> {
    list.iter()
        .map(|(n, i)| (n.as_bytes().to_vec(), *i))
        .collect()
}

/// `/etc/passwd`, `/etc/abs → /etc/passwd`, `/etc/out → ../../../x`, `/abs` (a hard link of
/// `/etc/abs`), and a second filesystem on `/boot` with `/boot/grub/link → /etc`.
fn guest() -> Arc<GuestView> {
    let root = Fake::new(vec![
        (
            2,
            Kind::Dir(names(&[("etc", 3), ("boot", 4), ("abs", 11)]), 2),
        ),
        (
            3,
            Kind::Dir(names(&[("passwd", 10), ("abs", 11), ("out", 12)]), 2),
        ),
        (4, Kind::Dir(names(&[("covered", 10)]), 2)),
        (10, Kind::File(b"root:x:0".to_vec())),
        (11, Kind::Link(b"/etc/passwd".to_vec())),
        (12, Kind::Link(b"../../../x".to_vec())),
    ]);
    let boot = Fake::new(vec![
        (2, Kind::Dir(names(&[("grub", 3)]), 2)),
        (3, Kind::Dir(names(&[("link", 10)]), 2)),
        (10, Kind::Link(b"/etc".to_vec())),
    ]);
    let mut view = GuestView::new(root, 0);
    view.mount(b"/boot", boot, 1).unwrap();
    Arc::new(view)
}

fn tree(symlinks: Symlinks) -> Tree {
    Tree::new(TreeOptions {
        symlinks,
        uid: 0,
        gid: 0,
    })
}

fn walk(tree: &Tree, path: &str) -> Result<NodeId> {
    let mut here = NodeId::ROOT;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        here = tree.lookup(here, name.as_bytes())?.0;
    }
    Ok(here)
}

#[test]
fn two_appearances_two_sets_of_numbers() {
    let tree = tree(Symlinks::Confine);
    let view = guest();
    tree.add_view(NodeId::ROOT, b"fs", Arc::clone(&view))
        .unwrap();
    let volumes = tree.add_directory(NodeId::ROOT, b"volumes").unwrap();
    let alone = Arc::new(GuestView::new(Arc::clone(&view.mounts()[0].fs), 0));
    tree.add_view(volumes, b"sda1", alone).unwrap();

    let one = walk(&tree, "fs/etc/passwd").unwrap();
    let two = walk(&tree, "volumes/sda1/etc/passwd").unwrap();
    assert_ne!(one, two);
    assert_eq!((one.ino(), two.ino()), (InodeNo(10), InodeNo(10)));
    // In fs/ the second filesystem covers /boot, in volumes/ it does not.
    assert!(walk(&tree, "fs/boot/grub").is_ok());
    assert!(walk(&tree, "fs/boot/covered").is_err());
    assert!(walk(&tree, "volumes/sda1/boot/covered").is_ok());
    assert_ne!(walk(&tree, "fs/boot").unwrap(), walk(&tree, "fs").unwrap());
    // Up and down.
    for path in [
        "fs",
        "fs/etc",
        "fs/boot",
        "fs/boot/grub",
        "volumes/sda1",
        "volumes",
    ] {
        let here = walk(&tree, path).unwrap();
        let up = walk(&tree, path.rsplit_once('/').map_or("", |p| p.0)).unwrap();
        assert_eq!(tree.lookup(here, b"..").unwrap().0, up, "{path}");
        assert_eq!(tree.lookup(here, b".").unwrap().0, here, "{path}");
    }
    assert_eq!(tree.lookup(NodeId::ROOT, b"..").unwrap().0, NodeId::ROOT);
    // No such space.
    let wrong = NodeId::in_space(99, InodeNo(2)).unwrap();
    assert_eq!(
        tree.attributes(wrong).unwrap_err().kind(),
        FsErrorKind::NotFound
    );
}

#[test]
fn links_and_their_sizes() {
    for (symlinks, want) in [
        (
            Symlinks::Confine,
            [
                ("fs/etc/abs", "../etc/passwd"),
                ("fs/abs", "etc/passwd"),
                ("fs/etc/out", "../x"),
                ("fs/boot/grub/link", "../../etc"),
            ],
        ),
        (
            Symlinks::Raw,
            [
                ("fs/etc/abs", "/etc/passwd"),
                ("fs/abs", "/etc/passwd"),
                ("fs/etc/out", "../../../x"),
                ("fs/boot/grub/link", "/etc"),
            ],
        ),
    ] {
        let tree = tree(symlinks);
        tree.add_view(NodeId::ROOT, b"fs", guest()).unwrap();
        for (path, target) in want {
            let id = walk(&tree, path).unwrap();
            assert_eq!(tree.read_link(id).unwrap(), target.as_bytes(), "{path}");
            assert_eq!(tree.attributes(id).unwrap().size, target.len() as u64);
            // The listing says the same number.
            let (dir, name) = path.rsplit_once('/').unwrap();
            let listed = tree.read_dir(walk(&tree, dir).unwrap(), 0, 100).unwrap();
            let entry = listed.iter().find(|e| e.name == name.as_bytes()).unwrap();
            assert_eq!(entry.id, id, "{path}");
        }
        let same = walk(&tree, "fs/abs").unwrap() == walk(&tree, "fs/etc/abs").unwrap();
        assert_eq!(same, symlinks == Symlinks::Raw, "hard links");
    }
}

#[test]
fn listings_in_pieces() {
    let many: Vec<(String, u64)> = (0..1000).map(|n| (format!("f{n}"), 10)).collect();
    let entries = many
        .iter()
        .map(|(n, i)| (n.as_bytes().to_vec(), *i))
        .collect();
    let fs = Fake::new(vec![(2, Kind::Dir(entries, 2)), (10, Kind::File(vec![]))]);
    let tree = tree(Symlinks::Confine);
    let root = tree
        .add_view(NodeId::ROOT, b"fs", Arc::new(GuestView::new(fs, 0)))
        .unwrap();
    for step in [1, 2, 3, 7, 64, 5000] {
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let entries = tree.read_dir(root, cookie, step).unwrap();
            let Some(last) = entries.last() else { break };
            cookie = last.next;
            seen.extend(
                entries
                    .into_iter()
                    .map(|e| String::from_utf8(e.name).unwrap()),
            );
        }
        assert_eq!(seen.len(), 1002, "step {step}");
        assert_eq!(seen[..2], [".", ".."]);
        assert!(seen[2..].iter().zip(&many).all(|(a, b)| *a == b.0));
    }
    let own: Vec<_> = tree.read_dir(NodeId::ROOT, 0, 10).unwrap();
    assert_eq!(own.len(), 3);
    assert_eq!(tree.read_dir(NodeId::ROOT, 2, 10).unwrap().len(), 1);
    assert!(tree.read_dir(NodeId::ROOT, 3, 10).unwrap().is_empty());
}

#[test]
fn reading_seeking_prefetching() {
    let mut data = vec![0u8; 5 * 4096 + 100];
    data[4096..3 * 4096].fill(7);
    let big = Fake::new(vec![
        (2, Kind::Dir(names(&[("sparse", 10), ("big", 11)]), 2)),
        (10, Kind::File(data.clone())),
        (11, Kind::File(vec![1; 2 << 20])),
    ]);
    let tree = tree(Symlinks::Confine);
    let view = GuestView::new(Arc::clone(&big) as Arc<dyn FileSystem>, 0);
    tree.add_view(NodeId::ROOT, b"fs", Arc::new(view)).unwrap();
    let device = memory::MemoryBackend::from_bytes(data.clone()).into_device();
    tree.add_device(NodeId::ROOT, b"sda", device).unwrap();
    tree.add_file(NodeId::ROOT, b"os", 0o444, Box::new(|| b"ID=x\n".to_vec()))
        .unwrap();

    let sparse = walk(&tree, "fs/sparse").unwrap();
    for (from, data_at, hole_at) in [
        (0, Some(4096), Some(0)),
        (4096, Some(4096), Some(3 * 4096)),
        (3 * 4096 + 1, None, Some(3 * 4096 + 1)),
        (5 * 4096 + 99, None, Some(5 * 4096 + 99)),
        (5 * 4096 + 100, None, None),
    ] {
        assert_eq!(
            tree.seek(sparse, from, Seek::Data).unwrap(),
            data_at,
            "{from}"
        );
        assert_eq!(
            tree.seek(sparse, from, Seek::Hole).unwrap(),
            hole_at,
            "{from}"
        );
    }
    let os = walk(&tree, "os").unwrap();
    assert_eq!(tree.attributes(os).unwrap().size, 5);
    assert_eq!(tree.seek(os, 1, Seek::Hole).unwrap(), Some(5));
    let mut buf = [0; 3];
    assert_eq!(tree.read(os, 3, &mut buf).unwrap(), 2);
    assert_eq!(&buf[..2], b"x\n");
    assert_eq!(tree.read(os, 99, &mut buf).unwrap(), 0);
    let sda = walk(&tree, "sda").unwrap();
    let mut all = vec![0; data.len() + 5];
    assert_eq!(tree.read(sda, 0, &mut all).unwrap(), data.len());
    assert_eq!(all[..data.len()], data);
    assert_eq!(tree.attributes(sda).unwrap().permissions, 0o400);

    let file = walk(&tree, "fs/big").unwrap();
    let mut buf = vec![0; 128 << 10];
    for n in 0..3 {
        tree.read(file, n * (128 << 10), &mut buf).unwrap();
    }
    assert!(big.prefetched.load(Ordering::Relaxed) > 1 << 20);
}

#[test]
fn lazy_directories_open_once() {
    let tree = tree(Symlinks::Confine);
    let opened = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&opened);
    tree.add_lazy_directory(
        NodeId::ROOT,
        b"1",
        Box::new(move |tree, here| {
            count.fetch_add(1, Ordering::Relaxed);
            tree.add_view(here, b"fs", guest()).map(drop)
        }),
    )
    .unwrap();
    let fail = |_: &Tree, _| Err(FsError::new(FsErrorKind::Io, "gone"));
    tree.add_lazy_directory(NodeId::ROOT, b"2", Box::new(fail))
        .unwrap();
    assert_eq!(tree.read_dir(NodeId::ROOT, 0, 10).unwrap().len(), 4);
    assert!(walk(&tree, "1").is_ok() && walk(&tree, "2").is_ok());
    assert_eq!(
        opened.load(Ordering::Relaxed),
        0,
        "looking at it is not looking into it"
    );
    assert!(walk(&tree, "1/fs/etc/passwd").is_ok());
    assert!(walk(&tree, "1/fs/etc/passwd").is_ok());
    assert_eq!(opened.load(Ordering::Relaxed), 1);
    for _ in 0..2 {
        assert_eq!(walk(&tree, "2/fs").unwrap_err().kind(), FsErrorKind::Io);
    }
}

#[test]
fn names_that_cannot_be() {
    let tree = tree(Symlinks::Confine);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(tree.add_directory(NodeId::ROOT, name).is_err());
    }
    tree.add_directory(NodeId::ROOT, b"a").unwrap();
    assert!(tree.add_directory(NodeId::ROOT, b"a").is_err());
}
