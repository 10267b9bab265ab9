//! Which files an image may make us open.
//!
//! A backing file or data file that an image names is data, not an instruction: it is reported
//! always and opened only if policy allows.

use std::path::PathBuf;

/// What references policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferencePolicy {
    /// Directories (with everything below) and files that references may lead to, beside the
    /// directory tree of the image that names them.
    pub allowed: Vec<PathBuf>,
    /// Follow no reference at all, also not within the same directory tree.
    pub refuse_all: bool,
}
