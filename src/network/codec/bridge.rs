//! Options of bridges and their ports: native names to netplan's.
//!
//! Source: bridge-utils-interfaces(5), initscripts' `sysconfig.txt`, the netplan reference.

use serde_json::{Map, Value};

/// Seconds as whole number; a fraction of zeros (`2.0`) is one too.
pub fn seconds(value: &str) -> Option<u32> {
    let whole = match value.trim().split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole,
        Some(_) => return None,
        None => value.trim(),
    };
    whole.parse().ok()
}

/// Sets a number given in seconds or as priority. `false` if it is none.
pub fn set_number(parameters: &mut Map<String, Value>, key: &str, value: &str) -> bool {
    seconds(value).is_some_and(|number| {
        parameters.insert(key.into(), number.into());
        true
    })
}

/// Sets a port's number (`path-cost`, `port-priority`). `false` if it is none.
pub fn set_port(parameters: &mut Map<String, Value>, key: &str, port: &str, value: &str) -> bool {
    let Ok(number) = value.trim().parse::<u32>() else {
        return false;
    };
    let ports = parameters
        .entry(key)
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(ports) = ports.as_object_mut() {
        ports.insert(port.into(), number.into());
    }
    true
}
