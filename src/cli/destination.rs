//! Writing a tree into a directory of the host, whatever the tree says.
//!
//! The names and links come from a guest and are hostile. The rules that keep the rest of the host
//! out of their reach:
//!
//! * Everything is done relative to the descriptor of one directory, [`Destination`]'s current
//!   one, with a name that is a single component and neither `.` nor `..`.
//! * A directory is entered with `O_NOFOLLOW | O_DIRECTORY`, so a symbolic link made before under
//!   the same name leads nowhere. It is left through its own `..`, which must be the directory it
//!   was entered from (same device and inode), or the copy ends.
//! * Files are made with `O_CREAT | O_EXCL` under a name of our own and renamed when complete, so
//!   that nothing is half there and nothing that exists is opened.
//! * A hard link's first name is found again from the top, component by component, without
//!   following links, and must be the inode that was made.
//! * Set-user-ID and set-group-ID are dropped, owners not taken over and device nodes not made
//!   unless asked for by root.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dev, FileType as HostType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
    Uid, XattrFlags, chmod, chownat, fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat,
    lsetxattr, makedev, mkdirat, mknodat, openat, renameat, renameat_with, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::failure::{Context as _, Failure, Outcome};
use crate::fs::{Attributes, FileType, Timestamp};
use crate::limits;
use crate::ondisk::text::printable;

/// What is taken over, and what may be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Modes, times, owners, extended attributes as in the guest, as far as the user may.
    pub archive: bool,
    /// Replace files that exist.
    pub force: bool,
    /// The user is root.
    pub root: bool,
}

/// Extended attributes by full name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Where a file was made: its path from the top, and which inode it is.
#[derive(Clone, Debug)]
pub struct Place {
    path: Vec<Vec<u8>>,
    id: FileId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// The current directory of a copy, and those above up to the top.
#[derive(Debug)]
pub struct Destination {
    policy: Policy,
    top: OwnedFd,
    here: OwnedFd,
    /// Names and identities of the directories entered: (name, the one it was entered from).
    above: Vec<(Vec<u8>, FileId)>,
    temporary: u64,
    umask: Mode,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Destination {
    /// Starts at a directory the user named (links in that path are followed: it is the user's).
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(directory: &Path, policy: Policy) -> Outcome<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(directory, flags, Mode::empty());
        // There is no asking without setting.
        let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        rustix::process::umask(umask);
        Ok(Self {
            policy,
            top: open()?,
            here: open()?,
            above: Vec::new(),
            temporary: 0,
            umask,
        })
    }

    /// Makes the directory `name`, or takes the one that is there, and makes it the current one.
    /// Returns whether it is new. It is the user's alone until [`Destination::leave`].
    ///
    /// # Errors
    /// If something else has this name and may not be replaced, or of the host.
    pub fn enter(&mut self, name: &[u8]) -> Outcome<bool> {
        checked(name)?;
        if self.above.len() > limits::MAX_TREE_DEPTH {
            return Err(Failure::new("directories are nested too deep"));
        }
        let id = FileId::from(&fstat(&self.here)?);
        let mut created = mkdirat(&self.here, name, Mode::RWXU);
        if created == Err(Errno::EXIST)
            && self.policy.force
            && HostType::from_raw_mode(statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                != HostType::Directory
        {
            unlinkat(&self.here, name, AtFlags::empty())?;
            created = mkdirat(&self.here, name, Mode::RWXU);
        }
        match created {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let fd =
            openat(&self.here, name, DIRECTORY, Mode::empty()).map_err(|error| match error {
                Errno::NOTDIR | Errno::LOOP => exists(),
                error => error.into(),
            })?;
        self.here = fd;
        self.above.push((name.to_vec(), id));
        Ok(created.is_ok())
    }

    /// Goes back to the directory above; gives the one left its attributes if it is new. The
    /// second result says what of them could not be given.
    ///
    /// # Errors
    /// If the way back is not the way that led here: nothing more can be copied then.
    pub fn leave(&mut self, finish: Option<(&Attributes, &Xattrs)>) -> Outcome<Outcome<()>> {
        let Some((_, id)) = self.above.pop() else {
            return Ok(Ok(()));
        };
        let parent = openat(&self.here, "..", DIRECTORY, Mode::empty())
            .context(|| "cannot go back to the directory above".into())?;
        if FileId::from(&fstat(&parent)?) != id {
            return Err(Failure::new(
                "the destination was moved while it was being copied to",
            ));
        }
        let left = std::mem::replace(&mut self.here, parent);
        Ok(finish.map_or(Ok(()), |(a, xattrs)| self.finish(&left, a, xattrs)))
    }

    /// Makes a regular file: `fill` writes it, then it gets its attributes and its name. The
    /// last result says which attributes could not be given.
    ///
    /// # Errors
    /// Of `fill` or of the host; then there is no such file.
    pub fn file(
        &mut self,
        name: &[u8],
        a: &Attributes,
        xattrs: &Xattrs,
        fill: &mut dyn FnMut(&File) -> Outcome<()>,
    ) -> Outcome<(Place, Outcome<()>)> {
        checked(name)?;
        if !self.policy.force {
            // Said before gigabytes are copied; the rename makes sure.
            match statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => return Err(exists()),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mode = if self.policy.archive {
            Mode::RUSR | Mode::WUSR
        } else {
            Mode::from_raw_mode(u32::from(a.permissions) & 0o777)
        };
        let (temporary, file) = self.create(mode)?;
        let made = self.fill(&file, &temporary, name, a, xattrs, fill);
        if made.is_err() {
            let _ = unlinkat(&self.here, temporary.as_slice(), AtFlags::empty());
        }
        made
    }

    fn create(&mut self, mode: Mode) -> Outcome<(Vec<u8>, File)> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let name = format!(".guestlens-{}-{}", std::process::id(), self.temporary).into_bytes();
            self.temporary = self.temporary.saturating_add(1);
            match openat(&self.here, name.as_slice(), flags, mode) {
                Ok(fd) => return Ok((name, File::from(fd))),
                Err(Errno::EXIST) if self.temporary < u64::MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn fill(
        &self,
        file: &File,
        temporary: &[u8],
        name: &[u8],
        a: &Attributes,
        xattrs: &Xattrs,
        fill: &mut dyn FnMut(&File) -> Outcome<()>,
    ) -> Outcome<(Place, Outcome<()>)> {
        ftruncate(file, a.size)?;
        fill(file)?;
        let finished = if self.policy.archive {
            self.finish(file, a, xattrs)
        } else {
            Ok(())
        };
        let id = FileId::from(&fstat(file)?);
        if self.policy.force {
            renameat(&self.here, temporary, &self.here, name).map_err(|error| match error {
                Errno::ISDIR => Failure::new("a directory is in the way"),
                error => error.into(),
            })?;
        } else {
            self.settle(temporary, name)?;
        }
        Ok((self.place(name, id), finished))
    }

    /// Gives a finished file its name, which must be free.
    fn settle(&self, temporary: &[u8], name: &[u8]) -> Outcome<()> {
        let here = &self.here;
        match renameat_with(here, temporary, here, name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(exists()),
            // Not on this filesystem.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        match linkat(here, temporary, here, name, AtFlags::empty()) {
            Ok(()) => Ok(unlinkat(here, temporary, AtFlags::empty())?),
            Err(Errno::EXIST) => Err(exists()),
            // No hard links either (FAT): the name was free a moment ago.
            Err(_) => Ok(renameat(here, temporary, here, name)?),
        }
    }

    /// Makes a symbolic link. The last result is that of [`Destination::file`].
    ///
    /// # Errors
    /// Of the host.
    pub fn symlink(
        &self,
        name: &[u8],
        target: &[u8],
        a: &Attributes,
        xattrs: &Xattrs,
    ) -> Outcome<(Place, Outcome<()>)> {
        checked(name)?;
        self.replacing(name, || symlinkat(target, &self.here, name))?;
        Ok((self.made(name)?, self.finish_named(name, a, xattrs)))
    }

    /// Makes a device node, fifo or socket. The last result is that of [`Destination::file`].
    ///
    /// # Errors
    /// Of the host.
    pub fn special(
        &self,
        name: &[u8],
        a: &Attributes,
        xattrs: &Xattrs,
    ) -> Outcome<(Place, Outcome<()>)> {
        checked(name)?;
        let kind = match a.file_type {
            FileType::CharDevice => HostType::CharacterDevice,
            FileType::BlockDevice => HostType::BlockDevice,
            FileType::Fifo => HostType::Fifo,
            FileType::Socket => HostType::Socket,
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                return Err(Failure::new("is no special file"));
            }
        };
        let device: Dev = a.device.map_or(0, |d| makedev(d.major, d.minor));
        let mode = Mode::from_raw_mode(u32::from(a.permissions) & 0o777);
        self.replacing(name, || mknodat(&self.here, name, kind, mode, device))?;
        Ok((self.made(name)?, self.finish_named(name, a, xattrs)))
    }

    /// Gives a file made before a second name.
    ///
    /// # Errors
    /// If it is no longer there, or of the host.
    pub fn link(&self, name: &[u8], first: &Place) -> Outcome<()> {
        checked(name)?;
        let Some((last, directories)) = first.path.split_last() else {
            return Err(Failure::new("no first name"));
        };
        let flags = DIRECTORY.difference(OFlags::RDONLY) | OFlags::PATH;
        let mut at: Option<OwnedFd> = None;
        for part in directories {
            let from = at.as_ref().unwrap_or(&self.top);
            at = Some(openat(from, part.as_slice(), flags, Mode::empty())?);
        }
        let from = at.as_ref().unwrap_or(&self.top);
        let last = last.as_slice();
        if FileId::from(&statat(from, last, AtFlags::SYMLINK_NOFOLLOW)?) != first.id {
            return Err(Failure::new("its first name was replaced"));
        }
        self.replacing(name, || {
            linkat(from, last, &self.here, name, AtFlags::empty())
        })?;
        if self.made(name)?.id != first.id {
            unlinkat(&self.here, name, AtFlags::empty())?;
            return Err(Failure::new("its first name was replaced"));
        }
        Ok(())
    }

    /// Makes `name` by `make`, which fails if there is one; removes that one first if it may be
    /// replaced.
    fn replacing(&self, name: &[u8], make: impl Fn() -> Result<(), Errno>) -> Outcome<()> {
        match make() {
            Err(Errno::EXIST) if self.policy.force => {
                unlinkat(&self.here, name, AtFlags::empty()).map_err(|error| match error {
                    Errno::ISDIR => Failure::new("a directory is in the way"),
                    error => error.into(),
                })?;
                Ok(make()?)
            }
            Err(Errno::EXIST) => Err(exists()),
            other => Ok(other?),
        }
    }

    fn made(&self, name: &[u8]) -> Outcome<Place> {
        let stat = statat(&self.here, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.place(name, FileId::from(&stat)))
    }

    fn place(&self, name: &[u8], id: FileId) -> Place {
        let above = self.above.iter().map(|(name, _)| name.clone());
        Place {
            path: above.chain([name.to_vec()]).collect(),
            id,
        }
    }

    /// Permission bits that are taken over; without root never the ones that lend an identity.
    fn permissions(&self, a: &Attributes) -> Mode {
        let kept = if self.policy.root { 0o7777 } else { 0o1777 };
        Mode::from_raw_mode(u32::from(a.permissions) & kept)
    }

    /// Owner, attributes, mode, times, in this order: a new owner clears mode bits and
    /// capabilities.
    fn finish(&self, fd: impl rustix::fd::AsFd, a: &Attributes, xattrs: &Xattrs) -> Outcome<()> {
        if !self.policy.archive {
            // Directories are made for the user alone; files have this mode from the start.
            let want = Mode::from_raw_mode(u32::from(a.permissions) & 0o777);
            let mode = want.difference(self.umask);
            return fchmod(&fd, mode).context(|| "mode not set".into());
        }
        let mut result = self.owner(a, |uid, gid| fchown(&fd, uid, gid));
        for (name, value) in xattrs {
            let set = fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty());
            result = result.and(self.attribute(name, set));
        }
        let mode = fchmod(&fd, self.permissions(a)).context(|| "mode not set".into());
        let times = futimens(&fd, &times(a)).context(|| "times not set".into());
        result.and(mode).and(times)
    }

    /// The same for what cannot be opened.
    fn finish_named(&self, name: &[u8], a: &Attributes, xattrs: &Xattrs) -> Outcome<()> {
        if !self.policy.archive {
            return Ok(());
        }
        let here = &self.here;
        let mut result = self.owner(a, |uid, gid| {
            chownat(here, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        });
        // Through the descriptor of the directory: one component, not followed.
        let mut path = format!("/proc/self/fd/{}/", here.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        for (key, value) in xattrs {
            let set = lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty());
            result = result.and(self.attribute(key, set));
        }
        if a.file_type != FileType::Symlink {
            let set = || {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let node = openat(here, name, flags, Mode::empty())?;
                // `fchmod` refuses such a descriptor; its name in /proc is the node itself.
                chmod(
                    format!("/proc/self/fd/{}", node.as_raw_fd()),
                    self.permissions(a),
                )
            };
            result = result.and(set().context(|| "mode not set".into()));
        }
        let times = utimensat(here, name, &times(a), AtFlags::SYMLINK_NOFOLLOW)
            .context(|| "times not set".into());
        result.and(times)
    }

    fn owner(
        &self,
        a: &Attributes,
        set: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Outcome<()> {
        if a.uid == u32::MAX || a.gid == u32::MAX {
            return Err(Failure::new("owner 4294967295 cannot be set"));
        }
        let (uid, gid) = (Uid::from_raw(a.uid), Gid::from_raw(a.gid));
        if self.policy.root {
            return set(Some(uid), Some(gid)).context(|| "owner not set".into());
        }
        // An ordinary user may give files to own groups only, and is not told about the others.
        let _ = set(None, Some(gid));
        Ok(())
    }

    fn attribute(&self, name: &[u8], set: Result<(), Errno>) -> Outcome<()> {
        match set {
            // These are root's to give.
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP)
                if !self.policy.root && !name.starts_with(b"user.") =>
            {
                Ok(())
            }
            other => other.context(|| format!("attribute {} not set", printable(name))),
        }
    }
}

/// A name the guest gave, as a single component.
fn checked(name: &[u8]) -> Outcome<()> {
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.contains(&0)
        || name.len() > limits::MAX_NAME_BYTES
    {
        return Err(Failure::new("not a name a file can have"));
    }
    Ok(())
}

fn exists() -> Failure {
    Failure::from(io::Error::from_raw_os_error(libc::EEXIST))
}

fn times(a: &Attributes) -> Timestamps {
    let spec = |t: Timestamp| Timespec {
        tv_sec: t.secs,
        tv_nsec: t.nanos.into(),
    };
    Timestamps {
        last_access: spec(a.atime),
        last_modification: spec(a.mtime),
    }
}
