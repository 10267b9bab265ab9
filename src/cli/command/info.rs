//! `guestlens info`: the images, their chains, their disks and partitions.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::OpenArgs;
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::session::Session;
use crate::cli::text::{self, host_path};
use crate::formats::follow::{Follow, Incomplete};
use crate::formats::{Image, ImageInfo, OpenOptions, open_path};
use crate::fs::Timestamp;
use crate::guest::{Disk, ImageArgument};
use crate::limits;
use crate::ondisk::text::printable;

/// Arguments of `info`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status 3: a backing or data file could not be opened, because it is missing or policy does not
allow it. The image itself is told all the same; --image-only does not look at these files.")]
pub struct InfoArgs {
    /// Images; several are sda, sdb, … of one guest
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// Look only at the image files, not at what is on their disks
    #[arg(long)]
    pub image_only: bool,

    /// Only the image files as well, each followed by those it stands on
    #[arg(long)]
    pub backing_chain: bool,

    /// One JSON document, with the member names of `qemu-img info --output=json`
    #[arg(long)]
    pub json: bool,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// Tells.
///
/// # Errors
/// If an image itself cannot be opened.
pub fn run(args: &InfoArgs, out: &mut Output) -> Outcome {
    let images = args.open.all_images(&args.images)?;
    if args.backing_chain || args.image_only {
        return images_only(args, &images, out);
    }
    let incomplete = Arc::<Incomplete>::default();
    let follow = Follow::IfPossible(Arc::clone(&incomplete));
    let session = Session::open_following(&args.open, &images, follow)?;
    if args.json {
        let disks: Vec<Value> = session.guest.disks().iter().map(disk_json).collect();
        let mut document = match session.guest.disks() {
            [only] => only.image.info().json(),
            _ => json!({}),
        };
        if let Some(members) = document.as_object_mut() {
            members.insert("disks".into(), disks.into());
            members.insert("problems".into(), json!(session.guest.problems()));
        }
        out.json(&document)?;
        return Ok(exit(&incomplete));
    }
    for disk in session.guest.disks() {
        disk_text(disk, out)?;
    }
    session.tell_problems();
    Ok(exit(&incomplete))
}

/// Without a file that an image refers to, only a part could be told.
fn exit(incomplete: &Incomplete) -> Exit {
    if incomplete.any() {
        Exit::Partial
    } else {
        Exit::Done
    }
}

/// Looks at the images and not at what is on their disks.
fn images_only(args: &InfoArgs, images: &[ImageArgument], out: &mut Output) -> Outcome {
    let incomplete = Arc::<Incomplete>::default();
    let noted = Arc::clone(&incomplete);
    let options = OpenOptions {
        follow: if args.backing_chain {
            Follow::IfPossible(noted)
        } else {
            Follow::ImageOnly(noted)
        },
        ..args.open.metadata_options()?.image
    };
    let mut chains = Vec::new();
    for argument in images {
        let options = OpenOptions {
            format: argument.format.clone(),
            ..options.clone()
        };
        let image = open_path(&argument.path, &options)?;
        let mut images = chain(&image);
        if !args.backing_chain {
            images.truncate(1);
        }
        chains.push(images);
    }
    if args.json {
        let values = chains.iter().flatten().map(|i| i.info().json());
        let values: Vec<Value> = values.collect();
        // One image as an object, a chain or several images as a list, as qemu-img does.
        return match values.as_slice() {
            [only] if !args.backing_chain => out.json(only),
            _ => out.json(&values),
        }
        .map(|()| exit(&incomplete));
    }
    for images in &chains {
        for (depth, image) in images.iter().enumerate() {
            image_text(depth, "image", image.info(), out)?;
        }
    }
    Ok(exit(&incomplete))
}

/// The image and what it stands on, from the top.
fn chain(image: &Arc<dyn Image>) -> Vec<Arc<dyn Image>> {
    let mut images = vec![Arc::clone(image)];
    let mut here = Arc::clone(image);
    while images.len() <= limits::MAX_CHAIN_DEPTH {
        let Some(next) = here.backing().filter(|b| !b.is_absent()).cloned() else {
            break;
        };
        images.push(Arc::clone(&next));
        here = next;
    }
    images
}

fn disk_json(disk: &Disk) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("name".into(), json!(disk.name));
    object.insert("size".into(), json!(disk.device.len()));
    object.insert("table".into(), json!(disk.table));
    let images: Vec<Value> = chain(&disk.image).iter().map(|i| i.info().json()).collect();
    object.insert("chain".into(), images.into());
    object.into()
}

fn disk_text(disk: &Disk, out: &mut Output) -> Outcome<()> {
    for (depth, image) in chain(&disk.image).iter().enumerate() {
        image_text(depth, &disk.name, image.info(), out)?;
    }
    if let Some(table) = &disk.table {
        let kind = json!(table.kind);
        let kind = kind.as_str().unwrap_or("?");
        out.line(format!(
            "  {kind} partition table, {}-byte sectors",
            table.sector_size
        ))?;
        let rows: Vec<Vec<String>> = table
            .partitions
            .iter()
            .map(|p| {
                vec![
                    format!("    {}{}", disk.name, p.number),
                    p.start.to_string(),
                    text::size(p.len),
                    printable(p.type_id.as_bytes()),
                    printable(p.label.as_bytes()),
                ]
            })
            .collect();
        out.table(
            &["    Name", "Start", "Size", "Type", "Label"],
            &["Start", "Size"],
            &rows,
        )?;
    }
    Ok(())
}

fn image_text(depth: usize, name: &str, info: &ImageInfo, out: &mut Output) -> Outcome<()> {
    if depth == 0 {
        out.line(format!("{name}: {}", host_path(&info.filename)))?;
    } else {
        out.line(format!("  backing {depth}: {}", host_path(&info.filename)))?;
    }
    let how = if info.format_detected {
        " (detected)"
    } else {
        ""
    };
    out.line(format!("  format: {}{how}", info.format))?;
    out.line(format!(
        "  virtual size: {} ({} bytes), on disk: {}",
        text::size(info.virtual_size),
        info.virtual_size,
        text::size(info.actual_size)
    ))?;
    if let Some(cluster) = info.cluster_size {
        out.line(format!("  cluster size: {cluster}"))?;
    }
    if let Some(backing) = &info.backing_filename {
        out.line(format!("  backing file: {}", printable(backing.as_bytes())))?;
    }
    for (mark, text) in [
        (info.dirty_flag, "was not closed properly"),
        (info.live, "a running guest may be writing to it"),
        (info.encrypted, "encrypted"),
    ] {
        if mark {
            out.line(format!("  {text}"))?;
        }
    }
    for warning in &info.warnings {
        out.line(format!("  warning: {}", text::one_line(warning)))?;
    }
    if !info.snapshots.is_empty() {
        out.line("  snapshots:")?;
        let rows: Vec<Vec<String>> = info
            .snapshots
            .iter()
            .map(|s| {
                let secs = i64::try_from(s.date_sec).unwrap_or(i64::MAX);
                vec![
                    format!("    {}", printable(s.id.as_bytes())),
                    printable(s.name.as_bytes()),
                    text::size(s.vm_state_size),
                    text::time(Timestamp { secs, nanos: 0 }),
                ]
            })
            .collect();
        out.table(&["    ID", "Name", "State", "Date"], &["State"], &rows)?;
    }
    Ok(())
}
