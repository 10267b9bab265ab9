//! Contents of `meta/image` and `image.json`: the image files, in the words of
//! `qemu-img info --output=json`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::lines;
use crate::formats::ImageInfo;
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
        .map(|disk| json!({ "disk": disk.name, "image": info(disk.image.info()) }));
    json!({ "snapshot": snapshot, "images": images.collect::<Vec<_>>() })
}

/// A path that is not UTF-8 cannot be serialised as text.
fn info(info: &ImageInfo) -> Value {
    let text = |path: &PathBuf| PathBuf::from(path.to_string_lossy().into_owned());
    json!(ImageInfo {
        filename: text(&info.filename),
        full_backing_filename: info.full_backing_filename.as_ref().map(text),
        ..info.clone()
    })
}
