//! Options of bonds: the kernel's names to netplan's.
//!
//! Source: the kernel's `Documentation/networking/bonding.rst`, the netplan reference.

use serde_json::{Map, Value};

const MODES: [&str; 7] = [
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];
const LACP: [&str; 2] = ["slow", "fast"];
const HASH: [&str; 6] = [
    "layer2",
    "layer3+4",
    "layer2+3",
    "encap2+3",
    "encap3+4",
    "vlan+srcmac",
];
const AD_SELECT: [&str; 3] = ["stable", "bandwidth", "count"];
const ARP_VALIDATE: [&str; 4] = ["none", "active", "backup", "all"];
const ARP_ALL: [&str; 2] = ["any", "all"];
const FAIL_OVER: [&str; 3] = ["none", "active", "follow"];
const RESELECT: [&str; 3] = ["always", "better", "failure"];

fn named(value: &str, names: &[&str]) -> Option<Value> {
    let name = match value.parse::<usize>() {
        Ok(number) => *names.get(number)?,
        Err(_) => *names.iter().find(|n| **n == value)?,
    };
    Some(name.into())
}

fn number(value: &str) -> Option<Value> {
    Some(value.parse::<u32>().ok()?.into())
}

/// Puts one option in. `false` if netplan has no word for it or the value makes no sense.
pub fn set(parameters: &mut Map<String, Value>, option: &str, value: &str) -> bool {
    let value = value.trim();
    let first = || value.split([' ', '\t', ',']).next().unwrap_or_default();
    let (key, mapped) = match option.replace('-', "_").as_str() {
        "mode" => ("mode", named(value, &MODES)),
        "miimon" => ("mii-monitor-interval", number(value)),
        "updelay" => ("up-delay", number(value)),
        "downdelay" => ("down-delay", number(value)),
        "lacp_rate" => ("lacp-rate", named(value, &LACP)),
        "xmit_hash_policy" => ("transmit-hash-policy", named(value, &HASH)),
        "ad_select" => ("ad-select", named(value, &AD_SELECT)),
        "min_links" => ("min-links", number(value)),
        "arp_interval" => ("arp-interval", number(value)),
        "arp_ip_target" => {
            let mut targets = Vec::new();
            for target in value.split([',', ' ', '\t']).filter(|t| !t.is_empty()) {
                match target.trim_start_matches('+').parse::<std::net::Ipv4Addr>() {
                    Ok(ip) => targets.push(Value::from(ip.to_string())),
                    Err(_) => return false,
                }
            }
            (
                "arp-ip-targets",
                (!targets.is_empty()).then_some(Value::Array(targets)),
            )
        }
        "arp_validate" => ("arp-validate", named(value, &ARP_VALIDATE)),
        "arp_all_targets" => ("arp-all-targets", named(value, &ARP_ALL)),
        "fail_over_mac" => ("fail-over-mac-policy", named(value, &FAIL_OVER)),
        "num_grat_arp" | "num_unsol_na" => ("gratuitous-arp", number(value)),
        "all_slaves_active" => (
            "all-members-active",
            (value == "0" || value == "1").then(|| (value == "1").into()),
        ),
        "packets_per_slave" => ("packets-per-member", number(value)),
        "primary" => ("primary", (!first().is_empty()).then(|| first().into())),
        "primary_reselect" => ("primary-reselect-policy", named(value, &RESELECT)),
        "resend_igmp" => ("resend-igmp", number(value)),
        "lp_interval" => ("learn-packet-interval", number(value)),
        _ => return false,
    };
    match mapped {
        Some(mapped) => {
            parameters.insert(key.into(), mapped);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        let mut p = Map::new();
        assert!(set(&mut p, "mode", "1") && set(&mut p, "arp_ip_target", "10.0.0.1,10.0.0.2"));
        assert!(set(&mut p, "lacp-rate", "fast"));
        assert!(!set(&mut p, "mode", "7") && !set(&mut p, "use_carrier", "1"));
        let text = Value::Object(p).to_string();
        assert_eq!(
            text,
            r#"{"mode":"active-backup","arp-ip-targets":["10.0.0.1","10.0.0.2"],"lacp-rate":"fast"}"#
        );
    }
}
