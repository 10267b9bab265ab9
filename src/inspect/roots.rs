//! Which filesystem is the root of an operating system.
//!
//! A Linux root has `/etc`, programs in `/bin` (a directory, or a link to `usr/bin`, whose target
//! may lie on another filesystem), and one of the files every system has: `/etc/fstab` or
//! `/etc/hosts`, which may be links. Image-based and container-like systems have neither, but an
//! os-release file. NixOS keeps almost everything in its store.

use crate::fs::FileType;
use crate::guest::GuestView;
use crate::guest::view::FollowFinal;

/// Whether a filesystem, by itself, is the root of a Linux system.
pub fn is_linux_root(view: &GuestView) -> bool {
    if exists(view, b"/etc/NIXOS") && view.is_dir(b"/nix/store") {
        return true;
    }
    if !view.is_dir(b"/etc") {
        return false;
    }
    if [&b"/etc/os-release"[..], b"/usr/lib/os-release"]
        .iter()
        .any(|path| view.is_file(path))
    {
        return true;
    }
    has_programs(view) && (known(view, b"/etc/fstab") || known(view, b"/etc/hosts"))
}

fn has_programs(view: &GuestView) -> bool {
    if view.is_dir(b"/bin") {
        return true;
    }
    let target = view
        .resolve(b"/bin", FollowFinal::No)
        .and_then(|node| view.read_link(node));
    target.is_ok_and(|target| {
        let target = target.strip_suffix(b"/").unwrap_or(&target);
        matches!(target, b"usr/bin" | b"/usr/bin" | b"./usr/bin")
    })
}

/// A file or a link, which may lead elsewhere.
fn known(view: &GuestView, path: &[u8]) -> bool {
    view.resolve(path, FollowFinal::No)
        .and_then(|node| view.attributes(node))
        .is_ok_and(|a| matches!(a.file_type, FileType::Regular | FileType::Symlink))
}

fn exists(view: &GuestView, path: &[u8]) -> bool {
    view.resolve(path, FollowFinal::No).is_ok()
}
