//! `guestlens find`: paths below a directory, by simple tests.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use serde_json::Value;

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::glob;
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::cli::text::type_letter;
use crate::cli::walk::{Step, walk};
use crate::cli::{complain, entry};
use crate::guest::view::FollowFinal;
use crate::ondisk::text::printable;

/// Arguments of `find`.
#[derive(Args, Debug)]
pub struct FindArgs {
    /// The image (unless -a), then paths in the guest; / if there are none
    #[arg(value_name = "[IMAGE] [PATH]")]
    pub arguments: Vec<OsString>,

    /// Only names that match this shell pattern (*, ?, [a-z])
    #[arg(long, value_name = "GLOB")]
    pub name: Option<OsString>,

    /// Only these types: f, d, l, c, b, p, s; several together as in `fl`
    #[arg(long = "type", value_name = "TYPES")]
    pub types: Option<String>,

    /// Go at most this many levels down
    #[arg(long, value_name = "LEVELS")]
    pub max_depth: Option<usize>,

    /// Mode, links, owner, group, size, time (UTC), path and link target
    #[arg(short, long)]
    pub long: bool,

    /// Raw paths, each ended by a NUL byte, instead of escaped paths in lines
    #[arg(short = '0', long, conflicts_with_all = ["json", "long"])]
    pub print0: bool,

    /// One JSON list
    #[arg(long)]
    pub json: bool,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Finds.
///
/// # Errors
/// If the guest cannot be opened.
pub fn run(args: &FindArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let session = Session::open_first(&args.open, &mut arguments)?;
    if let Some(types) = &args.types
        && (types.is_empty() || !types.chars().all(|c| "fdlcbps".contains(c)))
    {
        return Err(Failure::usage(
            "--type takes letters of f, d, l, c, b, p, s",
        ));
    }
    let view = session.view(&args.view)?;
    let (mut found, mut shown, mut failed) = (Vec::<Value>::new(), 0usize, 0usize);
    for path in session::paths_or_root(arguments) {
        let start = match session::resolve(&view, &path, FollowFinal::No) {
            Ok(node) => node,
            Err(failure) => {
                complain(&failure.line());
                failed = failed.saturating_add(1);
                continue;
            }
        };
        walk(&view, &path, start, args.max_depth, &mut |step| {
            let (path, node, a) = match step {
                Step::File {
                    path,
                    node,
                    attributes,
                    ..
                } => (path, node, attributes),
                Step::Failed(failure) => {
                    complain(&failure.line());
                    failed = failed.saturating_add(1);
                    return Ok(());
                }
            };
            let name_fits = args
                .name
                .as_ref()
                .is_none_or(|pattern| glob::matches(pattern.as_bytes(), session::base_name(path)));
            let type_fits = args
                .types
                .as_ref()
                .is_none_or(|t| t.contains(type_letter(a.file_type)));
            if !name_fits || !type_fits {
                return Ok(());
            }
            shown = shown.saturating_add(1);
            if args.json {
                found.push(entry::json(&view, node, a, "path", path));
                Ok(())
            } else if args.print0 {
                out.bytes(path)?;
                out.bytes(b"\0")
            } else if args.long {
                let name = entry::name_with_target(&view, node, a, path);
                out.line(format!("{} {name}", entry::long(a)))
            } else {
                out.line(printable(path))
            }
        })?;
    }
    if args.json {
        out.json(&found)?;
    }
    Ok(match (failed, shown) {
        (0, _) => Exit::Done,
        (_, 0) => Exit::Failed,
        _ => Exit::Partial,
    })
}
