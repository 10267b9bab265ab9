//! The text part of an image: what kind it is, which files it consists of, which image is below.
//!
//! Read line by line, and anything that is not understood is an error: what another reader would
//! take differently must not be read one way here. Nothing is opened from here; names are bytes
//! for the reference policy to judge.
//!
//! Specification: VMware Virtual Disk Format 5.0, "The Descriptor File".

use crate::formats::error::{FormatError, FormatErrorKind, Result};
use crate::ondisk::text::printable;

/// Longest descriptor that is read, in bytes; QEMU's bound.
pub const MAX_BYTES: u64 = (1 << 20) - 1;
/// Longest line; names are at most a few hundred bytes.
const MAX_LINE_BYTES: usize = 4096;
/// Most extents of one disk. Those that name files are bounded by the number of files as well.
const MAX_EXTENTS: usize = 4096;
/// `parentCID` of an image that has no parent.
pub const NO_PARENT: u32 = u32::MAX;

/// Kinds of images that are read, by `createType`.
const KINDS: [&str; 11] = [
    "monolithicSparse",
    "streamOptimized",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "vmfs",
    "vmfsPreallocated",
    "vmfsEagerZeroedThick",
    "vmfsThin",
    "vmfsSparse",
    "seSparse",
];
/// Kinds that stand for a device of the host.
const DEVICE_KINDS: [&str; 7] = [
    "fullDevice",
    "partitionedDevice",
    "vmfsRaw",
    "vmfsRDM",
    "vmfsRDMP",
    "vmfsRawDeviceMap",
    "vmfsPassthroughRawDeviceMap",
];

/// How an extent's file holds its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentType {
    /// Sector by sector.
    Flat,
    /// Hosted sparse extent.
    Sparse,
    /// ESX copy-on-write disk.
    VmfsSparse,
    /// Space-efficient sparse extent.
    SeSparse,
    /// Nowhere: it reads as zeroes.
    Zero,
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLine {
    /// How it is stored.
    pub kind: ExtentType,
    /// Type as it was written.
    pub type_name: String,
    /// Length in sectors.
    pub sectors: u64,
    /// File it is in; empty for [`ExtentType::Zero`].
    pub name: Vec<u8>,
    /// First sector in that file, for [`ExtentType::Flat`].
    pub start_sector: u64,
}

/// A descriptor that was understood as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Changes with the content.
    pub cid: u32,
    /// The parent's `cid` when this image was made; [`NO_PARENT`].
    pub parent_cid: u32,
    /// One of the kinds that are read.
    pub create_type: &'static str,
    /// Name of the parent.
    pub parent_hint: Option<Vec<u8>>,
    /// In the order of the disk.
    pub extents: Vec<ExtentLine>,
}

impl Descriptor {
    /// Reads a descriptor. An embedded one is followed by zeroes.
    ///
    /// # Errors
    /// [`FormatErrorKind::Damaged`] for what is no descriptor or can be read in two ways,
    /// [`FormatErrorKind::Unsupported`] for other kinds of images, naming them,
    /// [`FormatErrorKind::NotAllowed`] for devices of the host.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        let mut keys = Keys::default();
        let mut extents = Vec::new();
        for (number, line) in (1_usize..).zip(text.split(|&b| b == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if line.len() > MAX_LINE_BYTES {
                return Err(damaged(number, "is too long"));
            }
            let first = line.split(|b| b.is_ascii_whitespace()).next();
            match first.unwrap_or_default() {
                b"RW" | b"RDONLY" | b"NOACCESS" => {
                    if extents.len() >= MAX_EXTENTS {
                        return Err(FormatError::new(
                            FormatErrorKind::Unsupported,
                            format!("the descriptor lists more than {MAX_EXTENTS} extents"),
                        ));
                    }
                    extents.push(extent(line, number)?);
                }
                _ => keys.take(line, number)?,
            }
        }
        keys.finish(extents)
    }
}

/// The values that count, as far as they were seen.
#[derive(Default)]
struct Keys {
    cid: Option<u32>,
    parent_cid: Option<u32>,
    create_type: Option<Vec<u8>>,
    parent_hint: Option<Vec<u8>>,
}

impl Keys {
    fn take(&mut self, line: &[u8], number: usize) -> Result<()> {
        let Some(equals) = line.iter().position(|&b| b == b'=') else {
            return Err(damaged(number, "is not understood"));
        };
        let (key, value) = line.split_at_checked(equals).unwrap_or_default();
        let key = key.trim_ascii();
        let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
        if key.is_empty() || !key.iter().all(word) {
            return Err(damaged(number, "is not understood"));
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let value = match value.strip_prefix(b"\"") {
            Some(rest) => rest
                .strip_suffix(b"\"")
                .ok_or_else(|| damaged(number, "has a quote without its counterpart"))?,
            None => value,
        };
        if value.contains(&b'"') {
            return Err(damaged(number, "has a quote within a value"));
        }
        let known = [
            "version",
            "CID",
            "parentCID",
            "createType",
            "parentFileNameHint",
        ]
        .into_iter()
        .find(|known| key.eq_ignore_ascii_case(known.as_bytes()));
        if known.is_some_and(|known| known.as_bytes() != key) {
            return Err(damaged(
                number,
                "spells a key in another way than everybody",
            ));
        }
        match known {
            Some("version") if !matches!(value, b"1" | b"2" | b"3" | b"4") => {
                Err(FormatError::new(
                    FormatErrorKind::Unsupported,
                    format!("descriptor version '{}' is not supported", printable(value)),
                ))
            }
            Some("CID") => once(&mut self.cid, content_id(value, number)?, number),
            Some("parentCID") => once(&mut self.parent_cid, content_id(value, number)?, number),
            Some("createType") => once(&mut self.create_type, value.to_vec(), number),
            Some("parentFileNameHint") => once(&mut self.parent_hint, value.to_vec(), number),
            _ if key.starts_with(b"encryption") => Err(FormatError::new(
                FormatErrorKind::Unsupported,
                "the image is encrypted, which is not supported for VMDK",
            )),
            // Disk database, change tracking and whatever else does not change the content.
            _ => Ok(()),
        }
    }

    fn finish(self, extents: Vec<ExtentLine>) -> Result<Descriptor> {
        let missing = |key| {
            FormatError::new(
                FormatErrorKind::Damaged,
                format!("the descriptor has no {key}"),
            )
        };
        let kind = self.create_type.ok_or_else(|| missing("createType"))?;
        let find = |kinds: &[&'static str]| kinds.iter().find(|k| k.as_bytes() == kind).copied();
        if let Some(device) = find(&DEVICE_KINDS) {
            return Err(FormatError::new(
                FormatErrorKind::NotAllowed,
                format!(
                    "images of createType {device} stand for a device of the host, which is never opened"
                ),
            ));
        }
        let create_type = find(&KINDS).ok_or_else(|| {
            FormatError::new(
                FormatErrorKind::Unsupported,
                format!(
                    "images of createType '{}' are not supported",
                    printable(&kind)
                ),
            )
        })?;
        let parent_cid = self.parent_cid.unwrap_or(NO_PARENT);
        if (parent_cid == NO_PARENT) != self.parent_hint.is_none() {
            return Err(FormatError::new(
                FormatErrorKind::Damaged,
                "the descriptor contradicts itself: parentCID and parentFileNameHint go together",
            ));
        }
        Ok(Descriptor {
            cid: self.cid.ok_or_else(|| missing("CID"))?,
            parent_cid,
            create_type,
            parent_hint: self.parent_hint,
            extents,
        })
    }
}

fn once<T>(slot: &mut Option<T>, value: T, number: usize) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(damaged(number, "gives a key for the second time")),
    }
}

fn content_id(value: &[u8], number: usize) -> Result<u32> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.len() <= 8 && !text.starts_with('+'))
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or_else(|| damaged(number, "has no content id of up to 8 hexadecimal digits"))
}

/// `ACCESS SECTORS TYPE ["NAME" [START]]`.
fn extent(line: &[u8], number: usize) -> Result<ExtentLine> {
    let not_understood = || damaged(number, "is an extent that is not understood");
    let quote = line.iter().position(|&b| b == b'"');
    let (words, quoted) = line
        .split_at_checked(quote.unwrap_or(line.len()))
        .unwrap_or_default();
    let mut words = words
        .split(|b| b.is_ascii_whitespace())
        .filter(|w| !w.is_empty());
    let access = words.next().unwrap_or_default();
    let sectors = words.next().and_then(decimal).ok_or_else(not_understood)?;
    let type_name = printable(words.next().unwrap_or_default());
    if words.next().is_some() {
        return Err(not_understood());
    }
    if access == b"NOACCESS" {
        return Err(FormatError::new(
            FormatErrorKind::Unsupported,
            format!("the extent in line {number} of the descriptor has no content (NOACCESS)"),
        ));
    }
    let kind = match type_name.as_str() {
        "FLAT" | "VMFS" => ExtentType::Flat,
        "SPARSE" => ExtentType::Sparse,
        "VMFSSPARSE" => ExtentType::VmfsSparse,
        "SESPARSE" => ExtentType::SeSparse,
        "ZERO" => ExtentType::Zero,
        "VMFSRAW" | "VMFSRDM" => {
            return Err(FormatError::new(
                FormatErrorKind::NotAllowed,
                format!(
                    "the extent in line {number} of the descriptor is a device of the host ({type_name}), which is never opened"
                ),
            ));
        }
        _ => {
            return Err(FormatError::new(
                FormatErrorKind::Unsupported,
                format!("extents of type '{type_name}' are not supported"),
            ));
        }
    };
    let mut quoted = quoted.get(1..).unwrap_or_default().split(|&b| b == b'"');
    let name = quoted.next().unwrap_or_default().to_vec();
    let rest = quoted.next().unwrap_or_default().trim_ascii();
    let named = quote.is_some();
    if quoted.next().is_some() || named == (kind == ExtentType::Zero) || named == name.is_empty() {
        return Err(not_understood());
    }
    if sectors == 0 {
        return Err(damaged(number, "is an extent of no length"));
    }
    if name.starts_with(b"/") {
        return Err(FormatError::new(
            FormatErrorKind::NotAllowed,
            format!(
                "extent '{}' is named by an absolute path: extents are files beside their descriptor, never devices or other files of the host",
                printable(&name)
            ),
        ));
    }
    let start_sector = match (kind, rest) {
        // Only of VMFS extents is the start left out.
        (ExtentType::Flat, b"") if type_name == "FLAT" => return Err(not_understood()),
        (_, b"") => 0,
        (ExtentType::Flat, start) => decimal(start).ok_or_else(not_understood)?,
        _ => return Err(not_understood()),
    };
    Ok(ExtentLine {
        kind,
        type_name,
        sectors,
        name,
        start_sector,
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn damaged(number: usize, what: &str) -> FormatError {
    FormatError::new(
        FormatErrorKind::Damaged,
        format!("line {number} of the descriptor {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Disk DescriptorFile\nversion=1\nCID=12aBcdef\nparentCID=ffffffff\n";

    fn parse(rest: &str) -> Result<Descriptor> {
        Descriptor::parse(format!("{HEAD}{rest}").as_bytes())
    }

    #[test]
    fn what_is_written_is_understood() {
        let d = parse(
            "createType = \"twoGbMaxExtentFlat\"\r\n\n# Extent description\n\
             RW 100 FLAT \"a b-f001.vmdk\" 7\nRDONLY 5 ZERO\nRW 3 VMFS \"x\"\nRW 9 SPARSE \"y\"\n\
             ddb.adapterType = \"ide\"\nddb.comment = \"\"\n\0\0garbage",
        )
        .unwrap();
        assert_eq!((d.cid, d.parent_cid), (0x12ab_cdef, NO_PARENT));
        assert_eq!(d.create_type, "twoGbMaxExtentFlat");
        let seen: Vec<_> = d
            .extents
            .iter()
            .map(|e| (e.kind, e.sectors, e.name.as_slice(), e.start_sector))
            .collect();
        assert_eq!(
            seen,
            [
                (ExtentType::Flat, 100, &b"a b-f001.vmdk"[..], 7),
                (ExtentType::Zero, 5, b"", 0),
                (ExtentType::Flat, 3, b"x", 0),
                (ExtentType::Sparse, 9, b"y", 0),
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        use FormatErrorKind::{Damaged, NotAllowed, Unsupported};
        let flat = "createType=\"monolithicFlat\"\n";
        for (text, kind) in [
            ("", Damaged),
            ("createType=\"custom\"\n", Unsupported),
            ("createType=\"fullDevice\"\n", NotAllowed),
            (&format!("{flat}createType=\"vmfs\"\n"), Damaged),
            (&format!("{flat}CID=12abcdef\n"), Damaged),
            (&format!("{flat}cid=12abcdef\n"), Damaged),
            (&format!("{flat}PARENTFILENAMEHINT=\"x\"\n"), Damaged),
            (&format!("{flat}parentFileNameHint=\"x\"\n"), Damaged),
            (&format!("{flat}version=9\n"), Unsupported),
            (&format!("{flat}hello\n"), Damaged),
            (&format!("{flat}a b=c\n"), Damaged),
            (&format!("{flat}a=\"b\n"), Damaged),
            (&format!("{flat}a=b\"c\n"), Damaged),
            (&format!("{flat}rw 1 FLAT \"x\" 0\n"), Damaged),
            (&format!("{flat}RW 1 FLAT x 0\n"), Damaged),
            (&format!("{flat}RW 1 FLAT \"x\"\n"), Damaged),
            (&format!("{flat}RW 1 FLAT \"x\" -1\n"), Damaged),
            (&format!("{flat}RW -1 FLAT \"x\" 0\n"), Damaged),
            (&format!("{flat}RW 0 FLAT \"x\" 0\n"), Damaged),
            (&format!("{flat}RW 1 FLAT \"x\" 0 \"y\" 1\n"), Damaged),
            (&format!("{flat}RW 1 FLAT \"\" 0\n"), Damaged),
            (&format!("{flat}RW 1 FLAT\n"), Damaged),
            (&format!("{flat}RW 1 SPARSE \"x\" 0\n"), Damaged),
            (&format!("{flat}RW 1 ZERO \"x\"\n"), Damaged),
            (&format!("{flat}RW 1 FLAT \"/etc/passwd\" 0\n"), NotAllowed),
            (&format!("{flat}RW 1 VMFSRAW \"x\"\n"), NotAllowed),
            (&format!("{flat}RW 1 NEW \"x\"\n"), Unsupported),
            (&format!("{flat}NOACCESS 1 FLAT \"x\" 0\n"), Unsupported),
            (&format!("{flat}encryption.keySafe = \"x\"\n"), Unsupported),
            (&format!("{flat}x={}\n", "y".repeat(5000)), Damaged),
            (
                &format!("{flat}{}", "RW 1 ZERO\n".repeat(5000)),
                Unsupported,
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}: {error}");
        }
        assert_eq!(Descriptor::parse(b"").unwrap_err().kind(), Damaged);
        let no_hint = b"CID=1\nparentCID=2\ncreateType=\"vmfs\"\n";
        assert_eq!(Descriptor::parse(no_hint).unwrap_err().kind(), Damaged);
    }
}
