//! `etc/sysconfig/network`: defaults for all interfaces.

use std::net::IpAddr;

use super::super::super::address;
use super::super::super::api::{Reading, text};
use super::super::super::model::{Effect, Hostname, Route};
use super::profile::{Profile, parse_boolean};
use super::{Consumer, Context, Plan};

const PATH: &str = "etc/sysconfig/network";

/// What the file says.
pub struct Global {
    profile: Option<Profile>,
    /// `GATEWAY`.
    pub gateway: Option<IpAddr>,
    /// `GATEWAYDEV`: the only interface with a default route.
    pub gateway_device: Option<String>,
    /// `IPV6_DEFAULTGW`, with the device behind `%`.
    pub gateway6: Option<(IpAddr, Option<String>)>,
    /// `IPV6_DEFAULTDEV`.
    pub gateway6_device: Option<String>,
    /// `IPV6INIT`.
    pub ipv6init: Option<bool>,
    /// `IPV6_AUTOCONF`.
    pub autoconf: Option<bool>,
    /// `IPV6FORWARDING`.
    pub forwarding: Option<bool>,
    /// `NETWORKING=no`.
    pub off: bool,
    /// `NETWORKING_IPV6=no`.
    pub ipv6_off: bool,
}

impl Global {
    /// Reads the file, if it is there.
    pub fn read(reading: &mut Reading<'_>, plan: Plan) -> Self {
        let mut profile = Profile::load(reading, PATH.as_bytes(), plan.dialect());
        let mut global = Self {
            profile: None,
            gateway: None,
            gateway_device: None,
            gateway6: None,
            gateway6_device: None,
            ipv6init: None,
            autoconf: None,
            forwarding: None,
            off: false,
            ipv6_off: false,
        };
        if let Some(profile) = &mut profile {
            profile.id = String::new();
            profile.rest(Effect::Behaviour);
            global.off = profile.boolean("NETWORKING") == Some(false);
            if global.off {
                reading.warn(
                    PATH.as_bytes(),
                    profile.line("NETWORKING"),
                    "the network is off",
                );
                profile.mapped("NETWORKING");
            }
            profile.implied("NETWORKING");
            global.ipv6_off = profile.boolean("NETWORKING_IPV6") == Some(false);
            profile.mapped("NETWORKING_IPV6");
            if let Some(name) = profile.take("HOSTNAME") {
                reading.document.guest.hostname = Some(Hostname {
                    name,
                    source: PATH.into(),
                });
            }
            if let Some(gateway) = profile.get("GATEWAY").and_then(|g| g.parse().ok()) {
                global.gateway = Some(gateway);
            }
            global.gateway_device = profile.take("GATEWAYDEV");
            global.gateway6_device = profile.take("IPV6_DEFAULTDEV");
            global.gateway6 = profile.get("IPV6_DEFAULTGW").and_then(|text| {
                let (ip, device) = match text.split_once('%') {
                    Some((ip, device)) => (ip, Some(device.to_owned())),
                    None => (text.as_str(), None),
                };
                Some((ip.parse().ok()?, device))
            });
            global.ipv6init = profile.take_boolean("IPV6INIT");
            global.autoconf = profile.take_boolean("IPV6_AUTOCONF");
            global.forwarding = profile.take_boolean("IPV6FORWARDING");
            if profile
                .get("VLAN")
                .as_deref()
                .and_then(parse_boolean)
                .is_some()
            {
                profile.unmapped("VLAN", Effect::Behaviour);
            }
        }
        global.profile = profile;
        global
    }

    /// Accounts for every line.
    pub fn account(&self, reading: &mut Reading<'_>) {
        if let Some(profile) = &self.profile {
            profile.account(reading);
        }
    }

    fn mapped(&mut self, key: &str) {
        if let Some(profile) = &mut self.profile {
            profile.mapped(key);
        }
    }
}

/// Gives the global gateways to the interfaces they belong to.
pub fn gateways(reading: &mut Reading<'_>, context: &mut Context, mains: &[Profile]) {
    let ids: Vec<String> = mains.iter().map(|m| m.id.clone()).collect();
    if let Some(gateway) = context.global.gateway {
        let mut targets = Vec::new();
        let wanted = context.global.gateway_device.clone();
        for id in &ids {
            let Some(device) = reading.document.find(id) else {
                continue;
            };
            let has_own = device.routes.iter().any(|r| r.is_default(false));
            let near = device
                .addresses
                .iter()
                .any(|a| address::contains(a.ip, a.prefix, gateway));
            let is_static =
                device.addresses.iter().any(|a| a.ip.is_ipv4()) && device.dhcp4 != Some(true);
            let takes = match (&wanted, context.plan.consumer) {
                (Some(wanted), _) => wanted == id,
                (None, Consumer::Initscripts) => near && !has_own,
                (None, Consumer::NetworkManager) => is_static && !has_own,
            };
            if takes && !targets.contains(id) && !has_own {
                targets.push(id.clone());
            }
        }
        for id in &targets {
            if reading.document.extra(id).defroute4 == Some(false) {
                continue;
            }
            reading.document.extra(id).sources.push(PATH.into());
            if let Some(device) = reading.document.find(id) {
                device.add_route(Route::default_via(gateway));
            }
            context.global.mapped("GATEWAY");
        }
        if targets.is_empty() {
            let message = format!("the gateway {gateway} belongs to no interface");
            reading.warn(PATH.as_bytes(), None, message);
        }
    }
    if let Some((gateway, device)) = context.global.gateway6.clone() {
        let wanted = device.or_else(|| context.global.gateway6_device.clone());
        let mut used = false;
        for id in &ids {
            if wanted.as_ref().is_some_and(|w| w != id) {
                continue;
            }
            let Some(device) = reading.document.find(id) else {
                continue;
            };
            let has_v6 = device.addresses.iter().any(|a| a.ip.is_ipv6());
            if has_v6 && !device.routes.iter().any(|r| r.is_default(true)) {
                device.add_route(Route::default_via(gateway));
                reading.document.extra(id).sources.push(PATH.into());
                used = true;
            }
        }
        if used {
            context.global.mapped("IPV6_DEFAULTGW");
        }
    }
    if context.global.off {
        for id in &ids {
            if reading.document.section_of(id).is_some() {
                reading.document.extra(id).start = Some("off".into());
                if let Some(device) = reading.document.find(id) {
                    device.activation_mode = Some("off".into());
                }
            }
        }
    }
    // A device named that no file describes is worth a word.
    if let Some(wanted) = &context.global.gateway_device
        && !ids.contains(wanted)
    {
        let message = format!("GATEWAYDEV={wanted}: no file describes it");
        reading.warn(text(PATH.as_bytes()).as_bytes(), None, message);
    }
}
