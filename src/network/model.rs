//! The document: netplan v2 under `network`, the rest under `guest`.
//!
//! Source: the netplan YAML reference (version 2). Fields stand in the order they are written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::yaml;

/// A device section of netplan, in canonical order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are netplan's")]
pub enum Section {
    Ethernets,
    Wifis,
    Modems,
    DummyDevices,
    VirtualEthernets,
    Bonds,
    Bridges,
    Vlans,
    Vrfs,
    Tunnels,
    NmDevices,
}

impl Section {
    /// The key in the document.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ethernets => "ethernets",
            Self::Wifis => "wifis",
            Self::Modems => "modems",
            Self::DummyDevices => "dummy-devices",
            Self::VirtualEthernets => "virtual-ethernets",
            Self::Bonds => "bonds",
            Self::Bridges => "bridges",
            Self::Vlans => "vlans",
            Self::Vrfs => "vrfs",
            Self::Tunnels => "tunnels",
            Self::NmDevices => "nm-devices",
        }
    }
}

/// `match:` of a physical device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Match {
    pub name: Option<String>,
    pub macaddress: Option<String>,
    pub driver: Option<String>,
}

/// An address with its prefix length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length in bits.
    pub prefix: u8,
    /// Its label (`eth0:1`).
    pub label: Option<String>,
    /// `0` for an address never preferred, else unset.
    pub lifetime: Option<String>,
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let net = format!("{}/{}", self.ip, self.prefix);
        if self.label.is_none() && self.lifetime.is_none() {
            return serializer.serialize_str(&net);
        }
        let mut options = Map::new();
        if let Some(lifetime) = &self.lifetime {
            let value = match lifetime.parse::<u32>() {
                Ok(seconds) => seconds.into(),
                Err(_) => Value::from(lifetime.clone()),
            };
            options.insert("lifetime".into(), value);
        }
        if let Some(label) = &self.label {
            options.insert("label".into(), label.clone().into());
        }
        json!({ net: options }).serialize(serializer)
    }
}

/// One entry of `routes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Route {
    pub to: String,
    pub via: Option<String>,
    pub from: Option<String>,
    pub on_link: Option<bool>,
    pub metric: Option<u32>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub scope: Option<String>,
    pub table: Option<u32>,
    pub mtu: Option<u32>,
    pub congestion_window: Option<u32>,
    pub advertised_receive_window: Option<u32>,
    #[serde(rename = "advertised-mss")]
    pub advertised_mss: Option<u32>,
}

impl Route {
    /// A default route.
    pub fn default_via(via: IpAddr) -> Self {
        Self {
            to: "default".into(),
            via: Some(via.to_string()),
            ..Self::default()
        }
    }

    /// Whether it is a default route of the IPv6 (true) or IPv4 (false) family.
    pub fn is_default(&self, ipv6: bool) -> bool {
        match self.to.as_str() {
            "default" => self
                .via
                .as_ref()
                .is_some_and(|via| via.contains(':') == ipv6),
            "0.0.0.0/0" => !ipv6,
            "::/0" => ipv6,
            _ => false,
        }
    }
}

/// One entry of `routing-policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Policy {
    pub from: Option<String>,
    pub to: Option<String>,
    pub table: Option<u32>,
    pub priority: Option<u32>,
    pub mark: Option<u32>,
    pub type_of_service: Option<u32>,
}

/// `nameservers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Nameservers {
    pub addresses: Vec<String>,
    pub search: Vec<String>,
}

/// `dhcp4-overrides`, `dhcp6-overrides`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Overrides {
    pub use_dns: Option<bool>,
    pub use_ntp: Option<bool>,
    pub send_hostname: Option<bool>,
    pub use_hostname: Option<bool>,
    pub use_mtu: Option<bool>,
    pub hostname: Option<String>,
    pub use_routes: Option<bool>,
    pub route_metric: Option<u32>,
    pub use_domains: Option<bool>,
}

/// `networkmanager`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct NetworkManager {
    pub uuid: Option<String>,
    pub name: Option<String>,
}

/// Most members, addresses, routes, rules, servers and domains of one device each. A device that
/// reaches it is told about in `guest.warnings`.
pub const MAX_LIST: usize = 2048;

/// One device of any section.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are netplan's")]
pub struct Device {
    #[serde(rename = "match")]
    pub matching: Option<Match>,
    pub set_name: Option<String>,
    pub id: Option<u32>,
    pub link: Option<String>,
    pub table: Option<u32>,
    pub mode: Option<String>,
    pub local: Option<String>,
    pub remote: Option<String>,
    pub ttl: Option<u32>,
    pub key: Option<String>,
    pub port: Option<u32>,
    pub interfaces: Vec<String>,
    pub wakeonlan: Option<bool>,
    pub dhcp4: Option<bool>,
    pub dhcp6: Option<bool>,
    pub ipv6_mtu: Option<u32>,
    pub ipv6_privacy: Option<bool>,
    pub link_local: Option<Vec<String>>,
    pub critical: Option<bool>,
    pub dhcp_identifier: Option<String>,
    pub dhcp4_overrides: Overrides,
    pub dhcp6_overrides: Overrides,
    pub accept_ra: Option<bool>,
    pub addresses: Vec<Address>,
    pub ipv6_address_generation: Option<String>,
    pub ipv6_address_token: Option<String>,
    pub nameservers: Nameservers,
    pub macaddress: Option<String>,
    pub mtu: Option<u32>,
    pub optional: Option<bool>,
    pub activation_mode: Option<String>,
    pub routes: Vec<Route>,
    pub routing_policy: Vec<Policy>,
    pub hairpin: Option<bool>,
    pub auth: Map<String, Value>,
    pub virtual_function_count: Option<u32>,
    pub infiniband_mode: Option<String>,
    pub access_points: Map<String, Value>,
    pub networkmanager: NetworkManager,
    pub parameters: Map<String, Value>,
}

impl Device {
    /// Adds an address unless the very same is there.
    pub fn add_address(&mut self, ip: IpAddr, prefix: u8) {
        self.push_address(Address {
            ip,
            prefix,
            label: None,
            lifetime: None,
        });
    }

    /// Adds an address with its options unless the very same is there.
    pub fn push_address(&mut self, address: Address) {
        if self.addresses.len() < MAX_LIST && !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    /// Adds a route unless the very same is there. Default routes stand before others.
    pub fn add_route(&mut self, route: Route) {
        if self.routes.len() >= MAX_LIST || self.routes.contains(&route) {
            return;
        }
        if route.to == "default" {
            let at = self.routes.iter().take_while(|r| r.to == "default").count();
            self.routes.insert(at, route);
        } else {
            self.routes.push(route);
        }
    }

    /// Adds a policy rule unless the very same is there.
    pub fn add_policy(&mut self, policy: Policy) {
        if self.routing_policy.len() < MAX_LIST && !self.routing_policy.contains(&policy) {
            self.routing_policy.push(policy);
        }
    }

    /// Adds a member unless it is there.
    pub fn add_member(&mut self, name: &str) {
        if self.interfaces.len() < MAX_LIST && !self.interfaces.iter().any(|m| m == name) {
            self.interfaces.push(name.to_owned());
        }
    }

    /// Adds a name server unless it is there.
    pub fn add_nameserver(&mut self, server: &str) {
        if self.nameservers.addresses.len() < MAX_LIST
            && !self.nameservers.addresses.iter().any(|s| s == server)
        {
            self.nameservers.addresses.push(server.to_owned());
        }
    }

    /// Adds a search domain unless it is there.
    pub fn add_search(&mut self, domain: &str) {
        if self.nameservers.search.len() < MAX_LIST
            && !self.nameservers.search.iter().any(|s| s == domain)
        {
            self.nameservers.search.push(domain.to_owned());
        }
    }

    fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        prune(&mut value);
        if let Some(map) = value.as_object_mut()
            && let Some(parameters) = map.get_mut("parameters")
        {
            in_order(parameters, &PARAMETER_ORDER);
        }
        value
    }
}

/// Order of `parameters` of bonds and bridges in the netplan reference.
const PARAMETER_ORDER: [&str; 30] = [
    "mode",
    "lacp-rate",
    "mii-monitor-interval",
    "min-links",
    "transmit-hash-policy",
    "ad-select",
    "all-members-active",
    "arp-interval",
    "arp-ip-targets",
    "arp-validate",
    "arp-all-targets",
    "up-delay",
    "down-delay",
    "fail-over-mac-policy",
    "gratuitous-arp",
    "packets-per-member",
    "primary",
    "primary-reselect-policy",
    "resend-igmp",
    "learn-packet-interval",
    "ageing-time",
    "priority",
    "port-priority",
    "forward-delay",
    "hello-time",
    "max-age",
    "path-cost",
    "hairpin",
    "port-mac-learning",
    "stp",
];

/// Files in the order they came up, lines of each in theirs.
fn in_file_order<T>(entries: &mut [T], place: impl Fn(&T) -> (&String, Option<u32>)) {
    let mut files: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries.iter() {
        let next = files.len();
        files.entry(place(entry).0.clone()).or_insert(next);
    }
    entries.sort_by_key(|entry| {
        let (file, line) = place(entry);
        (files.get(file).copied(), line)
    });
}

fn in_order(value: &mut Value, order: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        let mut entries: Vec<_> = std::mem::take(map).into_iter().collect();
        entries.sort_by_key(|(k, _)| order.iter().position(|o| o == k).unwrap_or(order.len()));
        map.extend(entries);
    }
}

/// Drops nulls and empty collections below the top of a device; an empty `link-local` means "none"
/// and stays.
fn prune(value: &mut Value) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    for (_, inner) in map.iter_mut() {
        match inner {
            Value::Object(_) => prune(inner),
            Value::Array(items) => items.iter_mut().for_each(prune),
            _ => {}
        }
    }
    map.retain(|key, inner| match inner {
        Value::Null => false,
        Value::Array(items) => !items.is_empty() || key == "link-local",
        // A mapping keyed by names may hold empty values: an access point without options.
        Value::Object(fields) => !fields.is_empty() || !PRUNED_OBJECTS.contains(&key.as_str()),
        _ => true,
    });
}

const PRUNED_OBJECTS: [&str; 8] = [
    "match",
    "dhcp4-overrides",
    "dhcp6-overrides",
    "nameservers",
    "auth",
    "access-points",
    "networkmanager",
    "parameters",
];

/// What an interface has that netplan flattens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Extra {
    /// `auto`, `hotplug`, `manual`, `off`.
    pub start: Option<String>,
    /// `static`, `dhcp`, `link-local`, `shared`, `none`.
    pub ipv4_method: Option<String>,
    /// `auto`, `slaac`, `dhcp`, `dhcp-stateless`, `static`, `link-local`, `ignore`, `disabled`.
    pub ipv6_method: Option<String>,
    /// The program that configures it.
    pub managed_by: Option<String>,
    /// False: routes of this interface are taken, but no IPv4 default route.
    pub defroute4: Option<bool>,
    /// As `defroute4`, for IPv6.
    pub defroute6: Option<bool>,
    /// The files it was read from.
    pub sources: Vec<String>,
}

/// One network stack found in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stack {
    /// Name of the stack: `ifcfg`, `interfaces`, `netplan`, …
    pub name: String,
    /// The program that reads its files, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Whether it acts at boot.
    pub live: bool,
    /// Whether it rewrites the files of the others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_overwrite: bool,
    /// Its files, where they were not translated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
}

/// The host's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hostname {
    /// The configured name.
    #[serde(rename = "static")]
    pub name: String,
    /// Where it stands.
    pub source: String,
}

/// The resolver's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resolver {
    /// Name servers in order; the C library asks the first three.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
    /// Where it stands.
    pub source: String,
    /// Whether a program generates it at boot.
    pub managed: bool,
}

/// One line of `etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostsEntry {
    /// Address in canonical form.
    pub address: String,
    /// Its names, the canonical one first.
    pub names: Vec<String>,
    /// The comment at the end of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// What an unmapped entry does to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing.
    None,
    /// Only how it looks.
    Cosmetic,
    /// It changes what the network does.
    Behaviour,
    /// It runs code.
    Script,
    /// It is a secret; its value is not shown.
    Secret,
    /// Not known to us.
    Unknown,
}

/// Something read that has no word in the common format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmapped {
    /// The file, relative to the guest's root.
    pub file: String,
    /// Line number from 1.
    pub line: Option<u32>,
    /// The interface it belongs to.
    pub iface: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// The value; `None` for a secret.
    pub value: Option<String>,
    /// What it does.
    pub effect: Effect,
    /// Whether the value was left out because it is a secret.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub redacted: bool,
}

/// Something the owner of the guest should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The file it is about.
    pub file: String,
    /// Line number from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// What is the matter.
    pub message: String,
}

/// Everything netplan has no word for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestPart {
    /// The stacks, in order of authority.
    pub stacks: Vec<Stack>,
    /// The host's name.
    pub hostname: Option<Hostname>,
    /// The resolver.
    pub resolver: Option<Resolver>,
    /// `etc/hosts`.
    pub hosts: Vec<HostsEntry>,
    /// Native notions by interface.
    pub interfaces: BTreeMap<Natural, Extra>,
    /// Devices netplan cannot type.
    pub devices: BTreeMap<Natural, Value>,
    /// What was read and has no word.
    pub unmapped: Vec<Unmapped>,
    /// What the owner should know.
    pub warnings: Vec<Warning>,
}

/// A name in natural order: digits compare as numbers, so that eth2 stands before eth10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural(pub String);

impl Natural {
    fn key(&self) -> Vec<(bool, usize, &str)> {
        let mut parts = Vec::new();
        let mut rest = self.0.as_str();
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest
                .find(|c: char| c.is_ascii_digit() != digits)
                .unwrap_or(rest.len());
            let (part, tail) = rest.split_at(end);
            let bare = if digits {
                part.trim_start_matches('0')
            } else {
                part
            };
            parts.push((!digits, if digits { bare.len() } else { 0 }, bare));
            rest = tail;
        }
        parts
    }
}

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key()
            .cmp(&other.key())
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A guest's network configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// The devices of `network`, by section and id.
    pub devices: BTreeMap<(Section, Natural), Device>,
    /// The part beside it.
    pub guest: GuestPart,
}

impl Document {
    /// The device, made if it is not there.
    pub fn device(&mut self, section: Section, id: &str) -> &mut Device {
        self.devices
            .entry((section, Natural(id.to_owned())))
            .or_default()
    }

    /// The section a device id is in.
    pub fn section_of(&self, id: &str) -> Option<Section> {
        self.devices
            .keys()
            .find(|(_, name)| name.0 == id)
            .map(|(section, _)| *section)
    }

    /// A device wherever it is.
    pub fn find(&mut self, id: &str) -> Option<&mut Device> {
        self.devices
            .iter_mut()
            .find(|((_, name), _)| name.0 == id)
            .map(|(_, device)| device)
    }

    /// The native notions of an interface, made if they are not there.
    pub fn extra(&mut self, id: &str) -> &mut Extra {
        self.guest
            .interfaces
            .entry(Natural(id.to_owned()))
            .or_default()
    }

    /// Lists a device netplan has no type for under `guest.devices`, with netplan's keys beside
    /// `type`.
    pub(super) fn add_untyped(&mut self, id: &str, kind: &str, device: &Device) {
        let slot = self
            .guest
            .devices
            .entry(Natural(id.to_owned()))
            .or_insert_with(|| json!({}));
        if let Some(map) = slot.as_object_mut() {
            map.entry("type").or_insert_with(|| kind.into());
            if let Value::Object(keys) = device.to_value() {
                map.extend(keys);
            }
        }
    }

    /// Last touches that hold for every stack: `stp` is always stated, sources are told once.
    pub(super) fn finish(&mut self) {
        for ((section, _), device) in &mut self.devices {
            if *section == Section::Bridges {
                device.parameters.entry("stp").or_insert(Value::Bool(false));
            }
        }
        // netplan wants every device named elsewhere to be there.
        let mut named = std::collections::BTreeSet::new();
        for ((section, _), device) in &self.devices {
            named.extend(device.interfaces.iter().cloned());
            if *section == Section::Vlans {
                named.extend(device.link.clone());
            }
        }
        for name in named {
            let known = self.section_of(&name).is_some()
                || self.guest.devices.contains_key(&Natural(name.clone()));
            if !known {
                self.device(Section::Ethernets, &name);
            }
        }
        for ((_, id), device) in &self.devices {
            let longest = [
                device.interfaces.len(),
                device.addresses.len(),
                device.routes.len(),
                device.routing_policy.len(),
                device.nameservers.addresses.len(),
                device.nameservers.search.len(),
            ];
            if longest.iter().any(|len| *len >= MAX_LIST) {
                self.guest.warnings.push(Warning {
                    file: String::new(),
                    line: None,
                    message: format!("{}: a list was cut after {MAX_LIST} entries", id.0),
                });
            }
        }
        in_file_order(&mut self.guest.unmapped, |entry| (&entry.file, entry.line));
        in_file_order(&mut self.guest.warnings, |entry| (&entry.file, entry.line));
        for extra in self.guest.interfaces.values_mut() {
            let mut told = std::collections::BTreeSet::new();
            extra.sources.retain(|s| told.insert(s.clone()));
        }
        self.guest
            .interfaces
            .retain(|_, extra| *extra != Extra::default());
    }

    fn network_json(&self) -> Value {
        let mut network = Map::new();
        network.insert("version".into(), 2.into());
        for ((section, id), device) in &self.devices {
            let section = network
                .entry(section.key())
                .or_insert_with(|| Value::Object(Map::new()));
            if let Some(section) = section.as_object_mut() {
                section.insert(id.0.clone(), device.to_value());
            }
        }
        Value::Object(network)
    }

    fn guest_json(&self) -> Value {
        let part = &self.guest;
        let mut guest = Map::new();
        guest.insert("schema".into(), 1.into());
        guest.insert("stacks".into(), json!(part.stacks));
        if let Some(hostname) = &part.hostname {
            guest.insert("hostname".into(), json!(hostname));
        }
        if let Some(resolver) = &part.resolver {
            guest.insert("resolver".into(), json!(resolver));
        }
        guest.insert("hosts".into(), json!(part.hosts));
        let mut interfaces = Map::new();
        for (id, extra) in &part.interfaces {
            let mut value = json!(extra);
            prune(&mut value);
            interfaces.insert(id.0.clone(), value);
        }
        guest.insert("interfaces".into(), Value::Object(interfaces));
        let devices = part
            .devices
            .iter()
            .map(|(id, value)| (id.0.clone(), value.clone()));
        guest.insert("devices".into(), Value::Object(devices.collect()));
        guest.insert("unmapped".into(), json!(part.unmapped));
        guest.insert("warnings".into(), json!(part.warnings));
        Value::Object(guest)
    }

    /// The whole document as JSON: `{"network": …, "guest": …}`.
    pub fn to_json(&self) -> Value {
        json!({ "network": self.network_json(), "guest": self.guest_json() })
    }

    /// The whole document as canonical YAML.
    pub fn to_yaml(&self) -> String {
        yaml::emit(&self.to_json())
    }

    /// `network:` alone, which netplan accepts.
    pub fn netplan_yaml(&self) -> String {
        yaml::emit(&json!({ "network": self.network_json() }))
    }

    /// One line per interface for people: name, section, MAC, method, addresses, gateways.
    pub fn summary(&self) -> String {
        let mut rows =
            vec![["NAME", "TYPE", "MAC", "METHOD", "ADDRESSES", "GATEWAY"].map(String::from)];
        for ((section, id), device) in &self.devices {
            let mac = device
                .macaddress
                .clone()
                .or_else(|| device.matching.as_ref().and_then(|m| m.macaddress.clone()));
            let extra = self.guest.interfaces.get(id);
            let mut methods = Vec::new();
            if let Some(method) = extra.and_then(|e| e.ipv4_method.as_deref()) {
                methods.push(method.to_owned());
            } else if device.dhcp4 == Some(true) {
                methods.push("dhcp".into());
            }
            if let Some(method) = extra.and_then(|e| e.ipv6_method.as_deref())
                && method != "ignore"
            {
                methods.push(format!("ipv6-{method}"));
            }
            if device.activation_mode.is_some() {
                methods.push("not-at-boot".into());
            }
            let addresses: Vec<String> = device
                .addresses
                .iter()
                .map(|a| format!("{}/{}", a.ip, a.prefix))
                .collect();
            let gateways: Vec<String> = device
                .routes
                .iter()
                .filter(|r| r.is_default(true) || r.is_default(false))
                .filter_map(|r| r.via.clone())
                .collect();
            rows.push([
                crate::ondisk::text::printable(id.0.as_bytes()),
                section.key().trim_end_matches('s').to_owned(),
                mac.unwrap_or_default(),
                methods.join("+"),
                addresses.join(","),
                gateways.join(","),
            ]);
        }
        let mut widths = [0usize; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(if cell.is_empty() {
                    1
                } else {
                    cell.chars().count()
                });
            }
        }
        let mut out = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                line.push_str(cell);
                line.extend(std::iter::repeat_n(
                    ' ',
                    (width + 2).saturating_sub(cell.chars().count()),
                ));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn natural_order() {
        let mut names = [
            "eth10", "eth2", "eth2.10", "eth2.9", "br0", "eth02", "lo", "10g",
        ]
        .map(|n| Natural(n.into()));
        names.sort();
        let names: Vec<_> = names.iter().map(|n| n.0.as_str()).collect();
        assert_eq!(
            names,
            [
                "10g", "br0", "eth02", "eth2", "eth2.9", "eth2.10", "eth10", "lo"
            ]
        );
    }

    #[test]
    fn the_empty_document_says_so() {
        assert_eq!(
            Document::default().to_yaml(),
            "network:\n  version: 2\nguest:\n  schema: 1\n  stacks: []\n  hosts: []\n  \
             interfaces: {}\n  devices: {}\n  unmapped: []\n  warnings: []\n"
        );
    }

    #[test]
    fn link_local_none_is_kept() {
        let device = Device {
            link_local: Some(Vec::new()),
            ..Device::default()
        };
        assert_eq!(device.to_value(), json!({ "link-local": [] }));
    }
}
