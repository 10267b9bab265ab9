//! Mutated VMDK, VDI and compressed images: whatever the bytes say, opening, mapping and reading
//! end in an answer or an error, quickly and in little memory.

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestlens::block::BlockDevice;
use guestlens::block::cache::ClusterCache;
use guestlens::block::memory::MemoryBackend;
use guestlens::formats::{OpenOptions, open_device_among};
use support::fuzz::{Rng, mutate, mutate_text, run};
use support::vmdk::{cowd, descriptor, se_sparse};
use support::{shell, workdir};

struct Seed {
    name: &'static str,
    format: &'static str,
    bytes: Vec<u8>,
    /// Headers, tables, indexes.
    places: Vec<Range<usize>>,
    /// The part that is text.
    text: Range<usize>,
    /// What the image refers to.
    others: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Headers and tables in those.
    other_places: Vec<Range<usize>>,
}

struct Bench {
    cache: Arc<ClusterCache>,
    opened: AtomicU64,
    read: AtomicU64,
    failed: AtomicU64,
}

impl Bench {
    fn new() -> Self {
        Self {
            cache: Arc::new(ClusterCache::new(8 << 20)),
            opened: AtomicU64::new(0),
            read: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Uses everything an image offers, within bounds. With `others`, what the image refers to is
    /// changed as well in half of the cases.
    fn exercise(&self, seed: &Seed, bytes: Vec<u8>, rng: &mut Rng, others: bool) {
        let device = |bytes: Vec<u8>| {
            MemoryBackend::from_bytes(bytes)
                .into_device()
                .into_read_only()
        };
        let options = OpenOptions {
            format: Some(seed.format.into()),
            cache: Arc::clone(&self.cache),
            live: rng.one_in(16),
            ..OpenOptions::default()
        };
        let provided = seed
            .others
            .iter()
            .map(|(name, bytes)| {
                let mut bytes = bytes.clone();
                if others && rng.one_in(2) {
                    change_tables(rng, &mut bytes, &seed.other_places);
                }
                (name.clone(), device(bytes))
            })
            .collect();
        let Ok(image) = open_device_among(device(bytes), Path::new("fuzzed"), provided, &options)
        else {
            return;
        };
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.device(&image.device(), rng);
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

const TOKENS: &[&[u8]] = &[
    b"RW ",
    b"RDONLY ",
    b" FLAT \"flat\" 0\n",
    b" SPARSE \"flat\"\n",
    b"RW 5 ZERO\n",
    b"VMFSSPARSE",
    b"SESPARSE",
    b"18446744073709551615",
    b"36028797018963967",
    b"CID=ffffffff\n",
    b"parentCID=1\n",
    b"parentFileNameHint=\"flat\"\n",
    b"createType=\"vmfs\"\n",
    b"\"",
    b"=",
    b"\0",
    b"\n",
    b"#",
];

fn mutated(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    let mut image = seed.bytes.clone();
    for _ in 0..=rng.index(3) {
        match rng.below(8) {
            0 if !seed.text.is_empty() => {
                let end = seed.text.end.min(image.len());
                let start = seed.text.start.min(end);
                let mut text = image[start..end].to_vec();
                mutate_text(rng, &mut text, TOKENS);
                image.splice(start..end, text);
            }
            1 => {
                let all = 0..image.len();
                mutate(rng, &mut image, all);
            }
            // An entry of a table gets the value of another, or one near the end of the file.
            2 if !image.is_empty() => {
                let range = seed.places[rng.index(seed.places.len())].clone();
                let slot = range.start + rng.index((range.len() / 4).max(1)) * 4;
                let value = if rng.one_in(2) {
                    rng.below(image.len() as u64 / 512 + 3) as u32
                } else {
                    rng.next() as u32
                };
                if slot + 4 <= image.len() {
                    image[slot..slot + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
            _ => {
                let range = seed.places[rng.index(seed.places.len())].clone();
                mutate(rng, &mut image, range);
            }
        }
    }
    if rng.one_in(10) && !image.is_empty() {
        image.truncate(rng.index(image.len()));
    }
    image
}

/// Changes a header or table, or the value of one entry.
fn change_tables(rng: &mut Rng, bytes: &mut [u8], places: &[Range<usize>]) {
    let range = places[rng.index(places.len())].clone();
    let slot = range.start + rng.index((range.len() / 4).max(1)) * 4;
    if rng.one_in(2) && slot + 4 <= bytes.len() {
        let value = rng.below(bytes.len() as u64 / 512 + 3) as u32;
        bytes[slot..slot + 4].copy_from_slice(&value.to_le_bytes());
    } else {
        mutate(rng, bytes, range);
    }
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

/// Runs `cases` mutations of the seeds; at least a tenth must get as far as an open image.
fn fuzz(seeds: &[Seed], cases: u64) {
    let bench = Bench::new();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for seed in seeds {
        let before = (count(&bench.opened), count(&bench.failed));
        bench.exercise(seed, seed.bytes.clone(), &mut Rng::new(1), false);
        let after = (count(&bench.opened), count(&bench.failed));
        assert_eq!(after, (before.0 + 1, before.1), "{}", seed.name);
    }
    let started = std::time::Instant::now();
    run(cases, |_, rng| {
        let seed = &seeds[rng.index(seeds.len())];
        // Often only what the image refers to is changed.
        let image = if !seed.others.is_empty() && rng.one_in(2) {
            seed.bytes.clone()
        } else {
            mutated(seed, rng)
        };
        bench.exercise(seed, image, rng, true);
    });
    eprintln!(
        "{:?}, {} opened, {} reads, {} failed reads, peak {} KiB",
        started.elapsed(),
        count(&bench.opened),
        count(&bench.read),
        count(&bench.failed),
        peak_memory_kib()
    );
    assert!(count(&bench.opened) > cases / 10);
    assert!(count(&bench.failed) > cases / 50);
    assert!(peak_memory_kib() < 512 << 10, "{} KiB", peak_memory_kib());
}

fn seed(dir: &Path, name: &'static str, format: &'static str, others: &[&str]) -> Seed {
    let bytes = std::fs::read(dir.join(name)).unwrap();
    assert!(bytes.len() < 300 << 10, "{name} has {} bytes", bytes.len());
    let others = others
        .iter()
        .map(|other| {
            (
                other.as_bytes().to_vec(),
                std::fs::read(dir.join(other)).unwrap(),
            )
        })
        .collect();
    Seed {
        name,
        format,
        places: std::iter::once(0..bytes.len().min(512)).collect(),
        text: 0..0,
        others,
        other_places: std::iter::once(0..512).collect(),
        bytes,
    }
}

#[test]
fn mutated_vmdk_images() {
    let dir = workdir();
    shell(
        dir.path(),
        "head -c 8K /dev/zero | tr '\\0' a > raw; seq 1 500 >> raw; truncate -s 192K raw
         for s in monolithicSparse streamOptimized twoGbMaxExtentSparse; do
             qemu-img convert -f raw -O vmdk -o subformat=$s,zeroed_grain=on raw $s.vmdk; done
         qemu-io -f vmdk -c 'write -z 64K 64K' monolithicSparse.vmdk > /dev/null
         qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat raw flat.vmdk
         qemu-img create -q -f vmdk -b monolithicSparse.vmdk -F vmdk delta.vmdk
         qemu-io -f vmdk -c 'write -P 3 70K 4K' delta.vmdk > /dev/null",
    );
    let mut seeds = vec![
        seed(dir.path(), "monolithicSparse.vmdk", "vmdk", &[]),
        seed(dir.path(), "streamOptimized.vmdk", "vmdk", &[]),
        seed(dir.path(), "delta.vmdk", "vmdk", &["monolithicSparse.vmdk"]),
        seed(dir.path(), "flat.vmdk", "vmdk", &["flat-flat.vmdk"]),
        seed(
            dir.path(),
            "twoGbMaxExtentSparse.vmdk",
            "vmdk",
            &["twoGbMaxExtentSparse-s001.vmdk"],
        ),
    ];
    // Extents of ESX, with what they are below.
    let content = support::disk::content(64 << 10, 1);
    let sectors = content.len() / 512;
    for (name, kind, line, extent, places) in [
        (
            "cowd",
            "vmfsSparse",
            "VMFSSPARSE",
            cowd(&content, 1),
            vec![0..40, 2048..2052, 2560..2600],
        ),
        (
            "se",
            "seSparse",
            "SESPARSE",
            se_sparse(&content),
            vec![0..208, 512..544, 2048..2056, 4096..4300],
        ),
    ] {
        let text = descriptor(
            kind,
            Some("base"),
            &format!("RW {sectors} {line} \"{name}\"\n"),
        );
        std::fs::write(dir.path().join(name), extent).unwrap();
        let base = descriptor("vmfs", None, &format!("RW {sectors} ZERO\n"));
        std::fs::write(dir.path().join("base"), base).unwrap();
        std::fs::write(dir.path().join("esx.vmdk"), text).unwrap();
        let mut seed = seed(dir.path(), "esx.vmdk", "vmdk", &[name, "base"]);
        seed.other_places = places;
        seeds.push(seed);
    }
    for seed in &mut seeds {
        if seed.bytes.starts_with(b"KDMV") {
            seed.text = 512..1400;
            // Grain directories and tables, the grains' markers, the footer.
            let directories = [48, 56]
                .map(|at| u64::from_le_bytes(seed.bytes[at..at + 8].try_into().unwrap()) as usize);
            for at in directories {
                if at < seed.bytes.len() / 512 {
                    seed.places.push(at * 512..at * 512 + 16);
                    let table =
                        u32::from_le_bytes(seed.bytes[at * 512..at * 512 + 4].try_into().unwrap());
                    let table = table as usize * 512;
                    seed.places.extend([table..table + 16, table..table + 16]);
                    let grain =
                        u32::from_le_bytes(seed.bytes[table..table + 4].try_into().unwrap());
                    let grain = grain as usize * 512;
                    seed.places.push(grain..grain + 64);
                }
            }
            let end = seed.bytes.len();
            seed.places.push(end - 1536..end);
        } else {
            seed.text = 0..seed
                .bytes
                .iter()
                .position(|b| *b == 0)
                .unwrap_or(seed.bytes.len());
        }
    }
    fuzz(&seeds, 200_000);
}

#[test]
fn mutated_vdi_images() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 5M raw; qemu-img convert -f raw -O vdi raw dynamic
         qemu-io -f vdi -c 'write -P 7 1M 60K' dynamic > /dev/null
         truncate -s 80K dynamic",
    );
    let mut dynamic = seed(dir.path(), "dynamic", "vdi", &[]);
    dynamic.places = vec![0x40..0x1c8, 0x150..0x190, 512..532];
    let mut fixed = seed(dir.path(), "dynamic", "vdi", &[]);
    fixed.bytes[0x4c] = 2;
    fixed.bytes[512..532].fill(0);
    fixed.places = dynamic.places.clone();
    fuzz(&[dynamic, fixed], 200_000);
}

#[test]
fn mutated_compressed_data() {
    let dir = workdir();
    shell(
        dir.path(),
        "seq 1 4000 > raw; truncate -s 20K raw
         xz -k -c --block-size=5KiB raw > b.xz; xz -k -c -0 --check=sha256 raw > o.xz
         (xz -c raw; head -c 8 /dev/zero; xz -c raw) > s.xz
         gzip -k -c raw > o.gz; (gzip -c raw; gzip -c raw) > m.gz
         zstd -q -c raw > o.zst; (zstd -q -c < raw; zstd -q -c raw) > m.zst",
    );
    let mut seeds: Vec<Seed> = [
        ("b.xz", "xz"),
        ("o.xz", "xz"),
        ("s.xz", "xz"),
        ("o.gz", "gz"),
        ("m.gz", "gz"),
        ("o.zst", "zst"),
        ("m.zst", "zst"),
    ]
    .into_iter()
    .map(|(name, format)| seed(dir.path(), name, format, &[]))
    .collect();
    for seed in &mut seeds {
        let end = seed.bytes.len();
        seed.places = vec![0..40, end - 60..end, 0..end];
    }
    // A changed index is only looked at with the right checksum: mended in some cases.
    let indexed: Vec<Seed> = (0..8)
        .map(|n| {
            let mut seed = seed(dir.path(), "b.xz", "xz", &[]);
            let end = seed.bytes.len();
            let size = u32::from_le_bytes(seed.bytes[end - 8..end - 4].try_into().unwrap());
            let index = end - 12 - (size as usize + 1) * 4;
            // One record's sizes exchanged, another block's size changed.
            if n > 0 {
                seed.bytes[index + 2 + n] ^= 1 << (n % 7);
                let sum = flate2_crc(&seed.bytes[index..end - 16]);
                seed.bytes[end - 16..end - 12].copy_from_slice(&sum.to_le_bytes());
            }
            seed.places = vec![0..40, index..end, 0..end];
            seed
        })
        .collect();
    let bench = Bench::new();
    for seed in &indexed {
        bench.exercise(seed, seed.bytes.clone(), &mut Rng::new(2), false);
    }
    fuzz(&seeds, 100_000);
}

fn flate2_crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
