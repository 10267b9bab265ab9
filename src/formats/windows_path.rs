//! Parents that an image names by a path of Windows.
//!
//! Such a path says little on this host. Its last part is looked for beside the image that names
//! it, a relative path also where it leads, and both under the same policy as every reference;
//! each directory the user allowed is looked into as well.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use super::api::{Context, Image};
use super::detect::Format;
use super::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::text::printable;

/// Longest path taken from an image, in bytes of UTF-8; Windows has 32767 characters.
const MAX_PATH_BYTES: usize = 4096;
/// Most names tried.
const MAX_NAMES: usize = 64;

/// The path in this host's spelling, if it is relative: parts joined by `/`.
fn relative(path: &str) -> Option<String> {
    let drive = path.chars().nth(1) == Some(':');
    if drive || path.starts_with(['\\', '/']) {
        return None;
    }
    let parts: Vec<&str> = parts(path).collect();
    (parts.len() > 1).then(|| parts.join("/"))
}

/// The last part of a path.
pub fn file_name(path: &str) -> Option<&str> {
    parts(path).last().filter(|name| *name != "..")
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split(['\\', '/'])
        .filter(|part| !part.is_empty() && *part != ".")
}

/// The names under which a parent is looked for, best first.
fn candidates(paths: &[String], allowed: &[std::path::PathBuf]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut add = |name: Vec<u8>| {
        if names.len() < MAX_NAMES && name.len() <= MAX_PATH_BYTES && !names.contains(&name) {
            names.push(name);
        }
    };
    let usable = || paths.iter().filter(|p| p.len() <= MAX_PATH_BYTES);
    for path in usable() {
        if let Some(name) = relative(path) {
            add(beside(&name));
        }
    }
    for path in usable() {
        if let Some(name) = file_name(path) {
            add(beside(name));
        }
    }
    for path in usable() {
        for directory in allowed {
            if let (Some(name), Ok(directory)) = (file_name(path), std::path::absolute(directory)) {
                add(directory.join(name).as_os_str().as_bytes().to_vec());
            }
        }
    }
    names
}

/// A name that is no protocol, whatever colons it has.
fn beside(name: &str) -> Vec<u8> {
    format!("./{name}").into_bytes()
}

/// Opens the parent that `referrer` names by `paths`, at the first place where there is one.
///
/// # Errors
/// As [`Context::open_backing`]; [`FormatErrorKind::Damaged`] if no path names a file.
pub fn open_parent(
    paths: &[String],
    format: Format,
    referrer: &Path,
    context: &mut Context<'_>,
) -> Result<Arc<dyn Image>> {
    let allowed = context.options().policy.allowed.clone();
    let mut first = None;
    for name in candidates(paths, &allowed) {
        match context.open_backing(&name, format, referrer) {
            Ok(image) => return Ok(image),
            // Not there, or not where it may be followed to: another name may do.
            Err(e) if matches!(e.kind(), FormatErrorKind::Io | FormatErrorKind::NotAllowed) => {
                first.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    let named = paths.first().map(|p| printable(p.as_bytes()));
    Err(match (first, named) {
        (Some(e), Some(named)) => e.within(format!(
            "the parent '{named}' was looked for beside the image"
        )),
        (Some(e), None) => e,
        (None, _) => FormatError::new(
            FormatErrorKind::Damaged,
            "the image has a parent, but does not name it",
        )
        .with_hint(
            "its parent cannot be found without a name; repair the image with its own tools",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_paths_end_beside_the_image() {
        for (path, name) in [
            (r"C:\VMs\base disk.vhd", Some("base disk.vhd")),
            (r".\base.vhdx", Some("base.vhdx")),
            (
                r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\a\b.vhdx",
                Some("b.vhdx"),
            ),
            (r"..\..", None),
            ("", None),
            ("json:{}", Some("json:{}")),
        ] {
            assert_eq!(file_name(path), name, "{path}");
        }
        let names = |paths: &[&str]| -> Vec<String> {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            candidates(&paths, &["/pool".into()])
                .into_iter()
                .map(|n| String::from_utf8(n).unwrap())
                .collect()
        };
        assert_eq!(
            names(&[r"C:\a\p.vhd", r"..\x\p.vhd"]),
            ["./../x/p.vhd", "./p.vhd", "/pool/p.vhd"]
        );
        assert_eq!(names(&["json:{}"]), ["./json:{}", "/pool/json:{}"]);
        assert!(names(&[r"..\.."]).iter().all(|n| n == "./../.."));
    }
}
