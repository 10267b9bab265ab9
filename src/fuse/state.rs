//! Which process serves which mount.
//!
//! The server of a mount writes a small file, named after the mount's device number, into the
//! runtime directory of its user; `umount` waits for the process named there. A process is known by
//! its number and its start time, so a number that was used again is not mistaken for it. Nothing
//! but waiting follows from the file: it is no authority for anything.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

/// Longest state file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// What the server of a mount tells about itself.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ServerRecord {
    /// Process number.
    pub pid: i32,
    /// Start of the process in clock ticks after boot, as in `/proc/PID/stat`.
    pub started: u64,
    /// The mount's device number, `major:minor`.
    pub device: String,
    /// Where it was mounted; invalid UTF-8 replaced.
    pub point: String,
}

/// A record on disk; removed when dropped.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Writes the record of this process.
    ///
    /// # Errors
    /// If no private runtime directory can be made.
    pub fn write(device: &str, point: &Path) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let record = ServerRecord {
            pid,
            started: start_time(pid).unwrap_or(0),
            device: device.to_owned(),
            point: point.to_string_lossy().into_owned(),
        };
        let user = nix::unistd::geteuid().as_raw();
        let mut last = io::Error::other("no runtime directory");
        for directory in directories(user) {
            match write_in(&directory, user, &record) {
                Ok(path) => return Ok(Self { path }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The record of the server of a mount, with the file it is in, if it left one.
pub fn find(device: &str, user: u32) -> Option<(ServerRecord, PathBuf)> {
    directories(user).into_iter().find_map(|directory| {
        owned_directory(&directory, user).ok()?;
        let path = directory.join(file_name(device));
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.uid() != user {
            return None;
        }
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let record: ServerRecord = serde_json::from_str(&text).ok()?;
        (record.device == device).then_some((record, path))
    })
}

impl ServerRecord {
    /// Whether the process is still there (a zombie has let go of everything already).
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`; `None` if there is no such process or it has ended.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    let after = stat.iter().rposition(|&b| b == b')')?.checked_add(2)?;
    let rest = String::from_utf8_lossy(stat.get(after..)?).into_owned();
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Where a user's records may be, the preferred place first.
fn directories(user: u32) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if user == 0 {
        all.push(PathBuf::from("/run/guestlens"));
    }
    all.push(PathBuf::from(format!("/run/user/{user}/guestlens")));
    all.push(PathBuf::from(format!("/tmp/guestlens-{user}")));
    all
}

fn file_name(device: &str) -> String {
    let safe: String = device
        .chars()
        .map(|c| if c.is_ascii_digit() { c } else { '-' })
        .collect();
    format!("mount-{safe}.json")
}

/// Fails unless the path is a directory that only `user` can write to.
fn owned_directory(path: &Path, user: u32) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other(
            "a runtime directory that belongs to somebody else",
        ))
    }
}

fn write_in(directory: &Path, user: u32, record: &ServerRecord) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => owned_directory(directory, user)?,
    }
    let path = directory.join(file_name(&record.device));
    let text = serde_json::to_string(record)?;
    // The device number was free, so a file that is there is a dead server's.
    let _ = std::fs::remove_file(&path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    if let Err(error) = file.write_all(text.as_bytes()) {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_goes() {
        let user = nix::unistd::geteuid().as_raw();
        let device = format!("9999:{}", std::process::id());
        let file = StateFile::write(&device, Path::new("/somewhere")).unwrap();
        let (record, path) = find(&device, user).unwrap();
        assert_eq!(path, file.path);
        assert!(record.is_alive());
        let reused = ServerRecord {
            started: record.started.wrapping_add(1),
            ..record
        };
        assert!(!reused.is_alive());
        drop(file);
        assert_eq!(find(&device, user), None);
    }
}
