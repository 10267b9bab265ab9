//! Opens the guest and chooses the tree a verb looks at.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::{Arc, OnceLock};

use super::args::{OpenArgs, ViewArgs};
use super::complain;
use super::failure::{Context as _, Failure, Outcome};
use super::text::host_path;
use crate::formats::Image;
use crate::formats::follow::Follow;
use crate::fs::FileType;
use crate::guest::view::FollowFinal;
use crate::guest::{Content, Guest, GuestOptions, GuestView, ImageArgument, Node};
use crate::inspect::{self, System};
use crate::meta::problems;
use crate::ondisk::text::printable;

/// An opened guest.
pub struct Session {
    /// The guest (of the snapshot, if one was asked for).
    pub guest: Guest,
    /// How it was opened.
    pub options: GuestOptions,
    systems: OnceLock<Vec<System>>,
}

impl Session {
    /// Opens a set of images.
    ///
    /// # Errors
    /// If an image cannot be opened, or has no such snapshot.
    pub fn open(open: &OpenArgs, images: &[ImageArgument]) -> Outcome<Self> {
        let session = Self::open_with(open, images, open.guest_options()?)?;
        for disk in session.guest.disks() {
            check_unlocked(&disk.image)?;
        }
        Ok(session)
    }

    /// The same for what is not about content: encrypted images are opened also without a key.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_metadata(open: &OpenArgs, images: &[ImageArgument]) -> Outcome<Self> {
        Self::open_with(open, images, open.metadata_options()?)
    }

    /// The same also where files the images refer to are not opened, as `follow` says.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_following(
        open: &OpenArgs,
        images: &[ImageArgument],
        follow: Follow,
    ) -> Outcome<Self> {
        let mut options = open.metadata_options()?;
        options.image.follow = follow;
        Self::open_with(open, images, options)
    }

    fn open_with(
        open: &OpenArgs,
        images: &[ImageArgument],
        options: GuestOptions,
    ) -> Outcome<Self> {
        let mut guest = Guest::open(images, &options)?;
        if let Some(id) = &open.snapshot {
            guest = guest.open_snapshot(id, &options)?;
        }
        Ok(Self {
            guest,
            options,
            systems: OnceLock::new(),
        })
    }

    /// The operating systems found, in the order of their root volumes.
    pub fn systems(&self) -> &[System] {
        self.systems.get_or_init(|| inspect::systems(&self.guest))
    }

    /// Opens the image that is the first argument, or those of `-a`; what is left of the
    /// arguments are the verb's.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_first(open: &OpenArgs, arguments: &mut Vec<OsString>) -> Outcome<Self> {
        let images = open.take_image(arguments)?;
        Self::open(open, &images)
    }

    /// The tree the user chose: one volume by itself, an operating system's assembled tree, or,
    /// if there is no operating system, the only filesystem.
    ///
    /// # Errors
    /// If there is none such, or no telling which one is meant.
    pub fn view(&self, choice: &ViewArgs) -> Outcome<Arc<GuestView>> {
        if let Some(name) = &choice.volume {
            return self.volume(name);
        }
        let systems = self.systems();
        let names = || list(systems.iter().map(|s| s.name.as_str()));
        if let Some(wanted) = &choice.root {
            let by_number = wanted.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            let found = systems
                .iter()
                .find(|s| &s.name == wanted)
                .or_else(|| systems.get(by_number?));
            return found.map(|s| Arc::clone(&s.view)).ok_or_else(|| {
                Failure::new(format!(
                    "there is no operating system {:?}",
                    printable(wanted.as_bytes())
                ))
                .with_hint(format!("operating systems found: {}", names()))
            });
        }
        match systems {
            [] => {}
            [only] => return Ok(Arc::clone(&only.view)),
            _ => {
                return Err(Failure::new(format!(
                    "several operating systems were found: {}",
                    names()
                ))
                .with_hint("--root NAME chooses one, --volume NAME one filesystem by itself"));
            }
        }
        let filesystems: Vec<&str> = self.filesystems().map(|(name, _)| name).collect();
        match filesystems.as_slice() {
            [only] => self.volume(only),
            [] => Err(self.nothing_to_see()),
            names => Err(
                Failure::new("no operating system was found").with_hint(format!(
                    "--volume NAME chooses a filesystem: {}",
                    list(names.iter().copied())
                )),
            ),
        }
    }

    fn filesystems(&self) -> impl Iterator<Item = (&str, usize)> {
        self.guest
            .volumes()
            .iter()
            .enumerate()
            .filter(|(_, v)| matches!(v.content, Content::FileSystem(_)))
            .map(|(n, v)| (v.name.as_str(), n))
    }

    fn volume(&self, name: &str) -> Outcome<Arc<GuestView>> {
        let found = self
            .guest
            .volumes()
            .iter()
            .enumerate()
            .find(|(_, v)| v.name == name);
        let Some((index, volume)) = found else {
            let names = list(self.guest.volumes().iter().map(|v| v.name.as_str()));
            let name = printable(name.as_bytes());
            return Err(Failure::new(format!("there is no volume {name:?}"))
                .with_hint(format!("volumes found: {names}")));
        };
        match &volume.content {
            Content::FileSystem(fs) => Ok(Arc::new(GuestView::new(Arc::clone(fs), index))),
            other => Err(Failure::new(why_closed(other)).within(name)),
        }
    }

    fn nothing_to_see(&self) -> Failure {
        let reasons: Vec<String> = self
            .guest
            .volumes()
            .iter()
            .map(|v| format!("{}: {}", v.name, why_closed(&v.content)))
            .collect();
        if reasons.is_empty() {
            return Failure::new("no filesystem was found");
        }
        Failure::new(format!(
            "no filesystem that can be read was found ({})",
            reasons.join("; ")
        ))
    }

    /// Says on stderr what is wrong with the images or inside them.
    pub fn tell_problems(&self) {
        for problem in problems::all(&self.guest, self.systems()) {
            complain(&format!("{}: {}", problem.subject, problem.message));
        }
    }
}

/// Whether all of a chain can be read.
///
/// # Errors
/// [`crate::formats::FormatErrorKind::NoKey`], with what to do.
pub fn check_unlocked(image: &Arc<dyn Image>) -> Outcome<()> {
    let mut next = Some(image);
    // Chains are bounded where they are opened.
    while let Some(image) = next {
        if let Some(error) = image.locked() {
            return Err(Failure::from(error).within(host_path(&image.info().filename)));
        }
        next = image.backing();
    }
    Ok(())
}

/// Why a volume shows no files.
pub fn why_closed(content: &Content) -> String {
    match content {
        Content::FileSystem(_) => "is open".into(),
        Content::Recognised(s) => format!("{} is not something this version reads", s.kind),
        Content::Failed { fs_type, reason } => format!("{fs_type}: {reason}"),
        Content::Unknown => "nothing known in it".into(),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return "none".into();
    }
    names.join(", ")
}

/// Guest paths as bytes; `/` if there are none.
pub fn paths_or_root(arguments: Vec<OsString>) -> Vec<Vec<u8>> {
    if arguments.is_empty() {
        return vec![b"/".to_vec()];
    }
    arguments.into_iter().map(OsString::into_vec).collect()
}

/// Guest paths as bytes.
///
/// # Errors
/// A wrong usage if there are none.
pub fn some_paths(arguments: Vec<OsString>) -> Outcome<Vec<Vec<u8>>> {
    if arguments.is_empty() {
        return Err(Failure::usage("no path in the guest given"));
    }
    Ok(paths_or_root(arguments))
}

/// A walk with the path in the message.
///
/// # Errors
/// As [`GuestView::resolve`].
pub fn resolve(view: &GuestView, path: &[u8], follow: FollowFinal) -> Outcome<Node> {
    view.resolve(path, follow).context(|| printable(path))
}

/// A directory's path and a name in it.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The last component of a path.
pub fn base_name(path: &[u8]) -> &[u8] {
    path.split(|&b| b == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or_default()
}

/// Whether a node is a directory.
///
/// # Errors
/// As [`GuestView::attributes`].
pub fn is_dir(view: &GuestView, node: Node) -> crate::fs::Result<bool> {
    Ok(view.attributes(node)?.file_type == FileType::Directory)
}

/// An argument that must be text.
///
/// # Errors
/// A wrong usage if it is not UTF-8.
pub fn text_argument(argument: &OsString) -> Outcome<&str> {
    argument
        .to_str()
        .ok_or_else(|| Failure::usage(format!("{} is not text", printable(argument.as_bytes()))))
}
