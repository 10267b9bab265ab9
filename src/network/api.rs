//! How native files reach the codecs, and the entry point.
//!
//! Paths are bytes, relative to the guest's root, without a leading slash. An implementation
//! follows symbolic links inside the guest only.

use std::collections::{BTreeMap, BTreeSet};

use super::codec::{ifcfg, interfaces};
use super::ledger::{Ledger, SourceId, State};
use super::model::{Document, Effect, Unmapped, Warning};
use super::{identity, resolver, select};
use crate::limits;

/// Most files read for one document. Hosts with a thousand VLANs exist; attackers have more.
pub const MAX_FILES: usize = 4096;

/// Most bytes read for one document.
pub const MAX_TOTAL_BYTES: usize = 16 << 20;

/// Deepest nesting of included files.
pub const MAX_INCLUDE_DEPTH: usize = 16;

/// Most entries of one directory that are looked at.
pub const MAX_DIR_ENTRIES: usize = 16_384;

/// Most entries of `guest.unmapped`, `guest.warnings` and `guest.hosts` each.
pub const MAX_ENTRIES: usize = 20_000;

/// What a directory entry is, links not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it is, links not followed.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
}

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// There is none, or a link leads nowhere.
    Missing,
    /// A directory, device, pipe or socket.
    NotRegular,
    /// Larger than [`limits::MAX_CONFIG_BYTES`].
    TooLarge,
    /// The filesystem failed; why.
    Failed(String),
}

/// The files of a guest, as the codecs see them.
pub trait NetworkFiles {
    /// A regular file, whole; links are followed inside the guest. Paths are relative to the
    /// guest's root.
    ///
    /// # Errors
    /// [`ReadFailure`].
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, ReadFailure>;

    /// The names in a directory sorted by bytes, without `.` and `..`; empty if it is none.
    fn list(&self, dir: &[u8]) -> Vec<Entry>;

    /// The target of the symbolic link at `path`; `None` if it is no link.
    fn link_target(&self, path: &[u8]) -> Option<Vec<u8>>;

    /// Whether something is at `path`, links not followed at the end.
    fn exists(&self, path: &[u8]) -> bool;
}

/// Files in memory: paths and contents. Directories exist by what is in them.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    nodes: BTreeMap<Vec<u8>, MemoryNode>,
}

#[derive(Clone, Debug)]
enum MemoryNode {
    File(Vec<u8>),
    Link(Vec<u8>),
}

impl MemoryFiles {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.nodes
            .insert(path.into(), MemoryNode::File(bytes.into()));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.nodes
            .insert(path.into(), MemoryNode::Link(target.into()));
        self
    }

    fn is_dir(&self, path: &[u8]) -> bool {
        let mut prefix = path.to_vec();
        prefix.push(b'/');
        path.is_empty()
            || self
                .nodes
                .range(prefix.clone()..)
                .next()
                .is_some_and(|(k, _)| k.starts_with(&prefix))
    }

    /// Follows links in every component, the last included if `last`.
    fn resolve(&self, path: &[u8], last: bool) -> Option<Vec<u8>> {
        // Most paths go through no link and are resolved already.
        let plain = path
            .split(|&b| b == b'/')
            .all(|name| !matches!(name, b"" | b"." | b".."));
        let is_link = |at: &[u8]| matches!(self.nodes.get(at), Some(MemoryNode::Link(_)));
        let mut ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
        if plain
            && !ends.any(|(end, _)| is_link(path.get(..end).unwrap_or_default()))
            && !(last && is_link(path))
        {
            return Some(path.to_vec());
        }
        let mut todo: Vec<Vec<u8>> = path
            .split(|&b| b == b'/')
            .rev()
            .map(<[u8]>::to_vec)
            .collect();
        let mut here: Vec<Vec<u8>> = Vec::new();
        let mut links = 0usize;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                _ => here.push(name),
            }
            if let Some(MemoryNode::Link(target)) = self.nodes.get(&here.join(&b'/'))
                && (last || !todo.is_empty())
            {
                links = links.saturating_add(1);
                if links > limits::MAX_SYMLINKS {
                    return None;
                }
                here.pop();
                if target.first() == Some(&b'/') {
                    here.clear();
                }
                todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
            }
        }
        Some(here.join(&b'/'))
    }
}

impl NetworkFiles for MemoryFiles {
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, ReadFailure> {
        let at = self.resolve(path, true).ok_or(ReadFailure::Missing)?;
        match self.nodes.get(&at) {
            Some(MemoryNode::File(bytes)) if bytes.len() as u64 > limits::MAX_CONFIG_BYTES => {
                Err(ReadFailure::TooLarge)
            }
            Some(MemoryNode::File(bytes)) => Ok(bytes.clone()),
            _ if self.is_dir(&at) => Err(ReadFailure::NotRegular),
            _ => Err(ReadFailure::Missing),
        }
    }

    fn list(&self, dir: &[u8]) -> Vec<Entry> {
        let Some(mut prefix) = self.resolve(dir, true) else {
            return Vec::new();
        };
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let mut entries: Vec<Entry> = Vec::new();
        let below = self
            .nodes
            .range(prefix.clone()..)
            .take_while(|(k, _)| k.starts_with(&prefix));
        for (path, node) in below {
            let rest = path.get(prefix.len()..).unwrap_or_default();
            let name = rest.split(|&b| b == b'/').next().unwrap_or_default();
            let kind = match node {
                _ if name.len() < rest.len() => EntryKind::Directory,
                MemoryNode::File(_) => EntryKind::File,
                MemoryNode::Link(_) => EntryKind::Symlink,
            };
            if entries.last().is_none_or(|e| e.name != name) {
                entries.push(Entry {
                    name: name.to_vec(),
                    kind,
                    mode: 0o644,
                    uid: 0,
                });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        entries
    }

    fn link_target(&self, path: &[u8]) -> Option<Vec<u8>> {
        match self.nodes.get(&self.resolve(path, false)?) {
            Some(MemoryNode::Link(target)) => Some(target.clone()),
            _ => None,
        }
    }

    fn exists(&self, path: &[u8]) -> bool {
        self.resolve(path, false)
            .is_some_and(|at| self.nodes.contains_key(&at) || self.is_dir(&at))
    }
}

/// One reading in progress: the files, what was found so far, and the proof of completeness.
pub struct Reading<'a> {
    files: &'a dyn NetworkFiles,
    /// The document being built.
    pub document: Document,
    /// Every file read, and what became of each part.
    pub ledger: Ledger,
    seen: BTreeSet<Vec<u8>>,
    bytes_read: usize,
}

impl<'a> Reading<'a> {
    /// Nothing read yet.
    pub fn new(files: &'a dyn NetworkFiles) -> Self {
        Self {
            files,
            document: Document::default(),
            ledger: Ledger::default(),
            seen: BTreeSet::new(),
            bytes_read: 0,
        }
    }

    /// The guest's files, for looking around; content that is to be accounted for goes through
    /// [`Reading::open`].
    pub fn files(&self) -> &'a dyn NetworkFiles {
        self.files
    }

    /// Reads a file and starts its account. `None` if there is none, if it was read before, or if
    /// it cannot be read (which is then a warning).
    pub fn open(&mut self, path: &[u8]) -> Option<(SourceId, Vec<u8>)> {
        if self.seen.contains(path) {
            return None;
        }
        if self.seen.len() >= MAX_FILES {
            self.warn(path, None, "too many files, not read");
            return None;
        }
        let failure = match self.files.read(path) {
            Ok(bytes) if self.bytes_read.saturating_add(bytes.len()) > MAX_TOTAL_BYTES => {
                "too much text altogether, not read".to_owned()
            }
            Ok(bytes) => {
                self.bytes_read = self.bytes_read.saturating_add(bytes.len());
                self.seen.insert(path.to_vec());
                if bytes.contains(&0) {
                    self.warn(path, None, "the file holds NUL bytes");
                }
                if std::str::from_utf8(&bytes).is_err() {
                    self.warn(
                        path,
                        None,
                        "the file is not UTF-8; other bytes are shown as U+FFFD",
                    );
                }
                return Some((self.ledger.open(path, bytes.len()), bytes));
            }
            Err(ReadFailure::Missing) if !self.files.exists(path) => return None,
            Err(ReadFailure::Missing) => "a link that leads nowhere".to_owned(),
            Err(ReadFailure::NotRegular) => "not a regular file, not read".to_owned(),
            Err(ReadFailure::TooLarge) => {
                format!("larger than {} bytes, not read", limits::MAX_CONFIG_BYTES)
            }
            Err(ReadFailure::Failed(why)) => format!("cannot be read: {why}"),
        };
        self.seen.insert(path.to_vec());
        self.warn(path, None, failure);
        None
    }

    /// Adds a warning.
    pub fn warn(&mut self, file: &[u8], line: Option<u32>, message: impl Into<String>) {
        let warnings = &mut self.document.guest.warnings;
        if warnings.len() < MAX_ENTRIES {
            let warning = Warning {
                file: text(file),
                line,
                message: shortened(message.into()),
            };
            if warnings.last() != Some(&warning) {
                warnings.push(warning);
            }
        }
    }

    /// Adds an entry of `guest.unmapped`. A secret's value is dropped here.
    pub fn unmapped(&mut self, mut entry: Unmapped) {
        if entry.effect == Effect::Secret {
            entry.value = None;
            entry.redacted = true;
        }
        let entries = &mut self.document.guest.unmapped;
        if entries.len() < MAX_ENTRIES {
            entries.push(entry);
        } else if entries.len() == MAX_ENTRIES {
            entries.push(Unmapped {
                value: Some("too many entries".into()),
                ..entry
            });
        }
    }

    /// Shorthand of [`Ledger::set`].
    pub fn mark(&mut self, source: SourceId, range: std::ops::Range<usize>, state: State) {
        self.ledger.set(source, range, state);
    }
}

/// Most characters of a warning: it may quote a line of the guest.
const MAX_MESSAGE: usize = 300;

fn shortened(message: String) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message,
    }
}

/// Guest bytes as text of the document: invalid UTF-8 becomes U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a guest's network configuration. Never fails: what cannot be read or understood is said
/// in the document.
pub fn read(files: &dyn NetworkFiles) -> Document {
    let mut reading = Reading::new(files);
    let stacks = select::detect(files);
    if let Some(ifcfg) = stacks.ifcfg() {
        ifcfg::decode(&mut reading, ifcfg);
    }
    if stacks.interfaces_live() {
        interfaces::decode(&mut reading, stacks.interfaces_flavour());
    }
    select::report(&mut reading, stacks);
    identity::apply(&mut reading);
    resolver::decode(&mut reading);
    let Reading {
        mut document,
        ledger,
        ..
    } = reading;
    ledger.assert_complete();
    document.finish();
    document
}
