//! qcow2 images as no tool would make them.

/// What is in an image of clusters of 64 KiB.
#[derive(Clone)]
pub struct Qcow2 {
    pub version: u32,
    pub size: u64,
    pub incompatible: u64,
    pub autoclear: u64,
    pub backing: Option<Vec<u8>>,
    pub backing_format: Option<Vec<u8>>,
    pub data_file: Option<Vec<u8>>,
    /// Entries of the one L2 table; those that stay are zero.
    pub l2: Vec<u64>,
    /// Bytes in clusters of their own, from [`TAIL`] on.
    pub tail: Vec<u8>,
    /// Bytes that are written last, by offset.
    pub patches: Vec<(usize, Vec<u8>)>,
}

const CLUSTER: usize = 1 << 16;
pub const REFCOUNT_TABLE: usize = CLUSTER;
pub const L1: usize = 3 * CLUSTER;
pub const L2: usize = 4 * CLUSTER;
pub const TAIL: usize = 5 * CLUSTER;
pub const COPIED: u64 = 1 << 63;

impl Default for Qcow2 {
    fn default() -> Self {
        Self {
            version: 3,
            size: 1 << 20,
            incompatible: 0,
            autoclear: 0,
            backing: None,
            backing_format: None,
            data_file: None,
            l2: Vec::new(),
            tail: Vec::new(),
            patches: Vec::new(),
        }
    }
}

impl Qcow2 {
    pub fn build(&self) -> Vec<u8> {
        let mut i = vec![0; TAIL];
        fn put(image: &mut Vec<u8>, at: usize, value: &[u8]) {
            if image.len() < at + value.len() {
                image.resize(at + value.len(), 0);
            }
            image[at..at + value.len()].copy_from_slice(value);
        }
        let be32 = |v: usize| (v as u32).to_be_bytes();
        let be64 = |v: usize| (v as u64).to_be_bytes();
        put(&mut i, 0, b"QFI\xfb");
        put(&mut i, 4, &self.version.to_be_bytes());
        put(&mut i, 20, &be32(16));
        put(&mut i, 24, &self.size.to_be_bytes());
        let l1_entries = self.size.div_ceil(512 << 20).max(1);
        put(&mut i, 36, &(l1_entries.min(8192) as u32).to_be_bytes());
        put(&mut i, 40, &be64(L1));
        put(&mut i, 48, &be64(REFCOUNT_TABLE));
        put(&mut i, 56, &be32(1));
        let mut at = 72;
        if self.version >= 3 {
            put(&mut i, 72, &self.incompatible.to_be_bytes());
            put(&mut i, 88, &self.autoclear.to_be_bytes());
            put(&mut i, 96, &be32(4));
            put(&mut i, 100, &be32(104));
            at = 104;
        }
        for (kind, content) in [
            (0xe279_2aca_usize, &self.backing_format),
            (0x4441_5441, &self.data_file),
        ] {
            if let Some(content) = content {
                put(&mut i, at, &be32(kind));
                put(&mut i, at + 4, &be32(content.len()));
                put(&mut i, at + 8, content);
                at += 8 + content.len().next_multiple_of(8);
            }
        }
        put(&mut i, at, &[0; 8]);
        at += 8;
        if let Some(name) = &self.backing {
            put(&mut i, 8, &be64(at));
            put(&mut i, 16, &be32(name.len()));
            put(&mut i, at, name);
        }
        put(&mut i, REFCOUNT_TABLE, &be64(2 * CLUSTER));
        let clusters = 5 + self.tail.len().div_ceil(CLUSTER);
        for cluster in 0..clusters.min(CLUSTER / 2) {
            put(&mut i, 2 * CLUSTER + cluster * 2, &[0, 1]);
        }
        put(&mut i, L1, &(L2 as u64 | COPIED).to_be_bytes());
        for (n, entry) in self.l2.iter().enumerate() {
            put(&mut i, L2 + n * 8, &entry.to_be_bytes());
        }
        put(&mut i, TAIL, &self.tail);
        let end = i.len().next_multiple_of(CLUSTER);
        i.resize(end, 0);
        for (at, value) in &self.patches {
            put(&mut i, *at, value);
        }
        i
    }
}
