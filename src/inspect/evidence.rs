//! Reading a guest's files as evidence: bounded, and never fatal.

use std::ops::ControlFlow;

use crate::fs::{FsError, FsErrorKind};
use crate::guest::view::FollowFinal;
use crate::guest::{GuestView, Problem};
use crate::limits;
use crate::ondisk::text::printable;

/// Most names read of one directory.
const MAX_NAMES: usize = 4096;

/// Most problems kept; a tree that is damaged all over says the same each time.
const MAX_PROBLEMS: usize = 64;

/// Longest text taken from a file for one fact, in bytes. Real ones are a line.
pub const MAX_VALUE_BYTES: usize = 4096;

/// A guest's tree, and what was wrong with what was read of it.
pub struct Evidence<'a> {
    view: &'a GuestView,
    problems: Vec<Problem>,
}

impl<'a> Evidence<'a> {
    /// Of one tree.
    pub fn new(view: &'a GuestView) -> Self {
        Self {
            view,
            problems: Vec::new(),
        }
    }

    /// What was wrong.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes what is wrong with a file.
    pub fn problem(&mut self, path: &str, message: impl Into<String>) {
        let problem = Problem::new(path.trim_start_matches('/'), message);
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn failed(&mut self, path: &str, error: &FsError) {
        if !matches!(
            error.kind(),
            FsErrorKind::NotFound | FsErrorKind::NotDirectory
        ) {
            let why = printable(error.to_string().as_bytes());
            self.problem(path, format!("cannot be read: {why}"));
        }
    }

    /// A text file, whole; `None` if there is none or it cannot be read.
    pub fn text(&mut self, path: &str) -> Option<Vec<u8>> {
        match self
            .view
            .read_file(path.as_bytes(), limits::MAX_CONFIG_BYTES)
        {
            Ok(text) => Some(text),
            Err(error) => {
                self.failed(path, &error);
                None
            }
        }
    }

    /// The first `N` bytes of a regular file, zeros behind its end.
    pub fn head<const N: usize>(&mut self, path: &str) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut read = || {
            let node = self.view.resolve(path.as_bytes(), FollowFinal::Yes)?;
            self.view.fs(node)?.read_at(node.ino, 0, &mut bytes)
        };
        match read() {
            Ok(_) => Some(bytes),
            Err(error) => {
                // A directory of that name is no evidence, and nothing is wrong with it.
                if !matches!(
                    error.kind(),
                    FsErrorKind::Invalid | FsErrorKind::IsDirectory
                ) {
                    self.failed(path, &error);
                }
                None
            }
        }
    }

    /// Whether a regular file is there, following links.
    pub fn is_file(&self, path: &str) -> bool {
        self.view.is_file(path.as_bytes())
    }

    /// Whether a directory is there, following links.
    pub fn is_dir(&self, path: &str) -> bool {
        self.view.is_dir(path.as_bytes())
    }

    /// Whether anything is there, a dangling link included.
    pub fn exists(&self, path: &str) -> bool {
        self.view.resolve(path.as_bytes(), FollowFinal::No).is_ok()
    }

    /// The target of a symbolic link; `None` if there is none.
    pub fn link(&self, path: &str) -> Option<Vec<u8>> {
        let node = self.view.resolve(path.as_bytes(), FollowFinal::No).ok()?;
        self.view.read_link(node).ok()
    }

    /// The names in a directory, sorted; empty if there is none.
    pub fn names(&mut self, path: &str) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut all = true;
        let mut walk = || {
            let dir = self.view.resolve(path.as_bytes(), FollowFinal::Yes)?;
            self.view.fs(dir)?.read_dir(dir.ino, 0, &mut |entry| {
                if names.len() >= MAX_NAMES {
                    all = false;
                    return ControlFlow::Break(());
                }
                names.push(entry.name.to_vec());
                ControlFlow::Continue(())
            })
        };
        if let Err(error) = walk() {
            self.failed(path, &error);
        }
        if !all {
            self.problem(
                path,
                format!("holds more than the {MAX_NAMES} names looked at"),
            );
        }
        names.sort();
        names
    }
}

/// Text of a fact: blanks around it dropped, invalid UTF-8 replaced, cut to a sane length; `None`
/// if nothing is left.
pub fn text_value(bytes: &[u8]) -> Option<String> {
    let cut = bytes.get(..MAX_VALUE_BYTES).unwrap_or(bytes);
    let text = String::from_utf8_lossy(cut.trim_ascii()).into_owned();
    (!text.is_empty()).then_some(text)
}

/// The first line that is neither empty nor a `#` comment, without blanks around it.
pub fn first_line(text: &[u8]) -> Option<&[u8]> {
    text.split(|&b| b == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && line.first() != Some(&b'#'))
}
