//! Mounting, serving, unmounting.
//!
//! Root mounts by `mount(2)`; everybody else, and root where that is not allowed, through the
//! set-uid helper `fusermount3`, which hands over the opened device on its standard input (a
//! socket; libfuse calls the protocol `_FUSE_COMMFD`). The guest's filesystems are never given to
//! the host's kernel: the mount made here is the only one.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Session, SessionACL};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::adapter::Adapter;
use super::mounts::{self, MountEntry};
use super::options::{MountOptions, SOURCE};
use super::state;
use crate::tree::Tree;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory to mount on is not usable.
    #[error("cannot mount on {0}: {1}")]
    Point(String, io::Error),
    /// A dead mount is in the way.
    #[error("{0} is a mount point whose server is gone; `guestlens umount` cleans it up")]
    Dead(String),
    /// A mount of ours is there already.
    #[error("{0} is a mount of guestlens already")]
    Taken(String),
    /// No FUSE here.
    #[error(
        "cannot open /dev/fuse (is the fuse module loaded, the device passed to the container?)"
    )]
    NoDevice(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused the mount")]
    Refused(#[source] io::Error),
    /// There is no helper for ordinary users.
    #[error("{HELPER} cannot be run; ordinary users need it to mount (package fuse3)")]
    NoHelper(#[source] io::Error),
    /// The helper refused.
    #[error("{HELPER}: {0}")]
    Helper(String),
    /// Files of the mount are in use.
    #[error("{0} is in use")]
    Busy(String),
    /// Anything else.
    #[error("{0}")]
    Other(&'static str, #[source] io::Error),
}

/// A mount that is not served yet.
pub struct Mounted {
    session: Session<Adapter>,
    entry: MountEntry,
}

/// Mounts a tree. From now on requests wait for [`Mounted::serve`].
///
/// # Errors
/// See [`MountError`].
pub fn mount_tree(
    tree: Arc<Tree>,
    point: &Path,
    options: MountOptions,
) -> Result<Mounted, MountError> {
    let shown = mounts::shown(point);
    let at_point = |error: io::Error| match error.raw_os_error() {
        Some(nix::libc::ENOTCONN | nix::libc::ECONNABORTED) => MountError::Dead(shown.clone()),
        _ => MountError::Point(shown.clone(), error),
    };
    // A dead mount may still answer from the kernel's memory, so it is not asked.
    let untouched = mounts::without_touching(point).map_err(at_point)?;
    refuse_ours(&untouched, &shown)?;
    let metadata = std::fs::metadata(point).map_err(at_point)?;
    if !metadata.is_dir() {
        return Err(at_point(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    let point = point.canonicalize().map_err(at_point)?;
    // Of several that mount here at the same time one is first, and the others see its mount.
    let _turn = take_turn(&point);
    refuse_ours(&point, &shown)?;

    let device = match mount_directly(&point, options)? {
        Some(device) => device,
        None => mount_by_helper(&point, options)?,
    };
    let mounted = serve_from(tree, device, &point, options);
    if mounted.is_err() {
        let _ = unmount(&point, true);
    }
    mounted
}

/// A lock on the directory to mount on, as long as it is held. Where there are no locks (network
/// filesystems) or somebody else does not let go, it is done without.
fn take_turn(point: &Path) -> Option<Flock<File>> {
    let mut directory = File::open(point).ok()?;
    for _ in 0..100 {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((back, Errno::EWOULDBLOCK)) => directory = back,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Fails if a mount of ours is there.
fn refuse_ours(point: &Path, shown: &str) -> Result<(), MountError> {
    let there = mounts::at(point).map_err(|e| MountError::Point(shown.to_owned(), e))?;
    let Some(entry) = there.filter(MountEntry::is_ours) else {
        return Ok(());
    };
    let server = state::find(&entry.device, entry.user.unwrap_or(0));
    Err(match server {
        Some((server, _)) if !server.is_alive() => MountError::Dead(shown.to_owned()),
        _ => MountError::Taken(shown.to_owned()),
    })
}

fn serve_from(
    tree: Arc<Tree>,
    device: OwnedFd,
    point: &Path,
    options: MountOptions,
) -> Result<Mounted, MountError> {
    let entry = mounts::at(point)
        .map_err(|e| MountError::Other("cannot read /proc/self/mountinfo", e))?
        .filter(MountEntry::is_ours)
        .ok_or_else(|| MountError::Other("the mount", io::Error::from(io::ErrorKind::NotFound)))?;
    let acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let mut config = fuser::Config::default();
    config.acl = acl;
    config.n_threads = Some(MountOptions::threads());
    // Each worker opens the device for itself, which the helper's users may not be able to.
    config.clone_fd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .is_ok();
    let session = Session::from_fd(Adapter::new(tree), device, acl, config)
        .map_err(|e| MountError::Other("the kernel did not start the conversation", e))?;
    Ok(Mounted { session, entry })
}

impl Mounted {
    /// The mount.
    pub fn entry(&self) -> &MountEntry {
        &self.entry
    }

    /// Answers requests until the mount is gone.
    ///
    /// # Errors
    /// If the kernel's device fails.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// `mount(2)`. `None` where the process may not do that.
fn mount_directly(point: &Path, options: MountOptions) -> Result<Option<OwnedFd>, MountError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) => return Err(MountError::NoDevice(error)),
    };
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
    );
    if options.allow_other {
        data.push_str(",allow_other,default_permissions");
    }
    let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    if options.no_exec {
        flags |= MsFlags::MS_NOEXEC;
    }
    match mount(
        Some(SOURCE),
        point,
        Some("fuse"),
        flags,
        Some(data.as_str()),
    ) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(MountError::Refused(error.into())),
    }
}

fn mount_by_helper(point: &Path, options: MountOptions) -> Result<OwnedFd, MountError> {
    let talk = |e| MountError::Other("cannot talk to fusermount3", e);
    let (ours, theirs) = UnixStream::pair().map_err(talk)?;
    let mut words = format!("fsname={SOURCE},ro,nodev,nosuid");
    if options.allow_other {
        words.push_str(",allow_other,default_permissions");
    }
    if options.no_exec {
        words.push_str(",noexec");
    }
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(words)
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MountError::NoHelper)?;
    let device = receive_descriptor(&ours).map_err(talk)?;
    let output = child.wait_with_output().map_err(talk)?;
    device.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.trim().trim_start_matches("fusermount3: ");
        let said = if said.is_empty() {
            "failed without a word"
        } else {
            said
        };
        MountError::Helper(crate::ondisk::text::printable(said.as_bytes()))
    })
}

/// One descriptor from the other end, or `None` if it was closed without sending any.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            flags,
        ) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Takes a mount away; `lazy` also if files of it are in use. `point` must be as
/// [`mounts::without_touching`] gives it, and should have been checked to be one of ours.
///
/// # Errors
/// [`MountError::Busy`], [`MountError::Helper`], [`MountError::NoHelper`].
pub fn unmount(point: &Path, lazy: bool) -> Result<(), MountError> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(MountError::Busy(mounts::shown(point))),
        Err(Errno::EPERM) => unmount_by_helper(point, lazy),
        Err(error) => Err(MountError::Other("cannot unmount", error.into())),
    }
}

fn unmount_by_helper(point: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new(HELPER);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env("LC_ALL", "C")
        .stderr(Stdio::piped())
        .output()
        .map_err(MountError::NoHelper)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("busy") {
        return Err(MountError::Busy(mounts::shown(point)));
    }
    let said = said.trim().trim_start_matches("fusermount3: ");
    Err(MountError::Helper(crate::ondisk::text::printable(
        said.as_bytes(),
    )))
}

/// Takes away the mount of this process, if it is still there, whoever uses it and wherever it was
/// moved to.
pub fn detach(entry: &MountEntry) {
    let mounts = mounts::all().unwrap_or_default();
    for mount in mounts.iter().rev().filter(|m| m.device == entry.device) {
        if let Err(error) = unmount(&mount.point, true) {
            tracing::error!("cannot unmount {}: {error}", mounts::shown(&mount.point));
        }
    }
}

/// Connects stdin and stdout with `/dev/null`, and stderr with it or with the log, so that whoever
/// started this process does not wait for it.
///
/// # Errors
/// If `/dev/null` cannot be opened.
pub fn let_go_of_terminal(log: Option<File>) -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(log.as_ref().unwrap_or(&null))?;
    Ok(())
}
