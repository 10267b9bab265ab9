//! Keeping the targets of symbolic links inside the tree they are in.
//!
//! Through a mount it is the host's kernel that follows links, and it starts an absolute target at
//! the host's root. So a target is rewritten, unless raw targets were asked for:
//!
//! 1. An absolute target becomes relative: as many `..` as the link's directory is below the root
//!    of its tree (`fs/`, `volumes/NAME/`), then the target.
//! 2. A relative target that climbs above the root of its tree is cut down to the root, which is
//!    what `..` in the root means inside the guest.
//! 3. A `..` behind a name takes that name away (`a/../b` is `b`): what `a` is cannot be relied
//!    on. Inside the guest this differs only if `a` is itself a link to another directory (or is
//!    missing).
//!
//! Everything else is given back byte by byte. Since every link on a walk obeys this relative to
//! the directory it really is in, no walk leaves the tree.

use std::borrow::Cow;

/// What is done with link targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Symlinks {
    /// Rewritten so that they stay inside.
    #[default]
    Confine,
    /// The guest's bytes.
    Raw,
}

/// The target of a link in a directory `depth` levels below the root of its tree, confined.
pub fn confine(target: &[u8], depth: usize) -> Cow<'_, [u8]> {
    let absolute = target.first() == Some(&b'/');
    if !absolute && stays_inside(target, depth) {
        return Cow::Borrowed(target);
    }
    let mut ups = if absolute { depth } else { 0 };
    let mut names: Vec<&[u8]> = Vec::new();
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if names.pop().is_none() {
                    ups = ups.saturating_add(1);
                }
            }
            name => names.push(name),
        }
    }
    let ups = ups.min(depth);
    let mut out = Vec::with_capacity(target.len().saturating_add(ups.saturating_mul(3)));
    for part in std::iter::repeat_n(&b".."[..], ups).chain(names) {
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.is_empty() {
        out.push(b'.');
    } else if target.last() == Some(&b'/') {
        out.push(b'/');
    }
    Cow::Owned(out)
}

/// Whether a relative target climbs at its beginning only, and at most `depth` levels.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    let mut ups = 0usize;
    let mut named = false;
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if named => return false,
            b".." => ups = ups.saturating_add(1),
            _ => named = true,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_inside() {
        for (target, depth, want) in [
            // Left alone.
            ("x", 0, "x"),
            ("a//b/./c/", 3, "a//b/./c/"),
            ("../lib/x", 1, "../lib/x"),
            ("../../etc", 2, "../../etc"),
            ("", 2, ""),
            // Absolute.
            ("/etc/passwd", 0, "etc/passwd"),
            ("/etc/passwd", 2, "../../etc/passwd"),
            ("//usr///lib//", 1, "../usr/lib/"),
            ("/", 0, "."),
            ("/", 2, "../../"),
            ("/..", 1, ".."),
            ("/../../../etc", 1, "../etc"),
            ("/a/../../../../etc/shadow", 1, "../etc/shadow"),
            // Climbing out.
            ("..", 0, "."),
            ("../../../../etc/shadow", 2, "../../etc/shadow"),
            ("../../x/", 1, "../x/"),
            // Climbing behind a name.
            ("a/../../../x", 1, "../x"),
            ("a/../b", 1, "b"),
            ("a/..", 5, "."),
            ("./../x/../../y", 2, "../../y"),
        ] {
            let got = confine(target.as_bytes(), depth);
            assert_eq!(String::from_utf8_lossy(&got), want, "{target} at {depth}");
        }
    }

    /// Whatever the target, a walk that takes every name as a plain directory ends at the root or
    /// below it, at every step.
    #[test]
    fn no_prefix_leaves() {
        let parts = ["..", "a", ".", "", "/", "b/..", "../.."];
        for i in 0..parts.len().pow(4) {
            let mut n = i;
            let mut target = String::new();
            for _ in 0..4 {
                target.push_str(parts[n % parts.len()]);
                target.push('/');
                n /= parts.len();
            }
            for depth in 0..4usize {
                let got = confine(target.as_bytes(), depth).into_owned();
                assert_ne!(got.first(), Some(&b'/'), "{target}");
                let mut level = depth as i64;
                let mut named = false;
                for name in got.split(|&b| b == b'/') {
                    match name {
                        b"" | b"." => {}
                        b".." => {
                            assert!(!named, "{target} at {depth}");
                            level -= 1;
                        }
                        _ => named = true,
                    }
                }
                assert!(level >= 0, "{target} at {depth}");
            }
        }
    }
}
