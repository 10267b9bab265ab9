//! Shell patterns on bytes: `*`, `?`, `[a-z]`, `[!a-z]`, `\` before a character to take it as is.

/// Whether a whole name matches. Takes at most pattern × name steps.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0usize, 0usize);
    // Where to go on after the last `*` took one more byte; earlier ones need no second try.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let here = pattern.get(p..).unwrap_or_default();
        if here.first() == Some(&b'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        match (one(here), name.get(n)) {
            (None, None) => return true,
            (Some((len, test)), Some(&byte)) if test.fits(byte) => {
                p += len;
                n += 1;
            }
            _ => match retry {
                Some((after, from)) if from < name.len() => {
                    p = after;
                    n = from + 1;
                    retry = Some((after, n));
                }
                _ => return false,
            },
        }
    }
}

enum Test<'a> {
    Any,
    Is(u8),
    Set { bytes: &'a [u8], negated: bool },
}

impl Test<'_> {
    fn fits(&self, byte: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Is(b) => *b == byte,
            Self::Set { bytes, negated } => {
                let mut rest = *bytes;
                let mut inside = false;
                while let Some((&first, tail)) = rest.split_first() {
                    if let [b'-', last, more @ ..] = tail {
                        inside |= (first..=*last).contains(&byte);
                        rest = more;
                    } else {
                        inside |= first == byte;
                        rest = tail;
                    }
                }
                inside != *negated
            }
        }
    }
}

/// The test for one byte at the head of a pattern, and its length.
fn one(pattern: &[u8]) -> Option<(usize, Test<'_>)> {
    match pattern {
        [] => None,
        [b'?', ..] => Some((1, Test::Any)),
        [b'\\', b, ..] => Some((2, Test::Is(*b))),
        [b'[', rest @ ..] => {
            let negated = matches!(rest.first(), Some(b'!' | b'^'));
            let body = rest.get(usize::from(negated)..).unwrap_or_default();
            // A `]` right at the start is a member.
            let end = body
                .iter()
                .skip(1)
                .position(|&b| b == b']')
                .map(|at| at + 1);
            Some(match end.and_then(|end| Some((end, body.get(..end)?))) {
                Some((end, bytes)) => {
                    (end + 2 + usize::from(negated), Test::Set { bytes, negated })
                }
                None => (1, Test::Is(b'[')),
            })
        }
        [b, ..] => Some((1, Test::Is(*b))),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn like_fnmatch() {
        for (pattern, name, want) in [
            ("", "", true),
            ("*", "", true),
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[", "[", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                want,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn time_is_bounded() {
        let name = vec![b'a'; 255];
        let pattern = b"*a".repeat(100);
        let pattern = [pattern.as_slice(), b"b"].concat();
        assert!(!matches(&pattern, &name));
    }
}
