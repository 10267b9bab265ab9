//! Arguments of `ip route`, `ip rule`, `ip addr` and the old `route`, read without running them.
//!
//! Source: ip-route(8), ip-rule(8), ip-address(8), route(8).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::address::{destination, full, mask, with_prefix};
use super::api::{NetworkFiles, text};
use super::model::{Policy, Route};

/// Names of routing tables.
#[derive(Clone, Debug)]
pub struct Tables(BTreeMap<String, u32>);

impl Default for Tables {
    fn default() -> Self {
        Self(
            [("main", 254), ("local", 255), ("default", 253)]
                .map(|(n, v)| (n.into(), v))
                .into(),
        )
    }
}

impl Tables {
    /// The kernel's own names and those of `etc/iproute2/rt_tables`.
    pub fn load(files: &dyn NetworkFiles) -> Self {
        let mut tables = Self::default();
        for path in ["usr/share/iproute2/rt_tables", "etc/iproute2/rt_tables"] {
            let Ok(bytes) = files.read(path.as_bytes()) else {
                continue;
            };
            for line in text(&bytes).lines().take(4096) {
                let mut words = line.split_whitespace();
                if let (Some(number), Some(name)) = (words.next(), words.next())
                    && let Some(number) = parse_number(number)
                {
                    tables.0.insert(name.to_owned(), number);
                }
            }
        }
        tables
    }

    /// The number of a table given by number or name.
    pub fn number(&self, word: &str) -> Option<u32> {
        parse_number(word).or_else(|| self.0.get(word).copied())
    }
}

/// A decimal or `0x` number.
pub fn parse_number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
        _ if word.starts_with('+') => None,
        _ => word.parse().ok(),
    }
}

/// A route as `ip route add` was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedRoute {
    /// The part netplan has words for.
    pub route: Route,
    /// `dev`.
    pub dev: Option<String>,
    /// Options netplan has no word for.
    pub rest: Vec<String>,
}

const ROUTE_TYPES: [&str; 9] = [
    "unicast",
    "local",
    "broadcast",
    "multicast",
    "throw",
    "unreachable",
    "prohibit",
    "blackhole",
    "nat",
];

/// Options of one argument that netplan has no word for.
const OTHER_OPTIONS: [&str; 18] = [
    "window",
    "cwnd",
    "quickack",
    "rto_min",
    "rtt",
    "rttvar",
    "weight",
    "hoplimit",
    "features",
    "realms",
    "reordering",
    "ssthresh",
    "pref",
    "congctl",
    "proto",
    "protocol",
    "tos",
    "dsfield",
];

/// `to` as the document writes it.
pub fn to_text(ip: IpAddr, prefix: u8) -> String {
    if prefix == 0 && ip.is_unspecified() {
        "default".into()
    } else {
        format!("{ip}/{prefix}")
    }
}

/// Puts the family back where `default` alone would not tell it.
fn settle(route: &mut Route, ipv6: bool) {
    if route.to == "default" && route.via.is_none() {
        route.to = if ipv6 { "::/0" } else { "0.0.0.0/0" }.into();
    }
}

/// The arguments after `ip route add`.
///
/// # Errors
/// What is wrong with them, in words.
pub fn route(words: &[&str], ipv6: bool, tables: &Tables) -> Result<ParsedRoute, String> {
    let mut parsed = ParsedRoute::default();
    let mut to = None;
    let mut v6 = ipv6;
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or_else(|| format!("{word} without a value"))
        };
        let number =
            |text: &str| parse_number(text).ok_or_else(|| format!("{word} {text}: no number"));
        match word {
            "to" | "default" => {
                let text = if word == "to" { value()? } else { word };
                to = Some(if text == "default" || text == "any" || text == "all" {
                    "default".to_owned()
                } else {
                    let (ip, prefix) =
                        destination(text).ok_or_else(|| format!("{text}: no destination"))?;
                    v6 = ip.is_ipv6();
                    to_text(ip, prefix)
                });
            }
            "via" => {
                let mut text = value()?;
                if text == "inet" || text == "inet6" {
                    text = value()?;
                }
                if text != "(null)" {
                    let ip: IpAddr = text
                        .parse()
                        .map_err(|_| format!("via {text}: no address"))?;
                    if !ip.is_unspecified() {
                        parsed.route.via = Some(ip.to_string());
                    }
                }
            }
            "metric" | "preference" | "priority" => parsed.route.metric = Some(number(value()?)?),
            "table" => {
                let text = value()?;
                let table = tables
                    .number(text)
                    .ok_or_else(|| format!("no table {text:?}"))?;
                parsed.route.table = Some(table);
            }
            "src" => {
                let text = value()?;
                let ip: IpAddr = text
                    .parse()
                    .map_err(|_| format!("src {text}: no address"))?;
                parsed.route.from = Some(ip.to_string());
            }
            "scope" => match value()? {
                text @ ("global" | "link" | "host") => parsed.route.scope = Some(text.into()),
                text => parsed.rest.extend([word.to_owned(), text.to_owned()]),
            },
            "mtu" => {
                let mut text = value()?;
                if text == "lock" {
                    parsed.rest.extend(["mtu".into(), "lock".into()]);
                    text = value()?;
                }
                parsed.route.mtu = Some(number(text)?);
            }
            "initcwnd" => parsed.route.congestion_window = Some(number(value()?)?),
            "initrwnd" => parsed.route.advertised_receive_window = Some(number(value()?)?),
            "advmss" => parsed.route.advertised_mss = Some(number(value()?)?),
            "onlink" => parsed.route.on_link = Some(true),
            "dev" | "oif" => parsed.dev = Some(value()?.to_owned()),
            "nexthop" => {
                parsed.rest.push(word.to_owned());
                parsed.rest.extend(words.by_ref().map(str::to_owned));
            }
            _ if OTHER_OPTIONS.contains(&word) => {
                let text = value()?.to_owned();
                parsed.rest.extend([word.to_owned(), text]);
            }
            _ if to.is_none() && parsed.route.kind.is_none() && ROUTE_TYPES.contains(&word) => {
                if word != "unicast" {
                    parsed.route.kind = Some(word.to_owned());
                }
            }
            _ if to.is_none() => {
                let (ip, prefix) =
                    destination(word).ok_or_else(|| format!("{word}: no destination"))?;
                v6 = ip.is_ipv6();
                to = Some(to_text(ip, prefix));
            }
            _ => return Err(format!("{word} is no option of ip route")),
        }
    }
    parsed.route.to = to.ok_or("no destination")?;
    settle(&mut parsed.route, v6);
    Ok(parsed)
}

/// The arguments after `ip rule add`: the rule and the options netplan has no word for.
///
/// # Errors
/// What is wrong with them, in words.
pub fn rule(words: &[&str], ipv6: bool, tables: &Tables) -> Result<(Policy, Vec<String>), String> {
    let mut policy = Policy::default();
    let mut rest = Vec::new();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or_else(|| format!("{word} without a value"))
        };
        let number =
            |text: &str| parse_number(text).ok_or_else(|| format!("{word} {text}: no number"));
        match word {
            "from" | "to" => {
                let text = value()?;
                let net = match text {
                    "all" | "any" | "default" => None,
                    _ => {
                        let (ip, prefix) =
                            destination(text).ok_or_else(|| format!("{text}: no prefix"))?;
                        Some(format!("{ip}/{prefix}"))
                    }
                };
                if word == "from" {
                    policy.from = net;
                } else {
                    policy.to = net;
                }
            }
            "table" | "lookup" => {
                let text = value()?;
                let table = tables
                    .number(text)
                    .ok_or_else(|| format!("no table {text:?}"))?;
                policy.table = Some(table);
            }
            "priority" | "preference" | "pref" | "prio" | "order" => {
                policy.priority = Some(number(value()?)?);
            }
            "fwmark" => {
                let text = value()?;
                let (mark, bits) = text.split_once('/').unwrap_or((text, ""));
                policy.mark = Some(number(mark)?);
                if !bits.is_empty() {
                    rest.extend([word.to_owned(), text.to_owned()]);
                }
            }
            "tos" | "dsfield" => policy.type_of_service = Some(number(value()?)?),
            "iif"
            | "dev"
            | "oif"
            | "uidrange"
            | "ipproto"
            | "sport"
            | "dport"
            | "goto"
            | "realms"
            | "suppress_prefixlength"
            | "suppress_prefixlen"
            | "suppress_ifgroup"
            | "sup_pl"
            | "type"
            | "protocol"
            | "tun_id" => {
                let text = value()?.to_owned();
                rest.extend([word.to_owned(), text]);
            }
            "not" | "l3mdev" | "nop" | "blackhole" | "prohibit" | "unreachable" | "unicast" => {
                rest.push(word.to_owned());
            }
            _ => return Err(format!("{word} is no option of ip rule")),
        }
    }
    if policy == Policy::default() && rest.is_empty() {
        return Err("an empty rule".into());
    }
    // Nothing else would tell the family.
    if ipv6 && policy.from.is_none() && policy.to.is_none() {
        policy.from = Some("::/0".into());
    }
    Ok((policy, rest))
}

/// A hook command whose effect the document has words for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `ip route add`, `route add`.
    Route(ParsedRoute),
    /// `ip rule add`.
    Rule(Policy),
    /// `ip addr add`: address, prefix length, device, label.
    Address(IpAddr, u8, Option<String>, Option<String>),
}

/// Recognises a command of a hook of interface `iface`; `None` for everything else. A command with
/// any shell construct but `|| true` and `$IFACE` is not recognised.
pub fn command(line: &str, iface: &str, tables: &Tables) -> Option<Command> {
    let mut line = line.trim();
    for tail in [
        "|| true",
        "||true",
        "|| :",
        "|| /bin/true",
        "2>/dev/null",
        ">/dev/null 2>&1",
        ";",
    ] {
        line = line.strip_suffix(tail).unwrap_or(line).trim_end();
    }
    let line = ["\"${IFACE}\"", "\"$IFACE\"", "${IFACE}", "$IFACE"]
        .iter()
        .fold(line.to_owned(), |text, variable| {
            text.replace(variable, iface)
        });
    if line.contains([
        '$', '`', '"', '\'', '\\', ';', '|', '&', '<', '>', '(', ')', '*', '?', '\n', '#',
    ]) {
        return None;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, words) = words.split_first()?;
    match program.rsplit('/').next()? {
        "ip" => ip_command(words, tables),
        "route" => route_command(words).map(Command::Route),
        _ => None,
    }
}

fn ip_command(words: &[&str], tables: &Tables) -> Option<Command> {
    let mut ipv6 = false;
    let mut words = words;
    while let Some((first, tail)) = words.split_first() {
        match *first {
            "-6" => ipv6 = true,
            "-4" => ipv6 = false,
            option if option.starts_with('-') => return None,
            _ => break,
        }
        words = tail;
    }
    let [object, action, arguments @ ..] = words else {
        return None;
    };
    match *object {
        "r" | "ro" | "rou" | "rout" | "route"
            if matches!(*action, "add" | "a" | "replace" | "append" | "prepend") =>
        {
            let parsed = route(arguments, ipv6, tables).ok()?;
            parsed.rest.is_empty().then_some(Command::Route(parsed))
        }
        "ru" | "rul" | "rule" if matches!(*action, "add" | "a") => {
            let (policy, rest) = rule(arguments, ipv6, tables).ok()?;
            rest.is_empty().then_some(Command::Rule(policy))
        }
        "a" | "addr" | "address" if matches!(*action, "add" | "a" | "replace") => {
            let mut found = None;
            let (mut dev, mut label) = (None, None);
            let mut words = arguments.iter().copied();
            while let Some(word) = words.next() {
                match word {
                    "dev" => dev = Some(words.next()?.to_owned()),
                    "label" => label = Some(words.next()?.to_owned()),
                    // Restated by the address itself.
                    "brd" | "broadcast" => {
                        words.next()?;
                    }
                    "local" => {}
                    _ if found.is_none() => {
                        let (ip, prefix) = with_prefix(word)?;
                        found = Some((ip, prefix.unwrap_or(full(ip))));
                    }
                    _ => return None,
                }
            }
            let (ip, prefix) = found?;
            Some(Command::Address(ip, prefix, dev, label))
        }
        _ => None,
    }
}

/// `route [-A inet6] add [-net|-host] TARGET …`.
fn route_command(words: &[&str]) -> Option<ParsedRoute> {
    let mut parsed = ParsedRoute::default();
    let (mut ipv6, mut added, mut host, mut target, mut netmask) =
        (false, false, false, None, None);
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "-A" => ipv6 = words.next()? == "inet6",
            "-6" | "--inet6" => ipv6 = true,
            "-4" | "--inet" => ipv6 = false,
            "-n" => {}
            "add" => added = true,
            "-net" if added => {}
            "-host" if added => host = true,
            "netmask" => netmask = Some(mask(words.next()?)?),
            "gw" => parsed.route.via = Some(words.next()?.parse::<IpAddr>().ok()?.to_string()),
            "metric" => parsed.route.metric = Some(parse_number(words.next()?)?),
            "dev" => parsed.dev = Some(words.next()?.to_owned()),
            "reject" => parsed.route.kind = Some("unreachable".into()),
            _ if added && target.is_none() => target = Some(word),
            // A device may stand at the end without `dev`.
            _ if target.is_some() && parsed.dev.is_none() && !word.starts_with('-') => {
                parsed.dev = Some(word.to_owned());
            }
            _ => return None,
        }
    }
    let target = target?;
    if target == "default" {
        parsed.route.to = "default".into();
    } else {
        let (ip, prefix) = match with_prefix(target) {
            Some((ip, Some(prefix))) => (ip, prefix),
            Some((ip, None)) => (ip, netmask.unwrap_or(full(ip))),
            None => {
                let (ip, prefix) = destination(target)?;
                (ip, netmask.unwrap_or(prefix))
            }
        };
        if host && prefix != full(ip) {
            return None;
        }
        ipv6 |= ip.is_ipv6();
        parsed.route.to = to_text(ip, prefix);
    }
    settle(&mut parsed.route, ipv6);
    (added).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(route: &Route) -> String {
        format!(
            "{} via {:?} metric {:?} table {:?}",
            route.to, route.via, route.metric, route.table
        )
    }

    #[test]
    fn routes() {
        let tables = Tables::default();
        for (line, want) in [
            (
                "10.0.0.0/8 via 10.1.1.1",
                "10.0.0.0/8 via Some(\"10.1.1.1\") metric None table None",
            ),
            (
                "via 8.8.8.8 to 1.2.3.4",
                "1.2.3.4/32 via Some(\"8.8.8.8\") metric None table None",
            ),
            (
                "default via (null) table main",
                "0.0.0.0/0 via None metric None table Some(254)",
            ),
            (
                "10/8 dev eth0 metric 0x10",
                "10.0.0.0/8 via None metric Some(16) table None",
            ),
        ] {
            let words: Vec<_> = line.split_whitespace().collect();
            assert_eq!(
                shown(&route(&words, false, &tables).unwrap().route),
                want,
                "{line}"
            );
        }
        for line in [
            "",
            "via",
            "1.2.3.4/8 bogus",
            "x",
            "1.2.3.4 via y",
            "1.2.3.4 table no",
        ] {
            let words: Vec<_> = line.split_whitespace().collect();
            assert!(route(&words, false, &tables).is_err(), "{line}");
        }
    }

    #[test]
    fn commands() {
        let tables = Tables::default();
        let known = |line: &str| command(line, "eth0", &tables);
        for line in [
            "ip route add 10.0.0.0/8 via 10.1.1.1 || true",
            "/sbin/ip -6 route add default via fe80::1 dev $IFACE",
            "route add -net 10.0.0.0 netmask 255.0.0.0 gw 10.1.1.1",
            "route add -host 10.0.0.1 eth1",
            "route -A inet6 add 2001:db8::/32 gw fe80::1",
            "ip addr add 10.0.0.2/24 dev ${IFACE} label $IFACE:1",
            "ip rule add from 10.0.0.0/24 lookup 100 prio 5",
        ] {
            assert!(known(line).is_some(), "{line}");
        }
        for line in [
            "ip route del 10.0.0.0/8",
            "ip route add $NET via 10.0.0.1",
            "ip route add 10.0.0.0/8 via 10.0.0.1; reboot",
            "ip route add 10.0.0.0/8 via 10.0.0.1 && x",
            "ethtool -K eth0 tso off",
            "ip route add 10.0.0.0/8 window 5",
            "ip link set eth0 up",
        ] {
            assert!(known(line).is_none(), "{line}");
        }
    }
}
