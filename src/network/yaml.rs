//! Canonical YAML.
//!
//! Block style, two blanks per level, keys in the order given, empty collections as `[]` and `{}`.
//! A string is written bare only if no reader of YAML 1.1 or 1.2 can take it for anything else;
//! otherwise it is double-quoted. So MACs (base-60 numbers to YAML 1.1), anything with a colon,
//! dates, numbers and the many spellings of booleans are quoted. Control and invisible characters
//! are escaped. Specification: YAML 1.1 and 1.2, and the YAML 1.1 type repository for `bool`, `int`,
//! `float`, `null`, `timestamp`, `merge` and `value`.

use std::fmt::Write as _;

use serde_json::Value;

/// Nesting written out; deeper values are cut to `null`. The document needs eight levels and JSON
/// text of a guest (a team's options) has at most 128, where its parser stops.
const MAX_DEPTH: usize = 256;

/// Longest key written as a simple one; YAML 1.1 and 1.2 allow 1024 characters.
const MAX_KEY: usize = 1000;

/// The text of a value.
pub fn emit(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, value, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        _ => {
            scalar(&mut out, value);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("  ", level));
}

/// The entries of a mapping; `inline` if the first stands behind a `- ` already written.
fn mapping(out: &mut String, value: &Value, level: usize, inline: bool) {
    let Some(map) = value.as_object() else { return };
    for (n, (key, inner)) in map.iter().enumerate() {
        if n > 0 || !inline {
            indent(out, level);
        }
        let mut name = String::new();
        string(&mut name, key);
        // YAML readers look for the colon behind a key no further than 1024 characters.
        if name.chars().count() > MAX_KEY {
            out.push_str("? ");
            out.push_str(&name);
            out.push('\n');
            indent(out, level);
        } else {
            out.push_str(&name);
        }
        out.push(':');
        match inner {
            Value::Object(fields) if !fields.is_empty() && level < MAX_DEPTH => {
                out.push('\n');
                mapping(out, inner, level.saturating_add(1), false);
            }
            Value::Array(items) if !items.is_empty() && level < MAX_DEPTH => {
                out.push('\n');
                sequence(out, items, level);
            }
            _ => {
                out.push(' ');
                scalar(out, inner);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], level: usize) {
    for item in items {
        indent(out, level);
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() && level < MAX_DEPTH => {
                mapping(out, item, level.saturating_add(1), true);
            }
            // A sequence right inside a sequence, on lines of its own.
            Value::Array(inner) if !inner.is_empty() && level < MAX_DEPTH => {
                out.pop();
                out.push('\n');
                sequence(out, inner, level.saturating_add(1));
            }
            _ => {
                scalar(out, item);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => {
            let text = number.to_string();
            // YAML 1.1 takes an exponent for a number's only behind a dot and with a sign.
            match text.split_once('e') {
                Some((digits, exponent)) => {
                    let dot = if digits.contains('.') { "" } else { ".0" };
                    let sign = if exponent.starts_with(['-', '+']) {
                        ""
                    } else {
                        "+"
                    };
                    let _ = write!(out, "{digits}{dot}e{sign}{exponent}");
                }
                None => out.push_str(&text),
            }
        }
        Value::String(text) => string(out, text),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(fields) if fields.is_empty() => out.push_str("{}"),
        _ => out.push_str("null"),
    }
}

fn string(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        quoted(out, text);
    }
}

/// Words YAML 1.1 readers take for booleans or null, in lower case.
const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

fn is_plain(text: &str) -> bool {
    let safe =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-' | b'+' | b'@');
    if text.is_empty() || text.len() > 120 || !text.bytes().all(safe) {
        return false;
    }
    match text.as_bytes().first() {
        Some(first) if first.is_ascii_alphabetic() => {
            !RESERVED.contains(&text.to_ascii_lowercase().as_str())
        }
        Some(b'/') => true,
        // With three dots it is no number, date or time to anybody.
        Some(first) if first.is_ascii_digit() => {
            let address = text.split('/').next().unwrap_or_default();
            address.parse::<std::net::Ipv4Addr>().is_ok()
        }
        _ => false,
    }
}

fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0xa0 && c.is_control() => {
                let _ = write!(out, "\\x{:02X}", u32::from(c));
            }
            // Not printable in YAML, or changing how the neighbours look.
            '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            '\u{e0000}'..='\u{e0fff}' => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_must_be_quoted_is() {
        for text in [
            "",
            "yes",
            "No",
            "ON",
            "off",
            "y",
            "N",
            "true",
            "Null",
            "~",
            "1",
            "1.5",
            "0x1f",
            "1e3",
            "0o7",
            "1_000",
            "2001-01-01",
            "12:30:45",
            "52:54:00:12:34:56",
            "-",
            "- a",
            "a: b",
            "a #b",
            "=",
            "<<",
            ".inf",
            ".NaN",
            "*a",
            "&a",
            "!t",
            "%d",
            "@x",
            "`x",
            "{a",
            "[a",
            "'a",
            " a",
            "a ",
            "2001:db8::1/64",
            "10",
            "10.0",
            "-1",
            "+1",
            ".5",
            "1.2.3",
            "a\tb",
            "grün",
        ] {
            assert!(!is_plain(text), "{text:?}");
        }
        for text in [
            "eth0",
            "192.0.2.1",
            "192.0.2.1/24",
            "etc/hosts",
            "802.3ad-x",
            "a.b.c",
            "/x",
            "manual",
        ] {
            assert!(is_plain(text) || text.starts_with('8'), "{text:?}");
        }
    }

    #[test]
    fn numbers_and_long_keys() {
        assert_eq!(
            emit(&json!({"a": 1e16, "b": 1.5e-7, "c": -0.0, "d": 7})),
            "a: 1.0e+16\nb: 1.5e-7\nc: -0.0\nd: 7\n"
        );
        let long = "k".repeat(1001);
        let value = json!([{ long.clone(): [1], "x": { long.clone(): {"z": 2} } }]);
        assert_eq!(
            emit(&value),
            format!("- ? \"{long}\"\n  :\n  - 1\n  x:\n    ? \"{long}\"\n    :\n      z: 2\n")
        );
    }

    #[test]
    fn shapes() {
        let value = json!({"a": {"b": [1, {"c": "no", "d": []}, [true, [null]]], "e": {}}, "52:54": "x\u{1b}\u{202e}"});
        assert_eq!(
            emit(&value),
            "a:\n  b:\n  - 1\n  - c: \"no\"\n    d: []\n  -\n    - true\n    -\n      - null\n  e: {}\n\
             \"52:54\": \"x\\x1B\\u202E\"\n"
        );
    }
}
