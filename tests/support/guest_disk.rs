//! A virtual disk whose sectors tell which write they come from, and the history of what was done
//! to it, to say what may be on it after a crash.

use std::ops::Range;

/// Bytes of a sector, the unit that is written whole or not at all.
pub const SECTOR: usize = 512;

/// The content of sector `number` as write `id` left it; write 0 leaves zeroes.
pub fn content(id: u32, number: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    if id != 0 {
        let number = number as u32;
        for (i, word) in sector.chunks_exact_mut(16).enumerate() {
            word[..4].copy_from_slice(&id.to_be_bytes());
            word[4..8].copy_from_slice(&number.to_be_bytes());
            word[8..12].copy_from_slice(&(i as u32).to_be_bytes());
            word[12..].copy_from_slice(&id.wrapping_mul(0x9E37_79B9).to_be_bytes());
        }
    }
    sector
}

/// Sectors `first..` as these writes left them.
pub fn contents(first: usize, ids: &[u32]) -> Vec<u8> {
    let sectors = ids.iter().enumerate();
    sectors
        .flat_map(|(i, &id)| content(id, first + i))
        .collect()
}

/// Which write each sector comes from.
pub fn identify(first: usize, bytes: &[u8]) -> Result<Vec<u32>, String> {
    let sectors = bytes.chunks(SECTOR).enumerate();
    sectors
        .map(|(i, sector)| {
            let id = u32::from_be_bytes([sector[0], sector[1], sector[2], sector[3]]);
            if sector == content(id, first + i) {
                Ok(id)
            } else {
                Err(format!("sector {} is of no write (id {id})", first + i))
            }
        })
        .collect()
}

/// Something that was done to the disk, or to its snapshots.
pub struct Step {
    /// Events of the log before it began, and when it had returned.
    pub log: Range<usize>,
    /// Sectors that changed: the first, and what they became.
    pub change: Option<(usize, Vec<u32>)>,
    /// Everything before is durable once it has returned.
    pub durable: bool,
    /// Sectors of the disk afterwards.
    pub sectors: usize,
}

/// An internal snapshot.
pub struct Kept {
    pub name: String,
    pub ids: Vec<u32>,
    /// Events of the log when it was begun and when it was there.
    pub created: Range<usize>,
    /// The same of its removal.
    pub removed: Option<Range<usize>>,
}

/// All that was done.
pub struct History {
    pub original: Vec<u32>,
    pub steps: Vec<Step>,
    pub kept: Vec<Kept>,
}

impl History {
    pub fn new(original: Vec<u32>) -> Self {
        Self {
            original,
            steps: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// The present content.
    pub fn now(&self) -> Vec<u32> {
        let mut ids = self.original.clone();
        for step in &self.steps {
            replay(step, &mut ids);
        }
        ids
    }

    /// Whether sectors read after a crash before event `at` of the log are what they may be: as the
    /// last durable step left them, or as a later one did that had begun.
    pub fn check(&self, at: usize, read: &[u32]) -> Result<(), String> {
        let durable = |s: &Step| s.durable && s.log.end <= at;
        let past = self.steps.iter().rposition(durable).map_or(0, |i| i + 1);
        let (past, later) = self.steps.split_at(past);
        let mut ids = self.original.clone();
        past.iter().for_each(|step| replay(step, &mut ids));
        let later: Vec<&Step> = later.iter().filter(|s| s.log.start < at).collect();
        let sizes = later.iter().map(|s| s.sectors).chain([ids.len()]);
        if !sizes.into_iter().any(|n| n == read.len()) {
            return Err(format!("{} sectors instead of {}", read.len(), ids.len()));
        }
        for (number, id) in read.iter().enumerate() {
            let expected = ids.get(number).copied().unwrap_or(0);
            let written = |s: &&Step| {
                s.change.as_ref().is_some_and(|(first, ids)| {
                    number.checked_sub(*first).and_then(|i| ids.get(i)) == Some(id)
                })
            };
            if *id != expected && !later.iter().any(written) {
                return Err(format!(
                    "sector {number} is of write {id}, not of {expected} or one under way"
                ));
            }
        }
        Ok(())
    }

    /// Whether the snapshots found after a crash are those that may be there.
    pub fn check_kept(&self, at: usize, found: &[(String, Vec<u32>)]) -> Result<(), String> {
        for (name, ids) in found {
            let Some(kept) = self.kept.iter().find(|k| k.name == *name) else {
                return Err(format!("an unknown snapshot {name}"));
            };
            if *ids != kept.ids {
                let differs = ids.iter().zip(&kept.ids).position(|(a, b)| a != b);
                return Err(format!("snapshot {name} differs at sector {differs:?}"));
            }
        }
        for kept in &self.kept {
            let gone = kept.removed.as_ref().is_some_and(|r| r.start < at);
            if kept.created.end <= at && !gone && !found.iter().any(|(n, _)| *n == kept.name) {
                return Err(format!("no snapshot {}", kept.name));
            }
        }
        Ok(())
    }
}

fn replay(step: &Step, ids: &mut Vec<u32>) {
    ids.resize(step.sectors, 0);
    if let Some((first, changed)) = &step.change {
        ids[*first..first + changed.len()].copy_from_slice(changed);
    }
}
