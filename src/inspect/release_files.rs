//! What distributions had before os-release: one file each, mostly with one line for people.
//!
//! The files are asked in an order in which a derivative's own file comes before that of what it
//! derives from, since derivatives keep both.

use super::assignments::Assignments;
use super::evidence::{Evidence, first_line, text_value};
use super::os_release::Release;

/// How a file is read.
type Parse = fn(&[u8]) -> Option<Release>;

/// The files, in the order they are asked.
const FILES: [(&str, Parse); 37] = [
    ("/etc/lsb-release", lsb),
    ("/etc/openwrt_release", lsb),
    ("/etc/openmandriva-release", red_hat_like),
    ("/etc/mageia-release", red_hat_like),
    ("/etc/mandriva-release", red_hat_like),
    ("/etc/mandrake-release", red_hat_like),
    ("/etc/opencloudos-release", red_hat_like),
    ("/etc/tencentos-release", red_hat_like),
    ("/etc/openEuler-release", red_hat_like),
    ("/etc/neokylin-release", red_hat_like),
    ("/etc/kylin-release", red_hat_like),
    ("/etc/oracle-release", red_hat_like),
    ("/etc/enterprise-release", red_hat_like),
    ("/etc/centos-release", red_hat_like),
    ("/etc/circle-release", red_hat_like),
    ("/etc/rocky-release", red_hat_like),
    ("/etc/almalinux-release", red_hat_like),
    ("/etc/altlinux-release", |t| plain("altlinux", t)),
    ("/etc/fedora-release", red_hat_like),
    ("/etc/redhat-release", red_hat_like),
    ("/etc/system-release", red_hat_like),
    ("/etc/devuan_version", devuan),
    ("/etc/debian_version", debian),
    ("/etc/pardus-release", |t| plain("pardus", t)),
    ("/etc/arch-release", arch),
    ("/etc/gentoo-release", |t| plain("gentoo", t)),
    ("/etc/meego-release", |t| plain("meego", t)),
    ("/etc/slackware-version", |t| plain("slackware", t)),
    ("/etc/ttylinux-target", |t| plain("ttylinux", t)),
    ("/etc/SuSE-release", suse),
    ("/etc/cirros/version", |t| numbered("cirros", "CirrOS", t)),
    ("/etc/br-version", |t| numbered("buildroot", "Buildroot", t)),
    ("/etc/alpine-release", |t| {
        numbered("alpine", "Alpine Linux", t)
    }),
    ("/etc/frugalware-release", |t| plain("frugalware", t)),
    ("/etc/pld-release", |t| plain("pld", t)),
    ("/etc/photon-release", red_hat_like),
    ("/etc/mariner-release", red_hat_like),
];

/// The first file that identifies the system, and its path.
pub fn find(evidence: &mut Evidence<'_>) -> Option<(Release, &'static str)> {
    for (path, parse) in FILES {
        let Some(text) = evidence.text(path) else {
            continue;
        };
        if let Some(mut release) = parse(&text) {
            if path == "/etc/br-version" && evidence.is_file("/usr/share/cirros/logo") {
                release.id = Some("cirros".into());
            }
            return Some((release, path));
        }
    }
    None
}

/// One file, if it is there and says something.
pub fn read(evidence: &mut Evidence<'_>, path: &str) -> Option<Release> {
    let (_, parse) = FILES.iter().find(|(p, _)| *p == path)?;
    parse(&evidence.text(path)?)
}

/// How the line for people starts, and the distribution. The longer ones come first.
const PREFIXES: [(&str, &str); 36] = [
    ("Fedora", "fedora"),
    ("Red Hat Enterprise", "rhel"),
    ("Red Hat Linux Advanced", "rhel"),
    ("Red Hat Linux", "redhat"),
    ("Red Hat", "rhel"),
    ("CentOS", "centos"),
    ("Rocky", "rocky"),
    ("AlmaLinux", "almalinux"),
    ("Circle", "circle"),
    ("Scientific", "scientific"),
    ("Springdale", "springdale"),
    ("PUIAS", "springdale"),
    ("Oracle", "ol"),
    ("Enterprise Linux Enterprise", "ol"),
    ("Enterprise Linux Server release", "ol"),
    ("Amazon", "amzn"),
    ("CloudLinux", "cloudlinux"),
    ("Virtuozzo", "virtuozzo"),
    ("ClearOS", "clearos"),
    ("EuroLinux", "eurolinux"),
    ("MIRACLE", "miraclelinux"),
    ("XenServer", "xenenterprise"),
    ("XCP-ng", "xcp-ng"),
    ("Mandriva", "mandriva"),
    ("Mandrake", "mandriva"),
    ("Mandrakelinux", "mandriva"),
    ("Mageia", "mageia"),
    ("OpenMandriva", "openmandriva"),
    ("ALT", "altlinux"),
    ("openEuler", "openeuler"),
    ("OpenCloudOS", "opencloudos"),
    ("TencentOS", "tencentos"),
    ("NeoKylin", "neokylin"),
    ("Kylin", "kylin"),
    ("VMware Photon", "photon"),
    ("CBL-Mariner", "mariner"),
];

/// `NAME release VERSION (CODENAME)`, with `Update N` in the parentheses in RHEL 3 to 5.
fn red_hat_like(text: &[u8]) -> Option<Release> {
    let pretty = text_value(first_line(text)?)?;
    let id = PREFIXES
        .iter()
        .find(|(prefix, _)| pretty.starts_with(prefix))
        .map(|(_, id)| (*id).to_owned());
    let (name, after) = match pretty.split_once(" release ") {
        Some((name, after)) => (Some(name.to_owned()), after),
        None => (None, pretty.as_str()),
    };
    let mut version = first_number(after);
    let parentheses = pretty
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(inside, _)| inside);
    let mut codename = parentheses.map(str::to_owned);
    if let Some((before, update)) = pretty.split_once("Update ") {
        let update: String = update.chars().take_while(char::is_ascii_digit).collect();
        if let Some(major) = &version
            && !update.is_empty()
            && !major.contains('.')
        {
            version = Some(format!("{major}.{update}"));
        }
        codename = before
            .split_once('(')
            .map(|(_, name)| name.trim().to_owned());
    }
    if id.is_none() && version.is_none() {
        return None;
    }
    Some(Release {
        // Something made from Red Hat's, by its file's name, that nothing is known of.
        id_like: if id.is_none() {
            vec!["rhel".into(), "fedora".into()]
        } else {
            Vec::new()
        },
        id: id.or_else(|| Some("redhat-based".into())),
        name,
        pretty_name: Some(pretty),
        version_id: version.clone(),
        version,
        codename: codename.filter(|c| !c.is_empty()),
        ..Release::default()
    })
}

/// The first number with its dotted parts: `7.9.2009`.
pub fn first_number(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let rest = text.get(start..)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Some(rest.get(..end)?.trim_end_matches('.').to_owned())
}

/// Codenames of Debian's releases by major version (Debian wiki, "Debian Releases").
const DEBIAN: [(&str, &str); 15] = [
    ("2.2", "potato"),
    ("3.0", "woody"),
    ("3.1", "sarge"),
    ("4", "etch"),
    ("5", "lenny"),
    ("6", "squeeze"),
    ("7", "wheezy"),
    ("8", "jessie"),
    ("9", "stretch"),
    ("10", "buster"),
    ("11", "bullseye"),
    ("12", "bookworm"),
    ("13", "trixie"),
    ("14", "forky"),
    ("15", "duke"),
];

/// `5.0.10`, or `lenny/sid` before the release.
fn debian(text: &[u8]) -> Option<Release> {
    let text = text_value(first_line(text)?)?;
    let numbered = text.starts_with(|c: char| c.is_ascii_digit());
    let version = first_number(&text).filter(|_| numbered);
    let codename = match &version {
        Some(version) => DEBIAN
            .iter()
            .find(|(v, _)| {
                let rest = version.strip_prefix(v);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            .map(|(_, name)| (*name).to_owned()),
        None => text.split('/').next().map(str::to_owned),
    };
    Some(Release {
        id: Some("debian".into()),
        name: Some("Debian GNU/Linux".into()),
        pretty_name: Some(format!("Debian GNU/Linux {text}")),
        version_id: version.clone(),
        version,
        codename,
        ..Release::default()
    })
}

fn devuan(text: &[u8]) -> Option<Release> {
    let text = text_value(first_line(text)?)?;
    Some(Release {
        id: Some("devuan".into()),
        id_like: vec!["debian".into()],
        name: Some("Devuan GNU/Linux".into()),
        pretty_name: Some(format!("Devuan GNU/Linux {text}")),
        codename: Some(text),
        ..Release::default()
    })
}

/// The file may be empty.
fn arch(_: &[u8]) -> Option<Release> {
    Some(Release {
        id: Some("arch".into()),
        name: Some("Arch Linux".into()),
        pretty_name: Some("Arch Linux".into()),
        ..Release::default()
    })
}

/// A line for people with a version somewhere in it.
fn plain(id: &str, text: &[u8]) -> Option<Release> {
    let pretty = text_value(first_line(text)?)?;
    let version = first_number(&pretty);
    Some(Release {
        id: Some(id.into()),
        pretty_name: Some(pretty),
        version_id: version.clone(),
        version,
        ..Release::default()
    })
}

/// Nothing but the version.
fn numbered(id: &str, name: &str, text: &[u8]) -> Option<Release> {
    let text = text_value(first_line(text)?)?;
    let version = first_number(&text);
    Some(Release {
        id: Some(id.into()),
        name: Some(name.into()),
        pretty_name: Some(format!("{name} {text}")),
        version_id: version.clone(),
        version,
        ..Release::default()
    })
}

/// `DISTRIB_*` assignments. RHEL has a file of that name without them.
fn lsb(text: &[u8]) -> Option<Release> {
    let keys = Assignments::parse(text);
    let name = keys.text("DISTRIB_ID")?;
    let id = match name.as_str() {
        "ManjaroLinux" => "manjaro".to_owned(),
        "MandrivaLinux" | "Mandriva Linux" => "mandriva".to_owned(),
        "elementary OS" => "elementary".to_owned(),
        "KDE neon" => "neon".to_owned(),
        "archlinux" => "arch".to_owned(),
        _ => name.to_ascii_lowercase().replace(' ', "-"),
    };
    let version = keys
        .text("DISTRIB_RELEASE")
        .filter(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    let like: &[&str] = match id.as_str() {
        "ubuntu" => &["debian"],
        "linuxmint" | "elementary" | "pop" | "zorin" | "neon" | "peppermint" => {
            &["ubuntu", "debian"]
        }
        "manjaro" | "endeavouros" | "chakra" => &["arch"],
        _ => &[],
    };
    let pretty = keys.text("DISTRIB_DESCRIPTION");
    Some(Release {
        id_like: like.iter().map(|l| (*l).to_owned()).collect(),
        id: Some(id),
        pretty_name: pretty.or_else(|| {
            Some(match &version {
                Some(version) => format!("{name} {version}"),
                None => name.clone(),
            })
        }),
        name: Some(name),
        version_id: version.clone(),
        version,
        codename: keys.text("DISTRIB_CODENAME"),
        ..Release::default()
    })
}

/// A line for people, then `VERSION = `, `PATCHLEVEL = ` and sometimes `CODENAME = `.
fn suse(text: &[u8]) -> Option<Release> {
    let pretty = text_value(first_line(text)?)?;
    let key = |name: &str| {
        text.split(|&b| b == b'\n').take(64).find_map(|line| {
            let equals = line.iter().position(|&b| b == b'=')?;
            let (left, right) = line.split_at(equals);
            (left.trim_ascii() == name.as_bytes()).then(|| text_value(right.get(1..)?))?
        })
    };
    let enterprise = ["SUSE Linux Enterprise ", "SUSE LINUX Enterprise "]
        .iter()
        .any(|p| pretty.starts_with(p))
        || pretty.starts_with("Novell Linux Desktop ");
    let open = ["openSUSE", "SuSE Linux", "SUSE LINUX", "SUSE Linux"]
        .iter()
        .any(|p| pretty.starts_with(p));
    let (id, like) = match (enterprise, open) {
        (true, _) if pretty.contains("Desktop") => ("sled", vec!["suse".into()]),
        (true, _) => ("sles", vec!["suse".into()]),
        (_, true) => ("opensuse", vec!["suse".into()]),
        _ => ("suse-based", vec!["suse".into()]),
    };
    let version = key("VERSION").or_else(|| first_number(&pretty));
    let version = match (version, key("PATCHLEVEL")) {
        (Some(major), Some(level)) if enterprise && !major.contains('.') && level != "0" => {
            Some(format!("{major}.{level}"))
        }
        (version, _) => version,
    };
    let name = match pretty.find(|c: char| c.is_ascii_digit()) {
        Some(at) => pretty.get(..at).map(|n| n.trim().to_owned()),
        None => Some(pretty.clone()),
    };
    Some(Release {
        id: Some(id.into()),
        id_like: like,
        name,
        pretty_name: Some(pretty),
        version_id: version.clone(),
        version,
        codename: key("CODENAME"),
        ..Release::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_red_hat_and_its_kin() {
        for (line, id, version, codename) in [
            (
                "Red Hat Enterprise Linux AS release 4 (Nahant Update 8)",
                "rhel",
                "4.8",
                "Nahant",
            ),
            (
                "Red Hat Enterprise Linux Server release 5.11 (Tikanga)",
                "rhel",
                "5.11",
                "Tikanga",
            ),
            ("CentOS release 6.10 (Final)", "centos", "6.10", "Final"),
            (
                "CentOS Linux release 7.9.2009 (Core)",
                "centos",
                "7.9.2009",
                "Core",
            ),
            ("Fedora Core release 6 (Zod)", "fedora", "6", "Zod"),
            ("Fedora release 41 (Forty One)", "fedora", "41", "Forty One"),
            ("Red Hat Linux release 9 (Shrike)", "redhat", "9", "Shrike"),
            ("Oracle Linux Server release 8.9", "ol", "8.9", ""),
            ("Amazon Linux AMI release 2018.03", "amzn", "2018.03", ""),
            ("Something release 3.2", "redhat-based", "3.2", ""),
        ] {
            let release = red_hat_like(line.as_bytes()).unwrap();
            assert_eq!(release.id.as_deref(), Some(id), "{line}");
            assert_eq!(release.version.as_deref(), Some(version), "{line}");
            assert_eq!(release.codename.unwrap_or_default(), codename, "{line}");
        }
        assert_eq!(red_hat_like(b"words\n"), None);
    }
}
