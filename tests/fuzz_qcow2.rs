//! Mutated qcow2 images: whatever the bytes say, opening, listing snapshots, mapping and reading
//! end in an answer or an error, quickly and in little memory.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::BlockDevice;
use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::formats::{Image, ImageInfo, qcow2};
use support::fuzz::{Rng, run};
use support::qcow2_seeds::{mutated, peak_memory_kib, seeds};
use support::workdir;

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
