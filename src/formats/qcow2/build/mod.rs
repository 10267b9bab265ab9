//! Making a new qcow2 image, from guest offset 0 to its end.
//!
//! | module | responsibility |
//! |---|---|
//! | [`header`] | the first cluster |
//! | [`tables`] | where clusters go; L1, L2, refcounts |
//!
//! Host clusters are handed out from the beginning of the file to its end and never given back:
//! header, L1 table, then clusters in guest order with the L2 tables and refcount blocks that have
//! become complete in between, at last the refcount table. So memory does not grow with the image,
//! except for the L1 table.
//!
//! Order: clusters and tables, flush, header, flush. Until the header is there the file begins
//! with zeroes.
//!
//! Compressed clusters are packed as QEMU packs them: byte behind byte, across borders of host
//! clusters where those are consecutive, every host cluster that is touched counted once more.

pub mod header;
pub mod tables;

use parking_lot::Mutex;

use self::tables::{Entry, Tables};
use super::header::check_l1;
use super::layout::{Compression, Layout};
use crate::block::{BlockDevice, Result};
use crate::formats::build::{Builder, CHUNK_BYTES, Chunk, Encoder, FindZeroes, Unit, inconsistent};
use crate::formats::compressor::{Compressor, Method};
use crate::formats::error::{FormatError, FormatErrorKind, Result as FormatResult};
use crate::ondisk::bytes::is_zero;
use crate::ondisk::units::{to_u64, to_usize};

/// How much is allocated before anything is written to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables: every cluster has its place, the file is sparse.
    Metadata,
    /// Tables, and space on the host for every cluster.
    Falloc,
    /// Tables, and zeroes written to every cluster.
    Full,
}

/// Encrypts what is written to clusters.
pub trait ClusterCipher: Send + Sync {
    /// Encrypts whole sectors that will be at `host_offset` of the file and are at `guest_offset`
    /// of the disk.
    fn encrypt(&self, host_offset: u64, guest_offset: u64, data: &mut [u8]);
}

/// Encryption of the new image.
pub struct Encryption {
    /// Method as in the header: 1 AES, 2 LUKS.
    pub method: u32,
    /// What is stored in clusters of its own and found by the "full disk encryption header
    /// pointer" (LUKS); may be empty.
    pub header: Vec<u8>,
    /// The cipher.
    pub cipher: Box<dyn ClusterCipher>,
}

/// What the new image is to be like.
pub struct Options {
    /// Size of the disk in bytes; rounded up to whole sectors.
    pub size: u64,
    /// Log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Log2 of the refcount width in bits, 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// How compressed clusters are compressed, also those written later.
    pub compression: Compression,
    /// Compress at this level what is written now.
    pub compress: Option<i32>,
    /// Extended L2 entries.
    pub subclusters: bool,
    /// Name and format of the backing file.
    pub backing: Option<(Vec<u8>, Vec<u8>)>,
    /// What is allocated although it is zero.
    pub preallocation: Preallocation,
    /// Encryption.
    pub encryption: Option<Encryption>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: 0,
            cluster_bits: 16,
            version: 3,
            refcount_order: 4,
            compression: Compression::Deflate,
            compress: None,
            subclusters: false,
            backing: None,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }
}

impl Options {
    /// How tables will be laid out.
    pub fn layout(&self) -> Layout {
        Layout {
            cluster_bits: self.cluster_bits,
            subclusters: self.subclusters,
            version: self.version,
            external_data: false,
            compression: self.compression,
        }
    }

    fn check(&self) -> FormatResult<()> {
        let wrong = |what: String| Err(FormatError::new(FormatErrorKind::Unsupported, what));
        if !(9..=21).contains(&self.cluster_bits) {
            return wrong("the cluster size must be a power of two from 512 to 2M".into());
        }
        if self.subclusters && self.cluster_bits < 14 {
            return wrong("extended L2 entries need clusters of at least 16K".into());
        }
        if self.refcount_order > 6 {
            return wrong("the refcount width must be a power of two from 1 to 64 bits".into());
        }
        let newer = [
            (self.subclusters, "extended L2 entries"),
            (self.refcount_order != 4, "refcounts of other than 16 bits"),
            (self.compression != Compression::Deflate, "zstd"),
        ];
        for (wanted, what) in newer {
            if wanted && self.version < 3 {
                return wrong(format!("version 2 (compat 0.10) has no {what}"));
            }
        }
        if self.backing.is_some() && self.preallocation != Preallocation::Off {
            return wrong("what is preallocated would hide the backing file".into());
        }
        if self.encryption.is_some() {
            if self.compress.is_some() {
                return wrong("clusters of an encrypted image cannot be compressed".into());
            }
            if self.preallocation != Preallocation::Off {
                return wrong("clusters of an encrypted image cannot be preallocated".into());
            }
        }
        let layout = self.layout();
        let entries = layout.l1_entries_for(self.size);
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        // Position and file length only have to make sense here.
        check_l1(&layout, self.size, layout.cluster_size(), entries, u64::MAX).map_err(|_| {
            FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "a disk of {} bytes is too large for clusters of {} bytes",
                    self.size,
                    layout.cluster_size()
                ),
            )
            .with_hint("choose a larger cluster size (2M at most)")
        })
    }
}

/// A qcow2 image being made.
pub struct Qcow2Builder {
    file: BlockDevice,
    options: Options,
    unit: usize,
    tables: Mutex<Tables>,
}

impl Qcow2Builder {
    /// An image in `file`, which is an empty file or a block device.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] for options that do not go together, or what the device
    /// reports.
    pub fn new(file: BlockDevice, mut options: Options) -> FormatResult<Self> {
        options.size = options
            .size
            .checked_next_multiple_of(512)
            .unwrap_or(u64::MAX);
        options.check()?;
        // What does not fit into the header is found before anything is copied.
        header::encode(&options, &header::Places::default())?;
        let mut tables = Tables::new(&file, &options)?;
        if let Some(encryption) = &options.encryption {
            tables.store_encryption_header(&file, &encryption.header)?;
        }
        Ok(Self {
            unit: to_usize(options.layout().cluster_size()).unwrap_or(CHUNK_BYTES),
            tables: Mutex::new(tables),
            file,
            options,
        })
    }

    /// What `unit` needs: an entry for clusters that read as zero.
    fn zero_entry(&self) -> Entry {
        if self.options.preallocation != Preallocation::Off {
            Entry::Reserved
        } else if self.options.backing.is_none() {
            Entry::Nothing
        } else if self.options.version < 3 {
            Entry::Reserved
        } else {
            Entry::Zero
        }
    }
}

/// Fills space that was handed out without being written.
fn reserve(file: &BlockDevice, how: Preallocation, at: u64, len: u64, fresh: bool) -> Result<()> {
    match how {
        Preallocation::Falloc => file.write_zeroes(at, len, false),
        Preallocation::Full => {
            let zeroes = vec![0; CHUNK_BYTES];
            let mut done = 0;
            while done < len {
                let piece = to_usize(len.saturating_sub(done)).unwrap_or(usize::MAX);
                let piece = zeroes.get(..piece).unwrap_or(&zeroes);
                file.write_all_at(at.saturating_add(done), piece)?;
                done = done.saturating_add(to_u64(piece.len()));
            }
            Ok(())
        }
        Preallocation::Off | Preallocation::Metadata if fresh => Ok(()),
        Preallocation::Off | Preallocation::Metadata => file.write_zeroes(at, len, true),
    }
}

/// Finds zeroes, compresses the rest.
struct Pack {
    unit: usize,
    compressor: Compressor,
}

impl Encoder for Pack {
    fn encode(&mut self, chunk: &mut Chunk) -> Result<()> {
        for (state, data) in chunk.units.iter_mut().zip(chunk.data.chunks(self.unit)) {
            if *state != Unit::Data {
                continue;
            }
            if is_zero(data) {
                *state = Unit::Zero;
            } else if let Some(packed) = self.compressor.compress(data)? {
                let start = chunk.packed.len();
                chunk.packed.extend_from_slice(packed);
                *state = Unit::Packed(start..chunk.packed.len());
            }
        }
        Ok(())
    }
}

/// Bits of the subclusters of a cluster: those with data low, those of zeroes high.
fn subcluster_bits(cluster: &[u8]) -> u64 {
    let size = cluster.len().div_ceil(32).max(1);
    let mut bits = 0_u64;
    for (index, part) in (0_u32..32).zip(cluster.chunks(size)) {
        let shift = if is_zero(part) {
            index.saturating_add(32)
        } else {
            index
        };
        bits |= 1_u64.wrapping_shl(shift);
    }
    bits
}

impl Builder for Qcow2Builder {
    fn unit(&self) -> usize {
        self.unit
    }

    fn encoder(&self) -> Result<Box<dyn Encoder>> {
        let unit = self.unit;
        let Some(level) = self.options.compress else {
            return Ok(Box::new(FindZeroes { unit }));
        };
        let method = match self.options.compression {
            Compression::Deflate => Method::Deflate,
            Compression::Zstd => Method::Zstd,
        };
        // Where it saves nothing, QEMU stores a cluster as it is.
        let compressor = Compressor::new(method, level, unit.saturating_sub(1))?;
        Ok(Box::new(Pack { unit, compressor }))
    }

    fn place(&self, chunk: &mut Chunk) -> Result<()> {
        let mut tables = self.tables.lock();
        let units = std::mem::take(&mut chunk.units);
        let mut at = chunk.at;
        let mut from = 0_usize;
        for unit in &units {
            let to = from.saturating_add(self.unit);
            match unit {
                Unit::Below => {}
                Unit::Zero => {
                    let entry = self.zero_entry();
                    if let Some(host) = tables.set(&self.file, at, entry)? {
                        self.fill(host, &tables)?;
                    }
                }
                Unit::Data => {
                    let bits = if self.options.subclusters {
                        let cluster = chunk.data.get(from..to).ok_or_else(inconsistent)?;
                        subcluster_bits(cluster)
                    } else {
                        0
                    };
                    let entry = Entry::Data { bits };
                    let host = tables.set(&self.file, at, entry)?;
                    chunk.add_write(host.ok_or_else(inconsistent)?, from..to, false);
                }
                Unit::Packed(range) => {
                    let entry = Entry::Packed {
                        len: to_u64(range.len()),
                    };
                    let host = tables.set(&self.file, at, entry)?;
                    chunk.add_write(host.ok_or_else(inconsistent)?, range.clone(), true);
                }
            }
            from = to;
            at = at.saturating_add(to_u64(self.unit));
        }
        chunk.units = units;
        Ok(())
    }

    fn write(&self, chunk: &mut Chunk) -> Result<()> {
        if let Some(encryption) = &self.options.encryption {
            for write in &chunk.writes {
                let guest = chunk.at.saturating_add(to_u64(write.range.start));
                let data = chunk.data.get_mut(write.range.clone());
                let data = data.ok_or_else(inconsistent)?;
                encryption.cipher.encrypt(write.host, guest, data);
            }
        }
        chunk.write_to(&self.file)
    }

    fn zeroes(&self, at: u64, len: u64) -> Result<()> {
        let entry = self.zero_entry();
        if entry == Entry::Nothing {
            return Ok(());
        }
        let mut tables = self.tables.lock();
        let end = at.saturating_add(len);
        let mut at = at;
        // Consecutive space is filled in one go.
        let mut run: Option<(u64, u64)> = None;
        let cluster = to_u64(self.unit);
        while at < end {
            if let Some(host) = tables.set(&self.file, at, entry)? {
                run = match run {
                    Some((start, len)) if start.saturating_add(len) == host => {
                        Some((start, len.saturating_add(cluster)))
                    }
                    Some((start, len)) => {
                        self.reserve(start, len, &tables)?;
                        Some((host, cluster))
                    }
                    None => Some((host, cluster)),
                };
            }
            at = at.saturating_add(cluster);
        }
        if let Some((start, len)) = run {
            self.reserve(start, len, &tables)?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let places = self.tables.lock().finish(&self.file)?;
        self.file.flush()?;
        let header = header::encode(&self.options, &places).map_err(|_| inconsistent())?;
        self.file.write_all_at(0, &header)?;
        self.file.flush()
    }
}

impl Qcow2Builder {
    fn fill(&self, host: u64, tables: &Tables) -> Result<()> {
        self.reserve(host, to_u64(self.unit), tables)
    }

    fn reserve(&self, host: u64, len: u64, tables: &Tables) -> Result<()> {
        let how = self.options.preallocation;
        reserve(&self.file, how, host, len, tables.fresh())
    }
}
