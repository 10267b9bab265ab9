//! What an image format implements, and opening an image by path.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::detect::{self, Format};
use super::error::{FormatError, FormatErrorKind, Result};
use super::follow::{self, Follow};
use super::host_file::{HostFile, shown};
use super::reference::{Chain, Link, ReferencePolicy};
use crate::block::BlockDevice;
use crate::block::cache::ClusterCache;
use crate::block::lock::LockMode;
use crate::crypto::KeySource;
use crate::limits;
use crate::ondisk::text::printable;
use crate::remote::url::Url;
use crate::remote::{self, RemoteOptions};

/// How an image is to be opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// The format as the user states it; `None` detects it, which is allowed for reading only and
    /// only if the detected format names no other files outside policy.
    pub format: Option<String>,
    /// Open for writing. The files below in the chain stay read-only.
    pub write: bool,
    /// Open also while a running guest writes to the image; for reading only.
    pub live: bool,
    /// Write although something other than QEMU's locks says that the image is in use, or nothing
    /// can say so.
    pub force: bool,
    /// The content is read once, from the beginning to the end: allows what cannot be read in any
    /// other order, or only slowly.
    pub sequential: bool,
    /// Keys of encrypted images.
    pub keys: KeySource,
    /// Which references may be followed.
    pub policy: ReferencePolicy,
    /// Which of them must be there. Anything but [`Follow::All`] is for asking about an image, not
    /// for its content, and never for writing.
    pub follow: Follow,
    /// Decoded clusters, shared by all images of the process.
    pub cache: Arc<ClusterCache>,
    /// How images that are not on this host are reached.
    pub remote: RemoteOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: None,
            write: false,
            live: false,
            sequential: false,
            force: false,
            keys: KeySource::default(),
            policy: ReferencePolicy::default(),
            follow: Follow::All,
            cache: Arc::new(ClusterCache::new(limits::CLUSTER_CACHE_BYTES)),
            remote: RemoteOptions::default(),
        }
    }
}

/// What is known about an opened image. As JSON it has the member names of
/// `qemu-img info --output=json`.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// Path as it was opened.
    pub filename: PathBuf,
    /// Name of the format.
    pub format: &'static str,
    /// Whether the format was guessed from the content rather than stated.
    pub format_detected: bool,
    /// Size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// Bytes the host file occupies.
    pub actual_size: u64,
    /// Cluster size in bytes, for formats that have clusters.
    pub cluster_size: Option<u64>,
    /// Whether the image was not closed properly.
    pub dirty_flag: bool,
    /// Whether a running guest may be writing to it.
    pub live: bool,
    /// The backing file as the image names it.
    pub backing_filename: Option<String>,
    /// The backing file's format as the image states it.
    pub backing_filename_format: Option<String>,
    /// The backing file as it was opened.
    pub full_backing_filename: Option<PathBuf>,
    /// Whether the content is encrypted.
    pub encrypted: bool,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// What only this format has, as a JSON object (`format-specific`'s `data` of qemu-img).
    pub format_specific: serde_json::Value,
    /// What a user should know about the state of the image.
    pub warnings: Vec<String>,
}

/// One internal snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// Unique id, as the image stores it (usually a number).
    pub id: String,
    /// Name given by the user; need not be unique.
    pub name: String,
    /// When it was taken, seconds since 1970 UTC.
    pub date_sec: u64,
    /// Nanoseconds of that.
    pub date_nsec: u32,
    /// Guest run time at that moment, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions the guest had run, where they are counted.
    pub icount: Option<u64>,
    /// Bytes of saved VM state; 0 for a disk-only snapshot.
    pub vm_state_size: u64,
    /// Size of the virtual disk in that snapshot, in bytes.
    pub virtual_size: u64,
}

/// An opened image.
pub trait Image: Send + Sync {
    /// What is known about it.
    fn info(&self) -> &ImageInfo;

    /// Its present content.
    fn device(&self) -> BlockDevice;

    /// The backing image, if there is one.
    fn backing(&self) -> Option<&Arc<dyn Image>> {
        None
    }

    /// Whether this only stands for a backing file that is not open (see [`Follow`]).
    fn is_absent(&self) -> bool {
        false
    }

    /// Why the content cannot be read although the image is open: [`FormatErrorKind::NoKey`] where
    /// it is encrypted and no key was given. Reads of its device report the same.
    fn locked(&self) -> Option<FormatError> {
        None
    }

    /// What an image that was opened for writing can do beside what its device can.
    fn writer(&self) -> Option<&dyn ImageWriter> {
        None
    }

    /// The content of an internal snapshot, by position in [`ImageInfo::snapshots`].
    ///
    /// # Errors
    /// [`FormatErrorKind::NoSnapshot`], or what reading its tables reports.
    fn open_snapshot(&self, index: usize) -> Result<BlockDevice> {
        Err(FormatError::new(
            FormatErrorKind::NoSnapshot,
            format!("there is no snapshot {index}"),
        ))
    }
}

/// Changes to an image as a whole. Dropping an image without [`ImageWriter::close`] leaves it as a
/// crash would: right as of the last flush, perhaps with leaked clusters.
pub trait ImageWriter: Send + Sync {
    /// Makes the virtual disk `len` bytes long. What is added reads as zeroes; what is cut off is
    /// lost, and the caller has made sure that is wanted. [`Image::device`] and [`Image::info`]
    /// show the old size until the image is opened again.
    ///
    /// # Errors
    /// What the format cannot do, or what the device reports.
    fn resize(&self, len: u64) -> Result<()>;

    /// Keeps the present content as a snapshot.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] for formats without snapshots.
    fn create_snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        let _ = name;
        Err(no_snapshots())
    }

    /// Makes a snapshot's content the present one. By position in the snapshot table as it is now
    /// ([`ImageInfo::snapshots`] is of the time of opening). [`Image::device`] keeps the size it had.
    ///
    /// # Errors
    /// As [`ImageWriter::create_snapshot`].
    fn apply_snapshot(&self, index: usize) -> Result<()> {
        let _ = index;
        Err(no_snapshots())
    }

    /// Gives a snapshot up. By position in the snapshot table as it is now.
    ///
    /// # Errors
    /// As [`ImageWriter::create_snapshot`].
    fn delete_snapshot(&self, index: usize) -> Result<()> {
        let _ = index;
        Err(no_snapshots())
    }

    /// Records another backing file (name and format), or none; contents are not touched.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] for formats without backing files.
    fn set_backing(&self, backing: Option<(&[u8], &[u8])>) -> Result<()> {
        let _ = backing;
        Err(FormatError::new(
            FormatErrorKind::Unsupported,
            "images of this format have no backing file",
        ))
    }

    /// Gives everything up that the image itself holds of the disk, so that its backing file shows.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] for formats without backing files.
    fn make_empty(&self) -> Result<()> {
        Err(FormatError::new(
            FormatErrorKind::Unsupported,
            "images of this format are not emptied",
        ))
    }

    /// Writes out what is left and makes it durable; nothing is leaked after that.
    ///
    /// # Errors
    /// What the device reports.
    fn close(&self) -> Result<()>;
}

fn no_snapshots() -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        "images of this format have no internal snapshots",
    )
}

/// What a format's `open` has at hand beside its file.
pub struct Context<'a> {
    options: &'a OpenOptions,
    chain: Chain<'a>,
    /// Whether the file being opened is written to. False for every file below the first.
    write: bool,
    /// Files that are open already, by the name images have for them; each serves once.
    provided: BTreeMap<Vec<u8>, BlockDevice>,
}

impl<'a> Context<'a> {
    /// How the image is opened.
    pub fn options(&self) -> &'a OpenOptions {
        self.options
    }

    /// Whether this file is to be written to.
    pub fn write(&self) -> bool {
        self.write
    }

    /// The image below, as `open` opens it and checks that it is the right one, or what stands for
    /// it where it need not be there (see [`Follow`]). `name` is what the image calls it.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn below(
        &mut self,
        name: &[u8],
        info: &mut ImageInfo,
        open: impl FnOnce(&mut Self, &mut ImageInfo) -> Result<Arc<dyn Image>>,
    ) -> Result<Arc<dyn Image>> {
        if !matches!(self.options.follow, Follow::ImageOnly(_)) {
            match open(self, info) {
                Err(error) => self.go_on_without(error, &mut info.warnings)?,
                opened => return opened,
            }
        }
        Ok(follow::absent_image(info, name))
    }

    /// The data file `name` (see [`Context::open_part`]), or what stands for it where it need not
    /// be there.
    ///
    /// # Errors
    /// As [`Context::open_part`].
    pub fn open_data_file(&mut self, name: &[u8], info: &mut ImageInfo) -> Result<BlockDevice> {
        let role = "data file";
        if !matches!(self.options.follow, Follow::ImageOnly(_)) {
            let path = info.filename.clone();
            match self.open_part(name, role, &path, &mut info.warnings) {
                Err(error) => self.go_on_without(error, &mut info.warnings)?,
                opened => return opened,
            }
        }
        let what = format!("{role} '{}'", printable(name));
        Ok(follow::absent_device(&what))
    }

    /// Turns an error into a warning, if the file need not be there.
    ///
    /// # Errors
    /// The same error otherwise.
    pub fn go_on_without(&self, error: FormatError, warnings: &mut Vec<String>) -> Result<()> {
        match &self.options.follow {
            Follow::IfPossible(incomplete) | Follow::ImageOnly(incomplete) if !self.write => {
                warnings.push(incomplete.note(&error));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Opens and locks a file that is named in the image `referrer` as its `role` and holds bytes
    /// of it (a data file, an extent): written to if the image is. `warnings` gets what the user
    /// should know.
    ///
    /// # Errors
    /// As [`Chain::follow`] and [`HostFile::lock`].
    pub fn open_part(
        &mut self,
        name: &[u8],
        role: &str,
        referrer: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<BlockDevice> {
        if let Some(device) = self.provided.remove(name) {
            return Ok(device);
        }
        let file = self
            .chain
            .follow(name, (Link::Part, role), referrer, self.write)?;
        warnings.extend(lock(&file, self.options, self.write)?);
        file.into_device(self.write)
    }

    /// As [`Chain::directories`].
    pub fn directories(&self, referrer: &Path) -> Vec<PathBuf> {
        self.chain.directories(referrer)
    }

    /// Opens the image below `referrer`, read-only.
    ///
    /// # Errors
    /// As [`open_path`].
    pub fn open_backing(
        &mut self,
        name: &[u8],
        format: Format,
        referrer: &Path,
    ) -> Result<Arc<dyn Image>> {
        let provided = self.provided.remove(name);
        let write = std::mem::replace(&mut self.write, false);
        let opened = match provided {
            Some(device) => open_in(already_open(device, name), Some(format), self),
            None => self
                .chain
                .follow(name, (Link::Backing, "backing file"), referrer, false)
                // The recursion ends with the chain, whose length is bounded.
                .and_then(|file| {
                    let place = shown(file.path());
                    open_file(file, Some(format), self)
                        .map_err(|e| e.within(format!("backing file {place}")))
                }),
        };
        self.write = write;
        opened
    }
}

fn lock(file: &HostFile, options: &OpenOptions, write: bool) -> Result<Vec<String>> {
    let mode = match (write, options.live) {
        (true, _) => LockMode::Write,
        (false, true) => LockMode::ReadLive,
        (false, false) => LockMode::Read,
    };
    file.lock(mode, options.force)
}

/// Opens an image by the name a user gave, with the files it refers to as far as policy allows: a
/// path on the host, or, if there is no such file, a remote name (`nbd://…`, `https://…`; see
/// [`remote::url`]). Never to be called with a name that was found in an image.
///
/// # Errors
/// See [`FormatErrorKind`].
pub fn open_path(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    let stated = options.format.as_deref().map(Format::by_name).transpose()?;
    if options.write && options.live {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            "an image that a guest is using cannot be written to",
        ));
    }
    if let Some(url) = remote_name(path)? {
        let device = remote::open(&url, options.write, &options.remote, &options.cache)
            .map_err(|e| FormatError::from(e).within(format!("cannot open {}", shown(path))))?;
        // Under its name without the secrets that may be in it.
        return open_device(device, Path::new(&shown(path)), options);
    }
    let file = HostFile::open(path, options.write)?;
    let mut context = Context {
        options,
        chain: Chain::new(&options.policy, &file),
        write: options.write,
        provided: BTreeMap::new(),
    };
    open_file(file, stated, &mut context)
        .map_err(|e| e.within(format!("cannot open {}", shown(path))))
}

/// What a name means that is no file of this host.
fn remote_name(path: &Path) -> Result<Option<Url>> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = path.as_os_str().as_bytes();
    if !remote::url::is_remote(name) || path.symlink_metadata().is_ok() {
        return Ok(None);
    }
    Ok(remote::url::parse(name)?)
}

/// Opens an image in a device that is already there (an export of a server, an object of a web
/// server, a device under test) and is locked by nobody. For writing it must be
/// [growable](BlockDevice::growable). It has no directory, so references are refused.
///
/// # Errors
/// As [`open_path`].
pub fn open_device(
    device: BlockDevice,
    name: &Path,
    options: &OpenOptions,
) -> Result<Arc<dyn Image>> {
    open_device_among(device, name, BTreeMap::new(), options)
}

/// The same for an image that refers to others: `provided` has them by the names the image has for
/// them. Each is used once, so that a chain cannot bite its tail; all other references are refused.
///
/// # Errors
/// As [`open_path`].
pub fn open_device_among(
    device: BlockDevice,
    name: &Path,
    provided: BTreeMap<Vec<u8>, BlockDevice>,
    options: &OpenOptions,
) -> Result<Arc<dyn Image>> {
    let stated = options.format.as_deref().map(Format::by_name).transpose()?;
    let mut context = Context {
        options,
        chain: Chain::nowhere(),
        write: options.write,
        provided,
    };
    let file = already_open(device, name.as_os_str().as_bytes());
    open_in(file, stated, &mut context)
        .map_err(|e| e.within(format!("cannot open {}", shown(name))))
}

fn already_open(device: BlockDevice, name: &[u8]) -> OpenFile {
    OpenFile {
        actual_size: device.len(),
        device,
        path: PathBuf::from(OsStr::from_bytes(name)),
        warnings: Vec::new(),
    }
}

/// A file of a chain, open and locked.
struct OpenFile {
    device: BlockDevice,
    path: PathBuf,
    actual_size: u64,
    warnings: Vec<String>,
}

/// Opens one file of a chain and what lies below it.
fn open_file(
    file: HostFile,
    stated: Option<Format>,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    // Locked before the first byte is looked at.
    let warnings = lock(&file, context.options, context.write)?;
    let file = OpenFile {
        warnings,
        path: file.path().to_owned(),
        actual_size: file.actual_size(),
        device: file.into_device(context.write)?,
    };
    open_in(file, stated, context)
}

fn open_in(
    file: OpenFile,
    stated: Option<Format>,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let OpenFile {
        device,
        path,
        actual_size,
        warnings,
    } = file;
    let format = match stated {
        Some(format) => format,
        None => detect::detect(&device)?,
    };
    if context.write && stated.is_none() && format == Format::Raw {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            "a disk that looks raw is not written to unless its format is stated",
        )
        .with_hint("if it really is a raw disk, say --format raw"));
    }
    let info = ImageInfo {
        filename: path,
        format: format.name(),
        format_detected: stated.is_none(),
        virtual_size: 0,
        actual_size,
        cluster_size: None,
        dirty_flag: false,
        live: context.options.live,
        backing_filename: None,
        backing_filename_format: None,
        full_backing_filename: None,
        encrypted: false,
        snapshots: Vec::new(),
        format_specific: serde_json::Value::Null,
        warnings,
    };
    if context.write && !format.writable() {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("images of format {} are only read", format.name()),
        )
        .with_hint("convert it to raw or qcow2 first: guestlens convert"));
    }
    format.open(device, info, context)
}

/// The format of a backing file, which only the image can state: guessing it would let a guest
/// that writes to a raw disk decide which files are opened next.
///
/// # Errors
/// [`FormatErrorKind::NotAllowed`] if there is none, [`FormatErrorKind::Unsupported`].
pub fn backing_format(name: &[u8], stated: Option<&[u8]>) -> Result<Format> {
    let name = printable(name);
    let Some(stated) = stated else {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            format!("the image does not state the format of its backing file '{name}'"),
        )
        .with_hint(format!(
            "state it in the image: guestlens rebase --unsafe IMAGE --backing '{name}' --backing-format raw|qcow2 (--allow-backing DIR does not replace this)"
        )));
    };
    Format::by_name(&String::from_utf8_lossy(stated))
        .map_err(|e| e.within(format!("backing file '{name}'")))
}
