//! A guest → its operating systems.

use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::evidence::Evidence;
use super::{identity, packages, roots, settings};
use crate::guest::mounts::{self, FstabEntry};
use crate::guest::{Content, Guest, GuestView, Problem};
use crate::ondisk::text::printable;

/// Most operating systems of one guest.
const MAX_SYSTEMS: usize = 256;

/// A value and the guest file it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact<T = String> {
    /// The value.
    pub value: T,
    /// Absolute path in the guest's tree, or what else it was seen in (`partition table`).
    pub source: String,
}

impl<T> Fact<T> {
    /// A fact.
    pub fn new(value: T, source: impl Into<String>) -> Self {
        Self {
            value,
            source: source.into(),
        }
    }
}

/// A filesystem at its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mountpoint {
    /// Where it is in the guest's tree, printable.
    pub path: String,
    /// Name of the volume.
    pub volume: String,
}

/// What is known about an operating system. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Kind of operating system: `linux`.
    #[serde(rename = "type")]
    pub kind: Option<Fact>,
    /// Distribution, in the words of os-release(5): `debian`, `rhel`, `opensuse-leap`. For systems
    /// older than os-release, what their later releases call themselves.
    pub id: Option<Fact>,
    /// Distributions it is derived from, closest first.
    pub id_like: Option<Fact<Vec<String>>>,
    /// Distribution in the words of virt-inspector (`oraclelinux`, `archlinux`); the same as `id`
    /// where that has no word.
    pub distro: Option<Fact>,
    /// Name without version.
    pub name: Option<Fact>,
    /// Product name for people.
    pub pretty_name: Option<Fact>,
    /// Version, as precise as it is known: `12.5`, `7.9.2009`.
    pub version: Option<Fact>,
    /// Version as os-release has it: `12`, `7`.
    pub version_id: Option<Fact>,
    /// First number of the version.
    pub version_major: Option<Fact<u64>>,
    /// Second number of the version.
    pub version_minor: Option<Fact<u64>>,
    /// Codename: `bookworm`.
    pub version_codename: Option<Fact>,
    /// Variant: `server`, `workstation`.
    pub variant_id: Option<Fact>,
    /// Build of the system image.
    pub build_id: Option<Fact>,
    /// Instruction set: `x86_64`, `i386`, `aarch64`, …
    pub architecture: Option<Fact>,
    /// Host name.
    pub hostname: Option<Fact>,
    /// machine-id(5), 32 hexadecimal digits.
    pub machine_id: Option<Fact>,
    /// Time zone: `Europe/Berlin`.
    pub timezone: Option<Fact>,
    /// `rpm`, `deb`, `apk`, …
    pub package_format: Option<Fact>,
    /// `dnf`, `apt`, …
    pub package_manager: Option<Fact>,
    /// `systemd`, `sysvinit`, `upstart`, `openrc`, `busybox`, `runit`, `s6`, `dinit`, `procd`.
    pub init: Option<Fact>,
    /// Versions of the kernels that are installed, oldest first.
    pub kernels: Vec<Fact>,
    /// Name of the volume that is the root.
    pub root_device: Option<Fact>,
    /// Which volume is where, the root first.
    pub mountpoints: Vec<Fact<Mountpoint>>,
}

/// One operating system of a guest.
pub struct System {
    /// Index of its root volume in [`Guest::volumes`].
    pub root: usize,
    /// Name of its root volume.
    pub name: String,
    /// Its tree, assembled from its fstab.
    pub view: Arc<GuestView>,
    /// Its fstab.
    pub fstab: Vec<FstabEntry>,
    /// What in the fstab could not be followed.
    fstab_problems: Vec<Problem>,
    root_device: Fact,
    mountpoints: Vec<Fact<Mountpoint>>,
    /// Read when first asked for: most callers want the tree alone, and want it at once.
    facts: OnceLock<(Facts, Vec<Problem>)>,
}

impl System {
    /// A system of one tree, without looking at its fstab.
    pub fn of_tree(root: usize, name: &str, view: Arc<GuestView>) -> Self {
        Self {
            root,
            name: name.to_owned(),
            view,
            fstab: Vec::new(),
            fstab_problems: Vec::new(),
            root_device: Fact::new(name.to_owned(), "/"),
            mountpoints: Vec::new(),
            facts: OnceLock::new(),
        }
    }

    /// What is known about it.
    pub fn facts(&self) -> &Facts {
        &self.examined().0
    }

    /// What could not be followed or found out.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.fstab_problems.iter().chain(&self.examined().1)
    }

    fn examined(&self) -> &(Facts, Vec<Problem>) {
        self.facts.get_or_init(|| {
            let (mut facts, problems) = facts_of(&self.view);
            facts.root_device = Some(self.root_device.clone());
            facts.mountpoints.clone_from(&self.mountpoints);
            (facts, problems)
        })
    }
}

/// The operating systems of a guest, in the order of their root volumes. Never fails: what cannot
/// be read is in [`System::problems`]. The facts themselves are read when asked for.
pub fn systems(guest: &Guest) -> Vec<System> {
    let mut systems = Vec::new();
    for (root, volume) in guest.volumes().iter().enumerate() {
        let Content::FileSystem(fs) = &volume.content else {
            continue;
        };
        if systems.len() >= MAX_SYSTEMS {
            break;
        }
        if !roots::is_linux_root(&GuestView::new(Arc::clone(fs), root)) {
            continue;
        }
        let Some(assembled) = mounts::assemble(guest, root) else {
            continue;
        };
        systems.push(System {
            mountpoints: mountpoints(guest, &assembled.view),
            fstab: assembled.fstab,
            fstab_problems: assembled.problems,
            ..System::of_tree(root, &volume.name, Arc::new(assembled.view))
        });
    }
    systems
}

/// What the files of a tree say. Devices and mount points are not among it, since a tree knows
/// no names of volumes.
pub fn facts_of(view: &GuestView) -> (Facts, Vec<Problem>) {
    let mut evidence = Evidence::new(view);
    let mut facts = Facts::default();
    identity::find(&mut evidence, &mut facts);
    packages::find(&mut evidence, &mut facts);
    settings::find(&mut evidence, &mut facts);
    (facts, evidence.into_problems())
}

fn mountpoints(guest: &Guest, view: &GuestView) -> Vec<Fact<Mountpoint>> {
    view.mounts()
        .iter()
        .enumerate()
        .filter_map(|(n, mount)| {
            let volume = guest.volumes().get(mount.volume)?.name.clone();
            let path = printable(&mount.path);
            let source = if n == 0 { "/" } else { "/etc/fstab" };
            Some(Fact::new(Mountpoint { path, volume }, source))
        })
        .collect()
}
