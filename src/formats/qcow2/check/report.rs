//! What a check found.

use serde::Serialize;

/// Findings that are told one by one; the rest is only counted.
const MAX_PROBLEMS: usize = 200;

/// What a check found, in the field names of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Bytes up to the end of the last cluster in use.
    pub image_end_offset: u64,
    /// Clusters the virtual disk has.
    pub total_clusters: u64,
    /// Of those, how many are stored in the image.
    pub allocated_clusters: u64,
    /// Of those, how many do not follow the one before them in the file.
    pub fragmented_clusters: u64,
    /// Of those, how many are compressed.
    pub compressed_clusters: u64,
    /// Clusters whose refcount is higher than the number of references. Harmless, space is wasted.
    pub leaks: u64,
    /// Contradictions that can cost data.
    pub corruptions: u64,
    /// Parts of the image that could not be checked.
    pub check_errors: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Clusters used for two things at once, which no repair can put right. Also counted in
    /// `corruptions`.
    pub overlaps: u64,
    /// Whether what refers to clusters is not known completely: a table is not where it can be, or
    /// something lies behind the end of the file. Then what looks unused may be in use.
    #[serde(skip)]
    pub references_lost: bool,
    /// Of the `check_errors`, those that are more references than a refcount can count. They may
    /// come from refcount structures that are damaged.
    #[serde(skip)]
    pub overflows: u64,
    /// The findings in words; the first ones, if there are many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Findings that are only counted.
    #[serde(skip_serializing_if = "is_zero")]
    pub problems_left_out: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    /// Whether nothing is wrong, or nothing any more.
    pub fn is_clean(&self) -> bool {
        self.leaks == 0 && self.corruptions == 0 && self.check_errors == 0
    }

    /// Notes `times` corruptions with one text.
    pub fn corrupt(&mut self, times: u64, text: impl FnOnce() -> String) {
        self.corruptions = self.corruptions.saturating_add(times);
        self.tell(text);
    }

    /// Notes a refcount or flag that is wrong, and can be corrected.
    pub fn wrong(&mut self, text: impl FnOnce() -> String) {
        self.corrupt(1, text);
    }

    /// Notes a leaked cluster.
    pub fn leak(&mut self, text: impl FnOnce() -> String) {
        self.leaks = self.leaks.saturating_add(1);
        self.tell(text);
    }

    /// Notes something that could not be checked.
    pub fn error(&mut self, text: impl FnOnce() -> String) {
        self.check_errors = self.check_errors.saturating_add(1);
        self.tell(text);
    }

    /// Adds a text that comes before all others: what was not done, and why.
    pub fn note(&mut self, text: &str) {
        self.problems.insert(0, text.into());
    }

    /// Adds a text without counting anything.
    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text());
        } else {
            self.problems_left_out = self.problems_left_out.saturating_add(1);
        }
    }
}
