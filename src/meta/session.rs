//! Contents of `meta/session` and `session.json`: how the guest is being looked at.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::lines;
use crate::guest::Guest;

/// One look at a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Version of this program.
    pub version: String,
    /// The process that serves it.
    pub pid: u32,
    /// Where it is mounted, if it is.
    pub mountpoint: Option<String>,
    /// The images, as they were opened.
    pub images: Vec<String>,
    /// `read-only`.
    pub access: &'static str,
    /// The snapshot that is shown.
    pub snapshot: Option<String>,
    /// Whether a running guest may be writing to an image.
    pub live: bool,
    /// Whether what is read fits together: not while a running guest writes.
    pub consistent: bool,
}

impl Session {
    /// This process's look at a guest.
    pub fn of(guest: &Guest, snapshot: Option<&str>, mountpoint: Option<&Path>) -> Self {
        let live = guest.disks().iter().any(|d| d.image.info().live);
        let images = guest.disks().iter().map(|d| {
            let path = &d.image.info().filename;
            path.to_string_lossy().into_owned()
        });
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            mountpoint: mountpoint.map(|point| point.to_string_lossy().into_owned()),
            images: images.collect(),
            access: "read-only",
            snapshot: snapshot.map(str::to_owned),
            live,
            consistent: !live,
        }
    }
}

/// `meta/session`: one `name: value` line for each value.
pub fn text(session: &Session) -> String {
    lines::of(&json(session))
}

/// `meta/session.json`.
pub fn json(session: &Session) -> Value {
    json!(session)
}
