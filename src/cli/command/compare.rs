//! `guestlens compare`: whether two images show the same disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use crate::cli::args::LogArgs;
use crate::cli::args::RemoteArgs;
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Outcome};
use crate::cli::keys::KeyArgs;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::session::check_unlocked;
use crate::cli::text::host_path;
use crate::formats::compare::{self, Difference};
use crate::formats::reference::ReferencePolicy;
use crate::formats::{Image, OpenOptions, open_path};

/// Arguments of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// An image
    #[arg(value_name = "IMAGE")]
    pub first: PathBuf,

    /// The other image
    #[arg(value_name = "OTHER")]
    pub second: PathBuf,

    /// Also tell apart disks of different size whose excess is zero, and data that is zero from
    /// what is not allocated
    #[arg(long)]
    pub strict: bool,

    /// The result as one JSON document
    #[arg(long)]
    pub json: bool,

    /// Format of the first image (raw, qcow2, …), instead of finding out
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Format of the other image, instead of finding out
    #[arg(long, value_name = "FORMAT")]
    pub other_format: Option<String>,

    /// Also follow backing and data files below this directory
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,

    /// Read also images a running guest writes to; what is read may not fit together
    #[arg(long)]
    pub live: bool,

    /// Where keys of encrypted images come from.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// How images that are not on this host are reached.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Compares.
///
/// # Errors
/// If an image cannot be read.
pub fn run(args: &CompareArgs, log: &LogArgs, out: &mut Output) -> Outcome {
    let first = open(args, &args.first, args.format.as_ref())?;
    let second = open(args, &args.second, args.other_format.as_ref())?;
    let (a, b) = (first.device(), second.device());
    let progress = Mutex::new(Progress::new(Some(a.len().max(b.len())), log.quiet));
    let count = |bytes| progress.lock().add(bytes);
    let difference = compare::compare(&a, &b, args.strict, &count)
        .context(|| "the images cannot be compared".into())?;
    drop(progress);
    if args.json {
        let (what, offset) = match difference {
            None => (None, None),
            Some(Difference::Size) => (Some("size"), None),
            Some(Difference::Allocation(at)) => (Some("allocation"), Some(at)),
            Some(Difference::Content(at)) => (Some("content"), Some(at)),
        };
        out.json(&json!({
            "identical": difference.is_none(),
            "difference": what,
            "offset": offset,
            "sizes": [a.len(), b.len()],
        }))?;
    } else {
        out.line(match difference {
            None if a.len() == b.len() => "the images are identical".into(),
            None => format!(
                "the images are identical, except that one has {} bytes more, all of them zero",
                a.len().abs_diff(b.len())
            ),
            Some(Difference::Size) => {
                format!("the sizes differ: {} and {} bytes", a.len(), b.len())
            }
            Some(Difference::Allocation(at)) => {
                format!("only one of the images has anything allocated at byte {at}")
            }
            Some(Difference::Content(at)) => format!("the images differ at byte {at}"),
        })?;
    }
    Ok(match difference {
        None => Exit::Done,
        Some(_) => Exit::Problems,
    })
}

fn open(args: &CompareArgs, path: &Path, format: Option<&String>) -> Outcome<Arc<dyn Image>> {
    let options = OpenOptions {
        format: format.cloned(),
        live: args.live,
        keys: args.keys.source(true)?,
        remote: args.remote.options(),
        policy: ReferencePolicy {
            allowed: args.allow_backing.clone(),
            refuse_all: false,
        },
        ..OpenOptions::default()
    };
    let image = open_path(path, &options)?;
    check_unlocked(&image)?;
    for warning in &image.info().warnings {
        complain(&format!("{}: {warning}", host_path(path)));
    }
    Ok(image)
}
