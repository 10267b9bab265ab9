//! Commands in stanzas: what `up` lines add with ip(8) and route(8), and the `down` lines that take
//! it away again.

use super::super::super::api::Reading;
use super::super::super::iproute::{self, Command};
use super::super::super::ledger::State;
use super::super::super::model::{Address, Effect};
use super::device::Decoder;
use super::parse::Opt;

/// Options that are commands.
pub(super) const HOOKS: [&str; 8] = [
    "up",
    "post-up",
    "pre-up",
    "down",
    "pre-down",
    "post-down",
    "if-up",
    "if-down",
];

impl Decoder {
    pub(super) fn hook(&mut self, reading: &mut Reading<'_>, id: &str, option: &Opt) -> State {
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

    /// `down` lines: the mirror of a mapped `up` line belongs to it, everything else is a script.
    pub(super) fn downs(&mut self, reading: &mut Reading<'_>) {
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
