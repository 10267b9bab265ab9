//! Makes VHD images, as the Virtual Hard Disk Image Format Specification 1.0 describes them.

use std::collections::BTreeMap;

/// Further names of a parent, by platform code.
pub type Locators = Vec<(&'static [u8; 4], String)>;

/// An image in blocks.
#[derive(Clone)]
pub struct Vhd {
    pub size: u64,
    pub block_size: u64,
    pub creator: [u8; 4],
    pub geometry: [u8; 4],
    pub id: [u8; 16],
    /// Identity of the parent, its name, and further names.
    pub parent: Option<([u8; 16], String, Locators)>,
    /// Sectors that were written, by number.
    pub sectors: BTreeMap<u64, [u8; 512]>,
    /// Blocks are laid down in falling order.
    pub reversed: bool,
    /// Every bit of every bitmap is set.
    pub full_bitmaps: bool,
}

pub const FIXED: u32 = 2;
pub const DYNAMIC: u32 = 3;
pub const DIFFERENCING: u32 = 4;

impl Vhd {
    pub fn new(size: u64, block_size: u64) -> Self {
        Self {
            size,
            block_size,
            creator: *b"win ",
            geometry: [0, 1, 1, 1],
            id: [7; 16],
            parent: None,
            sectors: BTreeMap::new(),
            reversed: false,
            full_bitmaps: false,
        }
    }

    pub fn footer(&self, kind: u32) -> Vec<u8> {
        let mut f = vec![0; 512];
        f[..8].copy_from_slice(b"conectix");
        f[11] = 2;
        f[13] = 1;
        let at = if kind == FIXED { u64::MAX } else { 512 };
        f[16..24].copy_from_slice(&at.to_be_bytes());
        f[24..28].copy_from_slice(&0x2222_2222_u32.to_be_bytes());
        f[28..32].copy_from_slice(&self.creator);
        f[33] = 1;
        f[36..40].copy_from_slice(b"Wi2k");
        f[40..48].copy_from_slice(&self.size.to_be_bytes());
        f[48..56].copy_from_slice(&self.size.to_be_bytes());
        f[56..60].copy_from_slice(&self.geometry);
        f[60..64].copy_from_slice(&kind.to_be_bytes());
        f[68..84].copy_from_slice(&self.id);
        seal(&mut f, 64);
        f
    }

    pub fn kind(&self) -> u32 {
        if self.parent.is_some() {
            DIFFERENCING
        } else {
            DYNAMIC
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let blocks = self.size.div_ceil(self.block_size);
        let table_at = 1536;
        let footer = self.footer(self.kind());
        let mut out = footer.clone();
        let mut header = vec![0; 1024];
        header[..8].copy_from_slice(b"cxsparse");
        header[8..16].fill(0xff);
        header[16..24].copy_from_slice(&(table_at as u64).to_be_bytes());
        header[24..28].copy_from_slice(&0x10000_u32.to_be_bytes());
        header[28..32].copy_from_slice(&(blocks as u32).to_be_bytes());
        header[32..36].copy_from_slice(&(self.block_size as u32).to_be_bytes());
        out.resize(table_at, 0);
        out.resize(table_at + (blocks as usize * 4).next_multiple_of(512), 0xff);
        if let Some((id, name, locators)) = &self.parent {
            header[40..56].copy_from_slice(id);
            for (n, unit) in name.encode_utf16().enumerate().take(255) {
                header[64 + n * 2..][..2].copy_from_slice(&unit.to_be_bytes());
            }
            for (n, (platform, path)) in locators.iter().enumerate() {
                let bytes: Vec<u8> = match &platform[..2] {
                    b"W2" => path.encode_utf16().flat_map(u16::to_le_bytes).collect(),
                    _ => path.clone().into_bytes(),
                };
                let at = 576 + n * 24;
                header[at..at + 4].copy_from_slice(*platform);
                header[at + 4..at + 8].copy_from_slice(&512_u32.to_be_bytes());
                header[at + 8..at + 12].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
                header[at + 16..at + 24].copy_from_slice(&(out.len() as u64).to_be_bytes());
                out.extend(&bytes);
                out.resize(out.len().next_multiple_of(512), 0);
            }
        }
        seal(&mut header, 36);
        out[512..1536].copy_from_slice(&header);
        let per_block = self.block_size / 512;
        let mut used: Vec<u64> = self.sectors.keys().map(|s| s / per_block).collect();
        used.dedup();
        if self.reversed {
            used.reverse();
        }
        let bitmap_len = (per_block as usize).div_ceil(8).next_multiple_of(512);
        for block in used {
            let at = out.len();
            let entry = table_at + block as usize * 4;
            out[entry..entry + 4].copy_from_slice(&((at / 512) as u32).to_be_bytes());
            out.resize(at + bitmap_len + self.block_size as usize, 0);
            let first = block * per_block;
            for (sector, data) in self.sectors.range(first..first + per_block) {
                let n = (sector - first) as usize;
                out[at + n / 8] |= 0x80 >> (n % 8);
                out[at + bitmap_len + n * 512..][..512].copy_from_slice(data);
            }
            if self.full_bitmaps {
                out[at..at + bitmap_len].fill(0xff);
            }
        }
        out.extend(&footer);
        out
    }

    /// What the disk reads as, over `below`.
    pub fn model(&self, below: &[u8]) -> Vec<u8> {
        let mut model = below.to_vec();
        model.resize(self.size as usize, 0);
        for (sector, data) in &self.sectors {
            model[*sector as usize * 512..][..512].copy_from_slice(data);
        }
        model
    }
}

/// Writes the checksum at `at`.
pub fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes
        .iter()
        .fold(0_u32, |sum, &b| sum.wrapping_add(b.into()));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}
