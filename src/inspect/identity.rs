//! Which distribution it is, and which version of it.
//!
//! os-release is asked first. What it leaves out is filled from the distribution's own release
//! file, and where its version is only the major one, that file's more precise version of the same
//! release is taken: Debian's point release, CentOS's minor one.

use super::api::{Fact, Facts};
use super::evidence::Evidence;
use super::os_release::{self, Release};
use super::release_files;

/// Files with a more precise version than os-release, by `ID`.
const PRECISE: [(&str, &str); 6] = [
    ("debian", "/etc/debian_version"),
    ("raspbian", "/etc/debian_version"),
    ("centos", "/etc/centos-release"),
    ("circle", "/etc/circle-release"),
    ("rocky", "/etc/rocky-release"),
    ("alpine", "/etc/alpine-release"),
];

/// Finds the identity.
pub fn find(evidence: &mut Evidence<'_>, facts: &mut Facts) {
    for path in os_release::PATHS {
        let Some(text) = evidence.text(path) else {
            continue;
        };
        match os_release::parse(&text) {
            Some(release) => {
                merge(facts, release, path);
                break;
            }
            None => evidence.problem(path, "says nothing about the system"),
        }
    }
    refine(evidence, facts);
    let missing = facts.id.is_none() || facts.pretty_name.is_none();
    if missing && let Some((release, path)) = release_files::find(evidence) {
        let same = match (&facts.id, &release.id) {
            (Some(known), Some(id)) => known.value == *id,
            _ => true,
        };
        if same {
            merge(facts, release, path);
        }
    }
    // Not before VERSION_CODENAME was common.
    if facts.version_codename.is_none()
        && let Some(release) = release_files::read(evidence, "/etc/lsb-release")
        && release.id == facts.id.as_ref().map(|f| f.value.clone())
    {
        set(
            &mut facts.version_codename,
            release.codename,
            "/etc/lsb-release",
        );
    }
    if facts.id.is_none()
        && let Some(like) = &facts.name
    {
        // os-release(5): "If not set, a default of ID=linux may be used."
        facts.id = Some(Fact::new("linux".into(), like.source.clone()));
    }
    if let Some(id) = &facts.id {
        let word = distro(&id.value).to_owned();
        facts.distro = Some(Fact::new(word, id.source.clone()));
    }
    let source = facts.id.as_ref().map_or("/etc", |f| f.source.as_str());
    facts.kind = Some(Fact::new("linux".into(), source));
    numbers(facts);
}

fn set(fact: &mut Option<Fact>, value: Option<String>, source: &str) {
    if fact.is_none() {
        *fact = value.map(|value| Fact::new(value, source));
    }
}

/// Takes what is not known yet.
fn merge(facts: &mut Facts, release: Release, source: &str) {
    set(&mut facts.id, release.id, source);
    if facts.id_like.is_none() && !release.id_like.is_empty() {
        facts.id_like = Some(Fact::new(release.id_like, source));
    }
    set(&mut facts.name, release.name, source);
    set(&mut facts.pretty_name, release.pretty_name, source);
    set(&mut facts.version, release.version, source);
    set(&mut facts.version_id, release.version_id, source);
    set(&mut facts.version_codename, release.codename, source);
    set(&mut facts.variant_id, release.variant_id, source);
    set(&mut facts.build_id, release.build_id, source);
}

/// A more precise version of the same release.
fn refine(evidence: &mut Evidence<'_>, facts: &mut Facts) {
    let Some(id) = &facts.id else { return };
    let Some((_, path)) = PRECISE.iter().find(|(i, _)| *i == id.value) else {
        return;
    };
    let Some(release) = release_files::read(evidence, path) else {
        return;
    };
    set(&mut facts.version_codename, release.codename, path);
    let Some(precise) = release.version else {
        return;
    };
    if let Some(known) = &facts.version {
        let more = precise.strip_prefix(&known.value);
        if !more.is_some_and(|more| more.starts_with('.')) {
            return;
        }
    }
    facts.version = Some(Fact::new(precise, *path));
}

fn numbers(facts: &mut Facts) {
    let Some(version) = &facts.version else {
        return;
    };
    let (major, minor) = numbers_in(&version.value);
    let fact = |n: Option<u64>| n.map(|n| Fact::new(n, version.source.clone()));
    (facts.version_major, facts.version_minor) = (fact(major), fact(minor));
}

/// `12.5` → 12 and 5; `V10` → 10; NeoKylin's `V7Update6` → 7 and 6.
fn numbers_in(version: &str) -> (Option<u64>, Option<u64>) {
    let Some(start) = version.find(|c: char| c.is_ascii_digit()) else {
        return (None, None);
    };
    let rest = version.get(start..).unwrap_or_default();
    let number = |text: &str| {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, rest) = text.split_at_checked(end)?;
        Some((digits.parse::<u64>().ok()?, rest.to_owned()))
    };
    let Some((major, rest)) = number(rest) else {
        return (None, None);
    };
    let minor = rest
        .strip_prefix('.')
        .or_else(|| rest.strip_prefix("Update"));
    (Some(major), minor.and_then(|m| number(m).map(|(n, _)| n)))
}

/// The word virt-inspector has for a distribution.
pub fn distro(id: &str) -> &str {
    match id {
        "alpine" => "alpinelinux",
        "arch" => "archlinux",
        "kali" => "kalilinux",
        "ol" => "oraclelinux",
        "pld" => "pldlinux",
        "void" => "voidlinux",
        "scientific" => "scientificlinux",
        "redhat" => "redhat-based",
        "sled" | "sles_sap" => "sles",
        id if id.starts_with("opensuse") => "opensuse",
        id => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_numbers() {
        for (version, want) in [
            ("12.5", (Some(12), Some(5))),
            ("7.9.2009", (Some(7), Some(9))),
            ("24.04", (Some(24), Some(4))),
            ("41", (Some(41), None)),
            ("V10", (Some(10), None)),
            ("V7Update6", (Some(7), Some(6))),
            ("rolling", (None, None)),
            ("99999999999999999999999", (None, None)),
        ] {
            assert_eq!(numbers_in(version), want, "{version}");
        }
    }
}
