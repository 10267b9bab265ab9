//! Package format and package manager.
//!
//! Told by the distribution; for an unknown one by those it derives from (`ID_LIKE`, closest
//! first); if that says nothing either, by the package database that is there.

use super::api::{Fact, Facts};
use super::evidence::Evidence;

/// Finds both.
pub fn find(evidence: &mut Evidence<'_>, facts: &mut Facts) {
    let mut names: Vec<(String, String)> = Vec::new();
    if let Some(id) = &facts.id {
        names.push((id.value.clone(), id.source.clone()));
    }
    if let Some(like) = &facts.id_like {
        names.extend(like.value.iter().map(|l| (l.clone(), like.source.clone())));
    }
    let known = names
        .iter()
        .find_map(|(name, source)| Some((name.as_str(), family(name)?, source)));
    if let Some((name, family, source)) = known {
        let exact = facts.id.as_ref().is_some_and(|id| id.value == name);
        let major = facts.version_major.as_ref().map(|m| m.value);
        facts.package_format = family.format().map(|f| Fact::new(f.into(), source.clone()));
        // A derivative's version is its own, and tells nothing about what it derives from.
        let major = if exact { major } else { None };
        facts.package_manager = manager(evidence, family, major, source);
        return;
    }
    for (path, format, manager) in DATABASES {
        if evidence.exists(path) {
            facts.package_format = Some(Fact::new(format.into(), path));
            facts.package_manager = match manager {
                Some(manager) => Some(Fact::new(manager.into(), path)),
                None => rpm_manager(evidence),
            };
            return;
        }
    }
}

/// Where a package database is, its format and its manager (`None`: see what is installed).
const DATABASES: [(&str, &str, Option<&str>); 9] = [
    ("/var/lib/dpkg/status", "deb", Some("apt")),
    ("/usr/lib/sysimage/rpm", "rpm", None),
    ("/var/lib/rpm", "rpm", None),
    ("/lib/apk/db/installed", "apk", Some("apk")),
    ("/usr/lib/apk/db/installed", "apk", Some("apk")),
    ("/var/lib/pacman/local", "pacman", Some("pacman")),
    ("/var/db/xbps", "xbps", Some("xbps")),
    ("/var/db/pkg", "ebuild", Some("portage")),
    ("/usr/lib/opkg/status", "opkg", Some("opkg")),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Fedora,
    RedHat,
    Amazon,
    Dnf,
    Urpmi,
    Zypper,
    Tdnf,
    Yum,
    AptRpm,
    Deb,
    Arch,
    Gentoo,
    Pardus,
    Apk,
    Void,
    Nix,
    OpenWrt,
    Slackware,
    None,
}

impl Family {
    fn format(self) -> Option<&'static str> {
        Some(match self {
            Self::Fedora
            | Self::RedHat
            | Self::Amazon
            | Self::Dnf
            | Self::Urpmi
            | Self::Zypper
            | Self::Tdnf
            | Self::Yum
            | Self::AptRpm => "rpm",
            Self::Deb => "deb",
            Self::Arch => "pacman",
            Self::Gentoo => "ebuild",
            Self::Pardus => "pisi",
            Self::Apk => "apk",
            Self::Void => "xbps",
            Self::Nix => "nix",
            Self::OpenWrt => "opkg",
            Self::Slackware | Self::None => return None,
        })
    }
}

fn family(id: &str) -> Option<Family> {
    Some(match id {
        "fedora" | "nobara" | "asahi" | "ultramarine" | "qubes" => Family::Fedora,
        "rhel" | "redhat" | "redhat-based" | "centos" | "rocky" | "almalinux" | "ol"
        | "scientific" | "circle" | "kylin" | "springdale" | "cloudlinux" | "virtuozzo"
        | "clearos" | "eurolinux" | "miraclelinux" | "xenenterprise" | "xcp-ng" => Family::RedHat,
        "amzn" => Family::Amazon,
        "neokylin" | "openmandriva" | "opencloudos" | "tencentos" | "openeuler" | "hce"
        | "anolis" => Family::Dnf,
        "mageia" | "mandriva" => Family::Urpmi,
        "suse" | "sles" | "sled" | "sles_sap" | "sle-micro" | "sl-micro" | "suse-based" => {
            Family::Zypper
        }
        id if id.starts_with("opensuse") || id.starts_with("suse-") => Family::Zypper,
        "photon" | "mariner" | "azurelinux" => Family::Tdnf,
        "meego" => Family::Yum,
        "altlinux" => Family::AptRpm,
        "debian" | "ubuntu" | "linuxmint" | "kali" | "raspbian" | "devuan" | "elementary"
        | "pop" | "zorin" | "parrot" | "neon" | "deepin" | "uos" | "pureos" | "mx"
        | "cumulus-linux" | "proxmox" | "tails" => Family::Deb,
        "arch" | "archarm" | "archlinux" | "manjaro" | "manjaro-arm" | "endeavouros"
        | "antergos" | "arcolinux" | "cachyos" | "garuda" | "artix" | "steamos" => Family::Arch,
        "gentoo" | "funtoo" | "calculate" => Family::Gentoo,
        "pardus" => Family::Pardus,
        "alpine" | "wolfi" | "chainguard" | "postmarketos" => Family::Apk,
        "void" => Family::Void,
        "nixos" => Family::Nix,
        "openwrt" => Family::OpenWrt,
        "slackware" => Family::Slackware,
        "buildroot" | "cirros" | "coreos" | "flatcar" | "cos" | "rancheros" | "frugalware"
        | "pld" | "ttylinux" | "clear-linux-os" | "bottlerocket" | "talos" => Family::None,
        _ => return None,
    })
}

fn manager(
    evidence: &Evidence<'_>,
    family: Family,
    major: Option<u64>,
    source: &str,
) -> Option<Fact> {
    let name = match family {
        Family::Fedora => match major {
            Some(major) if major >= 22 && evidence.is_file("/usr/bin/dnf") => "dnf",
            Some(major) if major < 22 => "yum",
            _ => return rpm_manager(evidence).or_else(|| Some(Fact::new("dnf".into(), source))),
        },
        Family::RedHat => match major {
            Some(8..) => "dnf",
            Some(5..=7) => "yum",
            Some(2..=4) => "up2date",
            _ => return rpm_manager(evidence),
        },
        // Amazon Linux 1 counted years and had yum, as 2 has; from 2022 on it is dnf.
        Family::Amazon => match major {
            Some(2022..) => "dnf",
            Some(_) => "yum",
            None => return rpm_manager(evidence),
        },
        Family::Dnf => "dnf",
        Family::Urpmi => "urpmi",
        Family::Zypper => "zypper",
        Family::Tdnf => "tdnf",
        Family::Yum => "yum",
        Family::AptRpm | Family::Deb => "apt",
        Family::Arch => "pacman",
        Family::Gentoo => "portage",
        Family::Pardus => "pisi",
        Family::Apk => "apk",
        Family::Void => "xbps",
        Family::Nix => "nix",
        Family::OpenWrt => "opkg",
        Family::Slackware => "slackpkg",
        Family::None => return None,
    };
    Some(Fact::new(name.into(), source))
}

/// What is installed to manage RPM packages.
fn rpm_manager(evidence: &Evidence<'_>) -> Option<Fact> {
    [
        ("/usr/bin/dnf", "dnf"),
        ("/usr/bin/dnf5", "dnf"),
        ("/usr/bin/zypper", "zypper"),
        ("/usr/bin/tdnf", "tdnf"),
        ("/usr/bin/microdnf", "microdnf"),
        ("/usr/bin/yum", "yum"),
        ("/usr/sbin/urpmi", "urpmi"),
        ("/usr/bin/apt-get", "apt"),
        ("/usr/sbin/up2date", "up2date"),
    ]
    .into_iter()
    .find(|(path, _)| evidence.is_file(path))
    .map(|(path, name)| Fact::new(name.into(), path))
}
