//! What must hold in every document's `network` part for netplan to take it.

/// What netplan refuses a file for: one id in two sections, a member or parent nobody defines, a VLAN
/// without id or parent, members of what can have none.
pub fn check_netplan(document: &serde_json::Value) {
    let network = document["network"].as_object().expect("network");
    let mut ids = std::collections::BTreeMap::new();
    for (section, devices) in network.iter().filter(|(key, _)| *key != "version") {
        for id in devices.as_object().expect("devices").keys() {
            assert_eq!(ids.insert(id, section), None, "{id} in two sections");
        }
    }
    let others = document["guest"]["devices"].as_object().expect("devices");
    for (id, section) in &ids {
        let device = &network[*section][*id];
        let mut named: Vec<&str> = device["interfaces"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str())
            .collect();
        let may_have = matches!(section.as_str(), "bonds" | "bridges" | "vrfs");
        assert!(may_have || named.is_empty(), "{id} has members");
        if *section == "vlans" {
            assert!(device["id"].is_u64(), "{id}");
            named.push(device["link"].as_str().expect("link"));
        }
        for name in named {
            let known = ids.contains_key(&name.to_owned()) || others.contains_key(name);
            assert!(known, "{name} of {id}");
        }
    }
}
