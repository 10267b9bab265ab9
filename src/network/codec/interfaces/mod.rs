//! `etc/network/interfaces`: ifupdown and its cousins.
//!
//! Source: interfaces(5) of ifupdown 0.8, bridge-utils-interfaces(5), vlan-interfaces(5),
//! resolvconf(8), ifupdown-ng's interfaces(5).
//!
//! | module | responsibility |
//! |---|---|
//! | [`parse`] | files, lines, stanzas, `source` |
//! | [`templates`] | `inherits`, stanzas only mappings use |
//! | [`kind`] | what a device is |
//! | [`device`] | stanzas to devices |
//! | [`addresses`] | method, addresses, netmask, gateways |
//! | [`options`] | options that make sense by themselves |
//! | [`hooks`] | `up` and `down` lines |

pub mod addresses;
pub mod device;
pub mod hooks;
pub mod kind;
pub mod options;
pub mod parse;
pub mod templates;

use super::super::api::Reading;

/// Which program reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Debian's.
    Ifupdown,
    /// Cumulus' rewrite in Python.
    Ifupdown2,
    /// Alpine's since 3.13.
    IfupdownNg,
    /// busybox.
    Busybox,
}

impl Flavour {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ifupdown => "ifupdown",
            Self::Ifupdown2 => "ifupdown2",
            Self::IfupdownNg => "ifupdown-ng",
            Self::Busybox => "busybox",
        }
    }
}

/// Reads all of it into the document.
pub fn decode(reading: &mut Reading<'_>, flavour: Flavour) {
    let parsed = parse::read(reading, flavour);
    device::decode(reading, flavour, parsed);
}
