//! Proof that nothing read is lost: every byte of every file ends in one of five states.
//!
//! A codec marks the byte range of each statement once it knows what became of it. Ranges are
//! kept as given; [`Ledger::gaps`] finds bytes nobody spoke for. Debug builds assert there are none.

use std::ops::Range;

/// What became of a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It produced a key of the document.
    Mapped,
    /// It restates something the document says anyway.
    Implied,
    /// Comments, blanks, headers.
    Syntax,
    /// One entry of `guest.unmapped`.
    Unmapped,
    /// The native program ignores or refuses it: an entry of `guest.warnings`.
    Rejected,
}

/// A file in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceId(usize);

#[derive(Debug)]
struct Source {
    path: Vec<u8>,
    len: usize,
    spans: Vec<(Range<usize>, State)>,
}

/// The accounts of all files of one reading.
#[derive(Debug, Default)]
pub struct Ledger {
    sources: Vec<Source>,
}

impl Ledger {
    /// Starts the account of a file of `len` bytes.
    pub fn open(&mut self, path: &[u8], len: usize) -> SourceId {
        self.sources.push(Source {
            path: path.to_vec(),
            len,
            spans: Vec::new(),
        });
        SourceId(self.sources.len().saturating_sub(1))
    }

    /// The path of a file.
    pub fn path(&self, source: SourceId) -> &[u8] {
        self.sources
            .get(source.0)
            .map_or(&[], |s| s.path.as_slice())
    }

    /// Says what became of a range. A range may be marked more than once: one statement can be
    /// mapped in part and unmapped for the rest.
    pub fn set(&mut self, source: SourceId, range: Range<usize>, state: State) {
        if let Some(source) = self.sources.get_mut(source.0)
            && !range.is_empty()
        {
            source.spans.push((range, state));
        }
    }

    /// Ranges of bytes without a state, with the file they are in.
    pub fn gaps(&self) -> Vec<(String, Range<usize>)> {
        let mut gaps = Vec::new();
        for source in &self.sources {
            let mut spans: Vec<_> = source.spans.iter().map(|(r, _)| r.clone()).collect();
            spans.sort_by_key(|r| r.start);
            let mut done = 0;
            let whole = source.len..source.len;
            for span in spans.into_iter().chain([whole]) {
                if span.start > done {
                    let path = String::from_utf8_lossy(&source.path).into_owned();
                    gaps.push((path, done..span.start));
                }
                done = done.max(span.end);
            }
        }
        gaps
    }

    /// In debug builds, asserts that every byte has a state.
    pub fn assert_complete(&self) {
        debug_assert!(
            self.gaps().is_empty(),
            "bytes nobody spoke for: {:?}",
            self.gaps()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found() {
        let mut ledger = Ledger::default();
        let a = ledger.open(b"a", 10);
        ledger.open(b"empty", 0);
        ledger.set(a, 6..8, State::Mapped);
        ledger.set(a, 0..3, State::Syntax);
        assert_eq!(
            ledger.gaps(),
            [("a".to_owned(), 3..6), ("a".to_owned(), 8..10)]
        );
        ledger.set(a, 2..7, State::Unmapped);
        ledger.set(a, 8..10, State::Rejected);
        assert!(ledger.gaps().is_empty());
    }
}
