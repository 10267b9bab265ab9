//! Contents of `meta/network`, `network.json` and `network.d/`.

use serde_json::Value;

use crate::fs::{FileType, FsErrorKind};
use crate::guest::GuestView;
use crate::guest::view::FollowFinal;
use crate::limits;
use crate::network::{self, Document, Entry, EntryKind, NetworkFiles, ReadFailure};
use crate::ondisk::text::printable;

/// The views of one guest's network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkMeta {
    /// `meta/network`: the whole document as canonical YAML.
    pub yaml: String,
    /// `meta/network.json`: the same document.
    pub json: Value,
    /// `meta/network.d/netplan.yaml`: the part netplan accepts.
    pub netplan_yaml: String,
    /// `meta/network.d/summary.txt`: one line per interface.
    pub summary: String,
}

/// Reads and renders the network configuration of a guest. Never fails: what cannot be read is said
/// in the document.
pub fn render(view: &GuestView) -> NetworkMeta {
    views_of(&network::read(&ViewFiles(view)))
}

/// The views of a document.
pub fn views_of(document: &Document) -> NetworkMeta {
    NetworkMeta {
        yaml: document.to_yaml(),
        json: document.to_json(),
        netplan_yaml: document.netplan_yaml(),
        summary: document.summary(),
    }
}

/// The files of a guest's tree; links are followed by the tree's own walk.
pub struct ViewFiles<'a>(pub &'a GuestView);

impl NetworkFiles for ViewFiles<'_> {
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, ReadFailure> {
        let failure = match self.0.resolve(path, FollowFinal::Yes) {
            Ok(node) => match self.0.attributes(node) {
                Ok(a) if a.file_type != FileType::Regular => return Err(ReadFailure::NotRegular),
                Ok(_) => match self.0.read_node(node, limits::MAX_CONFIG_BYTES) {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => error,
                },
                Err(error) => error,
            },
            Err(error) => error,
        };
        Err(match failure.kind() {
            // Links in a ring lead nowhere as well.
            FsErrorKind::NotFound | FsErrorKind::NotDirectory | FsErrorKind::Loop => {
                ReadFailure::Missing
            }
            FsErrorKind::TooLarge => ReadFailure::TooLarge,
            _ => ReadFailure::Failed(printable(failure.to_string().as_bytes())),
        })
    }

    fn list(&self, dir: &[u8]) -> Vec<Entry> {
        let Ok(node) = self.0.resolve(dir, FollowFinal::Yes) else {
            return Vec::new();
        };
        let Ok(names) = self.0.list(node) else {
            return Vec::new();
        };
        names
            .into_iter()
            .filter(|(name, _)| name != b"." && name != b"..")
            .take(network::api::MAX_DIR_ENTRIES)
            .filter_map(|(name, node)| {
                let attributes = self.0.attributes(node).ok()?;
                let kind = match attributes.file_type {
                    FileType::Regular => EntryKind::File,
                    FileType::Directory => EntryKind::Directory,
                    FileType::Symlink => EntryKind::Symlink,
                    _ => EntryKind::Other,
                };
                Some(Entry {
                    name,
                    kind,
                    mode: u32::from(attributes.permissions),
                    uid: attributes.uid,
                })
            })
            .collect()
    }

    fn link_target(&self, path: &[u8]) -> Option<Vec<u8>> {
        let node = self.0.resolve(path, FollowFinal::No).ok()?;
        self.0.read_link(node).ok()
    }

    fn exists(&self, path: &[u8]) -> bool {
        self.0.resolve(path, FollowFinal::No).is_ok()
    }
}
