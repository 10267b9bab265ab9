//! What was checked, with which result.

use serde::Serialize;

/// Messages kept of one check; a hostile file could make any number.
const MAX_MESSAGES: usize = 8;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is wrong.
    Pass,
    /// Worth knowing, not unsafe.
    Note,
    /// Would be unsafe, but was accepted beforehand.
    Allowed,
    /// Unsafe.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Its name, which stays the same from version to version.
    pub check: &'static str,
    /// How it ended.
    pub result: Outcome,
    /// What was found, escaped.
    pub message: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// Whether no check failed.
    pub safe: bool,
    /// The format, as a user would state it to open the file.
    pub format: &'static str,
    /// The format the file was said to be of.
    #[serde(rename = "format-claimed")]
    pub claimed: Option<String>,
    /// Everything the file can be taken for.
    #[serde(rename = "formats-detected")]
    pub detected: Vec<&'static str>,
    /// Size of the virtual disk in bytes, if it can be told.
    pub virtual_size: Option<u64>,
    /// Bytes the file occupies on the host.
    pub actual_size: u64,
    /// The checks, in order.
    pub reasons: Vec<Reason>,
}

/// Collects reasons.
pub struct Report {
    reasons: Vec<Reason>,
    allow: Vec<String>,
}

impl Report {
    /// An empty one; the checks named in `allow` do not make a file unsafe.
    pub fn new(allow: &[String]) -> Self {
        Self {
            reasons: Vec::new(),
            allow: allow.to_vec(),
        }
    }

    /// A check that found nothing.
    pub fn pass(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Pass, message.into());
    }

    /// Something worth knowing.
    pub fn note(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Note, message.into());
    }

    /// A check that found something unsafe.
    pub fn fail(&mut self, check: &'static str, message: impl Into<String>) {
        let allowed = self.allow.iter().any(|a| a == check);
        let result = if allowed {
            Outcome::Allowed
        } else {
            Outcome::Fail
        };
        self.add(check, result, message.into());
    }

    fn add(&mut self, check: &'static str, result: Outcome, message: String) {
        let same = self.reasons.iter().filter(|r| r.check == check).count();
        if same < MAX_MESSAGES {
            self.reasons.push(Reason {
                check,
                result,
                message,
            });
        }
    }

    /// Whether the check failed or was allowed to.
    pub fn has_failed(&self, check: &str) -> bool {
        self.reasons
            .iter()
            .any(|r| r.check == check && matches!(r.result, Outcome::Fail | Outcome::Allowed))
    }

    /// Whether nothing failed.
    pub fn is_safe(&self) -> bool {
        self.reasons.iter().all(|r| r.result != Outcome::Fail)
    }

    /// The reasons.
    pub fn into_reasons(self) -> Vec<Reason> {
        self.reasons
    }
}
