//! An image that a verb changes as a whole.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::complain;
use super::failure::{Failure, Outcome};
use super::keys::KeyArgs;
use super::text::host_path;
use crate::formats::reference::ReferencePolicy;
use crate::formats::{Image, ImageWriter, OpenOptions, SnapshotInfo, open_path};
use crate::ondisk::text::printable;

/// How it is opened.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Opening the image")]
pub struct TargetArgs {
    /// Format of the image (raw, qcow2), instead of finding out; a raw disk is only written to if
    /// it is stated
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Also follow backing and data files below this directory
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,

    /// Write also where nothing shows whether another program uses the image
    #[arg(long)]
    pub force: bool,

    /// Where keys of encrypted images come from.
    #[command(flatten)]
    pub keys: KeyArgs,
}

impl TargetArgs {
    /// How it is opened, for reading or for writing as well.
    ///
    /// # Errors
    /// If a key cannot be read.
    pub fn options(&self, write: bool) -> Outcome<OpenOptions> {
        Ok(OpenOptions {
            format: self.format.clone(),
            write,
            force: self.force,
            keys: self.keys.source(true)?,
            policy: ReferencePolicy {
                allowed: self.allow_backing.clone(),
                refuse_all: false,
            },
            ..OpenOptions::default()
        })
    }

    /// Opens it; tells what there is to know.
    ///
    /// # Errors
    /// Of the format.
    pub fn open(&self, path: &Path, write: bool) -> Outcome<Arc<dyn Image>> {
        let image = open_path(path, &self.options(write)?)?;
        for warning in &image.info().warnings {
            complain(warning);
        }
        Ok(image)
    }
}

/// What an image opened for writing can do.
///
/// # Errors
/// If it was not.
pub fn writer(image: &Arc<dyn Image>) -> Outcome<&dyn ImageWriter> {
    image
        .writer()
        .ok_or_else(|| Failure::new("images of this format are only read"))
}

/// Which of an image's snapshots the user means: the one of that id, or else of that name.
///
/// # Errors
/// If there is none, or the name is that of several.
pub fn find_snapshot(image: &Arc<dyn Image>, wanted: &str) -> Outcome<usize> {
    let snapshots = &image.info().snapshots;
    let named = printable(wanted.as_bytes());
    let all = |test: &dyn Fn(&SnapshotInfo) -> bool| -> Vec<usize> {
        let found = snapshots.iter().enumerate().filter(|(_, s)| test(s));
        found.map(|(index, _)| index).collect()
    };
    let mut found = all(&|s| s.id == wanted);
    if found.is_empty() {
        found = all(&|s| s.name == wanted);
    }
    match found.as_slice() {
        [] => Err(Failure::new(format!(
            "{} has no snapshot {named:?}",
            host_path(&image.info().filename)
        ))
        .with_hint("`guestlens snapshot IMAGE list` shows them")),
        [index] => Ok(*index),
        several => {
            let ids: Vec<String> = several
                .iter()
                .filter_map(|index| Some(printable(snapshots.get(*index)?.id.as_bytes())))
                .collect();
            Err(
                Failure::new(format!("there are {} snapshots {named:?}", several.len()))
                    .with_hint(format!("say which by its id: {}", ids.join(", "))),
            )
        }
    }
}

/// That `path` is not the address of something remote, which the verb cannot take.
///
/// # Errors
/// If it is.
pub fn is_local(path: &Path) -> Outcome<()> {
    let remote = crate::remote::url::is_remote(path.as_os_str().as_bytes());
    if remote && path.symlink_metadata().is_err() {
        return Err(Failure::usage(format!(
            "{}: a URL is not accepted here, only a file of this host",
            host_path(path)
        )));
    }
    Ok(())
}
