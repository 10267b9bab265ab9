//! One file of the guest as a line of text and as a JSON object.

use serde_json::{Map, Value, json};

use super::text;
use crate::fs::{Attributes, FileType};
use crate::guest::{GuestView, Node};
use crate::ondisk::text::printable;

/// The columns of `ls -l` that come before the name: mode, links, owner, group, size (or device
/// number), time of last change in UTC.
pub fn long(a: &Attributes) -> String {
    let size = match a.device {
        Some(d) => format!("{}, {}", d.major, d.minor),
        None => a.size.to_string(),
    };
    format!(
        "{} {:>3} {:>5} {:>5} {:>10} {}",
        text::mode(a),
        a.nlink,
        a.uid,
        a.gid,
        size,
        text::time(a.mtime)
    )
}

/// `name -> target` for symbolic links, the name alone for others.
pub fn name_with_target(view: &GuestView, node: Node, a: &Attributes, name: &[u8]) -> String {
    if a.file_type != FileType::Symlink {
        return printable(name);
    }
    match view.read_link(node) {
        Ok(target) => format!("{} -> {}", printable(name), printable(&target)),
        Err(error) => format!("{} -> ({error})", printable(name)),
    }
}

/// What `stat` tells, as JSON. Times are RFC 3339 with nanoseconds; the mode is in octal digits.
pub fn json(view: &GuestView, node: Node, a: &Attributes, key: &str, name: &[u8]) -> Value {
    let mut object = Map::new();
    text::insert_bytes(&mut object, key, name);
    object.insert("type".into(), json!(a.file_type));
    object.insert("mode".into(), json!(format!("{:04o}", a.permissions)));
    object.insert("uid".into(), json!(a.uid));
    object.insert("gid".into(), json!(a.gid));
    object.insert("size".into(), json!(a.size));
    object.insert("nlink".into(), json!(a.nlink));
    object.insert("ino".into(), json!(a.ino));
    if let Some(mount) = view.mounts().get(node.mount) {
        text::insert_bytes(&mut object, "mount", &mount.path);
    }
    object.insert("mtime".into(), json!(text::time_rfc3339(a.mtime)));
    if let Some(device) = a.device {
        object.insert("device".into(), json!(device));
    }
    if a.file_type == FileType::Symlink
        && let Ok(target) = view.read_link(node)
    {
        text::insert_bytes(&mut object, "target", &target);
    }
    Value::Object(object)
}
