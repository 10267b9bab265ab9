//! Options that make sense by themselves: of the device, of bridges, bonds, VLANs and tunnels, and of
//! name resolution.

use std::net::IpAddr;

use serde_json::json;

use super::super::super::address;
use super::super::super::api::Reading;
use super::super::super::ledger::State;
use super::super::super::model::{Device, Effect, Section};
use super::super::{bond, bridge};
use super::device::Decoder;
use super::hooks::HOOKS;
use super::parse::{Opt, Stanza, is_secret};

impl Decoder {
    /// One option that makes sense by itself.
    pub(super) fn option(
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

    /// Bond options on members mostly repeat those of the bond; what the bond itself does not say
    /// counts as well.
    pub(super) fn bond_members(&mut self, reading: &mut Reading<'_>) {
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
