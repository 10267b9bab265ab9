//! `etc/sysconfig/network-scripts` of the RHEL family.
//!
//! Two programs read these files and do not agree everywhere: initscripts, a shell, and
//! NetworkManager's `ifcfg-rh` plugin. [`Plan`] says whom to follow. Source: initscripts'
//! `sysconfig.txt`, nm-settings-ifcfg-rh(5).
//!
//! | module | responsibility |
//! |---|---|
//! | [`profile`] | one file's variables and the account of each line |
//! | [`device`] | which device a file describes: type, bond, bridge, vlan, tunnel, wifi |
//! | [`ip`] | addresses, gateways, DHCP, IPv6 modes, DNS |
//! | [`routes`] | `route-`, `route6-`, `rule-`, `rule6-`, `static-routes` |
//! | [`global`] | `etc/sysconfig/network` |

pub mod device;
pub mod global;
pub mod ip;
pub mod profile;
pub mod routes;

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::address;
use super::super::api::{EntryKind, NetworkFiles, Reading, text};
use super::super::iproute::Tables;
use super::super::model::{Address, Effect, Natural, Section};
use super::assignments::Dialect;
use global::Global;
use profile::Profile;

const DIR: &str = "etc/sysconfig/network-scripts";

/// Who configures the network from these files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// NetworkManager with its `ifcfg-rh` plugin.
    NetworkManager,
    /// The `network` service.
    Initscripts,
}

impl Consumer {
    fn name(self) -> &'static str {
        match self {
            Self::NetworkManager => "NetworkManager",
            Self::Initscripts => "initscripts",
        }
    }
}

/// How the files are to be read.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Who reads them.
    pub consumer: Consumer,
    /// Whether initscripts are installed as well, for files NetworkManager is told to leave alone.
    pub initscripts: bool,
}

impl Plan {
    fn dialect(self) -> Dialect {
        match self.consumer {
            Consumer::NetworkManager => Dialect::LineByLine,
            Consumer::Initscripts => Dialect::Shell,
        }
    }
}

/// Suffixes of copies that editors and package managers leave; neither program reads them.
const IGNORED: [&str; 10] = [
    "~", ".bak", ".orig", ".rej", ".rpmnew", ".augnew", ".augtmp", ".old", ".rpmorig", ".rpmsave",
];

/// Whether both programs pass over a file of this name.
fn is_ignored(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    // RPM writes to `NAME;` and eight hexadecimal digits before it renames.
    let temporary = lower
        .rsplit_once(';')
        .is_some_and(|(_, tail)| tail.len() == 8 && tail.bytes().all(|b| b.is_ascii_hexdigit()));
    temporary || IGNORED.iter().any(|suffix| lower.ends_with(suffix))
}

/// The `ifcfg-` files either program reads, but for the loopback's.
pub fn candidates(files: &dyn NetworkFiles) -> Vec<Vec<u8>> {
    files
        .list(DIR.as_bytes())
        .into_iter()
        .filter(|e| e.kind != EntryKind::Directory)
        .filter(|e| {
            let name = text(&e.name);
            name.starts_with("ifcfg-") && name != "ifcfg-lo" && !is_ignored(&name)
        })
        .map(|e| [DIR.as_bytes(), b"/", e.name.as_slice()].concat())
        .collect()
}

/// What the files' readers share while they work.
pub struct Context {
    plan: Plan,
    global: Global,
    tables: Tables,
    /// Device names by UUID and by profile name.
    names: BTreeMap<String, String>,
    /// Members found in the members' own files: master id, section, member id.
    members: Vec<(String, Section, String)>,
    /// Options of bridge ports found in their own files: bridge id, key, port id, value.
    port_options: Vec<(String, &'static str, String, String)>,
    /// What other files make of a device by being its members.
    masters: BTreeMap<String, Section>,
    /// Devices netplan has no type for: id and type.
    others: BTreeMap<String, String>,
}

impl Context {
    /// A device named by name, UUID or profile name.
    fn resolve<'n>(&'n self, reference: &'n str) -> &'n str {
        self.names.get(reference).map_or(reference, String::as_str)
    }
}

/// Reads all of it into the document.
pub fn decode(reading: &mut Reading<'_>, plan: Plan) {
    let global = Global::read(reading, plan);
    let tables = Tables::load(reading.files());
    let mut context = Context {
        plan,
        global,
        tables,
        names: BTreeMap::new(),
        members: Vec::new(),
        port_options: Vec::new(),
        masters: BTreeMap::new(),
        others: BTreeMap::new(),
    };
    warn_of_ignored(reading);
    let mut mains = Vec::new();
    let mut aliases = Vec::new();
    let mut ranges = Vec::new();
    for path in candidates(reading.files()) {
        let Some(profile) = Profile::load(reading, &path, plan.dialect()) else {
            continue;
        };
        if profile.stem.contains(':') {
            aliases.push(profile);
        } else if range_base(&profile.stem).is_some() {
            ranges.push(profile);
        } else {
            mains.push(profile);
        }
    }
    for profile in &mut mains {
        profile.id = device::id(profile, plan);
        let id = profile.id.clone();
        for key in ["UUID", "NAME"] {
            if let Some(value) = profile.get(key) {
                context.names.entry(value).or_insert_with(|| id.clone());
            }
        }
    }
    for profile in &mains {
        for (keys, section) in [
            (["MASTER", "MASTER_UUID"], Section::Bonds),
            (["BRIDGE", "BRIDGE_UUID"], Section::Bridges),
            (["VRF", "VRF_UUID"], Section::Vrfs),
        ] {
            if let Some(reference) = keys.iter().find_map(|k| profile.get(k)) {
                let master = context.resolve(&reference).to_owned();
                context.masters.entry(master).or_insert(section);
            }
        }
    }
    let dead = shadowed(&mains);
    let has_alias = |id: &str, stem: &str| {
        aliases.iter().any(|a: &Profile| {
            a.stem
                .split(':')
                .next()
                .is_some_and(|base| base == id || base == stem)
        })
    };
    for (n, profile) in mains.iter_mut().enumerate() {
        if dead.contains(&n) {
            let message = format!("another profile for {} takes precedence", profile.id);
            reading.warn(&profile.path.clone(), None, message);
            profile.all_unmapped(Effect::None);
            continue;
        }
        let aliased = has_alias(&profile.id, &profile.stem);
        device::decode(reading, &mut context, profile, aliased);
    }
    for profile in &mut aliases {
        alias(reading, &context, &mains, profile);
    }
    for profile in &mut ranges {
        range(reading, &mains, profile);
    }
    routes::decode(reading, &context, &mains);
    secrets(reading, &mains);
    global::gateways(reading, &mut context, &mains);
    for (master, section, member) in std::mem::take(&mut context.members) {
        let known = reading.document.section_of(&master);
        if known.is_none() {
            let message = format!("{member} belongs to {master}, which no file describes");
            reading.warn(DIR.as_bytes(), None, message);
        }
        let section = known.unwrap_or(section);
        let may_have = matches!(section, Section::Bonds | Section::Bridges | Section::Vrfs)
            || context.others.contains_key(&master);
        if !may_have || master == member {
            let message = format!("{member} cannot belong to {master}, which is no such device");
            reading.warn(DIR.as_bytes(), None, message);
            continue;
        }
        reading
            .document
            .device(section, &master)
            .add_member(&member);
    }
    for (master, key, port, value) in std::mem::take(&mut context.port_options) {
        let section = reading.document.section_of(&master);
        if section.is_some_and(|s| s != Section::Bridges) {
            continue;
        }
        let device = reading.document.device(Section::Bridges, &master);
        super::bridge::set_port(&mut device.parameters, key, &port, &value);
    }
    for profile in mains.iter().chain(&aliases).chain(&ranges) {
        profile.account(reading);
    }
    context.global.account(reading);
    for (id, kind) in std::mem::take(&mut context.others) {
        let section = reading
            .document
            .section_of(&id)
            .unwrap_or(Section::Ethernets);
        let key = (section, Natural(id.clone()));
        if let Some(device) = reading.document.devices.remove(&key) {
            reading.document.add_untyped(&id, &kind, &device);
        }
    }
}

fn warn_of_ignored(reading: &mut Reading<'_>) {
    for entry in reading.files().list(DIR.as_bytes()) {
        let name = text(&entry.name);
        if name.starts_with("ifcfg-") && entry.kind != EntryKind::Directory && is_ignored(&name) {
            let path = [DIR.as_bytes(), b"/", entry.name.as_slice()].concat();
            reading.warn(&path, None, "a copy by its name, not read");
        }
    }
}

/// Indices of profiles that lose against another one of the same device.
fn shadowed(profiles: &[Profile]) -> Vec<usize> {
    let mut best: BTreeMap<&str, (usize, (bool, i64))> = BTreeMap::new();
    let mut dead = Vec::new();
    for (n, profile) in profiles.iter().enumerate() {
        let priority = profile
            .get("AUTOCONNECT_PRIORITY")
            .and_then(|p| p.parse().ok());
        let rank = (
            profile.boolean("ONBOOT") != Some(false),
            priority.unwrap_or(0i64),
        );
        match best.get(profile.id.as_str()) {
            Some((_, other)) if *other >= rank => dead.push(n),
            previous => {
                dead.extend(previous.map(|(n, _)| *n));
                best.insert(&profile.id, (n, rank));
            }
        }
    }
    dead
}

/// `eth0-range1` belongs to eth0.
fn range_base(stem: &str) -> Option<&str> {
    let (base, number) = stem.rsplit_once("-range")?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(base)
}

fn main_of<'p>(mains: &'p [Profile], base: &str) -> Option<&'p Profile> {
    mains
        .iter()
        .find(|m| m.stem == base)
        .or_else(|| mains.iter().find(|m| m.id == base))
}

fn alias(reading: &mut Reading<'_>, context: &Context, mains: &[Profile], profile: &mut Profile) {
    let path = profile.path.clone();
    let stem = profile.stem.clone();
    let (base, suffix) = stem.split_once(':').unwrap_or((&stem, ""));
    let reject = |reading: &mut Reading<'_>, profile: &mut Profile, why: String| {
        reading.warn(&path, None, why);
        profile.all_unmapped(Effect::None);
    };
    let device = profile.take("DEVICE").unwrap_or_else(|| stem.clone());
    if device != stem {
        let why = format!("DEVICE={device} is not {stem}: the file is ignored");
        return reject(reading, profile, why);
    }
    if suffix.is_empty()
        || !suffix
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return reject(
            reading,
            profile,
            "no name of an alias: the file is ignored".into(),
        );
    }
    let Some(main) = main_of(mains, base) else {
        return reject(
            reading,
            profile,
            format!("no file describes {base}: the alias is ignored"),
        );
    };
    if stem.len() > 15 {
        reading.warn(
            &path,
            None,
            "the label is longer than the kernel's 15 characters",
        );
    }
    let found = ip::addresses(reading, profile, Some(main));
    if found.is_empty() {
        reading.warn(&path, None, "an alias without an address");
    }
    let id = main.id.clone();
    reading.document.extra(&id).sources.push(text(&path));
    let own_gateway = main.has("GATEWAY") || main.has("DEFROUTE");
    let gateway = profile
        .get("GATEWAY")
        .and_then(|g| g.parse::<IpAddr>().ok());
    let here = context
        .global
        .gateway_device
        .as_ref()
        .is_none_or(|dev| *dev == id);
    if let Some(device) = reading.document.find(&id) {
        for (ip, prefix) in found {
            let address = Address {
                ip,
                prefix,
                label: Some(stem.clone()),
                lifetime: None,
            };
            device.push_address(address);
        }
        if let Some(gateway) = gateway
            && !own_gateway
            && here
        {
            profile.mapped("GATEWAY");
            device.add_route(super::super::model::Route::default_via(gateway));
        }
    }
    for (key, no_word) in [("ONPARENT", Some(false)), ("ONBOOT", Some(false))] {
        if profile.boolean(key) != no_word || key == "ONBOOT" {
            profile.implied(key);
        }
    }
    for key in ["BOOTPROTO", "TYPE"] {
        profile.implied(key);
    }
}

/// Addresses of a range file; both programs stop at 255 clones.
const MAX_RANGE: u32 = 256;

fn range(reading: &mut Reading<'_>, mains: &[Profile], profile: &mut Profile) {
    let path = profile.path.clone();
    let stem = profile.stem.clone();
    let base = range_base(&stem).unwrap_or(&stem);
    let bounds = (|| {
        let start: std::net::Ipv4Addr = profile.get("IPADDR_START")?.parse().ok()?;
        let end: std::net::Ipv4Addr = profile.get("IPADDR_END")?.parse().ok()?;
        let count = u32::from(end).checked_sub(u32::from(start))?;
        (count < MAX_RANGE).then_some((u32::from(start), u32::from(end)))
    })();
    let (Some((start, end)), Some(main)) = (bounds, main_of(mains, base)) else {
        reading.warn(&path, None, "no usable range of addresses");
        profile.all_unmapped(Effect::Behaviour);
        return;
    };
    let clone = profile
        .get("CLONENUM_START")
        .and_then(|n| n.parse::<u32>().ok())
        .unwrap_or(0);
    let prefix = profile
        .get("PREFIX")
        .or_else(|| profile.get("NETMASK"))
        .or_else(|| main.get("PREFIX"))
        .or_else(|| main.get("NETMASK"))
        .and_then(|m| address::mask(&m))
        .unwrap_or_else(|| address::class_prefix(start.into()));
    for key in [
        "IPADDR_START",
        "IPADDR_END",
        "CLONENUM_START",
        "PREFIX",
        "NETMASK",
    ] {
        profile.mapped(key);
    }
    profile.implied("ONPARENT");
    let id = main.id.clone();
    reading.document.extra(&id).sources.push(text(&path));
    if let Some(device) = reading.document.find(&id) {
        for (n, ip) in (start..=end).enumerate() {
            let number = clone.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
            device.push_address(Address {
                ip: IpAddr::V4(ip.into()),
                prefix,
                label: Some(format!("{id}:{number}")),
                lifetime: None,
            });
        }
    }
}

/// `keys-X`: every assignment is a secret.
fn secrets(reading: &mut Reading<'_>, mains: &[Profile]) {
    let names: Vec<Vec<u8>> = reading
        .files()
        .list(DIR.as_bytes())
        .into_iter()
        .filter(|e| e.name.starts_with(b"keys-") && !is_ignored(&text(&e.name)))
        .map(|e| e.name)
        .collect();
    for name in names {
        let path = [DIR.as_bytes(), b"/", name.as_slice()].concat();
        let Some(mut profile) = Profile::load(reading, &path, Dialect::Shell) else {
            continue;
        };
        let stem = text(name.get(5..).unwrap_or_default());
        profile.id = main_of(mains, &stem).map_or(stem.clone(), |m| m.id.clone());
        profile.secret = true;
        profile.all_unmapped(Effect::Secret);
        if main_of(mains, &stem).is_none() {
            reading.warn(&path, None, "keys of an interface no file describes");
        }
        profile.account(reading);
    }
}
