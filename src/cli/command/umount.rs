//! `guestlens umount`: ends a mount and waits until everything is released.
//!
//! 1. What is mounted is read from `/proc/self/mountinfo`; the mount itself is not touched, since
//!    its server may be dead or hang.
//! 2. The process that serves it is found by its state file, before the mount goes away.
//! 3. Unmount; a mount in use stays as it is.
//! 4. Wait for the process to end: with it, all locks on the images are gone.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::fuse::mounts::{self, MountEntry};
use crate::fuse::session::{self, MountError};
use crate::fuse::state::{self, ServerRecord};

/// How long to wait for the server of a mount that files are still open of.
const LAZY_WAIT: Duration = Duration::from_secs(1);

/// Arguments of `umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Take the mount away even if files are in use; they stay readable until they are closed
    #[arg(short = 'z', long)]
    pub lazy: bool,

    /// How long to wait until the images are released
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Unmounts.
///
/// # Errors
/// If it is no mount of ours, or still in use, or its process does not end in time.
pub fn run(args: &UmountArgs) -> Outcome {
    let entry = find_mount(args)?;
    let server = state::find(&entry.device, entry.user.unwrap_or(0));
    let waiting = server.as_ref().and_then(|(record, _)| watch(record));

    session::unmount(&entry.point, args.lazy).map_err(|error| {
        let busy = matches!(error, MountError::Busy(_));
        let failure = Failure::from(error);
        if busy {
            failure.with_hint("end what uses it (fuser -vm shows it), or use --lazy")
        } else {
            failure
        }
    })?;

    let Some((record, path)) = server else {
        return Ok(Exit::Done);
    };
    let gone = match waiting {
        Some(process) if args.lazy => ends_within(&process, LAZY_WAIT),
        Some(process) => ends_within(&process, Duration::from_secs(args.timeout)),
        None => true,
    };
    if gone {
        // The record of a server that was killed; others take theirs along.
        let _ = std::fs::remove_file(path);
    } else if !args.lazy {
        return Err(Failure::new(format!(
            "{} is unmounted, but its process {} has not ended after {} seconds",
            mounts::shown(&entry.point),
            record.pid,
            args.timeout
        )));
    }
    Ok(Exit::Done)
}

fn find_mount(args: &UmountArgs) -> Outcome<MountEntry> {
    let shown = mounts::shown(&args.mountpoint);
    let point = mounts::without_touching(&args.mountpoint).context(|| shown.clone())?;
    let mut entry = mounts::at(&point)?;
    if entry.is_none()
        && let Ok(target) = point.canonicalize()
    {
        entry = mounts::at(&target)?;
    }
    match entry {
        Some(entry) if entry.is_ours() => Ok(entry),
        Some(entry) => Err(Failure::new(format!(
            "{shown} is a mount of {:?} (type {}), not one of guestlens",
            entry.source, entry.fs_type
        ))),
        None => Err(Failure::new(format!("nothing is mounted on {shown}"))),
    }
}

/// A handle on the server's process; `None` if it has ended.
fn watch(record: &ServerRecord) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(record.pid)?, PidfdFlags::empty()).ok()?;
    // Asked after the handle was taken, so the answer is about the process behind the handle.
    record.is_alive().then_some(process)
}

fn ends_within(process: &OwnedFd, time: Duration) -> bool {
    let deadline = Instant::now().checked_add(time);
    loop {
        let left = deadline.map_or(time, |d| d.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(left).ok();
        let mut wait = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut wait, timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
