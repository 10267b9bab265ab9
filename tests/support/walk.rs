//! Trees as records, so that two views of the same files can be compared one by one: the kernel's
//! mount, our mount, an extracted archive, or a filesystem driver asked directly.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use guestlens::fs::{FileSystem, FileType, InodeNo};
use nix::unistd::{Whence, lseek};

/// Everything `stat`, `getxattr`, `readlink` and `read` tell about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub device: (u32, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub atime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub target: Option<Vec<u8>>,
    /// Hash of a regular file's content.
    pub content: Option<u64>,
    /// Data runs `(start, end)` of a regular file, from `SEEK_DATA`/`SEEK_HOLE`.
    pub data: Vec<(u64, u64)>,
    /// Names with the same number are the same inode.
    pub inode: u64,
}

/// A tree by path relative to its root; the root itself is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Record>;

/// What is left out of a walk or a comparison.
#[derive(Clone, Copy, Default)]
pub struct Ignore {
    pub xattrs: bool,
    pub atime: bool,
    pub ctime: bool,
    pub holes: bool,
    pub blocks: bool,
    pub directory_sizes: bool,
    pub directory_mtimes: bool,
    pub inode_numbers: bool,
}

fn hash(read: &mut dyn FnMut(u64, &mut [u8]) -> usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut buf = vec![0u8; 1 << 18];
    let mut offset = 0;
    loop {
        let n = read(offset, &mut buf);
        if n == 0 {
            return hasher.finish();
        }
        // Byte by byte equal input must hash equal whatever the sizes of the reads: fill first.
        let mut filled = n;
        while filled < buf.len() {
            let more = read(offset + filled as u64, &mut buf[filled..]);
            if more == 0 {
                break;
            }
            filled += more;
        }
        hasher.write(&buf[..filled]);
        offset += filled as u64;
    }
}

/// Walks a directory of the host (a kernel mount, our mount, an extracted archive). Does not
/// follow symbolic links.
pub fn walk_host(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![Vec::new()];
    while let Some(relative) = todo.pop() {
        let path = if relative.is_empty() {
            root.to_owned()
        } else {
            root.join(OsStr::from_bytes(&relative))
        };
        let record = host_record(&path);
        if record.mode & 0o170000 == 0o040000 {
            for entry in std::fs::read_dir(&path).unwrap_or_else(|e| panic!("{path:?}: {e}")) {
                let name = entry
                    .unwrap_or_else(|e| panic!("{path:?}: {e}"))
                    .file_name();
                let mut child = relative.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(&name.into_vec());
                todo.push(child);
            }
        }
        tree.insert(relative, record);
    }
    tree
}

fn host_record(path: &Path) -> Record {
    let m = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let file_type = m.file_type();
    let rdev = m.rdev();
    let is_device = file_type.is_block_device() || file_type.is_char_device();
    let (mut content, mut data) = (None, Vec::new());
    if file_type.is_file() {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOATIME)
            .open(path)
            .or_else(|_| File::open(path))
            .unwrap_or_else(|e| panic!("{path:?}: {e}"));
        data = host_data_runs(&file, m.size());
        content = Some(hash(&mut |offset, buf| {
            file.read_at(buf, offset)
                .unwrap_or_else(|e| panic!("{path:?} at {offset}: {e}"))
        }));
    }
    Record {
        mode: m.mode(),
        uid: m.uid(),
        gid: m.gid(),
        nlink: m.nlink(),
        size: m.size(),
        blocks: m.blocks(),
        device: if is_device {
            (libc::major(rdev), libc::minor(rdev))
        } else {
            (0, 0)
        },
        mtime: (m.mtime(), m.mtime_nsec() as u32),
        ctime: (m.ctime(), m.ctime_nsec() as u32),
        atime: (m.atime(), m.atime_nsec() as u32),
        xattrs: host_xattrs(path),
        target: file_type.is_symlink().then(|| {
            std::fs::read_link(path)
                .unwrap()
                .into_os_string()
                .into_vec()
        }),
        content,
        data,
        inode: m.ino(),
    }
}

/// Data runs as `SEEK_DATA` and `SEEK_HOLE` report them.
pub fn host_data_runs(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0i64;
    while (at as u64) < size {
        let Ok(start) = lseek(file.as_fd(), at, Whence::SeekData) else {
            break;
        };
        let end = lseek(file.as_fd(), start, Whence::SeekHole).unwrap();
        runs.push((start as u64, end as u64));
        at = end;
    }
    runs
}

/// Extended attributes of a name itself (links are not followed).
fn host_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    xattr::list(path)
        .unwrap_or_else(|e| panic!("{path:?}: listxattr: {e}"))
        .map(|name| {
            let value = xattr::get(path, &name)
                .unwrap_or_else(|e| panic!("{path:?}: getxattr {name:?}: {e}"))
                .unwrap_or_else(|| panic!("{path:?}: {name:?} vanished"));
            (name.into_vec(), value)
        })
        .collect()
}

/// Walks a filesystem through its driver.
pub fn walk_driver(fs: &dyn FileSystem) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(Vec::new(), fs.root())];
    while let Some((path, ino)) = todo.pop() {
        let record = driver_record(fs, &path, ino);
        if record.mode & 0o170000 == 0o040000 {
            fs.read_dir(ino, 0, &mut |entry| {
                let mut child = path.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(entry.name);
                todo.push((child, entry.ino));
                ControlFlow::Continue(())
            })
            .unwrap_or_else(|e| panic!("{}: read_dir: {e}", show(&path)));
        }
        tree.insert(path, record);
    }
    tree
}

fn driver_record(fs: &dyn FileSystem, path: &[u8], ino: InodeNo) -> Record {
    let name = show(path);
    let a = fs
        .attributes(ino)
        .unwrap_or_else(|e| panic!("{name}: attributes: {e:?}"));
    let (mut content, mut data) = (None, Vec::new());
    if a.file_type == FileType::Regular {
        content = Some(hash(&mut |offset, buf| {
            fs.read_at(ino, offset, buf)
                .unwrap_or_else(|e| panic!("{name} at {offset}: {e:?}"))
        }));
        data = driver_data_runs(fs, ino, a.size);
    }
    Record {
        mode: a.mode(),
        uid: a.uid,
        gid: a.gid,
        nlink: a.nlink.into(),
        size: a.size,
        blocks: a.blocks,
        device: a.device.map_or((0, 0), |d| (d.major, d.minor)),
        mtime: (a.mtime.secs, a.mtime.nanos),
        ctime: (a.ctime.secs, a.ctime.nanos),
        atime: (a.atime.secs, a.atime.nanos),
        xattrs: fs
            .xattr_names(ino)
            .unwrap_or_else(|e| panic!("{name}: xattrs: {e:?}"))
            .into_iter()
            .map(|key| {
                let value = fs
                    .xattr(ino, &key)
                    .unwrap_or_else(|e| panic!("{name}: xattr {}: {e:?}", show(&key)));
                (key, value)
            })
            .collect(),
        target: (a.file_type == FileType::Symlink).then(|| {
            fs.read_link(ino)
                .unwrap_or_else(|e| panic!("{name}: readlink: {e:?}"))
        }),
        content,
        data,
        inode: ino.0,
    }
}

/// Data runs of a file, neighbours joined.
pub fn driver_data_runs(fs: &dyn FileSystem, ino: InodeNo, size: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let extent = fs
            .extent_at(ino, at)
            .unwrap_or_else(|e| panic!("inode {ino}: {e:?}"));
        assert!(extent.len > 0, "inode {ino}: an empty extent at {at}");
        let end = (at + extent.len).min(size);
        if extent.data {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

fn show(bytes: &[u8]) -> String {
    guestlens::ondisk::text::printable(bytes)
}

/// Fails with every difference (the first 20) between two trees.
pub fn assert_equal(what: &str, want: &Tree, got: &Tree, ignore: Ignore) {
    let mut differences = Vec::new();
    for (path, a) in want {
        match got.get(path) {
            None => differences.push(format!("{:?} is missing", show(path))),
            Some(b) => {
                let (a, b) = (masked(a, ignore), masked(b, ignore));
                if a != b {
                    differences.push(format!("{:?}:\n  want {a:?}\n  got  {b:?}", show(path)));
                }
            }
        }
    }
    for path in got.keys().filter(|path| !want.contains_key(*path)) {
        differences.push(format!("{:?} should not be there", show(path)));
    }
    // The same names must share inodes, whatever the numbers are.
    if ignore.inode_numbers {
        let (a, b) = (link_groups(want), link_groups(got));
        if a != b {
            differences.push(format!(
                "hard links differ: {} and {} groups",
                a.len(),
                b.len()
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: {} of {} names differ\n{}",
        differences.len(),
        want.len(),
        differences
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

fn masked(record: &Record, ignore: Ignore) -> Record {
    let mut r = record.clone();
    if ignore.xattrs {
        r.xattrs.clear();
    }
    if ignore.atime {
        r.atime = (0, 0);
    }
    if ignore.ctime {
        r.ctime = (0, 0);
    }
    if ignore.holes {
        r.data.clear();
    }
    if ignore.blocks {
        r.blocks = 0;
    }
    if r.mode & 0o170000 == 0o040000 {
        if ignore.directory_sizes {
            r.size = 0;
        }
        if ignore.directory_mtimes {
            r.mtime = (0, 0);
        }
    }
    if ignore.inode_numbers {
        r.inode = 0;
    }
    r
}

/// Sets of two or more non-directory names that are one inode.
pub fn link_groups(tree: &Tree) -> Vec<Vec<Vec<u8>>> {
    let mut groups: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, r) in tree {
        if r.mode & 0o170000 != 0o040000 {
            groups.entry(r.inode).or_default().push(path.clone());
        }
    }
    let mut groups: Vec<_> = groups.into_values().filter(|g| g.len() > 1).collect();
    groups.sort();
    groups
}

/// Reads a host file whole.
pub fn read_host(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}
