//! `guestlens map`: where a disk or a file of the guest holds data.

use std::ffi::OsString;

use clap::Args;
use serde_json::{Value, json};

use crate::block::extent::{Extent, ExtentKind};
use crate::cli::args::{OpenArgs, ViewArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::session::{self, Session};
use crate::guest::view::FollowFinal;
use crate::ondisk::text::printable;

/// Arguments of `map`.
#[derive(Args, Debug)]
pub struct MapArgs {
    /// The image (unless -a), then perhaps the path of a file in the guest instead of the disk
    #[arg(value_name = "[IMAGE] [PATH]")]
    pub arguments: Vec<OsString>,

    /// Which disk or volume; the first disk if not given
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,

    /// A JSON list like that of `qemu-img map --output=json`
    #[arg(long)]
    pub json: bool,

    /// Which tree.
    #[command(flatten)]
    pub view: ViewArgs,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Shows the runs of data and holes.
///
/// # Errors
/// If the guest cannot be opened, or its tables cannot be read.
pub fn run(args: &MapArgs, out: &mut Output) -> Outcome {
    let mut arguments = args.arguments.clone();
    let images = args.open.take_image(&mut arguments)?;
    let (runs, chain) = match arguments.as_slice() {
        [] => disk(args, &Session::open_metadata(&args.open, &images)?)?,
        [path] => {
            let session = Session::open(&args.open, &images)?;
            let runs = file(args, &session, path.as_encoded_bytes())?;
            (runs, Vec::new())
        }
        _ => return Err(Failure::usage("one path at most")),
    };
    if args.json {
        let list: Vec<Value> = runs
            .iter()
            .map(|(start, e)| run_json(*start, e, format_at(&chain, e.depth)))
            .collect();
        out.json(&list)?;
    } else {
        let rows: Vec<Vec<String>> = runs
            .iter()
            .map(|(start, e)| {
                let kind = match e.kind {
                    ExtentKind::Data if e.compressed => "compressed",
                    ExtentKind::Data => "data",
                    ExtentKind::Zero => "zero",
                    ExtentKind::Hole => "hole",
                };
                let at = e.host_offset.map_or_else(|| "-".into(), |o| o.to_string());
                vec![
                    start.to_string(),
                    e.len.to_string(),
                    kind.into(),
                    e.depth.to_string(),
                    at,
                ]
            })
            .collect();
        out.table(
            &["Start", "Length", "Kind", "Depth", "Offset"],
            &["Start", "Length", "Depth", "Offset"],
            &rows,
        )?;
    }
    Ok(Exit::Done)
}

/// Names of the formats of a chain, from the top.
type Formats = Vec<&'static str>;

fn format_at(chain: &Formats, depth: u32) -> &'static str {
    let depth = usize::try_from(depth).unwrap_or(usize::MAX);
    chain.get(depth).copied().unwrap_or_default()
}

/// What QEMU says of a run depends on the format.
fn run_json(start: u64, e: &Extent, format: &str) -> Value {
    let hole = e.kind == ExtentKind::Hole;
    // A hole of the host file has its place in it.
    let in_file = hole && e.host_offset.is_some();
    let mut value = json!({
        "start": start,
        "length": e.len,
        "depth": e.depth,
        // What these formats do not store is a statement that there are zeroes.
        "present": !hole || in_file || matches!(format, "vpc" | "vdi"),
        "zero": e.reads_zero(),
        // Fixed disks store all there is, and that their file has holes is beside it.
        "data": e.kind == ExtentKind::Data
            || (in_file && matches!(format, "vpc" | "vdi" | "vmdk")),
        "compressed": e.compressed,
    });
    if let (Some(object), Some(offset)) = (value.as_object_mut(), e.host_offset) {
        object.insert("offset".into(), offset.into());
    }
    value
}

/// Whether `next` continues `last` (which starts at `start`) in every respect.
fn continues(last: &Extent, next: &Extent) -> bool {
    last.kind == next.kind
        && last.depth == next.depth
        && last.compressed == next.compressed
        && match (last.host_offset, next.host_offset) {
            (None, None) => true,
            (Some(a), Some(b)) => a.checked_add(last.len) == Some(b),
            _ => false,
        }
}

fn push(runs: &mut Vec<(u64, Extent)>, start: u64, next: Extent) {
    if let Some((_, last)) = runs.last_mut()
        && continues(last, &next)
    {
        last.len = last.len.saturating_add(next.len);
        return;
    }
    runs.push((start, next));
}

fn disk(args: &MapArgs, session: &Session) -> Outcome<(Vec<(u64, Extent)>, Formats)> {
    let guest = &session.guest;
    let device = match &args.disk {
        None => guest.disks().first().map(|d| (d, &d.device)),
        Some(name) => guest
            .disks()
            .iter()
            .map(|d| (&d.name, d, &d.device))
            .chain(guest.volumes().iter().filter_map(|v| {
                let disk = guest.disks().get(v.disk)?;
                Some((&v.name, disk, &v.device))
            }))
            .find(|(n, ..)| *n == name)
            .map(|(_, disk, device)| (disk, device)),
    };
    let Some((disk, device)) = device else {
        return Err(Failure::new("there is no such disk or volume")
            .with_hint("`guestlens info` names the disks, `guestlens filesystems` the volumes"));
    };
    let mut chain = vec![disk.image.info().format];
    let mut below = disk.image.backing();
    // Chains are bounded where they are opened.
    while let Some(image) = below {
        chain.push(image.info().format);
        below = image.backing();
    }
    let mut runs = Vec::new();
    let mut at = 0u64;
    while at < device.len() {
        let left = device.len().saturating_sub(at);
        let extent = device
            .extent_at(at, left)
            .context(|| format!("the map at byte {at}"))?;
        let mut extent = extent.truncated(left);
        if args.json && format_at(&chain, extent.depth) == "vhdx" {
            // QEMU does not tell what is where in these.
            extent.kind = ExtentKind::Data;
            extent.host_offset = None;
        }
        if extent.len == 0 {
            return Err(Failure::new(format!("the map at byte {at} ends early")));
        }
        push(&mut runs, at, extent);
        at = at.saturating_add(extent.len);
    }
    Ok((runs, chain))
}

fn file(args: &MapArgs, session: &Session, path: &[u8]) -> Outcome<Vec<(u64, Extent)>> {
    let view = session.view(&args.view)?;
    let node = session::resolve(&view, path, FollowFinal::Yes)?;
    let size = view.attributes(node)?.size;
    let mut runs = Vec::new();
    let mut at = 0u64;
    while at < size {
        let e = view
            .fs(node)?
            .extent_at(node.ino, at)
            .context(|| printable(path))?;
        let len = e.len.min(size.saturating_sub(at));
        if len == 0 {
            return Err(Failure::new(format!(
                "{}: the map at byte {at} ends early",
                printable(path)
            )));
        }
        push(
            &mut runs,
            at,
            if e.data {
                Extent::data(len)
            } else {
                Extent::hole(len)
            },
        );
        at = at.saturating_add(len);
    }
    Ok(runs)
}
