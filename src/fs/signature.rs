//! Recognising what has no driver here, so that it is shown by its name instead of as unknown.

use serde::Serialize;

/// What a volume holds, by its magic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Type as `blkid` names it: `vfat`, `xfs`, `swap`, `LVM2_member`, `crypto_LUKS`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// UUID as udev writes it (`ABCD-1234` for FAT).
    pub uuid: Option<String>,
    /// Label.
    pub label: Option<String>,
}
