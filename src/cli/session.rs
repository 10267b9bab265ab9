//! Opens the guest and chooses the tree a verb looks at.

use std::ffi::OsString;

use super::args::{OpenArgs, ViewArgs};
use super::failure::Outcome;
use crate::guest::{Guest, GuestOptions, ImageArgument};

/// An opened guest.
pub struct Session {
    /// The guest (of the snapshot, if one was asked for).
    pub guest: Guest,
    /// How it was opened.
    pub options: GuestOptions,
}

impl Session {
    /// Opens a set of images.
    ///
    /// # Errors
    /// If an image cannot be opened, or has no such snapshot.
    pub fn open(open: &OpenArgs, images: &[ImageArgument]) -> Outcome<Self> {
        let options = open.guest_options();
        let mut guest = Guest::open(images, &options)?;
        if let Some(id) = &open.snapshot {
            guest = guest.open_snapshot(id, &options)?;
        }
        Ok(Self { guest, options })
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
}

/// Stands for the choice of a tree until a verb asks for it.
pub type View<'a> = &'a ViewArgs;
