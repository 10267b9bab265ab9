//! Facts about guests: trees as distributions have them, made into ext4 images by `mke2fs -d`, and
//! exactly what is said about each. `meta/os` is given to real shells.

mod support;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use guestlens::guest::{Guest, GuestOptions, ImageArgument};
use guestlens::inspect::{self, System};
use guestlens::meta;
use support::{ext, run, tool, workdir};

/// What is at a path: text, or a link's target after `->`.
type Files<'a> = &'a [(&'a str, &'a str)];

fn populate(tree: &Path, files: &[(&str, &[u8])]) {
    for dir in ["etc", "bin", "usr/bin", "sbin"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for (path, content) in files {
        let at = tree.join(path);
        if let Some(dir) = path.strip_suffix('/') {
            let _ = std::fs::remove_dir(tree.join(dir));
            std::fs::create_dir_all(tree.join(dir)).unwrap();
            continue;
        }
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        let _ = std::fs::remove_dir(&at);
        match content.strip_prefix(b"->") {
            Some(target) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &at).unwrap();
            }
            None => std::fs::write(&at, content).unwrap(),
        }
    }
}

fn image(dir: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let tree = dir.join(format!("{name}.tree"));
    populate(&tree, files);
    let image = dir.join(format!("{name}.img"));
    ext::mke2fs(&image, "4M", &format!("-t ext4 -d '{}'", tree.display()));
    image
}

fn open(images: &[&Path]) -> Guest {
    let arguments: Vec<ImageArgument> = images
        .iter()
        .map(|path| ImageArgument {
            path: path.to_path_buf(),
            format: Some("raw".into()),
        })
        .collect();
    Guest::open(&arguments, &GuestOptions::default()).unwrap()
}

fn systems(files: &[(&str, &[u8])]) -> Vec<System> {
    let dir = workdir();
    inspect::systems(&open(&[&image(dir.path(), "guest", files)]))
}

/// The values of some keys of `os.json`, `-` for unknown.
fn facts(system: &System, keys: &[&str]) -> Vec<String> {
    let json = meta::os::json(std::slice::from_ref(system));
    let of = |key: &&str| match &json[*key]["value"] {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    keys.iter().map(of).collect()
}

fn os_release(lines: &str) -> String {
    lines.replace(';', "\n")
}

struct Case {
    name: &'static str,
    files: Files<'static>,
    /// id, distro, version, major, minor, codename, package format, package manager
    want: [&'static str; 8],
    pretty: &'static str,
}

const R: &str = "etc/redhat-release";
const O: &str = "etc/os-release";

/// In os-release texts `;` stands for a line end.
#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "rhel4", files: &[(R, "Red Hat Enterprise Linux AS release 4 (Nahant Update 8)\n")],
        want: ["rhel", "rhel", "4.8", "4", "8", "Nahant", "rpm", "up2date"], pretty: "Red Hat Enterprise Linux AS release 4 (Nahant Update 8)" },
    Case { name: "rhel5", files: &[(R, "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n"), ("etc/lsb-release", "LSB_VERSION=\"core-4.0\"\n")],
        want: ["rhel", "rhel", "5.11", "5", "11", "Tikanga", "rpm", "yum"], pretty: "Red Hat Enterprise Linux Server release 5.11 (Tikanga)" },
    Case { name: "rhel6", files: &[(R, "Red Hat Enterprise Linux Server release 6.10 (Santiago)\n")],
        want: ["rhel", "rhel", "6.10", "6", "10", "Santiago", "rpm", "yum"], pretty: "Red Hat Enterprise Linux Server release 6.10 (Santiago)" },
    Case { name: "rhel7", files: &[(O, "NAME=\"Red Hat Enterprise Linux Server\";VERSION=\"7.9 (Maipo)\";ID=\"rhel\";ID_LIKE=\"fedora\";VERSION_ID=\"7.9\";PRETTY_NAME=\"Red Hat Enterprise Linux Server 7.9 (Maipo)\""), (R, "Red Hat Enterprise Linux Server release 7.9 (Maipo)\n")],
        want: ["rhel", "rhel", "7.9", "7", "9", "-", "rpm", "yum"], pretty: "Red Hat Enterprise Linux Server 7.9 (Maipo)" },
    Case { name: "rhel10", files: &[(O, "->../usr/lib/os-release"), ("usr/lib/os-release", "NAME=\"Red Hat Enterprise Linux\";VERSION=\"10.0 (Coughlan)\";ID=\"rhel\";ID_LIKE=\"centos fedora\";VERSION_ID=\"10.0\";PRETTY_NAME=\"Red Hat Enterprise Linux 10.0 (Coughlan)\"")],
        want: ["rhel", "rhel", "10.0", "10", "0", "-", "rpm", "dnf"], pretty: "Red Hat Enterprise Linux 10.0 (Coughlan)" },
    Case { name: "centos4", files: &[(R, "CentOS release 4.8 (Final)\n")],
        want: ["centos", "centos", "4.8", "4", "8", "Final", "rpm", "up2date"], pretty: "CentOS release 4.8 (Final)" },
    Case { name: "centos6", files: &[("etc/centos-release", "CentOS release 6.10 (Final)\n"), (R, "->centos-release")],
        want: ["centos", "centos", "6.10", "6", "10", "Final", "rpm", "yum"], pretty: "CentOS release 6.10 (Final)" },
    Case { name: "centos7", files: &[(O, "NAME=\"CentOS Linux\";VERSION=\"7 (Core)\";ID=\"centos\";ID_LIKE=\"rhel fedora\";VERSION_ID=\"7\";PRETTY_NAME=\"CentOS Linux 7 (Core)\""), ("etc/centos-release", "CentOS Linux release 7.9.2009 (Core)\n")],
        want: ["centos", "centos", "7.9.2009", "7", "9", "Core", "rpm", "yum"], pretty: "CentOS Linux 7 (Core)" },
    Case { name: "centos9", files: &[(O, "NAME=\"CentOS Stream\";VERSION=\"9\";ID=\"centos\";ID_LIKE=\"rhel fedora\";VERSION_ID=\"9\";PRETTY_NAME=\"CentOS Stream 9\""), ("etc/centos-release", "CentOS Stream release 9\n")],
        want: ["centos", "centos", "9", "9", "-", "-", "rpm", "dnf"], pretty: "CentOS Stream 9" },
    Case { name: "rocky9", files: &[(O, "NAME=\"Rocky Linux\";VERSION=\"9.3 (Blue Onyx)\";ID=\"rocky\";ID_LIKE=\"rhel centos fedora\";VERSION_ID=\"9.3\";PRETTY_NAME=\"Rocky Linux 9.3 (Blue Onyx)\""), ("etc/rocky-release", "Rocky Linux release 9.3 (Blue Onyx)\n")],
        want: ["rocky", "rocky", "9.3", "9", "3", "Blue Onyx", "rpm", "dnf"], pretty: "Rocky Linux 9.3 (Blue Onyx)" },
    Case { name: "alma8", files: &[(O, "NAME=\"AlmaLinux\";VERSION=\"8.9 (Midnight Oncilla)\";ID=\"almalinux\";ID_LIKE=\"rhel centos fedora\";VERSION_ID=\"8.9\";PRETTY_NAME=\"AlmaLinux 8.9 (Midnight Oncilla)\"")],
        want: ["almalinux", "almalinux", "8.9", "8", "9", "-", "rpm", "dnf"], pretty: "AlmaLinux 8.9 (Midnight Oncilla)" },
    Case { name: "oracle8", files: &[(O, "NAME=\"Oracle Linux Server\";VERSION=\"8.9\";ID=\"ol\";ID_LIKE=\"fedora\";VERSION_ID=\"8.9\";PRETTY_NAME=\"Oracle Linux Server 8.9\"")],
        want: ["ol", "oraclelinux", "8.9", "8", "9", "-", "rpm", "dnf"], pretty: "Oracle Linux Server 8.9" },
    Case { name: "scientific6", files: &[(R, "Scientific Linux release 6.9 (Carbon)\n")],
        want: ["scientific", "scientificlinux", "6.9", "6", "9", "Carbon", "rpm", "yum"], pretty: "Scientific Linux release 6.9 (Carbon)" },
    Case { name: "fedoracore6", files: &[(R, "Fedora Core release 6 (Zod)\n")],
        want: ["fedora", "fedora", "6", "6", "-", "Zod", "rpm", "yum"], pretty: "Fedora Core release 6 (Zod)" },
    Case { name: "fedora41", files: &[(O, "NAME=\"Fedora Linux\";VERSION=\"41 (Server Edition)\";ID=fedora;VERSION_ID=41;VERSION_CODENAME=\"\";PRETTY_NAME=\"Fedora Linux 41 (Server Edition)\";VARIANT_ID=server"), ("usr/bin/dnf", "#!/usr/bin/python3\n")],
        want: ["fedora", "fedora", "41", "41", "-", "-", "rpm", "dnf"], pretty: "Fedora Linux 41 (Server Edition)" },
    Case { name: "amazon2", files: &[(O, "NAME=\"Amazon Linux\";VERSION=\"2\";ID=\"amzn\";ID_LIKE=\"centos rhel fedora\";VERSION_ID=\"2\";PRETTY_NAME=\"Amazon Linux 2\"")],
        want: ["amzn", "amzn", "2", "2", "-", "-", "rpm", "yum"], pretty: "Amazon Linux 2" },
    Case { name: "amazon2013", files: &[("etc/system-release", "Amazon Linux AMI release 2013.03\n")],
        want: ["amzn", "amzn", "2013.03", "2013", "3", "-", "rpm", "yum"], pretty: "Amazon Linux AMI release 2013.03" },
    Case { name: "debian3", files: &[("etc/debian_version", "3.1\n")],
        want: ["debian", "debian", "3.1", "3", "1", "sarge", "deb", "apt"], pretty: "Debian GNU/Linux 3.1" },
    Case { name: "debian4", files: &[("etc/debian_version", "4.0\n")],
        want: ["debian", "debian", "4.0", "4", "0", "etch", "deb", "apt"], pretty: "Debian GNU/Linux 4.0" },
    Case { name: "debian5", files: &[("etc/debian_version", "5.0.10\n")],
        want: ["debian", "debian", "5.0.10", "5", "0", "lenny", "deb", "apt"], pretty: "Debian GNU/Linux 5.0.10" },
    Case { name: "debian7", files: &[(O, "PRETTY_NAME=\"Debian GNU/Linux 7 (wheezy)\";NAME=\"Debian GNU/Linux\";VERSION_ID=\"7\";VERSION=\"7 (wheezy)\";ID=debian"), ("etc/debian_version", "7.11\n")],
        want: ["debian", "debian", "7.11", "7", "11", "wheezy", "deb", "apt"], pretty: "Debian GNU/Linux 7 (wheezy)" },
    Case { name: "debian12", files: &[(O, "->../usr/lib/os-release"), ("usr/lib/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\";NAME=\"Debian GNU/Linux\";VERSION_ID=\"12\";VERSION=\"12 (bookworm)\";VERSION_CODENAME=bookworm;ID=debian"), ("etc/debian_version", "12.5\n")],
        want: ["debian", "debian", "12.5", "12", "5", "bookworm", "deb", "apt"], pretty: "Debian GNU/Linux 12 (bookworm)" },
    Case { name: "debian-testing", files: &[(O, "PRETTY_NAME=\"Debian GNU/Linux forky/sid\";NAME=\"Debian GNU/Linux\";VERSION_CODENAME=forky;ID=debian"), ("etc/debian_version", "forky/sid\n")],
        want: ["debian", "debian", "-", "-", "-", "forky", "deb", "apt"], pretty: "Debian GNU/Linux forky/sid" },
    Case { name: "raspbian", files: &[(O, "PRETTY_NAME=\"Raspbian GNU/Linux 11 (bullseye)\";NAME=\"Raspbian GNU/Linux\";VERSION_ID=\"11\";VERSION=\"11 (bullseye)\";VERSION_CODENAME=bullseye;ID=raspbian;ID_LIKE=debian"), ("etc/debian_version", "11.9\n")],
        want: ["raspbian", "raspbian", "11.9", "11", "9", "bullseye", "deb", "apt"], pretty: "Raspbian GNU/Linux 11 (bullseye)" },
    Case { name: "ubuntu804", files: &[("etc/lsb-release", "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=8.04\nDISTRIB_CODENAME=hardy\nDISTRIB_DESCRIPTION=\"Ubuntu 8.04.4 LTS\"\n"), ("etc/debian_version", "lenny/sid\n")],
        want: ["ubuntu", "ubuntu", "8.04", "8", "4", "hardy", "deb", "apt"], pretty: "Ubuntu 8.04.4 LTS" },
    Case { name: "ubuntu1404", files: &[(O, "NAME=\"Ubuntu\";VERSION=\"14.04.6 LTS, Trusty Tahr\";ID=ubuntu;ID_LIKE=debian;PRETTY_NAME=\"Ubuntu 14.04.6 LTS\";VERSION_ID=\"14.04\""), ("etc/lsb-release", "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=14.04\nDISTRIB_CODENAME=trusty\n"), ("etc/debian_version", "jessie/sid\n")],
        want: ["ubuntu", "ubuntu", "14.04.6", "14", "4", "trusty", "deb", "apt"], pretty: "Ubuntu 14.04.6 LTS" },
    Case { name: "ubuntu2404", files: &[(O, "PRETTY_NAME=\"Ubuntu 24.04.1 LTS\";NAME=\"Ubuntu\";VERSION_ID=\"24.04\";VERSION=\"24.04.1 LTS (Noble Numbat)\";VERSION_CODENAME=noble;ID=ubuntu;ID_LIKE=debian;UBUNTU_CODENAME=noble")],
        want: ["ubuntu", "ubuntu", "24.04.1", "24", "4", "noble", "deb", "apt"], pretty: "Ubuntu 24.04.1 LTS" },
    Case { name: "mint", files: &[(O, "NAME=\"Linux Mint\";VERSION=\"21.3 (Virginia)\";ID=linuxmint;ID_LIKE=\"ubuntu debian\";PRETTY_NAME=\"Linux Mint 21.3\";VERSION_ID=\"21.3\";VERSION_CODENAME=virginia;UBUNTU_CODENAME=jammy")],
        want: ["linuxmint", "linuxmint", "21.3", "21", "3", "virginia", "deb", "apt"], pretty: "Linux Mint 21.3" },
    Case { name: "elementary-old", files: &[("etc/lsb-release", "DISTRIB_ID=\"elementary OS\"\nDISTRIB_RELEASE=0.2\nDISTRIB_CODENAME=luna\nDISTRIB_DESCRIPTION=\"elementary OS Luna\"\n"), ("etc/debian_version", "wheezy/sid\n")],
        want: ["elementary", "elementary", "0.2", "0", "2", "luna", "deb", "apt"], pretty: "elementary OS Luna" },
    Case { name: "unknown-derivative", files: &[(O, "NAME=Frobnix;ID=frobnix;ID_LIKE=\"nonsense ubuntu debian\";VERSION_ID=3;PRETTY_NAME='Frobnix 3'")],
        want: ["frobnix", "frobnix", "3", "3", "-", "-", "deb", "apt"], pretty: "Frobnix 3" },
    Case { name: "unknown-with-rpm", files: &[(O, "NAME=Frob;ID=frob;PRETTY_NAME=Frob"), ("var/lib/rpm/", ""), ("usr/bin/zypper", "x")],
        want: ["frob", "frob", "-", "-", "-", "-", "rpm", "zypper"], pretty: "Frob" },
    Case { name: "sles11", files: &[("etc/SuSE-release", "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n")],
        want: ["sles", "sles", "11.4", "11", "4", "-", "rpm", "zypper"], pretty: "SUSE Linux Enterprise Server 11 (x86_64)" },
    Case { name: "sles15", files: &[(O, "NAME=\"SLES\";VERSION=\"15-SP5\";VERSION_ID=\"15.5\";PRETTY_NAME=\"SUSE Linux Enterprise Server 15 SP5\";ID=\"sles\";ID_LIKE=\"suse\"")],
        want: ["sles", "sles", "15.5", "15", "5", "-", "rpm", "zypper"], pretty: "SUSE Linux Enterprise Server 15 SP5" },
    Case { name: "opensuse11", files: &[("etc/SuSE-release", "openSUSE 11.4 (x86_64)\nVERSION = 11.4\nCODENAME = Celadon\n")],
        want: ["opensuse", "opensuse", "11.4", "11", "4", "Celadon", "rpm", "zypper"], pretty: "openSUSE 11.4 (x86_64)" },
    Case { name: "leap", files: &[(O, "NAME=\"openSUSE Leap\";VERSION=\"15.6\";ID=\"opensuse-leap\";ID_LIKE=\"suse opensuse\";VERSION_ID=\"15.6\";PRETTY_NAME=\"openSUSE Leap 15.6\"")],
        want: ["opensuse-leap", "opensuse", "15.6", "15", "6", "-", "rpm", "zypper"], pretty: "openSUSE Leap 15.6" },
    Case { name: "alpine2", files: &[("etc/alpine-release", "2.4.6\n")],
        want: ["alpine", "alpinelinux", "2.4.6", "2", "4", "-", "apk", "apk"], pretty: "Alpine Linux 2.4.6" },
    Case { name: "alpine3", files: &[(O, "NAME=\"Alpine Linux\";ID=alpine;VERSION_ID=3.19.1;PRETTY_NAME=\"Alpine Linux v3.19\""), ("etc/alpine-release", "3.19.1\n")],
        want: ["alpine", "alpinelinux", "3.19.1", "3", "19", "-", "apk", "apk"], pretty: "Alpine Linux v3.19" },
    Case { name: "arch", files: &[(O, "NAME=\"Arch Linux\";PRETTY_NAME=\"Arch Linux\";ID=arch;BUILD_ID=rolling"), ("etc/arch-release", "")],
        want: ["arch", "archlinux", "-", "-", "-", "-", "pacman", "pacman"], pretty: "Arch Linux" },
    Case { name: "gentoo", files: &[("etc/gentoo-release", "Gentoo Base System release 2.14\n")],
        want: ["gentoo", "gentoo", "2.14", "2", "14", "-", "ebuild", "portage"], pretty: "Gentoo Base System release 2.14" },
    Case { name: "void", files: &[(O, "NAME=\"Void\";ID=\"void\";PRETTY_NAME=\"Void Linux\"")],
        want: ["void", "voidlinux", "-", "-", "-", "-", "xbps", "xbps"], pretty: "Void Linux" },
    Case { name: "slackware", files: &[("etc/slackware-version", "Slackware 14.2\n")],
        want: ["slackware", "slackware", "14.2", "14", "2", "-", "-", "slackpkg"], pretty: "Slackware 14.2" },
    Case { name: "mageia", files: &[("etc/mageia-release", "Mageia release 4 (Official) for x86_64\n"), (R, "->mageia-release")],
        want: ["mageia", "mageia", "4", "4", "-", "Official", "rpm", "urpmi"], pretty: "Mageia release 4 (Official) for x86_64" },
    Case { name: "openwrt", files: &[("etc/openwrt_release", "DISTRIB_ID='OpenWrt'\nDISTRIB_RELEASE='21.02.3'\nDISTRIB_DESCRIPTION='OpenWrt 21.02.3 r16554'\n")],
        want: ["openwrt", "openwrt", "21.02.3", "21", "2", "-", "opkg", "opkg"], pretty: "OpenWrt 21.02.3 r16554" },
    Case { name: "openeuler", files: &[(O, "NAME=\"openEuler\";VERSION=\"22.03 (LTS-SP3)\";ID=\"openEuler\";VERSION_ID=\"22.03\";PRETTY_NAME=\"openEuler 22.03 (LTS-SP3)\"")],
        want: ["openeuler", "openeuler", "22.03", "22", "3", "-", "rpm", "dnf"], pretty: "openEuler 22.03 (LTS-SP3)" },
    Case { name: "buildroot", files: &[("etc/br-version", "2012.05\n")],
        want: ["buildroot", "buildroot", "2012.05", "2012", "5", "-", "-", "-"], pretty: "Buildroot 2012.05" },
];

#[test]
fn distributions() {
    assert!(CASES.len() >= 40);
    let mut wrong = Vec::new();
    for case in CASES {
        let texts: Vec<(&str, Vec<u8>)> = case
            .files
            .iter()
            .map(|(path, text)| {
                let text = if path.ends_with("os-release") {
                    os_release(text)
                } else {
                    (*text).to_owned()
                };
                (*path, text.into_bytes())
            })
            .chain([("etc/fstab", b"# nothing\n".to_vec())])
            .collect();
        let files: Vec<(&str, &[u8])> = texts.iter().map(|(p, t)| (*p, t.as_slice())).collect();
        let found = systems(&files);
        assert_eq!(found.len(), 1, "{}", case.name);
        let keys = [
            "id",
            "distro",
            "version",
            "version_major",
            "version_minor",
            "version_codename",
            "package_format",
            "package_manager",
            "pretty_name",
            "type",
        ];
        let got = facts(&found[0], &keys);
        let want: Vec<&str> = case
            .want
            .into_iter()
            .chain([case.pretty, "linux"])
            .collect();
        if got != want {
            wrong.push(format!("{}:\n  got  {got:?}\n  want {want:?}", case.name));
        }
        assert_eq!(found[0].problems().count(), 0, "{}", case.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn elf() -> Vec<u8> {
    let mut head = std::fs::read("/proc/self/exe").unwrap();
    head.truncate(4096);
    head
}

#[test]
fn settings_and_where_they_came_from() {
    let elf = elf();
    let found = systems(&[
        (
            "usr/lib/os-release",
            b"ID=debian\nNAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian\"\nVERSION_ID=12\n",
        ),
        ("etc/os-release", b"->../usr/lib/os-release"),
        ("etc/debian_version", b"12.5\n"),
        ("etc/hostname", b"# comment\n\n  web-1.example.org \n"),
        ("etc/machine-id", b"0123456789ABCDEF0123456789abcdef\n"),
        (
            "etc/localtime",
            b"->/usr/share/zoneinfo/America/Argentina/Buenos_Aires",
        ),
        ("etc/timezone", b"Etc/UTC\n"),
        ("usr/bin/bash", &elf),
        ("bin", b"->/usr/bin"),
        ("usr/lib/systemd/systemd", &elf),
        ("sbin/init", b"->/usr/lib/systemd/systemd"),
        ("boot/vmlinuz-6.1.0-9-amd64", b"k"),
        ("boot/vmlinuz-6.1.0-18-amd64", b"k"),
        ("boot/vmlinuz-0-rescue-0123", b"k"),
        ("lib/modules/6.1.0-18-amd64/", b""),
        ("lib/modules/5.10.0-28-amd64/", b""),
    ]);
    let json = meta::os::json(&found);
    let fact = |key: &str| (json[key]["value"].clone(), json[key]["source"].clone());
    for (key, value, source) in [
        ("version", "12.5", "/etc/debian_version"),
        ("version_id", "12", "/etc/os-release"),
        ("hostname", "web-1.example.org", "/etc/hostname"),
        (
            "machine_id",
            "0123456789abcdef0123456789abcdef",
            "/etc/machine-id",
        ),
        (
            "timezone",
            "America/Argentina/Buenos_Aires",
            "/etc/localtime",
        ),
        ("architecture", std::env::consts::ARCH, "/bin/bash"),
        ("init", "systemd", "/sbin/init"),
        ("root_device", "sda", "/"),
    ] {
        assert_eq!(fact(key), (value.into(), source.into()), "{key}");
    }
    let kernels: Vec<(&str, &str)> = found[0]
        .facts()
        .kernels
        .iter()
        .map(|k| (k.value.as_str(), k.source.as_str()))
        .collect();
    assert_eq!(
        kernels,
        [
            ("5.10.0-28-amd64", "/lib/modules/5.10.0-28-amd64"),
            ("6.1.0-9-amd64", "/boot/vmlinuz-6.1.0-9-amd64"),
            ("6.1.0-18-amd64", "/boot/vmlinuz-6.1.0-18-amd64"),
        ]
    );
    assert_eq!(json["systems"][0]["hostname"], json["hostname"]);
}

#[test]
fn init_systems_and_host_names() {
    let fstab = ("etc/fstab", &b""[..]);
    for (files, init, host) in [
        (
            vec![
                ("sbin/init", &b"x"[..]),
                ("etc/inittab", b""),
                (
                    "etc/sysconfig/network",
                    b"NETWORKING=yes\nHOSTNAME=\"old.example.org\"\n",
                ),
            ],
            "sysvinit",
            "old.example.org",
        ),
        (
            vec![
                ("sbin/init", b"x"),
                ("sbin/initctl", b"x"),
                ("etc/init/", b""),
                ("etc/hostname", b"trusty\n"),
            ],
            "upstart",
            "trusty",
        ),
        (
            vec![
                ("sbin/init", b"->/bin/busybox"),
                ("bin/busybox", b"x"),
                ("sbin/openrc", b"x"),
                ("etc/HOSTNAME", b"first\n"),
                ("etc/hostname", b"second\n"),
            ],
            "openrc",
            "first",
        ),
        (
            vec![("sbin/init", b"->../bin/busybox"), ("bin/busybox", b"x")],
            "busybox",
            "-",
        ),
        (
            vec![
                ("sbin/init", b"->runit-init"),
                ("sbin/runit-init", b"x"),
                ("etc/conf.d/hostname", b"hostname='gentoo'\n"),
            ],
            "runit",
            "gentoo",
        ),
        (
            vec![
                ("sbin/procd", b"x"),
                ("sbin/init", b"x"),
                (
                    "etc/config/system",
                    b"config system\n\toption hostname 'OpenWrt'\n\toption zonename 'UTC'\n",
                ),
            ],
            "procd",
            "OpenWrt",
        ),
        (
            vec![
                ("sbin/init", b"->s6-linux-init"),
                ("etc/hostname", b"\n#\n"),
            ],
            "s6",
            "-",
        ),
        (vec![("lib/systemd/systemd", b"x")], "systemd", "-"),
        (vec![], "-", "-"),
    ] {
        let mut files = files.clone();
        files.push(fstab);
        let found = systems(&files);
        assert_eq!(facts(&found[0], &["init", "hostname"]), [init, host]);
    }
}

#[test]
fn what_is_a_root_and_what_is_not() {
    let empty = &b""[..];
    for (name, files, want) in [
        (
            "absolute link",
            vec![("bin", &b"->/usr/bin"[..]), ("etc/hosts", empty)],
            1,
        ),
        (
            "usr elsewhere",
            vec![("bin", b"->usr/bin"), ("etc/fstab", empty)],
            1,
        ),
        (
            "nixos",
            vec![
                ("etc/NIXOS", empty),
                ("nix/store/x", empty),
                ("etc/fstab", b"->static/fstab"),
            ],
            1,
        ),
        ("no fstab", vec![("etc/os-release", b"ID=x\n")], 1),
        ("nothing but etc", vec![("etc/motd", empty)], 0),
        ("a boot partition", vec![("grub/grub.cfg", empty)], 0),
    ] {
        assert_eq!(systems(&files).len(), want, "{name}");
    }
}

#[test]
fn several_systems_and_the_fstab() {
    let dir = workdir();
    let one = image(
        dir.path(),
        "one",
        &[
            (
                "etc/os-release",
                b"ID=debian\nPRETTY_NAME=One\nVERSION_ID=12\n",
            ),
            (
                "etc/fstab",
                b"/dev/sda / ext4 defaults 0 1\n/dev/sdc /home ext4 defaults 0 2\ngarbage\n",
            ),
            ("home/", b""),
        ],
    );
    let two = image(
        dir.path(),
        "two",
        &[("etc/os-release", b"ID=alpine\nPRETTY_NAME=Two\n")],
    );
    let home = dir.path().join("home.img");
    ext::mke2fs(&home, "4M", "-t ext4 -L homes");
    let guest = open(&[&one, &two, &home]);
    let found = inspect::systems(&guest);
    let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["sda", "sdb"]);
    let text = meta::os::shell(&found);
    assert!(
        text.starts_with("# 1 more operating system was found"),
        "{text}"
    );
    assert!(
        text.contains("\nMOUNTPOINTS=\"/=sda /home=sdc\"\n"),
        "{text}"
    );
    let json = meta::os::json(&found);
    assert_eq!(json["systems"][1]["pretty_name"]["value"], "Two");
    assert_eq!(json["pretty_name"]["value"], "One");
    let disks = meta::disks::text(&guest, &found);
    let line = disks.lines().find(|l| l.contains("/home")).unwrap();
    assert!(line.contains("homes") && line.contains("ext4"), "{disks}");
    assert_eq!(
        meta::disks::json(&guest, &found)["disks"][2]["volumes"][0]["label"],
        "homes"
    );
    assert!(
        meta::session::text(&meta::session::Session::of(&guest, None, None))
            .contains("access: \"read-only\"\n")
    );
    assert_eq!(meta::image::json(&guest, None)["images"][0]["disk"], "sda");
    let problems = meta::problems::text(&guest, &found);
    assert!(problems.contains("sda:etc/fstab"), "{problems}");
}

/// Values that try to run something or to break out of their line, and what a variable holds after
/// sourcing: the same, with control characters replaced.
#[test]
fn shells_source_os_and_nothing_runs() {
    let dir = workdir();
    let canary = dir.path().join("canary");
    let c = canary.display().to_string();
    let values: Vec<(String, String)> = [
        ("$(touch CANARY)", "$(touch CANARY)"),
        ("`touch CANARY`", "`touch CANARY`"),
        ("\";touch CANARY;\"", "\";touch CANARY;\""),
        ("';touch CANARY;'", "';touch CANARY;'"),
        ("a\ntouch CANARY\nb", "a\u{fffd}touch CANARY\u{fffd}b"),
        ("\\", "\\"),
        ("x\\\";touch CANARY #", "x\\\";touch CANARY #"),
        ("${IFS}$PATH$((1+1))", "${IFS}$PATH$((1+1))"),
        ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
        ("nul\0byte", "nul\u{fffd}byte"),
        ("\u{4f60}\\\"$(touch CANARY)", "\u{4f60}\\\"$(touch CANARY)"),
        ("'\\''\"'\"", "'\\''\"'\""),
        ("a\rb\tc", "a\u{fffd}b\u{fffd}c"),
        (
            "plain & ; | < > * ? [x] ~ ! #",
            "plain & ; | < > * ? [x] ~ ! #",
        ),
        ("\u{202e}gnp", "\u{fffd}gnp"),
        ("=(touch CANARY)", "=(touch CANARY)"),
    ]
    .iter()
    .map(|(a, b)| (a.replace("CANARY", &c), b.replace("CANARY", &c)))
    .collect();
    for (n, (hostile, want)) in values.iter().enumerate() {
        // In single quotes, so that our own reading takes the text as it is.
        let quoted = format!("'{}'", hostile.replace('\'', "'\\''"));
        let release =
            format!("ID={quoted}\nPRETTY_NAME={quoted}\nNAME={quoted}\nVERSION_ID={quoted}\n");
        let raw = image(
            dir.path(),
            &format!("h{n}"),
            &[
                ("etc/os-release", release.as_bytes()),
                (
                    "etc/sysconfig/network",
                    format!("HOSTNAME={quoted}\n").as_bytes(),
                ),
                ("etc/timezone", b"\xff\xfe$(id)\n"),
            ],
        );
        let text = meta::os::shell(&inspect::systems(&open(&[&raw])));
        let file = dir.path().join(format!("os{n}"));
        std::fs::write(&file, &text).unwrap();
        for shell in ["dash", "bash"] {
            for locale in ["C", "C.UTF-8", "zh_CN.GBK"] {
                let script = ". \"$1\"; printf '%s\\0%s\\0%s\\0%s' \"$PRETTY_NAME\" \"$NAME\" \"$HOSTNAME\" \"$TIMEZONE\"";
                let out = run(tool(shell)
                    .env("LC_ALL", locale)
                    .current_dir(dir.path())
                    .args(["-euc", script, "sh"])
                    .arg(&file));
                let expect = [want, want, want, "\u{fffd}\u{fffd}$(id)"].join("\0");
                assert_eq!(
                    String::from_utf8_lossy(&out.stdout),
                    expect,
                    "{shell} {locale} {hostile:?}\n{text}"
                );
            }
        }
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let key = line.split('=').next().unwrap();
            assert!(
                key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
                "{line}"
            );
        }
        assert!(!canary.exists(), "{hostile:?} ran");
    }
    assert!(values.len() >= 16);
}
