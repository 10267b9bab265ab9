//! Files of shell assignments (`KEY=value`), read without a shell.
//!
//! Quoting follows POSIX.1-2017 "Shell Command Language" 2.2 and bash's `$'…'`. Nothing is ever
//! expanded: a word holding a parameter, command or arithmetic expansion is kept as
//! [`Value::Dynamic`] with its raw text. Every byte of the file belongs to exactly one statement.
//!
//! Two programs read these files differently: a shell, where quotes may run over lines and one line
//! may hold several assignments, and NetworkManager, which takes one assignment per line
//! ([`Dialect`]).

use std::ops::Range;

/// Who reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A POSIX shell or bash.
    Shell,
    /// One assignment per line, as NetworkManager reads ifcfg files.
    LineByLine,
}

/// The right-hand side of an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text known without running anything.
    Literal(Vec<u8>),
    /// It expands something; the raw text.
    Dynamic(Vec<u8>),
    /// A quote that never closes, or an operator a shell refuses there.
    Broken(Vec<u8>),
}

/// What a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blanks and comments.
    Blank,
    /// `KEY=value`, also after `export`.
    Assignment {
        /// The variable.
        key: String,
        /// Its value.
        value: Value,
    },
    /// `unset KEY`.
    Unset(String),
    /// Anything else: a command, which is never run.
    Command(Vec<u8>),
    /// A byte order mark and the first line, which both programs lose.
    Lost(Vec<u8>),
}

/// One statement with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its bytes, the line end included.
    pub range: Range<usize>,
    /// Line of its first byte, from 1.
    pub line: u32,
    /// What it is.
    pub kind: Kind,
    /// Whether a carriage return was taken off its value.
    pub carriage_return: bool,
}

/// Splits a file into statements that cover it without a gap.
pub fn parse(bytes: &[u8], dialect: Dialect) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut at = 0usize;
    let mut line = 1u32;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        at = line_end(bytes, 0);
        statements.push(Statement {
            range: 0..at,
            line,
            kind: Kind::Lost(trimmed(bytes.get(..at).unwrap_or_default()).to_vec()),
            carriage_return: false,
        });
        line = 2;
    }
    while at < bytes.len() {
        let start = at;
        let mut parts = Vec::new();
        let end = statement_line(bytes, at, dialect, &mut parts);
        at = end.max(start.saturating_add(1)).min(bytes.len());
        let carriage_return = parts.iter().any(|p: &Part| p.carriage_return);
        if parts.is_empty() {
            parts.push(Part {
                start,
                kind: Kind::Blank,
                carriage_return: false,
            });
        }
        // The parts of one line share it: each runs up to the next, the last to the line's end.
        let mut bounds: Vec<usize> = parts.iter().skip(1).map(|p| p.start).collect();
        bounds.push(at);
        let mut from = start;
        for (part, to) in parts.into_iter().zip(bounds) {
            statements.push(Statement {
                range: from..to,
                line,
                kind: part.kind,
                carriage_return,
            });
            from = to;
        }
        let newlines = bytes
            .get(start..at)
            .unwrap_or_default()
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        line = line.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
    }
    statements
}

struct Part {
    start: usize,
    kind: Kind,
    carriage_return: bool,
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Just behind the next line feed, or the end of the file.
fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes
        .get(from..)
        .unwrap_or_default()
        .iter()
        .position(|b| *b == b'\n')
        .map_or(bytes.len(), |n| from.saturating_add(n).saturating_add(1))
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn blanks(bytes: &[u8], mut at: usize) -> usize {
    while matches!(byte(bytes, at), Some(b' ' | b'\t')) {
        at = at.saturating_add(1);
    }
    at
}

/// `NAME=` at `at`: the name and where the value begins.
fn name_at(bytes: &[u8], at: usize) -> Option<(String, usize)> {
    let mut end = at;
    while let Some(b) = byte(bytes, end) {
        if b == b'_' || b.is_ascii_alphabetic() || (end > at && b.is_ascii_digit()) {
            end = end.saturating_add(1);
        } else {
            break;
        }
    }
    let name = bytes.get(at..end)?;
    if name.is_empty() || byte(bytes, end) != Some(b'=') {
        return None;
    }
    Some((
        String::from_utf8_lossy(name).into_owned(),
        end.saturating_add(1),
    ))
}

/// Parses the statements that begin on the line at `at`; returns where the next line begins.
fn statement_line(bytes: &[u8], at: usize, dialect: Dialect, parts: &mut Vec<Part>) -> usize {
    let mut here = at;
    loop {
        here = blanks(bytes, here);
        let start = here;
        match byte(bytes, here) {
            None => return here,
            Some(b'\n') => return here.saturating_add(1),
            Some(b'\r') if matches!(byte(bytes, here.saturating_add(1)), None | Some(b'\n')) => {
                return line_end(bytes, here);
            }
            Some(b'#') => return line_end(bytes, here),
            Some(b';') if !parts.is_empty() => {
                here = here.saturating_add(1);
                continue;
            }
            Some(_) => {}
        }
        let command = |parts: &mut Vec<Part>| {
            let end = line_end(bytes, start);
            parts.push(Part {
                start,
                kind: Kind::Command(trimmed(bytes.get(start..end).unwrap_or_default()).to_vec()),
                carriage_return: false,
            });
            end
        };
        if dialect == Dialect::LineByLine && !parts.is_empty() {
            // Text behind an assignment makes the whole line none.
            let first = parts.first().map_or(start, |p| p.start);
            parts.clear();
            let end = line_end(bytes, first);
            parts.push(Part {
                start: first,
                kind: Kind::Command(trimmed(bytes.get(first..end).unwrap_or_default()).to_vec()),
                carriage_return: false,
            });
            return end;
        }
        let rest = bytes.get(here..).unwrap_or_default();
        let shell = dialect == Dialect::Shell;
        if shell && rest.starts_with(b"unset") && matches!(rest.get(5), Some(b' ' | b'\t')) {
            let end = line_end(bytes, here);
            let names = rest.get(5..end.saturating_sub(here)).unwrap_or_default();
            let text = String::from_utf8_lossy(names);
            let text = text.split(['#', ';']).next().unwrap_or_default().trim();
            for name in text
                .split_whitespace()
                .filter(|n| !n.starts_with('-'))
                .take(64)
            {
                let kind = Kind::Unset(name.to_owned());
                parts.push(Part {
                    start,
                    kind,
                    carriage_return: false,
                });
            }
            return end;
        }
        if shell && rest.starts_with(b"export") && matches!(rest.get(6), Some(b' ' | b'\t')) {
            let after = blanks(bytes, here.saturating_add(6));
            if name_at(bytes, after).is_none() {
                let end = line_end(bytes, here);
                let words = bytes.get(after..end).unwrap_or_default();
                let names_only = words
                    .trim_ascii()
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b' ' | b'\t'));
                // `export NAME` changes no value.
                if names_only {
                    parts.push(Part {
                        start,
                        kind: Kind::Blank,
                        carriage_return: false,
                    });
                    return end;
                }
                return command(parts);
            }
            here = after;
        }
        let Some((key, value_at)) = name_at(bytes, here) else {
            return command(parts);
        };
        let word = Word::read(bytes, value_at, dialect);
        let after = blanks(bytes, word.end);
        let mut end = after;
        if byte(bytes, end) == Some(b'\r') {
            end = end.saturating_add(1);
        }
        let next = byte(bytes, end);
        let more = match next {
            None | Some(b'\n' | b';') => false,
            Some(b'#') => after == word.end,
            Some(_) => true,
        };
        // `A=1 B=2` sets both in a shell; `A=1 command` sets nothing that lasts.
        let chained = more && dialect == Dialect::Shell && name_at(bytes, after).is_some();
        if more && !chained && !matches!(word.value, Value::Broken(_)) {
            return command(parts);
        }
        let broken = matches!(word.value, Value::Broken(_));
        parts.push(Part {
            start,
            kind: Kind::Assignment {
                key,
                value: word.value,
            },
            carriage_return: word.carriage_return,
        });
        if broken {
            // A shell looks for the end of a quote in all that follows, and so finds nothing else.
            return match dialect {
                Dialect::Shell if word.open_quote => bytes.len(),
                _ => line_end(bytes, word.end),
            };
        }
        here = after;
        if byte(bytes, here) == Some(b'\r') && !chained {
            here = here.saturating_add(1);
        }
    }
}

struct Word {
    value: Value,
    /// Just behind the word.
    end: usize,
    carriage_return: bool,
    /// Broken because a quote never closes.
    open_quote: bool,
}

impl Word {
    fn read(bytes: &[u8], start: usize, dialect: Dialect) -> Self {
        let mut out = Vec::new();
        let mut dynamic = false;
        let mut at = start;
        let mut carriage_return = false;
        let broken = |upto: usize| {
            let end = line_end(bytes, start);
            let at_quote = matches!(byte(bytes, upto), Some(b'\'' | b'"' | b'`' | b'$'));
            let raw = bytes.get(start..end).unwrap_or_default();
            Self {
                value: Value::Broken(trimmed(raw).to_vec()),
                end: if dialect == Dialect::Shell {
                    start.max(upto.min(end))
                } else {
                    start
                },
                carriage_return: false,
                open_quote: at_quote,
            }
        };
        // An open quote that a line-by-line reader sees ends with the line.
        let limit = match dialect {
            Dialect::Shell => bytes.len(),
            Dialect::LineByLine => line_end(bytes, start),
        };
        let within = bytes.get(..limit).unwrap_or(bytes);
        while let Some(b) = byte(within, at) {
            let next = byte(within, at.saturating_add(1));
            match b {
                b' ' | b'\t' | b'\n' | b';' => break,
                b'\r' if matches!(next, None | Some(b'\n')) => {
                    carriage_return = true;
                    break;
                }
                b'&' | b'|' | b'<' | b'>' | b'(' | b')' => return broken(at),
                b'\\' => {
                    match next {
                        // A line feed after a backslash is nothing.
                        Some(b'\n') if dialect == Dialect::Shell => {}
                        None | Some(b'\n') => return broken(at),
                        Some(c) => out.push(c),
                    }
                    at = at.saturating_add(2);
                }
                b'\'' => {
                    let from = at.saturating_add(1);
                    let inner = within.get(from..).unwrap_or_default();
                    let Some(len) = inner.iter().position(|b| *b == b'\'') else {
                        return broken(at);
                    };
                    out.extend_from_slice(inner.get(..len).unwrap_or_default());
                    at = from.saturating_add(len).saturating_add(1);
                }
                b'"' => {
                    let Some(end) =
                        double_quoted(within, at.saturating_add(1), &mut out, &mut dynamic)
                    else {
                        return broken(at);
                    };
                    at = end;
                }
                b'$' if next == Some(b'\'') => {
                    let Some(end) = ansi_quoted(within, at.saturating_add(2), &mut out) else {
                        return broken(at);
                    };
                    at = end;
                }
                // NetworkManager takes other characters as they are; a bracket is refused above.
                b'$' | b'`' | b'~' if dialect == Dialect::LineByLine && next != Some(b'(') => {
                    out.push(b);
                    at = at.saturating_add(1);
                }
                // `$"…"` is translated by locale; untranslated it is the text itself.
                b'$' if next == Some(b'"') => at = at.saturating_add(1),
                b'$' if expands(next) => {
                    dynamic = true;
                    at = expansion_end(within, at);
                }
                b'`' => {
                    dynamic = true;
                    let from = at.saturating_add(1);
                    let inner = within.get(from..).unwrap_or_default();
                    let Some(len) = inner.iter().position(|b| *b == b'`') else {
                        return broken(at);
                    };
                    at = from.saturating_add(len).saturating_add(1);
                }
                b'~' if at == start => {
                    dynamic = true;
                    at = at.saturating_add(1);
                }
                _ => {
                    out.push(b);
                    at = at.saturating_add(1);
                }
            }
        }
        let raw = bytes.get(start..at.min(bytes.len())).unwrap_or_default();
        let value = if dynamic {
            Value::Dynamic(raw.to_vec())
        } else {
            Value::Literal(out)
        };
        Self {
            value,
            end: at.min(bytes.len()),
            carriage_return,
            open_quote: false,
        }
    }
}

/// Whether `$` before this byte begins an expansion.
fn expands(next: Option<u8>) -> bool {
    next.is_some_and(|b| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'_' | b'{' | b'(' | b'@' | b'*' | b'#' | b'?' | b'-' | b'$' | b'!'
            )
    })
}

/// Just behind the expansion whose `$` is at `at`, as far as matching brackets tell.
fn expansion_end(bytes: &[u8], at: usize) -> usize {
    let open = byte(bytes, at.saturating_add(1));
    let (open, close) = match open {
        Some(b'{') => (b'{', b'}'),
        Some(b'(') => (b'(', b')'),
        _ => return at.saturating_add(2).min(bytes.len()),
    };
    let mut depth = 0usize;
    for (n, b) in bytes.iter().enumerate().skip(at.saturating_add(1)) {
        if *b == open {
            depth = depth.saturating_add(1);
        } else if *b == close {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return n.saturating_add(1);
            }
        } else if *b == b'\n' {
            return n;
        }
    }
    bytes.len()
}

fn double_quoted(
    bytes: &[u8],
    mut at: usize,
    out: &mut Vec<u8>,
    dynamic: &mut bool,
) -> Option<usize> {
    loop {
        let b = byte(bytes, at)?;
        let next = byte(bytes, at.saturating_add(1));
        match b {
            b'"' => return Some(at.saturating_add(1)),
            b'\\' => {
                match next? {
                    c @ (b'$' | b'`' | b'"' | b'\\') => out.push(c),
                    b'\n' => {}
                    c => out.extend([b'\\', c]),
                }
                at = at.saturating_add(2);
            }
            b'$' if expands(next) => {
                *dynamic = true;
                at = expansion_end(bytes, at);
            }
            b'`' => {
                *dynamic = true;
                at = at.saturating_add(1);
            }
            _ => {
                out.push(b);
                at = at.saturating_add(1);
            }
        }
    }
}

/// bash's `$'…'`.
fn ansi_quoted(bytes: &[u8], mut at: usize, out: &mut Vec<u8>) -> Option<usize> {
    // A NUL ends the quoted text for bash.
    let mut cut: Option<usize> = None;
    loop {
        let b = byte(bytes, at)?;
        at = at.saturating_add(1);
        match b {
            b'\'' => {
                if let Some(cut) = cut {
                    out.truncate(cut);
                }
                return Some(at);
            }
            b'\\' => {
                let c = byte(bytes, at)?;
                at = at.saturating_add(1);
                let after = at;
                let mut number = |first: usize, max: usize, radix: u32| {
                    let mut value = 0u32;
                    let mut end = first;
                    while end < first.saturating_add(max) {
                        let Some(digit) =
                            byte(bytes, end).and_then(|b| char::from(b).to_digit(radix))
                        else {
                            break;
                        };
                        value = value.wrapping_mul(radix).wrapping_add(digit);
                        end = end.saturating_add(1);
                    }
                    at = end;
                    (end > first).then_some(value)
                };
                let before = out.len();
                let mut nul = false;
                match c {
                    b'a' => out.push(7),
                    b'b' => out.push(8),
                    b'e' | b'E' => out.push(27),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'v' => out.push(11),
                    b'\\' | b'\'' | b'"' | b'?' => out.push(c),
                    b'0'..=b'7' => {
                        let value = number(after.saturating_sub(1), 3, 8).unwrap_or(0);
                        let [low, ..] = value.to_le_bytes();
                        nul = low == 0;
                        out.push(low);
                    }
                    b'x' => match number(after, 2, 16) {
                        Some(value) => {
                            let [low, ..] = value.to_le_bytes();
                            nul = low == 0;
                            out.push(low);
                        }
                        None => out.extend(b"\\x"),
                    },
                    b'u' | b'U' => match number(after, if c == b'u' { 4 } else { 8 }, 16) {
                        Some(value) => {
                            nul = value == 0;
                            let shown =
                                char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
                            out.extend(shown.to_string().bytes());
                        }
                        None => out.extend([b'\\', c]),
                    },
                    b'c' => {
                        let control = byte(bytes, at)?;
                        at = at.saturating_add(1);
                        let value = if control == b'?' {
                            0x7f
                        } else {
                            control & 0x1f
                        };
                        nul = value == 0;
                        out.push(value);
                    }
                    _ => out.extend([b'\\', c]),
                }
                if nul && cut.is_none() {
                    cut = Some(before);
                }
            }
            _ => out.push(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, dialect: Dialect) -> Kind {
        let statements = parse(text.as_bytes(), dialect);
        statements
            .into_iter()
            .map(|s| s.kind)
            .find(|k| *k != Kind::Blank)
            .unwrap_or(Kind::Blank)
    }

    fn literal(text: &str) -> String {
        match one(text, Dialect::LineByLine) {
            Kind::Assignment {
                value: Value::Literal(v),
                ..
            } => String::from_utf8(v).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn quoting() {
        for (text, want) in [
            (r#"A='Joe'"'"'s net'"#, "Joe's net"),
            (r#"A="a\"b""#, "a\"b"),
            (r"A=a\ b", "a b"),
            (r"A=$'a\tb'", "a\tb"),
            (r#"A="\x""#, r"\x"),
            (r#"A="\$\`\\""#, r"$`\"),
            ("A=ab#c", "ab#c"),
            ("A=ab #c", "ab"),
            ("A=ab;", "ab"),
            ("A=ab ; # x", "ab"),
            ("A=ab\r\n", "ab"),
            ("A=", ""),
            ("  A=b", "b"),
            ("A=$B", "$B"),
            ("A=${B}", "${B}"),
            ("A=`x`", "`x`"),
            (r"A=$'\x41\102\u00e9\e\q'", "AB\u{e9}\u{1b}\\q"),
            (r"A=$'a\0b'c", "ac"),
            ("A=a$", "a$"),
            ("A=\"a$ b\"", "a$ b"),
        ] {
            assert_eq!(literal(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_value() {
        assert!(matches!(one("A=b c", Dialect::Shell), Kind::Command(_)));
        assert!(matches!(
            one("A=b c", Dialect::LineByLine),
            Kind::Command(_)
        ));
        for text in [
            "A=\"$B\"",
            "A=$(x)",
            "A=`x`",
            "A=${B:-c}",
            "A=$1",
            "A=\"a`x y`\"",
        ] {
            let kind = one(text, Dialect::Shell);
            assert!(
                matches!(&kind, Kind::Assignment { value: Value::Dynamic(v), .. } if &text.as_bytes()[2..] == v),
                "{text} {kind:?}"
            );
        }
        assert_eq!(
            one("export A=b", Dialect::Shell),
            Kind::Assignment {
                key: "A".into(),
                value: Value::Literal(b"b".into())
            }
        );
        for text in ["export A=b", "unset A", "A=1; B=2"] {
            let kind = one(text, Dialect::LineByLine);
            assert_eq!(kind, Kind::Command(text.into()));
        }
        // All behind an open quote belongs to it.
        let statements = parse(b"A='x\nB=1\nc d\n", Dialect::Shell);
        assert_eq!(statements.len(), 1, "{statements:?}");
        for text in ["A='x", "A=\"x", "A=$'x", "A=a(b)", "A=\\"] {
            let kind = one(text, Dialect::LineByLine);
            assert!(
                matches!(
                    kind,
                    Kind::Assignment {
                        value: Value::Broken(_),
                        ..
                    }
                ),
                "{text} {kind:?}"
            );
        }
        assert_eq!(one("unset A", Dialect::Shell), Kind::Unset("A".into()));
        assert!(matches!(
            one("\u{feff}A=1\n", Dialect::Shell),
            Kind::Lost(_)
        ));
    }

    #[test]
    fn dialects() {
        let count = |text: &str, dialect| {
            parse(text.as_bytes(), dialect)
                .into_iter()
                .filter(|s| {
                    matches!(
                        s.kind,
                        Kind::Assignment {
                            value: Value::Literal(_),
                            ..
                        }
                    )
                })
                .count()
        };
        assert_eq!(count("A=1 B=2\n", Dialect::Shell), 2);
        assert_eq!(count("A=1; B=2\n", Dialect::Shell), 2);
        assert_eq!(count("A='1\n2'\nB=3\n", Dialect::Shell), 2);
        assert_eq!(count("A='1\n2\nB=3\n", Dialect::LineByLine), 1);
    }

    #[test]
    fn the_statements_cover_the_file() {
        for text in [
            "A=1;B=2 C=3\n#x\n\n unset X Y\nfoo\nA='\n'",
            "\u{feff}",
            "A=\\",
            "A=1\r\n\r\n",
            "A=b #c",
            "A=b; c",
        ] {
            for dialect in [Dialect::Shell, Dialect::LineByLine] {
                let mut at = 0;
                for statement in parse(text.as_bytes(), dialect) {
                    assert_eq!(statement.range.start, at, "{text:?}");
                    at = statement.range.end;
                }
                assert_eq!(at, text.len(), "{text:?}");
            }
        }
    }
}
