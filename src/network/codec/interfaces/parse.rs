//! Lines, stanzas and included files.
//!
//! A line ending in a backslash goes on in the next one, whatever that holds; a comment is a line
//! whose first character is `#` and never goes on. Stanzas end where the next one begins.

use std::collections::BTreeSet;
use std::ops::Range;

use super::super::super::address;
use super::super::super::api::{EntryKind, MAX_INCLUDE_DEPTH, NetworkFiles, Reading, text};
use super::super::super::ledger::{SourceId, State};
use super::super::super::model::{Effect, Unmapped};
use super::super::ifcfg::profile::mentions_secret;
use super::Flavour;

/// Most stanzas taken.
const MAX_STANZAS: usize = 4096;

/// Most options of all stanzas.
const MAX_OPTIONS: usize = 100_000;

/// Most patterns of `auto` and `allow-hotplug`.
const MAX_PATTERNS: usize = 256;

/// Most files one pattern stands for.
const MAX_MATCHES: usize = 4096;

/// Where a line stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its file.
    pub source: SourceId,
    /// Its bytes.
    pub range: Range<usize>,
    /// From 1.
    pub line: u32,
    /// The file's path.
    pub path: std::rc::Rc<str>,
}

/// One option of a stanza.
#[derive(Clone, Debug)]
pub struct Opt {
    /// The name with dashes, in which `-` and `_` are the same.
    pub name: String,
    /// The name as written.
    pub raw: String,
    /// The rest of the line.
    pub value: String,
    /// Where.
    pub place: Place,
}

/// One `iface` stanza.
#[derive(Clone, Debug)]
pub struct Stanza {
    /// Its name.
    pub name: String,
    /// `inet`, `inet6`, …; empty where a family may be left out and is.
    pub family: String,
    /// `static`, `dhcp`, …
    pub method: String,
    /// Names of the stanzas whose options come first.
    pub inherits: Vec<String>,
    /// Its options in order.
    pub options: Vec<Opt>,
    /// Its first line.
    pub place: Place,
}

/// Everything read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// `iface` stanzas in order.
    pub stanzas: Vec<Stanza>,
    /// Names of `auto`, `allow-auto`.
    pub auto: BTreeSet<String>,
    /// Names of `allow-hotplug`.
    pub hotplug: BTreeSet<String>,
    /// Patterns of `auto` and `allow-hotplug`; whether the latter.
    pub patterns: Vec<(Pattern, bool)>,
    /// Renames: from, to.
    pub renames: Vec<(String, String)>,
    /// Whether there is a `mapping`.
    pub has_mappings: bool,
    /// Logical names of `map` lines.
    pub logical: BTreeSet<String>,
    options: usize,
    /// The quote a secret's value opens and does not close: what follows may belong to it.
    open_secret: Option<char>,
}

/// A pattern of `auto`, `allow-hotplug` or `rename`: `[VARIABLE]/VALUE[/OPTIONS][=LOGICAL]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Shell pattern of the interface's name, if the pattern is about that.
    pub name: Option<String>,
    /// The interface's MAC as written, if the pattern is about that.
    pub mac: Option<String>,
    /// The stanza that is used.
    pub logical: Option<String>,
}

impl Pattern {
    /// `None` if a word is no pattern, or one about something else than name and MAC.
    pub fn parse(word: &str) -> Option<Self> {
        let (left, logical) = match word.split_once('=') {
            Some((left, logical)) => (left, Some(logical.to_owned())),
            None => (word, None),
        };
        // `/mac/…` is written as well.
        let left = match left.strip_prefix("/mac/") {
            Some(value) => format!("mac/{value}"),
            None => left.to_owned(),
        };
        let (variable, value) = left.split_once('/')?;
        let value = match value.split_once('/') {
            None | Some((_, "")) => value.trim_end_matches('/').to_owned(),
            // Options choose one of several interfaces.
            Some(_) => return None,
        };
        let (name, mac) = match variable {
            _ if value.is_empty() => return None,
            "" => (Some(value), None),
            "mac" => (None, Some(value)),
            _ => return None,
        };
        Some(Self { name, mac, logical })
    }

    /// Whether the pattern is about a name and that name fits.
    pub fn fits(&self, interface: &str) -> bool {
        let fits = |p: &String| matches(p.as_bytes(), interface.as_bytes());
        self.name.as_ref().is_some_and(fits)
    }
}

enum Current {
    Nothing,
    Iface,
    Mapping(String),
    /// A stanza too many; its options go to `unmapped`.
    Dropped,
}

/// One logical line.
struct Logical {
    range: Range<usize>,
    line: u32,
    text: String,
    comment: bool,
}

fn logical_lines(bytes: &[u8]) -> Vec<Logical> {
    let mut out: Vec<Logical> = Vec::new();
    let mut open: Option<(usize, u32, Vec<u8>)> = None;
    let (mut at, mut number) = (0usize, 0u32);
    for physical in bytes.split_inclusive(|b| *b == b'\n') {
        let start = at;
        at = at.saturating_add(physical.len());
        number = number.saturating_add(1);
        let bare = physical.strip_suffix(b"\n").unwrap_or(physical);
        let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
        if open.is_none() && bare.trim_ascii_start().first().is_none_or(|b| *b == b'#') {
            out.push(Logical {
                range: start..at,
                line: number,
                text: String::new(),
                comment: true,
            });
            continue;
        }
        let (start, line, mut joined) = open.take().unwrap_or((start, number, Vec::new()));
        match bare.strip_suffix(b"\\") {
            Some(before) if at < bytes.len() => {
                joined.extend_from_slice(before);
                open = Some((start, line, joined));
            }
            _ => {
                joined.extend_from_slice(bare);
                let text = text(&joined).trim().to_owned();
                let comment = text.is_empty();
                out.push(Logical {
                    range: start..at,
                    line,
                    text,
                    comment,
                });
            }
        }
    }
    if let Some((start, line, joined)) = open {
        let text = text(&joined).trim().to_owned();
        let comment = text.is_empty();
        out.push(Logical {
            range: start..at,
            line,
            text,
            comment,
        });
    }
    out
}

/// Reads `etc/network/interfaces` and what it includes.
pub fn read(reading: &mut Reading<'_>, flavour: Flavour) -> Parsed {
    let mut parsed = Parsed::default();
    // Files still to read, the next one last. An included file is read where its `source` stands,
    // so the rest of the including file waits below it.
    let mut work: Vec<Work> = Vec::new();
    open(reading, &mut work, b"etc/network/interfaces", 0, flavour);
    while let Some(mut file) = work.pop() {
        let Some(logical) = file.lines.next() else {
            continue;
        };
        let place = Place {
            source: file.source,
            range: logical.range.clone(),
            line: logical.line,
            path: file.path.clone(),
        };
        let (depth, dir) = (
            file.depth,
            file.path.rsplit_once('/').map_or("", |(d, _)| d).to_owned(),
        );
        let included = line(
            reading,
            &mut parsed,
            &mut file.current,
            flavour,
            logical,
            &place,
            &dir,
        );
        work.push(file);
        if included.is_empty() {
            continue;
        }
        if depth >= MAX_INCLUDE_DEPTH {
            let message = "files included too deep, not read";
            reading.warn(place.path.as_bytes(), Some(place.line), message);
            continue;
        }
        for path in included.iter().rev() {
            open(reading, &mut work, path, depth.saturating_add(1), flavour);
        }
    }
    parsed
}

struct Work {
    source: SourceId,
    path: std::rc::Rc<str>,
    lines: std::vec::IntoIter<Logical>,
    current: Current,
    depth: usize,
}

fn open(
    reading: &mut Reading<'_>,
    work: &mut Vec<Work>,
    path: &[u8],
    depth: usize,
    flavour: Flavour,
) {
    let Some((source, bytes)) = reading.open(path) else {
        return;
    };
    let name = text(path);
    let is_template = flavour == Flavour::Ifupdown2
        && text(&bytes)
            .lines()
            .any(|l| l.trim_start().starts_with('%') || l.contains("${"));
    if is_template {
        reading.warn(path, None, "a template; what it expands to is not known");
        reading.unmapped(Unmapped {
            file: name,
            line: None,
            iface: None,
            key: None,
            value: Some(text(&bytes)),
            effect: if mentions_secret(&text(&bytes)) {
                Effect::Secret
            } else {
                Effect::Script
            },
            redacted: false,
        });
        reading.mark(source, 0..bytes.len(), State::Unmapped);
        return;
    }
    work.push(Work {
        source,
        path: name.into(),
        lines: logical_lines(&bytes).into_iter(),
        current: Current::Nothing,
        depth,
    });
}

fn line(
    reading: &mut Reading<'_>,
    parsed: &mut Parsed,
    current: &mut Current,
    flavour: Flavour,
    logical: Logical,
    place: &Place,
    dir: &str,
) -> Vec<Vec<u8>> {
    let mut included = Vec::new();
    if logical.comment {
        reading.mark(place.source, place.range.clone(), State::Syntax);
        return included;
    }
    let mut words = logical.text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let value = logical.text.get(first.len()..).unwrap_or_default().trim();
    if let Some(quote) = parsed.open_secret {
        if logical.text.contains(quote) {
            parsed.open_secret = None;
        }
        unmapped(reading, place, None, None, "", Effect::Secret);
        reading.mark(place.source, place.range.clone(), State::Unmapped);
        return included;
    }
    if is_secret(first)
        && let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\''))
        && value.matches(quote).count() == 1
    {
        parsed.open_secret = Some(quote);
    }
    let state = match first {
        "auto" | "allow-auto" if rest.is_empty() => match (&current, parsed.stanzas.last()) {
            (Current::Iface, Some(stanza)) => {
                parsed.auto.insert(stanza.name.clone());
                State::Mapped
            }
            _ => {
                reading.warn(
                    place.path.as_bytes(),
                    Some(place.line),
                    "auto without a name",
                );
                State::Rejected
            }
        },
        "auto" | "allow-auto" | "allow-hotplug" => {
            *current = Current::Nothing;
            let hot = first == "allow-hotplug";
            let mut complete = true;
            for name in &rest {
                if !name.contains('/') {
                    let set = if hot {
                        &mut parsed.hotplug
                    } else {
                        &mut parsed.auto
                    };
                    set.insert((*name).to_owned());
                } else if let Some(pattern) = Pattern::parse(name)
                    && parsed.patterns.len() < MAX_PATTERNS
                {
                    // netplan has no word for a pattern of MACs.
                    let mac = pattern.mac.as_deref();
                    complete &= mac.is_none_or(|m| address::mac(m).is_some());
                    parsed.patterns.push((pattern, hot));
                } else {
                    complete = false;
                }
            }
            if complete {
                State::Mapped
            } else {
                unmapped(reading, place, None, Some(first), value, Effect::Behaviour);
                State::Unmapped
            }
        }
        _ if first.starts_with("allow-") || matches!(first, "no-auto-down" | "no-scripts") => {
            *current = Current::Nothing;
            unmapped(reading, place, None, Some(first), value, Effect::Behaviour);
            State::Unmapped
        }
        "rename" => {
            *current = Current::Nothing;
            let mut complete = !rest.is_empty();
            for pair in &rest {
                match pair.split_once('=') {
                    Some((from, to)) => parsed.renames.push((from.to_owned(), to.to_owned())),
                    None => complete = false,
                }
            }
            if complete {
                State::Mapped
            } else {
                unmapped(reading, place, None, Some(first), value, Effect::Behaviour);
                State::Unmapped
            }
        }
        "source" => {
            *current = Current::Nothing;
            for pattern in &rest {
                if pattern.contains(['$', '`', '(']) {
                    let message = "a pattern that depends on code";
                    reading.warn(place.path.as_bytes(), Some(place.line), message);
                    unmapped(reading, place, None, Some(first), pattern, Effect::Script);
                } else {
                    included.extend(expand(reading.files(), dir, pattern));
                }
            }
            State::Implied
        }
        _ if first.starts_with("source-dir") => {
            *current = Current::Nothing;
            for pattern in &rest {
                for found in expand(reading.files(), dir, pattern) {
                    included.extend(directory(reading, &found, flavour));
                }
            }
            State::Implied
        }
        "mapping" => {
            *current = Current::Mapping(value.to_owned());
            parsed.has_mappings = true;
            unmapped(reading, place, None, Some(first), value, Effect::Script);
            State::Unmapped
        }
        "iface" => {
            let stanza = stanza(&rest, place);
            let families = flavour == Flavour::Ifupdown || flavour == Flavour::Busybox;
            match stanza {
                Some(stanza) if parsed.stanzas.len() < MAX_STANZAS => {
                    if families && stanza.family.is_empty() && stanza.inherits.is_empty() {
                        let message =
                            "iface without family and method: ifup refuses the whole configuration";
                        reading.warn(place.path.as_bytes(), Some(place.line), message);
                    }
                    parsed.stanzas.push(stanza);
                    *current = Current::Iface;
                    State::Mapped
                }
                _ => {
                    let message =
                        "an iface line that makes no stanza: ifup refuses the whole configuration";
                    reading.warn(place.path.as_bytes(), Some(place.line), message);
                    *current = Current::Dropped;
                    State::Rejected
                }
            }
        }
        "template" if flavour == Flavour::Ifupdown2 => {
            *current = Current::Dropped;
            unmapped(reading, place, None, Some(first), value, Effect::Behaviour);
            State::Unmapped
        }
        _ => return option(reading, parsed, current, first, value, place),
    };
    reading.mark(place.source, place.range.clone(), state);
    included
}

fn option(
    reading: &mut Reading<'_>,
    parsed: &mut Parsed,
    current: &Current,
    first: &str,
    value: &str,
    place: &Place,
) -> Vec<Vec<u8>> {
    let (path, line) = (place.path.clone(), Some(place.line));
    match current {
        Current::Nothing => {
            let message = "an option outside a stanza: ifup refuses the whole configuration";
            reading.warn(path.as_bytes(), line, message);
            unmapped(reading, place, None, Some(first), value, Effect::None);
            reading.mark(place.source, place.range.clone(), State::Rejected);
        }
        Current::Dropped => {
            unmapped(reading, place, None, Some(first), value, Effect::Unknown);
            reading.mark(place.source, place.range.clone(), State::Unmapped);
        }
        Current::Mapping(pattern) => {
            if first == "map"
                && let Some(name) = value.split_whitespace().last()
            {
                parsed.logical.insert(name.to_owned());
            }
            unmapped(
                reading,
                place,
                Some(pattern),
                Some(first),
                value,
                Effect::Script,
            );
            reading.mark(place.source, place.range.clone(), State::Unmapped);
        }
        Current::Iface => {
            if value.is_empty() {
                let message = "an option without a value: ifup refuses the whole configuration";
                reading.warn(path.as_bytes(), line, message);
            }
            parsed.options = parsed.options.saturating_add(1);
            if parsed.options > MAX_OPTIONS {
                unmapped(reading, place, None, Some(first), value, Effect::Unknown);
                reading.mark(place.source, place.range.clone(), State::Unmapped);
                return Vec::new();
            }
            if let Some(stanza) = parsed.stanzas.last_mut() {
                stanza.options.push(Opt {
                    name: first.replace('_', "-").to_ascii_lowercase(),
                    raw: first.to_owned(),
                    value: value.to_owned(),
                    place: place.clone(),
                });
            }
        }
    }
    Vec::new()
}

fn stanza(words: &[&str], place: &Place) -> Option<Stanza> {
    let (name, mut rest) = words.split_first()?;
    let mut stanza = Stanza {
        name: (*name).to_owned(),
        family: String::new(),
        method: String::new(),
        inherits: Vec::new(),
        options: Vec::new(),
        place: place.clone(),
    };
    if !matches!(rest.first(), None | Some(&"inherits")) {
        let (family, tail) = rest.split_first()?;
        let (method, tail) = tail.split_first()?;
        if !matches!(*family, "inet" | "inet6" | "can" | "ipx" | "link" | "meta") {
            return None;
        }
        stanza.family = (*family).to_owned();
        stanza.method = (*method).to_owned();
        rest = tail;
    }
    match rest {
        [] => Some(stanza),
        ["inherits", names @ ..] if !names.is_empty() => {
            stanza.inherits = names.iter().map(|n| (*n).to_owned()).take(16).collect();
            Some(stanza)
        }
        _ => None,
    }
}

/// Adds an entry of `guest.unmapped`; what looks like a secret is hidden.
pub fn unmapped(
    reading: &mut Reading<'_>,
    place: &Place,
    iface: Option<&str>,
    key: Option<&str>,
    value: &str,
    effect: Effect,
) {
    // `wpa-key-mgmt WPA-PSK` names a method, not a key.
    let method = key.is_some_and(|k| k.replace('_', "-").ends_with("key-mgmt"));
    let hidden = effect == Effect::Secret
        || (mentions_secret(value) && !method)
        || key.is_some_and(is_secret);
    reading.unmapped(Unmapped {
        file: place.path.to_string(),
        line: Some(place.line),
        iface: iface.map(str::to_owned),
        key: key.map(str::to_owned),
        value: Some(value.to_owned()),
        effect: if hidden { Effect::Secret } else { effect },
        redacted: false,
    });
}

/// Options whose value is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.replace('_', "-").to_ascii_lowercase();
    [
        "psk",
        "passw",
        "passphrase",
        "secret",
        "private-key-passwd",
        "wireless-key",
        "wireless-enc",
        "preshared",
        "wep-key",
    ]
    .iter()
    .any(|word| name.contains(word))
        || name == "wireguard-private-key"
        || name == "wpa-pin"
}

/// The files `source-directory` takes.
fn directory(reading: &mut Reading<'_>, dir: &[u8], flavour: Flavour) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in reading.files().list(dir) {
        let path = [dir, b"/", entry.name.as_slice()].concat();
        if entry.kind == EntryKind::Directory {
            continue;
        }
        let plain = entry
            .name
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if plain || flavour == Flavour::IfupdownNg {
            found.push(path);
        } else {
            reading.warn(&path, None, "a name source-directory passes over, not read");
        }
        if found.len() >= MAX_MATCHES {
            break;
        }
    }
    found
}

/// Paths a shell pattern stands for, relative to `dir` unless absolute.
fn expand(files: &dyn NetworkFiles, dir: &str, pattern: &str) -> Vec<Vec<u8>> {
    let pattern = pattern.trim_matches('"');
    if pattern.len() > 4096 {
        return Vec::new();
    }
    let full = if pattern.starts_with('/') {
        pattern.to_owned()
    } else {
        format!("{dir}/{pattern}")
    };
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    for part in full
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .take(64)
    {
        if part == ".." {
            for path in &mut paths {
                let keep = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                path.truncate(keep);
            }
            continue;
        }
        let mut next = Vec::new();
        for path in paths {
            let join = |name: &[u8]| {
                if path.is_empty() {
                    name.to_vec()
                } else {
                    [path.as_slice(), b"/", name].concat()
                }
            };
            if part.contains(['*', '?', '[']) {
                for entry in files.list(&path) {
                    let hidden = entry.name.first() == Some(&b'.') && !part.starts_with('.');
                    if !hidden && matches(part.as_bytes(), &entry.name) && next.len() < MAX_MATCHES
                    {
                        next.push(join(&entry.name));
                    }
                }
            } else if next.len() < MAX_MATCHES {
                next.push(join(part.as_bytes()));
            }
        }
        paths = next;
    }
    paths.retain(|p| !p.is_empty());
    paths
}

/// Whether a name fits a shell pattern of `*`, `?` and `[…]`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0usize, 0usize);
    // Where to try again: behind the last star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let fits = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                p = p.saturating_add(1);
                retry = Some((p, n));
                continue;
            }
            (Some(b'?'), Some(_)) => Some(p.saturating_add(1)),
            (Some(b'['), Some(c)) => class(pattern, p, *c),
            (Some(a), Some(b)) if a == b => Some(p.saturating_add(1)),
            _ => None,
        };
        match (fits, retry) {
            (Some(next), _) => {
                p = next;
                n = n.saturating_add(1);
            }
            (None, Some((star, from))) if from < name.len() => {
                p = star;
                n = from.saturating_add(1);
                retry = Some((star, n));
            }
            _ => return false,
        }
    }
}

/// Whether a character is in the class at `at`; where the pattern goes on.
fn class(pattern: &[u8], at: usize, c: u8) -> Option<usize> {
    let mut i = at.saturating_add(1);
    let negated = matches!(pattern.get(i), Some(b'!' | b'^'));
    if negated {
        i = i.saturating_add(1);
    }
    let first = i;
    let mut inside = false;
    loop {
        let low = *pattern.get(i)?;
        if low == b']' && i > first {
            return (inside != negated).then_some(i.saturating_add(1));
        }
        let dash = pattern.get(i.saturating_add(1)) == Some(&b'-');
        match pattern.get(i.saturating_add(2)) {
            Some(high) if dash && *high != b']' => {
                inside |= (low..=*high).contains(&c);
                i = i.saturating_add(3);
            }
            _ => {
                inside |= low == c;
                i = i.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_patterns() {
        let shown = |word| {
            Pattern::parse(word).map(|p| {
                [p.name, p.mac, p.logical]
                    .map(|part| part.unwrap_or_default())
                    .join(" ")
            })
        };
        for (word, want) in [
            ("/eth*", Some("eth*  ")),
            ("/eth*=lan", Some("eth*  lan")),
            ("mac/52:54:*=lan", Some(" 52:54:* lan")),
            ("/mac/52:54:00:1:2:3=lan", Some(" 52:54:00:1:2:3 lan")),
            ("/eth*/1=lan", None),
            ("speed/1000=lan", None),
            ("/", None),
            ("eth0", None),
        ] {
            assert_eq!(shown(word).as_deref(), want, "{word}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*", "a", true),
            ("*.cfg", "eth0.cfg", true),
            ("*.cfg", "eth0.cf", false),
            ("eth[0-9]", "eth5", true),
            ("eth[!0-9]", "eth5", false),
            ("e?h*0", "eth10", true),
            ("a*b*c", "aXbYbZc", true),
            ("[a", "[a", false),
            ("", "", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                want,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn logical_lines_cover_the_file() {
        for text in [
            "a \\\n# b\nc\n# x \\\nd",
            "\\\n",
            "a\\",
            "",
            "\n\n",
            "a \\\n\\\n\\\n",
        ] {
            let mut at = 0;
            for line in logical_lines(text.as_bytes()) {
                assert_eq!(line.range.start, at, "{text:?}");
                at = line.range.end;
            }
            assert_eq!(at, text.len(), "{text:?}");
        }
    }
}
