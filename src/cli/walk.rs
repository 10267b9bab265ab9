//! Walking a tree of the guest, parents before children, names sorted, links never followed.
//!
//! A damaged image can make directories contain themselves, or be in many places so that the
//! number of paths doubles with each level. Each directory is therefore entered once, at most
//! [`limits::MAX_TREE_DEPTH`] levels down, and only one path is kept.

use std::collections::HashSet;
use std::vec::IntoIter;

use super::failure::{Failure, Outcome};
use crate::fs::{Attributes, FileType};
use crate::guest::{GuestView, Node};
use crate::limits;
use crate::ondisk::text::printable;

/// What a walk meets.
pub enum Step<'a> {
    /// A file or directory.
    File {
        /// Its path: the path the walk started with, and names below.
        path: &'a [u8],
        /// The part of `path` below the start; empty for the start itself.
        below: &'a [u8],
        /// The file.
        node: Node,
        /// Its attributes.
        attributes: &'a Attributes,
    },
    /// Something that could not be read; the walk goes on elsewhere.
    Failed(Failure),
}

/// Does something with what a walk meets. An error ends the walk.
pub trait Visitor {
    /// A file or directory; its names are visited next if it is a directory and the answer is
    /// true. [`Step::File`] describes the arguments.
    ///
    /// # Errors
    /// End the walk.
    fn file(
        &mut self,
        path: &[u8],
        below: &[u8],
        node: Node,
        attributes: &Attributes,
    ) -> Outcome<bool>;

    /// All names of the directory that was entered last and not yet left have been visited.
    ///
    /// # Errors
    /// End the walk.
    fn leave(&mut self, path: &[u8], node: Node, attributes: &Attributes) -> Outcome<()>;

    /// Something could not be read; the walk goes on elsewhere.
    ///
    /// # Errors
    /// End the walk.
    fn failed(&mut self, failure: Failure) -> Outcome<()>;
}

struct Simple<'a>(&'a mut dyn FnMut(Step<'_>) -> Outcome<()>);

impl Visitor for Simple<'_> {
    fn file(
        &mut self,
        path: &[u8],
        below: &[u8],
        node: Node,
        attributes: &Attributes,
    ) -> Outcome<bool> {
        (self.0)(Step::File {
            path,
            below,
            node,
            attributes,
        })?;
        Ok(true)
    }

    fn leave(&mut self, _: &[u8], _: Node, _: &Attributes) -> Outcome<()> {
        Ok(())
    }

    fn failed(&mut self, failure: Failure) -> Outcome<()> {
        (self.0)(Step::Failed(failure))
    }
}

/// Visits `start` and everything below, at most `max_depth` levels down. A directory that is its
/// own ancestor, or was already visited at another place, is reported and not entered.
///
/// # Errors
/// What the visitor returns; it ends the walk.
pub fn walk(
    view: &GuestView,
    path: &[u8],
    start: Node,
    max_depth: Option<usize>,
    visit: &mut dyn FnMut(Step<'_>) -> Outcome<()>,
) -> Outcome<()> {
    walk_with(view, path, start, max_depth, &mut Simple(visit))
}

/// A directory whose names are being visited.
struct Level {
    node: Node,
    attributes: Attributes,
    names: IntoIter<(Vec<u8>, Node)>,
    path_len: usize,
}

/// As [`walk`], for visitors that choose what to enter.
///
/// # Errors
/// What the visitor returns; it ends the walk.
pub fn walk_with(
    view: &GuestView,
    path: &[u8],
    start: Node,
    max_depth: Option<usize>,
    visitor: &mut dyn Visitor,
) -> Outcome<()> {
    let most = max_depth.unwrap_or(limits::MAX_TREE_DEPTH);
    let mut levels: Vec<Level> = Vec::new();
    let mut entered: HashSet<Node> = HashSet::new();
    let mut path = path.to_vec();
    let slash = usize::from(path.last() != Some(&b'/'));
    let below_at = path.len().saturating_add(slash);
    let mut next = Some(start);
    loop {
        if let Some(node) = next.take()
            && let Some(level) = visit_one(
                view,
                (&path, below_at),
                node,
                levels.len() < most,
                (&levels, &mut entered),
                visitor,
            )?
        {
            levels.push(level);
        }
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        path.truncate(level.path_len);
        if let Some((name, node)) = level.names.next() {
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            next = Some(node);
        } else if let Some(left) = levels.pop() {
            visitor.leave(&path, left.node, &left.attributes)?;
        }
    }
}

fn visit_one(
    view: &GuestView,
    (path, below_at): (&[u8], usize),
    node: Node,
    enter: bool,
    (above, entered): (&[Level], &mut HashSet<Node>),
    visitor: &mut dyn Visitor,
) -> Outcome<Option<Level>> {
    let at = |failure: Failure| failure.within(printable(path));
    let attributes = match view.attributes(node) {
        Ok(attributes) => attributes,
        Err(error) => {
            visitor.failed(at(error.into()))?;
            return Ok(None);
        }
    };
    let is_dir = attributes.file_type == FileType::Directory;
    // A repeated directory is told of but not shown: its names would be missing.
    let why = if !is_dir || !enter {
        None
    } else if above.iter().any(|level| level.node == node) {
        Some("a directory that contains itself")
    } else if entered.contains(&node) {
        Some("a directory that is in two places")
    } else if above.len() >= limits::MAX_TREE_DEPTH {
        Some("directories are nested too deep")
    } else {
        None
    };
    let below = path.get(below_at..).unwrap_or_default();
    let go_on = visitor.file(path, below, node, &attributes)?;
    if !is_dir || !enter || !go_on {
        if is_dir && !enter && above.len() >= limits::MAX_TREE_DEPTH {
            visitor.failed(at(Failure::new("directories are nested too deep")))?;
        }
        return Ok(None);
    }
    let names = match why {
        Some(why) => {
            visitor.failed(at(Failure::new(why)))?;
            Vec::new()
        }
        None => match view.list(node) {
            Ok(names) => {
                entered.insert(node);
                names
            }
            Err(error) => {
                visitor.failed(at(error.into()))?;
                Vec::new()
            }
        },
    };
    Ok(Some(Level {
        node,
        attributes,
        names: names.into_iter(),
        path_len: path.len(),
    }))
}
