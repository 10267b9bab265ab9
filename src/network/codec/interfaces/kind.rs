//! Which section of the document a device belongs to, from its stanza's method, options and name;
//! what the name of a VLAN says.

use super::super::super::api::Reading;
use super::super::super::model::Section;
use super::parse::Stanza;

/// Where a device goes: a section, or a type the common format has no section for.
pub(super) enum Kind {
    Section(Section),
    Other(String),
}

fn vlan_suffix(name: &str) -> Option<(&str, u32)> {
    let (base, digits) = name.rsplit_once('.')?;
    let id = digits.parse::<u32>().ok().filter(|n| *n < 4096)?;
    (!base.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some((base, id))
}

pub(super) fn kind(stanza: &Stanza, base: &str) -> Kind {
    let has = |name: &str| stanza.options.iter().any(|o| o.name == name);
    let get = |name: &str| {
        stanza
            .options
            .iter()
            .find(|o| o.name == name)
            .map(|o| o.value.as_str())
    };
    let uses = |what: &str| {
        stanza
            .options
            .iter()
            .any(|o| o.name == "use" && o.value == what)
    };
    match stanza.method.as_str() {
        "tunnel" | "v4tunnel" => return Kind::Section(Section::Tunnels),
        "ppp" | "wvdial" => return Kind::Other("ppp".into()),
        "6to4" => return Kind::Other("6to4".into()),
        _ => {}
    }
    if matches!(stanza.family.as_str(), "can" | "ipx") {
        return Kind::Other(stanza.family.clone());
    }
    if has("bridge-ports") || uses("bridge") || get("link-type") == Some("bridge") {
        Kind::Section(Section::Bridges)
    } else if has("ovs-type") {
        Kind::Other("ovs".into())
    } else if !has("bond-master")
        && (has("bond-slaves")
            || has("slaves")
            || has("bond-mode")
            || has("bond-members")
            || uses("bond"))
    {
        Kind::Section(Section::Bonds)
    } else if has("vxlan-id") {
        Kind::Section(Section::Tunnels)
    } else if has("vrf-table") {
        Kind::Section(Section::Vrfs)
    } else if has("vlan-raw-device")
        || has("vlan-id")
        || vlan_suffix(base).is_some()
        || uses("vlan")
    {
        Kind::Section(Section::Vlans)
    } else if has("wpa-ssid") || has("wireless-essid") || has("wpa-conf") {
        Kind::Section(Section::Wifis)
    } else if get("link-type") == Some("dummy")
        || base
            .strip_prefix("dummy")
            .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    {
        Kind::Section(Section::DummyDevices)
    } else {
        Kind::Section(Section::Ethernets)
    }
}

/// Fills a VLAN's id and parent in from its name.
pub(super) fn vlan_name(reading: &mut Reading<'_>, id: &str) {
    let device = reading.document.device(Section::Vlans, id);
    if let Some((base, number)) = vlan_suffix(id) {
        device.id.get_or_insert(number);
        device.link.get_or_insert_with(|| base.to_owned());
    } else if let Some(number) = id.strip_prefix("vlan").and_then(|n| n.parse::<u32>().ok())
        && number < 4096
    {
        device.id.get_or_insert(number);
    }
}
