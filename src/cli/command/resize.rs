//! `guestlens resize`: a longer or shorter disk.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::block::BlockDevice;
use crate::cli::exit::Exit;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::Output;
use crate::cli::size;
use crate::cli::target::{self, TargetArgs};
use crate::guest::reach;

/// Arguments of `resize`.
#[derive(Args, Debug)]
#[command(after_help = "\
Only the disk changes its size; partitions and filesystems in it stay as they are. A disk is never
cut off where a partition or filesystem still reaches, where that cannot be told (LUKS, RAID, …),
or where a GPT would be left that names sectors outside the disk.")]
pub struct ResizeArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// The new size (10G), or how much to add (+1G) or to take off (-1G)
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    pub size: String,

    /// Allow making it shorter
    #[arg(long)]
    pub shrink: bool,

    /// What was done, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// How the image is opened.
    #[command(flatten)]
    pub open: TargetArgs,
}

/// Resizes.
///
/// # Errors
/// If the image cannot be opened or resized, or something would be cut off.
pub fn run(args: &ResizeArgs, out: &mut Output) -> Outcome {
    let number = args.size.trim_start_matches(['+', '-']);
    let number = size::parse(number).map_err(Failure::usage)?;
    let image = args.open.open(&args.image, true)?;
    let old = image.device().len();
    let new = match args.size.chars().next() {
        Some('+') => old.checked_add(number),
        Some('-') => old.checked_sub(number),
        _ => Some(number),
    };
    let new = new
        .ok_or_else(|| Failure::usage(format!("the disk has {old} bytes, which leaves no size")))?;
    if !new.is_multiple_of(512) || new == 0 {
        return Err(Failure::usage(format!(
            "the size would be {new}, which is no multiple of 512 bytes"
        )));
    }
    if new < old {
        check_shrink(args, &image.device(), old, new)?;
    }
    if new != old {
        let writer = target::writer(&image)?;
        writer.resize(new)?;
        writer.close()?;
    }
    if args.json {
        out.json(&json!({
            "filename": args.image.to_string_lossy(),
            "format": image.info().format,
            "old-size": old,
            "virtual-size": new,
        }))?;
    }
    Ok(Exit::Done)
}

fn check_shrink(args: &ResizeArgs, disk: &BlockDevice, old: u64, new: u64) -> Outcome<()> {
    if !args.shrink {
        return Err(Failure::new(format!(
            "the disk would become shorter: {old} to {new} bytes"
        ))
        .with_hint("--shrink allows that, if nothing is cut off"));
    }
    let Some(reach) = reach::beyond(disk, new)? else {
        return Ok(());
    };
    let what = reach.what;
    Err(match reach.end {
        Some(end) if reach.table => Failure::new(format!(
            "the disk has a GPT, which says that it reaches to byte {end}; cut off at {new}, it would be rejected"
        ))
        .with_hint(
            "save the table (sfdisk --dump), remove it (sgdisk --zap-all), shrink the disk, and write the table again without its last-lba line",
        ),
        Some(end) => Failure::new(format!(
            "{what} would be cut off: it ends at byte {end}, the disk would at {new}"
        ))
        .with_hint("make filesystem and partition smaller first, inside the guest"),
        None => Failure::new(format!(
            "cannot tell how far {what} reaches: something might be cut off at byte {new}"
        )),
    })
}
