//! The operating systems of a guest, each as its own tree.

use super::session::Root;
use crate::guest::{Content, Guest, GuestView, mounts};

/// Every operating system found, in the order of their root volumes.
pub fn roots(guest: &Guest) -> Vec<Root> {
    guest
        .volumes()
        .iter()
        .enumerate()
        .filter_map(|(index, volume)| {
            let Content::FileSystem(fs) = &volume.content else {
                return None;
            };
            let view = GuestView::new(fs.clone(), index);
            let looks_like_one =
                view.is_dir(b"/etc") && (view.is_dir(b"/usr") || view.is_dir(b"/bin"));
            if !looks_like_one {
                return None;
            }
            let view = mounts::assemble(guest, index).map_or(view, |assembled| assembled.view);
            Some((volume.name.clone(), view))
        })
        .collect()
}
