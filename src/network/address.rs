//! Addresses, prefixes and MACs in canonical form.

use std::net::{IpAddr, Ipv4Addr};

/// A dotted or numeric IPv4 mask as a prefix length; `None` if it has holes.
pub fn mask(text: &str) -> Option<u8> {
    if let Ok(prefix) = text.parse::<u8>() {
        return (prefix <= 32).then_some(prefix);
    }
    let bits = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let ones = u8::try_from(bits.leading_ones()).ok()?;
    (bits.count_ones() == u32::from(ones)).then_some(ones)
}

/// The prefix length of an address' class (RFC 791): what tools assume when no mask is given.
pub fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192..224 => 24,
        _ => 32,
    }
}

/// The prefix length of a whole address of the family.
pub fn full(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// `ADDR` or `ADDR/PREFIX`, where the prefix of an IPv4 address may be a dotted mask.
pub fn with_prefix(text: &str) -> Option<(IpAddr, Option<u8>)> {
    let (ip, prefix) = match text.split_once('/') {
        None => return Some((text.parse().ok()?, None)),
        Some((ip, prefix)) => (ip.parse::<IpAddr>().ok()?, prefix),
    };
    let prefix = match ip {
        IpAddr::V4(_) => mask(prefix)?,
        IpAddr::V6(_) => prefix.parse().ok().filter(|p| *p <= 128)?,
    };
    Some((ip, Some(prefix)))
}

/// A destination of `ip route`: an address, a prefix, or a shortened IPv4 prefix (`10/8`, `10.1`).
pub fn destination(text: &str) -> Option<(IpAddr, u8)> {
    if let Some((ip, prefix)) = with_prefix(text) {
        return Some((ip, prefix.unwrap_or(full(ip))));
    }
    let (short, prefix) = match text.split_once('/') {
        Some((short, prefix)) => (short, Some(mask(prefix)?)),
        None => (text, None),
    };
    let mut octets = [0u8; 4];
    let mut count = 0u8;
    let mut slots = octets.iter_mut();
    for part in short.split('.') {
        *slots.next()? = part.parse().ok()?;
        count = count.saturating_add(1);
    }
    let prefix = prefix.unwrap_or(count.saturating_mul(8));
    Some((IpAddr::V4(octets.into()), prefix))
}

/// The numbers of an address, of its mask, and the width.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

/// Whether `other` lies in the network of `ip` with `prefix`.
pub fn contains(ip: IpAddr, prefix: u8, other: IpAddr) -> bool {
    let ((a, width), (b, other_width)) = (bits(ip), bits(other));
    let host_bits = width.saturating_sub(u32::from(prefix));
    width == other_width && (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
}

/// Network and broadcast address of an IPv4 prefix.
pub fn network_and_broadcast(ip: Ipv4Addr, prefix: u8) -> (Ipv4Addr, Ipv4Addr) {
    let net_mask = u32::MAX
        .checked_shl(32u32.saturating_sub(u32::from(prefix)))
        .unwrap_or(0);
    let bits = u32::from(ip);
    ((bits & net_mask).into(), (bits | !net_mask).into())
}

/// A MAC of 6 bytes (Ethernet), 8 (FireWire) or 20 (InfiniBand), colons or dashes between, in lower
/// case with colons.
pub fn mac(text: &str) -> Option<String> {
    let text = text.trim();
    let separator = if text.contains(':') { ':' } else { '-' };
    let mut groups = Vec::new();
    for group in text.split(separator) {
        if group.is_empty() || group.len() > 2 {
            return None;
        }
        groups.push(format!("{:02x}", u8::from_str_radix(group, 16).ok()?));
    }
    // `from_str_radix` takes a sign, which `+1` would smuggle in.
    (matches!(groups.len(), 6 | 8 | 20) && !text.contains('+')).then(|| groups.join(":"))
}

/// Whether a text can be the name of a network device: what the kernel's `dev_valid_name` takes,
/// longer ones included.
pub fn is_device_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        for (text, want) in [
            ("255.255.255.0", Some(24)),
            ("0.0.0.0", Some(0)),
            ("24", Some(24)),
            ("255.0.255.0", None),
            ("33", None),
            ("", None),
        ] {
            assert_eq!(mask(text), want, "{text}");
        }
    }

    #[test]
    fn destinations() {
        for (text, want) in [
            ("10/8", "10.0.0.0/8"),
            ("10.1", "10.1.0.0/16"),
            ("0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("2001:DB8::/32", "2001:db8::/32"),
        ] {
            let (ip, prefix) = destination(text).unwrap();
            assert_eq!(format!("{ip}/{prefix}"), want);
        }
        assert_eq!(destination("1.2.3.4.5"), None);
        assert_eq!(destination("eth0"), None);
    }

    #[test]
    fn membership() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(contains(ip("10.0.0.5"), 24, ip("10.0.0.1")));
        assert!(!contains(ip("10.0.0.5"), 24, ip("10.0.1.1")));
        assert!(contains(ip("10.0.0.5"), 0, ip("192.0.2.1")));
        assert!(contains(ip("::1"), 0, ip("2001:db8::1")));
        assert!(!contains(ip("10.0.0.5"), 0, ip("2001:db8::1")));
        assert_eq!(
            network_and_broadcast([10, 1, 2, 3].into(), 22),
            ([10, 1, 0, 0].into(), [10, 1, 3, 255].into())
        );
        assert_eq!(
            network_and_broadcast([1, 2, 3, 4].into(), 0).0,
            Ipv4Addr::UNSPECIFIED
        );
    }

    #[test]
    fn macs() {
        assert_eq!(
            mac("52-54-00-AB-CD-E ").as_deref(),
            Some("52:54:00:ab:cd:0e")
        );
        assert_eq!(mac("52:54:00:12:34"), None);
        assert_eq!(mac("52:54:00:12:34:+6"), None);
        assert_eq!(mac("random"), None);
    }
}
