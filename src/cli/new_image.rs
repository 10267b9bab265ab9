//! What the verbs that make images have in common: how the new image is to be, and the image it
//! lies on.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::failure::{Context as _, Failure, Outcome};
use super::size;
use super::text::host_path;
use crate::crypto::luks1::CreateOptions;
use crate::crypto::{KeySource, Passphrase};
use crate::formats::qcow2::build;
use crate::formats::qcow2::encryption::new_luks;
use crate::formats::qcow2::layout;
use crate::formats::reference::ReferencePolicy;
use crate::formats::{Image, OpenOptions, open_path};

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

impl From<Compression> for layout::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Zlib => Self::Deflate,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// What is allocated in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Preallocation {
    /// Nothing
    #[default]
    Off,
    /// Tables of the image; the file is sparse
    Metadata,
    /// Tables, and space on the host
    Falloc,
    /// Tables, and zeroes written to the host
    Full,
}

impl From<Preallocation> for build::Preallocation {
    fn from(preallocation: Preallocation) -> Self {
        match preallocation {
            Preallocation::Off => Self::Off,
            Preallocation::Metadata => Self::Metadata,
            Preallocation::Falloc => Self::Falloc,
            Preallocation::Full => Self::Full,
        }
    }
}

/// Which version of qcow2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// Version 2, for QEMU before 1.1
    #[value(name = "0.10")]
    V2,
    /// Version 3
    #[default]
    #[value(name = "1.1")]
    V3,
}

/// How content is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encrypt {
    /// LUKS: AES-256 in XTS mode, the key protected with a passphrase
    Luks,
}

/// How a new qcow2 image is to be.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "New qcow2 images")]
pub struct Qcow2Args {
    /// Cluster size in bytes, 512 to 2M [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_power)]
    pub cluster_size: Option<u64>,

    /// Version of the format [default: 1.1]
    #[arg(long, value_name = "VERSION")]
    pub compat: Option<Compat>,

    /// Width of refcounts, 1 to 64 [default: 16]
    #[arg(long, value_name = "BITS")]
    pub refcount_bits: Option<u64>,

    /// Extended L2 entries: 32 subclusters in each cluster
    #[arg(long)]
    pub extended_l2: bool,

    /// Lie on this image and hold only what differs from it; its name is stored as given, and is
    /// relative to the new image's directory
    #[arg(long, value_name = "FILE", requires = "backing_format")]
    pub backing: Option<PathBuf>,

    /// Format of that image
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    pub backing_format: Option<String>,

    /// What to allocate in advance
    #[arg(long, value_name = "WHAT")]
    pub preallocation: Option<Preallocation>,

    /// Encrypt the content with a passphrase; names, sizes and what is allocated stay visible
    #[arg(long, value_name = "HOW")]
    pub encrypt: Option<Encrypt>,

    /// How many milliseconds trying a passphrase is to take on a machine like this, 1 to 10000
    #[arg(long, value_name = "MS", default_value_t = 1000, requires = "encrypt")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub unlock_time: u64,
}

impl Qcow2Args {
    /// Whether anything was said that only qcow2 has.
    pub fn only_qcow2(&self) -> Option<&'static str> {
        let said = [
            (self.cluster_size.is_some(), "--cluster-size"),
            (self.compat.is_some(), "--compat"),
            (self.refcount_bits.is_some(), "--refcount-bits"),
            (self.extended_l2, "--extended-l2"),
            (self.backing.is_some(), "--backing"),
            (self.encrypt.is_some(), "--encrypt"),
        ];
        said.iter().find_map(|(said, name)| said.then_some(*name))
    }

    /// Whether that compression goes with the version.
    ///
    /// # Errors
    /// If not.
    pub fn check_compression(&self, compression: Compression) -> Outcome<()> {
        if compression == Compression::Zstd && self.compat == Some(Compat::V2) {
            return Err(Failure::usage("zstd needs --compat 1.1"));
        }
        Ok(())
    }

    /// The same as the builder wants it, for a disk of `size` bytes. `key` gives the passphrase,
    /// if one is needed.
    ///
    /// # Errors
    /// A wrong usage, or what `key` reports.
    pub fn options(
        &self,
        size: u64,
        key: impl FnOnce() -> Outcome<Passphrase>,
    ) -> Outcome<build::Options> {
        let cluster = self.cluster_size.unwrap_or(64 << 10);
        if !(512..=2 << 20).contains(&cluster) {
            return Err(Failure::usage("--cluster-size must be from 512 to 2M"));
        }
        let bits = self.refcount_bits.unwrap_or(16);
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Failure::usage(
                "--refcount-bits must be 1, 2, 4, 8, 16, 32 or 64",
            ));
        }
        if self.compat == Some(Compat::V2) {
            let newer = [
                (bits != 16, "--refcount-bits other than 16"),
                (self.extended_l2, "--extended-l2"),
            ];
            if let Some((_, option)) = newer.iter().find(|(said, _)| *said) {
                return Err(Failure::usage(format!("{option} needs --compat 1.1")));
            }
        }
        if self.extended_l2 && cluster < 16 << 10 {
            return Err(Failure::usage(
                "--extended-l2 needs a --cluster-size of at least 16K",
            ));
        }
        let backing = match (&self.backing, &self.backing_format) {
            (Some(name), Some(format)) => Some((
                name.as_os_str().as_bytes().to_vec(),
                format.as_bytes().to_vec(),
            )),
            _ => None,
        };
        let encryption = match self.encrypt {
            None => None,
            Some(Encrypt::Luks) => {
                let options = CreateOptions {
                    unlock_time: Duration::from_millis(self.unlock_time),
                    ..CreateOptions::default()
                };
                Some(new_luks(&key()?, options)?)
            }
        };
        Ok(build::Options {
            size,
            encryption,
            cluster_bits: cluster.trailing_zeros(),
            version: match self.compat.unwrap_or_default() {
                Compat::V2 => 2,
                Compat::V3 => 3,
            },
            refcount_order: bits.trailing_zeros(),
            subclusters: self.extended_l2,
            backing,
            preallocation: self.preallocation.unwrap_or_default().into(),
            ..build::Options::default()
        })
    }

    /// Opens the image that `out` is to lie on, as readers of `out` will find it. The user names
    /// it, so it may be anywhere; what it refers to itself falls under `policy`.
    ///
    /// # Errors
    /// If it is not there or not of that format.
    pub fn open_backing(
        &self,
        out: &Path,
        policy: &ReferencePolicy,
        keys: KeySource,
    ) -> Outcome<Option<Arc<dyn Image>>> {
        let (Some(name), Some(format)) = (&self.backing, &self.backing_format) else {
            return Ok(None);
        };
        // Readers would take it for a protocol (a colon before the first slash).
        let bytes = name.as_os_str().as_bytes();
        if bytes.iter().find(|b| matches!(b, b':' | b'/')) == Some(&b':') {
            return Err(Failure::usage(format!(
                "--backing {}: a name with a colon is taken for a protocol; write ./{0}",
                host_path(name)
            )));
        }
        let path = out.parent().unwrap_or(Path::new("")).join(name);
        let options = OpenOptions {
            format: Some(format.clone()),
            policy: policy.clone(),
            keys,
            ..OpenOptions::default()
        };
        let image = open_path(&path, &options).context(|| "backing file".into())?;
        Ok(Some(image))
    }
}
