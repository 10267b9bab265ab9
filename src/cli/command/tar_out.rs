//! `guestlens tar-out`: a part of the guest as a tar archive.
//!
//! POSIX.1-2001 pax format: each member has an extended header with its exact time, and with what
//! the 1988 header cannot hold (names beyond 100 bytes, numbers beyond octal fields, extended
//! attributes as `SCHILY.xattr.*` and ACLs as `SCHILY.acl.*`, which GNU tar, bsdtar and star
//! read). Files with holes are members of GNU's sparse format 1.0. Names are bytes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::pax::{self, BLOCK, SparseMap, record};
use crate::cli::session::{self, Session};
use crate::cli::text::host_path;
use crate::cli::walk::{Step, walk};
use crate::fs::{Attributes, FileSystem, FileType};
use crate::guest::view::FollowFinal;
use crate::guest::{GuestView, Node};
use crate::ondisk::text::printable;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Arguments of `tar-out`.
#[derive(Args, Debug)]
pub struct TarOutArgs {
    /// The image (unless -a), then the directory or file in the guest; / if there is none
    #[arg(value_name = "[IMAGE] [PATH]")]
    pub arguments: Vec<OsString>,

    /// Write to this file, which must not exist, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Writes the archive. Names in it are relative to the directory, as `./etc/hosts`.
///
/// # Errors
/// If the guest cannot be opened, or of writing.
pub fn run(args: &TarOutArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let session = Session::open_first(&args.open, &mut arguments)?;
    let view = session.view(&args.view)?;
    let paths = session::paths_or_root(arguments);
    let [path] = paths.as_slice() else {
        return Err(Failure::usage("one path at most"));
    };
    let start = session::resolve(&view, path, FollowFinal::Yes)?;
    match &args.output {
        None => archive(&view, path, start, out),
        Some(file) => {
            let created = std::fs::File::create_new(file).context(|| host_path(file))?;
            let mut out = Output::new(Box::new(created));
            let written = archive(&view, path, start, &mut out)
                .and_then(|exit| out.finish().map(|()| exit))
                .context(|| host_path(file));
            if written.is_err() {
                let _ = std::fs::remove_file(file);
            }
            written
        }
    }
}

fn archive(view: &GuestView, path: &[u8], start: Node, out: &mut Output) -> Outcome {
    let mut archive = Archive {
        view,
        out,
        links: HashMap::new(),
        buffer: vec![0; CHUNK],
        exit: Exit::Done,
    };
    walk(view, path, start, None, &mut |step| match step {
        Step::File {
            path,
            below,
            node,
            attributes,
        } => {
            let name = match (below.is_empty(), attributes.file_type) {
                (true, FileType::Directory) => b"./".to_vec(),
                (true, _) => session::base_name(path).to_vec(),
                (false, FileType::Directory) => [b"./", below, b"/"].concat(),
                (false, _) => [b"./", below].concat(),
            };
            match archive.member(node, attributes, &name) {
                Ok(()) => Ok(()),
                Err(Stopped::Writing(failure)) => Err(failure),
                Err(Stopped::Reading(failure)) => {
                    archive.tell(&failure.within(printable(path)));
                    Ok(())
                }
            }
        }
        Step::Failed(failure) => {
            archive.tell(&failure);
            Ok(())
        }
    })?;
    archive.out.bytes(&[0; 2 * BLOCK])?;
    Ok(archive.exit)
}

enum Stopped {
    /// The guest could not be read; the archive is still sound.
    Reading(Failure),
    /// The archive could not be written.
    Writing(Failure),
}

fn reading(error: impl Into<Failure>) -> Stopped {
    Stopped::Reading(error.into())
}

struct Archive<'a> {
    view: &'a GuestView,
    out: &'a mut Output,
    /// First names of files that have several.
    links: HashMap<Node, Vec<u8>>,
    buffer: Vec<u8>,
    exit: Exit,
}

impl Archive<'_> {
    fn tell(&mut self, failure: &Failure) {
        complain(&failure.line());
        self.exit = Exit::Partial;
    }

    fn member(&mut self, node: Node, a: &Attributes, name: &[u8]) -> Result<(), Stopped> {
        let fs = self.view.fs(node).map_err(reading)?;
        let (mut linked, mut map, mut unread) = (Vec::new(), SparseMap::default(), None);
        let type_flag = match a.file_type {
            FileType::Socket => {
                return Err(reading(Failure::new("a socket; tar has no type for it")));
            }
            FileType::Directory => b'5',
            _ if a.nlink > 1 && self.links.contains_key(&node) => {
                linked = self.links.get(&node).cloned().unwrap_or_default();
                b'1'
            }
            FileType::Regular => {
                unread = find_data(fs.as_ref(), a, &mut map).err();
                b'0'
            }
            FileType::Symlink => {
                linked = self.view.read_link(node).map_err(reading)?;
                b'2'
            }
            FileType::CharDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Fifo => b'6',
        };
        let sparse = map.data_len() < a.size && type_flag == b'0';
        let front = if sparse {
            map.encode(a.size)
        } else {
            Vec::new()
        };
        let size = map.data_len().saturating_add(front.len() as u64);

        let mut pax = Vec::new();
        let shown = if sparse {
            record(&mut pax, b"GNU.sparse.major", b"1");
            record(&mut pax, b"GNU.sparse.minor", b"0");
            record(&mut pax, b"GNU.sparse.name", name);
            record(
                &mut pax,
                b"GNU.sparse.realsize",
                a.size.to_string().as_bytes(),
            );
            // For those who do not know the format: not the name of the real file.
            [b"./GNUSparseFile.0/", session::base_name(name)].concat()
        } else {
            name.to_vec()
        };
        self.names(&mut pax, &shown, &linked);
        numbers(&mut pax, a, size);
        if type_flag != b'1'
            && let Err(failure) = self.xattrs(&mut pax, fs.as_ref(), a)
        {
            self.tell(&failure.within(printable(name)));
        }
        let writing = Stopped::Writing;
        let pax_len = pax.len() as u64;
        self.out
            .bytes(&pax::header(b"././@PaxHeader", b"", a, pax_len, b'x'))
            .map_err(writing)?;
        self.padded(&pax).map_err(writing)?;
        self.out
            .bytes(&pax::header(&shown, &linked, a, size, type_flag))
            .map_err(writing)?;
        if a.nlink > 1 && type_flag != b'5' {
            self.links.entry(node).or_insert_with(|| name.to_vec());
        }
        self.out.bytes(&front).map_err(writing)?;
        for (at, len) in map.runs() {
            let failed = self.content(fs.as_ref(), a, *at, *len).map_err(writing)?;
            unread = unread.or(failed);
        }
        self.pad(size).map_err(writing)?;
        unread.map_or(Ok(()), |failure| Err(Stopped::Reading(failure)))
    }

    /// Names that do not fit into the header.
    fn names(&self, pax: &mut Vec<u8>, name: &[u8], linked: &[u8]) {
        let long = [(b"path".as_slice(), name), (b"linkpath", linked)]
            .into_iter()
            .filter(|(_, name)| name.len() > 100);
        // Records are UTF-8 unless they say otherwise.
        if long
            .clone()
            .any(|(_, name)| std::str::from_utf8(name).is_err())
        {
            record(pax, b"hdrcharset", b"BINARY");
        }
        for (key, name) in long {
            record(pax, key, name);
        }
    }

    fn xattrs(&mut self, pax: &mut Vec<u8>, fs: &dyn FileSystem, a: &Attributes) -> Outcome<()> {
        let mut left_out = Ok(());
        for key in fs.xattr_names(a.ino)? {
            // A name with `=` cannot be told from its value.
            if key.contains(&b'=') {
                let message = format!("attribute {} does not fit into tar", printable(&key));
                left_out = Err(Failure::new(message));
                continue;
            }
            let value = match fs.xattr(a.ino, &key) {
                Ok(value) => value,
                Err(error) => {
                    left_out = Err(Failure::from(error).within(printable(&key)));
                    continue;
                }
            };
            record(pax, &[b"SCHILY.xattr.", key.as_slice()].concat(), &value);
            // GNU tar sets ACLs from these alone.
            let acl = match key.as_slice() {
                b"system.posix_acl_access" => "SCHILY.acl.access",
                b"system.posix_acl_default" => "SCHILY.acl.default",
                _ => continue,
            };
            if let Some(text) = pax::acl_text(&value) {
                record(pax, acl.as_bytes(), text.as_bytes());
            }
        }
        left_out
    }

    /// Exactly `len` bytes. What cannot be read becomes zeroes, and is returned: a member must be
    /// as long as its header says.
    fn content(
        &mut self,
        fs: &dyn FileSystem,
        a: &Attributes,
        start: u64,
        len: u64,
    ) -> Outcome<Option<Failure>> {
        let (mut at, mut failed) = (start, None);
        let end = start.saturating_add(len);
        while at < end {
            let want = usize::try_from(end.saturating_sub(at)).unwrap_or(CHUNK);
            let part = self.buffer.get_mut(..want.min(CHUNK)).unwrap_or_default();
            let got = match fs.read_at(a.ino, at, part) {
                Ok(got) if got > 0 => got,
                Ok(_) => {
                    failed.get_or_insert_with(|| Failure::new(format!("ends at byte {at}")));
                    part.fill(0);
                    part.len()
                }
                Err(error) => {
                    let context = format!("bytes from {at} are zeroes in the archive");
                    failed.get_or_insert_with(|| Failure::from(error).within(context));
                    part.fill(0);
                    part.len()
                }
            };
            self.out.bytes(part.get(..got).unwrap_or_default())?;
            at = at.saturating_add(got as u64);
        }
        Ok(failed)
    }

    fn padded(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.out.bytes(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn pad(&mut self, len: u64) -> Outcome<()> {
        let zeroes = [0; BLOCK];
        self.out
            .bytes(zeroes.get(..pax::padding(len)).unwrap_or_default())
    }
}

/// Numbers that do not fit into the header, and the exact time.
fn numbers(pax: &mut Vec<u8>, a: &Attributes, size: u64) {
    if size > pax::MAX_SIZE {
        record(pax, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [("uid", a.uid), ("gid", a.gid)] {
        if id > pax::MAX_ID {
            record(pax, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    let time = pax::seconds(a.mtime.secs, a.mtime.nanos);
    record(pax, b"mtime", time.as_bytes());
}

/// Where a file holds data. What cannot be found out is a hole.
fn find_data(fs: &dyn FileSystem, a: &Attributes, map: &mut SparseMap) -> Outcome<()> {
    let mut at = 0u64;
    while at < a.size {
        let extent = fs
            .extent_at(a.ino, at)
            .context(|| format!("bytes from {at} are a hole in the archive"))?;
        let end = at.saturating_add(extent.len.max(1)).min(a.size);
        if extent.data {
            map.add(at, end, a.size);
        }
        at = end;
    }
    Ok(())
}
