//! `guestlens stat`: everything about a file but its content.

use std::ffi::OsString;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Outcome};
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::cli::{complain, entry, text};
use crate::guest::GuestView;
use crate::guest::view::FollowFinal;
use crate::ondisk::text::printable;

/// Arguments of `stat`.
#[derive(Args, Debug)]
pub struct StatArgs {
    /// The image (unless -a), then paths in the guest
    #[arg(value_name = "[IMAGE] PATH")]
    pub arguments: Vec<OsString>,

    /// Follow a symbolic link at the end of a path
    #[arg(short = 'L', long)]
    pub dereference: bool,

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

/// Tells.
///
/// # Errors
/// If the guest cannot be opened.
pub fn run(args: &StatArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let images = args.open.take_image(&mut arguments)?;
    let paths = session::some_paths(arguments)?;
    let session = Session::open(&args.open, &images)?;
    let view = session.view(&args.view)?;
    let mut found = Vec::new();
    for path in &paths {
        match object(args, &session, &view, path) {
            Ok(object) => found.push(object),
            Err(failure) => complain(&failure.line()),
        }
    }
    if args.json {
        out.json(&found.iter().map(|(_, json)| json).collect::<Vec<_>>())?;
    } else {
        for (text, _) in &found {
            out.bytes(text.as_bytes())?;
        }
    }
    Ok(match found.len() {
        n if n == paths.len() => Exit::Done,
        0 => Exit::Failed,
        _ => Exit::Partial,
    })
}

fn object(
    args: &StatArgs,
    session: &Session,
    view: &GuestView,
    path: &[u8],
) -> Outcome<(String, Value)> {
    let follow = if args.dereference {
        FollowFinal::Yes
    } else {
        FollowFinal::No
    };
    let node = session::resolve(view, path, follow)?;
    let a = view.attributes(node).context(|| printable(path))?;
    let fs = view.fs(node)?;
    let names = fs
        .xattr_names(node.ino)
        .context(|| format!("{}: xattrs", printable(path)))?;
    let mut xattrs = Vec::new();
    for name in names {
        let value = fs
            .xattr(node.ino, &name)
            .context(|| format!("{}: xattr {}", printable(path), printable(&name)))?;
        xattrs.push((name, value));
    }
    let volume = view
        .mounts()
        .get(node.mount)
        .and_then(|m| session.guest.volumes().get(m.volume))
        .map_or("?", |v| v.name.as_str());

    let device = a.device.map_or(String::new(), |d| {
        format!("   Device type: {},{}", d.major, d.minor)
    });
    let mut text = format!(
        "  File: {}\n  Size: {:<15} Blocks: {:<10} IO Block: {:<6} {}\nVolume: {:<15} Inode: {:<11} Links: {}{device}\nAccess: ({:04o}/{})  Uid: {:>5}   Gid: {:>5}\nAccess: {}\nModify: {}\nChange: {}\n Birth: {}\n",
        entry::name_with_target(view, node, &a, path),
        a.size,
        a.blocks,
        a.block_size,
        text::type_words(&a),
        volume,
        a.ino,
        a.nlink,
        a.permissions,
        text::mode(&a),
        a.uid,
        a.gid,
        text::time_ns(a.atime),
        text::time_ns(a.mtime),
        text::time_ns(a.ctime),
        a.crtime.map_or_else(|| "-".into(), text::time_ns),
    );
    let mut list = Vec::new();
    for (name, value) in &xattrs {
        text.push_str(&format!(
            " Xattr: {}=\"{}\"\n",
            printable(name),
            printable(value)
        ));
        let mut object = Map::new();
        text::insert_bytes(&mut object, "name", name);
        text::insert_bytes(&mut object, "value", value);
        list.push(Value::Object(object));
    }
    let mut json = entry::json(view, node, &a, "path", path);
    if let Some(object) = json.as_object_mut() {
        object.insert("volume".into(), json!(volume));
        object.insert("generation".into(), json!(a.generation));
        object.insert("blocks".into(), json!(a.blocks));
        object.insert("block_size".into(), json!(a.block_size));
        object.insert("atime".into(), json!(text::time_rfc3339(a.atime)));
        object.insert("ctime".into(), json!(text::time_rfc3339(a.ctime)));
        object.insert("crtime".into(), json!(a.crtime.map(text::time_rfc3339)));
        object.insert("xattrs".into(), list.into());
    }
    Ok((text, json))
}
