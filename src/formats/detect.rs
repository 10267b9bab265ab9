//! Which format a file is of, by its first and last bytes.
//!
//! Guessing is for reading only, and only magic numbers count. What a guess leads to is reported
//! as guessed; a format the user states is never second-guessed, so a raw disk whose guest wrote
//! another format's magic number into its first sector stays raw.

use std::sync::Arc;

use super::api::{Context, Image, ImageInfo};
use super::error::{FormatError, FormatErrorKind, Result};
use super::{compressed, qcow2, raw, vdi, vhd, vhdx, vmdk};
use crate::block::BlockDevice;
use crate::ondisk::bytes::{be32, slice};

/// A format this program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The file is the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// VMware, a sparse file or a descriptor with extents.
    Vmdk,
    /// Connectix and Microsoft Virtual PC.
    Vhd,
    /// Microsoft Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// A raw disk in a gzip stream.
    Gzip,
    /// A raw disk in an xz stream.
    Xz,
    /// A raw disk in a zstd stream.
    Zstd,
}

/// Every format, by the name a user states it with: those of QEMU where it has one.
pub const FORMATS: [(&str, Format); 9] = [
    ("raw", Format::Raw),
    ("qcow2", Format::Qcow2),
    ("vmdk", Format::Vmdk),
    ("vpc", Format::Vhd),
    ("vhdx", Format::Vhdx),
    ("vdi", Format::Vdi),
    ("gz", Format::Gzip),
    ("xz", Format::Xz),
    ("zst", Format::Zstd),
];

impl Format {
    /// The name.
    pub fn name(self) -> &'static str {
        FORMATS
            .iter()
            .find_map(|(name, format)| (*format == self).then_some(*name))
            .unwrap_or("raw")
    }

    /// Whether images of this format can be opened for writing.
    pub fn writable(self) -> bool {
        matches!(self, Self::Raw | Self::Qcow2)
    }

    /// Opens `file` as an image of this format.
    ///
    /// # Errors
    /// What the format reports.
    pub fn open(
        self,
        file: BlockDevice,
        info: ImageInfo,
        context: &mut Context<'_>,
    ) -> Result<Arc<dyn Image>> {
        match self {
            Self::Raw => raw::open(file, info, context),
            Self::Qcow2 => qcow2::open(file, info, context),
            Self::Vmdk => vmdk::open(file, info, context),
            Self::Vhd => vhd::open(file, info, context),
            Self::Vhdx => vhdx::open(file, info, context),
            Self::Vdi => vdi::open(file, info, context),
            Self::Gzip => compressed::open_gzip(file, info, context),
            Self::Xz => compressed::open_xz(file, info, context),
            Self::Zstd => compressed::open_zstd(file, info, context),
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// [`FormatErrorKind::Unsupported`] for any other name.
    pub fn by_name(name: &str) -> Result<Self> {
        FORMATS
            .iter()
            .find_map(|(n, format)| (*n == name).then_some(*format))
            // What everybody but QEMU calls it.
            .or_else(|| (name == "vhd").then_some(Self::Vhd))
            .ok_or_else(|| {
                let known: Vec<_> = FORMATS.iter().map(|(n, _)| *n).collect();
                FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!(
                        "format '{}' is not supported",
                        crate::ondisk::text::printable(name.as_bytes())
                    ),
                )
                .with_hint(format!("formats read: {}", known.join(", ")))
            })
    }
}

/// Magic number of qcow and qcow2.
pub const QCOW_MAGIC: u32 = 0x5146_49fb;

/// Longest file head that detection looks at; an ISO 9660 volume descriptor begins at 32 KiB.
const HEAD_BYTES: usize = (32 << 10) + 2048;

/// Formats that are read: offset of the magic, magic, format.
const KNOWN: [(usize, &[u8], Format); 9] = [
    (0, b"KDMV", Format::Vmdk),
    (0, b"COWD", Format::Vmdk),
    (0, b"# Disk DescriptorFile", Format::Vmdk),
    (0, b"conectix", Format::Vhd),
    (0, b"vhdxfile", Format::Vhdx),
    (0x40, b"\x7f\x10\xda\xbe", Format::Vdi),
    (0, b"\xfd7zXZ\0", Format::Xz),
    (0, b"\x1f\x8b\x08", Format::Gzip),
    (0, b"\x28\xb5\x2f\xfd", Format::Zstd),
];

/// Formats that are recognised and refused: offset of the magic, magic, name.
const FOREIGN: [(usize, &[u8], &str); 4] = [
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"BZh", "a bzip2 stream"),
];

/// Guesses the format of a file.
///
/// # Errors
/// [`FormatErrorKind::Unsupported`] for a format that is recognised but not read,
/// [`FormatErrorKind::NotAllowed`] where two answers are possible, or what reading reports.
pub fn detect(file: &BlockDevice) -> Result<Format> {
    let mut head = vec![0; HEAD_BYTES];
    let len = file.read_some_at(0, &mut head)?;
    head.truncate(len);
    let mut tail = [0; 512];
    if let Some(at) = vhd::footer_at_end(file.len()) {
        file.read_some_at(at, &mut tail)?;
    }
    decide(&head, &tail)
}

fn decide(head: &[u8], tail: &[u8]) -> Result<Format> {
    let fixed_vhd = tail.starts_with(b"conectix");
    if be32(head, 0) == Some(QCOW_MAGIC) {
        if be32(head, 4) == Some(1) {
            return Err(foreign("qcow version 1"));
        }
        // With clusters of 64 KiB and more these bytes belong to the header, so they cannot be
        // guest data that happens to lie there.
        let large_header = be32(head, 20).is_some_and(|bits| bits >= 16);
        let other = if slice(head, 510, 2) == Some(b"\x55\xaa") {
            Some("a disk with a partition table or boot sector")
        } else if large_header && slice(head, 32769, 5) == Some(b"CD001") {
            Some("an ISO 9660 image")
        } else if fixed_vhd {
            Some("a fixed VHD")
        } else {
            None
        };
        return match other {
            None => Ok(Format::Qcow2),
            Some(other) => Err(FormatError::new(
                FormatErrorKind::NotAllowed,
                format!("the file is ambiguous: it looks like qcow2 and like {other}"),
            )
            .with_hint("state its format with --format raw or --format qcow2")),
        };
    }
    for (at, magic, format) in KNOWN {
        if slice(head, at, magic.len()) == Some(magic) {
            return Ok(format);
        }
    }
    if compressed::zstd::is_behind_skippable(head) {
        return Ok(Format::Zstd);
    }
    for (at, magic, name) in FOREIGN {
        if slice(head, at, magic.len()) == Some(magic) {
            return Err(foreign(name));
        }
    }
    if fixed_vhd {
        // Taken for raw it would be 512 bytes too long, and a backup partition table at the end
        // would not be found.
        return Ok(Format::Vhd);
    }
    Ok(Format::Raw)
}

fn foreign(name: &str) -> FormatError {
    FormatError::new(
        FormatErrorKind::Unsupported,
        format!("the file is {name}, which is not supported"),
    )
    .with_hint(
        "convert it first with a program that reads it, or unpack it, or state --format raw if it really is a raw disk",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_magic() {
        let mut qcow2 = vec![0; 65536];
        qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        qcow2[23] = 16;
        assert_eq!(decide(&qcow2, &[]).unwrap(), Format::Qcow2);
        let kind = |head: &[u8], tail: &[u8]| decide(head, tail).unwrap_err().kind();
        assert_eq!(
            kind(b"QFI\xfb\0\0\0\x01", &[]),
            FormatErrorKind::Unsupported
        );
        assert_eq!(kind(&qcow2, b"conectix"), FormatErrorKind::NotAllowed);
        let mut hybrid = qcow2.clone();
        hybrid[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(kind(&hybrid, &[]), FormatErrorKind::NotAllowed);
        qcow2[32769..32774].copy_from_slice(b"CD001");
        assert_eq!(kind(&qcow2, &[]), FormatErrorKind::NotAllowed);
        assert_eq!(decide(&[0; 512], b"conectix").unwrap(), Format::Vhd);
        for (at, magic, format) in KNOWN {
            let mut head = vec![0; 512];
            head[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(decide(&head, &[]).unwrap(), format);
        }
        for (at, magic, _) in FOREIGN {
            let mut head = vec![0; 512];
            head[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(kind(&head, &[]), FormatErrorKind::Unsupported);
        }
        assert_eq!(decide(&[0; 512], &[0; 512]).unwrap(), Format::Raw);
        assert_eq!(decide(b"LUKS\xba\xbe\0\x02", &[]).unwrap(), Format::Raw);
        assert_eq!(decide(b"", &[]).unwrap(), Format::Raw);
    }
}
