//! `guestlens tar-out`: a part of the guest as a tar archive.
//!
//! POSIX.1-2001 pax format: each member has an extended header with its exact time, and with what
//! the 1988 header cannot hold (names beyond 100 bytes, numbers beyond octal fields, extended
//! attributes as `SCHILY.xattr.*`, which GNU tar, bsdtar and star read). Names are bytes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::cli::text::host_path;
use crate::cli::walk::{Step, walk};
use crate::fs::{Attributes, FileType};
use crate::guest::view::FollowFinal;
use crate::guest::{GuestView, Node};
use crate::ondisk::text::printable;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Unit of a tar archive.
const BLOCK: usize = 512;

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
            let exit = archive(&view, path, start, &mut out).context(|| host_path(file))?;
            out.finish().context(|| host_path(file))?;
            Ok(exit)
        }
    }
}

fn archive(view: &GuestView, path: &[u8], start: Node, out: &mut Output) -> Outcome {
    let mut exit = Exit::Done;
    let mut links: HashMap<Node, Vec<u8>> = HashMap::new();
    walk(view, path, start, None, &mut |step| {
        let (from, below, node, a) = match step {
            Step::File {
                path,
                below,
                node,
                attributes,
            } => (path, below, node, attributes),
            Step::Failed(failure) => {
                complain(&failure.line());
                exit = Exit::Partial;
                return Ok(());
            }
        };
        let name = match (below.is_empty(), a.file_type) {
            (true, FileType::Directory) => b"./".to_vec(),
            (true, _) => session::base_name(from).to_vec(),
            (false, FileType::Directory) => [b"./", below, b"/"].concat(),
            (false, _) => [b"./", below].concat(),
        };
        match member(view, node, a, &name, &mut links, out) {
            Ok(()) => Ok(()),
            Err(Stopped::Writing(failure)) => Err(failure),
            Err(Stopped::Reading(failure)) => {
                complain(&failure.within(printable(from)).line());
                exit = Exit::Partial;
                Ok(())
            }
        }
    })?;
    out.bytes(&[0; 2 * BLOCK])?;
    Ok(exit)
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

fn member(
    view: &GuestView,
    node: Node,
    a: &Attributes,
    name: &[u8],
    links: &mut HashMap<Node, Vec<u8>>,
    out: &mut Output,
) -> Result<(), Stopped> {
    let fs = view.fs(node).map_err(reading)?;
    let mut linked: Vec<u8> = Vec::new();
    let mut size = 0u64;
    let type_flag = match a.file_type {
        FileType::Socket => return Err(reading(Failure::new("a socket; tar has no type for it"))),
        FileType::Directory => b'5',
        _ if a.nlink > 1 && links.contains_key(&node) => {
            linked = links.get(&node).cloned().unwrap_or_default();
            b'1'
        }
        FileType::Regular => {
            size = a.size;
            b'0'
        }
        FileType::Symlink => {
            linked = view.read_link(node).map_err(reading)?;
            b'2'
        }
        FileType::CharDevice => b'3',
        FileType::BlockDevice => b'4',
        FileType::Fifo => b'6',
    };
    let mut pax = Vec::new();
    if name.len() > 100 {
        record(&mut pax, b"path", name);
    }
    if linked.len() > 100 {
        record(&mut pax, b"linkpath", &linked);
    }
    for (key, value) in [
        ("size", size),
        ("uid", u64::from(a.uid)),
        ("gid", u64::from(a.gid)),
    ] {
        if value
            > if key == "size" {
                0o77_777_777_777
            } else {
                0o7_777_777
            }
        {
            record(&mut pax, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    record(
        &mut pax,
        b"mtime",
        seconds(a.mtime.secs, a.mtime.nanos).as_bytes(),
    );
    if type_flag != b'1' {
        for key in fs.xattr_names(node.ino).map_err(reading)? {
            // A name with `=` cannot be told from its value.
            if key.contains(&b'=') {
                complain(&format!(
                    "{}: xattr {} left out",
                    printable(name),
                    printable(&key)
                ));
                continue;
            }
            let value = fs.xattr(node.ino, &key).map_err(reading)?;
            record(
                &mut pax,
                &[b"SCHILY.xattr.", key.as_slice()].concat(),
                &value,
            );
        }
    }
    let writing = Stopped::Writing;
    let pax_len = pax.len() as u64;
    out.bytes(&header(b"././@PaxHeader", b"", a, pax_len, b'x'))
        .map_err(writing)?;
    padded(&pax, out).map_err(writing)?;
    out.bytes(&header(name, &linked, a, size, type_flag))
        .map_err(writing)?;
    if a.nlink > 1 && type_flag != b'5' {
        links.entry(node).or_insert_with(|| name.to_vec());
    }
    if type_flag == b'0' {
        content(view, node, size, out)
    } else {
        Ok(())
    }
}

/// Exactly `size` bytes and the padding. What cannot be read becomes zeroes, and is an error in
/// the end: a member must be as long as its header says.
fn content(view: &GuestView, node: Node, size: u64, out: &mut Output) -> Result<(), Stopped> {
    let fs = view.fs(node).map_err(reading)?;
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut failed) = (0u64, None);
    while at < size {
        let want = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        let part = buffer.get_mut(..want).unwrap_or_default();
        let got = match fs.read_at(node.ino, at, part) {
            Ok(got) if got > 0 => got,
            Ok(_) => {
                part.fill(0);
                failed.get_or_insert_with(|| Failure::new(format!("ends at byte {at}")));
                want
            }
            Err(error) => {
                part.fill(0);
                let context = format!("bytes from {at} are zeroes in the archive");
                failed.get_or_insert_with(|| Failure::from(error).within(context));
                want
            }
        };
        out.bytes(part.get(..got).unwrap_or_default())
            .map_err(Stopped::Writing)?;
        at = at.saturating_add(got as u64);
    }
    let rest = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    out.bytes([0; BLOCK].get(..rest).unwrap_or_default())
        .map_err(Stopped::Writing)?;
    failed.map_or(Ok(()), |failure| Err(Stopped::Reading(failure)))
}

fn padded(bytes: &[u8], out: &mut Output) -> Outcome<()> {
    out.bytes(bytes)?;
    let rest = bytes.len().next_multiple_of(BLOCK) - bytes.len();
    out.bytes([0; BLOCK].get(..rest).unwrap_or_default())
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while body + len.to_string().len() != len {
        len = body + len.to_string().len();
    }
    pax.extend_from_slice(len.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// Seconds with a fraction, also before 1970.
fn seconds(secs: i64, nanos: u32) -> String {
    if secs < 0 && nanos > 0 {
        let whole = secs.saturating_add(1);
        let sign = if whole == 0 { "-" } else { "" };
        return format!(
            "{sign}{whole}.{:09}",
            1_000_000_000u32.saturating_sub(nanos)
        );
    }
    format!("{secs}.{nanos:09}")
}

fn header(name: &[u8], linked: &[u8], a: &Attributes, size: u64, type_flag: u8) -> [u8; BLOCK] {
    let mut h = [0; BLOCK];
    let mut put = |at: usize, max: usize, bytes: &[u8]| {
        let bytes = bytes.get(..bytes.len().min(max)).unwrap_or_default();
        if let Some(field) = h.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    // A number too large for its field is in the pax header.
    let octal = |digits: usize, value: u64| {
        let most = (1u64 << (3 * digits)) - 1;
        format!("{:0digits$o}", if value > most { 0 } else { value })
    };
    put(0, 100, name);
    put(100, 8, octal(7, u64::from(a.permissions)).as_bytes());
    put(108, 8, octal(7, u64::from(a.uid)).as_bytes());
    put(116, 8, octal(7, u64::from(a.gid)).as_bytes());
    put(124, 12, octal(11, size).as_bytes());
    put(
        136,
        12,
        octal(11, u64::try_from(a.mtime.secs).unwrap_or(0)).as_bytes(),
    );
    put(148, 8, b"        ");
    put(156, 1, &[type_flag]);
    put(157, 100, linked);
    put(257, 8, b"ustar\x0000");
    if let Some(device) = a.device {
        put(329, 8, octal(7, u64::from(device.major)).as_bytes());
        put(337, 8, octal(7, u64::from(device.minor)).as_bytes());
    }
    let sum: u64 = h.iter().map(|&b| u64::from(b)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = h.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    h
}
