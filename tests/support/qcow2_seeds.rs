//! Small qcow2 images to mutate, with the places in them that decide something.

use std::ops::Range;
use std::path::Path;

use super::fuzz::{Rng, mutate};
use super::shell;

/// An image, and where in it the structures are that decide something.
pub struct Seed {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Header and extensions.
    pub head: Range<usize>,
    /// Host offsets of 8-byte entries of L1 and L2 tables that are in use, or could be.
    pub entries: Vec<usize>,
    /// Compressed streams and the snapshot table.
    pub streams: Vec<Range<usize>>,
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()))
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Leaves the refcounts out of an image, which reading does not need, by moving the clusters in
/// front of them together, and cuts the last cluster: clusters of 64 KiB would otherwise make the
/// seed slow to copy.
pub fn without_refcounts(bytes: &[u8]) -> Vec<u8> {
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

pub fn analysed(name: &str, bytes: Vec<u8>) -> Seed {
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

/// Makes the seeds with QEMU's tools.
pub fn seeds(dir: &Path) -> Vec<Seed> {
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

/// Values a table entry may hold to do harm, given an image of `len` bytes.
pub fn entry_value(rng: &mut Rng, seed: &Seed, old: u64) -> u64 {
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

/// A seed with a few changes where they count.
pub fn mutated(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
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

/// Most memory this process has had.
pub fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}
