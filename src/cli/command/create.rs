//! `guestlens create`: a new, empty disk.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::block::BlockDevice;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::keys::KeyArgs;
use crate::cli::new_file::Place;
use crate::cli::new_image::{Compression, Preallocation, Qcow2Args};
use crate::cli::output::Output;
use crate::cli::size;
use crate::cli::text::host_path;
use crate::crypto::KeySource;
use crate::formats::build::{Builder as _, CHUNK_BYTES};
use crate::formats::qcow2::build::Qcow2Builder;
use crate::formats::raw_build::too_small;
use crate::formats::reference::ReferencePolicy;

/// Arguments of `create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The new image: a file, or a block device
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// Size of the disk, as in 10G or 512M; with --backing, that of the backing file if not given
    #[arg(value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,

    /// Format of the new image
    #[arg(long, value_name = "FORMAT", required = true)]
    pub format: CreateFormat,

    /// Replace a file that exists and is not in use, or write to a block device that is not empty
    #[arg(long)]
    pub force: bool,

    /// How clusters will be compressed that are written compressed later [default: zlib]
    #[arg(long, value_name = "METHOD")]
    pub compression: Option<Compression>,

    /// What was made, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// Also follow backing and data files of the backing file below this directory
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,

    /// How a qcow2 image is to be.
    #[command(flatten)]
    pub qcow2: Qcow2Args,

    /// The passphrase of the new image.
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// Formats that can be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CreateFormat {
    /// The file is the disk
    Raw,
    /// QEMU copy-on-write
    Qcow2,
}

/// Creates.
///
/// # Errors
/// If it cannot be made as asked; then there is nothing.
pub fn run(args: &CreateArgs, out: &mut Output) -> Outcome {
    let policy = ReferencePolicy {
        allowed: args.allow_backing.clone(),
        refuse_all: false,
    };
    let backing = args
        .qcow2
        .open_backing(&args.image, &policy, KeySource::default())?;
    let size = match (args.size, &backing) {
        (Some(size), _) => size,
        (None, Some(backing)) => backing.device().len(),
        (None, None) => return Err(Failure::usage("no size given")),
    };
    let size = size
        .checked_next_multiple_of(512)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| Failure::usage("the size is too large"))?;
    if args.format == CreateFormat::Raw {
        let wrong = args
            .qcow2
            .only_qcow2()
            .or_else(|| args.compression.map(|_| "--compression"));
        if let Some(option) = wrong {
            return Err(Failure::usage(format!("{option} is for qcow2 only")));
        }
    }
    let place = Place::open(&args.image, args.force)?;
    make(args, size, place.device()?).context(|| host_path(&args.image))?;
    place.keep()?;
    if args.json {
        let name = args.image.to_string_lossy();
        let format = match args.format {
            CreateFormat::Raw => "raw",
            CreateFormat::Qcow2 => "qcow2",
        };
        out.json(&json!({ "filename": name, "format": format, "virtual-size": size }))?;
    }
    Ok(Exit::Done)
}

fn make(args: &CreateArgs, size: u64, file: BlockDevice) -> Outcome<()> {
    match args.format {
        CreateFormat::Raw => raw(args.qcow2.preallocation, size, &file),
        CreateFormat::Qcow2 => {
            let mut options = args
                .qcow2
                .options(size, || args.keys.new_key(&args.image))?;
            if let Some(compression) = args.compression {
                args.qcow2.check_compression(compression)?;
                options.compression = compression.into();
            }
            let filled = options.preallocation != Default::default();
            let builder = Qcow2Builder::new(file, options)?;
            if filled {
                builder.zeroes(0, size)?;
            }
            Ok(builder.finish()?)
        }
    }
}

fn raw(preallocation: Option<Preallocation>, size: u64, file: &BlockDevice) -> Outcome<()> {
    let fresh = file.is_empty();
    if fresh {
        file.set_len(size)?;
    } else if file.len() < size {
        return Err(too_small(file, size).into());
    }
    match preallocation.unwrap_or_default() {
        Preallocation::Off if fresh => {}
        Preallocation::Off => file.write_zeroes(0, size, true)?,
        Preallocation::Falloc => file.write_zeroes(0, size, false)?,
        Preallocation::Full => {
            let zeroes = vec![0; CHUNK_BYTES];
            let mut at = 0u64;
            while at < size {
                let rest = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
                let piece = zeroes.get(..rest).unwrap_or(&zeroes);
                file.write_all_at(at, piece)?;
                at = at.saturating_add(piece.len() as u64);
            }
        }
        Preallocation::Metadata => {
            return Err(Failure::usage("raw disks have no metadata to preallocate"));
        }
    }
    Ok(file.flush()?)
}
