//! Stanzas to devices.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::address;
use super::super::super::api::Reading;
use super::super::super::iproute::Tables;
use super::super::super::ledger::State;
use super::super::super::model::{Effect, Match, Natural, Section};
use super::Flavour;
use super::addresses::Ip;
use super::hooks::HOOKS;
use super::kind::{Kind, kind, vlan_name};
use super::parse::{Opt, Parsed, Pattern, Stanza, unmapped};
use super::templates::{logical_stanza, with_inherited};

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

/// What decoding carries from stanza to stanza.
pub(super) struct Decoder {
    pub(super) flavour: Flavour,
    pub(super) tables: Tables,
    /// `down` lines that may mirror an `up` line: device, option.
    pub(super) hooks: Vec<(String, Opt)>,
    /// Bond options on members: bond, member, option.
    pub(super) member_options: Vec<(String, String, Opt)>,
    pub(super) has_inet_mtu: BTreeSet<String>,
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

    pub(super) fn keep(
        &self,
        reading: &mut Reading<'_>,
        id: &str,
        option: &Opt,
        effect: Effect,
    ) -> State {
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
}
