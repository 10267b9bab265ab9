//! Moving content along a backing chain: rebase and commit.
//!
//! Rebasing an image onto another backing file, so that its disk stays what it is:
//!
//! 1. what the old backing file shows and the new one does not, where the image itself holds
//!    nothing, is written into the image. It is what the disk shows anyway, so a crash changes
//!    nothing. Flush;
//! 2. the header names the new backing file ([`super::qcow2::backing`]). This is the moment.
//!
//! Committing an image into its backing file:
//!
//! 1. the backing file is made as long as the disk, if it is shorter;
//! 2. what the image holds is written into the backing file; there, too, the image's own clusters
//!    show it already. Flush and close the backing file: durable and without leaks;
//! 3. the image is emptied, so that all of it shows from the backing file.
//!
//! Committing a chain of images into one further down does steps 1 and 2 for each image above that
//! one, from the lowest up. What the topmost shows stays the same at each moment: what is written
//! of an image is what all above it show already, unless they have their own. The images between
//! become wrong by that. Then the topmost image gets the lowest as its backing file, and step 3.
//!
//! Both lock the image as one that is written to; committing locks the backing file the same way.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::api::{Image, ImageInfo, OpenOptions, backing_format, open_path};
use super::detect::{self, Format};
use super::error::{FormatError, FormatErrorKind, Result};
use super::host_file::{FileId, HostFile, shown};
use super::qcow2::write::state::Granules;
use super::qcow2::{self, References, encryption::Encryption};
use super::reference::{Chain, Link};
use crate::block::lock::LockMode;
use crate::block::{BlockDevice, ExtentKind};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize};

/// Bytes copied at once.
const PIECE: u64 = 1 << 20;

/// A backing file an image is to have.
#[derive(Clone, Debug)]
pub struct NewBacking {
    /// As the image is to name it: relative to the image's directory, or absolute.
    pub name: PathBuf,
    /// Its format.
    pub format: String,
}

/// Told how many bytes of the disk are done, piece by piece.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Names another backing file without looking at contents; that the new one shows the same is the
/// caller's claim. Neither file has to be there.
///
/// # Errors
/// As [`qcow2::backing::set`], or of opening the image.
pub fn rename_backing(path: &Path, new: Option<&NewBacking>, options: &OpenOptions) -> Result<()> {
    let new = new.map(NewBacking::checked).transpose()?;
    let image = Overlay::open(path, options)?;
    qcow2::write::prepare::check_writable(&image.header)?;
    qcow2::backing::set(
        &image.file,
        &image.header,
        new.as_ref().map(Checked::fields),
    )
}

/// Gives an image another backing file, or none, so that its disk stays the same. Returns how many
/// bytes were written into the image for that.
///
/// # Errors
/// Of opening, reading and writing the files.
pub fn rebase(
    path: &Path,
    new: Option<&NewBacking>,
    options: &OpenOptions,
    progress: Progress<'_>,
) -> Result<u64> {
    let reading = OpenOptions {
        write: false,
        ..options.clone()
    };
    let new = new.map(NewBacking::checked).transpose()?;
    let (old, info) = {
        let image = open_path(path, &reading)?;
        (image.backing().cloned(), image.info().clone())
    };
    let new_image = match &new {
        None => None,
        Some(new) => {
            let directory = path.parent().unwrap_or(Path::new(""));
            let place = directory.join(&new.name);
            if id(&place).is_some_and(|there| id(path) == Some(there)) {
                return Err(FormatError::new(
                    FormatErrorKind::NotAllowed,
                    "an image is not its own backing file",
                ));
            }
            let options = OpenOptions {
                format: Some(new.format.name().into()),
                ..reading.clone()
            };
            Some(open_path(&place, &options).map_err(|e| e.within("the new backing file"))?)
        }
    };
    let below = new_image.as_ref().map(|image| image.device());
    let overlay = Overlay::open(path, options)?;
    overlay.check_no_snapshots()?;
    overlay.check_unchanged(&info)?;
    let granule = Granules::of(&overlay.header.layout).size;
    let image = overlay.over(new_image, options, info)?;
    let copied = copy_differences(
        &image.device(),
        granule,
        old.as_ref().map(|image| image.device()).as_ref(),
        below.as_ref(),
        progress,
    )?;
    let writer = image.writer().ok_or_else(not_writable)?;
    image.device().flush()?;
    writer.set_backing(new.as_ref().map(Checked::fields))?;
    writer.close()?;
    Ok(copied)
}

/// Writes what an image holds into its backing file. Unless `keep`, the image is empty afterwards.
/// Returns how many bytes of the disk were written.
///
/// # Errors
/// Of opening, reading and writing the files; an error before the backing file is durable leaves
/// the image as it was.
pub fn commit(
    path: &Path,
    keep: bool,
    options: &OpenOptions,
    progress: Progress<'_>,
) -> Result<u64> {
    commit_into(path, None, keep, options, progress)
}

/// Writes what an image and those below it hold into `base`, one of the chain, or the image's own
/// backing file if none is given. Unless `keep`, the image is empty afterwards, and `base` is its
/// backing file.
///
/// # Errors
/// As [`commit`].
pub fn commit_into(
    path: &Path,
    base: Option<&Path>,
    keep: bool,
    options: &OpenOptions,
    progress: Progress<'_>,
) -> Result<u64> {
    let top = Overlay::open(path, options)?;
    let mut chain = Chain::new(&options.policy, &top.id);
    let wanted = base
        .map(|base| {
            let found = std::fs::metadata(base);
            found
                .map(|m| FileId::of(&m))
                .map_err(|e| FormatError::io(format!("cannot look at {}", shown(base)), e))
        })
        .transpose()?;
    // Images to commit, the topmost last. The chain bounds their number.
    let mut layers: Vec<Overlay> = Vec::new();
    let mut here = top;
    let (base_path, base_id, format, name) = loop {
        here.check_no_snapshots()?;
        let Some(name) = here.header.backing_name.clone() else {
            return Err(match base {
                Some(base) if !layers.is_empty() => FormatError::new(
                    FormatErrorKind::NotAllowed,
                    format!("{} is not in the image's backing chain", shown(base)),
                ),
                _ => FormatError::new(
                    FormatErrorKind::Unsupported,
                    "the image has no backing file to commit into",
                ),
            });
        };
        let format = backing_format(&name, here.header.backing_format.as_deref())?;
        let place = chain.follow(&name, (Link::Backing, "backing file"), &here.path, false)?;
        let (below, id) = (place.path().to_owned(), place.id());
        drop(place);
        if wanted.is_none_or(|wanted| wanted == id) {
            layers.insert(0, here);
            break (below, id, format, name);
        }
        if format != Format::Qcow2 {
            return Err(FormatError::new(
                FormatErrorKind::NotAllowed,
                format!(
                    "{} is not in the image's backing chain",
                    base.map(shown).unwrap_or_default()
                ),
            ));
        }
        let options = OpenOptions {
            format: Some(format.name().into()),
            ..options.clone()
        };
        let next = Overlay::open(&below, &options)?;
        if next.id.id() != id {
            return Err(replaced(&below));
        }
        layers.insert(0, here);
        here = next;
    };
    let several = layers.len() > 1;
    let named = match layers.first() {
        // The name is relative to the directory of the image that has it.
        Some(lowest) if several && directory(&lowest.path) != directory(path) => {
            std::path::absolute(&base_path)
                .map_err(|e| FormatError::io("cannot find the current directory", e))?
        }
        _ => PathBuf::from(std::ffi::OsStr::from_bytes(&name)),
    };
    let writing = OpenOptions {
        format: Some(format.name().into()),
        write: true,
        ..options.clone()
    };
    let open_base = || -> Result<Arc<dyn Image>> {
        let base = open_path(&base_path, &writing)
            .map_err(|e| e.within("the backing file, which is to be written to"))?;
        // It was found by a name in the image; that it is still the same file is checked again.
        if id(&base_path) != Some(base_id) {
            return Err(replaced(&base_path));
        }
        Ok(base)
    };
    let disk_len = layers.iter().map(|l| l.header.size).max().unwrap_or(0);
    let mut images = Vec::with_capacity(layers.len());
    for layer in layers {
        let info = layer.info();
        images.push(layer.over(None, options, info)?);
    }
    let Some((image, between)) = images.split_last() else {
        return Err(not_writable());
    };
    let mut base = open_base()?;
    // 1.
    if base.device().len() < disk_len {
        let writer = base.writer().ok_or_else(not_writable)?;
        writer.resize(disk_len)?;
        writer.close()?;
        drop(base);
        base = open_base()?;
    }
    // 2.
    let mut copied = 0_u64;
    for layer in between {
        let (from, to) = (layer.device(), base.device());
        // A shorter image hides what is below its end.
        if let Some(hidden @ 1..) = to.len().checked_sub(from.len()) {
            to.write_zeroes(from.len(), hidden, true)?;
        }
        copied = copied.saturating_add(copy_stored(&from, &to, progress)?);
    }
    copied = copied.saturating_add(copy_stored(&image.device(), &base.device(), progress)?);
    base.device().flush()?;
    base.writer().ok_or_else(not_writable)?.close()?;
    drop(base);
    // 3.
    if !keep {
        let writer = image.writer().ok_or_else(not_writable)?;
        if several {
            writer.set_backing(Some((
                named.as_os_str().as_bytes(),
                format.name().as_bytes(),
            )))?;
        }
        writer.make_empty()?;
        writer.close()?;
    }
    Ok(copied)
}

/// The directory names in an image are relative to.
fn directory(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    std::fs::canonicalize(absolute.parent()?).ok()
}

fn replaced(path: &Path) -> FormatError {
    FormatError::new(
        FormatErrorKind::Busy,
        format!("{} was replaced while it was opened", shown(path)),
    )
}

fn not_writable() -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        "the image was not opened for writing",
    )
}

fn id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|m| FileId::of(&m))
}

struct Checked {
    name: PathBuf,
    format: Format,
}

impl NewBacking {
    fn checked(&self) -> Result<Checked> {
        Ok(Checked {
            name: self.name.clone(),
            format: Format::by_name(&self.format)?,
        })
    }
}

impl Checked {
    fn fields(&self) -> (&[u8], &[u8]) {
        (
            self.name.as_os_str().as_bytes(),
            self.format.name().as_bytes(),
        )
    }
}

/// A qcow2 image locked for writing, without what lies below it.
struct Overlay {
    file: BlockDevice,
    header: qcow2::header::Header,
    path: PathBuf,
    id: HostFile,
    actual_size: u64,
    warnings: Vec<String>,
}

impl Overlay {
    fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let within = |e: FormatError| e.within(format!("cannot open {}", shown(path)));
        let place = HostFile::open(path, true)?;
        let warnings = place.lock(LockMode::Write, options.force)?;
        // What references are relative to; without a lock of its own.
        let id = HostFile::open(path, false)?;
        let actual_size = place.actual_size();
        let file = place.into_device(true)?;
        let format = match &options.format {
            Some(name) => Format::by_name(name)?,
            None => detect::detect(&file)?,
        };
        if format != Format::Qcow2 {
            return Err(within(FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "images of format {} have no backing file here",
                    format.name()
                ),
            )));
        }
        let header = qcow2::read_header(&file).map_err(within)?;
        Ok(Self {
            file,
            header,
            path: path.to_owned(),
            id,
            actual_size,
            warnings,
        })
    }

    /// Snapshots show the backing file as well, and would show something else afterwards.
    fn check_no_snapshots(&self) -> Result<()> {
        if self.header.snapshot_count == 0 {
            return Ok(());
        }
        Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            format!(
                "{} has internal snapshots, whose content would change with what lies below",
                shown(&self.path)
            ),
        )
        .with_hint("extract and delete them first: guestlens snapshot IMAGE extract|delete ID"))
    }

    /// The image was looked at before it was locked for writing; it must still be what it was.
    fn check_unchanged(&self, seen: &ImageInfo) -> Result<()> {
        let header = &self.header;
        let same = header.size == seen.virtual_size
            && header.backing_name.as_deref().map(printable) == seen.backing_filename
            && header.backing_format.as_deref().map(printable) == seen.backing_filename_format;
        if same {
            return Ok(());
        }
        Err(FormatError::new(
            FormatErrorKind::Busy,
            format!("{} was changed while it was opened", shown(&self.path)),
        ))
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            filename: self.path.clone(),
            format: Format::Qcow2.name(),
            format_detected: false,
            virtual_size: 0,
            actual_size: self.actual_size,
            cluster_size: None,
            dirty_flag: false,
            live: false,
            backing_filename: None,
            backing_filename_format: None,
            full_backing_filename: None,
            encrypted: false,
            snapshots: Vec::new(),
            format_specific: serde_json::Value::Null,
            warnings: self.warnings.clone(),
        }
    }

    /// Opens it for writing over another backing image than it names, or none.
    fn over(
        self,
        backing: Option<Arc<dyn Image>>,
        options: &OpenOptions,
        info: ImageInfo,
    ) -> Result<qcow2::Qcow2Image> {
        if self.header.data_file.is_some() {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                "not done for images with an external data file",
            ));
        }
        let encryption =
            Encryption::open(&self.file, &self.header, &options.keys, &shown(&self.path))?;
        let options = OpenOptions {
            write: true,
            ..options.clone()
        };
        let references = References {
            backing,
            encryption,
            ..References::default()
        };
        qcow2::open_over(self.file, references, &options, info)
    }
}

/// Writes into `image`, which lies on `new`, what it would show on `old` and does not.
///
/// `granule` is what the image holds or does not hold as a whole (a cluster, or a subcluster where
/// it has them). Writing a part of one would fill the rest from `new`, so only whole ones are
/// written, and whether the image holds one is looked at once, before it is.
fn copy_differences(
    image: &BlockDevice,
    granule: u64,
    old: Option<&BlockDevice>,
    new: Option<&BlockDevice>,
    progress: Progress<'_>,
) -> Result<u64> {
    let (mut at, mut copied) = (0_u64, 0_u64);
    let (mut was, mut is) = (Vec::new(), Vec::new());
    let up = |len: u64| len.checked_next_multiple_of(granule).unwrap_or(u64::MAX);
    let most = up(PIECE);
    while at < image.len() {
        let rest = image.len().saturating_sub(at);
        let extent = image.extent_at(at, rest)?;
        let own = extent.depth == 0 && extent.kind != ExtentKind::Hole;
        // What is below can begin and end anywhere; what the image holds cannot. So the granule in
        // which a run of what is below ends is not the image's own either.
        let run = up(extent.len).min(rest);
        let len = if own {
            run
        } else {
            let zero = zero_run(old, at)?.min(zero_run(new, at)?).min(run);
            let zero = if zero < rest {
                zero.saturating_sub(zero.checked_rem(granule).unwrap_or(zero))
            } else {
                rest
            };
            if zero > 0 {
                zero
            } else {
                let len = run.min(most);
                read_below(old, at, len, &mut was)?;
                read_below(new, at, len, &mut is)?;
                copied = copied.saturating_add(write_changes(image, granule, at, &was, &is)?);
                len
            }
        };
        progress(len);
        at = at.saturating_add(len);
    }
    Ok(copied)
}

/// Bytes from `at` on of which it is known that nothing but zeroes shows.
fn zero_run(below: Option<&BlockDevice>, at: u64) -> Result<u64> {
    match below {
        Some(device) if at < device.len() => {
            let rest = device.len().saturating_sub(at);
            let extent = device.extent_at(at, rest)?;
            Ok(match extent.reads_zero() {
                true if extent.len >= rest => u64::MAX,
                true => extent.len,
                false => 0,
            })
        }
        _ => Ok(u64::MAX),
    }
}

fn read_below(below: Option<&BlockDevice>, at: u64, len: u64, into: &mut Vec<u8>) -> Result<()> {
    into.clear();
    into.resize(to_usize(len).unwrap_or(0), 0);
    if let Some(device) = below {
        device.read_some_at(at, into)?;
    }
    Ok(())
}

/// Writes each granule that is not the same in both, as it was. `at` begins one.
fn write_changes(
    image: &BlockDevice,
    granule: u64,
    mut at: u64,
    was: &[u8],
    is: &[u8],
) -> Result<u64> {
    let mut copied = 0_u64;
    let size = to_usize(granule).unwrap_or(usize::MAX).max(1);
    for (old, new) in was.chunks(size).zip(is.chunks(size)) {
        let len = to_u64(old.len());
        if old != new {
            if is_zero(old) {
                image.write_zeroes(at, len, true)?;
            } else {
                image.write_all_at(at, old)?;
            }
            copied = copied.saturating_add(len);
        }
        at = at.saturating_add(len);
    }
    Ok(copied)
}

/// Writes what `image` itself holds to `base`, which is as long.
fn copy_stored(image: &BlockDevice, base: &BlockDevice, progress: Progress<'_>) -> Result<u64> {
    let (mut at, mut copied) = (0_u64, 0_u64);
    let mut buffer = Vec::new();
    while at < image.len() {
        let rest = image.len().saturating_sub(at);
        let extent = image.extent_at(at, rest)?;
        let len = match extent.kind {
            ExtentKind::Hole => extent.len,
            ExtentKind::Zero => {
                base.write_zeroes(at, extent.len, true)?;
                copied = copied.saturating_add(extent.len);
                extent.len
            }
            ExtentKind::Data => {
                let len = extent.len.min(PIECE);
                buffer.resize(to_usize(len).unwrap_or(0), 0);
                image.read_exact_at(at, &mut buffer)?;
                base.write_all_at(at, &buffer)?;
                copied = copied.saturating_add(len);
                len
            }
        };
        progress(len);
        at = at.saturating_add(len);
    }
    Ok(copied)
}
