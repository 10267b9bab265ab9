//! Hostname, `hosts` and `resolv.conf`.
//!
//! Source: hostname(5), hosts(5), resolv.conf(5).

use std::net::IpAddr;

use super::api::{MAX_ENTRIES, Reading, text};
use super::codec::assignments::{self, Dialect, Kind, Value};
use super::ledger::State;
use super::model::{Effect, Hostname, HostsEntry, Resolver, Unmapped};

/// One line with its place.
pub struct Line<'a> {
    /// Its bytes, the line end included.
    pub range: std::ops::Range<usize>,
    /// From 1.
    pub number: u32,
    /// Its text without the line end.
    pub text: std::borrow::Cow<'a, str>,
}

/// The lines of a file; they cover it without a gap.
pub fn lines(bytes: &[u8]) -> Vec<Line<'_>> {
    let mut at = 0usize;
    let mut number = 0u32;
    bytes
        .split_inclusive(|b| *b == b'\n')
        .map(|line| {
            let start = at;
            at = at.saturating_add(line.len());
            number = number.saturating_add(1);
            let bare = line.strip_suffix(b"\n").unwrap_or(line);
            let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
            Line {
                range: start..at,
                number,
                text: String::from_utf8_lossy(bare),
            }
        })
        .collect()
}

/// Reads all three.
pub fn decode(reading: &mut Reading<'_>) {
    hostname(reading);
    hosts(reading);
    resolv_conf(reading);
}

fn set_hostname(reading: &mut Reading<'_>, name: &str, source: &str) {
    if reading.document.guest.hostname.is_none() && !name.is_empty() {
        reading.document.guest.hostname = Some(Hostname {
            name: name.to_owned(),
            source: source.to_owned(),
        });
    }
}

fn hostname(reading: &mut Reading<'_>) {
    // `etc/hostname` wins over the one of `etc/sysconfig/network`, read with the ifcfg files.
    let from_sysconfig = reading.document.guest.hostname.take();
    for path in ["etc/hostname", "etc/HOSTNAME"] {
        let Some((source, bytes)) = reading.open(path.as_bytes()) else {
            continue;
        };
        let mut found = false;
        for line in lines(&bytes) {
            let name = line.text.trim();
            if name.is_empty() || name.starts_with('#') {
                reading.mark(source, line.range, State::Syntax);
            } else if !found {
                found = true;
                reading.mark(source, line.range, State::Mapped);
                if reading.document.guest.hostname.is_some() {
                    reading.warn(
                        path.as_bytes(),
                        Some(line.number),
                        "another file gives the hostname",
                    );
                }
                set_hostname(reading, name, path);
            } else {
                reading.mark(source, line.range, State::Rejected);
                reading.warn(
                    path.as_bytes(),
                    Some(line.number),
                    "only the first name counts",
                );
            }
        }
    }
    if reading.document.guest.hostname.is_none() {
        reading.document.guest.hostname = from_sysconfig;
    }
    let path = "etc/conf.d/hostname";
    if let Some((source, bytes)) = reading.open(path.as_bytes()) {
        for statement in assignments::parse(&bytes, Dialect::Shell) {
            let state = match &statement.kind {
                Kind::Assignment {
                    key,
                    value: Value::Literal(name),
                } if key.eq_ignore_ascii_case("hostname") => {
                    set_hostname(reading, &text(name), path);
                    State::Mapped
                }
                Kind::Blank => State::Syntax,
                _ => State::Rejected,
            };
            if state == State::Rejected {
                let raw = text(bytes.get(statement.range.clone()).unwrap_or_default());
                let entry = Unmapped {
                    file: path.into(),
                    line: Some(statement.line),
                    iface: None,
                    key: None,
                    value: Some(raw.trim().to_owned()),
                    effect: Effect::Unknown,
                    redacted: false,
                };
                reading.unmapped(entry);
                reading.mark(source, statement.range, State::Unmapped);
            } else {
                reading.mark(source, statement.range, state);
            }
        }
    }
}

fn hosts(reading: &mut Reading<'_>) {
    let path = "etc/hosts";
    let Some((source, bytes)) = reading.open(path.as_bytes()) else {
        return;
    };
    for line in lines(&bytes) {
        let (body, comment) = match line.text.split_once('#') {
            Some((body, comment)) => (body, Some(comment.trim())),
            None => (&*line.text, None),
        };
        let mut words = body.split_whitespace();
        let Some(address) = words.next() else {
            reading.mark(source, line.range, State::Syntax);
            continue;
        };
        let names: Vec<String> = words.map(str::to_owned).collect();
        // The C library reads an address with a zone as well.
        let ip = address
            .split('%')
            .next()
            .unwrap_or_default()
            .parse::<IpAddr>();
        if let (Ok(ip), false) = (ip, names.is_empty()) {
            let canonical = match address.split_once('%') {
                Some((_, zone)) => format!("{ip}%{zone}"),
                None => ip.to_string(),
            };
            if reading.document.guest.hosts.len() < MAX_ENTRIES {
                reading.document.guest.hosts.push(HostsEntry {
                    address: canonical,
                    names,
                    comment: comment.filter(|c| !c.is_empty()).map(str::to_owned),
                });
            } else {
                reading.warn(path.as_bytes(), Some(line.number), "too many lines");
            }
            reading.mark(source, line.range, State::Mapped);
        } else {
            let value = line.text.trim().to_owned();
            reading.warn(
                path.as_bytes(),
                Some(line.number),
                format!("ignored: {value}"),
            );
            reading.mark(source, line.range, State::Rejected);
        }
    }
}

/// Places a generated `resolv.conf` lives in, and words of the headers generators write.
const GENERATED_IN: [&str; 6] = [
    "run/systemd/resolve",
    "run/NetworkManager",
    "run/resolvconf",
    "run/netconfig",
    "run/connman",
    "systemd/resolve",
];
const GENERATED_BY: [&str; 7] = [
    "generated by",
    "autogenerated",
    "dynamic resolv.conf",
    "managed by man:systemd-resolved",
    "; generated by /usr/sbin/dhclient-script",
    "do not edit",
    "created by cloud-init",
];

fn resolv_conf(reading: &mut Reading<'_>) {
    let path = "etc/resolv.conf";
    let target = reading
        .files()
        .link_target(path.as_bytes())
        .map(|t| text(&t));
    let linked = target
        .as_deref()
        .is_some_and(|t| GENERATED_IN.iter().any(|d| t.contains(d)));
    // A link into `run` leads nowhere in a guest that is off: nothing to read, nothing wrong.
    let Some((source, bytes)) = (if linked && reading.files().read(path.as_bytes()).is_err() {
        None
    } else {
        reading.open(path.as_bytes())
    }) else {
        if linked {
            reading.document.guest.resolver = Some(Resolver {
                source: path.into(),
                managed: true,
                ..Resolver::default()
            });
        }
        return;
    };
    let mut resolver = Resolver {
        source: path.into(),
        managed: linked,
        ..Resolver::default()
    };
    for line in lines(&bytes) {
        let trimmed = line.text.trim();
        let mut words = trimmed.split_whitespace();
        let state = match words.next() {
            None => State::Syntax,
            Some(word) if word.starts_with(['#', ';']) => {
                let lower = trimmed.to_ascii_lowercase();
                resolver.managed |= GENERATED_BY.iter().any(|mark| lower.contains(mark));
                State::Syntax
            }
            Some("nameserver") => match words.next() {
                Some(word)
                    if word
                        .split('%')
                        .next()
                        .is_some_and(|a| a.parse::<IpAddr>().is_ok()) =>
                {
                    let server = match (word.parse::<IpAddr>(), word.contains('%')) {
                        (Ok(ip), false) => ip.to_string(),
                        _ => word.to_owned(),
                    };
                    if resolver.servers.len() < MAX_ENTRIES {
                        resolver.servers.push(server);
                    }
                    if resolver.servers.len() == 4 {
                        let message = "the C library asks the first three servers only";
                        reading.warn(path.as_bytes(), Some(line.number), message);
                    }
                    State::Mapped
                }
                _ => State::Rejected,
            },
            // The last `search` or `domain` counts.
            Some("search" | "domain") => {
                if !resolver.search.is_empty() {
                    let message = "replaces the search list above";
                    reading.warn(path.as_bytes(), Some(line.number), message);
                }
                resolver.search = words.map(str::to_owned).collect();
                State::Mapped
            }
            Some("options") => {
                resolver.options.extend(words.map(str::to_owned).take(64));
                State::Mapped
            }
            Some(key @ "sortlist") => {
                let entry = Unmapped {
                    file: path.into(),
                    line: Some(line.number),
                    iface: None,
                    key: Some(key.into()),
                    value: Some(words.collect::<Vec<_>>().join(" ")),
                    effect: Effect::Behaviour,
                    redacted: false,
                };
                reading.unmapped(entry);
                State::Unmapped
            }
            Some(_) => State::Rejected,
        };
        if state == State::Rejected {
            reading.warn(
                path.as_bytes(),
                Some(line.number),
                format!("ignored: {trimmed}"),
            );
        }
        reading.mark(source, line.range, state);
    }
    reading.document.guest.resolver = Some(resolver);
}
