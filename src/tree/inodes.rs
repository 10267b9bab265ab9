//! What stands behind a node's number: filesystems at their places, and synthetic files.

use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock};

use super::namespace::Tree;
use super::node::NodeId;
use crate::block::BlockDevice;
use crate::fs::{FsError, FsErrorKind, Result};
use crate::guest::GuestView;

/// One appearance of one filesystem.
pub(super) struct Space {
    /// The tree it is part of.
    pub view: Arc<GuestView>,
    /// Its mount in the view.
    pub mount: usize,
    /// The space of the view's mount 0; mount `n` has space `first + n`.
    pub first: u16,
    /// The directory that holds the view.
    pub parent: NodeId,
}

/// Fills a directory when it is looked into for the first time.
pub type Fill = Box<dyn FnOnce(&Tree, NodeId) -> Result<()> + Send>;

/// Makes the content of a file when it is looked at for the first time.
pub type Make = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A file of our own making.
pub(super) struct Synthetic {
    pub parent: NodeId,
    pub permissions: u16,
    pub body: Body,
}

pub(super) enum Body {
    Directory(Directory),
    File {
        make: Make,
        content: OnceLock<Vec<u8>>,
    },
    Device {
        device: BlockDevice,
        /// Space that holds data, in units of 512 bytes.
        blocks: OnceLock<u64>,
    },
}

#[derive(Default)]
pub(super) struct Directory {
    pub children: RwLock<IndexMap<Vec<u8>, NodeId>>,
    fill: Mutex<FillState>,
}

#[derive(Default)]
enum FillState {
    #[default]
    Done,
    Pending(Fill),
    Failed(FsErrorKind, String),
}

impl Directory {
    pub fn lazy(fill: Fill) -> Self {
        Self {
            children: RwLock::default(),
            fill: Mutex::new(FillState::Pending(fill)),
        }
    }

    /// Fills the directory if that has not happened yet. Others who look wait.
    pub fn filled(&self, tree: &Tree, id: NodeId) -> Result<()> {
        let mut state = self.fill.lock();
        match &*state {
            FillState::Done => return Ok(()),
            FillState::Failed(kind, why) => return Err(FsError::new(*kind, why.clone())),
            FillState::Pending(_) => {}
        }
        // What a panic in the middle would leave.
        let unfinished = FillState::Failed(FsErrorKind::Io, "could not be opened".into());
        let FillState::Pending(fill) = std::mem::replace(&mut *state, unfinished) else {
            return Ok(());
        };
        match fill(tree, id) {
            Ok(()) => {
                *state = FillState::Done;
                Ok(())
            }
            Err(error) => {
                *state = FillState::Failed(error.kind(), error.to_string());
                Err(error)
            }
        }
    }
}
