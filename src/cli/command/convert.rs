//! `guestlens convert`: the content of an image in a new image.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use serde_json::json;

use crate::block::BlockDevice;
use crate::cli::args::LogArgs;
use crate::cli::args::RemoteArgs;
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::keys::{KeyArgs, NewKeyArgs};
use crate::cli::new_file::Place;
use crate::cli::new_image::{Compression, Qcow2Args};
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::session::check_unlocked;
use crate::cli::size;
use crate::cli::target;
use crate::cli::text::host_path;
use crate::formats::build::{Builder, CHUNK_BYTES};
use crate::formats::compressor::Method;
use crate::formats::convert::{self, Below, Copied, CopyOptions};
use crate::formats::qcow2::build::Qcow2Builder;
use crate::formats::raw_build::{RawBuilder, RawStream, SPARSE_BYTES};
use crate::formats::reference::ReferencePolicy;
use crate::formats::vhd::build::{DynamicBuilder, FixedBuilder};
use crate::formats::vmdk::build::StreamBuilder;
use crate::formats::{Image, OpenOptions, open_path};
use crate::limits;

/// Arguments of `convert`.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// The image to read
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,

    /// The image to make: a file, a block device, or - for stdout
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,

    /// Format of the new image
    #[arg(long, value_name = "FORMAT", required = true)]
    pub to: TargetFormat,

    /// Compress (qcow2)
    #[arg(
        short = 'c',
        long = "compress",
        value_name = "METHOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "zlib"
    )]
    pub compress: Option<Compression>,

    /// How hard to compress: 1 to 9 for zlib, 1 to 19 for zstd
    #[arg(long, value_name = "N")]
    pub level: Option<i32>,

    /// Runs of zeroes of at least this size become holes in raw disks; 0: no holes [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub sparse_size: Option<u64>,

    /// Replace a file that exists and is not in use, or write to a block device that is not empty
    #[arg(long)]
    pub force: bool,

    /// What was done, as one JSON document
    #[arg(long)]
    pub json: bool,

    /// How the source is opened.
    #[command(flatten)]
    pub open: SourceArgs,

    /// How a qcow2 image is to be.
    #[command(flatten)]
    pub qcow2: Qcow2Args,

    /// The passphrase of the new image.
    #[command(flatten)]
    pub new_key: NewKeyArgs,
}

/// How the source is opened.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Opening the source")]
pub struct SourceArgs {
    /// Format of the source (raw, qcow2, …), instead of finding out
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Take an internal snapshot instead of the present content, by id or name
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,

    /// Also follow backing and data files below this directory
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,

    /// Follow no backing or data file at all
    #[arg(long, conflicts_with = "allow_backing")]
    pub no_backing: bool,

    /// Read also an image a running guest writes to; what is read may not fit together
    #[arg(long)]
    pub live: bool,

    /// Where keys of encrypted images come from.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// How images that are not on this host are reached.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl SourceArgs {
    /// Which references may be followed.
    pub fn policy(&self) -> ReferencePolicy {
        ReferencePolicy {
            allowed: self.allow_backing.clone(),
            refuse_all: self.no_backing,
        }
    }

    /// Opens the source.
    ///
    /// # Errors
    /// Of the format.
    pub fn open(&self, path: &Path) -> Outcome<Arc<dyn Image>> {
        let options = OpenOptions {
            format: self.format.clone(),
            live: self.live,
            sequential: true,
            keys: self.keys.source(true)?,
            remote: self.remote.options(),
            policy: self.policy(),
            ..OpenOptions::default()
        };
        let image = open_path(path, &options)?;
        check_unlocked(&image)?;
        Ok(image)
    }

    /// The content that was asked for.
    ///
    /// # Errors
    /// If there is no such snapshot.
    pub fn content(&self, image: &Arc<dyn Image>) -> Outcome<BlockDevice> {
        let Some(id) = &self.snapshot else {
            return Ok(image.device());
        };
        let index = target::find_snapshot(image, id)?;
        Ok(image.open_snapshot(index)?)
    }
}

/// Formats that can be converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetFormat {
    /// The file is the disk
    Raw,
    /// QEMU copy-on-write
    Qcow2,
    /// VMware, streamOptimized: always compressed
    Vmdk,
    /// Virtual PC and Hyper-V, dynamic
    #[value(alias = "vpc")]
    Vhd,
    /// The same, fixed: a raw disk with a footer
    VhdFixed,
}

impl TargetFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd | Self::VhdFixed => "vpc",
        }
    }
}

/// Converts.
///
/// # Errors
/// If the source cannot be read or the target not be written; then there is no target.
pub fn run(args: &ConvertArgs, log: &LogArgs, out: &mut Output) -> Outcome {
    check(args)?;
    let started = Instant::now();
    let image = args.open.open(&args.source)?;
    for warning in &image.info().warnings {
        complain(warning);
    }
    let source = args.open.content(&image)?;
    let below = below(args, &image)?;
    let progress = Mutex::new(Progress::new(Some(source.len()), log.quiet));
    let options = CopyOptions {
        below,
        threads: convert::threads(args.compress.is_some() || args.to == TargetFormat::Vmdk),
        progress: &|bytes| progress.lock().add(bytes),
        stop: &|| false,
    };
    if args.target == Path::new("-") {
        to_stdout(args, &source, &options)?;
        return Ok(Exit::Done);
    }
    not_onto_itself(&image, &args.target)?;
    let place = Place::open(&args.target, args.force)?;
    let file = place.device()?;
    let builder = builder(args, source.len(), file)?;
    let copied = convert::copy(&source, builder.as_ref(), &options)
        .and_then(|copied| builder.finish().map(|()| copied))
        .context(|| format!("cannot convert to {}", host_path(&args.target)))?;
    drop(builder);
    place.keep()?;
    drop(progress);
    if args.json {
        report(args, &image, &source, copied, started, out)?;
    }
    Ok(Exit::Done)
}

/// A plainer answer than that the target is in use.
fn not_onto_itself(source: &Arc<dyn Image>, target: &Path) -> Outcome<()> {
    let id = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(if metadata.file_type().is_block_device() {
            (0, metadata.rdev())
        } else {
            (metadata.dev(), metadata.ino())
        })
    };
    let wanted = id(target);
    if wanted.is_some() && id(&source.info().filename) == wanted {
        return Err(Failure::new(format!(
            "source and target are the same file, {}",
            host_path(target)
        )));
    }
    Ok(())
}

/// Whether what was asked for goes together.
fn check(args: &ConvertArgs) -> Outcome<()> {
    let qcow2 = args.to == TargetFormat::Qcow2;
    if !qcow2 {
        let preallocated = args.qcow2.preallocation.map(|_| "--preallocation");
        let wrong = args
            .qcow2
            .only_qcow2()
            .or(preallocated)
            .or_else(|| args.compress.map(|_| "--compress"));
        if let Some(option) = wrong {
            return Err(Failure::usage(format!("{option} is for qcow2 only")));
        }
    }
    if args.target == Path::new("-") {
        if args.json {
            return Err(Failure::usage("--json and the target - both want stdout"));
        }
        if !matches!(args.to, TargetFormat::Raw | TargetFormat::Vmdk) {
            return Err(Failure::usage("only raw and vmdk can be written to stdout"));
        }
    }
    if args.sparse_size.is_some() && args.to != TargetFormat::Raw {
        return Err(Failure::usage("--sparse-size is for raw disks only"));
    }
    let levels = match args.compress {
        Some(Compression::Zlib) => Method::Deflate.levels(),
        Some(Compression::Zstd) => Method::Zstd.levels(),
        None if args.to == TargetFormat::Vmdk => Method::Zlib.levels(),
        None if args.level.is_some() => return Err(Failure::usage("--level needs --compress")),
        None => return Ok(()),
    };
    match args.level {
        Some(level) if !levels.contains(&level) => Err(Failure::usage(format!(
            "--level must be from {} to {}",
            levels.start(),
            levels.end()
        ))),
        _ => Ok(()),
    }
}

/// The image the new one is to lie on.
fn below(args: &ConvertArgs, image: &Arc<dyn Image>) -> Outcome<Option<Below>> {
    let keys = args.open.keys.source(true)?;
    let backing = args
        .qcow2
        .open_backing(&args.target, &args.open.policy(), keys)?;
    let Some(backing) = backing else {
        return Ok(None);
    };
    check_unlocked(&backing)?;
    let id = |image: &Arc<dyn Image>| {
        let metadata = std::fs::metadata(&image.info().filename).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let wanted = id(&backing);
    // What the same file shows in the source's chain needs no comparing.
    let mut depth = 0u32;
    let mut here = image.backing().cloned();
    let mut found = None;
    while let Some(image) = here {
        depth = depth.saturating_add(1);
        if wanted.is_some() && id(&image) == wanted && image.info().format == backing.info().format
        {
            found = Some(depth);
            break;
        }
        if usize::try_from(depth).is_ok_and(|d| d > limits::MAX_CHAIN_DEPTH) {
            break;
        }
        here = image.backing().cloned();
    }
    Ok(Some(Below {
        device: backing.device(),
        depth: found,
    }))
}

fn builder(args: &ConvertArgs, size: u64, file: BlockDevice) -> Outcome<Box<dyn Builder>> {
    Ok(match args.to {
        TargetFormat::Raw => {
            let sparse = match args.sparse_size {
                None => Some(SPARSE_BYTES),
                Some(0) => None,
                Some(size) => {
                    let unit = usize::try_from(size).unwrap_or(usize::MAX);
                    if !unit.is_power_of_two() || !(512..=CHUNK_BYTES).contains(&unit) {
                        return Err(Failure::usage(
                            "--sparse-size must be 0 or a power of two from 512 to 2M",
                        ));
                    }
                    Some(unit)
                }
            };
            Box::new(RawBuilder::new(file, size, sparse)?)
        }
        TargetFormat::Qcow2 => {
            let mut options = args
                .qcow2
                .options(size, || args.new_key.new_key(&args.target))?;
            if let Some(compression) = args.compress {
                args.qcow2.check_compression(compression)?;
                options.compression = compression.into();
                let method = match compression {
                    Compression::Zlib => Method::Deflate,
                    Compression::Zstd => Method::Zstd,
                };
                options.compress = Some(args.level.unwrap_or(method.default_level()));
            }
            Box::new(Qcow2Builder::new(file, options)?)
        }
        TargetFormat::Vmdk => {
            let name = args
                .target
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            Box::new(StreamBuilder::in_file(file, size, vmdk_level(args), &name)?)
        }
        TargetFormat::Vhd => Box::new(DynamicBuilder::new(file, size)?),
        TargetFormat::VhdFixed => Box::new(FixedBuilder::new(file, size)?),
    })
}

fn vmdk_level(args: &ConvertArgs) -> i32 {
    args.level.unwrap_or(Method::Zlib.default_level())
}

fn to_stdout(args: &ConvertArgs, source: &BlockDevice, options: &CopyOptions<'_>) -> Outcome<()> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(Failure::usage("a disk is not written to a terminal"));
    }
    let stream = File::from(stdout.as_fd().try_clone_to_owned()?);
    let builder: Box<dyn Builder> = match args.to {
        TargetFormat::Vmdk => {
            let (out, level) = (Box::new(stream), vmdk_level(args));
            Box::new(StreamBuilder::on_stream(
                out,
                source.len(),
                level,
                "disk.vmdk",
            )?)
        }
        _ => Box::new(RawStream::new(stream)),
    };
    convert::copy(source, builder.as_ref(), options)?;
    Ok(builder.finish()?)
}

fn report(
    args: &ConvertArgs,
    image: &Arc<dyn Image>,
    source: &BlockDevice,
    copied: Copied,
    started: Instant,
    out: &mut Output,
) -> Outcome<()> {
    let metadata = std::fs::metadata(&args.target)?;
    out.json(&json!({
        "source": args.source.to_string_lossy(),
        "source-format": image.info().format,
        "filename": args.target.to_string_lossy(),
        "format": args.to.name(),
        "virtual-size": source.len(),
        "actual-size": metadata.blocks().saturating_mul(512),
        "read-bytes": copied.read,
        "skipped-bytes": copied.skipped,
        "zero-bytes": copied.zero,
        "backing-bytes": copied.below,
        "compressed-bytes": copied.packed,
        "seconds": started.elapsed().as_secs_f64(),
    }))
}
