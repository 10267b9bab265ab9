//! Files of `KEY=value` lines that a shell would source: os-release, lsb-release, sysconfig files.
//!
//! The quoting of POSIX sh is understood (IEEE 1003.1-2017, XCU 2.2): `\x`, `'…'`, `"…"` with its
//! four escapes, values over several lines inside quotes, pieces side by side. Nothing is
//! evaluated: `$name`, `$(…)` and backticks stay the text they are. A line that is no assignment
//! is passed over.

use super::evidence::MAX_VALUE_BYTES;

/// Most assignments taken from one file; real ones have a few dozen.
const MAX_ASSIGNMENTS: usize = 1024;

/// The assignments of a file, in order. A later one of the same key is what a shell would keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments(Vec<Assignment>);

/// A key and its value, unquoted.
type Assignment = (Vec<u8>, Vec<u8>);

impl Assignments {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut found = Vec::new();
        let mut rest = text;
        while !rest.is_empty() && found.len() < MAX_ASSIGNMENTS {
            let (assignment, after) = statement(rest);
            if let Some(assignment) = assignment {
                found.push(assignment);
            }
            rest = after;
        }
        Self(found)
    }

    /// The value of a key, unquoted, in bytes; the last one if there are several.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        let of_key = |(k, _): &&Assignment| k == key.as_bytes();
        self.0.iter().rev().find(of_key).map(|(_, v)| v.as_slice())
    }

    /// The value of a key as text; `None` if it is empty.
    pub fn text(&self, key: &str) -> Option<String> {
        super::evidence::text_value(self.bytes(key)?)
    }
}

/// One statement from the start of `text`, and what follows it. At least one byte is consumed.
fn statement(text: &[u8]) -> (Option<Assignment>, &[u8]) {
    let end = text.iter().position(|&b| b == b'\n').unwrap_or(text.len());
    let (line, next_line) = text.split_at(end);
    let next_line = next_line.get(1..).unwrap_or_default();
    let trimmed = line.trim_ascii_start();
    let trimmed = trimmed
        .strip_prefix(b"export ")
        .map_or(trimmed, <[u8]>::trim_ascii_start);
    let Some(equals) = trimmed.iter().position(|&b| b == b'=') else {
        return (None, next_line);
    };
    let (key, value) = trimmed.split_at(equals);
    if !is_name(key) {
        return (None, next_line);
    }
    // The value may go on over the end of the line, within quotes.
    let at = text
        .len()
        .saturating_sub(next_line.len())
        .saturating_sub(usize::from(end < text.len()))
        .saturating_sub(value.len().saturating_sub(1));
    let from = text.get(at..).unwrap_or_default();
    match word(from) {
        Some((value, used)) => {
            let after = from.get(used..).unwrap_or_default();
            let newline = after.iter().position(|&b| b == b'\n');
            let rest = newline.and_then(|n| after.get(n.saturating_add(1)..));
            (Some((key.to_vec(), value)), rest.unwrap_or_default())
        }
        // A quote that is never closed: the line as it stands, without the quote.
        None => {
            let raw = value.get(1..).unwrap_or_default().trim_ascii();
            let raw = match raw {
                [b'"' | b'\'', inner @ ..] => inner,
                _ => raw,
            };
            let raw = raw.get(..MAX_VALUE_BYTES).unwrap_or(raw);
            (Some((key.to_vec(), raw.to_vec())), next_line)
        }
    }
}

fn is_name(key: &[u8]) -> bool {
    let start = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    key.first().is_some_and(start) && key.iter().all(|b| start(b) || b.is_ascii_digit())
}

/// A shell word, unquoted, and how many bytes it took. `None` if a quote is left open within
/// [`MAX_VALUE_BYTES`].
fn word(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut out = Vec::new();
    let mut used = 0usize;
    let mut bytes = text.iter().copied().take(MAX_VALUE_BYTES).peekable();
    let mut take = |used: &mut usize| {
        let byte = bytes.next();
        if byte.is_some() {
            *used = used.saturating_add(1);
        }
        byte
    };
    loop {
        let before = used;
        let Some(byte) = take(&mut used) else {
            return Some((out, used));
        };
        match byte {
            b'\n' => return Some((out, before)),
            // Unquoted blanks end the word for a shell; files that never meet one (old
            // lsb-release, hand-written os-release) mean the whole line.
            b' ' | b'\t' | b'\r' => {
                let rest = text.get(used..).unwrap_or_default();
                let line = rest.split(|&b| b == b'\n').next().unwrap_or_default();
                let line = line.get(..MAX_VALUE_BYTES).unwrap_or(line);
                let more = line.trim_ascii();
                if !matches!(more.first(), None | Some(b'#' | b';' | b'&')) {
                    out.push(b' ');
                    out.extend_from_slice(more);
                }
                return Some((out, used));
            }
            b';' | b'&' => return Some((out, before)),
            b'\\' => match take(&mut used) {
                Some(b'\n') => {}
                Some(escaped) => out.push(escaped),
                None => out.push(b'\\'),
            },
            b'\'' => loop {
                match take(&mut used)? {
                    b'\'' => break,
                    other => out.push(other),
                }
            },
            b'"' => loop {
                match take(&mut used)? {
                    b'"' => break,
                    b'\\' => match take(&mut used)? {
                        b'\n' => {}
                        escaped @ (b'"' | b'\\' | b'$' | b'`') => out.push(escaped),
                        other => out.extend([b'\\', other]),
                    },
                    other => out.push(other),
                }
            },
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> String {
        let found = Assignments::parse(line.as_bytes());
        found.text("K").unwrap_or_else(|| "NONE".into())
    }

    #[test]
    fn quoting() {
        for (line, want) in [
            ("K=plain", "plain"),
            ("K=\"two words\"", "two words"),
            ("K='single $HOME `id`'", "single $HOME `id`"),
            (
                "K=\"double \\\" \\\\ \\$x \\` \\n\"",
                "double \" \\ $x ` \\n",
            ),
            ("K=\"$(touch /tmp/x)\"", "$(touch /tmp/x)"),
            ("K=a\"b c\"'d e'f\\ g", "ab cd ef g"),
            ("K=two words", "two words"),
            ("K=v # comment", "v"),
            ("K=v; rm -rf /", "v"),
            ("K=\"open", "open"),
            ("K='it'\\''s'", "it's"),
            ("  export K=v", "v"),
            ("#K=v", "NONE"),
            ("K =v", "NONE"),
            ("K=", "NONE"),
            ("K=a\nK=b", "b"),
            ("K=\"a\nb\"\nL=c", "a\nb"),
            ("K=v\r\nL=c\r\n", "v"),
            ("\u{feff}K=v", "v"),
        ] {
            assert_eq!(value(line), want, "{line:?}");
        }
        let both = Assignments::parse(b"K=\"a\nb\"\nL=c\n");
        assert_eq!(both.bytes("L"), Some(&b"c"[..]));
        let open = Assignments::parse(b"K=\"never closed\nL=c\n");
        assert_eq!(open.bytes("K"), Some(&b"never closed"[..]));
        assert_eq!(open.bytes("L"), Some(&b"c"[..]));
        assert_eq!(
            Assignments::parse(b"K=\xff\xfe").text("K").as_deref(),
            Some("\u{fffd}\u{fffd}")
        );
    }
}
