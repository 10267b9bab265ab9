//! The definition of the command line. Help, manual pages and completions are made from it.
//!
//! A verb that looks into a guest takes one image as its first argument, or any number with `-a`,
//! in which case all arguments are the verb's own: `ls disk.qcow2 /etc` is
//! `ls -a disk.qcow2 /etc`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};

use super::command::Command;
use super::failure::{Failure, Outcome};
use super::keys::KeyArgs;
use crate::formats::OpenOptions;
use crate::formats::reference::ReferencePolicy;
use crate::fs::FsOptions;
use crate::guest::{GuestOptions, ImageArgument};
use crate::remote::{RemoteOptions, TlsOptions};

const AFTER_HELP: &str = "\
Exit status: 0 done; 1 failed; 2 wrong usage; 3 done in part; 4 problems found.

Several images together are the disks sda, sdb, … of one guest: -a FIRST -a SECOND.
Guest files are never changed; no root, no /dev/fuse and no other program is needed
for anything but mount.";

/// Open guest disk images without a virtual machine, root or kernel mounts
#[derive(Debug, Parser)]
#[command(name = "guestlens", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How much to tell on stderr.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How much to tell on stderr.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Messages")]
pub struct LogArgs {
    /// Tell only what failed, no warnings, no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Tell more on stderr; repeat for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Tell exactly this: error, warn, info, debug, trace, or per module as in `guestlens::fs=debug`
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// How the images of a guest are opened.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Opening images")]
pub struct OpenArgs {
    /// A disk of the guest; repeat for several (sda, sdb, …)
    #[arg(short = 'a', long = "add", value_name = "IMAGE")]
    pub add: Vec<PathBuf>,

    /// Format of the images (raw, qcow2, vmdk, vpc, vhdx, vdi, gz, xz, zst), instead of finding out
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Also follow backing and data files below this directory
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,

    /// Follow no backing or data file at all
    #[arg(long, conflicts_with = "allow_backing")]
    pub no_backing: bool,

    /// Open also an image a running guest writes to; what is seen may not fit together
    #[arg(long)]
    pub live: bool,

    /// Look at an internal snapshot, by id or name
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,

    /// Sector size of the disks in bytes (512, 4096), instead of finding out
    #[arg(long, value_name = "BYTES")]
    pub sector_size: Option<u32>,

    /// Read on where a metadata checksum is wrong
    #[arg(long)]
    pub ignore_checksums: bool,

    /// See filesystems as they lie on disk, their journals not replayed
    #[arg(long)]
    pub no_replay: bool,

    /// Where keys of encrypted images come from.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// How images that are not on this host are reached.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// How images that are not on this host are reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Images on other hosts (nbd:, nbd+unix:, nbds:, http:, https:)")]
pub struct RemoteArgs {
    /// Trust these authorities (PEM) instead of the public ones
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Show servers that ask this certificate; its key is in the same file (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_identity: Option<PathBuf>,
}

impl RemoteArgs {
    /// The same for the layer below.
    pub fn options(&self) -> RemoteOptions {
        RemoteOptions {
            tls: TlsOptions {
                authorities: self.tls_ca.clone(),
                identity: self.tls_identity.clone(),
            },
        }
    }
}

impl OpenArgs {
    /// The guest's images: those of `-a`, or else the first of `arguments`, which is then taken
    /// out of them.
    ///
    /// # Errors
    /// A wrong usage if there is neither.
    pub fn take_image(&self, arguments: &mut Vec<OsString>) -> Outcome<Vec<ImageArgument>> {
        if !self.add.is_empty() {
            return Ok(self.image_arguments(&self.add));
        }
        if arguments.is_empty() {
            return Err(Failure::usage("no image given"));
        }
        let first = PathBuf::from(arguments.remove(0));
        Ok(self.image_arguments(&[first]))
    }

    /// The guest's images for a verb whose arguments are all images.
    ///
    /// # Errors
    /// A wrong usage if there is none.
    pub fn all_images(&self, arguments: &[PathBuf]) -> Outcome<Vec<ImageArgument>> {
        let images: Vec<PathBuf> = self.add.iter().chain(arguments).cloned().collect();
        if images.is_empty() {
            return Err(Failure::usage("no image given"));
        }
        Ok(self.image_arguments(&images))
    }

    /// Paths with the format the user states.
    pub fn image_arguments(&self, paths: &[PathBuf]) -> Vec<ImageArgument> {
        paths
            .iter()
            .map(|path| ImageArgument {
                path: path.clone(),
                format: self.format.clone(),
            })
            .collect()
    }

    /// How the guest is opened. A person at the terminal is asked for keys that are needed and
    /// not given.
    ///
    /// # Errors
    /// If a key cannot be read.
    pub fn guest_options(&self) -> Outcome<GuestOptions> {
        self.options(true)
    }

    /// The same where nobody needs to be asked for a key, because content is not what is looked
    /// at, or not all.
    ///
    /// # Errors
    /// If a key that is given cannot be read.
    pub fn metadata_options(&self) -> Outcome<GuestOptions> {
        self.options(false)
    }

    fn options(&self, may_ask: bool) -> Outcome<GuestOptions> {
        Ok(GuestOptions {
            image: OpenOptions {
                format: self.format.clone(),
                live: self.live,
                keys: self.keys.source(may_ask)?,
                policy: ReferencePolicy {
                    allowed: self.allow_backing.clone(),
                    refuse_all: self.no_backing,
                },
                remote: self.remote.options(),
                ..OpenOptions::default()
            },
            fs: FsOptions {
                ignore_checksums: self.ignore_checksums,
                no_replay: self.no_replay,
            },
            sector_size: self.sector_size,
        })
    }
}

/// Which tree of the guest a verb looks at.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Choosing the tree")]
pub struct ViewArgs {
    /// Look at one filesystem by itself (sda1, …; see `filesystems`), nothing mounted on it
    #[arg(long, value_name = "NAME", conflicts_with = "root")]
    pub volume: Option<String>,

    /// Which operating system, if there are several: its number from 1, or its root volume
    #[arg(long, value_name = "N|NAME")]
    pub root: Option<String>,
}
