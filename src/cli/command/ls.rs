//! `guestlens ls`: names in directories.

use std::ffi::OsString;

use clap::Args;
use serde_json::{Map, Value};

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::cli::{complain, entry, text};
use crate::guest::view::FollowFinal;
use crate::guest::{GuestView, Node};
use crate::limits;
use crate::ondisk::text::printable;

/// Arguments of `ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// The image (unless -a), then paths in the guest; / if there are none
    #[arg(value_name = "[IMAGE] [PATH]")]
    pub arguments: Vec<OsString>,

    /// Mode, links, owner, group, size, time (UTC), name and link target
    #[arg(short, long)]
    pub long: bool,

    /// Also all directories below
    #[arg(short = 'R', long)]
    pub recursive: bool,

    /// Also names that begin with a dot
    #[arg(short = 'A', long)]
    pub all: bool,

    /// Raw names, each ended by a NUL byte, instead of escaped names in lines
    #[arg(short = '0', long, conflicts_with_all = ["json", "long"])]
    pub print0: bool,

    /// One JSON document: a list of directories with their entries
    #[arg(long)]
    pub json: bool,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Lists.
///
/// # Errors
/// If the guest cannot be opened.
pub fn run(args: &LsArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let session = Session::open_first(&args.open, &mut arguments)?;
    let view = session.view(&args.view)?;
    let paths = session::paths_or_root(arguments);
    let mut listing = Listing {
        args,
        view: &view,
        titles: paths.len() > 1 || args.recursive,
        shown: 0,
        failed: 0,
        json: Vec::new(),
    };
    for path in paths {
        listing.path(&path, out)?;
    }
    if args.json {
        out.json(&listing.json)?;
    }
    Ok(match (listing.failed, listing.shown) {
        (0, _) => Exit::Done,
        (_, 0) => Exit::Failed,
        _ => Exit::Partial,
    })
}

struct Listing<'a> {
    args: &'a LsArgs,
    view: &'a GuestView,
    titles: bool,
    shown: usize,
    failed: usize,
    json: Vec<Value>,
}

impl Listing<'_> {
    fn failed(&mut self, failure: &Failure) {
        complain(&failure.line());
        self.failed = self.failed.saturating_add(1);
    }

    fn path(&mut self, path: &[u8], out: &mut Output) -> Outcome<()> {
        let found = session::resolve(self.view, path, FollowFinal::Yes).and_then(|node| {
            let is_dir = session::is_dir(self.view, node).context(|| printable(path))?;
            Ok((node, is_dir))
        });
        match found {
            Err(failure) => self.failed(&failure),
            Ok((node, false)) => {
                let entries = vec![(path.to_vec(), node)];
                self.entries(path, &entries, false, out)?;
            }
            Ok((node, true)) => self.tree(path.to_vec(), node, out)?,
        }
        Ok(())
    }

    /// A directory and, if asked for, everything below it, depth first without recursion.
    fn tree(&mut self, path: Vec<u8>, dir: Node, out: &mut Output) -> Outcome<()> {
        let mut todo = vec![(path, dir, vec![dir])];
        while let Some((path, dir, above)) = todo.pop() {
            let mut entries = match self.view.list(dir) {
                Ok(entries) => entries,
                Err(error) => {
                    self.failed(&Failure::from(error).within(printable(&path)));
                    continue;
                }
            };
            if !self.args.all {
                entries.retain(|(name, _)| name.first() != Some(&b'.'));
            }
            self.entries(&path, &entries, true, out)?;
            if !self.args.recursive {
                continue;
            }
            for (name, node) in entries.into_iter().rev() {
                let below = session::join(&path, &name);
                match session::is_dir(self.view, node) {
                    Ok(false) => {}
                    Ok(true) if above.contains(&node) || above.len() >= limits::MAX_TREE_DEPTH => {
                        self.failed(
                            &Failure::new("a directory that contains itself")
                                .within(printable(&below)),
                        );
                    }
                    Ok(true) => {
                        let mut above = above.clone();
                        above.push(node);
                        todo.push((below, node, above));
                    }
                    // Said when the entry itself was shown.
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn entries(
        &mut self,
        path: &[u8],
        entries: &[(Vec<u8>, Node)],
        is_dir: bool,
        out: &mut Output,
    ) -> Outcome<()> {
        let args = self.args;
        if is_dir && self.titles && !args.json && !args.print0 {
            if self.shown > 0 {
                out.line("")?;
            }
            out.line(format!("{}:", printable(path)))?;
        }
        self.shown = self.shown.saturating_add(1);
        let mut objects = Vec::new();
        for (name, node) in entries {
            if args.print0 {
                let shown = if is_dir && self.titles {
                    session::join(path, name)
                } else {
                    name.clone()
                };
                out.bytes(&shown)?;
                out.bytes(b"\0")?;
                continue;
            }
            if !args.long && !args.json {
                out.line(printable(name))?;
                continue;
            }
            match self.view.attributes(*node) {
                Ok(a) if args.json => objects.push(entry::json(self.view, *node, &a, "name", name)),
                Ok(a) => out.line(format!(
                    "{} {}",
                    entry::long(&a),
                    entry::name_with_target(self.view, *node, &a, name)
                ))?,
                Err(error) => {
                    if args.json {
                        let mut object = Map::new();
                        text::insert_bytes(&mut object, "name", name);
                        object.insert("error".into(), error.to_string().into());
                        objects.push(object.into());
                    } else {
                        out.line(format!(
                            "??????????   ?     ?     ?          ? {:19} {}",
                            "?",
                            printable(name)
                        ))?;
                    }
                    let at = printable(&session::join(path, name));
                    self.failed(&Failure::from(error).within(at));
                }
            }
        }
        if args.json {
            let mut object = Map::new();
            text::insert_bytes(&mut object, "path", path);
            object.insert("entries".into(), objects.into());
            self.json.push(object.into());
        }
        Ok(())
    }
}
