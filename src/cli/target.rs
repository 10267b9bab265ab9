//! An image that a verb changes as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::complain;
use super::failure::{Failure, Outcome};
use super::keys::KeyArgs;
use crate::formats::reference::ReferencePolicy;
use crate::formats::{Image, ImageWriter, OpenOptions, open_path};

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
