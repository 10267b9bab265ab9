//! Mutated qcow2 images that are opened for writing and written to: whatever the bytes say, that
//! ends in success or an error, quickly, in little memory and little space; what the guest writes
//! never lands on the image's own structures; and an image that was sound is sound afterwards.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::block::{BlockBackend, BlockDevice, Geometry, Result};
use guestlens::formats::{OpenOptions, open_device_among, qcow2};
use support::fuzz::{Rng, run};
use support::qcow2_seeds::{
    OFFSET, Seed, be32, be64, entry_value, mutated, peak_memory_kib, seeds,
};
use support::workdir;

/// What the guest writes; nothing else in the seeds looks like it.
const MARK: [u8; 8] = *b"\xA7guest\x7A\xA7";
/// Most a file may grow to, in bytes: the seeds describe disks of 128 KiB, and mutations can move
/// the end of what is allocated a little.
const MAX_FILE: u64 = 4 << 20;

/// A file that knows where guest data must not go.
struct Guarded {
    below: BlockDevice,
    /// Clusters with structures.
    structures: BTreeMap<u64, &'static str>,
    cluster_bits: u32,
}

impl Guarded {
    fn structure(&self, cluster: u64) -> Option<&'static str> {
        let len = self.below.len() as usize;
        let present = self.below.read_vec(0, len).unwrap();
        structures(&present).get(&cluster).copied()
    }
}

impl BlockBackend for Guarded {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.below.len(),
            block_size: 512,
            read_only: false,
        }
    }

    fn current_len(&self) -> u64 {
        self.below.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_exact_at(offset, buf)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        for (number, piece) in buf.chunks(MARK.len()).enumerate() {
            if piece == MARK {
                let at = offset + (number * MARK.len()) as u64;
                let cluster = at >> self.cluster_bits;
                // What was a structure can have been replaced since, and be used again.
                if self.structures.contains_key(&cluster)
                    && let Some(what) = self.structure(cluster)
                {
                    panic!("guest data at {at}, in {what}");
                }
            }
        }
        let end = offset + buf.len() as u64;
        assert!(end <= MAX_FILE, "a write that ends at {end}");
        self.below.write_all_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        assert!(offset + len <= MAX_FILE.max(self.below.len()));
        self.below.write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let inside = len.min(self.below.len().saturating_sub(offset));
        self.below.discard(offset, inside)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        assert!(len <= MAX_FILE, "{len} bytes");
        self.below.set_len(len)
    }
}

/// A data file, which is as long as the disk at most.
struct Bounded(BlockDevice);

impl BlockBackend for Bounded {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.0.len(),
            block_size: 512,
            read_only: false,
        }
    }

    fn current_len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(offset, buf)
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        assert!(
            end <= MAX_FILE,
            "a write to the data file that ends at {end}"
        );
        self.0.write_all_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let end = offset.saturating_add(len);
        assert!(
            end <= MAX_FILE,
            "zeroing of the data file that ends at {end}"
        );
        self.0.write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let inside = len.min(self.0.len().saturating_sub(offset));
        self.0.discard(offset, inside)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        assert!(len <= MAX_FILE, "{len} bytes of data file");
        self.0.set_len(len)
    }
}

/// Clusters that hold what the header leads to: itself, the active L1 table, the refcount table and
/// its blocks, and the L2 tables. Only those that lie in the file.
fn structures(bytes: &[u8]) -> BTreeMap<u64, &'static str> {
    let bits = be32(bytes, 20);
    let cluster = 1_u64 << bits;
    let inside = |at: u64| at < bytes.len() as u64;
    let mut found = BTreeMap::from([(0, "the header")]);
    let mut add = |at: u64, len: u64, what| {
        let mut at = at;
        let end = at.saturating_add(len).min(bytes.len() as u64);
        while at < end {
            found.insert(at >> bits, what);
            at += cluster;
        }
    };
    let (l1, l1_len) = (be64(bytes, 40), u64::from(be32(bytes, 36)) * 8);
    let (table, table_len) = (be64(bytes, 48), u64::from(be32(bytes, 56)) << bits);
    add(l1, l1_len, "the L1 table");
    add(table, table_len, "the refcount table");
    for (table, len, what) in [
        (l1, l1_len, "an L2 table"),
        (table, table_len, "a refcount block"),
    ] {
        let mut at = table;
        while at < table.saturating_add(len) && inside(at) {
            // An entry of the refcount table is an offset up to its highest bit.
            let mask = if table == l1 { OFFSET } else { !511 };
            let entry = be64(bytes, at as usize) & mask;
            if entry != 0 && entry.is_multiple_of(cluster) {
                add(entry, cluster, what);
            }
            at += 8;
        }
    }
    found
}

/// Also changes what only a writer looks at.
fn mutated_for_writing(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = if rng.one_in(4) {
        seed.bytes.clone()
    } else {
        mutated(seed, rng)
    };
    if bytes.len() < 104 {
        return bytes;
    }
    let table = be64(&bytes, 48) as usize;
    let block = be64(&bytes, table.min(bytes.len())) as usize;
    for _ in 0..rng.below(3) {
        let bits = be32(&bytes, 20).min(21);
        let at = match rng.below(3) {
            0 => table.saturating_add(rng.index(8) * 8),
            1 => block.saturating_add(rng.index(1 << bits)),
            _ => block.saturating_add(rng.index(64)),
        };
        if at.saturating_add(8) > bytes.len() {
            continue;
        }
        if rng.one_in(2) {
            let value = entry_value(rng, seed, be64(&bytes, at));
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        } else {
            bytes[at] = [0, 1, 2, 0xff, rng.next() as u8][rng.index(5)];
        }
    }
    bytes
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    written: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
    sound: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Whether our check finds nothing wrong that matters.
fn is_sound(device: &BlockDevice) -> bool {
    let Ok(header) = qcow2::read_header(device) else {
        return false;
    };
    qcow2::check::check(device, &header)
        .is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0)
}

fn case(bytes: Vec<u8>, rng: &mut Rng, cache: &Arc<ClusterCache>, counts: &Counts) {
    let memory = MemoryBackend::from_bytes(bytes.clone());
    let below = BlockDevice::growable(Arc::new(memory));
    let sound = is_sound(&below);
    let guarded = Guarded {
        below: below.clone(),
        cluster_bits: if bytes.len() < 104 {
            16
        } else {
            be32(&bytes, 20)
        },
        structures: BTreeMap::new(),
    };
    let Ok(header) = qcow2::read_header(&below) else {
        return;
    };
    let guarded = Guarded {
        structures: structures(&bytes),
        ..guarded
    };
    let device = BlockDevice::growable(Arc::new(guarded));
    let other = |len| MemoryBackend::from_bytes(vec![0x55; len]);
    let mut provided = BTreeMap::new();
    // For looking at the result.
    let mut provided_again = BTreeMap::new();
    if let Some(name) = &header.backing_name {
        provided.insert(name.clone(), other(100_000).into_device().into_read_only());
    }
    if let Some(name) = &header.data_file {
        let data = Bounded(BlockDevice::growable(Arc::new(other(128 << 10))));
        provided_again.insert(name.clone(), data.0.clone().into_read_only());
        provided.insert(name.clone(), BlockDevice::growable(Arc::new(data)));
    }
    let options = OpenOptions {
        format: Some("qcow2".into()),
        write: true,
        cache: Arc::clone(cache),
        ..OpenOptions::default()
    };
    let Ok(image) = open_device_among(device, Path::new("fuzzed"), provided, &options) else {
        return;
    };
    add(&counts.opened);
    let disk = image.device();
    let size = disk.len().min(160 << 10);
    // Also a sound image can have compressed clusters that are nothing.
    let mut model = disk.read_vec(0, size as usize).ok().filter(|_| sound);
    let sound = model.is_some();
    for _ in 0..1 + rng.below(8) {
        let at = rng.below(size.max(1)) / 8 * 8;
        let len = (8 * (1 + rng.below(1200))).min(size.saturating_sub(at)) / 8 * 8;
        let range = at as usize..(at + len) as usize;
        let result = match rng.below(8) {
            0..=3 => {
                let data: Vec<u8> = MARK.into_iter().cycle().take(len as usize).collect();
                if let Some(model) = &mut model {
                    model[range].copy_from_slice(&data);
                }
                disk.write_all_at(at, &data)
            }
            4 => {
                if let Some(model) = &mut model {
                    model[range].fill(0);
                }
                disk.write_zeroes(at, len, rng.one_in(2))
            }
            5 => disk.discard(at, len).and_then(|()| {
                if let Some(model) = &mut model {
                    model[range.clone()].copy_from_slice(&disk.read_vec(at, range.len())?);
                }
                Ok(())
            }),
            _ => disk.flush(),
        };
        match result {
            Ok(()) => add(&counts.written),
            Err(_) => {
                add(&counts.refused);
                assert!(!sound, "a sound image is not written to: {result:?}");
            }
        }
    }
    let closed = image.writer().is_some_and(|w| w.close().is_ok());
    if closed {
        add(&counts.closed);
    }
    assert!(closed || !sound);
    drop((disk, image));
    assert!(below.len() <= MAX_FILE.max(bytes.len() as u64));
    // Whatever it was, it still is an image.
    qcow2::read_header(&below).expect("the header");
    if sound {
        add(&counts.sound);
        assert!(is_sound(&below), "not sound any more");
        if let (Some(model), None) = (model, &header.backing_name) {
            let opened = open_device_among(
                below.into_read_only(),
                Path::new("again"),
                provided_again,
                &OpenOptions {
                    format: Some("qcow2".into()),
                    cache: Arc::clone(cache),
                    ..OpenOptions::default()
                },
            )
            .unwrap();
            assert!(opened.device().read_vec(0, model.len()).unwrap() == model);
        }
    }
}

#[test]
fn writing_to_mutated_images() {
    let dir = workdir();
    let mut seeds = seeds(dir.path());
    // The one without refcounts cannot be written to at all.
    seeds.retain(|seed| seed.name != "large");
    let cache = Arc::new(ClusterCache::new(8 << 20));
    let counts = Counts::default();
    for seed in &seeds {
        let before = counts.sound.load(Ordering::Relaxed);
        case(seed.bytes.clone(), &mut Rng::new(5), &cache, &counts);
        let sound = counts.sound.load(Ordering::Relaxed) - before;
        assert_eq!(sound, 1, "{} as it is", seed.name);
    }
    let started = std::time::Instant::now();
    run(40_000, |_, rng| {
        let seed = &seeds[rng.index(seeds.len())];
        let bytes = mutated_for_writing(seed, rng);
        case(bytes, rng, &cache, &counts);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{:?}, {} opened, {} writes, {} refused, {} closed, {} sound before and after, peak {} KiB",
        started.elapsed(),
        count(&counts.opened),
        count(&counts.written),
        count(&counts.refused),
        count(&counts.closed),
        count(&counts.sound),
        peak_memory_kib()
    );
    assert!(count(&counts.opened) > 20_000);
    assert!(count(&counts.refused) > 2_000);
    assert!(count(&counts.sound) > 5_000);
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}
