//! Which mounts there are, from `/proc/self/mountinfo` (proc(5)).
//!
//! A mount whose server hangs makes every `stat` on it hang. So its facts are read here, and paths
//! are never resolved through their last component before it is known what is mounted there.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::options::SOURCE;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount.
    pub id: u64,
    /// Device number, `major:minor`; one per mounted filesystem as long as it lives.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the filesystem.
    pub fs_type: String,
    /// Source.
    pub source: String,
    /// Owner of a FUSE mount.
    pub user: Option<u32>,
}

impl MountEntry {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.fs_type == "fuse" && self.source == SOURCE
    }
}

/// All mounts of this process's namespace, in the order they were made.
///
/// # Errors
/// If `/proc` is not there.
pub fn all() -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// What is mounted at `point`, the topmost if there are several. `point` must be as
/// [`without_touching`] gives it.
///
/// # Errors
/// As [`all`].
pub fn at(point: &Path) -> io::Result<Option<MountEntry>> {
    Ok(all()?.into_iter().rfind(|m| m.point == point))
}

/// An absolute path without symbolic links but for its last component, which is not looked at.
///
/// # Errors
/// If the directory around it cannot be reached.
pub fn without_touching(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    // `absolute` keeps `..`; whoever uses it at the end means a place that can be looked at.
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        (None, _) => Ok(absolute),
        (Some(_), None) => absolute.canonicalize(),
    }
}

fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let _parent = fields.next()?;
    let device = text(fields.next()?);
    let _root = fields.next()?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    // Optional fields end with a dash.
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let fs_type = text(fields.next()?);
    let source = text(&unescape(fields.next()?));
    let user = fields
        .next()
        .unwrap_or_default()
        .split(|&b| b == b',')
        .find_map(|option| text(option.strip_prefix(b"user_id=")?).parse().ok());
    Some(MountEntry {
        id,
        device,
        point,
        fs_type,
        source,
        user,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// For a message: the path, escaped.
pub fn shown(path: &Path) -> String {
    crate::ondisk::text::printable(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = b"295 61 0:53 / /mnt/a\\040b\\134 ro,nosuid,nodev,relatime shared:1 master:2 - fuse guestlens ro,user_id=65534,group_id=0";
        let entry = parse(line).unwrap();
        assert_eq!(entry.point, Path::new("/mnt/a b\\"));
        assert_eq!((entry.id, entry.device.as_str()), (295, "0:53"));
        assert_eq!(entry.user, Some(65534));
        assert!(entry.is_ours());
        let other = b"22 61 0:21 / /proc rw - proc proc rw";
        assert!(!parse(other).unwrap().is_ours());
        assert_eq!(parse(b""), None);
        assert!(all().unwrap().iter().any(|m| m.point == Path::new("/proc")));
    }
}
