//! `guestlens snapshot`: snapshots inside an image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cli::args::LogArgs;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::new_file::Place;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::target::{self, TargetArgs};
use crate::cli::text::{self, host_path};
use crate::formats::build::Builder as _;
use crate::formats::convert::{self, CopyOptions};
use crate::formats::raw_build::{RawBuilder, SPARSE_BYTES};
use crate::formats::{Image, SnapshotInfo};
use crate::fs::Timestamp;
use crate::ondisk::text::printable;

/// Arguments of `snapshot`.
#[derive(Args, Debug)]
#[command(after_help = "\
  snapshot IMAGE list                 what there is
  snapshot IMAGE create NAME          keep the present content
  snapshot IMAGE apply ID             make a snapshot's content the present one, which is lost
  snapshot IMAGE delete ID            give a snapshot up
  snapshot IMAGE extract ID FILE      write a snapshot's content as a raw disk

A snapshot is named by its id, or by its name if no id is the same and no other
snapshot has that name.")]
pub struct SnapshotArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// What to do
    #[arg(value_name = "ACTION", default_value = "list")]
    pub action: Action,

    /// Which snapshot, or the name of the new one
    #[arg(value_name = "ID|NAME")]
    pub snapshot: Option<String>,

    /// Where to extract to
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// What there is or was done, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// How the image is opened.
    #[command(flatten)]
    pub open: TargetArgs,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// What there is
    List,
    /// Keep the present content
    Create,
    /// Make a snapshot's content the present one
    Apply,
    /// Give a snapshot up
    Delete,
    /// Write a snapshot's content as a raw disk
    Extract,
}

/// Does it.
///
/// # Errors
/// If there is no such snapshot, or the image cannot be read or written.
pub fn run(args: &SnapshotArgs, log: &LogArgs, out: &mut Output) -> Outcome {
    let allowed = match args.action {
        Action::List => 0,
        Action::Extract => 2,
        _ => 1,
    };
    let given = usize::from(args.snapshot.is_some()) + usize::from(args.file.is_some());
    if given != allowed {
        return Err(Failure::usage(match args.action {
            Action::List => "list takes no further argument",
            Action::Create => "create takes the name of the new snapshot",
            Action::Apply | Action::Delete => "say which snapshot",
            Action::Extract => "extract takes a snapshot and a file",
        }));
    }
    if args.snapshot.as_deref() == Some("") {
        return Err(Failure::usage("the name of a snapshot is not empty"));
    }
    let write = matches!(args.action, Action::Create | Action::Apply | Action::Delete);
    let image = args.open.open(&args.image, write)?;
    let wanted = args.snapshot.as_deref().unwrap_or_default();
    let done = match args.action {
        Action::List => return list(args, &image, out),
        Action::Create => {
            check_new_name(&image, wanted)?;
            let writer = target::writer(&image)?;
            let info = writer.create_snapshot(wanted)?;
            writer.close()?;
            info
        }
        Action::Apply => {
            let (index, info) = find(&image, wanted)?;
            let writer = target::writer(&image)?;
            writer.apply_snapshot(index)?;
            writer.close()?;
            info
        }
        Action::Delete => {
            let (index, info) = find(&image, wanted)?;
            let writer = target::writer(&image)?;
            writer.delete_snapshot(index)?;
            writer.close()?;
            info
        }
        Action::Extract => {
            let (index, info) = find(&image, wanted)?;
            let file = args.file.as_deref().unwrap_or(Path::new(""));
            extract(args, &image, index, file, log)?;
            info
        }
    };
    if args.json {
        out.json(&as_json(&done))?;
    }
    Ok(Exit::Done)
}

fn find(image: &Arc<dyn Image>, wanted: &str) -> Outcome<(usize, SnapshotInfo)> {
    let index = target::find_snapshot(image, wanted)?;
    let snapshot = image.info().snapshots.get(index).cloned();
    let snapshot = snapshot.ok_or_else(|| Failure::new("there is no such snapshot"))?;
    Ok((index, snapshot))
}

/// A name that could be taken for another snapshot's is of no use.
fn check_new_name(image: &Arc<dyn Image>, name: &str) -> Outcome<()> {
    let taken = |s: &&SnapshotInfo| s.name == name || s.id == name;
    match image.info().snapshots.iter().find(taken) {
        None => Ok(()),
        Some(s) => {
            let name = printable(name.as_bytes());
            let what = if s.id == name { "id" } else { "name" };
            Err(Failure::new(format!(
                "there is a snapshot of the {what} {name:?} already"
            ))
            .with_hint("choose another name, or delete that one first"))
        }
    }
}

fn as_json(s: &SnapshotInfo) -> Value {
    json!({
        "id": s.id,
        "name": s.name,
        "vm-state-size": s.vm_state_size,
        "date-sec": s.date_sec,
        "date-nsec": s.date_nsec,
        "vm-clock-nsec": s.vm_clock_nsec,
        "virtual-size": s.virtual_size,
    })
}

fn list(args: &SnapshotArgs, image: &Arc<dyn Image>, out: &mut Output) -> Outcome {
    let snapshots = &image.info().snapshots;
    if args.json {
        let all: Vec<Value> = snapshots.iter().map(as_json).collect();
        out.json(&json!({ "snapshots": all }))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|s| {
            let secs = i64::try_from(s.date_sec).unwrap_or(i64::MAX);
            vec![
                printable(s.id.as_bytes()),
                printable(s.name.as_bytes()),
                text::size(s.virtual_size),
                text::size(s.vm_state_size),
                text::time(Timestamp { secs, nanos: 0 }),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.table(
            &["ID", "Name", "Disk", "State", "Date"],
            &["Disk", "State"],
            &rows,
        )?;
    }
    Ok(Exit::Done)
}

fn extract(
    args: &SnapshotArgs,
    image: &Arc<dyn Image>,
    index: usize,
    path: &Path,
    log: &LogArgs,
) -> Outcome<()> {
    let content = image.open_snapshot(index)?;
    let place = Place::open(path, args.open.force)?;
    let builder = RawBuilder::new(place.device()?, content.len(), Some(SPARSE_BYTES))?;
    let progress = Mutex::new(Progress::new(Some(content.len()), log.quiet));
    let options = CopyOptions {
        below: None,
        threads: convert::threads(false),
        progress: &|bytes| progress.lock().add(bytes),
        stop: &|| false,
    };
    convert::copy(&content, &builder, &options)
        .and_then(|_| builder.finish())
        .context(|| format!("cannot write {}", host_path(path)))?;
    drop(builder);
    place.keep()
}
