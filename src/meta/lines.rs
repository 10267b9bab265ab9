//! A JSON value as lines for people and `grep`.

use serde_json::Value;

use crate::ondisk::text::is_plain;

/// One `path.to.value: value` line for each value, strings as JSON writes them with every
/// character escaped that could harm a terminal. What is null is left out.
pub fn of(value: &Value) -> String {
    let mut out = String::new();
    walk("", value, &mut out);
    out
}

// Our own values, a few levels deep.
fn walk(at: &str, value: &Value, out: &mut String) {
    let join = |name: &str| match at {
        "" => name.to_owned(),
        _ => format!("{at}.{name}"),
    };
    match value {
        Value::Null => {}
        Value::Object(map) => map.iter().for_each(|(k, v)| walk(&join(k), v, out)),
        Value::Array(list) => {
            for (n, v) in list.iter().enumerate() {
                walk(&join(&n.to_string()), v, out);
            }
        }
        _ => {
            let line = format!("{at}: {value}");
            for c in line.chars() {
                if is_plain(c) {
                    out.push(c);
                } else {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
            }
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let value =
            serde_json::json!({ "a": [1, "x\ny\u{202e}\u{9b}"], "b": { "c": null, "d": true } });
        assert_eq!(
            of(&value),
            "a.0: 1\na.1: \"x\\ny\\u202e\\u009b\"\nb.d: true\n"
        );
    }
}
