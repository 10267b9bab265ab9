//! Which device a file describes, and its link-level settings.

use serde_json::{Value, json};

use super::super::super::address;
use super::super::super::api::{Reading, text};
use super::super::super::iproute;
use super::super::super::model::{Device, Effect, Match, Section};
use super::super::{bond, bridge};
use super::profile::Profile;
use super::{Consumer, Context, Plan, ip};

/// The device id of a file.
pub fn id(profile: &mut Profile, plan: Plan) -> String {
    match profile.get("DEVICE") {
        Some(name) => {
            profile.mapped("DEVICE");
            name
        }
        None => {
            let _ = plan;
            profile.stem.clone()
        }
    }
}

/// What a file describes.
enum Type {
    Section(Section),
    /// netplan has no type for it.
    Other(String),
}

fn kind(profile: &Profile, is_port: bool, master_of: Option<Section>) -> Type {
    use Section::{Bonds, Bridges, DummyDevices, Ethernets, Tunnels, Vlans, Vrfs, Wifis};
    let kind = profile.get("TYPE").unwrap_or_default().to_ascii_lowercase();
    let device_type = profile
        .get("DEVICETYPE")
        .unwrap_or_default()
        .to_ascii_lowercase();
    let id = &profile.id;
    let numbered = |prefix: &str| {
        id.strip_prefix(prefix)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if device_type == "team" {
        return Type::Other("team".into());
    }
    if device_type == "ovs" || kind.starts_with("ovs") {
        return Type::Other(if kind.is_empty() { "ovs".into() } else { kind });
    }
    let is_bond = profile.boolean("BONDING_MASTER") == Some(true) || profile.has("BONDING_OPTS");
    let is_vlan = profile.boolean("VLAN") == Some(true);
    match kind.as_str() {
        "bond" if is_port => Type::Section(Ethernets),
        "bond" => Type::Section(Bonds),
        "bridge" => Type::Section(Bridges),
        "vlan" => Type::Section(Vlans),
        "team" => Type::Other("team".into()),
        "wireless" => Type::Section(Wifis),
        "gre" | "ipip" | "sit" => Type::Section(Tunnels),
        "vrf" => Type::Section(Vrfs),
        "dummy" => Type::Section(DummyDevices),
        "infiniband" if profile.boolean("PKEY") == Some(true) => Type::Other("ipoib".into()),
        "ethernet" | "infiniband" | "ctc" | "teamport" | "" => {
            if is_bond && !is_port {
                Type::Section(Bonds)
            } else if is_vlan {
                Type::Section(Vlans)
            } else if let Some(section) = master_of {
                Type::Section(section)
            } else if !kind.is_empty() {
                Type::Section(Ethernets)
            } else if numbered("bond") {
                Type::Section(Bonds)
            } else if profile.has("IPV6TUNNELIPV4") || numbered("sit") {
                Type::Section(Tunnels)
            } else if profile.has("ESSID") || numbered("wlan") {
                Type::Section(Wifis)
            } else if numbered("dummy") {
                Type::Section(DummyDevices)
            } else if numbered("ppp") || numbered("ippp") {
                Type::Other("ppp".into())
            } else {
                Type::Section(Ethernets)
            }
        }
        _ => Type::Other(kind),
    }
}

/// Decodes one file into its device.
pub fn decode(
    reading: &mut Reading<'_>,
    context: &mut Context,
    profile: &mut Profile,
    aliased: bool,
) {
    let id = profile.id.clone();
    let path = profile.path.clone();
    let port_keys = [
        "MASTER",
        "MASTER_UUID",
        "BRIDGE",
        "BRIDGE_UUID",
        "TEAM_MASTER",
        "TEAM_MASTER_UUID",
    ];
    let is_port = port_keys.iter().any(|k| profile.has(k));
    let found = match kind(profile, is_port, context.masters.get(&id).copied()) {
        // netplan wants an id and a parent; without them it is no VLAN it could type.
        Type::Section(Section::Vlans) if vlan_parts(context, profile).incomplete() => {
            reading.warn(&path, None, "a VLAN without a derivable id or parent");
            Type::Other("vlan".into())
        }
        found => found,
    };
    let section = match &found {
        Type::Section(section) => *section,
        Type::Other(other) => {
            context.others.insert(id.clone(), other.clone());
            Section::Ethernets
        }
    };
    let mut device = Device::default();
    match profile.get("TYPE").as_deref() {
        Some("CTC") => profile.unmapped("TYPE", Effect::Behaviour),
        Some(_) => profile.implied("TYPE"),
        None => {}
    }
    for key in ["BONDING_MASTER", "VLAN", "DEVICETYPE", "PKEY"] {
        if profile.boolean(key).is_some() || key == "DEVICETYPE" {
            profile.implied(key);
        }
    }
    start(reading, context, profile, &mut device);
    identity(reading, context, profile, &mut device, section);
    link_settings(profile, &context.tables, &mut device);
    match section {
        _ if matches!(&found, Type::Other(other) if other == "vlan") => {
            vlan(reading, context, profile, &mut device);
        }
        Section::Vlans => vlan(reading, context, profile, &mut device),
        Section::Bonds => bond_options(profile, &mut device),
        Section::Bridges => bridge_options(reading, context, profile, &mut device),
        Section::Tunnels => tunnel(profile, &mut device),
        Section::Wifis => wifi(profile, &mut device),
        _ => {}
    }
    authentication(profile, &mut device);
    if let Type::Other(other) = &found
        && other == "team"
    {
        profile.mapped("TEAM_CONFIG");
    }
    membership(reading, context, profile, is_port);
    {
        let extra = reading.document.extra(&id);
        extra.sources.insert(0, text(&path));
    }
    if is_port {
        dead_addresses(profile);
    } else {
        ip::decode(reading, context, profile, &mut device, aliased);
    }
    *reading.document.device(section, &id) = device;
    if let Type::Other(other) = &found
        && other == "team"
        && let Some(config) = profile.get("TEAM_CONFIG")
    {
        let options = serde_json::from_str::<Value>(&config).unwrap_or(Value::String(config));
        reading.document.guest.devices.insert(
            super::super::super::model::Natural(id),
            json!({ "type": "team", "options": options }),
        );
    }
}

fn start(reading: &mut Reading<'_>, context: &Context, profile: &mut Profile, device: &mut Device) {
    let start = match profile.boolean("ONBOOT") {
        Some(false) => {
            device.activation_mode = Some("manual".into());
            "manual"
        }
        _ => "auto",
    };
    if profile.boolean("ONBOOT").is_some() {
        profile.mapped("ONBOOT");
    }
    let left_alone = profile.boolean("NM_CONTROLLED") == Some(false);
    let manager = match context.plan.consumer {
        Consumer::NetworkManager if left_alone => {
            if !context.plan.initscripts {
                let message = "NM_CONTROLLED=no and no initscripts: nobody configures this";
                reading.warn(
                    &profile.path.clone(),
                    profile.line("NM_CONTROLLED"),
                    message,
                );
            }
            Consumer::Initscripts
        }
        consumer => consumer,
    };
    if profile.boolean("NM_CONTROLLED").is_some() {
        profile.mapped("NM_CONTROLLED");
    }
    let extra = reading.document.extra(&profile.id);
    extra.start = Some(start.into());
    extra.managed_by = Some(manager.name().into());
}

fn identity(
    reading: &mut Reading<'_>,
    context: &Context,
    profile: &mut Profile,
    device: &mut Device,
    section: Section,
) {
    let id = profile.id.clone();
    let path = profile.path.clone();
    if let Some(text) = profile.get("HWADDR") {
        match address::mac(&text) {
            Some(mac) if matches!(section, Section::Ethernets | Section::Wifis) => {
                device.matching = Some(Match {
                    macaddress: Some(mac),
                    ..Match::default()
                });
                if profile.has("DEVICE") {
                    device.set_name = Some(id.clone());
                }
                profile.mapped("HWADDR");
            }
            Some(_) => profile.unmapped("HWADDR", Effect::Behaviour),
            None => reading.warn(&path, profile.line("HWADDR"), "HWADDR is no MAC"),
        }
    }
    if !profile.has("DEVICE")
        && device.matching.is_none()
        && context.plan.consumer == Consumer::NetworkManager
    {
        reading.warn(
            &path,
            None,
            "neither DEVICE nor HWADDR: a profile for any device",
        );
    }
    if !address::is_device_name(&id) {
        reading.warn(
            &path,
            profile.line("DEVICE"),
            "no name a network device can have",
        );
    }
    if let Some(text) = profile
        .get("MACADDR")
        .or_else(|| profile.get("BRIDGE_MACADDR"))
    {
        let key = if profile.has("MACADDR") {
            "MACADDR"
        } else {
            "BRIDGE_MACADDR"
        };
        let word = text.to_ascii_lowercase();
        match address::mac(&text) {
            Some(mac) => {
                device.macaddress = Some(mac);
                profile.mapped(key);
            }
            None if matches!(word.as_str(), "permanent" | "random") => {
                device.macaddress = Some(word);
                profile.mapped(key);
            }
            None => profile.unmapped(key, Effect::Behaviour),
        }
    }
    if let Some(name) = profile.get("NAME") {
        device.networkmanager.name = Some(name);
        profile.mapped("NAME");
    }
    if let Some(uuid) = profile.get("UUID") {
        device.networkmanager.uuid = Some(uuid);
        profile.mapped("UUID");
    }
}

fn take_number(profile: &mut Profile, key: &str) -> Option<u32> {
    let number = profile.get(key)?.parse().ok()?;
    profile.mapped(key);
    Some(number)
}

fn link_settings(profile: &mut Profile, tables: &iproute::Tables, device: &mut Device) {
    device.mtu = take_number(profile, "MTU").filter(|m| *m != 0);
    device.virtual_function_count = take_number(profile, "SRIOV_TOTAL_VFS");
    if let Some(options) = profile.get("ETHTOOL_OPTS") {
        let mut words = options.split_whitespace().skip_while(|w| *w != "wol");
        if let Some(flags) = words.nth(1) {
            device.wakeonlan = Some(flags != "d");
        }
        profile.unmapped("ETHTOOL_OPTS", Effect::Behaviour);
    }
    if profile
        .get("TYPE")
        .is_some_and(|t| t.eq_ignore_ascii_case("infiniband"))
        && let Some(connected) = profile.take_boolean("CONNECTED_MODE")
    {
        let mode = if connected { "connected" } else { "datagram" };
        device.infiniband_mode = Some(mode.into());
    }
    for key in profile.keys_with("ROUTING_RULE") {
        if let Some(rule) = profile.get(&key) {
            let words: Vec<&str> = rule.split_whitespace().collect();
            let ipv6 = key.starts_with("ROUTING_RULE6");
            if let Ok((policy, rest)) = iproute::rule(&words, ipv6, tables)
                && rest.is_empty()
            {
                device.add_policy(policy);
                profile.mapped(&key);
            } else {
                profile.unmapped(&key, Effect::Behaviour);
            }
        }
    }
}

/// What a file says about a VLAN's place.
struct VlanParts {
    id: Option<u32>,
    for_nm: Option<String>,
    for_initscripts: Option<String>,
    initscripts: bool,
}

impl VlanParts {
    fn link(&self) -> Option<&String> {
        let link = if self.initscripts {
            &self.for_initscripts
        } else {
            &self.for_nm
        };
        link.as_ref()
    }

    fn incomplete(&self) -> bool {
        self.id.is_none() || self.link().is_none()
    }
}

fn vlan_number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|n| *n < 4096)
}

fn vlan_parts(context: &Context, profile: &Profile) -> VlanParts {
    let name = &profile.id;
    let from_name = || match name.rsplit_once('.') {
        Some((_, digits)) => vlan_number(digits),
        None => vlan_number(name.strip_prefix("vlan")?),
    };
    let explicit = ["VLAN_ID", "VID"]
        .iter()
        .find_map(|key| vlan_number(&profile.get(key)?));
    // An empty name in front of the dot is none.
    let named = |base: &str| (!base.is_empty()).then(|| base.to_owned());
    let first = name.split_once('.').and_then(|(base, _)| named(base));
    let last = name.rsplit_once('.').and_then(|(base, _)| named(base));
    let physical = profile
        .get("PHYSDEV")
        .map(|p| context.resolve(&p).to_owned());
    VlanParts {
        id: explicit.or_else(from_name),
        for_nm: physical.clone().or(first),
        for_initscripts: if profile.has("VID") || last.is_none() {
            physical.or(last)
        } else {
            last
        },
        initscripts: context.plan.consumer == Consumer::Initscripts,
    }
}

fn vlan(reading: &mut Reading<'_>, context: &Context, profile: &mut Profile, device: &mut Device) {
    let parts = vlan_parts(context, profile);
    for key in ["VLAN_ID", "VID"] {
        if profile.get(key).is_some_and(|t| vlan_number(&t).is_some()) {
            profile.mapped(key);
        }
    }
    if profile.has("PHYSDEV") {
        profile.mapped("PHYSDEV");
    }
    if parts.for_nm != parts.for_initscripts {
        let shown = |p: &Option<String>| p.clone().unwrap_or_else(|| "nothing".into());
        let message = format!(
            "the VLAN's parent is {} to NetworkManager and {} to initscripts",
            shown(&parts.for_nm),
            shown(&parts.for_initscripts)
        );
        reading.warn(&profile.path.clone(), profile.line("PHYSDEV"), message);
    }
    device.id = parts.id;
    device.link = parts.link().cloned();
}

/// Splits options `k=v k=v`; returns those without a word.
fn each_option(options: &str, mut set: impl FnMut(&str, &str) -> bool) -> Vec<String> {
    options
        .split_whitespace()
        .filter(|option| {
            !option
                .split_once('=')
                .is_some_and(|(key, value)| set(key, value))
        })
        .map(str::to_owned)
        .collect()
}

fn leave_rest(profile: &mut Profile, key: &str, rest: &[String]) {
    if rest.is_empty() {
        profile.mapped(key);
    } else {
        profile.unmapped(key, Effect::Behaviour);
    }
}

fn bond_options(profile: &mut Profile, device: &mut Device) {
    if let Some(options) = profile.get("BONDING_OPTS") {
        let rest = each_option(&options, |key, value| {
            bond::set(&mut device.parameters, key, value)
        });
        leave_rest(profile, "BONDING_OPTS", &rest);
    }
    let mut members: Vec<(u32, String)> = profile
        .keys_with("BONDING_SLAVE")
        .into_iter()
        .filter_map(|key| {
            Some((
                key.strip_prefix("BONDING_SLAVE")?
                    .trim_start_matches('_')
                    .parse()
                    .ok()?,
                key,
            ))
        })
        .collect();
    members.sort();
    for (_, key) in members {
        if let Some(member) = profile.take(&key) {
            device.add_member(&member);
        }
    }
}

fn bridge_options(
    reading: &mut Reading<'_>,
    context: &Context,
    profile: &mut Profile,
    device: &mut Device,
) {
    let parameters = &mut device.parameters;
    let stp = profile.take_boolean("STP");
    parameters.insert("stp".into(), stp.unwrap_or(false).into());
    for (key, word) in [
        ("DELAY", "forward-delay"),
        ("PRIO", "priority"),
        ("AGEING", "ageing-time"),
    ] {
        if let Some(value) = profile.get(key)
            && bridge::set_number(parameters, word, &value)
        {
            profile.mapped(key);
        }
    }
    if let Some(options) = profile.get("BRIDGING_OPTS") {
        let initscripts = context.plan.consumer == Consumer::Initscripts;
        let mut inexact = false;
        let rest = each_option(&options, |key, value| {
            let (word, highest) = match key {
                "hello_time" => ("hello-time", 10),
                "max_age" => ("max-age", 40),
                "forward_delay" => ("forward-delay", 30),
                "ageing_time" => ("ageing-time", 1_000_000),
                "priority" => return bridge::set_number(parameters, "priority", value),
                "stp_state" => {
                    parameters.insert("stp".into(), (value == "1").into());
                    return matches!(value, "0" | "1");
                }
                _ => return false,
            };
            let Ok(number) = value.parse::<u32>() else {
                return false;
            };
            // initscripts hand the number to the kernel, which counts in hundredths of a second.
            let seconds = if initscripts || number > highest {
                if !number.is_multiple_of(100) {
                    inexact = true;
                    return false;
                }
                number.checked_div(100).unwrap_or(0)
            } else {
                number
            };
            parameters.insert(word.into(), seconds.into());
            true
        });
        if inexact {
            let message = "a time that is no whole number of seconds";
            reading.warn(
                &profile.path.clone(),
                profile.line("BRIDGING_OPTS"),
                message,
            );
        }
        leave_rest(profile, "BRIDGING_OPTS", &rest);
    }
}

fn tunnel(profile: &mut Profile, device: &mut Device) {
    let kind = profile.get("TYPE").unwrap_or_default().to_ascii_lowercase();
    if profile.has("IPV6TUNNELIPV4") || kind == "sit" {
        device.mode = Some("sit".into());
        device.remote = profile.take("IPV6TUNNELIPV4");
        device.local = profile.take("IPV6TUNNELIPV4LOCAL");
    } else {
        device.mode = Some(if kind.is_empty() { "sit".into() } else { kind });
    }
    // Not a secret here: it tells tunnels apart.
    let is_key = |k: &str| k.parse::<u32>().is_ok() || k.parse::<std::net::Ipv4Addr>().is_ok();
    if let Some(key) = profile.get("KEY").filter(|k| is_key(k)) {
        device.key = Some(key);
        profile.mapped("KEY");
    }
    for (key, slot) in [
        ("PEER_OUTER_IPADDR", &mut device.remote),
        ("MY_OUTER_IPADDR", &mut device.local),
    ] {
        if let Some(value) = profile.take(key) {
            *slot = Some(value);
        }
    }
    if let Some(inner) = profile.get("MY_INNER_IPADDR")
        && let Some((ip, prefix)) = address::with_prefix(&inner)
    {
        device.add_address(ip, prefix.unwrap_or(address::full(ip)));
        profile.mapped("MY_INNER_IPADDR");
    }
    if let Some(ttl) = profile.get("TTL").and_then(|t| t.parse().ok()) {
        device.ttl = Some(ttl);
        profile.mapped("TTL");
    }
    for key in ["PEER_INNER_IPADDR", "IPV6TUNNELIPV4", "TTL"] {
        if profile.has(key) && !(key == "IPV6TUNNELIPV4" || key == "TTL" && device.ttl.is_some()) {
            profile.unmapped(key, Effect::Behaviour);
        }
    }
}

fn wifi(profile: &mut Profile, device: &mut Device) {
    let Some(name) = profile.take("ESSID") else {
        return;
    };
    let name = match name.strip_prefix("0x").map(|hex| {
        let digits: Vec<char> = hex.chars().collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok())
            .collect::<Option<Vec<u8>>>()
    }) {
        Some(Some(bytes)) if !bytes.is_empty() => text(&bytes),
        _ => name,
    };
    let mut point = serde_json::Map::new();
    if let Some(mode) = profile.get("MODE") {
        let mode = match mode.to_ascii_lowercase().as_str() {
            "managed" => Some("infrastructure"),
            "ad-hoc" => Some("adhoc"),
            "ap" => Some("ap"),
            _ => None,
        };
        if let Some(mode) = mode {
            point.insert("mode".into(), mode.into());
            profile.mapped("MODE");
        }
    }
    if let Some(bssid) = profile.get("BSSID").and_then(|b| address::mac(&b)) {
        point.insert("bssid".into(), bssid.into());
        profile.mapped("BSSID");
    }
    if let Some(band) = profile.get("BAND") {
        let band = match band.as_str() {
            "a" => Some("5GHz"),
            "bg" => Some("2.4GHz"),
            _ => None,
        };
        if let Some(band) = band {
            point.insert("band".into(), band.into());
            profile.mapped("BAND");
        }
    }
    if let Some(channel) = take_number(profile, "CHANNEL") {
        point.insert("channel".into(), channel.into());
    }
    device.access_points.insert(name, Value::Object(point));
    for key in ["KEY_MGMT", "SECURITYMODE"] {
        if profile.has(key) {
            profile.unmapped(key, Effect::Behaviour);
        }
    }
}

fn authentication(profile: &mut Profile, device: &mut Device) {
    if profile.keys_with("IEEE_8021X_").is_empty() {
        return;
    }
    profile.rest(Effect::Behaviour);
    if profile
        .get("KEY_MGMT")
        .is_some_and(|k| k.eq_ignore_ascii_case("ieee8021x"))
    {
        device.auth.insert("key-management".into(), "802.1x".into());
        profile.mapped("KEY_MGMT");
    }
    for (key, word) in [
        ("IEEE_8021X_EAP_METHODS", "method"),
        ("IEEE_8021X_IDENTITY", "identity"),
        ("IEEE_8021X_ANON_IDENTITY", "anonymous-identity"),
        ("IEEE_8021X_CA_CERT", "ca-certificate"),
        ("IEEE_8021X_CLIENT_CERT", "client-certificate"),
        ("IEEE_8021X_PRIVATE_KEY", "client-key"),
        ("IEEE_8021X_INNER_AUTH_METHODS", "phase2-auth"),
    ] {
        if let Some(value) = profile.get(key) {
            // The address of a token may hold its PIN.
            if value.contains("pin-value") {
                profile.unmapped(key, Effect::Secret);
                continue;
            }
            let mapped = if word == "method" {
                value
                    .split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_ascii_lowercase()
            } else {
                value.clone()
            };
            if word == "method" && value.split_whitespace().count() > 1 {
                profile.unmapped(key, Effect::Behaviour);
            }
            device.auth.insert(word.into(), mapped.into());
            profile.mapped(key);
        }
    }
}

fn membership(
    reading: &mut Reading<'_>,
    context: &mut Context,
    profile: &mut Profile,
    is_port: bool,
) {
    let id = profile.id.clone();
    for (keys, section) in [
        (["MASTER", "MASTER_UUID"], Section::Bonds),
        (["BRIDGE", "BRIDGE_UUID"], Section::Bridges),
        (["VRF", "VRF_UUID"], Section::Vrfs),
        (["TEAM_MASTER", "TEAM_MASTER_UUID"], Section::Ethernets),
    ] {
        let Some(reference) = keys.iter().find_map(|k| profile.get(k)) else {
            continue;
        };
        let master = context.resolve(&reference).to_owned();
        for key in keys {
            profile.mapped(key);
        }
        if keys[0] == "TEAM_MASTER" {
            context
                .others
                .entry(master.clone())
                .or_insert_with(|| "team".into());
        }
        context.members.push((master.clone(), section, id.clone()));
        if section == Section::Bridges
            && let Some(options) = profile.get("BRIDGING_OPTS")
            && reading.document.section_of(&id) != Some(Section::Bridges)
            && !profile
                .get("TYPE")
                .is_some_and(|t| t.eq_ignore_ascii_case("bridge"))
        {
            let ports = &mut context.port_options;
            let rest = each_option(&options, |key, value| {
                let word = match key {
                    "path_cost" => "path-cost",
                    "priority" => "port-priority",
                    _ => return false,
                };
                let known = value.trim().parse::<u32>().is_ok();
                if known {
                    ports.push((master.clone(), word, id.clone(), value.to_owned()));
                }
                known
            });
            leave_rest(profile, "BRIDGING_OPTS", &rest);
        }
    }
    if is_port && profile.boolean("SLAVE").is_some() {
        profile.implied("SLAVE");
    }
}

/// The IP settings of a member do nothing.
fn dead_addresses(profile: &mut Profile) {
    let none = profile
        .get("BOOTPROTO")
        .is_none_or(|p| matches!(p.to_ascii_lowercase().as_str(), "none" | "static"));
    if none {
        profile.implied("BOOTPROTO");
    }
    for prefix in [
        "IPADDR",
        "PREFIX",
        "NETMASK",
        "NETWORK",
        "BROADCAST",
        "GATEWAY",
        "DNS",
        "DOMAIN",
        "SEARCH",
        "IPV6",
        "DHCP",
        "BOOTPROTO",
        "DEFROUTE",
        "PEER",
    ] {
        for key in profile.keys_with(prefix) {
            if key != "BOOTPROTO" || !none {
                if profile.boolean(&key) == Some(false) && key == "IPV6INIT" {
                    profile.implied(&key);
                } else {
                    profile.unmapped(&key, Effect::None);
                }
            }
        }
    }
}
