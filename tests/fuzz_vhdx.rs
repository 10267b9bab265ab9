//! Mutated VHDX images: whatever the bytes say, replaying the log, opening, mapping and reading
//! end in an answer or an error, quickly and in little memory.

mod support;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::block::overlay::OverlayBackend;
use guestlens::block::{BlockBackend, BlockDevice};
use guestlens::formats::{Image, ImageInfo, vhdx};
use guestlens::ondisk::uuid::Uuid;
use support::fuzz::{Rng, exercise_device, mutate, peak_memory_kib, run};
use support::vhdx::{
    BAT_AT, Change, HEADERS, LOG_AT, METADATA_AT, MIB, Parent, REGION_TABLES, Vhdx, log_entry, seal,
};

struct Seed {
    device: BlockDevice,
    bytes: Vec<u8>,
    /// Where the structures are, how long what is sealed there is, and how often it is chosen.
    hot: Vec<(Range<usize>, usize)>,
}

fn seeds() -> Vec<Seed> {
    let rng = &mut Rng::new(4);
    let mut seeds = Vec::new();
    for (sector, differencing, logged) in [
        (512, false, false),
        (4096, false, true),
        (512, true, true),
        (4096, true, false),
        (512, true, false),
    ] {
        let mut image = Vhdx::new(3 * MIB, MIB);
        image.sector = sector;
        for _ in 0..20 {
            let n = rng.index(image.size / sector);
            image.sectors.insert(n, rng.next() as u8);
        }
        image.states.insert(2, 2);
        if differencing {
            image.parent = Some(Parent {
                linkage: Uuid::from_u128(0x1111),
                names: vec![("relative_path", r".\base.vhdx".into())],
            });
        }
        let mut hot: Vec<(Range<usize>, usize)> = vec![
            (HEADERS[1]..HEADERS[1] + 80, 4096),
            (REGION_TABLES[0]..REGION_TABLES[0] + 80, 64 << 10),
            (METADATA_AT..METADATA_AT + 224, 0),
            (METADATA_AT + 65536..METADATA_AT + 65536 + 200, 0),
            (BAT_AT..BAT_AT + 32, 0),
        ];
        if differencing {
            let bitmap = BAT_AT + image.chunk_ratio() * 8;
            hot.push((bitmap..bitmap + 8, 0));
        }
        if logged {
            image.log_id = Uuid::from_u128(3);
            let end = image.build().len() as u64;
            let table = image.build()[BAT_AT..BAT_AT + 4096].to_vec();
            for sequence in 5..9 {
                let changes = [
                    Change::Data(BAT_AT as u64, table.clone()),
                    Change::Zero(end - 8192, 4096),
                ];
                let at = image.log.len();
                image
                    .log
                    .extend(log_entry(image.log_id, sequence, 0, end, &changes));
                let len = image.log.len() - at;
                hot.push((LOG_AT + at..LOG_AT + at + 128, len));
            }
        }
        let bytes = image.build();
        let device = MemoryBackend::from_bytes(bytes.clone()).into_device();
        seeds.push(Seed { device, bytes, hot });
    }
    seeds
}

fn info() -> ImageInfo {
    ImageInfo {
        filename: PathBuf::from("fuzzed"),
        format: "vhdx",
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

struct Below(ImageInfo, BlockDevice);

impl Image for Below {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn device(&self) -> BlockDevice {
        self.1.clone()
    }
}

/// A mutated image over its seed, which is too large to be copied each time.
fn mutated(seed: &Seed, rng: &mut Rng) -> BlockDevice {
    let overlay = OverlayBackend::new(seed.device.clone(), 4096, 16 << 20).unwrap();
    for _ in 0..=rng.index(3) {
        let (range, sealed) = seed.hot[rng.index(seed.hot.len())].clone();
        let len = sealed.max(range.len());
        let mut part = vec![0; len];
        overlay
            .read_exact_at(range.start as u64, &mut part)
            .unwrap();
        mutate(rng, &mut part, 0..range.len());
        if sealed > 0 && !rng.one_in(8) {
            seal(&mut part);
        }
        overlay.write_all_at(range.start as u64, &part).unwrap();
    }
    let device = BlockDevice::new(Arc::new(overlay)).into_read_only();
    if rng.one_in(10) {
        return device.slice(0..rng.below(seed.bytes.len() as u64)).unwrap();
    }
    device
}

#[test]
fn mutated_images_end_in_answers_or_errors() {
    let seeds = seeds();
    let cache = Arc::new(ClusterCache::new(8 << 20));
    let below = MemoryBackend::from_bytes(vec![0x55; 40_000]).into_device();
    let parent: Arc<dyn Image> = Arc::new(Below(info(), below));
    let (opened, read, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let replayed = AtomicU64::new(0);
    let exercise = |device: BlockDevice, rng: &mut Rng| {
        let Ok(layout) = vhdx::read_layout(&device, false) else {
            return;
        };
        replayed.fetch_add(u64::from(layout.replayed > 0), Ordering::Relaxed);
        let below = layout
            .metadata
            .parent
            .is_some()
            .then(|| Arc::clone(&parent));
        let image = vhdx::open_device(layout, below, Arc::clone(&cache), info());
        opened.fetch_add(1, Ordering::Relaxed);
        exercise_device(&image.device(), rng, &read, &failed);
    };
    for seed in &seeds {
        exercise(seed.device.clone(), &mut Rng::new(1));
    }
    assert_eq!(opened.load(Ordering::Relaxed), seeds.len() as u64);
    assert_eq!(replayed.load(Ordering::Relaxed), 2);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    run(50_000, |_, rng| {
        let image = mutated(&seeds[rng.index(seeds.len())], rng);
        exercise(image, rng);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{} opened, {} logs, {} reads, {} failed reads, peak {} KiB",
        count(&opened),
        count(&replayed),
        count(&read),
        count(&failed),
        peak_memory_kib()
    );
    assert!(count(&opened) > 10_000);
    assert!(count(&replayed) > 2_000);
    assert!(count(&failed) > 2_000);
    assert!(peak_memory_kib() < 256 << 10, "{} KiB", peak_memory_kib());
}
