//! Routes and rules beside the ifcfg files.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::super::super::address;
use super::super::super::api::{Reading, text};
use super::super::super::iproute::{self, parse_number};
use super::super::super::ledger::{SourceId, State};
use super::super::super::model::{Effect, Route, Unmapped};
use super::super::super::resolver::{Line, lines};
use super::super::assignments::{self, Kind, Value};
use super::profile::{Profile, is_secret, mentions_secret};
use super::{Consumer, Context, DIR, is_ignored, main_of};

/// Reads all of them.
pub fn decode(reading: &mut Reading<'_>, context: &Context, mains: &[Profile]) {
    let names: Vec<String> = reading
        .files()
        .list(DIR.as_bytes())
        .into_iter()
        .map(|e| text(&e.name))
        .filter(|n| !is_ignored(n))
        .collect();
    let with_rules: BTreeSet<&str> = names
        .iter()
        .filter_map(|n| n.strip_prefix("rule-").or_else(|| n.strip_prefix("rule6-")))
        .collect();
    for name in &names {
        let Some((prefix, stem)) = ["route-", "route6-", "rule-", "rule6-"]
            .iter()
            .find_map(|p| Some((*p, name.strip_prefix(p)?)))
            .or_else(|| Some((".route", name.strip_suffix(".route")?)))
        else {
            continue;
        };
        let path = format!("{DIR}/{name}");
        let Some((source, bytes)) = reading.open(path.as_bytes()) else {
            continue;
        };
        let mut file = RouteFile {
            path: &path,
            source,
            id: stem.to_owned(),
            ipv6: prefix.contains('6'),
            effect: Effect::Behaviour,
        };
        let Some(main) = main_of(mains, stem) else {
            reading.warn(
                path.as_bytes(),
                None,
                format!("no file describes {stem}: not applied"),
            );
            file.all_unmapped(reading, &bytes);
            continue;
        };
        file.id = main.id.clone();
        if reading.document.find(&file.id).is_none() {
            file.all_unmapped(reading, &bytes);
            continue;
        }
        let is_rule = prefix.starts_with("rule");
        let nm = context.plan.consumer == Consumer::NetworkManager;
        if nm && !is_rule && with_rules.contains(stem) {
            let message = "NetworkManager ignores it because a rule file exists";
            reading.warn(path.as_bytes(), None, message);
            file.none_of_it(reading, &bytes);
            continue;
        }
        if nm && prefix == ".route" {
            reading.warn(path.as_bytes(), None, "only initscripts read it");
            file.none_of_it(reading, &bytes);
            continue;
        }
        reading.document.extra(&file.id).sources.push(path.clone());
        let key_syntax = !is_rule
            && lines(&bytes).iter().any(|line| {
                line.text
                    .trim_start()
                    .strip_prefix("ADDRESS")
                    .is_some_and(|rest| {
                        let digits = rest.len().saturating_sub(
                            rest.trim_start_matches(|c: char| c.is_ascii_digit()).len(),
                        );
                        digits > 0 && rest.get(digits..).is_some_and(|r| r.starts_with('='))
                    })
            });
        if key_syntax {
            file.key_syntax(reading, context, &bytes, main);
        } else {
            for line in lines(&bytes) {
                file.line(reading, context, line, is_rule, main);
            }
        }
    }
    for (path, ipv6) in [
        ("etc/sysconfig/static-routes", false),
        ("etc/sysconfig/static-routes-ipv6", true),
    ] {
        let Some((source, bytes)) = reading.open(path.as_bytes()) else {
            continue;
        };
        if context.plan.consumer == Consumer::NetworkManager {
            reading.warn(path.as_bytes(), None, "only initscripts read it");
            for line in lines(&bytes) {
                let body = line.text.split('#').next().unwrap_or_default().trim();
                let state = if body.is_empty() {
                    State::Syntax
                } else {
                    other(reading, path, line.number, body, Effect::None);
                    State::Unmapped
                };
                reading.mark(source, line.range, state);
            }
        } else if ipv6 {
            static_routes6(reading, path, source, &bytes);
        } else {
            static_routes(reading, path, source, &bytes);
        }
    }
}

struct RouteFile<'a> {
    path: &'a str,
    source: SourceId,
    id: String,
    ipv6: bool,
    /// What its unmapped lines do.
    effect: Effect,
}

impl RouteFile<'_> {
    fn unmapped(&self, reading: &mut Reading<'_>, line: u32, key: Option<&str>, value: &str) {
        reading.unmapped(Unmapped {
            file: self.path.to_owned(),
            line: Some(line),
            iface: Some(self.id.clone()),
            key: key.map(str::to_owned),
            value: Some(value.to_owned()),
            effect: self.effect,
            redacted: false,
        });
    }

    /// Nobody reads the file.
    fn none_of_it(&mut self, reading: &mut Reading<'_>, bytes: &[u8]) {
        self.effect = Effect::None;
        self.all_unmapped(reading, bytes);
    }

    fn all_unmapped(&self, reading: &mut Reading<'_>, bytes: &[u8]) {
        for line in lines(bytes) {
            let trimmed = line.text.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                reading.mark(self.source, line.range, State::Syntax);
            } else {
                self.unmapped(reading, line.number, None, trimmed);
                reading.mark(self.source, line.range, State::Unmapped);
            }
        }
    }

    fn table(context: &Context, main: &Profile, ipv6: bool) -> Option<u32> {
        let key = if ipv6 {
            "IPV6_ROUTE_TABLE"
        } else {
            "IPV4_ROUTE_TABLE"
        };
        main.get(key)
            .and_then(|t| context.tables.number(&t))
            .filter(|t| *t != 0)
    }

    fn line(
        &self,
        reading: &mut Reading<'_>,
        context: &Context,
        line: Line<'_>,
        is_rule: bool,
        main: &Profile,
    ) {
        let body = line.text.split('#').next().unwrap_or_default().trim();
        if body.is_empty() {
            return reading.mark(self.source, line.range, State::Syntax);
        }
        let words: Vec<&str> = body.split_whitespace().collect();
        let words = match words.as_slice() {
            // `-4` and `-6` may stand before.
            ["-4" | "-6", rest @ ..] => rest,
            all => all,
        };
        let result = if is_rule {
            // A rule without one of its conditions would be another rule.
            iproute::rule(words, self.ipv6, &context.tables).map(|(policy, rest)| {
                if !rest.is_empty() {
                    return vec![body.to_owned()];
                }
                if let Some(device) = reading.document.find(&self.id) {
                    device.add_policy(policy);
                }
                rest
            })
        } else {
            iproute::route(words, self.ipv6, &context.tables).map(|parsed| {
                let mut route = parsed.route;
                route.table = route
                    .table
                    .or_else(|| Self::table(context, main, self.ipv6));
                let target = match parsed.dev {
                    Some(dev) if dev != self.id => {
                        if reading.document.find(&dev).is_none() {
                            let message = format!("a route of {dev}, which no file describes");
                            reading.warn(self.path.as_bytes(), Some(line.number), message);
                            return vec![body.to_owned()];
                        }
                        dev
                    }
                    _ => self.id.clone(),
                };
                if let Some(device) = reading.document.find(&target) {
                    device.add_route(route);
                }
                parsed.rest
            })
        };
        let state = match result {
            Ok(rest) if rest.is_empty() => State::Mapped,
            Ok(rest) => {
                self.unmapped(reading, line.number, None, &rest.join(" "));
                State::Unmapped
            }
            Err(why) => {
                reading.warn(self.path.as_bytes(), Some(line.number), why);
                self.unmapped(reading, line.number, None, body);
                State::Unmapped
            }
        };
        reading.mark(self.source, line.range, state);
    }

    fn key_syntax(
        &self,
        reading: &mut Reading<'_>,
        context: &Context,
        bytes: &[u8],
        main: &Profile,
    ) {
        let statements = assignments::parse(bytes, context.plan.dialect());
        let mut values = std::collections::BTreeMap::new();
        for statement in &statements {
            if let Kind::Assignment {
                key,
                value: Value::Literal(value),
            } = &statement.kind
            {
                values.insert(key.clone(), text(value).trim().to_owned());
            }
        }
        let get = |name: &str, n: u32| values.get(&format!("{name}{n}")).filter(|v| !v.is_empty());
        let mut used = BTreeSet::new();
        let nm = context.plan.consumer == Consumer::NetworkManager;
        if get("ADDRESS", 0).is_none() {
            let message = "ADDRESS0 is missing: the whole file is skipped";
            reading.warn(self.path.as_bytes(), None, message);
        }
        let last = values
            .keys()
            .filter_map(|k| k.strip_prefix("ADDRESS")?.parse::<u32>().ok())
            .max()
            .unwrap_or(0)
            .min(4096);
        let mut gap = false;
        for n in 0..=last {
            let Some(destination) = get("ADDRESS", n) else {
                gap = true;
                continue;
            };
            // Both programs count from 0 and stop at the first number that is missing.
            if gap {
                let message = format!("ADDRESS{n} stands behind a gap: not read");
                reading.warn(self.path.as_bytes(), None, message);
                continue;
            }
            let Ok(ip) = destination.parse::<IpAddr>() else {
                reading.warn(
                    self.path.as_bytes(),
                    None,
                    format!("ADDRESS{n} is no address"),
                );
                continue;
            };
            let prefix = match (ip, get("NETMASK", n)) {
                (IpAddr::V4(_), Some(mask)) => address::mask(mask),
                (IpAddr::V4(ip), None) => Some(default_mask(ip)),
                (IpAddr::V6(_), mask) => {
                    mask.map_or(Some(128), |m| m.parse().ok().filter(|p| *p <= 128))
                }
            };
            let Some(prefix) = prefix else {
                reading.warn(self.path.as_bytes(), None, format!("NETMASK{n} is no mask"));
                continue;
            };
            let mut route = Route {
                to: iproute::to_text(ip, prefix),
                ..Route::default()
            };
            used.extend([format!("ADDRESS{n}"), format!("NETMASK{n}")]);
            if let Some(gateway) = get("GATEWAY", n)
                && let Ok(via) = gateway.parse::<IpAddr>()
            {
                used.insert(format!("GATEWAY{n}"));
                if !via.is_unspecified() {
                    route.via = Some(via.to_string());
                }
            }
            if route.via.is_none() {
                route.scope = Some("link".into());
                if route.to == "default" {
                    route.to = if ip.is_ipv6() { "::/0" } else { "0.0.0.0/0" }.into();
                }
            }
            if let Some(metric) = get("METRIC", n).and_then(|m| parse_number(m)) {
                if nm {
                    used.insert(format!("METRIC{n}"));
                    route.metric = Some(metric);
                } else {
                    let message = format!("initscripts ignore METRIC{n}");
                    reading.warn(self.path.as_bytes(), None, message);
                }
            }
            if let Some(options) = get("OPTIONS", n).filter(|_| nm) {
                let words: Vec<&str> = ["to", destination.as_str()]
                    .into_iter()
                    .chain(options.split_whitespace())
                    .collect();
                if let Ok(parsed) = iproute::route(&words, ip.is_ipv6(), &context.tables)
                    && parsed.rest.is_empty()
                {
                    used.insert(format!("OPTIONS{n}"));
                    let more = parsed.route;
                    route.mtu = more.mtu;
                    route.from = more.from;
                    route.table = more.table;
                    route.on_link = more.on_link;
                    route.kind = more.kind;
                    route.congestion_window = more.congestion_window;
                    route.advertised_receive_window = more.advertised_receive_window;
                    route.advertised_mss = more.advertised_mss;
                    route.scope = more.scope.or(route.scope);
                }
            }
            route.table = route
                .table
                .or_else(|| Self::table(context, main, self.ipv6));
            if let Some(device) = reading.document.find(&self.id) {
                device.add_route(route);
            }
        }
        for statement in statements {
            let raw = text(bytes.get(statement.range.clone()).unwrap_or_default());
            let state = match &statement.kind {
                Kind::Blank => State::Syntax,
                Kind::Assignment {
                    key,
                    value: Value::Literal(_),
                } if used.contains(key) => State::Mapped,
                Kind::Assignment { key, value } => {
                    let shown = match value {
                        Value::Literal(v) | Value::Dynamic(v) | Value::Broken(v) => text(v),
                    };
                    let hidden = is_secret(key) || mentions_secret(&shown);
                    let shown = if hidden { String::new() } else { shown };
                    self.unmapped(reading, statement.line, Some(key), &shown);
                    State::Unmapped
                }
                _ => {
                    self.unmapped(reading, statement.line, None, raw.trim());
                    State::Unmapped
                }
            };
            reading.mark(self.source, statement.range, state);
        }
    }
}

/// Without a mask, both programs take that of the class.
fn default_mask(ip: Ipv4Addr) -> u8 {
    address::class_prefix(ip)
}

fn other(reading: &mut Reading<'_>, path: &str, line: u32, value: &str, effect: Effect) {
    reading.unmapped(Unmapped {
        file: path.to_owned(),
        line: Some(line),
        iface: None,
        key: None,
        value: Some(value.to_owned()),
        effect,
        redacted: false,
    });
}

/// `any net A netmask M gw G`, `DEV host A gw G`.
fn static_routes(reading: &mut Reading<'_>, path: &str, source: SourceId, bytes: &[u8]) {
    for line in lines(bytes) {
        let body = line.text.split('#').next().unwrap_or_default().trim();
        if body.is_empty() {
            reading.mark(source, line.range, State::Syntax);
            continue;
        }
        let words: Vec<&str> = body.split_whitespace().collect();
        let done = words.split_first().and_then(|(dev, rest)| {
            let command = format!(
                "route add {}",
                rest.iter()
                    .map(|w| match *w {
                        "net" => "-net",
                        "host" => "-host",
                        word => word,
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            );
            let tables = iproute::Tables::default();
            let Some(iproute::Command::Route(parsed)) = iproute::command(&command, "", &tables)
            else {
                return None;
            };
            let via: Option<IpAddr> = parsed.route.via.as_ref().and_then(|v| v.parse().ok());
            let target = reading
                .document
                .devices
                .iter()
                .find(|((_, id), device)| {
                    id.0 == *dev
                        || (*dev == "any"
                            && via.is_some_and(|v| {
                                device
                                    .addresses
                                    .iter()
                                    .any(|a| address::contains(a.ip, a.prefix, v))
                            }))
                })
                .map(|((_, id), _)| id.0.clone())?;
            reading.document.find(&target)?.add_route(parsed.route);
            reading.document.extra(&target).sources.push(path.into());
            Some(())
        });
        if done.is_some() {
            reading.mark(source, line.range, State::Mapped);
        } else {
            other(reading, path, line.number, body, Effect::Behaviour);
            reading.mark(source, line.range, State::Unmapped);
        }
    }
}

/// `DEV NET GATEWAY`.
fn static_routes6(reading: &mut Reading<'_>, path: &str, source: SourceId, bytes: &[u8]) {
    for line in lines(bytes) {
        let body = line.text.split('#').next().unwrap_or_default().trim();
        if body.is_empty() {
            reading.mark(source, line.range, State::Syntax);
            continue;
        }
        let words: Vec<&str> = body.split_whitespace().collect();
        let done = match words.as_slice() {
            [dev, net, rest @ ..] if rest.len() < 2 => address::destination(net)
                .filter(|(ip, _)| ip.is_ipv6())
                .and_then(|(ip, prefix)| {
                    let via = match rest {
                        [via] => Some(via.parse::<IpAddr>().ok()?.to_string()),
                        _ => None,
                    };
                    let to = if prefix == 0 && via.is_none() {
                        "::/0".into()
                    } else {
                        iproute::to_text(ip, prefix)
                    };
                    reading.document.find(dev)?.add_route(Route {
                        to,
                        via,
                        ..Route::default()
                    });
                    reading.document.extra(dev).sources.push(path.into());
                    Some(())
                }),
            _ => None,
        };
        if done.is_some() {
            reading.mark(source, line.range, State::Mapped);
        } else {
            other(reading, path, line.number, body, Effect::Behaviour);
            reading.mark(source, line.range, State::Unmapped);
        }
    }
}
