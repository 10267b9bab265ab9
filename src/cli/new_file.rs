//! A file that is either there and complete or not there at all.
//!
//! It is made without a name in the directory it will be in, and gets its name when it is complete
//! and durable; whatever ends the program before that (an error, a full disk, a signal, a power
//! cut) leaves nothing. Where the host filesystem has no such files (`O_TMPFILE`), it has a hidden
//! name of its own, which errors, SIGINT, SIGTERM and SIGHUP remove.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, linkat, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::failure::{Context as _, Failure, Outcome};
use super::text::host_path;
use crate::block::BlockDevice;
use crate::block::file::FileBackend;
use crate::block::lock::LockMode;
use crate::formats::detect::{Format, detect};
use crate::formats::host_file::HostFile;
use crate::fs::signature::recognise;
use crate::volumes::table::find_table;

/// See the module text.
pub struct NewFile {
    path: PathBuf,
    directory: Arc<OwnedFd>,
    name: OsString,
    file: File,
    /// Its name until it is complete, if it has one.
    temporary: Option<OsString>,
    /// Whether it takes the place of a file.
    replaces: bool,
    /// That file, locked until then, if it is not empty.
    _replaced: Option<HostFile>,
}

/// What is at a path where something is to be made.
pub enum Place {
    /// Nothing, or a file that is to be replaced.
    File(NewFile),
    /// A block device.
    Device(BlockDevice),
}

impl Place {
    /// Looks at `path`, which the user named, and starts a new file there or opens the block
    /// device. `force` allows replacing a regular file that nobody uses, and writing to a block
    /// device with something on it.
    ///
    /// # Errors
    /// If something else is there or it is in use, or of the host.
    pub fn open(path: &Path, force: bool) -> Outcome<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::fs::FileTypeExt as _;
        super::target::is_local(path)?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Failure::usage(format!(
                "{} names a directory, not a file",
                host_path(path)
            )));
        }
        match std::fs::metadata(path) {
            Ok(there) if there.file_type().is_block_device() => {
                let device = open_device(path)?;
                if !force && let Some(found) = content(&device)? {
                    return Err(
                        Failure::new(format!("{} is not empty: {found}", host_path(path)))
                            .with_hint("--force overwrites what is on it"),
                    );
                }
                Ok(Self::Device(device))
            }
            Ok(there) if there.is_file() => {
                if !force {
                    return Err(Failure::new(format!("{} exists", host_path(path)))
                        .with_hint("--force replaces it"));
                }
                // The file, not a link to it, is replaced.
                let path = path.canonicalize().context(|| host_path(path))?;
                let mut new = NewFile::create(&path)?;
                new.replace(&there)?;
                Ok(Self::File(new))
            }
            Ok(_) => Err(Failure::new(format!(
                "{} is neither a regular file nor a block device",
                host_path(path)
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                NewFile::create(path).map(Self::File)
            }
            Err(error) => Err(Failure::from(error).within(host_path(path))),
        }
    }

    /// What the image is written through.
    ///
    /// # Errors
    /// Of the host.
    pub fn device(&self) -> Outcome<BlockDevice> {
        match self {
            Self::File(new) => new.device(),
            Self::Device(device) => Ok(device.clone()),
        }
    }

    /// Gives a file its name. What was written must have been flushed.
    ///
    /// # Errors
    /// Of the host.
    pub fn keep(self) -> Outcome<()> {
        match self {
            Self::File(new) => new.keep(),
            Self::Device(_) => Ok(()),
        }
    }
}

/// Opens a block device that nothing on this host uses (mounted, part of a volume group …).
fn open_device(path: &Path) -> Outcome<BlockDevice> {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::BUSY) => {
            return Err(Failure::new(format!("{} is in use", host_path(path)))
                .with_hint("unmount it, or release what uses it"));
        }
        Err(error) => return Err(Failure::from(error).within(host_path(path))),
    };
    let file = HostFile::from_open(File::from(fd), path.to_owned())?;
    file.lock(LockMode::Write, false)?;
    Ok(file.into_device(true)?)
}

/// How much of a block device is looked at, at each of its ends, in bytes.
const ENDS_BYTES: u64 = 1 << 20;

/// What shows that something is on a block device. Partition tables, filesystems, volumes, image
/// formats and their copies are in its first and last MiB.
fn content(device: &BlockDevice) -> Outcome<Option<String>> {
    let last = device.len().saturating_sub(ENDS_BYTES);
    for (at, place) in [(0, "first"), (last, "last")] {
        let len = ENDS_BYTES.min(device.len());
        let bytes = device.read_vec(at, usize::try_from(len).unwrap_or(usize::MAX))?;
        if bytes.iter().any(|b| *b != 0) {
            return Ok(Some(match find_table(device, None) {
                Ok(Some(found)) => {
                    format!("it has a partition table ({})", found.table.kind.name())
                }
                _ => match detect(device) {
                    Ok(Format::Raw) | Err(_) => match recognise(device) {
                        Ok(Some(found)) => format!("it looks like {}", found.kind),
                        _ => format!("its {place} MiB has other bytes than zeroes"),
                    },
                    Ok(format) => format!("it looks like {}", format.name()),
                },
            }));
        }
    }
    Ok(None)
}

impl NewFile {
    fn create(path: &Path) -> Outcome<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Failure::new(format!("{} is no name for a file", host_path(path))))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(parent, flags, Mode::empty()).context(|| host_path(parent))?;
        let directory = Arc::new(directory);
        let mode = Mode::from_raw_mode(0o666);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let (file, temporary) = match openat(&directory, ".", flags, mode) {
            Ok(fd) if std::fs::symlink_metadata(proc_name(&fd)).is_ok() => (File::from(fd), None),
            // No /proc to give it a name by, or not possible there.
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let (file, temporary) =
                    named(&directory, name, mode).context(|| host_path(path))?;
                (file, Some(temporary))
            }
            Err(error) => return Err(Failure::from(error).within(host_path(path))),
        };
        Ok(Self {
            path: path.to_owned(),
            directory,
            name: name.to_owned(),
            file,
            temporary,
            replaces: false,
            _replaced: None,
        })
    }

    /// Makes sure nobody uses the file that is replaced, and takes over its owner and mode.
    fn replace(&mut self, there: &std::fs::Metadata) -> Outcome<()> {
        use std::os::unix::fs::MetadataExt as _;
        self.replaces = true;
        if there.len() > 0 {
            let old = HostFile::open(&self.path, true)?;
            old.lock(LockMode::Write, false)?;
            self._replaced = Some(old);
        }
        let owner = (Uid::from_raw(there.uid()), Gid::from_raw(there.gid()));
        // Somebody else's file cannot be given away; then it becomes the user's own.
        let _ = fchown(&self.file, Some(owner.0), Some(owner.1));
        fchmod(&self.file, Mode::from_raw_mode(there.mode() & 0o777))?;
        Ok(())
    }

    fn device(&self) -> Outcome<BlockDevice> {
        let file = self.file.try_clone()?;
        let backend = Arc::new(FileBackend::new(file, false)?);
        Ok(BlockDevice::growable(backend))
    }

    fn keep(mut self) -> Outcome<()> {
        let here = &self.directory;
        let what = || format!("cannot give {} its name", host_path(&self.path));
        // The length and the mode as well, not only the content.
        fsync(&self.file).context(what)?;
        if self.temporary.is_none() {
            let from = proc_name(&self.file);
            let link = |name: &OsStr| {
                linkat(
                    CWD,
                    from.as_str(),
                    here.as_fd(),
                    name,
                    AtFlags::SYMLINK_FOLLOW,
                )
            };
            if self.replaces {
                let temporary = free_name(here, &self.name).context(what)?;
                link(&temporary).context(what)?;
                self.temporary = Some(temporary);
            } else {
                link(&self.name).context(what)?;
            }
        }
        if let Some(temporary) = &self.temporary {
            if self.replaces {
                renameat(here, temporary, here, &self.name).context(what)?;
            } else {
                use rustix::fs::{RenameFlags, renameat_with};
                let flags = RenameFlags::NOREPLACE;
                match renameat_with(here, temporary, here, &self.name, flags) {
                    Err(Errno::INVAL) => {
                        // Not known there; a hard link does the same.
                        linkat(here, temporary, here, &self.name, AtFlags::empty())
                            .context(what)?;
                        unlinkat(here, temporary, AtFlags::empty()).context(what)?;
                    }
                    done => done.context(what)?,
                }
            }
            self.temporary = None;
        }
        fsync(here).context(|| "cannot make the new name durable".into())?;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.directory, temporary, AtFlags::empty());
        }
    }
}

fn proc_name(fd: &impl std::os::fd::AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A hidden name that nothing has.
fn free_name(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<OsString> {
    for number in 0..1000 {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".guestlens-{}-{number}", std::process::id()));
        match statat(directory, &temporary, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(temporary),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Err(Errno::EXIST)
}

/// A file with a name of its own, which a signal removes.
fn named(
    directory: &Arc<OwnedFd>,
    name: &OsStr,
    mode: Mode,
) -> rustix::io::Result<(File, OsString)> {
    let temporary = free_name(directory, name)?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Inherited by the threads that are started from now on.
    let blocked = signals.thread_block().is_ok();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(directory, &temporary, flags, mode)?);
    if blocked {
        let (directory, temporary) = (Arc::clone(directory), temporary.clone());
        let _ = std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if let Ok(signal) = signals.wait() {
                    let _ = unlinkat(&directory, &temporary, AtFlags::empty());
                    // As shells show it for a program that a signal ended.
                    std::process::exit(128 + signal as i32);
                }
            });
    }
    Ok((file, temporary))
}
