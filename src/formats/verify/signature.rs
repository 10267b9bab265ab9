//! Every format and content a file could be taken for, by anybody.
//!
//! All detectors run, also after one has answered: a file that has two answers is an attack on
//! whoever believes the other one.

use crate::block::BlockDevice;
use crate::formats::detect::QCOW_MAGIC;
use crate::formats::error::Result;
use crate::formats::vhd;
use crate::ondisk::bytes::{be32, slice};

/// Bytes at the start of the file that detectors look at: the volume descriptors of ISO 9660.
const HEAD_BYTES: usize = 64 << 10;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// qcow2, whatever its version (but 1).
    Qcow2,
    /// VMDK, sparse or a descriptor.
    Vmdk,
    /// VHD with a copy of its footer at the start.
    Vhd,
    /// VHD with a footer only.
    FixedVhd,
    /// VHDX.
    Vhdx,
    /// VDI.
    Vdi,
    /// A format that is never safe.
    Banned(&'static str),
    /// A compressed stream.
    Compressed(&'static str),
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Image formats.
    pub formats: Vec<Signature>,
    /// A boot record, of a disk with a partition table.
    pub mbr: bool,
    /// The boot record protects a GPT.
    pub gpt: bool,
    /// An ISO 9660 or UDF image.
    pub iso: bool,
    /// A LUKS header.
    pub luks: bool,
}

/// Offset of a magic, magic, format.
const MAGICS: [(usize, &[u8], Signature); 13] = [
    (0, b"KDMV", Signature::Vmdk),
    (0, b"COWD", Signature::Banned("cowd")),
    (0, b"conectix", Signature::Vhd),
    (0, b"vhdxfile", Signature::Vhdx),
    (0x40, b"\x7f\x10\xda\xbe", Signature::Vdi),
    (0, b"QED\0", Signature::Banned("qed")),
    (0, b"WithoutFreeSpace", Signature::Banned("parallels")),
    (0, b"WithouFreSpacExt", Signature::Banned("parallels")),
    (0, b"OOOM\0", Signature::Banned("vhd-log")),
    (0, b"\xfd7zXZ\0", Signature::Compressed("xz")),
    (0, b"\x1f\x8b\x08", Signature::Compressed("gz")),
    (0, b"\x28\xb5\x2f\xfd", Signature::Compressed("zst")),
    (0, b"BZh", Signature::Compressed("bzip2")),
];

/// Lines a VMDK descriptor can begin with.
const DESCRIPTOR: &[u8] = b"# disk descriptorfile";
/// How far into a file a descriptor may begin, after comments and empty lines.
const DESCRIPTOR_BYTES: usize = 4096;

/// Runs all detectors.
///
/// # Errors
/// What reading reports.
pub fn find(file: &BlockDevice) -> Result<Found> {
    let mut head = vec![0; HEAD_BYTES];
    let len = file.read_some_at(0, &mut head)?;
    head.truncate(len);
    let mut tail = [0; 512];
    if let Some(at) = vhd::footer_at_end(file.len()) {
        file.read_some_at(at, &mut tail)?;
    }
    Ok(judge(&head, &tail))
}

fn judge(head: &[u8], tail: &[u8]) -> Found {
    let mut found = Found::default();
    let mut add = |signature| {
        if !found.formats.contains(&signature) {
            found.formats.push(signature);
        }
    };
    if be32(head, 0) == Some(QCOW_MAGIC) {
        add(match be32(head, 4) {
            Some(1) => Signature::Banned("qcow"),
            _ => Signature::Qcow2,
        });
    }
    for (at, magic, signature) in MAGICS {
        if slice(head, at, magic.len()) == Some(magic) {
            add(signature);
        }
    }
    if is_descriptor(head) {
        add(Signature::Vmdk);
    }
    if tail.starts_with(vhd::footer::COOKIE) && !head.starts_with(vhd::footer::COOKIE) {
        add(Signature::FixedVhd);
    }
    found.mbr = slice(head, 510, 2) == Some(b"\x55\xaa") && !is_boot_sector(head);
    found.gpt = found.mbr
        && (0..4_usize).any(|n| {
            let at = n.saturating_mul(16).saturating_add(446 + 4);
            head.get(at) == Some(&0xee)
        });
    found.iso = (16..32_usize).any(|sector| {
        let at = sector.saturating_mul(2048).saturating_add(1);
        matches!(slice(head, at, 5), Some(b"CD001" | b"NSR02" | b"NSR03"))
    });
    found.luks = head.starts_with(b"LUKS\xba\xbe");
    found
}

/// A VMDK that is only a descriptor. QEMU skips comments, spaces and empty lines before the line
/// that says so, or before `version=`.
fn is_descriptor(head: &[u8]) -> bool {
    let text = head.get(..DESCRIPTOR_BYTES.min(head.len())).unwrap_or(head);
    let starts = |start: &[u8]| {
        text.get(..start.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(start))
    };
    if starts(DESCRIPTOR) {
        return true;
    }
    text.split(|&b| b == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && !line.starts_with(b"#"))
        .is_some_and(|line| matches!(line, b"version=1" | b"version=2" | b"version=3"))
}

/// The boot sector of a FAT filesystem, which looks like a boot record.
fn is_boot_sector(head: &[u8]) -> bool {
    // A jump, and either the name of the filesystem or a plausible count of FATs and a medium.
    let jump = matches!(head.first(), Some(0xeb | 0xe9));
    let named = slice(head, 54, 3) == Some(b"FAT") || slice(head, 82, 3) == Some(b"FAT");
    let plausible = head.get(16) == Some(&2) && head.get(21).is_some_and(|&m| m >= 0xf0);
    jump && (named || plausible)
}

impl Signature {
    fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd | Self::FixedVhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Banned(name) | Self::Compressed(name) => name,
        }
    }
}

impl Found {
    /// Everything the file can be taken for; `raw` if nothing else.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.formats.iter().map(|s| s.name()).collect();
        for (is, name) in [
            (self.gpt, "gpt"),
            (self.mbr && !self.gpt, "mbr"),
            (self.iso, "iso"),
            (self.luks, "luks"),
        ] {
            if is {
                names.push(name);
            }
        }
        if names.is_empty() {
            names.push("raw");
        }
        names
    }

    /// The format to open the file with.
    pub fn format_name(&self) -> &'static str {
        self.formats.first().map_or("raw", |s| s.name())
    }

    /// More than one answer. A hybrid of ISO 9660 and a partition table is meant to be both, and
    /// the disk in a fixed VHD begins where the file does.
    pub fn is_ambiguous(&self) -> bool {
        let contents = u8::from(self.mbr || self.iso).saturating_add(self.luks.into());
        match self.formats.as_slice() {
            [] | [Signature::FixedVhd] => contents > 1,
            [_] => contents > 0,
            _ => true,
        }
    }

    /// Whether the file is what it is said to be.
    pub fn agrees_with(&self, claimed: &str) -> bool {
        let raw = self.formats.is_empty();
        match claimed {
            "raw" => raw,
            "iso" => raw && self.iso,
            "gpt" | "mbr" => raw && self.mbr,
            "luks" => raw && self.luks,
            "vhd" => self.names().contains(&"vpc"),
            other => self.names().contains(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_detector_runs() {
        let mut head = vec![0; HEAD_BYTES];
        assert_eq!(judge(&head, &[]).names(), ["raw"]);
        head[510..512].copy_from_slice(b"\x55\xaa");
        head[450] = 0xee;
        head[32769..32774].copy_from_slice(b"CD001");
        let hybrid = judge(&head, &[]);
        assert_eq!(hybrid.names(), ["gpt", "iso"]);
        assert!(!hybrid.is_ambiguous());
        assert!(hybrid.agrees_with("raw") && hybrid.agrees_with("iso"));
        assert!(!hybrid.agrees_with("qcow2"));
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let all = judge(&head, b"conectix");
        assert_eq!(all.names(), ["qcow2", "vpc", "gpt", "iso"]);
        assert!(all.is_ambiguous() && !all.agrees_with("raw"));
        head[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        assert!(judge(&head, &[]).is_ambiguous());
        let text = b"\n# x\n  version=1\nCID=1";
        assert_eq!(judge(text, &[]).formats, [Signature::Vmdk]);
        for (at, magic, signature) in MAGICS {
            let mut head = vec![0; 4096];
            head[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(judge(&head, &[]).formats, [signature]);
        }
    }
}
