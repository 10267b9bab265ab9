//! What `mount` shows of a guest besides its files: its operating systems' trees, and `meta/`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::guest::Guest;
use crate::inspect;
use crate::meta::network::{self, NetworkMeta};
use crate::meta::session::Session;
use crate::meta::{disks, image, os, problems, session};
use crate::tree::layout::{MetaFile, Roots};

/// A guest's operating systems.
pub fn roots(guest: &Guest) -> Roots {
    Arc::new(inspect::systems(guest))
}

type FactsPart = fn(&Look) -> Vec<u8>;
type NetworkPart = fn(&NetworkMeta) -> Vec<u8>;

/// The files of `meta/` of a guest that is mounted at `mountpoint`.
pub fn meta(
    guest: &Arc<Guest>,
    roots: &Roots,
    snapshot: Option<&str>,
    mountpoint: &Path,
) -> Vec<MetaFile> {
    let mut files = Vec::new();
    let mut add = |path, permissions, make: Box<dyn Fn() -> Vec<u8> + Send + Sync>| {
        files.push(MetaFile {
            path,
            permissions,
            make,
        });
    };
    if let Some(system) = roots.first() {
        let view = &system.view;
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
    let of = |make: FactsPart| -> Box<dyn Fn() -> Vec<u8> + Send + Sync> {
        let look = Look {
            guest: Arc::clone(guest),
            systems: Arc::clone(roots),
            snapshot: snapshot.map(str::to_owned),
            mountpoint: mountpoint.to_owned(),
        };
        Box::new(move || make(&look))
    };
    let facts: [(&'static str, FactsPart); 10] = [
        ("os", |l| os::shell(&l.systems).into_bytes()),
        ("os.json", |l| pretty(&os::json(&l.systems))),
        ("disks", |l| disks::text(&l.guest, &l.systems).into_bytes()),
        ("disks.json", |l| pretty(&disks::json(&l.guest, &l.systems))),
        ("image", |l| {
            image::text(&l.guest, l.snapshot.as_deref()).into_bytes()
        }),
        ("image.json", |l| {
            pretty(&image::json(&l.guest, l.snapshot.as_deref()))
        }),
        ("session", |l| session::text(&l.session()).into_bytes()),
        ("session.json", |l| pretty(&session::json(&l.session()))),
        ("problems", |l| {
            problems::text(&l.guest, &l.systems).into_bytes()
        }),
        ("problems.json", |l| {
            pretty(&problems::json(&l.guest, &l.systems))
        }),
    ];
    for (path, make) in facts {
        add(path, 0o444, of(make));
    }
    files
}

/// What the files are made from.
struct Look {
    guest: Arc<Guest>,
    systems: Roots,
    snapshot: Option<String>,
    mountpoint: PathBuf,
}

impl Look {
    fn session(&self) -> Session {
        Session::of(
            &self.guest,
            self.snapshot.as_deref(),
            Some(&self.mountpoint),
        )
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}
