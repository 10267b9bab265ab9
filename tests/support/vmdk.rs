//! VMDK files that qemu-img cannot make, written from the specification.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// An image being written by hand.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if self.0.len() < at + bytes.len() {
            self.0.resize(at + bytes.len(), 0);
        }
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn le32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn le64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn end(&self) -> usize {
        self.0.len().next_multiple_of(512)
    }
}

/// A descriptor with one content id for every image.
pub fn descriptor(kind: &str, parent: Option<&str>, extents: &str) -> String {
    let (cid, hint) = match parent {
        Some(parent) => ("00c0ffee", format!("parentFileNameHint=\"{parent}\"\n")),
        None => ("ffffffff", String::new()),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=00c0ffee\nparentCID={cid}\ncreateType=\"{kind}\"\n{hint}\n\
         # Extent description\n{extents}\n# The Disk Data Base\n#DDB\nddb.adapterType = \"lsilogic\"\n"
    )
}

/// Grains of `grain` bytes of `raw` that are stored: every third is not.
fn stored(raw: &[u8], grain: usize) -> impl Iterator<Item = (usize, &[u8])> {
    raw.chunks(grain)
        .enumerate()
        .filter(|(i, piece)| i % 3 != 1 && piece.iter().any(|b| *b != 0))
}

/// An ESX copy-on-write disk.
pub fn cowd(raw: &[u8], grain_sectors: usize) -> Vec<u8> {
    let grain = grain_sectors * 512;
    let tables = raw.len().div_ceil(grain * 4096);
    let mut out = Bytes::default();
    out.put(0, b"COWD");
    for (at, value) in [(4, 1), (8, 3), (12, raw.len() / 512), (16, grain_sectors)] {
        out.le32(at, value as u32);
    }
    out.le32(20, 4);
    out.le32(24, tables as u32);
    let directory = 2048;
    out.put(directory, &vec![0; (tables * 4).next_multiple_of(512)]);
    for (index, piece) in stored(raw, grain) {
        let slot = directory + index / 4096 * 4;
        let mut table = u32::from_le_bytes(out.0[slot..slot + 4].try_into().unwrap()) as usize;
        if table == 0 {
            table = out.end() / 512;
            out.le32(slot, table as u32);
            out.put(table * 512, &[0; 4096 * 4]);
        }
        let at = out.end();
        out.le32(table * 512 + index % 4096 * 4, (at / 512) as u32);
        out.put(at, piece);
    }
    out.0
}

/// A space-efficient sparse extent.
pub fn se_sparse(raw: &[u8]) -> Vec<u8> {
    let tables = raw.len().div_ceil(4096 * 4096);
    let (directory, tables_at) = (4, 8);
    let grains_at = tables_at + tables * 64;
    let mut out = Bytes::default();
    for (at, value) in [
        (0, 0xcafe_babe),
        (8, 0x2_0000_0001),
        (16, raw.len() as u64 / 512),
        (24, 8),
        (32, 64),
        (80, 1),
        (88, 1),
        (128, directory as u64),
        (136, 1),
        (144, tables_at as u64),
        (152, tables as u64 * 64),
        (192, grains_at as u64),
        (512, 0xcafe_cafe),
    ] {
        out.le64(at, value);
    }
    out.put(grains_at * 512, &[]);
    let mut next = 0_u64;
    for (index, piece) in raw.chunks(4096).enumerate() {
        let table = index / 4096;
        out.le64(
            directory * 512 + table * 8,
            0x1000_0000_0000_0000 | table as u64,
        );
        let slot = (tables_at + table * 64) * 512 + index % 4096 * 8;
        match index % 5 {
            0 => {}
            1 => out.le64(slot, 0x1000_0000_0000_0000 | 77),
            2 => out.le64(slot, 0x2000_0000_0000_0000),
            _ => {
                // A number whose low twelve bits are kept apart from the rest.
                let entry = 0x3000_0000_0000_0000 | (next & 0xfff) << 48 | next >> 12;
                out.le64(slot, entry);
                out.put(grains_at * 512 + next as usize * 4096, piece);
                next += 1;
            }
        }
    }
    out.0
}

/// A hosted sparse disk by hand: grain of 16 sectors, small tables, compressed with or without
/// markers or not at all.
pub fn hosted(raw: &[u8], compressed: Option<bool>, text: &str) -> Vec<u8> {
    let grain = 16 * 512;
    let gtes = 64;
    let tables = raw.len().div_ceil(grain * gtes);
    let mut out = Bytes::default();
    out.put(0, b"KDMV");
    let flags = match compressed {
        None => 3,
        Some(false) => 1 << 16 | 3,
        Some(true) => 3 << 16 | 3,
    };
    out.le32(4, 1);
    out.le32(8, flags);
    for (at, value) in [
        (12, raw.len() / 512),
        (20, 16),
        (28, 1),
        (36, 20),
        (48, 21),
        (56, 23),
        (64, 64),
    ] {
        out.le64(at, value as u64);
    }
    out.le32(44, gtes as u32);
    out.put(73, b"\n \r\n");
    out.put(77, &u16::from(compressed.is_some()).to_le_bytes());
    out.put(512, text.as_bytes());
    // Both directories and both sets of tables in front of the grains.
    out.put(64 * 512 + 2 * tables * 512, &[]);
    for table in 0..tables {
        for (copy, directory) in [21, 23].into_iter().enumerate() {
            let at = 64 + 2 * table + copy;
            out.le32(directory * 512 + table * 4, at as u32);
        }
    }
    for (index, piece) in stored(raw, grain) {
        let at = out.end();
        for copy in 0..2 {
            let table = 64 + 2 * (index / gtes) + copy;
            out.le32(table * 512 + index % gtes * 4, (at / 512) as u32);
        }
        let mut whole = piece.to_vec();
        whole.resize(grain, 0);
        match compressed {
            None => out.put(at, &whole),
            Some(markers) => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(piece).unwrap();
                let data = encoder.finish().unwrap();
                let skip = if markers { 12 } else { 0 };
                if markers {
                    out.le64(at, index as u64 * 16);
                    out.le32(at + 8, data.len() as u32);
                }
                out.put(at + skip, &data);
            }
        }
    }
    // QEMU reads two grains at a time.
    let end = out.end();
    out.put(end + 2 * grain, &[0; 512]);
    out.0
}
