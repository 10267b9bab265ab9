//! What `mount` shows of a guest besides its files: its operating systems' trees, and `meta/`.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use crate::guest::mounts::assemble;
use crate::guest::{Content, Guest, GuestView};
use crate::meta::network::{self, NetworkMeta};
use crate::tree::layout::{MetaFile, Root, Roots};

/// The trees of a guest's operating systems: of every filesystem that looks like a root, with its
/// fstab followed.
pub fn roots(guest: &Guest) -> Roots {
    let mut roots = Vec::new();
    for (index, volume) in guest.volumes().iter().enumerate() {
        let Content::FileSystem(fs) = &volume.content else {
            continue;
        };
        let alone = GuestView::new(Arc::clone(fs), index);
        // With /usr on a volume of its own, bin is still a link or a directory.
        let is_root = alone.is_dir(b"/etc") && (alone.is_dir(b"/usr") || alone.is_dir(b"/bin"));
        if is_root && let Some(assembled) = assemble(guest, index) {
            roots.push(Root {
                name: volume.name.clone(),
                view: Arc::new(assembled.view),
                problems: assembled.problems,
            });
        }
    }
    roots
}

type NetworkPart = fn(&NetworkMeta) -> Vec<u8>;

/// The files of `meta/`.
pub fn meta(guest: &Arc<Guest>, roots: &Roots, snapshot: Option<&str>) -> Vec<MetaFile> {
    let mut files = Vec::new();
    let mut add = |path, permissions, make: Box<dyn Fn() -> Vec<u8> + Send + Sync>| {
        files.push(MetaFile {
            path,
            permissions,
            make,
        });
    };
    if let Some(Root { view, .. }) = roots.first() {
        let made: Arc<OnceLock<NetworkMeta>> = Arc::default();
        let parts: [(&'static str, NetworkPart); 4] = [
            ("network", |n| n.yaml.clone().into_bytes()),
            ("network.json", |n| pretty(&n.json)),
            ("network.d/netplan.yaml", |n| {
                n.netplan_yaml.clone().into_bytes()
            }),
            ("network.d/summary.txt", |n| n.summary.clone().into_bytes()),
        ];
        for (path, part) in parts {
            let (made, view) = (Arc::clone(&made), Arc::clone(view));
            // Network configuration holds keys and passwords.
            add(
                path,
                0o400,
                Box::new(move || part(made.get_or_init(|| network::render(&view)))),
            );
        }
    }
    let facts: [(&'static str, &'static str, Value); 3] = [
        ("image", "image.json", images(guest, snapshot)),
        ("session", "session.json", session(guest, snapshot)),
        ("disks", "disks.json", Value::Null),
    ];
    for (text, json, value) in facts {
        if text == "disks" {
            let (one, two) = (Arc::clone(guest), Arc::clone(guest));
            add(text, 0o444, Box::new(move || lines(&disks(&one))));
            add(json, 0o444, Box::new(move || pretty(&disks(&two))));
            continue;
        }
        let copy = value.clone();
        add(text, 0o444, Box::new(move || lines(&copy)));
        add(json, 0o444, Box::new(move || pretty(&value)));
    }
    let mut problems = guest.problems().to_vec();
    for root in roots {
        problems.extend(root.problems.iter().cloned());
    }
    let copy = problems.clone();
    add(
        "problems",
        0o444,
        Box::new(move || {
            let lines = copy
                .iter()
                .map(|p| format!("{}: {}\n", p.subject, p.message));
            lines.collect::<String>().into_bytes()
        }),
    );
    add(
        "problems.json",
        0o444,
        Box::new(move || pretty(&json!(problems))),
    );
    files
}

fn images(guest: &Guest, snapshot: Option<&str>) -> Value {
    let images = guest
        .disks()
        .iter()
        .map(|disk| json!({ "disk": disk.name, "image": disk.image.info() }));
    json!({ "snapshot": snapshot, "images": images.collect::<Vec<_>>() })
}

fn session(guest: &Guest, snapshot: Option<&str>) -> Value {
    let live = guest.disks().iter().any(|d| d.image.info().live);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "access": "read-only",
        "snapshot": snapshot,
        // A running guest writes to an image: what is read need not fit together.
        "consistent": !live,
    })
}

fn disks(guest: &Guest) -> Value {
    let volumes = |index: usize| {
        let of_disk = guest.volumes().iter().filter(move |v| v.disk == index);
        of_disk
            .map(|v| {
                let (kind, detail) = match &v.content {
                    Content::FileSystem(fs) => ("filesystem", json!(fs.info())),
                    Content::Recognised(signature) => {
                        ("recognised", json!(format!("{signature:?}")))
                    }
                    Content::Failed { fs_type, reason } => {
                        ("failed", json!({ "type": fs_type, "reason": reason }))
                    }
                    Content::Unknown => ("unknown", Value::Null),
                };
                json!({ "name": v.name, "bytes": v.device.len(), "content": kind, kind: detail })
            })
            .collect::<Vec<_>>()
    };
    let disks = guest.disks().iter().enumerate().map(|(index, disk)| {
        json!({ "name": disk.name, "bytes": disk.device.len(), "volumes": volumes(index) })
    });
    json!({ "disks": disks.collect::<Vec<_>>() })
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// One `path.to.value: value` line for each value, strings as JSON writes them.
fn lines(value: &Value) -> Vec<u8> {
    fn walk(at: &str, value: &Value, out: &mut String) {
        let join = |name: &str| match at {
            "" => name.to_owned(),
            _ => format!("{at}.{name}"),
        };
        match value {
            Value::Null => {}
            Value::Object(map) => map.iter().for_each(|(k, v)| walk(&join(k), v, out)),
            Value::Array(list) => {
                for (n, v) in list.iter().enumerate() {
                    walk(&join(&n.to_string()), v, out);
                }
            }
            _ => {
                out.push_str(at);
                out.push_str(": ");
                out.push_str(&value.to_string());
                out.push('\n');
            }
        }
    }
    let mut out = String::new();
    walk("", value, &mut out);
    out.into_bytes()
}
