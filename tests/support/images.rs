//! Generated qcow2 images of every kind QEMU makes: pairwise over their properties, with random
//! content, from qemu-img and qemu-io.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{run, shell, tool};

/// A small generator with a fixed seed (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backing {
    None,
    Raw,
    Qcow2,
    Shorter,
    Longer,
    Chain,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compressed {
    No,
    Zlib,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data {
    Inside,
    External,
    ExternalRaw,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prealloc {
    Off,
    Metadata,
    Falloc,
    Full,
}

#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub compressed: Compressed,
    pub zeroes: bool,
    pub backing: Backing,
    pub data: Data,
    pub extended_l2: bool,
    pub snapshots: bool,
    pub lazy: bool,
    pub prealloc: Prealloc,
}

impl Variant {
    /// What QEMU itself refuses is bent into the nearest thing it accepts.
    fn valid(mut self) -> Self {
        if self.version == 2 {
            self.refcount_bits = 16;
            self.lazy = false;
            self.extended_l2 = false;
            self.data = Data::Inside;
            if self.compressed == Compressed::Zstd {
                self.compressed = Compressed::Zlib;
            }
        }
        if self.extended_l2 {
            self.cluster_bits = self.cluster_bits.max(14);
        }
        if self.data != Data::Inside {
            self.compressed = Compressed::No;
            self.snapshots = false;
            self.cluster_bits = self.cluster_bits.max(12);
        }
        if self.data == Data::ExternalRaw {
            self.backing = Backing::None;
        }
        if self.backing != Backing::None || self.compressed != Compressed::No {
            self.prealloc = Prealloc::Off;
        }
        if self.snapshots {
            // Several compressed clusters share one host cluster, and each snapshot counts again.
            let least = if self.compressed == Compressed::No {
                4
            } else {
                16
            };
            self.refcount_bits = self.refcount_bits.max(least);
        }
        self
    }

    /// Whether more snapshots can be made: they count each compressed cluster again, and refcounts
    /// end somewhere.
    pub fn may_keep(&self) -> bool {
        let least = if self.compressed == Compressed::No {
            4
        } else {
            16
        };
        self.data == Data::Inside && self.refcount_bits >= least
    }

    pub fn name(&self) -> String {
        format!(
            "v{}-c{}-r{}-{:?}-z{}-{:?}-{:?}-x{}-s{}-l{}-p{:?}",
            self.version,
            self.cluster_bits,
            self.refcount_bits,
            self.compressed,
            u8::from(self.zeroes),
            self.backing,
            self.data,
            u8::from(self.extended_l2),
            u8::from(self.snapshots),
            u8::from(self.lazy),
            self.prealloc
        )
        .to_lowercase()
    }
}

/// Every pair of values of any two properties, greedily; then filled up to `at_least`.
pub fn pairwise(at_least: usize) -> Vec<Variant> {
    const SIZES: [usize; 11] = [2, 8, 7, 3, 2, 6, 3, 2, 2, 2, 4];
    let build = |v: &[usize; 11]| {
        Variant {
            version: [3, 2][v[0]],
            cluster_bits: [16, 9, 10, 12, 14, 17, 20, 21][v[1]],
            refcount_bits: [16, 1, 2, 4, 8, 32, 64][v[2]],
            compressed: [Compressed::No, Compressed::Zlib, Compressed::Zstd][v[3]],
            zeroes: v[4] == 1,
            backing: [
                Backing::None,
                Backing::Raw,
                Backing::Qcow2,
                Backing::Shorter,
                Backing::Longer,
                Backing::Chain,
            ][v[5]],
            data: [Data::Inside, Data::External, Data::ExternalRaw][v[6]],
            extended_l2: v[7] == 1,
            snapshots: v[8] == 1,
            lazy: v[9] == 1,
            prealloc: [
                Prealloc::Off,
                Prealloc::Metadata,
                Prealloc::Falloc,
                Prealloc::Full,
            ][v[10]],
        }
        .valid()
    };
    let mut missing = std::collections::BTreeSet::new();
    for (a, size_a) in SIZES.into_iter().enumerate() {
        for (b, size_b) in SIZES.into_iter().enumerate().skip(a + 1) {
            for x in 0..size_a {
                for y in 0..size_b {
                    missing.insert((a, x, b, y));
                }
            }
        }
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut names = std::collections::BTreeSet::new();
    let mut variants = Vec::new();
    while !missing.is_empty() || variants.len() < at_least {
        let mut best = ([0; 11], -1_i64);
        for _ in 0..60 {
            let mut v = [0; 11];
            for (value, size) in v.iter_mut().zip(SIZES) {
                *value = random.below(size as u64) as usize;
            }
            if let Some(&(a, x, b, y)) = missing.iter().next() {
                v[a] = x;
                v[b] = y;
            }
            let gain = missing
                .iter()
                .filter(|(a, x, b, y)| v[*a] == *x && v[*b] == *y)
                .count();
            if gain as i64 > best.1 {
                best = (v, gain as i64);
            }
        }
        let v = best.0;
        missing.retain(|(a, x, b, y)| v[*a] != *x || v[*b] != *y);
        let variant = build(&v);
        if names.insert(variant.name()) {
            variants.push(variant);
        }
    }
    variants
}

/// Random writes for qemu-io within `size` bytes; `cluster` and `sub` set interesting borders.
pub fn writes(random: &mut Random, v: &Variant, size: u64, count: usize) -> String {
    let cluster = 1 << v.cluster_bits;
    let mut script = String::new();
    for _ in 0..count {
        let at = random.below(size / 512) * 512;
        let len = (1 + random.below((2 * cluster).min(size / 8) / 512)) * 512;
        let len = len.min(size - at);
        let pattern = 1 + random.below(255);
        let _ = match random.below(8) {
            0 if v.zeroes => writeln!(script, "write -z {at} {len}"),
            1 if v.zeroes => writeln!(script, "write -z -u {at} {len}"),
            2 if v.zeroes => writeln!(script, "discard {at} {len}"),
            _ => writeln!(script, "write -P {pattern} {at} {len}"),
        };
    }
    // Whole clusters of zeroes, so that zero clusters with and without space occur.
    if v.zeroes && size >= 4 * cluster {
        let at = random.below(size / cluster - 1) * cluster;
        let _ = writeln!(script, "write -P 7 {at} {cluster}\nwrite -z {at} {cluster}");
    }
    script
}

pub fn qemu_io(image: &Path, format: &str, script: &str) {
    let mut command = tool("qemu-io");
    // QEMU looks for data files in its working directory.
    command
        .current_dir(image.parent().unwrap())
        .arg("-f")
        .arg(format)
        .arg("-d")
        .arg("unmap");
    for line in script.lines() {
        command.arg("-c").arg(line);
    }
    run(command.arg(image));
}

/// Some patterned, compressible and incompressible content as a raw file.
pub fn raw_content(path: &Path, size: u64, random: &mut Random) {
    let mut bytes = vec![0u8; size as usize];
    let mut at = 0;
    while at < bytes.len() {
        let len = (1 + random.below(200_000) as usize).min(bytes.len() - at);
        let piece = &mut bytes[at..at + len];
        match random.below(4) {
            0 => {}
            1 => piece.fill(random.next() as u8),
            2 => piece
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = (i / 97) as u8),
            _ => piece.iter_mut().for_each(|b| *b = random.next() as u8),
        }
        at += len;
    }
    std::fs::write(path, bytes).unwrap();
    shell(
        path.parent().unwrap(),
        &format!("fallocate --dig-holes '{}'", path.display()),
    );
}

pub const SIZE: u64 = 3 << 20;

pub fn make(dir: &Path, v: &Variant, random: &mut Random) -> PathBuf {
    let image = dir.join("image.qcow2");
    let size = SIZE + random.below(9) * 512;
    let (base_size, base_format) = match v.backing {
        Backing::None => (0, ""),
        Backing::Raw => (size, "raw"),
        Backing::Qcow2 | Backing::Chain => (size, "qcow2"),
        Backing::Shorter => (size / 2 + 1536, "qcow2"),
        Backing::Longer => (size + (1 << 20), "raw"),
    };
    if base_size > 0 {
        let base = dir.join("base");
        if base_format == "raw" {
            raw_content(&base, base_size, random);
        } else {
            run(tool("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&base)
                .arg(base_size.to_string()));
            qemu_io(&base, "qcow2", &writes(random, v, base_size, 12));
        }
    }
    let mut backing = Some("base".to_owned()).filter(|_| base_size > 0);
    let mut backing_format = base_format;
    if v.backing == Backing::Chain {
        // A link in the middle that is smaller than both its neighbours.
        run(tool("qemu-img")
            .current_dir(dir)
            .args([
                "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle",
            ])
            .arg((size - 65536).to_string()));
        qemu_io(
            &dir.join("middle"),
            "qcow2",
            &writes(random, v, size - 65536, 8),
        );
        backing = Some("middle".into());
        backing_format = "qcow2";
    }
    let mut options = format!(
        "compat={},cluster_size={}",
        if v.version == 2 { "0.10" } else { "1.1" },
        1 << v.cluster_bits
    );
    if v.version == 3 {
        let _ = write!(options, ",refcount_bits={}", v.refcount_bits);
        let _ = write!(
            options,
            ",lazy_refcounts={}",
            if v.lazy { "on" } else { "off" }
        );
        let _ = write!(
            options,
            ",extended_l2={}",
            if v.extended_l2 { "on" } else { "off" }
        );
    }
    if v.compressed == Compressed::Zstd {
        options.push_str(",compression_type=zstd");
    }
    let _ = match v.prealloc {
        Prealloc::Off => Ok(()),
        mode => write!(
            options,
            ",preallocation={}",
            format!("{mode:?}").to_lowercase()
        ),
    };
    match v.data {
        Data::Inside => {}
        Data::External => options.push_str(",data_file=data.bin"),
        Data::ExternalRaw => options.push_str(",data_file=data.bin,data_file_raw=on"),
    }
    if v.compressed == Compressed::No {
        let mut command = tool("qemu-img");
        command
            .current_dir(dir)
            .args(["create", "-q", "-f", "qcow2", "-o", &options]);
        if let Some(backing) = &backing {
            command.args(["-b", backing, "-F", backing_format]);
        }
        run(command.arg("image.qcow2").arg(size.to_string()));
    } else {
        raw_content(&dir.join("content"), size, random);
        let mut command = tool("qemu-img");
        command
            .current_dir(dir)
            .args(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options]);
        if let Some(backing) = &backing {
            command.args(["-B", backing, "-F", backing_format]);
        }
        run(command.args(["content", "image.qcow2"]));
        // qemu-img's -B leaves the part beyond a shorter backing file as it should be.
    }
    qemu_io(&image, "qcow2", &writes(random, v, size, 14));
    if v.snapshots {
        for name in ["first", "second one"] {
            run(tool("qemu-img").args(["snapshot", "-c", name]).arg(&image));
            qemu_io(&image, "qcow2", &writes(random, v, size, 6));
        }
    }
    if v.lazy {
        // Killed before it closes the image: refcounts stay dirty.
        let mut command = tool("qemu-io");
        command.current_dir(dir);
        command.args([
            "-f",
            "qcow2",
            "-c",
            "write -P 9 4096 8192",
            "-c",
            "flush",
            "-c",
            "abort",
        ]);
        assert!(!command.arg(&image).output().unwrap().status.success());
    }
    image
}
