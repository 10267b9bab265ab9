//! Mutated qcow2 images: whatever the bytes say, opening, listing snapshots, mapping and reading
//! end in an answer or an error, quickly and in little memory.

mod support;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::BlockDevice;
use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::formats::{Image, ImageInfo, qcow2};
use support::fuzz::{Rng, mutate, run};
use support::{shell, workdir};

/// An image, and where in it the structures are that decide something.
struct Seed {
    name: String,
    bytes: Vec<u8>,
    /// Header and extensions.
    head: Range<usize>,
    /// Host offsets of 8-byte entries of L1 and L2 tables that are in use, or could be.
    entries: Vec<usize>,
    /// Compressed streams and the snapshot table.
    streams: Vec<Range<usize>>,
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Leaves the refcounts out of an image, which reading does not need, by moving the clusters in
/// front of them together, and cuts the last cluster: clusters of 64 KiB would otherwise make the
/// seed slow to copy.
fn without_refcounts(bytes: &[u8]) -> Vec<u8> {
    let cluster = 1_usize << be32(bytes, 20);
    let l1 = be64(bytes, 40) as usize;
    let l2 = (be64(bytes, l1) & OFFSET) as usize;
    let mut out = bytes[..cluster].to_vec();
    out[40..48].copy_from_slice(&(cluster as u64).to_be_bytes());
    out[48..56].copy_from_slice(&(cluster as u64).to_be_bytes());
    out.extend(&bytes[l1..l1 + cluster]);
    let moved = (out.len() + cluster) as u64;
    out[cluster..cluster + 8].copy_from_slice(&((cluster as u64 * 2) | (1 << 63)).to_be_bytes());
    let mut table = bytes[l2..l2 + cluster].to_vec();
    let mut data = Vec::new();
    for entry in table.chunks_exact_mut(8) {
        let value = u64::from_be_bytes((&*entry).try_into().unwrap());
        let host = (value & OFFSET) as usize;
        if host != 0 && value & 1 << 62 == 0 {
            // All data clusters become the same one, which is cut short.
            data = bytes[host..host + 512].to_vec();
            entry.copy_from_slice(&(moved | 1 << 63).to_be_bytes());
        }
    }
    out.extend(&table);
    out.extend(&data);
    out
}

fn analysed(name: &str, bytes: Vec<u8>) -> Seed {
    assert!(bytes.len() < 200 << 10, "{name} has {} bytes", bytes.len());
    let cluster = 1_usize << be32(&bytes, 20);
    let mut entries = Vec::new();
    let mut streams = Vec::new();
    let mut tables = vec![(be64(&bytes, 40) as usize, be32(&bytes, 36) as usize)];
    let (snapshots, at) = (be32(&bytes, 60), be64(&bytes, 64) as usize);
    if snapshots > 0 {
        streams.push(at..at + 256);
        streams.push(at..at + 64);
        tables.push((be64(&bytes, at) as usize, be32(&bytes, at + 8) as usize));
    }
    for (l1, count) in tables {
        for index in 0..count {
            let at = l1 + index * 8;
            entries.push(at);
            let l2 = (be64(&bytes, at) & OFFSET) as usize;
            if l2 == 0 {
                continue;
            }
            for at in (l2..(l2 + cluster).min(bytes.len())).step_by(8).take(64) {
                let entry = be64(&bytes, at);
                if entry != 0 || entries.len() % 16 == 0 {
                    entries.push(at);
                }
                if entry & 1 << 62 != 0 {
                    let bits = 70 - be32(&bytes, 20);
                    let host = (entry & ((1 << bits) - 1)) as usize;
                    streams.push(host..host + 64);
                }
            }
        }
    }
    let extensions = if bytes[7] == 2 { 72 } else { 104 };
    Seed {
        name: name.into(),
        head: 0..(extensions + 400).min(cluster),
        bytes,
        entries,
        streams,
    }
}

fn seeds(dir: &Path) -> Vec<Seed> {
    shell(
        dir,
        "head -c 96K /dev/zero | tr '\\0' a > content; seq 1 5000 >> content; truncate -s 128K content
         truncate -s 128K base
         create() { n=$1; shift; qemu-img create -q -f qcow2 \"$@\" $n 128K
             qemu-io -f qcow2 -c 'write -P 1 0 3K' -c 'write -P 2 40K 9K' -c 'write -z 60K 8K' $n >/dev/null; }
         packed() { n=$1; shift; qemu-img convert -c -O qcow2 \"$@\" -f raw content $n
             qemu-io -f qcow2 -c 'write -P 3 10K 700' $n >/dev/null; }
         create v2 -o compat=0.10,cluster_size=512
         create v3 -o cluster_size=512
         create v3-4k -o cluster_size=4K
         create lazy -o cluster_size=1K,lazy_refcounts=on
         create extended -o cluster_size=16K,extended_l2=on
         create backed -o cluster_size=512 -b base -F raw
         create backed2 -o compat=0.10,cluster_size=1K -b base -F raw
         create datafile -o cluster_size=4K,data_file=data
         create large -o cluster_size=64K
         packed zlib -o cluster_size=4K
         packed zlib2 -o compat=0.10,cluster_size=512
         packed zstd -o cluster_size=4K,compression_type=zstd
         create snapshots -o cluster_size=512
         for i in one two three; do qemu-img snapshot -c $i snapshots
             qemu-io -f qcow2 -c \"write -P 9 20K 2K\" snapshots >/dev/null; done
         create snapshots2 -o compat=0.10,cluster_size=1K; qemu-img snapshot -c only snapshots2",
    );
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let mut seeds: Vec<Seed> = [
        "v2",
        "v3",
        "v3-4k",
        "lazy",
        "extended",
        "backed",
        "backed2",
        "datafile",
        "zlib",
        "zlib2",
        "zstd",
        "snapshots",
        "snapshots2",
    ]
    .into_iter()
    .map(|name| analysed(name, read(name)))
    .collect();
    seeds.push(analysed("large", without_refcounts(&read("large"))));
    seeds
}

fn info() -> ImageInfo {
    ImageInfo {
        filename: PathBuf::from("fuzzed"),
        format: "qcow2",
        format_detected: false,
        virtual_size: 0,
        actual_size: 0,
        cluster_size: None,
        dirty_flag: false,
        live: false,
        backing_filename: None,
        backing_filename_format: None,
        full_backing_filename: None,
        encrypted: false,
        snapshots: Vec::new(),
        format_specific: serde_json::Value::Null,
        warnings: Vec::new(),
    }
}

/// Stands in for backing and data files.
struct Other(ImageInfo, BlockDevice);

impl Image for Other {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn device(&self) -> BlockDevice {
        self.1.clone()
    }
}

/// What the cases share.
struct Bench {
    cache: Arc<ClusterCache>,
    backing: Arc<dyn Image>,
    data: BlockDevice,
    opened: AtomicU64,
    read: AtomicU64,
    failed: AtomicU64,
    snapshots: AtomicU64,
}

impl Bench {
    fn new() -> Self {
        let other = |len| MemoryBackend::from_bytes(vec![0x55; len]).into_device();
        Self {
            cache: Arc::new(ClusterCache::new(8 << 20)),
            backing: Arc::new(Other(info(), other(100_000))),
            data: other(128 << 10),
            opened: AtomicU64::new(0),
            read: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
        }
    }

    /// Uses everything an image offers, within bounds.
    fn exercise(&self, bytes: Vec<u8>, rng: &mut Rng) {
        let device = MemoryBackend::from_bytes(bytes)
            .into_device()
            .into_read_only();
        let Ok(header) = qcow2::read_header(&device) else {
            return;
        };
        let references = qcow2::References {
            backing: header
                .backing_name
                .as_ref()
                .map(|_| Arc::clone(&self.backing)),
            data_file: header.data_file.as_ref().map(|_| self.data.clone()),
            encryption: None,
        };
        let cache = Arc::clone(&self.cache);
        let Ok(image) = qcow2::open_device(device, &header, references, cache, info()) else {
            return;
        };
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.device(&image.device(), rng);
        let count = image.info().snapshots.len();
        for index in 0..count.min(3) {
            if let Ok(snapshot) = image.open_snapshot(index) {
                self.snapshots.fetch_add(1, Ordering::Relaxed);
                self.device(&snapshot, rng);
            }
        }
        assert!(image.open_snapshot(count).is_err());
    }

    fn device(&self, device: &BlockDevice, rng: &mut Rng) {
        let mut buf = [0; 6000];
        let mut at = 0;
        for _ in 0..32 {
            if at >= device.len() {
                break;
            }
            let Ok(extent) = device.extent_at(at, device.len() - at) else {
                break;
            };
            assert!(extent.len > 0 && extent.len <= device.len() - at);
            at += extent.len;
        }
        let len = device.len().max(1);
        for at in [0, 10_000, rng.below(131_072), rng.below(len), len - 1] {
            let counter = match device.read_some_at(at, &mut buf) {
                Ok(_) => &self.read,
                Err(_) => &self.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        device.prefetch(rng.below(len), u64::MAX);
    }
}

/// Values a table entry may hold to do harm, given an image of `len` bytes.
fn entry_value(rng: &mut Rng, seed: &Seed, old: u64) -> u64 {
    let cluster = 1_u64 << be32(&seed.bytes, 20);
    let clusters = (seed.bytes.len() as u64).div_ceil(cluster);
    let table = seed.entries[rng.index(seed.entries.len())] as u64;
    match rng.below(10) {
        // At any cluster of the image, the header and the tables included.
        0 | 1 => (rng.below(clusters + 2) * cluster) | (1 << 63),
        2 => table & !(cluster - 1),
        3 => old ^ 1 << 62,
        4 => old ^ 1,
        // Compressed, anywhere, of any length.
        5 => {
            1 << 62 | rng.below(seed.bytes.len() as u64 + 1000) | rng.next() & 0x3ff0_0000_0000_0000
        }
        6 => old ^ 1 << rng.below(64),
        7 => u64::MAX >> rng.below(10),
        8 => old.wrapping_add(cluster),
        _ => old.wrapping_add(512),
    }
}

fn mutated(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    let mut image = seed.bytes.clone();
    for _ in 0..=rng.index(3) {
        match rng.below(8) {
            0 | 1 => mutate(rng, &mut image, seed.head.clone()),
            2 if !seed.streams.is_empty() => {
                let range = seed.streams[rng.index(seed.streams.len())].clone();
                mutate(rng, &mut image, range);
            }
            3 => {
                let all = 0..image.len();
                mutate(rng, &mut image, all);
            }
            _ => {
                let at = seed.entries[rng.index(seed.entries.len())];
                let value = entry_value(rng, seed, be64(&image, at));
                image[at..at + 8].copy_from_slice(&value.to_be_bytes());
            }
        }
    }
    if rng.one_in(10) {
        image.truncate(rng.index(image.len()));
    }
    image
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn mutated_images_end_in_answers_or_errors() {
    let dir = workdir();
    let seeds = seeds(dir.path());
    let bench = Bench::new();
    for seed in &seeds {
        let (opened, failed) = (
            bench.opened.load(Ordering::Relaxed),
            bench.failed.load(Ordering::Relaxed),
        );
        bench.exercise(seed.bytes.clone(), &mut Rng::new(1));
        assert_eq!(
            bench.opened.load(Ordering::Relaxed),
            opened + 1,
            "{}",
            seed.name
        );
        assert_eq!(
            bench.failed.load(Ordering::Relaxed),
            failed,
            "{}",
            seed.name
        );
    }
    assert_eq!(bench.snapshots.load(Ordering::Relaxed), 4);
    let started = std::time::Instant::now();
    run(200_000, |number, rng| {
        // The seed with large clusters takes one case in sixteen: it costs more to copy.
        let last = seeds.len() - 1;
        let seed = if number % 16 == 0 {
            &seeds[last]
        } else {
            &seeds[rng.index(last)]
        };
        let image = mutated(seed, rng);
        bench.exercise(image, rng);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{:?}, {} opened, {} snapshots, {} reads, {} failed reads, peak {} KiB",
        started.elapsed(),
        count(&bench.opened),
        count(&bench.snapshots),
        count(&bench.read),
        count(&bench.failed),
        peak_memory_kib()
    );
    // The mutations reach behind the header.
    assert!(count(&bench.opened) > 100_000);
    assert!(count(&bench.snapshots) > 20_000);
    assert!(count(&bench.failed) > 20_000);
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}
