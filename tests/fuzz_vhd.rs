//! Mutated VHD images: whatever the bytes say, opening, mapping and reading end in an answer or an
//! error, quickly and in little memory.

mod support;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::BlockDevice;
use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::formats::{Image, ImageInfo, vhd};
use support::fuzz::{Rng, exercise_device, mutate, peak_memory_kib, run};
use support::vhd::{FIXED, Vhd, seal};

struct Seed {
    bytes: Vec<u8>,
    /// Footers, header, table, bitmaps.
    hot: Vec<Range<usize>>,
    fixed: bool,
}

fn seeds() -> Vec<Seed> {
    let rng = &mut Rng::new(9);
    let mut seeds = Vec::new();
    for block_size in [512, 4096, 16384] {
        for differencing in [false, true] {
            let mut image = Vhd::new(64 << 10, block_size);
            if differencing {
                let locators = vec![
                    (b"W2ru", r".\base.vhd".to_owned()),
                    (b"MacX", "file:///base.vhd".to_owned()),
                ];
                image.parent = Some(([7; 16], r"C:\base.vhd".into(), locators));
            }
            for _ in 0..6 {
                image
                    .sectors
                    .insert(rng.below(128), [rng.next() as u8; 512]);
            }
            let bytes = image.build();
            let end = bytes.len() - 512;
            let table = 1536..1536 + (64 << 10) / block_size as usize * 4;
            let mut hot = vec![0..96, 512..620, 1088..1200, table.clone(), end..end + 96];
            if differencing {
                for entry in bytes[table].chunks_exact(4) {
                    let sector = u32::from_be_bytes(entry.try_into().unwrap());
                    if sector != u32::MAX {
                        hot.push(sector as usize * 512..sector as usize * 512 + 4);
                    }
                }
            }
            seeds.push(Seed {
                bytes,
                hot,
                fixed: false,
            });
        }
    }
    let image = Vhd::new(8 << 10, 4096);
    let bytes = [vec![0x11; 8 << 10], image.footer(FIXED)].concat();
    seeds.push(Seed {
        hot: vec![8 << 10..(8 << 10) + 48, (8 << 10) + 48..(8 << 10) + 96],
        bytes,
        fixed: true,
    });
    seeds
}

fn info() -> ImageInfo {
    ImageInfo {
        filename: PathBuf::from("fuzzed"),
        format: "vpc",
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

struct Parent(ImageInfo, BlockDevice);

impl Image for Parent {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn device(&self) -> BlockDevice {
        self.1.clone()
    }
}

fn mutated(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    let mut image = seed.bytes.clone();
    for _ in 0..=rng.index(3) {
        let range = if rng.one_in(6) {
            0..image.len()
        } else {
            seed.hot[rng.index(seed.hot.len())].clone()
        };
        mutate(rng, &mut image, range);
    }
    // Without right checksums nothing behind them would be reached.
    if !rng.one_in(8) {
        let end = image.len() - 512;
        seal(&mut image[end..], 64);
        if !seed.fixed {
            seal(&mut image[..512], 64);
            seal(&mut image[512..1536], 36);
        }
    }
    if rng.one_in(10) {
        image.truncate(rng.index(image.len()));
    }
    image
}

#[test]
fn mutated_images_end_in_answers_or_errors() {
    let seeds = seeds();
    let cache = Arc::new(ClusterCache::new(8 << 20));
    let below = MemoryBackend::from_bytes(vec![0x55; 40_000]).into_device();
    let parent: Arc<dyn Image> = Arc::new(Parent(info(), below));
    let (opened, read, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let exercise = |bytes: Vec<u8>, rng: &mut Rng| {
        let device = MemoryBackend::from_bytes(bytes)
            .into_device()
            .into_read_only();
        let Ok(layout) = vhd::read_layout(&device) else {
            return;
        };
        if let Some(header) = &layout.header {
            let _ = header.parent_paths(&device);
        }
        let below =
            (layout.footer.kind == vhd::footer::Kind::Differencing).then(|| Arc::clone(&parent));
        let image = vhd::open_device(device, layout, below, Arc::clone(&cache), info());
        opened.fetch_add(1, Ordering::Relaxed);
        exercise_device(&image.device(), rng, &read, &failed);
    };
    for seed in &seeds {
        exercise(seed.bytes.clone(), &mut Rng::new(1));
    }
    assert_eq!(opened.load(Ordering::Relaxed), seeds.len() as u64);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    run(100_000, |_, rng| {
        let image = mutated(&seeds[rng.index(seeds.len())], rng);
        exercise(image, rng);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{} opened, {} reads, {} failed reads, peak {} KiB",
        count(&opened),
        count(&read),
        count(&failed),
        peak_memory_kib()
    );
    assert!(count(&opened) > 25_000);
    assert!(count(&failed) > 5_000);
    assert!(peak_memory_kib() < 128 << 10, "{} KiB", peak_memory_kib());
}
