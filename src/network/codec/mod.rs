//! One module per native format.
//!
//! | module | format |
//! |---|---|
//! | [`assignments`] | files of shell assignments, read without a shell |
//! | [`ifcfg`] | `etc/sysconfig/network-scripts` of the RHEL family |
//! | [`interfaces`] | `etc/network/interfaces`: ifupdown and its cousins |
//! | [`bond`], [`bridge`] | options of bonds and bridges, common to both |

pub mod assignments;
pub mod bond;
pub mod bridge;
pub mod ifcfg;
pub mod interfaces;

/// Names of the native formats that are translated, as `guest.stacks` calls them.
pub const NAMES: [&str; 2] = ["ifcfg", "interfaces"];
