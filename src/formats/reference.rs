//! Which files an image may make us open.
//!
//! A backing file or data file that an image names is data, not an instruction: it is reported
//! always and opened only if policy allows. By default that is: a regular file in the directory
//! of the image or of the file that names it, or below. The kernel enforces the boundary while it
//! resolves the name (`openat2` with `RESOLVE_BENEATH`), so neither `..` nor a symbolic link nor
//! a race leads out. Names with a protocol (`json:`, `nbd:` …) are never followed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;

use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::{self, FileId, HostFile, shown};
use crate::limits;
use crate::ondisk::text::printable;

/// What references policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferencePolicy {
    /// Directories (with everything below) and files that references may lead to, beside the
    /// directory tree of the image that names them.
    pub allowed: Vec<PathBuf>,
    /// Follow no reference at all, also not within the same directory tree.
    pub refuse_all: bool,
}

/// The files one image has led to so far, from the image the user named downwards.
pub struct Chain<'a> {
    policy: &'a ReferencePolicy,
    /// Directory of the image the user named.
    top: PathBuf,
    files: Vec<FileId>,
    /// Of those, the ones that are images of their own: the user's and those below it.
    images: usize,
}

/// What a file is to the image that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The image below; one step down the chain.
    Backing,
    /// Holds bytes of the image itself.
    Part,
}

impl<'a> Chain<'a> {
    /// Starts at the image the user named.
    pub fn new(policy: &'a ReferencePolicy, image: &HostFile) -> Self {
        Self {
            policy,
            top: directory_of(image.path()),
            files: vec![image.id()],
            images: 1,
        }
    }

    /// Starts at something that is no file of this host: every reference is refused.
    pub fn nowhere() -> Chain<'static> {
        static NONE: ReferencePolicy = ReferencePolicy {
            allowed: Vec::new(),
            refuse_all: true,
        };
        Chain {
            policy: &NONE,
            top: PathBuf::new(),
            files: Vec::new(),
            images: 1,
        }
    }

    /// Directories in which a file may be looked for that `referrer` does not name: its own, and
    /// those the user allowed. None where references are not followed.
    pub fn directories(&self, referrer: &Path) -> Vec<PathBuf> {
        if self.policy.refuse_all {
            return Vec::new();
        }
        let allowed = self.policy.allowed.iter().filter(|path| path.is_dir());
        std::iter::once(directory_of(referrer))
            .chain(allowed.cloned())
            .collect()
    }

    /// Opens the file that `referrer` names as its `role` ("backing file", "data file"), for
    /// reading, or for writing as well.
    ///
    /// # Errors
    /// [`FormatErrorKind::NotAllowed`] if policy does not allow it, [`FormatErrorKind::Damaged`]
    /// for a chain that is too long or bites its tail, [`FormatErrorKind::Io`].
    pub fn follow(
        &mut self,
        name: &[u8],
        (link, role): (Link, &str),
        referrer: &Path,
        write: bool,
    ) -> Result<HostFile> {
        let context = format!("{role} '{}' of {}", printable(name), shown(referrer));
        if self.policy.refuse_all {
            return Err(refused(format!(
                "{context}: following references is switched off"
            )));
        }
        if self.files.len() >= limits::MAX_CHAIN_FILES {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "{context}: the image consists of more than {} files",
                    limits::MAX_CHAIN_FILES
                ),
            ));
        }
        if link == Link::Backing && self.images > limits::MAX_CHAIN_DEPTH {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                format!("{context}: the chain is longer than {} files", limits::MAX_CHAIN_DEPTH),
            )
            .with_hint("shorten the chain (guestlens commit or rebase); --allow-backing DIR does not lift this limit"));
        }
        let name = checked_name(name, &context)?;
        let file = self.open(name, referrer, &context, write)?;
        if self.files.contains(&file.id()) {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                format!("{context}: the chain leads back to a file it already contains"),
            )
            .with_hint("correct the reference with guestlens rebase --unsafe; --allow-backing DIR does not help here"));
        }
        self.files.push(file.id());
        if link == Link::Backing {
            self.images = self.images.saturating_add(1);
        }
        Ok(file)
    }

    fn open(&self, name: &Path, referrer: &Path, context: &str, write: bool) -> Result<HostFile> {
        let directory = directory_of(referrer);
        let target = directory.join(name);
        let real_target = std::fs::canonicalize(&target).ok();
        let mut missing = None;
        let trees = [directory.as_path(), self.top.as_path()];
        let roots = trees
            .into_iter()
            .chain(self.policy.allowed.iter().map(PathBuf::as_path));
        for root in roots {
            let Ok(root) = std::path::absolute(root) else {
                continue;
            };
            let mut attempts = vec![(root.clone(), target.clone())];
            if let (Ok(root), Some(target)) = (std::fs::canonicalize(&root), &real_target) {
                attempts.push((root, target.clone()));
            }
            for (root, target) in attempts {
                match open_beneath(&root, &target, write) {
                    Ok(Some(file)) => {
                        let listed = self.policy.allowed.iter().any(|a| same_file(a, &file));
                        return admit(file, target, listed, context);
                    }
                    Ok(None) => {}
                    Err(e) => missing = Some(e),
                }
            }
        }
        match missing {
            Some(e) => Err(FormatError::io(format!("cannot open {context}"), e)
                .with_hint("put it where the image says; other places need --allow-backing DIR")),
            None => Err(refused(format!(
                "{context} lies outside the image's directory tree"
            ))),
        }
    }
}

/// What QEMU takes for a file name; everything else is refused.
fn checked_name<'n>(name: &'n [u8], context: &str) -> Result<&'n Path> {
    if name.is_empty() || name.contains(&0) {
        return Err(refused(format!("{context}: not a file name")));
    }
    // As QEMU's path_has_protocol: a colon before the first slash.
    let first = name.iter().find(|b| matches!(b, b':' | b'/'));
    if first == Some(&b':') {
        return Err(refused(format!(
            "{context}: names with a protocol are never followed"
        )));
    }
    Ok(Path::new(OsStr::from_bytes(name)))
}

/// Opens `target` if it lies beneath `root` (or is `root`, where that is a file). `None`: it does
/// not. Opened twice: first only to look what it is, because opening a device node can have
/// effects, then for reading if it is still the same file.
fn open_beneath(root: &Path, target: &Path, write: bool) -> std::io::Result<Option<Opened>> {
    let Ok(below) = target.strip_prefix(root) else {
        return Ok(None);
    };
    let (root, below) = if below.as_os_str().is_empty() {
        match (root.parent(), root.file_name()) {
            (Some(parent), Some(name)) => (parent, Path::new(name)),
            _ => return Ok(None),
        }
    } else {
        (root, below)
    };
    let Ok(directory) = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(root)
    else {
        return Ok(None);
    };
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let open = |flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve);
        match openat2(&directory, below, how) {
            Ok(fd) => Ok(Some(File::from(fd))),
            // EXDEV: the name leads out. ELOOP: through a magic link.
            Err(nix::Error::EXDEV | nix::Error::ELOOP) => Ok(None),
            Err(e) => Err(std::io::Error::from(e)),
        }
    };
    let access = if write {
        OFlag::O_RDWR
    } else {
        OFlag::O_RDONLY
    };
    let Some(seen) = open(OFlag::O_PATH)? else {
        return Ok(None);
    };
    let metadata = seen.metadata()?;
    let kind = metadata.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return Ok(Some(Opened {
            file: seen,
            metadata,
        }));
    }
    let Some(file) = open(access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)? else {
        return Ok(None);
    };
    let now = file.metadata()?;
    if FileId::of(&now) != FileId::of(&metadata) {
        return Err(std::io::Error::other(
            "the file was replaced while it was opened",
        ));
    }
    Ok(Some(Opened {
        file,
        metadata: now,
    }))
}

/// An open file and what it is. Of anything but a file or block device only the name is open.
struct Opened {
    file: File,
    metadata: std::fs::Metadata,
}

fn same_file(path: &Path, opened: &Opened) -> bool {
    std::fs::metadata(path).is_ok_and(|m| FileId::of(&m) == FileId::of(&opened.metadata))
}

/// The last check: regular files, and block devices that the user listed by themselves.
fn admit(opened: Opened, path: PathBuf, listed: bool, context: &str) -> Result<HostFile> {
    let kind = opened.metadata.file_type();
    if kind.is_block_device() && !listed {
        return Err(refused(format!(
            "{context} is a block device that was not listed"
        )));
    }
    if !(kind.is_file() || kind.is_block_device()) {
        return Err(refused(format!("{context} is not a regular file")));
    }
    host_file::suitable(&opened.metadata, &path).map_err(|e| e.within(context))?;
    HostFile::from_open(opened.file, path)
}

fn refused(context: String) -> FormatError {
    FormatError::new(FormatErrorKind::NotAllowed, context)
        .with_hint("references outside the image's own directory need --allow-backing DIR (regular files only)")
}

/// The absolute directory a file's relative references start from. As in QEMU, that of the path
/// the file was opened by, not of what a symbolic link there leads to.
fn directory_of(path: &Path) -> PathBuf {
    let directory = path.parent().unwrap_or(Path::new("/"));
    if directory.as_os_str().is_empty() {
        return std::path::absolute(".").unwrap_or_else(|_| PathBuf::from("."));
    }
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_not_paths() {
        for bad in [
            "json:{}",
            "nbd://x",
            "nbd:unix:/x",
            "a:b",
            "",
            "a\0b",
            "fd:3",
            ":x",
        ] {
            let error = checked_name(bad.as_bytes(), "x").unwrap_err();
            assert_eq!(error.kind(), FormatErrorKind::NotAllowed, "{bad}");
            assert!(error.hint().unwrap().contains("--allow-backing"));
        }
        for good in ["a", "./a:b", "d/a:b", "/a:b", "../x"] {
            assert!(checked_name(good.as_bytes(), "x").is_ok(), "{good}");
        }
    }
}
