//! Addresses, gateways, DHCP, IPv6 modes and DNS of one file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::super::address;
use super::super::super::api::Reading;
use super::super::super::model::{Device, Effect, Overrides, Route};
use super::profile::{Profile, parse_boolean};
use super::{Consumer, Context};

/// Both programs stop at this index.
const MAX_INDEX: u32 = 255;

fn mask_of(profile: &Profile, suffix: &str) -> Option<u8> {
    let prefix = profile
        .get(&format!("PREFIX{suffix}"))
        .and_then(|p| p.parse().ok())
        .filter(|p| *p <= 32);
    prefix.or_else(|| address::mask(&profile.get(&format!("NETMASK{suffix}"))?))
}

/// The numbers behind `name` in the file's variables.
fn numbers(profile: &Profile, name: &str) -> impl Iterator<Item = u32> {
    let digits = name.len();
    profile
        .keys_with(name)
        .into_iter()
        .filter_map(move |key| key.get(digits..)?.parse().ok())
        .filter(|n| *n <= MAX_INDEX)
}

/// The IPv4 addresses of a file, in the order both programs take them. A missing prefix comes from
/// `main` if that is given, else from the address' class.
pub fn addresses(
    reading: &mut Reading<'_>,
    profile: &mut Profile,
    main: Option<&Profile>,
) -> Vec<(IpAddr, u8)> {
    let path = profile.path.clone();
    let mut found = Vec::new();
    let last = numbers(profile, "IPADDR").max();
    let indices = (0..=last.unwrap_or(0)).map(|n| n.to_string());
    let suffixes = std::iter::once(String::new()).chain(indices);
    let mut ended = false;
    for (n, suffix) in suffixes.enumerate() {
        let key = format!("IPADDR{suffix}");
        let Some(value) = profile.get(&key) else {
            // The first one, 0 and 1 may be missing; the first gap behind them ends the list.
            ended |= n > 2;
            continue;
        };
        if ended {
            let message = format!("{key} stands behind a gap in the numbers: not read");
            reading.warn(&path, profile.line(&key), message);
            for name in ["IPADDR", "PREFIX", "NETMASK", "GATEWAY"] {
                let key = format!("{name}{suffix}");
                if profile.has(&key) {
                    profile.unmapped(&key, Effect::None);
                }
            }
            continue;
        }
        let parsed = address::with_prefix(&value).and_then(|(ip, prefix)| match ip {
            IpAddr::V4(ip) => Some((ip, prefix)),
            IpAddr::V6(_) => None,
        });
        let Some((ip, inline)) = parsed else {
            reading.warn(
                &path,
                profile.line(&key),
                format!("{key} is no IPv4 address"),
            );
            profile.unmapped(&key, Effect::Behaviour);
            continue;
        };
        if inline.is_some() {
            let message = format!("{key} with a prefix: only newer programs take it");
            reading.warn(&path, profile.line(&key), message);
        }
        profile.mapped(&key);
        let (prefix_key, mask_key) = (format!("PREFIX{suffix}"), format!("NETMASK{suffix}"));
        let own = mask_of(profile, &suffix);
        for key in [&prefix_key, &mask_key] {
            if own.is_none() && profile.has(key) {
                let message = format!("{key} is no mask");
                reading.warn(&path, profile.line(key), message);
            }
        }
        let prefix = own
            .or(inline)
            .or_else(|| mask_of(main?, ""))
            .unwrap_or_else(|| address::class_prefix(ip));
        if own.is_some() {
            let from_mask = profile.get(&mask_key).and_then(|m| address::mask(&m));
            if profile.get(&prefix_key).and_then(|p| p.parse::<u8>().ok()) == own {
                profile.mapped(&prefix_key);
                match from_mask {
                    Some(mask) if mask != prefix => profile.unmapped(&mask_key, Effect::None),
                    Some(_) => profile.implied(&mask_key),
                    None => {}
                }
            } else {
                profile.mapped(&mask_key);
            }
        }
        let (network, broadcast) = address::network_and_broadcast(ip, prefix);
        for (name, computed) in [("NETWORK", network), ("BROADCAST", broadcast)] {
            let key = format!("{name}{suffix}");
            if profile.get(&key).and_then(|t| t.parse::<Ipv4Addr>().ok()) == Some(computed) {
                profile.implied(&key);
            }
        }
        found.push((IpAddr::V4(ip), prefix));
    }
    found
}

/// Decodes all IP settings of a file into its device.
pub fn decode(
    reading: &mut Reading<'_>,
    context: &Context,
    profile: &mut Profile,
    device: &mut Device,
    aliased: bool,
) {
    ipv4(reading, context, profile, device, aliased);
    ipv6(reading, context, profile, device);
    dns(reading, context, profile, device);
    overrides(profile, device);
}

fn ipv4(
    reading: &mut Reading<'_>,
    context: &Context,
    profile: &mut Profile,
    device: &mut Device,
    aliased: bool,
) {
    let path = profile.path.clone();
    let id = profile.id.clone();
    let protocol = profile.get("BOOTPROTO").map(|p| p.to_ascii_lowercase());
    let found = addresses(reading, profile, None);
    for (ip, prefix) in &found {
        device.add_address(*ip, *prefix);
    }
    if aliased && found.is_empty() {
        // The aliases inherit it.
        profile.mapped("PREFIX");
        profile.mapped("NETMASK");
    }
    // A tunnel's inner address is there already.
    let has_any = device.addresses.iter().any(|a| a.ip.is_ipv4());
    let mut method = if !has_any && !aliased {
        "none"
    } else {
        "static"
    };
    let is_dhcp = matches!(protocol.as_deref(), Some("dhcp" | "bootp"));
    match protocol.as_deref() {
        None => {}
        Some("none" | "static") => {
            device.dhcp4 = Some(false);
            profile.mapped("BOOTPROTO");
        }
        Some(word @ ("dhcp" | "bootp")) => {
            device.dhcp4 = Some(true);
            method = "dhcp";
            profile.mapped("BOOTPROTO");
            if word == "bootp" {
                profile.unmapped("BOOTPROTO", Effect::Behaviour);
            }
            if !found.is_empty() && context.plan.consumer == Consumer::Initscripts {
                reading.warn(&path, profile.line("IPADDR"), "initscripts use DHCP only");
            }
        }
        Some("autoip") => {
            device.link_local = Some(vec!["ipv4".into()]);
            method = "link-local";
            profile.mapped("BOOTPROTO");
        }
        Some("shared") => {
            method = "shared";
            profile.mapped("BOOTPROTO");
        }
        Some("ibft") => {
            reading.warn(
                &path,
                profile.line("BOOTPROTO"),
                "configured by the firmware (iBFT)",
            );
            profile.unmapped("BOOTPROTO", Effect::Behaviour);
        }
        Some(_) => {
            let message = match context.plan.consumer {
                Consumer::Initscripts => "an unknown BOOTPROTO counts as none",
                Consumer::NetworkManager => "an unknown BOOTPROTO: NetworkManager refuses the file",
            };
            reading.warn(&path, profile.line("BOOTPROTO"), message);
            profile.unmapped("BOOTPROTO", Effect::Behaviour);
        }
    }
    if profile
        .get("IPV4_LINK_LOCAL")
        .is_some_and(|v| v.eq_ignore_ascii_case("enabled"))
    {
        device.link_local = Some(vec!["ipv4".into()]);
        profile.mapped("IPV4_LINK_LOCAL");
    }
    reading.document.extra(&id).ipv4_method = Some(method.into());

    let metric_key = if profile.has("IPV4_ROUTE_METRIC") {
        "IPV4_ROUTE_METRIC"
    } else {
        "METRIC"
    };
    let metric = profile.get(metric_key).and_then(|m| m.parse::<u32>().ok());
    let table = profile
        .get("IPV4_ROUTE_TABLE")
        .and_then(|t| context.tables.number(&t))
        .filter(|t| *t != 0);
    // GATEWAYDEV names the only interface with a default route and overrides DEFROUTE.
    let never = match &context.global.gateway_device {
        Some(wanted) => *wanted != id,
        None => profile.boolean("DEFROUTE") == Some(false),
    };
    if profile.boolean("DEFROUTE").is_some() {
        profile.mapped("DEFROUTE");
    }
    let gateway_key = std::iter::once("GATEWAY".to_owned())
        .chain((0..=numbers(profile, "GATEWAY").max().unwrap_or(0)).map(|n| format!("GATEWAY{n}")))
        .find(|key| profile.has(key));
    if never || profile.boolean("DEFROUTE") == Some(false) {
        reading.document.extra(&id).defroute4 = Some(!never);
    }
    if let Some(key) = gateway_key
        && let Some(text) = profile.get(&key)
    {
        match text.parse::<IpAddr>() {
            Ok(via) if via.is_ipv4() && !via.is_unspecified() => {
                if never {
                    profile.unmapped(&key, Effect::Behaviour);
                } else {
                    device.add_route(Route {
                        metric,
                        table,
                        ..Route::default_via(via)
                    });
                    profile.mapped(&key);
                    if metric.is_some() {
                        profile.mapped(metric_key);
                    }
                }
            }
            Ok(via) if via.is_unspecified() => profile.implied(&key),
            _ => {
                reading.warn(
                    &path,
                    profile.line(&key),
                    format!("{key} is no IPv4 address"),
                );
                profile.unmapped(&key, Effect::Behaviour);
            }
        }
    }
    if is_dhcp && metric.is_some() {
        device.dhcp4_overrides.route_metric = metric;
        profile.mapped(metric_key);
    }
}

fn v6_address(text: &str) -> Option<(Ipv6Addr, u8)> {
    match address::with_prefix(text)? {
        (IpAddr::V6(ip), prefix) => Some((ip, prefix.unwrap_or(64))),
        _ => None,
    }
}

fn ipv6(reading: &mut Reading<'_>, context: &Context, profile: &mut Profile, device: &mut Device) {
    let id = profile.id.clone();
    let path = profile.path.clone();
    let nm = context.plan.consumer == Consumer::NetworkManager;
    let set = |reading: &mut Reading<'_>, method: &str| {
        reading.document.extra(&id).ipv6_method = Some(method.into());
    };
    if profile.boolean("IPV6_DISABLED") == Some(true) {
        profile.mapped("IPV6_DISABLED");
        device.link_local = Some(device.link_local.take().unwrap_or_default());
        device.accept_ra = Some(false);
        dead(profile);
        profile.implied("IPV6INIT");
        set(reading, "disabled");
        return;
    }
    let own = profile.boolean("IPV6INIT");
    let init = own
        .or(context.global.ipv6init)
        .or(context.global.ipv6_off.then_some(false));
    if own.is_some() {
        profile.mapped("IPV6INIT");
    }
    let stated = [
        "IPV6ADDR",
        "IPV6ADDR_SECONDARIES",
        "IPV6_AUTOCONF",
        "DHCPV6C",
    ];
    let has_any = stated.iter().any(|k| profile.has(k));
    // Unset, it means yes to initscripts and no to NetworkManager.
    if context.global.ipv6_off || init == Some(false) || (init.is_none() && nm) {
        set(reading, "ignore");
        if has_any && own != Some(false) {
            let message = "IPv6 settings without IPV6INIT=yes are ignored";
            reading.warn(&path, None, message);
        }
        dead(profile);
        return;
    }
    if init.is_none() && !has_any {
        return;
    }
    let mut found = Vec::new();
    if let Some(text) = profile.get("IPV6ADDR") {
        match v6_address(text.split('%').next().unwrap_or_default()) {
            Some(address) => {
                found.push(address);
                profile.mapped("IPV6ADDR");
            }
            None => {
                reading.warn(
                    &path,
                    profile.line("IPV6ADDR"),
                    "IPV6ADDR is no IPv6 address",
                );
                profile.unmapped("IPV6ADDR", Effect::Behaviour);
            }
        }
    }
    if let Some(text) = profile.get("IPV6ADDR_SECONDARIES") {
        profile.mapped("IPV6ADDR_SECONDARIES");
        for word in text.split_whitespace().take(1024) {
            match v6_address(word) {
                Some(address) => found.push(address),
                None => {
                    let line = profile.line("IPV6ADDR_SECONDARIES");
                    reading.warn(&path, line, "an entry is no IPv6 address");
                    profile.unmapped("IPV6ADDR_SECONDARIES", Effect::Behaviour);
                }
            }
        }
    }
    for (ip, prefix) in &found {
        device.add_address(IpAddr::V6(*ip), *prefix);
    }
    let forwarding = profile
        .boolean("IPV6FORWARDING")
        .or(context.global.forwarding)
        .unwrap_or(false);
    if profile.boolean("IPV6FORWARDING").is_some() {
        profile.unmapped("IPV6FORWARDING", Effect::Behaviour);
    }
    let shared = profile
        .get("IPV6_AUTOCONF")
        .is_some_and(|v| v.eq_ignore_ascii_case("shared"));
    let stated_autoconf = profile.boolean("IPV6_AUTOCONF");
    let autoconf = stated_autoconf
        .or(context.global.autoconf)
        .unwrap_or(!forwarding);
    let dhcp = profile.take_boolean("DHCPV6C").unwrap_or(false);
    if shared || stated_autoconf.is_some() {
        profile.mapped("IPV6_AUTOCONF");
    }
    let stateless = profile
        .get("DHCPV6C_OPTIONS")
        .is_some_and(|o| o.split_whitespace().any(|w| w == "-S"));
    if stateless && profile.get("DHCPV6C_OPTIONS").as_deref() == Some("-S") {
        profile.mapped("DHCPV6C_OPTIONS");
    }
    let method = if shared {
        "shared"
    } else if stateless && dhcp {
        device.dhcp6 = Some(true);
        "dhcp-stateless"
    } else if autoconf {
        device.dhcp6 = Some(true);
        if nm || dhcp {
            "auto"
        } else {
            device.accept_ra = Some(true);
            "slaac"
        }
    } else if dhcp {
        device.dhcp6 = Some(true);
        "dhcp"
    } else if found.is_empty() {
        device.link_local = Some(vec!["ipv6".into()]);
        "link-local"
    } else {
        if stated_autoconf == Some(false) {
            device.accept_ra = Some(false);
        }
        "static"
    };
    set(reading, method);
    if let Some(accept) = profile
        .get("IPV6_FORCE_ACCEPT_RA")
        .as_deref()
        .and_then(parse_boolean)
    {
        device.accept_ra = Some(accept);
        profile.mapped("IPV6_FORCE_ACCEPT_RA");
    }
    if let Some(text) = profile.get("IPV6_DEFAULTGW") {
        let via = text
            .split('%')
            .next()
            .unwrap_or_default()
            .parse::<Ipv6Addr>();
        let never = profile.boolean("IPV6_DEFROUTE") == Some(false);
        match via {
            Ok(via) if !never && (!nm || !found.is_empty()) => {
                let metric = profile
                    .get("IPV6_ROUTE_METRIC")
                    .and_then(|m| m.parse().ok());
                if metric.is_some() {
                    profile.mapped("IPV6_ROUTE_METRIC");
                }
                device.add_route(Route {
                    metric,
                    ..Route::default_via(IpAddr::V6(via))
                });
                profile.mapped("IPV6_DEFAULTGW");
            }
            Ok(_) => profile.unmapped("IPV6_DEFAULTGW", Effect::Behaviour),
            Err(_) => {
                reading.warn(&path, profile.line("IPV6_DEFAULTGW"), "no IPv6 address");
                profile.unmapped("IPV6_DEFAULTGW", Effect::Behaviour);
            }
        }
    }
    if let Some(default) = profile.take_boolean("IPV6_DEFROUTE")
        && !default
    {
        reading.document.extra(&id).defroute6 = Some(false);
    }
    if let Some(mtu) = profile.get("IPV6_MTU").and_then(|m| m.parse().ok()) {
        device.ipv6_mtu = Some(mtu);
        profile.mapped("IPV6_MTU");
    }
    if let Some(privacy) = profile.get("IPV6_PRIVACY") {
        let privacy = match privacy.to_ascii_lowercase().as_str() {
            "rfc3041" | "rfc4941" => Some(true),
            word => parse_boolean(word),
        };
        if privacy.is_some() {
            device.ipv6_privacy = privacy;
            profile.mapped("IPV6_PRIVACY");
        }
    }
    if let Some(mode) = profile.get("IPV6_ADDR_GEN_MODE")
        && matches!(mode.as_str(), "eui64" | "stable-privacy")
    {
        device.ipv6_address_generation = Some(mode);
        profile.mapped("IPV6_ADDR_GEN_MODE");
    }
    if let Some(token) = profile.take("IPV6_TOKEN") {
        device.ipv6_address_token = Some(token);
    }
}

/// IPv6 settings that do nothing because IPv6 is not configured.
fn dead(profile: &mut Profile) {
    for key in profile
        .keys_with("IPV6")
        .into_iter()
        .chain(profile.keys_with("DHCPV6"))
    {
        if key.starts_with("IPV6TUNNEL") || matches!(key.as_str(), "IPV6INIT" | "IPV6_DISABLED") {
            continue;
        }
        // What only says no as well adds nothing.
        if profile.boolean(&key) == Some(false) {
            profile.implied(&key);
        } else if profile.has(&key) {
            profile.unmapped(&key, Effect::None);
        }
    }
}

fn dns(reading: &mut Reading<'_>, context: &Context, profile: &mut Profile, device: &mut Device) {
    let nm = context.plan.consumer == Consumer::NetworkManager;
    let path = profile.path.clone();
    for n in 1..=MAX_INDEX {
        let key = format!("DNS{n}");
        let Some(value) = profile.get(&key) else {
            if n == 1 && !nm {
                continue;
            }
            break;
        };
        let (ip, name) = match value.split_once('#') {
            Some((ip, name)) => (ip, Some(name)),
            None => (value.as_str(), None),
        };
        match ip.parse::<IpAddr>() {
            Ok(ip) => {
                device.add_nameserver(&ip.to_string());
                profile.mapped(&key);
                if name.is_some() {
                    profile.unmapped(&key, Effect::Behaviour);
                }
            }
            Err(_) => {
                reading.warn(&path, profile.line(&key), format!("{key} is no address"));
                profile.unmapped(&key, Effect::Behaviour);
            }
        }
    }
    for key in profile.keys_with("DNS") {
        let numbered = key
            .strip_prefix("DNS")
            .is_some_and(|n| n.parse::<u32>().is_ok());
        let shown = profile
            .get(&key)
            .and_then(|v| v.split('#').next()?.parse::<IpAddr>().ok());
        if numbered
            && let Some(ip) = shown
            && !device.nameservers.addresses.contains(&ip.to_string())
        {
            reading.warn(
                &path,
                profile.line(&key),
                format!("{key} stands behind a gap: not read"),
            );
            profile.unmapped(&key, Effect::None);
        }
    }
    let key = if profile.has("DOMAIN") {
        "DOMAIN"
    } else {
        "SEARCH"
    };
    if let Some(domains) = profile.take(key) {
        for domain in domains.split_whitespace().take(256) {
            device.add_search(domain);
        }
    }
    if key == "DOMAIN" && profile.has("SEARCH") {
        profile.unmapped("SEARCH", Effect::None);
    }
    if let Some(domains) = profile.take("IPV6_DOMAIN") {
        for domain in domains.split_whitespace().take(256) {
            device.add_search(domain);
        }
    }
}

fn overrides(profile: &mut Profile, device: &mut Device) {
    let no = |profile: &mut Profile, key: &str| profile.take_boolean(key).filter(|on| !*on);
    let four: &mut Overrides = &mut device.dhcp4_overrides;
    four.use_dns = no(profile, "PEERDNS");
    four.use_routes = no(profile, "PEERROUTES");
    four.send_hostname = no(profile, "DHCP_SEND_HOSTNAME");
    if profile.take_boolean("NO_DHCP_HOSTNAME") == Some(true) {
        four.use_hostname = Some(false);
    }
    let (host, fqdn) = (profile.take("DHCP_HOSTNAME"), profile.take("DHCP_FQDN"));
    if host.is_some() && fqdn.is_some() {
        profile.unmapped("DHCP_HOSTNAME", Effect::None);
    }
    four.hostname = fqdn.or(host);
    let six: &mut Overrides = &mut device.dhcp6_overrides;
    six.use_dns = no(profile, "IPV6_PEERDNS");
    six.use_routes = no(profile, "IPV6_PEERROUTES");
    six.send_hostname = no(profile, "DHCPV6_SEND_HOSTNAME");
    six.hostname = profile.take("DHCPV6_HOSTNAME");
    if device.dhcp6 == Some(true)
        && let Some(metric) = profile
            .get("IPV6_ROUTE_METRIC")
            .and_then(|m| m.parse().ok())
    {
        six.route_metric = Some(metric);
        profile.mapped("IPV6_ROUTE_METRIC");
    }
    if let Some(client) = profile.get("DHCP_CLIENT_ID") {
        let own = device
            .macaddress
            .as_ref()
            .or(device.matching.as_ref().and_then(|m| m.macaddress.as_ref()));
        let text = client.strip_prefix("01:").unwrap_or(&client);
        if client == "mac" || (own.is_some() && address::mac(text).as_ref() == own) {
            device.dhcp_identifier = Some("mac".into());
            profile.mapped("DHCP_CLIENT_ID");
        }
    }
}
