//! Contents of `meta/os` and `os.json`: who this guest is.
//!
//! # `meta/os`
//!
//! `KEY="value"` lines in the syntax of os-release(5), for people, for `.` of a shell and for
//! anything else that reads such files. It describes the guest's first operating system; a comment
//! says how many more there are. All keys are always there, in this order, empty if unknown, so
//! that a script that sources the files of many guests never sees the value of the one before:
//!
//! `TYPE ID ID_LIKE DISTRO NAME PRETTY_NAME VERSION VERSION_ID VERSION_MAJOR VERSION_MINOR
//! VERSION_CODENAME VARIANT_ID BUILD_ID ARCHITECTURE HOSTNAME MACHINE_ID TIMEZONE PACKAGE_FORMAT
//! PACKAGE_MANAGER INIT KERNELS ROOT_DEVICE MOUNTPOINTS`
//!
//! `ID_LIKE`, `KERNELS` and `MOUNTPOINTS` are lists with one blank between; a mount point is
//! `PATH=VOLUME`. Blanks inside of an element are written `\x20`.
//!
//! Sourcing it runs nothing, whatever the guest says: keys are from the list above and nothing
//! else, each value is one line, and
//!
//! - every control character (line ends, NUL and ESC included), every invisible or bidirectional
//!   control character and every invalid byte is replaced by U+FFFD,
//! - a value with a quote, a backslash, `$` or a backtick is in single quotes, with `'\''` for a
//!   single quote; all others are in double quotes. So a backslash never stands in double quotes,
//!   where a shell in a multi-byte locale such as GBK could take it for half of a character.
//!
//! # `os.json`
//!
//! An object with the first system's facts at the top level and all systems, the first one
//! included, in the list `systems`. Each fact is `{"value": …, "source": …}`, the source being a
//! file of the guest; what is not known is `null`, and unknown lists are empty. Text is unchanged
//! but for invalid UTF-8.

use serde_json::{Value, json};

use crate::inspect::{Fact, System};
use crate::ondisk::text::is_plain;

/// `meta/os`.
pub fn shell(systems: &[System]) -> String {
    let mut out = String::new();
    let Some(system) = systems.first() else {
        out.push_str("# No operating system was found.\n");
        line(&mut out, "TYPE", "unknown");
        for key in KEYS {
            line(&mut out, key, "");
        }
        return out;
    };
    match systems.len().saturating_sub(1) {
        0 => {}
        1 => out.push_str("# 1 more operating system was found; see os.json.\n"),
        more => out.push_str(&format!(
            "# {more} more operating systems were found; see os.json.\n"
        )),
    }
    let f = system.facts();
    let text = |fact: &Option<Fact>| fact.as_ref().map(|f| f.value.clone()).unwrap_or_default();
    let number = |fact: &Option<Fact<u64>>| {
        let value = fact.as_ref().map(|f| f.value.to_string());
        value.unwrap_or_default()
    };
    let mountpoints = f.mountpoints.iter().map(|m| {
        let Fact { value, .. } = m;
        format!("{}={}", value.path, value.volume)
    });
    let like = f.id_like.as_ref().map(|l| l.value.clone());
    let values = [
        text(&f.id),
        list(like.unwrap_or_default().into_iter()),
        text(&f.distro),
        text(&f.name),
        text(&f.pretty_name),
        text(&f.version),
        text(&f.version_id),
        number(&f.version_major),
        number(&f.version_minor),
        text(&f.version_codename),
        text(&f.variant_id),
        text(&f.build_id),
        text(&f.architecture),
        text(&f.hostname),
        text(&f.machine_id),
        text(&f.timezone),
        text(&f.package_format),
        text(&f.package_manager),
        text(&f.init),
        list(f.kernels.iter().map(|k| k.value.clone())),
        text(&f.root_device),
        list(mountpoints),
    ];
    line(&mut out, "TYPE", &text(&f.kind));
    for (key, value) in KEYS.iter().zip(values) {
        line(&mut out, key, &value);
    }
    out
}

/// The keys after `TYPE`, in order.
const KEYS: [&str; 22] = [
    "ID",
    "ID_LIKE",
    "DISTRO",
    "NAME",
    "PRETTY_NAME",
    "VERSION",
    "VERSION_ID",
    "VERSION_MAJOR",
    "VERSION_MINOR",
    "VERSION_CODENAME",
    "VARIANT_ID",
    "BUILD_ID",
    "ARCHITECTURE",
    "HOSTNAME",
    "MACHINE_ID",
    "TIMEZONE",
    "PACKAGE_FORMAT",
    "PACKAGE_MANAGER",
    "INIT",
    "KERNELS",
    "ROOT_DEVICE",
    "MOUNTPOINTS",
];

fn list(elements: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = elements.map(|e| e.replace(' ', "\\x20")).collect();
    words.join(" ")
}

fn line(out: &mut String, key: &str, value: &str) {
    out.push_str(key);
    out.push('=');
    out.push_str(&quoted(value));
    out.push('\n');
}

/// A value as a shell word; see the module text.
pub fn quoted(value: &str) -> String {
    let clean: String = value
        .chars()
        .map(|c| {
            if is_plain(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect();
    if clean.contains(['"', '\'', '\\', '$', '`']) {
        format!("'{}'", clean.replace('\'', "'\\''"))
    } else {
        format!("\"{clean}\"")
    }
}

/// `meta/os.json`.
pub fn json(systems: &[System]) -> Value {
    let all: Vec<Value> = systems.iter().map(system).collect();
    let mut top = match all.first() {
        Some(first) => first.clone(),
        None => json!({ "type": null }),
    };
    if let Some(top) = top.as_object_mut() {
        top.insert("systems".into(), Value::Array(all));
    }
    top
}

fn system(system: &System) -> Value {
    let mut value = json!(system.facts());
    if let Some(object) = value.as_object_mut() {
        object.insert("fstab".into(), json!(system.fstab));
        object.insert(
            "problems".into(),
            json!(system.problems().collect::<Vec<_>>()),
        );
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        for (value, want) in [
            ("", "\"\""),
            (
                "Debian GNU/Linux 12 (bookworm)",
                "\"Debian GNU/Linux 12 (bookworm)\"",
            ),
            ("$(id)", "'$(id)'"),
            ("`id`", "'`id`'"),
            ("it's", "'it'\\''s'"),
            ("a\"b", "'a\"b'"),
            ("a\\", "'a\\'"),
            ("a\nID=evil", "\"a\u{fffd}ID=evil\""),
            (
                "a\0b\x1b[31m\r\t",
                "\"a\u{fffd}b\u{fffd}[31m\u{fffd}\u{fffd}\"",
            ),
            ("\u{202e}x", "\"\u{fffd}x\""),
            ("!x #y", "\"!x #y\""),
        ] {
            assert_eq!(quoted(value), want);
        }
    }

    #[test]
    fn no_system() {
        let text = shell(&[]);
        assert!(text.contains("TYPE=\"unknown\"\n"));
        assert_eq!(text.lines().count(), 2 + KEYS.len());
        assert_eq!(json(&[])["systems"], json!([]));
    }
}
