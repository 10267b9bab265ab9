//! The kernel's requests, forwarded to the tree.
//!
//! The tree never changes while it is mounted, so the kernel may keep everything it was told: names
//! (also those that are not there) and attributes for a day, file contents and directory listings
//! until memory is short. OPEN, OPENDIR, FLUSH and ACCESS are answered ENOSYS once, after which the
//! kernel does not send them any more; RELEASE goes with OPEN.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::errno::{errno, is_noteworthy};
use crate::fs::{Attributes, DeviceNo, FileType, FsError, FsErrorKind, InodeNo, Timestamp};
use crate::ondisk::text::printable;
use crate::tree::namespace::Seek;
use crate::tree::{NodeId, Tree};

const TTL: Duration = Duration::from_secs(24 * 60 * 60);
const NO_TTL: Duration = Duration::ZERO;

/// Largest request the kernel makes by default (`fs.fuse.max_pages_limit`, 256 pages).
const MAX_REQUEST: u32 = 1 << 20;

/// Names taken from the tree at a time for a listing; a reply of 32 KiB, which is what glibc asks
/// for, holds some 200 names with attributes and 900 without.
const BATCH: usize = 64;

thread_local! {
    /// The reply buffer of READ, one per worker, so that it is zeroed once and not per request.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers the kernel from a tree.
pub struct Adapter {
    tree: Arc<Tree>,
}

impl Adapter {
    /// An adapter for one tree.
    pub fn new(tree: Arc<Tree>) -> Self {
        Self { tree }
    }

    /// Attributes of a name in a listing, which goes on without them whatever is wrong.
    fn listed(&self, id: NodeId) -> Option<Attributes> {
        let asked = catch_unwind(AssertUnwindSafe(|| self.tree.attributes(id)));
        match asked {
            Ok(Ok(attributes)) => Some(attributes),
            Ok(Err(error)) => {
                refusal("getattr", id, &error);
                None
            }
            Err(_) => {
                tracing::error!("internal error in getattr of node {:#x}", id.raw());
                None
            }
        }
    }
}

/// Runs one request. If it panics, the reply is dropped on the way, which answers EIO.
fn guarded(what: &'static str, ino: INodeNo, request: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(request)).is_err() {
        tracing::error!("internal error in {what} of node {:#x}", ino.0);
    }
}

/// The errno of a failure; tells the log about it if it is worth it.
fn refusal(what: &'static str, id: NodeId, error: &FsError) -> Errno {
    if is_noteworthy(error.kind()) {
        let mut line = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        let line = printable(line.as_bytes());
        tracing::warn!(
            "{what} of inode {} in space {}: {line}",
            id.ino(),
            id.space()
        );
    }
    errno(error.kind())
}

fn node(ino: INodeNo) -> NodeId {
    NodeId::from_raw(ino.0)
}

fn time(t: Timestamp) -> SystemTime {
    let second = match u64::try_from(t.secs) {
        Ok(secs) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(t.secs.unsigned_abs())),
    };
    second
        .and_then(|s| s.checked_add(Duration::from_nanos(t.nanos.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// The kernel's 32-bit form of a device number (`new_encode_dev`): 12 bits major, 20 bits minor.
fn encode_device(device: DeviceNo) -> u32 {
    (device.minor & 0xff) | ((device.major & 0xfff) << 8) | ((device.minor & 0xf_ff00) << 12)
}

fn attr(id: NodeId, a: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(id.raw()),
        size: a.size,
        blocks: a.blocks,
        atime: time(a.atime),
        mtime: time(a.mtime),
        ctime: time(a.ctime),
        crtime: time(a.crtime.unwrap_or_default()),
        kind: kind(a.file_type),
        perm: a.permissions,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.device.map_or(0, encode_device),
        blksize: a.block_size,
        flags: 0,
    }
}

/// Attributes of a name whose inode cannot be read: the listing goes on, and because they are
/// valid for no time at all, whoever looks at the name gets the real error.
fn unknown(id: NodeId, file_type: Option<FileType>) -> FileAttr {
    attr(
        id,
        &Attributes {
            ino: InodeNo(id.raw()),
            generation: 0,
            file_type: file_type.unwrap_or(FileType::Regular),
            permissions: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            block_size: 512,
            device: None,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: None,
        },
    )
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Without FUSE_READDIRPLUS_AUTO, with which the kernel soon asks for names only and then
            // looks each of them up: six times the requests of a walk, and in a directory without
            // an index each lookup reads all of it.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // `.` and `..` can be looked up by number.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ] {
            // A kernel without it is slower, nothing else.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(MAX_REQUEST);
        if let Err(most) = config.set_max_readahead(MAX_REQUEST) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(128);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", parent, move || {
            match self.tree.lookup(node(parent), name.as_bytes()) {
                Ok((id, a)) => {
                    reply.entry(&TTL, &attr(id, &a), Generation(a.generation.into()));
                }
                Err(error) if error.kind() == FsErrorKind::NotFound => {
                    // Node 0 is "not there", to be remembered.
                    let nothing = unknown(NodeId::from_raw(0), None);
                    reply.entry(&TTL, &nothing, Generation(0));
                }
                Err(error) => reply.error(refusal("lookup", node(parent), &error)),
            }
        });
    }

    fn forget(&self, _request: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        guarded("getattr", ino, move || {
            match self.tree.attributes(node(ino)) {
                Ok(a) => reply.attr(&TTL, &attr(node(ino), &a)),
                Err(error) => reply.error(refusal("getattr", node(ino), &error)),
            }
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", ino, move || {
            match self.tree.read_link(node(ino)) {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(refusal("readlink", node(ino), &error)),
            }
        });
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", ino, move || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = usize::try_from(size.min(MAX_REQUEST.saturating_mul(16))).unwrap_or(0);
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let Some(bytes) = buffer.get_mut(..size) else {
                    return reply.error(Errno::EIO);
                };
                match self.tree.read(node(ino), offset, bytes) {
                    Ok(n) => reply.data(bytes.get(..n).unwrap_or_default()),
                    Err(error) => reply.error(refusal("read", node(ino), &error)),
                }
            });
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        guarded("readdir", ino, move || {
            let mut next = offset;
            loop {
                let entries = match self.tree.read_dir(node(ino), next, BATCH) {
                    Ok(entries) => entries,
                    Err(error) if next == offset => {
                        return reply.error(refusal("readdir", node(ino), &error));
                    }
                    // The names before the damage; asked again from there, it is an error.
                    Err(_) => return reply.ok(),
                };
                if entries.is_empty() {
                    return reply.ok();
                }
                for entry in entries {
                    let file_type = entry.file_type.unwrap_or_else(|| {
                        let attributes = self.listed(entry.id);
                        attributes.map_or(FileType::Regular, |a| a.file_type)
                    });
                    let name = OsStr::from_bytes(&entry.name);
                    let number = INodeNo(entry.id.raw());
                    if reply.add(number, entry.next, kind(file_type), name) {
                        return reply.ok();
                    }
                    next = entry.next;
                }
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", ino, move || {
            let mut next = offset;
            let mut told = Vec::new();
            'pieces: loop {
                let entries = match self.tree.read_dir(node(ino), next, BATCH) {
                    Ok(entries) => entries,
                    Err(error) if next == offset => {
                        return reply.error(refusal("readdir", node(ino), &error));
                    }
                    Err(_) => break,
                };
                if entries.is_empty() {
                    break;
                }
                self.tree.prefetch_attributes(&entries);
                for entry in entries {
                    let (attributes, ttl, generation) = match self.listed(entry.id) {
                        Some(a) => (attr(entry.id, &a), TTL, a.generation),
                        None => (unknown(entry.id, entry.file_type), NO_TTL, 0),
                    };
                    let full = reply.add(
                        INodeNo(entry.id.raw()),
                        entry.next,
                        OsStr::from_bytes(&entry.name),
                        &ttl,
                        &attributes,
                        Generation(generation.into()),
                    );
                    if full {
                        break 'pieces;
                    }
                    next = entry.next;
                    told.push(entry);
                }
            }
            reply.ok();
            self.tree.listed(node(ino), offset == 0, &told);
        });
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", ino, move || match self.tree.usage(node(ino)) {
            Ok(u) => reply.statfs(
                u.blocks,
                u.blocks_free,
                u.blocks_available,
                u.inodes,
                u.inodes_free,
                u.block_size,
                255,
                u.block_size,
            ),
            Err(error) => reply.error(refusal("statfs", node(ino), &error)),
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        guarded("getxattr", ino, move || {
            match self.tree.xattr(node(ino), name.as_bytes()) {
                Ok(value) => answer_xattr(&value, size, reply),
                Err(error) => reply.error(refusal("getxattr", node(ino), &error)),
            }
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // The kernel keeps the values of `trusted.*` from others, but not the names in our list.
        let privileged = request.uid() == 0;
        guarded("listxattr", ino, move || {
            match self.tree.xattr_names(node(ino)) {
                Ok(names) => {
                    let mut list = Vec::new();
                    let shown = |name: &Vec<u8>| privileged || !name.starts_with(b"trusted.");
                    for name in names.into_iter().filter(shown) {
                        list.extend_from_slice(&name);
                        list.push(0);
                    }
                    answer_xattr(&list, size, reply);
                }
                Err(error) => reply.error(refusal("listxattr", node(ino), &error)),
            }
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded("lseek", ino, move || {
            let what = match whence {
                nix::libc::SEEK_DATA => Seek::Data,
                nix::libc::SEEK_HOLE => Seek::Hole,
                _ => return reply.error(Errno::EINVAL),
            };
            let Ok(offset) = u64::try_from(offset) else {
                return reply.error(Errno::ENXIO);
            };
            match self.tree.seek(node(ino), offset, what) {
                Ok(found) => match found.map(i64::try_from) {
                    Some(Ok(at)) => reply.offset(at),
                    Some(Err(_)) => reply.error(Errno::EOVERFLOW),
                    None => reply.error(Errno::ENXIO),
                },
                Err(error) => reply.error(refusal("lseek", node(ino), &error)),
            }
        });
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        // Nothing is ever written, so everything is durable.
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    // The kernel's own read-only flag keeps these away until an administrator removes it.

    fn setattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _parent: INodeNo,
        _name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

/// The two-step protocol of `getxattr(2)`: size 0 asks for the length.
fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    let Ok(len) = u32::try_from(value.len()) else {
        return reply.error(Errno::E2BIG);
    };
    if size == 0 {
        reply.size(len);
    } else if len > size {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        for (secs, nanos) in [
            (0, 0),
            (1, 999_999_999),
            (-1, 1),
            (-2_147_483_648, 5),
            (1 << 34, 7),
        ] {
            let t = time(Timestamp { secs, nanos });
            let want = i128::from(secs) * 1_000_000_000 + i128::from(nanos);
            let got = match t.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(d) => i128::try_from(d.as_nanos()).unwrap(),
                Err(e) => -i128::try_from(e.duration().as_nanos()).unwrap(),
            };
            assert_eq!(got, want);
        }
    }

    #[test]
    fn device_numbers() {
        let device = |major, minor| encode_device(DeviceNo { major, minor });
        assert_eq!(device(1, 3), 0x103);
        assert_eq!(device(8, 0x12345), 0x1230_0845);
    }

    /// A bug in a callback is an error for one caller, and the server answers the next.
    #[test]
    fn a_panic_answers_eio() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::new(crate::tree::TreeOptions {
            symlinks: crate::tree::symlink::Symlinks::Confine,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        });
        let add = |name: &[u8], make| tree.add_file(NodeId::ROOT, name, 0o444, make).unwrap();
        add(b"good", Box::new(|| b"fine".to_vec()));
        add(b"bad", Box::new(|| panic!("as it should")));
        let fill = Box::new(|_: &Tree, _| panic!("as it should"));
        let lazy = tree.add_lazy_directory(NodeId::ROOT, b"lazy", fill);
        lazy.unwrap();
        let options = super::super::options::MountOptions::default();
        let mounted =
            super::super::session::mount_tree(Arc::new(tree), directory.path(), options).unwrap();
        let entry = mounted.entry().clone();
        let serving = std::thread::spawn(move || mounted.serve());
        let seen = std::panic::catch_unwind(|| {
            let at = |name| directory.path().join(name);
            for _ in 0..40 {
                let bad = std::fs::read(at("bad")).unwrap_err();
                assert_eq!(bad.raw_os_error(), Some(nix::libc::EIO));
                let lazy = std::fs::metadata(at("lazy/x")).unwrap_err();
                assert_eq!(lazy.raw_os_error(), Some(nix::libc::EIO));
            }
            assert_eq!(std::fs::read(at("good")).unwrap(), b"fine");
            let names = std::fs::read_dir(directory.path()).unwrap();
            assert_eq!(names.map(Result::unwrap).count(), 3);
        });
        super::super::session::detach(&entry);
        serving.join().unwrap().unwrap();
        seen.unwrap();
    }
}
