//! Which network stacks a guest has and which of them act at boot.
//!
//! Leftover files of stacks nobody starts are common, so a stack's files are read only if the
//! guest's init system starts its program. Source: systemd.unit(5) (wants links, masking), the rc
//! directories of System V init, OpenRC's runlevels.

use super::api::{EntryKind, NetworkFiles, Reading, text};
use super::codec::{ifcfg, interfaces};
use super::model::{Effect, Stack, Unmapped};

/// Most files of one untranslated stack that are listed.
const MAX_LISTED: usize = 1000;

/// A stack that was found.
#[derive(Clone, Debug)]
struct Found {
    name: &'static str,
    consumer: Option<&'static str>,
    live: bool,
    may_overwrite: bool,
    files: Vec<Vec<u8>>,
}

/// All stacks of a guest.
#[derive(Clone, Debug)]
pub struct Stacks {
    found: Vec<Found>,
    /// Stacks taken as live although nothing shows that they are started.
    assumed: Vec<&'static str>,
    initscripts: bool,
    flavour: interfaces::Flavour,
}

impl Stacks {
    fn live(&self, name: &str) -> Option<&Found> {
        self.found.iter().find(|f| f.name == name && f.live)
    }

    /// How the ifcfg files are to be read, if they are live.
    pub fn ifcfg(&self) -> Option<ifcfg::Plan> {
        let found = self.live("ifcfg")?;
        Some(ifcfg::Plan {
            consumer: match found.consumer {
                Some("initscripts") => ifcfg::Consumer::Initscripts,
                _ => ifcfg::Consumer::NetworkManager,
            },
            initscripts: self.initscripts,
        })
    }

    /// Whether `etc/network/interfaces` acts at boot.
    pub fn interfaces_live(&self) -> bool {
        self.live("interfaces").is_some()
    }

    /// Which program reads `etc/network/interfaces`.
    pub fn interfaces_flavour(&self) -> interfaces::Flavour {
        self.flavour
    }
}

/// What an init system is told to start.
struct Init<'a> {
    files: &'a dyn NetworkFiles,
    wants: Vec<Vec<u8>>,
    rc: Vec<Vec<u8>>,
    runlevels: Vec<Vec<u8>>,
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

impl<'a> Init<'a> {
    fn new(files: &'a dyn NetworkFiles) -> Self {
        let (mut wants, mut rc, mut runlevels) = (Vec::new(), Vec::new(), Vec::new());
        for dir in [
            "etc/systemd/system",
            "usr/lib/systemd/system",
            "lib/systemd/system",
        ] {
            for entry in files.list(dir.as_bytes()) {
                if entry.name.ends_with(b".wants") || entry.name.ends_with(b".requires") {
                    let dir = join(dir.as_bytes(), &entry.name);
                    wants.extend(files.list(&dir).into_iter().map(|e| e.name));
                } else if entry.name.starts_with(b"dbus-org.") && dir.starts_with("etc") {
                    wants.push(entry.name);
                }
            }
        }
        for level in ["S", "2", "3", "4", "5"] {
            for base in ["etc/rc.d/rc", "etc/rc", "etc/init.d/rc"] {
                let dir = format!("{base}{level}.d");
                rc.extend(files.list(dir.as_bytes()).into_iter().map(|e| e.name));
            }
        }
        for level in ["sysinit", "boot", "default"] {
            let dir = format!("etc/runlevels/{level}");
            runlevels.extend(files.list(dir.as_bytes()).into_iter().map(|e| e.name));
        }
        Self {
            files,
            wants,
            rc,
            runlevels,
        }
    }

    fn masked(&self, unit: &str) -> bool {
        ["etc", "run"].iter().any(|base| {
            let path = format!("{base}/systemd/system/{unit}");
            self.files.link_target(path.as_bytes()).as_deref() == Some(b"/dev/null")
        })
    }

    fn unit(&self, unit: &str) -> bool {
        self.wants.iter().any(|w| w == unit.as_bytes()) && !self.masked(unit)
    }

    fn script(&self, name: &str) -> bool {
        let started = |entry: &Vec<u8>| match entry.as_slice() {
            [b'S', a, b, rest @ ..] => {
                a.is_ascii_digit() && b.is_ascii_digit() && rest == name.as_bytes()
            }
            _ => false,
        };
        self.rc.iter().any(started) || self.runlevels.iter().any(|r| r == name.as_bytes())
    }
}

fn any_exists(files: &dyn NetworkFiles, paths: &[&str]) -> bool {
    paths.iter().any(|p| files.exists(p.as_bytes()))
}

/// Files in `dir` whose names satisfy `keep`.
fn files_in(files: &dyn NetworkFiles, dir: &str, keep: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    files
        .list(dir.as_bytes())
        .into_iter()
        .filter(|e| matches!(e.kind, EntryKind::File | EntryKind::Symlink) && keep(&e.name))
        .map(|e| join(dir.as_bytes(), &e.name))
        .take(MAX_LISTED)
        .collect()
}

fn files_in_all(
    files: &dyn NetworkFiles,
    dirs: &[&str],
    keep: impl Fn(&[u8]) -> bool,
) -> Vec<Vec<u8>> {
    // `lib` is a link to `usr/lib` on merged systems: the same file is listed once.
    let merged = files.link_target(b"lib").is_some();
    dirs.iter()
        .filter(|d| !(merged && d.starts_with("lib/")))
        .flat_map(|dir| files_in(files, dir, &keep))
        .collect()
}

/// Whether a text has a line beginning with `prefix`.
fn has_line(files: &dyn NetworkFiles, path: &[u8], prefix: &str) -> bool {
    files
        .read(path)
        .is_ok_and(|b| text(&b).lines().any(|l| l.starts_with(prefix)))
}

/// Whether NetworkManager here reads ifcfg files: its plugin is there, or at least nothing says it
/// is not, and `plugins=` does not leave it out.
fn nm_reads_ifcfg(files: &dyn NetworkFiles) -> bool {
    let plugin = b"libnm-settings-plugin-ifcfg-rh.so";
    let mut libraries = false;
    let mut found = false;
    for base in ["usr/lib64/NetworkManager", "usr/lib/NetworkManager"] {
        for entry in files.list(base.as_bytes()).into_iter().take(64) {
            if entry.name.starts_with(b"libnm-") {
                libraries = true;
                found |= entry.name == plugin;
            } else if entry.kind == EntryKind::Directory {
                for inner in files
                    .list(&join(base.as_bytes(), &entry.name))
                    .into_iter()
                    .take(256)
                {
                    libraries |= inner.name.starts_with(b"libnm-");
                    found |= inner.name == plugin;
                }
            }
        }
    }
    let mut configured = true;
    let mut configs = vec![b"etc/NetworkManager/NetworkManager.conf".to_vec()];
    configs.extend(files_in_all(
        files,
        &["usr/lib/NetworkManager/conf.d", "etc/NetworkManager/conf.d"],
        |n| n.ends_with(b".conf"),
    ));
    for path in configs {
        let Ok(bytes) = files.read(&path) else {
            continue;
        };
        for line in text(&bytes).lines() {
            if let Some(list) = line.trim().strip_prefix("plugins")
                && let Some(list) = list.trim_start().strip_prefix('=')
            {
                configured = list.split([',', ';']).any(|p| p.trim() == "ifcfg-rh");
            }
        }
    }
    (found || !libraries) && configured
}

fn profile_files(files: &dyn NetworkFiles) -> Vec<Vec<u8>> {
    let mut all = files_in(files, "etc/NetworkManager/system-connections", |n| {
        !(n.starts_with(b".") || n.ends_with(b"~") || n.ends_with(b".pem") || n.ends_with(b".der"))
    });
    all.extend(files_in_all(
        files,
        &[
            "run/NetworkManager/system-connections",
            "usr/lib/NetworkManager/system-connections",
        ],
        |n| n.ends_with(b".nmconnection"),
    ));
    all
}

/// Finds the stacks, in order of authority.
pub fn detect(files: &dyn NetworkFiles) -> Stacks {
    let init = Init::new(files);
    let mut found: Vec<Found> = Vec::new();
    let mut add = |name, consumer, live, paths: Vec<Vec<u8>>| {
        if !paths.is_empty() {
            found.push(Found {
                name,
                consumer,
                live,
                may_overwrite: false,
                files: paths,
            });
        }
    };

    let nm_enabled = (init.unit("NetworkManager.service")
        || init
            .wants
            .iter()
            .any(|w| w == b"dbus-org.freedesktop.NetworkManager.service")
        || init.script("NetworkManager"))
        && !init.masked("NetworkManager.service");
    let network_script = init.script("network") || init.unit("network.service");
    let wicked = any_exists(files, &["usr/sbin/wicked", "sbin/wicked"]);
    let wicked_enabled = files
        .link_target(b"etc/systemd/system/network.service")
        .is_some_and(|t| t.ends_with(b"/wicked.service"))
        || init.unit("wicked.service");

    // netplan's generator runs whenever it is installed.
    let netplan = files_in_all(
        files,
        &[
            "lib/netplan",
            "usr/lib/netplan",
            "etc/netplan",
            "run/netplan",
        ],
        |n| n.ends_with(b".yaml") && !n.starts_with(b"."),
    );
    let netplan_installed = any_exists(
        files,
        &[
            "usr/sbin/netplan",
            "sbin/netplan",
            "usr/libexec/netplan/generate",
            "usr/libexec/netplan/configure",
            "lib/netplan/generate",
            "usr/lib/netplan/generate",
            "usr/lib/systemd/system-generators/netplan",
            "lib/systemd/system-generators/netplan",
        ],
    );
    add("netplan", None, netplan_installed, netplan);

    let is_networkd = |n: &[u8]| {
        [".network", ".netdev"]
            .iter()
            .any(|s| n.ends_with(s.as_bytes()))
    };
    let networkd_enabled = (init.unit("systemd-networkd.service")
        || init
            .wants
            .iter()
            .any(|w| w == b"dbus-org.freedesktop.network1.service"))
        && !init.masked("systemd-networkd.service");
    // The distribution's own defaults act only if networkd does.
    let mut networkd_dirs = vec!["etc/systemd/network", "run/systemd/network"];
    if networkd_enabled {
        networkd_dirs.extend([
            "usr/local/lib/systemd/network",
            "usr/lib/systemd/network",
            "lib/systemd/network",
        ]);
    }
    add(
        "networkd",
        Some("systemd-networkd"),
        networkd_enabled,
        files_in_all(files, &networkd_dirs, is_networkd),
    );

    add(
        "keyfile",
        Some("NetworkManager"),
        nm_enabled,
        profile_files(files),
    );

    let network_scripts = ifcfg::candidates(files);
    let nm_ifcfg = nm_enabled && nm_reads_ifcfg(files);
    let initscripts = network_script
        || any_exists(
            files,
            &[
                "etc/rc.d/init.d/network",
                "etc/init.d/network",
                "etc/sysconfig/network-scripts/ifup-eth",
            ],
        );
    let ifcfg_consumer = if nm_ifcfg {
        Some("NetworkManager")
    } else if network_script || (initscripts && !nm_enabled) {
        Some("initscripts")
    } else {
        None
    };
    add(
        "ifcfg",
        ifcfg_consumer,
        nm_ifcfg || network_script,
        network_scripts,
    );

    add(
        "wicked",
        Some("wicked"),
        wicked_enabled,
        files_in(files, "etc/sysconfig/network", |n| {
            let ignored = [
                "~",
                ".old",
                ".bak",
                ".orig",
                ".scpmbackup",
                ".rpmnew",
                ".rpmsave",
                ".rpmorig",
            ];
            n != b"ifcfg-lo"
                && n != b"ifcfg.template"
                && !ignored.iter().any(|s| n.ends_with(s.as_bytes()))
                && (["ifcfg-", "ifroute-", "ifrule-", "ifsysctl"]
                    .iter()
                    .any(|p| n.starts_with(p.as_bytes()))
                    || matches!(n, b"routes" | b"config" | b"dhcp") && wicked)
        }),
    );

    let flavour = if any_exists(files, &["usr/share/ifupdown2", "etc/network/ifupdown2"]) {
        interfaces::Flavour::Ifupdown2
    } else if any_exists(
        files,
        &["usr/libexec/ifupdown-ng", "etc/network/ifupdown-ng.conf"],
    ) {
        interfaces::Flavour::IfupdownNg
    } else if any_exists(files, &["etc/alpine-release"]) {
        interfaces::Flavour::Busybox
    } else {
        interfaces::Flavour::Ifupdown
    };
    let interfaces_enabled = (init.unit("networking.service")
        || init.script("networking")
        || init.script("ifupdown")
        || any_exists(
            files,
            &[
                "etc/init/networking.conf",
                "etc/init/network-interface.conf",
            ],
        ))
        && !init.masked("networking.service");
    let interface_files = if files.exists(b"etc/network/interfaces") {
        vec![b"etc/network/interfaces".to_vec()]
    } else {
        Vec::new()
    };
    add(
        "interfaces",
        Some(flavour.name()),
        interfaces_enabled,
        interface_files,
    );

    add(
        "netifrc",
        Some("netifrc"),
        init.runlevels
            .iter()
            .any(|r| r.starts_with(b"net.") && r != b"net.lo"),
        files_in(files, "etc/conf.d", |n| n == b"net"),
    );
    add(
        "netctl",
        Some("netctl"),
        init.wants
            .iter()
            .any(|w| w.starts_with(b"netctl@") || w.starts_with(b"netctl-auto@")),
        files_in(files, "etc/netctl", |n| !n.starts_with(b".")),
    );
    add(
        "dhcpcd",
        Some("dhcpcd"),
        init.unit("dhcpcd.service") || init.script("dhcpcd"),
        files_in(files, "etc", |n| n == b"dhcpcd.conf"),
    );

    let mut cloud = files_in(files, "etc/cloud", |n| n == b"cloud.cfg");
    cloud.extend(files_in(files, "etc/cloud/cloud.cfg.d", |n| {
        n.ends_with(b".cfg")
    }));
    let cloud_off = files.exists(b"etc/cloud/cloud-init.disabled");
    cloud.retain(|path| has_line(files, path, "network:"));
    // The last word on `network:` is the last file's.
    let network_off = cloud.last().is_some_and(|path| {
        files.read(path).is_ok_and(|b| {
            let all = text(&b);
            let after = all.split("network:").nth(1).unwrap_or_default();
            let after = after.trim_start().trim_start_matches('{').trim_start();
            after
                .strip_prefix("config:")
                .is_some_and(|v| v.trim_start().starts_with("disabled"))
        })
    });
    for seed in ["nocloud", "nocloud-net"] {
        cloud.extend(files_in(
            files,
            &format!("var/lib/cloud/seed/{seed}"),
            |n| n == b"network-config",
        ));
    }
    if any_exists(files, &["usr/bin/cloud-init", "etc/cloud/cloud.cfg"]) || !cloud.is_empty() {
        let live = !cloud_off && !network_off;
        found.push(Found {
            name: "cloud-init",
            consumer: None,
            live,
            may_overwrite: live,
            files: cloud,
        });
    }

    // Without any sign of an init system's choice, files are taken at their word.
    let mut assumed = Vec::new();
    if !found.iter().any(|f| f.live && f.name != "cloud-init") {
        for name in [
            "netplan",
            "keyfile",
            "ifcfg",
            "wicked",
            "interfaces",
            "networkd",
            "netifrc",
            "dhcpcd",
        ] {
            if let Some(stack) = found.iter_mut().find(|f| f.name == name) {
                stack.live = true;
                assumed.push(name);
                break;
            }
        }
    }
    Stacks {
        found,
        assumed,
        initscripts,
        flavour,
    }
}

/// Writes `guest.stacks`, and one unmapped entry for each file of a stack that has no codec.
pub fn report(reading: &mut Reading<'_>, stacks: Stacks) {
    for found in stacks.found {
        let translated = matches!(found.name, "ifcfg" | "interfaces");
        let name = found.name;
        if stacks.assumed.contains(&name)
            && let Some(first) = found.files.first()
        {
            let message =
                format!("nothing shows which program starts the network; {name} is assumed");
            reading.warn(first, None, message);
        }
        if !translated && !found.files.is_empty() {
            if found.live
                && let Some(first) = found.files.first()
            {
                let message = format!("files of {name} are not translated yet");
                reading.warn(first, None, message);
            }
            for file in &found.files {
                reading.unmapped(Unmapped {
                    file: text(file),
                    line: None,
                    iface: None,
                    key: None,
                    value: None,
                    effect: if found.live {
                        Effect::Behaviour
                    } else {
                        Effect::None
                    },
                    redacted: false,
                });
            }
        }
        let live_translated = translated && found.live;
        reading.document.guest.stacks.push(Stack {
            name: name.into(),
            consumer: found.consumer.map(str::to_owned),
            live: found.live,
            may_overwrite: found.may_overwrite,
            files: if live_translated {
                Vec::new()
            } else {
                found.files.iter().map(|f| text(f)).collect()
            },
        });
    }
    let authority = |s: &Stack| !s.live;
    reading.document.guest.stacks.sort_by_key(authority);
}
