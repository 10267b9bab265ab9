//! The operating systems of a guest, each as its own tree.

use super::session::Root;
use crate::guest::Guest;
use crate::inspect;

/// Every operating system found, in the order of their root volumes.
pub fn roots(guest: &Guest) -> Vec<Root> {
    let systems = inspect::systems(guest);
    systems.into_iter().map(|s| (s.name, s.view)).collect()
}
