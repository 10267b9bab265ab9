//! Walking a tree of the guest, parents before children, names sorted, links never followed.

use super::failure::{Failure, Outcome};
use super::session::join;
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

/// Visits `start` and everything below, at most `max_depth` levels down. A directory that is its
/// own ancestor is reported and not entered.
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
    let most = max_depth.unwrap_or(limits::MAX_TREE_DEPTH);
    // Directories above the one being visited, with the depth as position.
    let mut above: Vec<Node> = Vec::new();
    let mut todo = vec![(path.to_vec(), Vec::new(), start, 0usize)];
    while let Some((path, below, node, depth)) = todo.pop() {
        above.truncate(depth);
        let at = |failure: Failure| Step::Failed(failure.within(printable(&path)));
        let attributes = match view.attributes(node) {
            Ok(attributes) => attributes,
            Err(error) => {
                visit(at(error.into()))?;
                continue;
            }
        };
        visit(Step::File {
            path: &path,
            below: &below,
            node,
            attributes: &attributes,
        })?;
        if attributes.file_type != FileType::Directory || depth >= most {
            continue;
        }
        if above.contains(&node) {
            visit(at(Failure::new("a directory that contains itself")))?;
            continue;
        }
        if depth >= limits::MAX_TREE_DEPTH {
            visit(at(Failure::new("directories are nested too deep")))?;
            continue;
        }
        match view.list(node) {
            Ok(names) => {
                above.push(node);
                for (name, child) in names.into_iter().rev() {
                    let next = if below.is_empty() {
                        name.clone()
                    } else {
                        join(&below, &name)
                    };
                    todo.push((join(&path, &name), next, child, depth.saturating_add(1)));
                }
            }
            Err(error) => visit(at(error.into()))?,
        }
    }
    Ok(())
}
