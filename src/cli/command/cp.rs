//! `guestlens cp`: files and directories from the guest to the host.
//!
//! What keeps a hostile tree inside the destination is in [`crate::cli::destination`].

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::args::{LogArgs, OpenArgs, ViewArgs};
use crate::cli::destination::{Destination, Place, Policy, Xattrs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::progress::Progress;
use crate::cli::session::{self, Session};
use crate::cli::text::host_path;
use crate::cli::walk::{Visitor, walk_with};
use crate::fs::{Attributes, FileSystem, FileType, InodeNo};
use crate::guest::view::FollowFinal;
use crate::guest::{GuestView, Node};
use crate::ondisk::text::printable;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Arguments of `cp`.
#[derive(Args, Debug)]
pub struct CpArgs {
    /// The image (unless -a), then paths in the guest, then where to on the host: a directory, or
    /// for a single path also a new name
    #[arg(value_name = "[IMAGE] PATH... DESTINATION", required = true)]
    pub arguments: Vec<OsString>,

    /// Copy directories with everything below
    #[arg(short, long)]
    pub recursive: bool,

    /// Copy recursively and keep modes, times, owners, extended attributes and ACLs, as far as
    /// the user may; set-user-ID and owners only as root
    #[arg(long)]
    pub archive: bool,

    /// Replace files that exist
    #[arg(short, long)]
    pub force: bool,

    /// Make device nodes, fifos and sockets as well (root only)
    #[arg(long)]
    pub devices: bool,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Copies. Without -r a symbolic link given as a path is followed inside the guest; below a
/// directory, links are copied as links.
///
/// # Errors
/// If the guest or the destination cannot be opened, or the destination is full.
pub fn run(args: &CpArgs, log: &LogArgs) -> Outcome {
    let mut arguments = args.arguments.clone();
    let images = args.open.take_image(&mut arguments)?;
    let target = PathBuf::from(
        arguments
            .pop()
            .ok_or_else(|| Failure::usage("no destination given"))?,
    );
    let paths = session::some_paths(arguments)?;
    let root = nix::unistd::geteuid().is_root();
    if args.devices && !root {
        return Err(Failure::usage("--devices is for root"));
    }
    let policy = Policy {
        archive: args.archive,
        force: args.force,
        root,
    };
    let (base, new_name) = place(&target, paths.len())?;
    let session = Session::open(&args.open, &images)?;
    let view = session.view(&args.view)?;
    let recursive = args.recursive || args.archive;
    let follow = if recursive {
        FollowFinal::No
    } else {
        FollowFinal::Yes
    };
    let destination = Destination::open(&base, policy).context(|| host_path(&base))?;
    let mut copy = Copy {
        view: &view,
        destination,
        policy,
        devices: args.devices,
        recursive,
        top_name: None,
        created: Vec::new(),
        links: HashMap::new(),
        buffer: vec![0; CHUNK],
        done: 0,
        failed: 0,
        progress: Progress::new(total(&view, &paths, follow), log.quiet),
    };
    for path in &paths {
        let start = match session::resolve(&view, path, follow) {
            Ok(start) => start,
            Err(failure) => {
                copy.tell(&failure);
                continue;
            }
        };
        copy.top_name = match (&new_name, session::base_name(path)) {
            (Some(name), _) => Some(name.clone()),
            // The content of the directory, not the directory.
            (None, b"" | b".") => None,
            (None, name) => Some(name.to_vec()),
        };
        if let Err(failure) = walk_with(&view, path, start, None, &mut copy) {
            if copy.done == 0 {
                return Err(failure);
            }
            copy.tell(&failure.within("stopped"));
            break;
        }
    }
    Ok(match (copy.failed, copy.done) {
        (0, _) => Exit::Done,
        (_, 0) => Exit::Failed,
        _ => Exit::Partial,
    })
}

/// The directory to copy into, and the name there if it is not the name in the guest.
fn place(target: &Path, count: usize) -> Outcome<(PathBuf, Option<Vec<u8>>)> {
    match std::fs::metadata(target) {
        Ok(there) if there.is_dir() => return Ok((target.to_owned(), None)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::from(error).within(host_path(target))),
    }
    if count > 1 {
        return Err(Failure::new("is no directory").within(host_path(target)));
    }
    let name = target
        .file_name()
        .ok_or_else(|| Failure::new("is no name for a file").within(host_path(target)))?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, Some(name.as_bytes().to_vec())))
}

/// Bytes to copy, if it is files only.
fn total(view: &GuestView, paths: &[Vec<u8>], follow: FollowFinal) -> Option<u64> {
    let mut total = 0u64;
    for path in paths {
        let a = view.attributes(view.resolve(path, follow).ok()?).ok()?;
        if a.file_type == FileType::Directory {
            return None;
        }
        total = total.checked_add(a.size)?;
    }
    Some(total)
}

struct Copy<'a> {
    view: &'a GuestView,
    destination: Destination,
    policy: Policy,
    devices: bool,
    recursive: bool,
    /// Name in the destination of what the walk starts with.
    top_name: Option<Vec<u8>>,
    /// For each directory entered: whether it was made by us; `None` for the start of a walk that
    /// is no directory of its own in the destination.
    created: Vec<Option<bool>>,
    /// First names of files that have several.
    links: HashMap<Node, Place>,
    buffer: Vec<u8>,
    done: u64,
    failed: u64,
    progress: Progress,
}

impl Visitor for Copy<'_> {
    fn file(&mut self, path: &[u8], below: &[u8], node: Node, a: &Attributes) -> Outcome<bool> {
        let name = if below.is_empty() {
            self.top_name.clone()
        } else {
            Some(session::base_name(below).to_vec())
        };
        if a.file_type == FileType::Directory {
            return self.directory(path, name);
        }
        let made = match name {
            Some(name) => self.one(&name, node, a),
            None => Err(Failure::new("is no directory")),
        };
        match made {
            Ok(finished) => {
                self.done = self.done.saturating_add(1);
                self.note(path, finished);
            }
            Err(failure) if is_full(&failure) => return Err(failure.within(printable(path))),
            Err(failure) => self.tell(&advised(failure).within(printable(path))),
        }
        Ok(false)
    }

    fn leave(&mut self, path: &[u8], node: Node, a: &Attributes) -> Outcome<()> {
        let Some(Some(created)) = self.created.pop() else {
            return Ok(());
        };
        let xattrs = if created {
            self.xattrs(node)
        } else {
            Ok(Vec::new())
        };
        let (xattrs, unread) = match xattrs {
            Ok(xattrs) => (xattrs, Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        };
        let finish = created.then_some((a, &xattrs));
        let finished = self.destination.leave(finish).context(|| printable(path))?;
        self.note(path, unread.and(finished));
        Ok(())
    }

    fn failed(&mut self, failure: Failure) -> Outcome<()> {
        self.tell(&failure);
        Ok(())
    }
}

impl Copy<'_> {
    /// Makes and enters a directory; false if its names cannot be copied.
    fn directory(&mut self, path: &[u8], name: Option<Vec<u8>>) -> Outcome<bool> {
        if !self.recursive {
            let failure = Failure::new("is a directory (-r copies directories)");
            self.tell(&failure.within(printable(path)));
            return Ok(false);
        }
        let Some(name) = name else {
            self.created.push(None);
            return Ok(true);
        };
        match self.destination.enter(&name) {
            Ok(created) => {
                self.created.push(Some(created));
                self.done = self.done.saturating_add(1);
                Ok(true)
            }
            Err(failure) if is_full(&failure) => Err(failure.within(printable(path))),
            Err(failure) => {
                self.tell(&advised(failure).within(printable(path)));
                Ok(false)
            }
        }
    }

    /// Makes anything else; the result in the result is what could not be taken over.
    fn one(&mut self, name: &[u8], node: Node, a: &Attributes) -> Outcome<Outcome<()>> {
        let mut unlinked = Ok(());
        if a.nlink > 1
            && let Some(first) = self.links.get(&node)
        {
            match self.destination.link(name, first) {
                Ok(()) => return Ok(Ok(())),
                Err(failure) if is_there(&failure) => return Err(failure),
                Err(failure) => unlinked = Err(failure.within("copied, not linked")),
            }
        }
        let xattrs = self.xattrs(node)?;
        let (place, finished) = match a.file_type {
            FileType::Regular => self.regular(name, node, a, &xattrs)?,
            FileType::Symlink => {
                let target = self.view.read_link(node)?;
                self.destination.symlink(name, &target, a, &xattrs)?
            }
            _ if self.devices => self.destination.special(name, a, &xattrs)?,
            _ => {
                return Err(Failure::new(
                    "a device node, fifo or socket is not copied without --devices",
                ));
            }
        };
        if a.nlink > 1 {
            self.links.entry(node).or_insert(place);
        }
        Ok(unlinked.and(finished))
    }

    fn regular(
        &mut self,
        name: &[u8],
        node: Node,
        a: &Attributes,
        xattrs: &Xattrs,
    ) -> Outcome<(Place, Outcome<()>)> {
        let fs = self.view.fs(node)?;
        let (buffer, progress) = (&mut self.buffer, &mut self.progress);
        self.destination.file(name, a, xattrs, &mut |file| {
            content(fs.as_ref(), node.ino, a.size, file, buffer, progress)
        })
    }

    fn xattrs(&self, node: Node) -> Outcome<Xattrs> {
        if !self.policy.archive {
            return Ok(Vec::new());
        }
        let fs = self.view.fs(node)?;
        let mut xattrs = Vec::new();
        for name in fs.xattr_names(node.ino)? {
            let value = fs.xattr(node.ino, &name)?;
            xattrs.push((name, value));
        }
        Ok(xattrs)
    }

    fn note(&mut self, path: &[u8], finished: Outcome<()>) {
        if let Err(failure) = finished {
            self.tell(&failure.within(printable(path)));
        }
    }

    fn tell(&mut self, failure: &Failure) {
        self.failed = self.failed.saturating_add(1);
        self.progress.complain(&failure.line());
    }
}

/// Copies the data of a file of the right size; holes stay holes.
fn content(
    fs: &dyn FileSystem,
    ino: InodeNo,
    size: u64,
    file: &File,
    buffer: &mut [u8],
    progress: &mut Progress,
) -> Outcome<()> {
    let mut at = 0u64;
    while at < size {
        let extent = fs.extent_at(ino, at).context(|| format!("at byte {at}"))?;
        let end = at.saturating_add(extent.len.max(1)).min(size);
        if !extent.data {
            progress.add(end.saturating_sub(at));
            at = end;
        }
        while at < end {
            let want = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let want = want.min(buffer.len());
            let part = buffer.get_mut(..want).unwrap_or_default();
            let got = fs
                .read_at(ino, at, part)
                .context(|| format!("at byte {at}"))?;
            let part = part.get(..got).unwrap_or_default();
            if part.is_empty() {
                return Err(Failure::new(format!("ends at byte {at}")));
            }
            file.write_all_at(part, at)?;
            progress.add(got as u64);
            at = at.saturating_add(got as u64);
        }
    }
    Ok(())
}

fn advised(failure: Failure) -> Failure {
    if is_there(&failure) {
        return failure.within("not copied (-f replaces)");
    }
    failure
}

fn is_there(failure: &Failure) -> bool {
    failure.has_io_error(|e| e.raw_os_error() == Some(libc::EEXIST))
}

/// Nothing more can be copied then.
fn is_full(failure: &Failure) -> bool {
    failure.has_io_error(|e| {
        matches!(
            e.raw_os_error(),
            Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS)
        )
    })
}
