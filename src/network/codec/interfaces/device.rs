//! Stanzas to devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::super::address;
use super::super::super::api::Reading;
use super::super::super::iproute::{self, Command, Tables};
use super::super::super::ledger::State;
use super::super::super::model::{Address, Device, Effect, Match, Natural, Route, Section};
use super::super::{bond, bridge};
use super::Flavour;
use super::parse::{Opt, Parsed, Pattern, Stanza, is_secret, unmapped};

/// Most options of one stanza with all it inherits.
const MAX_INHERITED: usize = 4096;

const HOOKS: [&str; 8] = [
    "up",
    "post-up",
    "pre-up",
    "down",
    "pre-down",
    "post-down",
    "if-up",
    "if-down",
];

/// Options that may stand more than once.
fn is_list(name: &str) -> bool {
    HOOKS.contains(&name)
        || name.starts_with("dns-")
        || matches!(name, "address" | "use" | "requires" | "inherit")
}

/// Puts all stanzas into the document.
pub fn decode(reading: &mut Reading<'_>, flavour: Flavour, parsed: Parsed) {
    let tables = Tables::load(reading.files());
    let templates: BTreeSet<String> = parsed
        .stanzas
        .iter()
        .flat_map(|s| {
            let inherit = s
                .options
                .iter()
                .filter(|o| o.name == "inherit")
                .map(|o| o.value.clone());
            s.inherits.iter().cloned().chain(inherit)
        })
        .collect();
    let by_pattern = |name: &str, hot: bool| {
        parsed.patterns.iter().any(|(pattern, for_hotplug)| {
            *for_hotplug == hot
                && match &pattern.logical {
                    Some(logical) => logical == name,
                    None => pattern.fits(name),
                }
        })
    };
    let is_auto = |name: &str| parsed.auto.contains(name) || by_pattern(name, false);
    let is_hot = |name: &str| parsed.hotplug.contains(name) || by_pattern(name, true);
    let started = |name: &str| is_auto(name) || is_hot(name);
    // Which section each device belongs to, from all its stanzas.
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    let mut inherited: Vec<Stanza> = Vec::new();
    // Each stanza may copy another one's options: the copies are bounded together.
    let mut budget = 200_000usize;
    for stanza in &parsed.stanzas {
        inherited.push(with_inherited(reading, &parsed, stanza, &mut budget));
    }
    // What is named as a master is one, whatever its own stanza says.
    for option in inherited.iter().flat_map(|s| &s.options) {
        let section = match option.name.as_str() {
            "bond-master" => Section::Bonds,
            "vrf" | "vrf-member" => Section::Vrfs,
            _ => continue,
        };
        if !option.value.is_empty() {
            kinds.insert(option.value.clone(), Kind::Section(section));
        }
    }
    for stanza in &inherited {
        let base = base_of(&stanza.name).to_owned();
        let kind = kind(stanza, &base);
        let slot = kinds
            .entry(base)
            .or_insert(Kind::Section(Section::Ethernets));
        if matches!(slot, Kind::Section(Section::Ethernets)) {
            *slot = kind;
        }
    }
    let mut others = BTreeMap::new();
    let mut decoder = Decoder {
        flavour,
        tables,
        hooks: Vec::new(),
        member_options: Vec::new(),
        has_inet_mtu: BTreeSet::new(),
    };
    for stanza in &inherited {
        if stanza.family == "inet" && stanza.options.iter().any(|o| o.name == "mtu") {
            decoder
                .has_inet_mtu
                .insert(base_of(&stanza.name).to_owned());
        }
    }
    for stanza in &inherited {
        reading.mark(
            stanza.place.source,
            stanza.place.range.clone(),
            State::Mapped,
        );
        let base = base_of(&stanza.name).to_owned();
        let logical = parsed.logical.contains(&stanza.name)
            || (parsed.has_mappings && !stanza.name.contains(|c: char| c.is_ascii_digit()))
            || templates.contains(&stanza.name);
        if logical && !started(&stanza.name) {
            logical_stanza(reading, stanza);
            continue;
        }
        if base == "lo" && stanza.method == "loopback" && stanza.options.is_empty() {
            continue;
        }
        let (section, other) = match kinds.get(&base) {
            Some(Kind::Section(section)) => (*section, None),
            Some(Kind::Other(other)) => (Section::Ethernets, Some(other.clone())),
            None => (Section::Ethernets, None),
        };
        if let Some(other) = other {
            others.insert(base.clone(), other);
        }
        decoder.stanza(reading, section, &base, stanza);
        let extra = reading.document.extra(&base);
        extra.sources.push(stanza.place.path.to_string());
        extra.managed_by = Some(flavour.name().into());
        let any_started = started(&stanza.name) || started(&base);
        let hot = is_hot(&base) && !is_auto(&base);
        let start = if hot {
            "hotplug"
        } else if any_started {
            "auto"
        } else {
            "manual"
        };
        // An alias that is started alone does not start its device, a started device is enough.
        if extra.start.as_deref() != Some("auto") {
            extra.start = Some(start.into());
        }
    }
    decoder.downs(reading);
    decoder.bond_members(reading);
    starts(reading);
    for (from, to) in &parsed.renames {
        if let Some(device) = reading.document.find(to) {
            let matching = device.matching.get_or_insert_with(Match::default);
            match Pattern::parse(from) {
                Some(pattern) => matches_of(matching, &pattern),
                None => matching.name = Some(from.clone()),
            }
            device.set_name = Some(to.clone());
        }
    }
    for (pattern, _) in &parsed.patterns {
        let Some(logical) = &pattern.logical else {
            continue;
        };
        match reading.document.find(logical) {
            Some(device) => {
                matches_of(device.matching.get_or_insert_with(Match::default), pattern);
            }
            None => {
                let message = format!("{logical} is to be started and has no stanza");
                reading.warn(b"etc/network/interfaces", None, message);
            }
        }
    }
    // netplan wants an id and a parent; without them it is no VLAN it could type.
    let vlans = reading.document.devices.iter();
    let untyped: Vec<String> = vlans
        .filter(|((section, _), d)| {
            *section == Section::Vlans && (d.id.is_none() || d.link.is_none())
        })
        .map(|((_, id), _)| id.0.clone())
        .filter(|id| kinds.contains_key(id))
        .collect();
    for id in untyped {
        let key = (Section::Vlans, Natural(id.clone()));
        if let Some(device) = reading.document.devices.remove(&key) {
            let message = format!("{id}: a VLAN without a derivable id or parent");
            reading.warn(b"etc/network/interfaces", None, message);
            reading.document.add_untyped(&id, "vlan", &device);
        }
    }
    for (id, kind) in others {
        let key = (Section::Ethernets, Natural(id.clone()));
        if let Some(device) = reading.document.devices.remove(&key) {
            reading.document.add_untyped(&id, &kind, &device);
        }
    }
    for name in parsed.auto.iter().chain(&parsed.hotplug) {
        let base = base_of(name);
        if !name.starts_with('/')
            && base != "lo"
            && !inherited.iter().any(|s| s.name == *name)
            && !parsed.renames.iter().any(|(a, b)| a == name || b == name)
            && !parsed.has_mappings
        {
            let message = format!("{name} is to be started and has no stanza");
            reading.warn(b"etc/network/interfaces", None, message);
        }
    }
}

/// Puts a pattern's condition in.
fn matches_of(matching: &mut Match, pattern: &Pattern) {
    if let Some(name) = &pattern.name {
        matching.name = Some(name.clone());
    }
    if let Some(mac) = pattern.mac.as_deref().and_then(address::mac) {
        matching.macaddress = Some(mac);
    }
}

/// Turns what is known of the start into netplan's keys, once every stanza was seen.
fn starts(reading: &mut Reading<'_>) {
    let members: BTreeSet<String> = reading
        .document
        .devices
        .values()
        .flat_map(|d| d.interfaces.iter().cloned())
        .collect();
    let starts: Vec<(String, String)> = reading
        .document
        .guest
        .interfaces
        .iter()
        .filter_map(|(id, extra)| Some((id.0.clone(), extra.start.clone()?)))
        .collect();
    for (id, start) in starts {
        // A member comes up with its master.
        if start == "manual" && members.contains(&id) {
            continue;
        }
        if let Some(device) = reading.document.find(&id) {
            match start.as_str() {
                "hotplug" => device.optional = Some(true),
                "manual" => device.activation_mode = Some("manual".into()),
                _ => {}
            }
        }
    }
}

/// `eth0:1` is an alias of eth0, `eth0.5:1` of eth0.5.
fn base_of(name: &str) -> &str {
    name.split_once(':').map_or(name, |(base, _)| base)
}

/// The stanza with the options it inherits before its own.
fn with_inherited(
    reading: &mut Reading<'_>,
    parsed: &Parsed,
    stanza: &Stanza,
    budget: &mut usize,
) -> Stanza {
    let mut out = stanza.clone();
    let mut sources: Vec<String> = stanza.inherits.clone();
    for option in stanza.options.iter().filter(|o| o.name == "inherit") {
        reading.mark(
            option.place.source,
            option.place.range.clone(),
            State::Mapped,
        );
        sources.push(option.value.clone());
    }
    out.options.retain(|o| o.name != "inherit");
    if sources.is_empty() {
        return out;
    }
    let mut copied: Vec<Opt> = Vec::new();
    let mut seen: BTreeSet<String> = [stanza.name.clone()].into();
    sources.reverse();
    while let Some(name) = sources.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let fits = |s: &&Stanza| {
            s.name == name
                && (out.family.is_empty() || s.family.is_empty() || s.family == out.family)
        };
        let Some(template) = parsed.stanzas.iter().find(fits) else {
            let message = format!("inherits from {name}, which no stanza describes");
            reading.warn(
                stanza.place.path.as_bytes(),
                Some(stanza.place.line),
                message,
            );
            continue;
        };
        if out.family.is_empty() {
            out.family = template.family.clone();
            out.method = template.method.clone();
        }
        let take = template.options.len().min(*budget);
        *budget = budget.saturating_sub(take);
        copied.extend(
            template
                .options
                .iter()
                .filter(|o| o.name != "inherit")
                .take(take)
                .cloned(),
        );
        sources.extend(template.inherits.iter().rev().cloned());
        if copied.len() > MAX_INHERITED {
            break;
        }
    }
    let own: BTreeSet<&str> = stanza.options.iter().map(|o| o.name.as_str()).collect();
    copied.retain(|option| {
        let twice = own.contains(option.name.as_str()) && !is_list(&option.name);
        if twice {
            let message = format!(
                "{} is inherited and set again: ifupdown joins the two values, which fails",
                option.raw
            );
            reading.warn(
                stanza.place.path.as_bytes(),
                Some(stanza.place.line),
                message,
            );
            reading.mark(
                option.place.source,
                option.place.range.clone(),
                State::Rejected,
            );
        }
        !twice
    });
    copied.append(&mut out.options);
    out.options = copied;
    out
}

enum Kind {
    Section(Section),
    Other(String),
}

fn vlan_suffix(name: &str) -> Option<(&str, u32)> {
    let (base, digits) = name.rsplit_once('.')?;
    let id = digits.parse::<u32>().ok().filter(|n| *n < 4096)?;
    (!base.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some((base, id))
}

fn kind(stanza: &Stanza, base: &str) -> Kind {
    let has = |name: &str| stanza.options.iter().any(|o| o.name == name);
    let get = |name: &str| {
        stanza
            .options
            .iter()
            .find(|o| o.name == name)
            .map(|o| o.value.as_str())
    };
    let uses = |what: &str| {
        stanza
            .options
            .iter()
            .any(|o| o.name == "use" && o.value == what)
    };
    match stanza.method.as_str() {
        "tunnel" | "v4tunnel" => return Kind::Section(Section::Tunnels),
        "ppp" | "wvdial" => return Kind::Other("ppp".into()),
        "6to4" => return Kind::Other("6to4".into()),
        _ => {}
    }
    if matches!(stanza.family.as_str(), "can" | "ipx") {
        return Kind::Other(stanza.family.clone());
    }
    if has("bridge-ports") || uses("bridge") || get("link-type") == Some("bridge") {
        Kind::Section(Section::Bridges)
    } else if has("ovs-type") {
        Kind::Other("ovs".into())
    } else if !has("bond-master")
        && (has("bond-slaves")
            || has("slaves")
            || has("bond-mode")
            || has("bond-members")
            || uses("bond"))
    {
        Kind::Section(Section::Bonds)
    } else if has("vxlan-id") {
        Kind::Section(Section::Tunnels)
    } else if has("vrf-table") {
        Kind::Section(Section::Vrfs)
    } else if has("vlan-raw-device")
        || has("vlan-id")
        || vlan_suffix(base).is_some()
        || uses("vlan")
    {
        Kind::Section(Section::Vlans)
    } else if has("wpa-ssid") || has("wireless-essid") || has("wpa-conf") {
        Kind::Section(Section::Wifis)
    } else if get("link-type") == Some("dummy")
        || base
            .strip_prefix("dummy")
            .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    {
        Kind::Section(Section::DummyDevices)
    } else {
        Kind::Section(Section::Ethernets)
    }
}

/// A stanza only mappings and other stanzas use: no interface of its own.
fn logical_stanza(reading: &mut Reading<'_>, stanza: &Stanza) {
    let mut options = serde_json::Map::new();
    for option in &stanza.options {
        let place = &option.place;
        let hook = HOOKS.contains(&option.name.as_str());
        if is_secret(&option.name) || hook {
            unmapped(
                reading,
                place,
                Some(&stanza.name),
                Some(&option.raw),
                &option.value,
                Effect::Script,
            );
            reading.mark(place.source, place.range.clone(), State::Unmapped);
            continue;
        }
        let slot = options
            .entry(option.raw.clone())
            .or_insert_with(|| json!([]));
        if let Some(values) = slot.as_array_mut() {
            values.push(option.value.clone().into());
        }
        reading.mark(place.source, place.range.clone(), State::Mapped);
    }
    let mut entry = serde_json::Map::new();
    entry.insert("type".into(), "logical".into());
    for (key, value) in [("family", &stanza.family), ("method", &stanza.method)] {
        if !value.is_empty() {
            entry.insert(key.into(), value.clone().into());
        }
    }
    if !options.is_empty() {
        entry.insert("options".into(), Value::Object(options));
    }
    let mut id = stanza.name.clone();
    // Two families of one name.
    if reading
        .document
        .guest
        .devices
        .contains_key(&Natural(id.clone()))
    {
        id = format!("{id}/{}", stanza.family);
    }
    reading
        .document
        .guest
        .devices
        .insert(Natural(id), Value::Object(entry));
}

struct Decoder {
    flavour: Flavour,
    tables: Tables,
    /// `down` lines that may mirror an `up` line: device, option.
    hooks: Vec<(String, Opt)>,
    /// Bond options on members: bond, member, option.
    member_options: Vec<(String, String, Opt)>,
    has_inet_mtu: BTreeSet<String>,
}

/// The IP options of one stanza, gathered before they make sense together.
#[derive(Default)]
struct Ip<'a> {
    addresses: Vec<&'a Opt>,
    netmask: Option<&'a Opt>,
    gateways: Vec<&'a Opt>,
    metric: Option<&'a Opt>,
    broadcast: Vec<&'a Opt>,
    lifetime: Option<&'a Opt>,
    peer: Option<&'a Opt>,
}

impl Decoder {
    fn stanza(&mut self, reading: &mut Reading<'_>, section: Section, id: &str, stanza: &Stanza) {
        reading.document.device(section, id);
        let v6 = stanza.family == "inet6";
        let mut ip = Ip::default();
        for option in &stanza.options {
            let place = &option.place;
            let slot = match option.name.as_str() {
                "address" => {
                    ip.addresses.push(option);
                    continue;
                }
                "netmask" => &mut ip.netmask,
                "metric" => &mut ip.metric,
                "preferred-lifetime" => &mut ip.lifetime,
                "pointopoint" => &mut ip.peer,
                "gateway" => {
                    ip.gateways.push(option);
                    continue;
                }
                "broadcast" | "network" => {
                    ip.broadcast.push(option);
                    continue;
                }
                // After the addresses, so that the first address stays the first.
                name if HOOKS.contains(&name) => continue,
                _ => {
                    let state = self.option(reading, section, id, stanza, option, v6);
                    reading.mark(place.source, place.range.clone(), state);
                    continue;
                }
            };
            if let Some(previous) = slot.replace(option) {
                let message = format!("{} is given twice in one stanza", previous.raw);
                reading.warn(place.path.as_bytes(), Some(place.line), message);
                reading.mark(
                    previous.place.source,
                    previous.place.range.clone(),
                    State::Rejected,
                );
            }
        }
        self.method(reading, section, id, stanza, v6, &ip);
        self.addresses(reading, section, id, stanza, &ip);
        for option in stanza
            .options
            .iter()
            .filter(|o| HOOKS.contains(&o.name.as_str()))
        {
            let state = self.option(reading, section, id, stanza, option, v6);
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        if section == Section::Vlans {
            vlan_name(reading, id);
        }
    }

    fn keep(&self, reading: &mut Reading<'_>, id: &str, option: &Opt, effect: Effect) -> State {
        unmapped(
            reading,
            &option.place,
            Some(id),
            Some(&option.raw),
            &option.value,
            effect,
        );
        State::Unmapped
    }

    fn method(
        &self,
        reading: &mut Reading<'_>,
        section: Section,
        id: &str,
        stanza: &Stanza,
        v6: bool,
        ip: &Ip<'_>,
    ) {
        let place = &stanza.place;
        let dhcp_option = stanza
            .options
            .iter()
            .any(|o| o.name == "dhcp" && o.value.trim() == "1");
        let autoconf = stanza
            .options
            .iter()
            .any(|o| o.name == "autoconf" && o.value.trim() == "1");
        let uses_dhcp = stanza
            .options
            .iter()
            .any(|o| o.name == "use" && o.value == "dhcp");
        let device = reading.document.device(section, id);
        let (mut four, mut six) = (None, None);
        match (stanza.family.as_str(), stanza.method.as_str()) {
            ("inet", "static") => four = Some("static"),
            ("inet", "manual") => four = Some("none"),
            ("inet", "dhcp" | "bootp") => {
                device.dhcp4 = Some(true);
                four = Some("dhcp");
                if stanza.method == "bootp" {
                    unmapped(
                        reading,
                        place,
                        Some(id),
                        Some("iface"),
                        "inet bootp",
                        Effect::Behaviour,
                    );
                }
            }
            ("inet", "ipv4ll") => {
                device.link_local = Some(vec!["ipv4".into()]);
                four = Some("link-local");
            }
            ("inet" | "inet6", "loopback") => {}
            ("inet6", "static") => {
                six = Some("static");
                if autoconf {
                    device.accept_ra = Some(true);
                    device.dhcp6 = Some(true);
                    six = Some("slaac");
                }
            }
            ("inet6", "auto") => {
                device.dhcp6 = Some(true);
                if dhcp_option {
                    six = Some("dhcp-stateless");
                } else {
                    device.accept_ra = Some(true);
                    six = Some("slaac");
                }
            }
            ("inet6", "dhcp") => {
                device.dhcp6 = Some(true);
                six = Some("dhcp");
            }
            ("inet6", "manual") => {
                device
                    .link_local
                    .get_or_insert_with(Vec::new)
                    .push("ipv6".into());
                six = Some("link-local");
            }
            ("inet" | "inet6", "tunnel" | "v4tunnel") => {
                device.mode.get_or_insert_with(|| "sit".into());
                if v6 {
                    six = Some("static")
                } else {
                    four = Some("static")
                }
            }
            ("inet" | "inet6", "ppp" | "wvdial" | "6to4") => {}
            ("", _) => {
                let any = |want6: bool| {
                    ip.addresses.iter().any(|o| {
                        address::with_prefix(o.value.split_whitespace().next().unwrap_or_default())
                            .is_some_and(|(ip, _)| ip.is_ipv6() == want6)
                    })
                };
                if uses_dhcp {
                    device.dhcp4 = Some(true);
                    four = Some("dhcp");
                } else if any(false) {
                    four = Some("static");
                }
                if any(true) {
                    six = Some("static");
                }
            }
            ("can" | "ipx" | "link" | "meta", _) => {}
            (family, method) => {
                let message = format!(
                    "{family} {method} is no known method: ifup refuses the whole configuration"
                );
                let value = format!("{family} {method}");
                reading.warn(place.path.as_bytes(), Some(place.line), message);
                unmapped(
                    reading,
                    place,
                    Some(id),
                    Some("iface"),
                    &value,
                    Effect::Behaviour,
                );
            }
        }
        let extra = reading.document.extra(id);
        if let Some(four) = four
            && (extra.ipv4_method.is_none() || four != "none")
        {
            extra.ipv4_method = Some(four.into());
        }
        if let Some(six) = six
            && (extra.ipv6_method.is_none() || six != "link-local")
        {
            extra.ipv6_method = Some(six.into());
        }
    }

    fn addresses(
        &self,
        reading: &mut Reading<'_>,
        section: Section,
        id: &str,
        stanza: &Stanza,
        ip: &Ip<'_>,
    ) {
        let label = stanza.name.contains(':').then(|| stanza.name.clone());
        let mut networks: Vec<(IpAddr, u8)> = Vec::new();
        let netmask = ip
            .netmask
            .map(|o| o.value.split_whitespace().next().unwrap_or_default());
        let v6_mask = netmask
            .and_then(|m| m.parse::<u8>().ok())
            .filter(|p| *p <= 128);
        let v4_mask = netmask.and_then(address::mask);
        let mut mask_used = false;
        let repeated =
            ip.addresses.len() > 1 && matches!(self.flavour, Flavour::Ifupdown | Flavour::Busybox);
        for option in &ip.addresses {
            let place = &option.place;
            let (path, line) = (place.path.as_bytes(), Some(place.line));
            let mut words = option.value.split_whitespace();
            let parsed = address::with_prefix(words.next().unwrap_or_default());
            let extra_words = words.next().is_some();
            let family_fits = |ip: IpAddr| match stanza.family.as_str() {
                "inet" => ip.is_ipv4(),
                "inet6" => ip.is_ipv6(),
                _ => true,
            };
            let Some((found, inline)) = parsed.filter(|(ip, _)| family_fits(*ip)) else {
                reading.warn(path, line, "no address of the stanza's family");
                let state = self.keep(reading, id, option, Effect::Behaviour);
                reading.mark(place.source, place.range.clone(), state);
                continue;
            };
            if extra_words {
                reading.warn(path, line, "text behind the address is part of the value");
            }
            if repeated {
                reading.warn(
                    path,
                    line,
                    "several addresses in one stanza: ifupdown joins them, which fails",
                );
            }
            // The mask beats a prefix in the address.
            let own = if found.is_ipv4() { v4_mask } else { v6_mask };
            mask_used |= own.is_some();
            let prefix = own.or(inline).unwrap_or_else(|| match found {
                IpAddr::V4(ip) => address::class_prefix(ip),
                IpAddr::V6(_) => 64,
            });
            if let (Some(own), Some(inline)) = (own, inline)
                && own != inline
            {
                reading.warn(
                    path,
                    line,
                    format!("netmask {own} overrides the prefix {inline}"),
                );
            }
            let mut lifetime = None;
            if let Some(option) = ip.lifetime {
                let zero = option.value.trim() == "0";
                lifetime = zero.then(|| "0".to_owned());
                let state = if zero {
                    State::Mapped
                } else {
                    self.keep(reading, id, option, Effect::Behaviour)
                };
                reading.mark(option.place.source, option.place.range.clone(), state);
            }
            networks.push((found, prefix));
            let address = Address {
                ip: found,
                prefix,
                label: label.clone(),
                lifetime,
            };
            let device = reading.document.device(section, id);
            if section == Section::Tunnels
                && stanza.method == "tunnel"
                && stanza.family == "inet6"
                && inline.is_none()
                && own.is_none()
            {
                device.add_address(found, 64);
            } else {
                device.push_address(address);
            }
            reading.mark(place.source, place.range.clone(), State::Mapped);
        }
        if stanza.method == "static" && ip.addresses.is_empty() {
            let message = "static without an address: ifup fails";
            reading.warn(
                stanza.place.path.as_bytes(),
                Some(stanza.place.line),
                message,
            );
        }
        if let Some(option) = ip.netmask {
            let state = if mask_used {
                State::Mapped
            } else {
                self.keep(reading, id, option, Effect::None)
            };
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        if let (Some(option), true) = (ip.lifetime, networks.is_empty()) {
            let state = self.keep(reading, id, option, Effect::None);
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        for option in &ip.broadcast {
            let given = option.value.trim().parse::<std::net::Ipv4Addr>().ok();
            let restates = networks.iter().any(|(ip, prefix)| match ip {
                IpAddr::V4(ip) => {
                    let (network, broadcast) = address::network_and_broadcast(*ip, *prefix);
                    given
                        == Some(if option.name == "network" {
                            network
                        } else {
                            broadcast
                        })
                }
                IpAddr::V6(_) => false,
            });
            let plus = option.name == "broadcast" && option.value.trim() == "+";
            let state = if restates || plus {
                State::Implied
            } else {
                self.keep(reading, id, option, Effect::Behaviour)
            };
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        let metric = ip.metric.and_then(|o| o.value.trim().parse::<u32>().ok());
        let mut metric_used = false;
        for option in &ip.gateways {
            let word = option.value.split_whitespace().next().unwrap_or_default();
            let state = match word.parse::<IpAddr>() {
                Ok(via) if option.value.split_whitespace().count() == 1 => {
                    let near = networks
                        .iter()
                        .any(|(ip, p)| address::contains(*ip, *p, via));
                    let link_local = matches!(via, IpAddr::V6(v6) if v6.is_unicast_link_local());
                    let device = reading.document.device(section, id);
                    let nearby = near
                        || link_local
                        || device
                            .addresses
                            .iter()
                            .any(|a| address::contains(a.ip, a.prefix, via));
                    let on_link = (!nearby && !networks.is_empty()).then_some(true);
                    device.add_route(Route {
                        metric,
                        on_link,
                        ..Route::default_via(via)
                    });
                    metric_used = true;
                    State::Mapped
                }
                _ => {
                    reading.warn(
                        option.place.path.as_bytes(),
                        Some(option.place.line),
                        "gateway is no address",
                    );
                    self.keep(reading, id, option, Effect::Behaviour)
                }
            };
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        if let Some(option) = ip.metric {
            let device = reading.document.device(section, id);
            let state = if metric_used && metric.is_some() {
                State::Mapped
            } else if metric.is_some() && stanza.method == "dhcp" {
                let overrides = if stanza.family == "inet6" {
                    &mut device.dhcp6_overrides
                } else {
                    &mut device.dhcp4_overrides
                };
                overrides.route_metric = metric;
                State::Mapped
            } else {
                self.keep(reading, id, option, Effect::Behaviour)
            };
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
        if let Some(option) = ip.peer {
            if let Ok(peer) = option.value.trim().parse::<IpAddr>() {
                let to = format!("{peer}/{}", address::full(peer));
                let route = Route {
                    to,
                    scope: Some("link".into()),
                    ..Route::default()
                };
                reading.document.device(section, id).add_route(route);
            }
            let state = self.keep(reading, id, option, Effect::Behaviour);
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
    }

    /// One option that makes sense by itself.
    fn option(
        &mut self,
        reading: &mut Reading<'_>,
        section: Section,
        id: &str,
        stanza: &Stanza,
        option: &Opt,
        v6: bool,
    ) -> State {
        let value = option.value.trim();
        let name = option.name.as_str();
        if is_secret(name) {
            return self.keep(reading, id, option, Effect::Secret);
        }
        if HOOKS.contains(&name) {
            return self.hook(reading, id, option);
        }
        let number = value.parse::<u32>().ok();
        let device = reading.document.device(section, id);
        let done = match name {
            _ if value.is_empty() => false,
            "mtu" => match number {
                Some(mtu) if v6 && self.has_inet_mtu.contains(id) => {
                    device.ipv6_mtu = Some(mtu);
                    true
                }
                Some(mtu) => {
                    device.mtu = Some(mtu);
                    true
                }
                None => false,
            },
            "hwaddress" | "hw-mac-address" => {
                let word = value.split_whitespace().last().unwrap_or_default();
                let mac =
                    address::mac(word).or_else(|| (word == "random").then(|| word.to_owned()));
                let found = mac.is_some();
                if found {
                    device.macaddress = mac;
                }
                found
            }
            "hostname" => {
                let overrides = if v6 {
                    &mut device.dhcp6_overrides
                } else {
                    &mut device.dhcp4_overrides
                };
                overrides.hostname = Some(value.to_owned());
                !value.is_empty()
            }
            "accept-ra" => match value {
                "0" => {
                    device.accept_ra = Some(false);
                    true
                }
                "1" => {
                    device.accept_ra = Some(true);
                    true
                }
                "2" => {
                    device.accept_ra = Some(true);
                    false
                }
                _ => false,
            },
            "autoconf" => match stanza.method.as_str() {
                // Says what `static` and `auto` say anyway, or was looked at with the method.
                "static" | "auto" => matches!(value, "0" | "1"),
                _ => false,
            },
            "dhcp" if v6 => matches!(value, "0" | "1"),
            "use" => matches!(
                value,
                "dhcp" | "bridge" | "bond" | "vlan" | "vrf" | "static" | "link"
            ),
            "privext" => match value {
                "0" => {
                    device.ipv6_privacy = Some(false);
                    true
                }
                "2" => {
                    device.ipv6_privacy = Some(true);
                    true
                }
                _ => false,
            },
            "dns-nameservers" | "dns-nameserver" => {
                let mut all = !value.is_empty();
                for word in value.split_whitespace().take(256) {
                    match word.parse::<IpAddr>() {
                        Ok(ip) => device.add_nameserver(&ip.to_string()),
                        Err(_) => all = false,
                    }
                }
                if !all {
                    let message = "a word that is no address is taken for one";
                    reading.warn(
                        option.place.path.as_bytes(),
                        Some(option.place.line),
                        message,
                    );
                }
                all
            }
            "dns-search" | "dns-domain" => {
                for word in value.split_whitespace().take(256) {
                    device.add_search(word);
                }
                !value.is_empty()
            }
            "vlan-raw-device" => {
                device.link = Some(value.to_owned());
                !value.is_empty()
            }
            "vlan-id" => {
                device.id = number.filter(|n| *n < 4096);
                device.id.is_some()
            }
            "endpoint" => {
                device.remote = Some(value.to_owned());
                !value.is_empty()
            }
            "local" if section == Section::Tunnels => {
                device.local = Some(value.to_owned());
                !value.is_empty()
            }
            "dstaddr" if section == Section::Tunnels => false,
            "mode" if section == Section::Tunnels => {
                device.mode = Some(value.to_ascii_lowercase());
                !value.is_empty()
            }
            "ttl" if section == Section::Tunnels => {
                device.ttl = number;
                number.is_some()
            }
            "vxlan-id" => {
                device.mode = Some("vxlan".into());
                device.id = number;
                number.is_some()
            }
            "vxlan-local-tunnelip" => {
                device.local = Some(value.to_owned());
                !value.is_empty()
            }
            "vrf-table" => {
                device.table = self.tables.number(value);
                device.table.is_some()
            }
            "vrf" | "vrf-member" => {
                let master = value.to_owned();
                reading
                    .document
                    .device(Section::Vrfs, &master)
                    .add_member(id);
                !value.is_empty()
            }
            "wpa-ssid" | "wireless-essid" => {
                let ssid = value.trim_matches('"').to_owned();
                device
                    .access_points
                    .entry(ssid)
                    .or_insert_with(|| json!({}));
                !value.is_empty()
            }
            "link-type" => matches!(value, "bridge" | "dummy"),
            // A device can be one thing only: what another kind would mean says nothing here.
            _ if name.starts_with("bridge-") && section != Section::Bridges => false,
            "slaves" | "bond-slaves" | "bond-members" if section != Section::Bonds => false,
            "bridge-ports" => {
                let words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
                let dynamic = words
                    .iter()
                    .any(|w| matches!(w.as_str(), "all" | "regex" | "noregex" | "glob"));
                if dynamic {
                    let message = "ports that depend on the cards found at boot";
                    reading.warn(
                        option.place.path.as_bytes(),
                        Some(option.place.line),
                        message,
                    );
                }
                let mut skip = false;
                let device = reading.document.device(section, id);
                for word in &words {
                    match word.as_str() {
                        "none" | "all" => {}
                        "regex" | "noregex" | "glob" => skip = true,
                        _ if skip => skip = false,
                        port => device.add_member(port),
                    }
                }
                !dynamic
            }
            _ if name.starts_with("bridge-") => {
                bridge_option(device, name.get(7..).unwrap_or_default(), value)
            }
            "slaves" | "bond-slaves" | "bond-members" => {
                let mut resolved = !value.is_empty();
                for word in value.split_whitespace().take(1024) {
                    match word {
                        "none" => {}
                        "all" => resolved = false,
                        member => device.add_member(member),
                    }
                }
                resolved
            }
            "bond-master" => {
                let (master, member) = (value.to_owned(), id.to_owned());
                reading
                    .document
                    .device(Section::Bonds, &master)
                    .add_member(&member);
                !value.is_empty()
            }
            _ if name.starts_with("bond-") => {
                if section == Section::Bonds {
                    bond::set(
                        &mut device.parameters,
                        name.get(5..).unwrap_or_default(),
                        value,
                    )
                } else if let Some(master) = stanza.options.iter().find(|o| o.name == "bond-master")
                {
                    let (master, member) = (master.value.clone(), id.to_owned());
                    self.member_options.push((master, member, option.clone()));
                    return State::Mapped;
                } else {
                    false
                }
            }
            _ => false,
        };
        if done {
            return State::Mapped;
        }
        let effect = match name {
            "description" | "alias" | "iface-desc" => Effect::Cosmetic,
            "address-virtual" | "scope" | "media" | "client" | "vendor" | "leasetime"
            | "leasehours" => Effect::Behaviour,
            _ if is_known(name) => Effect::Behaviour,
            _ => Effect::Unknown,
        };
        self.keep(reading, id, option, effect)
    }

    fn hook(&mut self, reading: &mut Reading<'_>, id: &str, option: &Opt) -> State {
        let down = matches!(
            option.name.as_str(),
            "down" | "pre-down" | "post-down" | "if-down"
        );
        if down {
            self.hooks.push((id.to_owned(), option.clone()));
            return State::Unmapped;
        }
        match iproute::command(&option.value, id, &self.tables) {
            Some(Command::Route(parsed)) => {
                let target = match &parsed.dev {
                    Some(dev) if dev != id => {
                        if reading.document.find(dev).is_none() {
                            return self.keep(reading, id, option, Effect::Script);
                        }
                        dev.clone()
                    }
                    _ => id.to_owned(),
                };
                if let Some(device) = reading.document.find(&target) {
                    device.add_route(parsed.route);
                }
                State::Mapped
            }
            Some(Command::Rule(policy)) => {
                if let Some(device) = reading.document.find(id) {
                    device.add_policy(policy);
                }
                State::Mapped
            }
            Some(Command::Address(ip, prefix, dev, label))
                if dev.as_deref().is_none_or(|d| d == id) =>
            {
                if let Some(device) = reading.document.find(id) {
                    let address = Address {
                        ip,
                        prefix,
                        label,
                        lifetime: None,
                    };
                    device.push_address(address);
                }
                State::Mapped
            }
            _ => self.keep(reading, id, option, Effect::Script),
        }
    }

    /// Bond options on members mostly repeat those of the bond; what the bond itself does not say
    /// counts as well.
    fn bond_members(&mut self, reading: &mut Reading<'_>) {
        for (master, member, option) in std::mem::take(&mut self.member_options) {
            let mut said = serde_json::Map::new();
            let word = option.name.get(5..).unwrap_or_default();
            let known = bond::set(&mut said, word, option.value.trim());
            let slot = said.into_iter().next().and_then(|(key, value)| {
                let device = reading.document.device(Section::Bonds, &master);
                let there = device.parameters.entry(key).or_insert(value.clone());
                (*there == value).then_some(())
            });
            if !known || slot.is_none() {
                self.keep(reading, &member, &option, Effect::Behaviour);
            }
        }
    }

    /// `down` lines: the mirror of a mapped `up` line belongs to it, everything else is a script.
    fn downs(&mut self, reading: &mut Reading<'_>) {
        for (id, option) in std::mem::take(&mut self.hooks) {
            let mirrored = option
                .value
                .replacen(" delete ", " add ", 1)
                .replacen(" del ", " add ", 1);
            let known = match iproute::command(&mirrored, &id, &self.tables) {
                Some(Command::Route(parsed)) => reading.document.devices.values().any(|d| {
                    d.routes.iter().any(|r| {
                        r.to == parsed.route.to
                            && (parsed.route.via.is_none() || r.via == parsed.route.via)
                    })
                }),
                Some(Command::Rule(policy)) => reading
                    .document
                    .find(&id)
                    .is_some_and(|d| d.routing_policy.contains(&policy)),
                Some(Command::Address(ip, prefix, ..)) => reading
                    .document
                    .find(&id)
                    .is_some_and(|d| d.addresses.iter().any(|a| a.ip == ip && a.prefix == prefix)),
                None => false,
            };
            let state = if known && mirrored != option.value {
                State::Implied
            } else {
                self.keep(reading, &id, &option, Effect::Script)
            };
            reading.mark(option.place.source, option.place.range.clone(), state);
        }
    }
}

/// Options of hook packages without a word in the common format.
fn is_known(name: &str) -> bool {
    [
        "ip-",
        "ipv6-",
        "wpa-",
        "wireless-",
        "ovs-",
        "clagd-",
        "vxlan-",
        "vlan-",
        "bridge-",
        "bond-",
        "dns-",
        "link-",
        "ethtool-",
        "ethernet-",
        "tunnel-",
        "mstpctl-",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "accept-ra"
                | "autoconf"
                | "privext"
                | "dhcp"
                | "request-prefix"
                | "dad-attempts"
                | "dad-interval"
                | "ll-attempts"
                | "ll-interval"
                | "requires"
                | "provider"
                | "unit"
                | "options"
                | "dstaddr"
                | "bitrate"
                | "samplepoint"
                | "use"
                | "hw-mac-address"
                | "hwaddress"
                | "mtu"
                | "vrf"
                | "vrf-table"
                | "endpoint"
                | "local"
                | "ttl"
                | "mode"
                | "hostname"
                | "slaves"
        )
}

fn bridge_option(device: &mut Device, option: &str, value: &str) -> bool {
    let parameters = &mut device.parameters;
    let mut words = value.split_whitespace();
    match option {
        "stp" => match value.to_ascii_lowercase().as_str() {
            "on" | "yes" | "1" | "true" => {
                parameters.insert("stp".into(), true.into());
                true
            }
            "off" | "no" | "0" | "false" => {
                parameters.insert("stp".into(), false.into());
                true
            }
            _ => false,
        },
        "fd" => bridge::set_number(parameters, "forward-delay", value),
        "hello" => bridge::set_number(parameters, "hello-time", value),
        "maxage" => bridge::set_number(parameters, "max-age", value),
        "ageing" => bridge::set_number(parameters, "ageing-time", value),
        "bridgeprio" => bridge::set_number(parameters, "priority", value),
        "pathcost" | "portprio" => {
            let key = if option == "pathcost" {
                "path-cost"
            } else {
                "port-priority"
            };
            match (words.next(), words.next()) {
                (Some(port), Some(number)) => bridge::set_port(parameters, key, port, number),
                _ => false,
            }
        }
        "hw" => {
            let mac = address::mac(words.last().unwrap_or_default());
            let found = mac.is_some();
            if found {
                device.macaddress = mac;
            }
            found
        }
        _ => false,
    }
}

/// Fills a VLAN's id and parent in from its name.
fn vlan_name(reading: &mut Reading<'_>, id: &str) {
    let device = reading.document.device(Section::Vlans, id);
    if let Some((base, number)) = vlan_suffix(id) {
        device.id.get_or_insert(number);
        device.link.get_or_insert_with(|| base.to_owned());
    } else if let Some(number) = id.strip_prefix("vlan").and_then(|n| n.parse::<u32>().ok())
        && number < 4096
    {
        device.id.get_or_insert(number);
    }
}
