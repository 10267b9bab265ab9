//! What is known about an image, as JSON: the members of `qemu-img info --output=json`, and
//! `format-detected`, `live` and `warnings`, which that lacks.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::api::{ImageInfo, SnapshotInfo};

const SECOND: u64 = 1_000_000_000;

impl ImageInfo {
    /// All of it; what does not apply to the image is left out. A path that is not UTF-8 is shown
    /// with replacement characters.
    pub fn json(&self) -> Value {
        let mut members = Map::new();
        let mut put = |key: &str, value: Value| members.insert(key.into(), value);
        put("virtual-size", self.virtual_size.into());
        put("filename", self.filename.to_string_lossy().into());
        put("format", self.format.into());
        put("format-detected", self.format_detected.into());
        put("actual-size", self.actual_size.into());
        if let Some(size) = self.cluster_size {
            put("cluster-size", size.into());
        }
        if !self.format_specific.is_null() {
            put(
                "format-specific",
                json!({ "type": self.format, "data": self.format_specific }),
            );
        }
        if let Some(path) = &self.full_backing_filename {
            put("full-backing-filename", path.to_string_lossy().into());
        }
        if let Some(name) = &self.backing_filename {
            put("backing-filename", name.as_str().into());
        }
        if let Some(format) = &self.backing_filename_format {
            put("backing-filename-format", format.as_str().into());
        }
        if !self.snapshots.is_empty() {
            let snapshots = self.snapshots.iter().map(SnapshotInfo::json);
            put("snapshots", snapshots.collect());
        }
        put("encrypted", self.encrypted.into());
        put("dirty-flag", self.dirty_flag.into());
        put("live", self.live.into());
        if !self.warnings.is_empty() {
            put(
                "warnings",
                self.warnings.iter().map(String::as_str).collect(),
            );
        }
        Value::Object(members)
    }
}

impl SnapshotInfo {
    /// All of it; `virtual-size` is what qemu-img does not tell.
    pub fn json(&self) -> Value {
        let mut value = json!({
            "id": self.id,
            "name": self.name,
            "vm-state-size": self.vm_state_size,
            "date-sec": self.date_sec,
            "date-nsec": self.date_nsec,
            "vm-clock-sec": self.vm_clock_nsec.checked_div(SECOND),
            "vm-clock-nsec": self.vm_clock_nsec.checked_rem(SECOND),
            "virtual-size": self.virtual_size,
        });
        if let (Some(members), Some(icount)) = (value.as_object_mut(), self.icount) {
            members.insert("icount".into(), icount.into());
        }
        value
    }
}

impl Serialize for ImageInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

impl Serialize for SnapshotInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}
