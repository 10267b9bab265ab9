//! Text from a guest. Names are bytes; they are escaped before a terminal or a log sees them.

use std::fmt::Write as _;

/// One line that is safe to print: valid UTF-8 kept, control characters, bidirectional overrides
/// and invalid bytes written as escapes (`\n`, `\x1b`, `\u{202e}`), a backslash doubled.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_ascii_control() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                c if c.is_control() || is_invisible(c) => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that change how their neighbours are shown: bidirectional controls, zero-width
/// joiners, line and paragraph separators, the byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Whether a character is shown as itself and leaves its neighbours alone: no control character, no
/// invisible one.
pub fn is_plain(c: char) -> bool {
    !c.is_control() && !is_invisible(c)
}

/// A fixed-size name field: the bytes before the first NUL.
pub fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// UTF-16LE text of a fixed-size field up to the first NUL; unpaired surrogates become U+FFFD.
pub fn utf16le(field: &[u8]) -> String {
    let units = field
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_is_one_harmless_line() {
        assert_eq!(printable(b"plain"), "plain");
        assert_eq!(printable("grüße".as_bytes()), "grüße");
        assert_eq!(printable(b"a\nb\x1b[31m\\"), "a\\nb\\x1b[31m\\\\");
        assert_eq!(printable(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn fixed_fields() {
        assert_eq!(until_nul(b"abc\0def"), b"abc");
        assert_eq!(until_nul(b"abc"), b"abc");
        assert_eq!(utf16le(b"E\0F\0I\0\0\0x\0"), "EFI");
    }
}
