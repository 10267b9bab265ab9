//! Interface names bound to MACs outside the configuration files.
//!
//! udev's persistent-net rules and systemd's `.link` files name a card by its MAC. Where the
//! configuration itself has no MAC for a physical interface, the binding becomes
//! `match.macaddress` and `set-name`. Source: udev(7), systemd.link(5).

use super::address;
use super::api::{Reading, text};
use super::ledger::State;
use super::model::{Effect, Match, Section, Unmapped};
use super::resolver::lines;

/// Where udev looks for rules that an installation made.
const RULES: [&str; 2] = [
    "etc/udev/rules.d/70-persistent-net.rules",
    "etc/udev/rules.d/z25_persistent-net.rules",
];

/// Applies the bindings to the physical devices that have none.
pub fn apply(reading: &mut Reading<'_>) {
    for path in RULES {
        rules(reading, path);
    }
    let links: Vec<Vec<u8>> = reading
        .files()
        .list(b"etc/systemd/network")
        .into_iter()
        .filter(|e| e.name.ends_with(b".link"))
        .map(|e| [b"etc/systemd/network/", e.name.as_slice()].concat())
        .take(1000)
        .collect();
    for path in links {
        link(reading, &path);
    }
}

/// Binds a name to a MAC. `false` if no device of the configuration takes it.
fn bind(reading: &mut Reading<'_>, name: &str, mac: &str, path: &str) -> bool {
    if reading.document.section_of(name) != Some(Section::Ethernets) {
        return false;
    }
    let Some(device) = reading.document.find(name) else {
        return false;
    };
    let known = device.matching.as_ref().and_then(|m| m.macaddress.clone());
    match known {
        Some(known) if known != mac => {
            let message = format!("gives {name} the MAC {mac}, its configuration wants {known}");
            reading.warn(path.as_bytes(), None, message);
        }
        Some(_) => {}
        None => {
            let matching = device.matching.get_or_insert_with(Match::default);
            matching.macaddress = Some(mac.to_owned());
            device.set_name = Some(name.to_owned());
        }
    }
    reading.document.extra(name).sources.push(path.to_owned());
    true
}

fn unmapped(reading: &mut Reading<'_>, path: &str, line: u32, value: &str, name: Option<&str>) {
    reading.unmapped(Unmapped {
        file: path.to_owned(),
        line: Some(line),
        iface: name.map(str::to_owned),
        key: None,
        value: Some(value.to_owned()),
        effect: Effect::Behaviour,
        redacted: false,
    });
}

/// The value of `KEY=="value"` or `KEY="value"` in a udev rule.
fn rule_value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(',').find_map(|part| {
        let value = part
            .trim()
            .strip_prefix(key)?
            .trim_start_matches(['=', ' ']);
        Some(value.trim_matches('"'))
    })
}

fn rules(reading: &mut Reading<'_>, path: &str) {
    let Some((source, bytes)) = reading.open(path.as_bytes()) else {
        return;
    };
    for line in lines(&bytes) {
        let rule = line.text.trim();
        if rule.is_empty() || rule.starts_with('#') {
            reading.mark(source, line.range, State::Syntax);
            continue;
        }
        let mac = rule_value(rule, "ATTR{address}")
            .or_else(|| rule_value(rule, "SYSFS{address}"))
            .or_else(|| rule_value(rule, "ATTRS{address}"))
            .and_then(address::mac);
        let name = rule_value(rule, "NAME").filter(|n| address::is_device_name(n));
        let bound = match (&mac, name) {
            (Some(mac), Some(name)) => bind(reading, name, mac, path),
            _ => false,
        };
        if bound {
            reading.mark(source, line.range, State::Mapped);
        } else {
            unmapped(reading, path, line.number, rule, name);
            reading.mark(source, line.range, State::Unmapped);
        }
    }
}

fn link(reading: &mut Reading<'_>, path: &[u8]) {
    let Some((source, bytes)) = reading.open(path) else {
        return;
    };
    let path = text(path);
    let all = lines(&bytes);
    let (mut section, mut mac, mut name) = (String::new(), None, None);
    let mut used = Vec::new();
    for (n, line) in all.iter().enumerate() {
        let line = line.text.trim();
        if let Some(title) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = title.to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            match (section.as_str(), key.trim()) {
                ("Match", "MACAddress" | "PermanentMACAddress") => {
                    mac = address::mac(value);
                    used.push(n);
                }
                ("Link", "Name") => {
                    name = Some(value.trim().to_owned());
                    used.push(n);
                }
                _ => {}
            }
        }
    }
    let bound = match (&mac, &name) {
        (Some(mac), Some(name)) => bind(reading, name, mac, &path),
        _ => false,
    };
    for (n, line) in all.into_iter().enumerate() {
        let trimmed = line.text.trim();
        let state = if trimmed.is_empty() || trimmed.starts_with(['#', ';', '[']) {
            State::Syntax
        } else if bound && used.contains(&n) {
            State::Mapped
        } else {
            unmapped(reading, &path, line.number, trimmed, name.as_deref());
            State::Unmapped
        };
        reading.mark(source, line.range, state);
    }
}
