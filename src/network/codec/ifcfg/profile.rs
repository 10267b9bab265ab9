//! One file of variables, and what became of each line.

use std::collections::BTreeMap;

use super::super::super::api::{Reading, text};
use super::super::super::ledger::{SourceId, State};
use super::super::super::model::{Effect, Unmapped};
use super::super::assignments::{self, Dialect, Kind, Statement, Value};

/// What a decoder did with a variable.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    mapped: bool,
    implied: bool,
    unmapped: Option<Effect>,
}

/// One ifcfg file or one of its companions.
pub struct Profile {
    /// Path of the file.
    pub path: Vec<u8>,
    /// The name behind `ifcfg-`.
    pub stem: String,
    /// The device id it describes.
    pub id: String,
    /// Whether nothing of it may be shown.
    pub secret: bool,
    source: SourceId,
    statements: Vec<Statement>,
    /// The statement that counts for each variable: its last assignment.
    effective: BTreeMap<String, usize>,
    marks: BTreeMap<String, Mark>,
    rest: Option<Effect>,
    /// Whether nobody reads the file.
    dead: bool,
    dialect: Dialect,
    /// Bytes behind an open quote of a secret: whatever they are, they may be its rest.
    tainted: Vec<std::ops::Range<usize>>,
}

/// The bytes secrets' open quotes may run over: to the next quote of their kind, or to the end.
/// In order, without overlap.
fn tainted(bytes: &[u8], statements: &[Statement]) -> Vec<std::ops::Range<usize>> {
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    let mut done = 0;
    for statement in statements {
        let start = statement.range.end;
        if start <= done {
            continue;
        }
        let own = bytes.get(statement.range.clone()).unwrap_or_default();
        let count = |quote: u8| own.iter().filter(|b| **b == quote).count();
        // Which of the quotes are open is not worth telling apart: rather too much is hidden.
        let open = |quote: u8| match &statement.kind {
            Kind::Assignment {
                key,
                value: Value::Broken(_),
            } => count(quote) > 0 && is_secret(key),
            Kind::Command(raw) => {
                let odd = count(quote) % 2 == 1 || count(b'\\') > 0 && count(quote) > 0;
                odd && mentions_secret(&text(raw))
            }
            _ => false,
        };
        let behind = bytes.get(start..).unwrap_or_default();
        let end_of = |quote: u8| {
            let mut escaped = false;
            let len = behind.iter().position(|b| {
                let closes = *b == quote && !escaped;
                escaped = *b == b'\\' && !escaped;
                closes
            });
            len.map_or(bytes.len(), |n| start.saturating_add(n).saturating_add(1))
        };
        let ends = [b'"', b'\''].into_iter().filter(|q| open(*q)).map(end_of);
        let Some(end) = ends.max() else {
            continue;
        };
        done = end;
        ranges.push(start..done);
    }
    ranges
}

impl Profile {
    /// Reads and parses a file.
    pub fn load(reading: &mut Reading<'_>, path: &[u8], dialect: Dialect) -> Option<Self> {
        let (source, bytes) = reading.open(path)?;
        let statements = assignments::parse(&bytes, dialect);
        let mut effective = BTreeMap::new();
        for (n, statement) in statements.iter().enumerate() {
            match &statement.kind {
                Kind::Assignment { key, .. } => {
                    effective.insert(key.clone(), n);
                }
                Kind::Unset(key) => {
                    effective.remove(key);
                }
                // A value NetworkManager cannot read unsets the variable.
                Kind::Command(raw) if dialect == Dialect::LineByLine => {
                    let name = raw.split(|b| *b == b'=').next().unwrap_or_default();
                    effective.remove(&text(name));
                }
                _ => {}
            }
        }
        if statements.iter().any(|s| s.carriage_return) {
            reading.warn(
                path,
                None,
                "lines end in CR LF: a shell would keep the CR in the values",
            );
        }
        let name = text(path.rsplit(|b| *b == b'/').next().unwrap_or_default());
        let stem = name.strip_prefix("ifcfg-").unwrap_or(&name).to_owned();
        Some(Self {
            path: path.to_vec(),
            id: stem.clone(),
            stem,
            secret: false,
            source,
            effective,
            marks: BTreeMap::new(),
            rest: None,
            dead: false,
            dialect,
            tainted: tainted(&bytes, &statements),
            statements,
        })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        match &self.statements.get(*self.effective.get(key)?)?.kind {
            Kind::Assignment { value, .. } => Some(value),
            _ => None,
        }
    }

    /// The value of a variable: `None` if it is unset, empty, or not known without running code.
    /// White space around it is taken off.
    pub fn get(&self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::Literal(bytes) => {
                let value = text(bytes).trim().to_owned();
                (!value.is_empty()).then_some(value)
            }
            _ => None,
        }
    }

    /// Whether a variable has a value, known or not.
    pub fn has(&self, key: &str) -> bool {
        match self.value(key) {
            Some(Value::Literal(bytes)) => !bytes.trim_ascii().is_empty(),
            Some(Value::Dynamic(_)) => true,
            _ => false,
        }
    }

    /// Whether a variable is assigned at all, empty included.
    pub fn states(&self, key: &str) -> bool {
        matches!(self.value(key), Some(Value::Literal(_)))
    }

    /// A boolean; other words count as unset.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        parse_boolean(&self.get(key)?)
    }

    /// The line a variable's value stands on.
    pub fn line(&self, key: &str) -> Option<u32> {
        Some(self.statements.get(*self.effective.get(key)?)?.line)
    }

    /// The value, accounted for as mapped.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let value = self.get(key)?;
        self.mapped(key);
        Some(value)
    }

    /// The boolean, accounted for as mapped.
    pub fn take_boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.boolean(key)?;
        self.mapped(key);
        Some(value)
    }

    /// Notes that a variable produced a key of the document.
    pub fn mapped(&mut self, key: &str) {
        self.marks.entry(key.to_owned()).or_default().mapped = true;
    }

    /// Notes that a variable restates something.
    pub fn implied(&mut self, key: &str) {
        self.marks.entry(key.to_owned()).or_default().implied = true;
    }

    /// Lists a variable under `guest.unmapped`, even if it was mapped in part.
    pub fn unmapped(&mut self, key: &str, effect: Effect) {
        self.marks.entry(key.to_owned()).or_default().unmapped = Some(effect);
    }

    /// Takes back what was noted and lists every variable as unmapped.
    pub fn all_unmapped(&mut self, effect: Effect) {
        self.marks.clear();
        self.dead = effect == Effect::None;
        self.rest = Some(effect);
    }

    /// The effect of unmapped variables that are not known better.
    pub fn rest(&mut self, effect: Effect) {
        self.rest = Some(effect);
    }

    /// Names of all variables that count, with a prefix.
    pub fn keys_with(&self, prefix: &str) -> Vec<String> {
        self.effective
            .keys()
            .filter(|k| k.starts_with(prefix))
            .cloned()
            .collect()
    }

    fn effect_of(&self, key: &str) -> Effect {
        if self.secret || is_secret(key) {
            return Effect::Secret;
        }
        if self.dead {
            return Effect::None;
        }
        match known_effect(key) {
            Effect::Unknown if self.rest.is_some() => self.rest.unwrap_or(Effect::Unknown),
            known => known,
        }
    }

    fn entry(&self, line: u32, key: Option<&str>, value: &[u8], effect: Effect) -> Unmapped {
        Unmapped {
            file: text(&self.path),
            line: Some(line),
            iface: (!self.id.is_empty()).then(|| self.id.clone()),
            key: key.map(str::to_owned),
            value: Some(text(value)),
            effect,
            redacted: false,
        }
    }

    /// Accounts for every line.
    pub fn account(&self, reading: &mut Reading<'_>) {
        for (n, statement) in self.statements.iter().enumerate() {
            let line = statement.line;
            let at = statement.range.start;
            let before = self.tainted.partition_point(|t| t.end <= at);
            let may_be_secret = self.tainted.get(before).is_some_and(|t| t.contains(&at));
            let taken = match &statement.kind {
                Kind::Assignment { key, .. } => self.marks.get(key).is_some_and(|m| m.mapped),
                _ => false,
            };
            if may_be_secret && !taken && statement.kind != Kind::Blank {
                reading.unmapped(self.entry(line, None, b"", Effect::Secret));
                reading.mark(self.source, statement.range.clone(), State::Unmapped);
                continue;
            }
            let state = match &statement.kind {
                Kind::Blank => State::Syntax,
                Kind::Unset(_) => State::Implied,
                Kind::Lost(_) => {
                    let message = "a byte order mark: the first line is lost";
                    reading.warn(&self.path, Some(line), message);
                    State::Rejected
                }
                Kind::Command(raw) => {
                    let name = raw.split(|b| *b == b'=').next().unwrap_or_default();
                    let looks_like_one = name.len() < raw.len()
                        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
                    let key = looks_like_one.then(|| text(name));
                    let secret = self.secret
                        || key.as_deref().is_some_and(is_secret)
                        || mentions_secret(&text(raw));
                    let effect = if secret {
                        Effect::Secret
                    } else {
                        Effect::Script
                    };
                    reading.unmapped(self.entry(line, key.as_deref(), raw, effect));
                    let message = match self.dialect {
                        Dialect::LineByLine => "no assignment: NetworkManager drops the line",
                        Dialect::Shell => "a command, not run",
                    };
                    reading.warn(&self.path, Some(line), message);
                    State::Unmapped
                }
                Kind::Assignment { key, value } => self.assignment(reading, n, line, key, value),
            };
            reading.mark(self.source, statement.range.clone(), state);
        }
    }

    fn assignment(
        &self,
        reading: &mut Reading<'_>,
        n: usize,
        line: u32,
        key: &str,
        value: &Value,
    ) -> State {
        if self.effective.get(key) != Some(&n) {
            let what = if self.effective.contains_key(key) {
                "set again"
            } else {
                "unset"
            };
            reading.warn(
                &self.path,
                Some(line),
                format!("{key} is {what} further down"),
            );
            return State::Rejected;
        }
        let mark = self.marks.get(key).copied().unwrap_or_default();
        match value {
            Value::Broken(_) => {
                let last = self.statements.len().saturating_sub(1) == n;
                let lost = if last && self.dialect == Dialect::Shell {
                    "it and what follows are lost"
                } else {
                    "it is unset"
                };
                let message = format!("{key}: an open quote or a stray operator, so {lost}");
                reading.warn(&self.path, Some(line), message);
                State::Rejected
            }
            Value::Dynamic(raw) => {
                let runs = raw.contains(&b'`') || raw.windows(2).any(|w| w == b"$(");
                let effect = match self.effect_of(key) {
                    Effect::Secret => Effect::Secret,
                    _ if runs => Effect::Script,
                    Effect::Unknown | Effect::Cosmetic | Effect::None => Effect::Script,
                    known => known,
                };
                reading.unmapped(self.entry(line, Some(key), raw, effect));
                reading.warn(
                    &self.path,
                    Some(line),
                    format!("{key} depends on code that is not run"),
                );
                State::Unmapped
            }
            Value::Literal(bytes) => {
                let explicit = mark.unmapped;
                if mark.mapped && explicit.is_none() {
                    return State::Mapped;
                }
                if mark.implied && explicit.is_none() {
                    return State::Implied;
                }
                // An empty variable is an unset one.
                if bytes.trim_ascii().is_empty() && explicit.is_none() {
                    return State::Implied;
                }
                let effect = match explicit {
                    Some(_) if self.secret || is_secret(key) => Effect::Secret,
                    Some(effect) => effect,
                    None => self.effect_of(key),
                };
                reading.unmapped(self.entry(line, Some(key), bytes, effect));
                State::Unmapped
            }
        }
    }
}

/// yes/true/t/y/1 and no/false/f/n/0, in any case.
pub fn parse_boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" | "t" | "y" | "1" | "on" => Some(true),
        "no" | "false" | "f" | "n" | "0" | "off" => Some(false),
        _ => None,
    }
}

/// Variables whose value is a secret.
pub fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_uppercase();
    if matches!(key.as_str(), "KEY_MGMT" | "KEY_TYPE") || key.ends_with("_FLAGS") {
        return false;
    }
    key.contains("PASSWORD")
        || key.contains("PASSPHRASE")
        || key.ends_with("PSK")
        || key.ends_with("_PIN")
        || key == "PASS"
        || key.ends_with("_PASS")
        || key.ends_with("_CAK")
        // Keys of IPsec: KEY_ESP_IN, KEY_AH, …
        || key.starts_with("KEY_")
        || key == "KEY"
        || key
            .strip_prefix("KEY")
            .is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()))
        || key.contains("SECRET")
        || key.contains("PRIVATE_KEY_PASS")
        || key == "IEEE_8021X_PAC_FILE_PASS"
}

/// Whether a line of code looks as if it held a secret.
pub fn mentions_secret(line: &str) -> bool {
    let names = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    if names.into_iter().any(is_secret) {
        return true;
    }
    let line = line.to_ascii_lowercase();
    [
        "passw",
        "passphrase",
        "psk",
        "secret",
        "shared-key",
        "private-key",
        "private_key",
        "iwconfig",
        "wep",
        "xfrm",
        "macsec",
        "token",
        "credential",
        "apikey",
        "pin-value",
    ]
    .iter()
    .any(|word| line.contains(word))
}

/// What a variable without a word in the common format does.
fn known_effect(key: &str) -> Effect {
    const NONE: [&str; 12] = [
        "NAME",
        "UUID",
        "STABLE_ID",
        "USERCTL",
        "PEERNTP",
        "LAST_CONNECT",
        "SECONDARY_UUIDS",
        "USERS",
        "NM_CONTROLLED",
        "NETWORKMANAGER",
        "CONNECTION_UUID",
        "ONPARENT",
    ];
    const BEHAVIOUR: [&str; 97] = [
        "HOTPLUG",
        "METRIC",
        "DEFROUTE",
        "RES_OPTIONS",
        "IPV4_DNS_PRIORITY",
        "DHCP_CLIENT_ID",
        "DHCP_VENDOR_CLASS_IDENTIFIER",
        "IPV4_DHCP_TIMEOUT",
        "DHCLIENTARGS",
        "PERSISTENT_DHCLIENT",
        "DHCPRELEASE",
        "DHCP_HOSTNAME_FLAGS",
        "DHCP_IAID",
        "DHCP_REJECT_SERVERS",
        "IPV4_FAILURE_FATAL",
        "IPV6_FAILURE_FATAL",
        "ARPUPDATE",
        "ARPING_WAIT",
        "ACD_TIMEOUT",
        "LINKDELAY",
        "LINKSTATUS",
        "SRCADDR",
        "SCOPE",
        "WINDOW",
        "EXTRA_ROUTE_OPTS",
        "NOZEROCONF",
        "IPV4_ROUTE_TABLE",
        "IPV6_ROUTE_TABLE",
        "IPV4_LINK_LOCAL",
        "HWADDR_BLACKLIST",
        "GENERATE_MAC_ADDRESS_MASK",
        "SUBCHANNELS",
        "NETTYPE",
        "PORTNAME",
        "CTCPROT",
        "OPTIONS",
        "ETHTOOL_OPTS",
        "ETHTOOL_DELAY",
        "ARP",
        "PROMISC",
        "ALLMULTI",
        "LLDP",
        "ZONE",
        "CONNECTION_METERED",
        "MDNS",
        "LLMNR",
        "DNS_OVER_TLS",
        "DEVTIMEOUT",
        "IPV6_SET_SYSCTLS",
        "IPV6_PRIVACY_PREFER_PUBLIC_IP",
        "DHCPV6_DUID",
        "DHCPV6_IAID",
        "DHCPV6_PD_HINT",
        "IPV6_RA_TIMEOUT",
        "IPV6_DNS_PRIORITY",
        "IPV6_RES_OPTIONS",
        "REORDER_HDR",
        "GVRP",
        "MVRP",
        "VLAN_FLAGS",
        "VLAN_PROTOCOL",
        "BRIDGE_VLANS",
        "BRIDGE_PORT_VLANS",
        "BOND_PORT_QUEUE_ID",
        "BOND_PORT_PRIO",
        "MULTI_CONNECT",
        "IPV6_ADDR_GEN_MODE",
        "IPV4_ROUTE_METRIC",
        "IPV6_ROUTE_METRIC",
        "DHCPV6C_OPTIONS",
        "DEVICE",
        "ONBOOT",
        "BOOTPROTO",
        "HWADDR",
        "MACADDR",
        "MTU",
        "PREFIX",
        "NETMASK",
        "IPADDR",
        "VLAN",
        "VLAN_ID",
        "VID",
        "PHYSDEV",
        "STP",
        "DELAY",
        "PRIO",
        "AGEING",
        "BRIDGING_OPTS",
        "BONDING_OPTS",
        "TEAM_CONFIG",
        "TEAM_PORT_CONFIG",
        "DHCPV6C",
        "DOMAIN",
        "SEARCH",
        "MODE",
        "BAND",
        "CHANNEL",
    ];
    const PREFIXES: [&str; 16] = [
        "ARPCHECK",
        "AUTOCONNECT_",
        "PROXY_",
        "NM_USER_",
        "IPV6TO4",
        "VLAN_INGRESS",
        "VLAN_EGRESS",
        "SRIOV_VF",
        "QDISC",
        "FILTER",
        "DCB_",
        "FCOE",
        "BROADCAST",
        "NETWORK",
        "GATEWAY",
        "IPV6_",
    ];
    if key.ends_with("_SCRIPT") {
        Effect::Script
    } else if NONE.contains(&key) {
        Effect::None
    } else if BEHAVIOUR.contains(&key) || PREFIXES.iter().any(|p| key.starts_with(p)) {
        Effect::Behaviour
    } else {
        Effect::Unknown
    }
}
