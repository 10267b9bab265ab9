//! Makes VHDX images, as [MS-VHDX] describes them.

use std::collections::BTreeMap;

use guestlens::ondisk::uuid::Uuid;

pub const MIB: usize = 1 << 20;
/// Where the parts of the images made here are.
pub const LOG_AT: usize = MIB;
pub const METADATA_AT: usize = 2 * MIB;
pub const BAT_AT: usize = 3 * MIB;
pub const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
pub const REGION_TABLES: [usize; 2] = [192 << 10, 256 << 10];
pub const BAT_ID: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
pub const METADATA_ID: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";
pub const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";

pub fn guid(text: &str) -> [u8; 16] {
    Uuid::try_parse(text).unwrap().to_bytes_le()
}

/// A differencing image's way to its parent.
#[derive(Clone)]
pub struct Parent {
    /// Data write identity.
    pub linkage: Uuid,
    /// Names by key.
    pub names: Vec<(&'static str, String)>,
}

#[derive(Clone)]
pub struct Vhdx {
    pub size: usize,
    pub block_size: usize,
    pub sector: usize,
    pub data_write_id: Uuid,
    pub log_id: Uuid,
    pub parent: Option<Parent>,
    /// Sectors that were written, by number.
    pub sectors: BTreeMap<usize, u8>,
    /// Blocks without data that have another state than "not present".
    pub states: BTreeMap<usize, u64>,
    pub log: Vec<u8>,
}

impl Vhdx {
    pub fn new(size: usize, block_size: usize) -> Self {
        Self {
            size,
            block_size,
            sector: 512,
            data_write_id: Uuid::from_u128(0x1111),
            log_id: Uuid::nil(),
            parent: None,
            sectors: BTreeMap::new(),
            states: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    pub fn chunk_ratio(&self) -> usize {
        (self.sector << 23) / self.block_size
    }

    pub fn header(&self, sequence: u64) -> Vec<u8> {
        let mut h = vec![0; 4096];
        h[..4].copy_from_slice(b"head");
        h[8..16].copy_from_slice(&sequence.to_le_bytes());
        h[16..32].fill(0x77);
        h[32..48].copy_from_slice(&self.data_write_id.to_bytes_le());
        h[48..64].copy_from_slice(&self.log_id.to_bytes_le());
        h[66] = 1;
        h[68..72].copy_from_slice(&(MIB as u32).to_le_bytes());
        h[72..80].copy_from_slice(&(LOG_AT as u64).to_le_bytes());
        seal(&mut h);
        h
    }

    fn metadata(&self) -> Vec<u8> {
        let mut m = vec![0; MIB];
        m[..8].copy_from_slice(b"metadata");
        let flags = if self.parent.is_some() { 2_u32 } else { 0 };
        let mut items = vec![
            (
                FILE_PARAMETERS,
                4_u32,
                [(self.block_size as u32).to_le_bytes(), flags.to_le_bytes()].concat(),
            ),
            (
                "2FA54224-CD1B-4876-B211-5DBED83BF4B8",
                6,
                (self.size as u64).to_le_bytes().to_vec(),
            ),
            ("BECA12AB-B2E6-4523-93EF-C309E000C746", 6, vec![0x33; 16]),
            (
                "8141BF1D-A96F-4709-BA47-F233A8FAAB5F",
                6,
                (self.sector as u32).to_le_bytes().to_vec(),
            ),
            (
                "CDA348C7-445D-4471-9CC9-E9885251C556",
                6,
                4096_u32.to_le_bytes().to_vec(),
            ),
        ];
        if let Some(parent) = &self.parent {
            let linkage = format!("{{{}}}", parent.linkage);
            let pairs: Vec<(&str, &str)> = std::iter::once(("parent_linkage", linkage.as_str()))
                .chain(parent.names.iter().map(|(k, v)| (*k, v.as_str())))
                .collect();
            let mut l = vec![0; 20 + pairs.len() * 12];
            l[..16].copy_from_slice(&guid("B04AEFB7-D19E-4A81-B789-25B8E9445913"));
            l[18..20].copy_from_slice(&(pairs.len() as u16).to_le_bytes());
            for (n, (key, value)) in pairs.into_iter().enumerate() {
                for (field, text) in [(0, key), (4, value)] {
                    let at = 20 + n * 12;
                    let from = (l.len() as u32).to_le_bytes();
                    l[at + field..at + field + 4].copy_from_slice(&from);
                    let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                    let at = at + 8 + field / 2;
                    l[at..at + 2].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
                    l.extend(bytes);
                }
            }
            items.push(("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", 4, l));
        }
        m[10..12].copy_from_slice(&(items.len() as u16).to_le_bytes());
        let mut data_at = 64 << 10;
        for (n, (id, flags, data)) in items.into_iter().enumerate() {
            let at = 32 + n * 32;
            m[at..at + 16].copy_from_slice(&guid(id));
            m[at + 16..at + 20].copy_from_slice(&(data_at as u32).to_le_bytes());
            m[at + 20..at + 24].copy_from_slice(&(data.len() as u32).to_le_bytes());
            m[at + 24..at + 28].copy_from_slice(&flags.to_le_bytes());
            m[data_at..data_at + data.len()].copy_from_slice(&data);
            data_at += data.len().next_multiple_of(16);
        }
        m
    }

    /// Index of a block's entry in the table.
    pub fn entry(&self, block: usize) -> usize {
        block + block / self.chunk_ratio()
    }

    pub fn build(&self) -> Vec<u8> {
        let ratio = self.chunk_ratio();
        let blocks = self.size.div_ceil(self.block_size);
        let bat_len = ((blocks.div_ceil(ratio) * (ratio + 1)) * 8).next_multiple_of(MIB);
        let mut out = vec![0; BAT_AT + bat_len];
        out[..8].copy_from_slice(b"vhdxfile");
        out[HEADERS[0]..][..4096].copy_from_slice(&self.header(1));
        out[HEADERS[1]..][..4096].copy_from_slice(&self.header(2));
        let table = region_table(&[
            (BAT_ID, BAT_AT, bat_len, true),
            (METADATA_ID, METADATA_AT, MIB, true),
        ]);
        for at in REGION_TABLES {
            out[at..at + table.len()].copy_from_slice(&table);
        }
        out[LOG_AT..LOG_AT + self.log.len()].copy_from_slice(&self.log);
        out[METADATA_AT..METADATA_AT + MIB].copy_from_slice(&self.metadata());
        let put = |out: &mut Vec<u8>, index: usize, value: u64| {
            out[BAT_AT + index * 8..][..8].copy_from_slice(&value.to_le_bytes());
        };
        for (block, state) in &self.states {
            put(&mut out, self.entry(*block), *state);
        }
        let per_block = self.block_size / self.sector;
        let mut used: Vec<usize> = self.sectors.keys().map(|s| s / per_block).collect();
        used.dedup();
        let mut bitmaps: BTreeMap<usize, usize> = BTreeMap::new();
        for block in used {
            let at = out.len();
            out.resize(at + self.block_size, 0);
            let state = if self.parent.is_some() { 7 } else { 6 };
            put(&mut out, self.entry(block), at as u64 | state);
            let chunk = block / ratio;
            let bitmap = *bitmaps.entry(chunk).or_insert_with(|| {
                let at = out.len();
                out.resize(at + MIB, 0);
                at
            });
            if self.parent.is_some() {
                put(&mut out, (chunk + 1) * ratio + chunk, bitmap as u64 | 6);
            }
            let first = block * per_block;
            for (sector, byte) in self.sectors.range(first..first + per_block) {
                let from = at + (sector - first) * self.sector;
                out[from..from + self.sector].fill(*byte);
                let bit = sector - chunk * ratio * per_block;
                out[bitmap + bit / 8] |= 1 << (bit % 8);
            }
        }
        out
    }

    /// What the disk reads as, over `below`.
    pub fn model(&self, below: &[u8]) -> Vec<u8> {
        let mut model = below.to_vec();
        model.resize(self.size, 0);
        for (block, state) in &self.states {
            if *state != 0 {
                let from = block * self.block_size;
                let to = (from + self.block_size).min(self.size);
                model[from..to].fill(0);
            }
        }
        for (sector, byte) in &self.sectors {
            model[sector * self.sector..][..self.sector].fill(*byte);
        }
        model
    }
}

pub fn region_table(regions: &[(&str, usize, usize, bool)]) -> Vec<u8> {
    let mut t = vec![0; 64 << 10];
    t[..4].copy_from_slice(b"regi");
    t[8..12].copy_from_slice(&(regions.len() as u32).to_le_bytes());
    for (n, (id, at, len, required)) in regions.iter().enumerate() {
        let entry = &mut t[16 + n * 32..][..32];
        entry[..16].copy_from_slice(&guid(id));
        entry[16..24].copy_from_slice(&(*at as u64).to_le_bytes());
        entry[24..28].copy_from_slice(&(*len as u32).to_le_bytes());
        entry[28] = u8::from(*required);
    }
    seal(&mut t);
    t
}

/// Writes the CRC-32C of a structure behind its signature.
pub fn seal(data: &mut [u8]) {
    data[4..8].fill(0);
    let crc = crc32c::crc32c(data);
    data[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A change in a log entry.
#[derive(Clone)]
pub enum Change {
    /// A sector of 4096 bytes.
    Data(u64, Vec<u8>),
    /// Offset and length.
    Zero(u64, u64),
}

/// A log entry.
pub fn log_entry(id: Uuid, sequence: u64, tail: u32, file_len: u64, changes: &[Change]) -> Vec<u8> {
    let mut e = vec![0; (64 + changes.len() * 32).next_multiple_of(4096)];
    for (n, change) in changes.iter().enumerate() {
        let at = 64 + n * 32;
        let offset = match change {
            Change::Zero(offset, len) => {
                e[at..at + 4].copy_from_slice(b"zero");
                e[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
                offset
            }
            Change::Data(offset, sector) => {
                e[at..at + 4].copy_from_slice(b"desc");
                e[at + 4..at + 8].copy_from_slice(&sector[4092..]);
                e[at + 8..at + 16].copy_from_slice(&sector[..8]);
                e.extend(b"data");
                e.extend(((sequence >> 32) as u32).to_le_bytes());
                e.extend(&sector[8..4092]);
                e.extend((sequence as u32).to_le_bytes());
                offset
            }
        };
        e[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
        e[at + 24..at + 32].copy_from_slice(&sequence.to_le_bytes());
    }
    e[..4].copy_from_slice(b"loge");
    let len = e.len() as u32;
    e[8..12].copy_from_slice(&len.to_le_bytes());
    e[12..16].copy_from_slice(&tail.to_le_bytes());
    e[16..24].copy_from_slice(&sequence.to_le_bytes());
    e[24..28].copy_from_slice(&(changes.len() as u32).to_le_bytes());
    e[32..48].copy_from_slice(&id.to_bytes_le());
    e[48..56].copy_from_slice(&file_len.to_le_bytes());
    e[56..64].copy_from_slice(&file_len.to_le_bytes());
    seal(&mut e);
    e
}
