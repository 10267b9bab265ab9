//! A stanza's method, addresses, netmask and gateways.

use std::net::IpAddr;

use super::super::super::address;
use super::super::super::api::Reading;
use super::super::super::ledger::State;
use super::super::super::model::{Address, Effect, Route, Section};
use super::Flavour;
use super::device::Decoder;
use super::parse::{Opt, Stanza, unmapped};

/// The IP options of one stanza, gathered before they make sense together.
#[derive(Default)]
pub(super) struct Ip<'a> {
    pub(super) addresses: Vec<&'a Opt>,
    pub(super) netmask: Option<&'a Opt>,
    pub(super) gateways: Vec<&'a Opt>,
    pub(super) metric: Option<&'a Opt>,
    pub(super) broadcast: Vec<&'a Opt>,
    pub(super) lifetime: Option<&'a Opt>,
    pub(super) peer: Option<&'a Opt>,
}

impl Decoder {
    pub(super) fn method(
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

    pub(super) fn addresses(
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
}
