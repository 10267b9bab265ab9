//! Contents of `meta/image` and `image.json`: the image files, in the words of
//! `qemu-img info --output=json`.

use serde_json::{Value, json};

use super::lines;
use crate::guest::Guest;

/// `meta/image`: one `path.to.value: value` line for each value.
pub fn text(guest: &Guest, snapshot: Option<&str>) -> String {
    lines::of(&json(guest, snapshot))
}

/// `meta/image.json`.
pub fn json(guest: &Guest, snapshot: Option<&str>) -> Value {
    let images = guest
        .disks()
        .iter()
        .map(|disk| json!({ "disk": disk.name, "image": disk.image.info().json() }));
    json!({ "snapshot": snapshot, "images": images.collect::<Vec<_>>() })
}
