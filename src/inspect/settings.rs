//! Architecture, host name, machine id, time zone, init system, kernels.

use super::api::{Fact, Facts};
use super::assignments::Assignments;
use super::elf;
use super::evidence::{Evidence, first_line, text_value};

/// Most kernels listed.
const MAX_KERNELS: usize = 256;

/// Finds all of them.
pub fn find(evidence: &mut Evidence<'_>, facts: &mut Facts) {
    facts.architecture = architecture(evidence);
    facts.hostname = hostname(evidence);
    facts.machine_id = machine_id(evidence);
    facts.timezone = timezone(evidence);
    facts.init = init(evidence);
    facts.kernels = kernels(evidence);
}

fn architecture(evidence: &mut Evidence<'_>) -> Option<Fact> {
    [
        "/bin/bash",
        "/bin/ls",
        "/bin/echo",
        "/bin/rm",
        "/bin/sh",
        "/usr/bin/bash",
        "/usr/bin/ls",
        "/bin/busybox",
        "/sbin/init",
        "/usr/lib/systemd/systemd",
        "/nix/var/nix/profiles/system/sw/bin/bash",
    ]
    .into_iter()
    .find_map(|path| {
        let head = evidence.head::<{ elf::HEAD_BYTES }>(path)?;
        Some(Fact::new(elf::architecture(&head)?, path))
    })
}

/// The value of `key` in a file of assignments.
fn assigned(evidence: &mut Evidence<'_>, path: &str, key: &str) -> Option<Fact> {
    let value = Assignments::parse(&evidence.text(path)?).text(key)?;
    Some(Fact::new(value, path))
}

/// The value of `option KEY 'value'` in a file of OpenWrt's configuration.
fn uci_option(evidence: &mut Evidence<'_>, key: &str) -> Option<Fact> {
    let path = "/etc/config/system";
    let text = evidence.text(path)?;
    text.split(|&b| b == b'\n').find_map(|line| {
        let rest = line.trim_ascii().strip_prefix(b"option")?;
        let rest = rest.trim_ascii_start().strip_prefix(key.as_bytes())?;
        if !rest.first()?.is_ascii_whitespace() {
            return None;
        }
        let value = rest.trim_ascii();
        let value = match value {
            [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
            _ => value,
        };
        Some(Fact::new(text_value(value)?, path))
    })
}

/// Longest host name, as in Linux (`HOST_NAME_MAX`) with room for a domain (RFC 1035, 2.3.4).
const MAX_HOSTNAME_BYTES: usize = 255;

fn hostname(evidence: &mut Evidence<'_>) -> Option<Fact> {
    let mut found = None;
    for path in ["/etc/HOSTNAME", "/etc/hostname"] {
        let Some(text) = evidence.text(path) else {
            continue;
        };
        if let Some(name) = first_line(&text).and_then(text_value) {
            found = Some(Fact::new(name, path));
            break;
        }
    }
    let fact = found
        .or_else(|| assigned(evidence, "/etc/sysconfig/network", "HOSTNAME"))
        .or_else(|| assigned(evidence, "/etc/conf.d/hostname", "hostname"))
        .or_else(|| assigned(evidence, "/etc/conf.d/hostname", "HOSTNAME"))
        .or_else(|| assigned(evidence, "/etc/rc.conf", "HOSTNAME"))
        .or_else(|| uci_option(evidence, "hostname"))?;
    if fact.value.len() > MAX_HOSTNAME_BYTES {
        let source = fact.source;
        evidence.problem(&source, "the host name is longer than 255 bytes");
        return None;
    }
    Some(fact)
}

fn machine_id(evidence: &mut Evidence<'_>) -> Option<Fact> {
    ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .into_iter()
        .find_map(|path| {
            let text = evidence.text(path)?;
            let id = text.trim_ascii();
            if id.is_empty() || id == b"uninitialized" {
                return None;
            }
            if id.len() != 32 || !id.iter().all(u8::is_ascii_hexdigit) {
                evidence.problem(path, "is not 32 hexadecimal digits");
                return None;
            }
            Some(Fact::new(text_value(id)?.to_ascii_lowercase(), path))
        })
}

fn timezone(evidence: &mut Evidence<'_>) -> Option<Fact> {
    let path = "/etc/localtime";
    if let Some(target) = evidence.link(path) {
        let marker = b"zoneinfo/";
        let after = target
            .windows(marker.len())
            .position(|w| w == marker)
            .and_then(|at| target.get(at.saturating_add(marker.len())..));
        if let Some(zone) = after {
            let zone = [&b"posix/"[..], b"right/"]
                .iter()
                .find_map(|tree| zone.strip_prefix(*tree))
                .unwrap_or(zone);
            if let Some(zone) = text_value(zone) {
                return Some(Fact::new(zone, path));
            }
        }
    }
    let path = "/etc/timezone";
    if let Some(zone) = evidence
        .text(path)
        .and_then(|text| text_value(first_line(&text)?))
    {
        return Some(Fact::new(zone, path));
    }
    assigned(evidence, "/etc/sysconfig/clock", "ZONE")
        .or_else(|| assigned(evidence, "/etc/sysconfig/clock", "TIMEZONE"))
        .or_else(|| uci_option(evidence, "zonename"))
}

/// What the first program is. `/sbin/init` is often a link that says it; else by what is there.
fn init(evidence: &mut Evidence<'_>) -> Option<Fact> {
    let fact = |name: &str, path: &str| Some(Fact::new(name.to_owned(), path));
    let mut busybox = false;
    let mut path = String::from("/sbin/init");
    // Links to links: /sbin/init → /usr/sbin/init → …/systemd; a handful at most.
    for _ in 0..4 {
        let Some(target) = evidence.link(&path) else {
            break;
        };
        let name = target.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let known = match name {
            b"systemd" => Some("systemd"),
            b"upstart" => Some("upstart"),
            b"openrc-init" => Some("openrc"),
            b"runit" | b"runit-init" => Some("runit"),
            b"s6-linux-init" | b"s6-init" | b"s6-svscan" => Some("s6"),
            b"dinit" | b"dinit-init" => Some("dinit"),
            b"procd" => Some("procd"),
            _ => None,
        };
        if let Some(known) = known {
            return fact(known, "/sbin/init");
        }
        busybox |= name == b"busybox";
        let Ok(target) = String::from_utf8(target) else {
            break;
        };
        path = if target.starts_with('/') {
            target
        } else {
            // Beside the link before it.
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            format!("{parent}/{target}")
        };
    }
    for program in ["/sbin/openrc", "/usr/bin/openrc", "/usr/sbin/openrc"] {
        if evidence.is_file(program) {
            return fact("openrc", program);
        }
    }
    if evidence.is_file("/sbin/procd") {
        return fact("procd", "/sbin/procd");
    }
    if busybox {
        return fact("busybox", "/sbin/init");
    }
    let own = evidence.is_file("/sbin/init");
    // A program of its own beats systemd's, which may be installed beside it.
    if own && evidence.is_dir("/etc/init") && evidence.is_file("/sbin/initctl") {
        return fact("upstart", "/etc/init");
    }
    if evidence.is_dir("/etc/s6-linux-init") {
        return fact("s6", "/etc/s6-linux-init");
    }
    if evidence.is_dir("/etc/runit") && (evidence.is_file("/sbin/runit") || !own) {
        return fact("runit", "/etc/runit");
    }
    if own && (evidence.is_file("/etc/inittab") || evidence.is_dir("/etc/init.d")) {
        let path = if evidence.is_file("/etc/inittab") {
            "/etc/inittab"
        } else {
            "/etc/init.d"
        };
        return fact("sysvinit", path);
    }
    [
        "/usr/lib/systemd/systemd",
        "/lib/systemd/systemd",
        "/nix/var/nix/profiles/system/systemd",
    ]
    .into_iter()
    .find(|path| evidence.exists(path))
    .and_then(|path| fact("systemd", path))
}

fn kernels(evidence: &mut Evidence<'_>) -> Vec<Fact> {
    let mut found: Vec<Fact> = Vec::new();
    for (dir, prefixes) in [
        ("/boot", &["vmlinuz-", "vmlinux-", "kernel-"][..]),
        ("/lib/modules", &[""][..]),
        ("/usr/lib/modules", &[""][..]),
    ] {
        for name in evidence.names(dir) {
            let Ok(name) = String::from_utf8(name) else {
                continue;
            };
            let version = prefixes.iter().find_map(|p| name.strip_prefix(p));
            let Some(version) = version else { continue };
            // `vmlinuz-linux`, `vmlinuz-lts` and rescue images tell no version.
            if !version.starts_with(|c: char| c.is_ascii_digit()) || version.starts_with("0-rescue")
            {
                continue;
            }
            let version = version.strip_suffix(".gz").unwrap_or(version);
            if found.len() < MAX_KERNELS && !found.iter().any(|k| k.value == version) {
                found.push(Fact::new(version.to_owned(), format!("{dir}/{name}")));
            }
        }
    }
    found.sort_by_key(|kernel| natural(&kernel.value));
    found
}

/// Sorts `5.9` before `5.10`: runs of digits as numbers, the rest as text.
fn natural(version: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = version;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at_checked(digits).unwrap_or((rest, ""));
        let text = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (text, after) = after.split_at_checked(text).unwrap_or((after, ""));
        parts.push((number.parse().unwrap_or(u64::MAX), text.to_owned()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_in_natural_order() {
        let mut versions = vec!["5.10.0-9", "5.9.1", "5.10.0-28", "4.18.0-553.el8", "6.1"];
        versions.sort_by_key(|v| natural(v));
        assert_eq!(
            versions,
            ["4.18.0-553.el8", "5.9.1", "5.10.0-9", "5.10.0-28", "6.1"]
        );
    }
}
