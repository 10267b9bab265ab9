//! `guestlens cat`: the bytes of files.

use std::ffi::OsString;

use clap::Args;

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::fs::FileType;
use crate::guest::GuestView;
use crate::guest::view::FollowFinal;
use crate::ondisk::text::printable;

/// Bytes read and written at once.
const CHUNK: usize = 1 << 20;

/// Arguments of `cat`.
#[derive(Args, Debug)]
pub struct CatArgs {
    /// The image (unless -a), then paths of files in the guest
    #[arg(value_name = "[IMAGE] PATH")]
    pub arguments: Vec<OsString>,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Writes the files to stdout.
///
/// # Errors
/// If the guest cannot be opened, or none of the files could be read.
pub fn run(args: &CatArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let images = args.open.take_image(&mut arguments)?;
    let paths = session::some_paths(arguments)?;
    let session = Session::open(&args.open, &images)?;
    let view = session.view(&args.view)?;
    let (mut done, mut failed) = (0usize, 0usize);
    for path in &paths {
        match one(&view, path, out) {
            Ok(()) => done = done.saturating_add(1),
            Err(failure) if failure.is_reader_gone() => return Err(failure),
            Err(failure) => {
                complain(&failure.line());
                failed = failed.saturating_add(1);
            }
        }
    }
    Ok(match (done, failed) {
        (_, 0) => Exit::Done,
        (0, _) => Exit::Failed,
        _ => Exit::Partial,
    })
}

fn one(view: &GuestView, path: &[u8], out: &mut Output) -> Outcome<()> {
    let node = session::resolve(view, path, FollowFinal::Yes)?;
    let attributes = view.attributes(node).context(|| printable(path))?;
    if attributes.file_type != FileType::Regular {
        let what = match attributes.file_type {
            FileType::Directory => "is a directory",
            _ => "is no regular file",
        };
        return Err(Failure::new(format!("{}: {what}", printable(path))));
    }
    let fs = view.fs(node)?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0u64;
    while offset < attributes.size {
        let n = fs
            .read_at(node.ino, offset, &mut buffer)
            .context(|| format!("{}: at byte {offset}", printable(path)))?;
        if n == 0 {
            break;
        }
        out.bytes(buffer.get(..n).unwrap_or_default())?;
        offset = offset.saturating_add(n as u64);
    }
    Ok(())
}
