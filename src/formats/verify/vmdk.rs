//! VMDK: only single-file images are safe, and only descriptors of which every line is understood.

use super::report::Report;
use super::test;
use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::ondisk::bytes::{le16, le32, le64};
use crate::ondisk::text::{printable, until_nul};
use crate::ondisk::units::to_usize;

const SECTOR: u64 = 512;
/// Longest descriptor, in bytes.
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Largest grain directory, in bytes, as QEMU's L1 table.
const MAX_DIRECTORY: u64 = 512 << 20;
/// Where a header says its grain directory is when only the footer knows.
const AT_END: u64 = u64::MAX;

/// What is looked at in a header or footer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor_at: u64,
    descriptor_len: u64,
    entries: u32,
    directory_at: u64,
    compression: u16,
}

impl Header {
    fn parse(data: &[u8]) -> Option<Self> {
        let header = Self {
            version: le32(data, 4)?,
            flags: le32(data, 8)?,
            capacity: le64(data, 12)?,
            grain: le64(data, 20)?,
            descriptor_at: le64(data, 28)?,
            descriptor_len: le64(data, 36)?,
            entries: le32(data, 44)?,
            directory_at: le64(data, 56)?,
            compression: le16(data, 77)?,
        };
        data.starts_with(b"KDMV").then_some(header)
    }
}

/// Checks a VMDK; returns the size of its virtual disk.
///
/// # Errors
/// What reading reports.
pub fn check(file: &BlockDevice, report: &mut Report) -> Result<Option<u64>> {
    let mut head = [0; 512];
    file.read_some_at(0, &mut head)?;
    let Some(header) = Header::parse(&head) else {
        report.fail(
            "extents",
            "the image is only a descriptor: its content is in other files",
        );
        let mut text = vec![0; to_usize(MAX_DESCRIPTOR).unwrap_or(0)];
        let len = file.read_some_at(0, &mut text)?;
        descriptor(text.get(..len).unwrap_or_default(), None, report);
        return Ok(None);
    };
    let version = header.version;
    test(
        report,
        "version",
        (1..=3).contains(&version),
        "the version is known",
        format!("header version {version}, not 1 to 3"),
    );
    geometry(file, &header, report);
    let len = header.descriptor_len.saturating_mul(SECTOR);
    if header.descriptor_at != 1 || len == 0 || len >= MAX_DESCRIPTOR {
        report.fail(
            "descriptor",
            format!(
                "a descriptor of {len} bytes at sector {}, not behind the header",
                header.descriptor_at
            ),
        );
    } else {
        let mut text = vec![0; to_usize(len).unwrap_or(0)];
        if file.read_some_at(SECTOR, &mut text)? < text.len() {
            report.fail("descriptor", "the descriptor is cut short");
        } else {
            descriptor(&text, Some(header.capacity), report);
        }
    }
    if header.directory_at == AT_END {
        footer(file, &header, report)?;
    }
    Ok(Some(header.capacity.saturating_mul(SECTOR)))
}

/// Numbers within the bounds QEMU has, and offsets inside the file.
fn geometry(file: &BlockDevice, header: &Header, report: &mut Report) {
    let mut bad = Vec::new();
    let grain = header.grain;
    if !grain.is_power_of_two() || !(8..=0x20_0000).contains(&grain) {
        bad.push(format!("grains of {grain} sectors"));
    }
    let entries = u64::from(header.entries);
    if !(1..=512).contains(&entries) {
        bad.push(format!("grain tables of {entries} entries"));
    }
    if header.compression > 1 {
        bad.push(format!("unknown compression {}", header.compression));
    }
    let covers = grain.saturating_mul(entries).max(1);
    let directory = header.capacity.div_ceil(covers).saturating_mul(4);
    if directory > MAX_DIRECTORY {
        bad.push(format!("a grain directory of {directory} bytes"));
    }
    if header.directory_at != AT_END {
        let at = header.directory_at.saturating_mul(SECTOR);
        if at.saturating_add(directory) > file.len() {
            bad.push(format!("a grain directory at {at}, outside the file"));
        }
    }
    test(
        report,
        "geometry",
        bad.is_empty(),
        "sizes are within bounds",
        bad.join("; "),
    );
}

/// Every line must be a comment, `ddb.…`, `word = value` or an extent.
fn descriptor(text: &[u8], capacity: Option<u64>, report: &mut Report) {
    let mut bad = Vec::new();
    let mut create_type = None;
    let mut parent = false;
    let mut extents = 0_u32;
    for line in until_nul(text).split(|&b| b == b'\n') {
        let line = line.trim_ascii();
        let Ok(line) = std::str::from_utf8(line) else {
            bad.push(format!("a line that is no text: {}", printable(line)));
            continue;
        };
        if line.is_empty() || line.starts_with('#') || line.starts_with("ddb.") {
            continue;
        }
        let access = line.split_ascii_whitespace().next().unwrap_or_default();
        if matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            extents = extents.saturating_add(1);
            extent(line, capacity, &mut bad);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            bad.push(format!("the line '{}'", printable(line.as_bytes())));
            continue;
        };
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        let word = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !word {
            bad.push(format!("the line '{}'", printable(line.as_bytes())));
        }
        match key.to_ascii_lowercase().as_str() {
            "createtype" if create_type.is_some() => bad.push("createType is there twice".into()),
            "createtype" => create_type = Some(value.to_owned()),
            "parentcid" => parent |= !value.eq_ignore_ascii_case("ffffffff"),
            "parentfilenamehint" => parent = true,
            _ => {}
        }
        if bad.len() > 16 {
            break;
        }
    }
    match create_type.as_deref() {
        Some("monolithicSparse" | "streamOptimized") => {
            report.pass("create-type", "the image is in one file");
        }
        other => report.fail(
            "create-type",
            format!(
                "createType is '{}', not monolithicSparse or streamOptimized",
                printable(other.unwrap_or_default().as_bytes())
            ),
        ),
    }
    if extents != 1 {
        bad.push(format!("{extents} extents"));
    }
    test(
        report,
        "descriptor",
        bad.is_empty(),
        "every line is understood",
        bad.join("; "),
    );
    test(
        report,
        "backing-file",
        !parent,
        "there is no parent",
        "the image stands on a parent, which is another file",
    );
}

/// `ACCESS SECTORS SPARSE "name"`: the image itself, under the name it once had.
fn extent(line: &str, capacity: Option<u64>, bad: &mut Vec<String>) {
    let mut words = line.splitn(4, |c: char| c.is_ascii_whitespace()).skip(1);
    let sectors = words.next().and_then(|n| n.parse::<u64>().ok());
    let kind = words.next().unwrap_or_default();
    let name = words.next().unwrap_or_default();
    let shown = printable(line.as_bytes());
    if kind != "SPARSE" {
        bad.push(format!("an extent that is not in the image: '{shown}'"));
    }
    if name.contains(['/', '\\']) || name.contains(':') {
        bad.push(format!("an extent with a path: '{shown}'"));
    }
    if sectors.is_none() || capacity.is_some_and(|c| Some(c) != sectors) {
        bad.push(format!(
            "an extent of another size than the disk: '{shown}'"
        ));
    }
}

/// The footer of a stream-optimized image: in front of the end marker, like the header.
fn footer(file: &BlockDevice, header: &Header, report: &mut Report) -> Result<()> {
    let mut data = [0; 1536];
    let Some(at) = file.len().checked_sub(1536) else {
        report.fail("footer", "the file is too short to have a footer");
        return Ok(());
    };
    file.read_exact_at(at, &mut data)?;
    let marker = |at: usize| {
        let field = |off: usize| at.checked_add(off);
        Some((
            le64(&data, at)?,
            le32(&data, field(8)?)?,
            le32(&data, field(12)?)?,
        ))
    };
    let mut bad = Vec::new();
    if marker(0) != Some((1, 0, 3)) {
        bad.push("no footer marker".to_owned());
    }
    if marker(1024) != Some((0, 0, 0)) {
        bad.push("no end marker".to_owned());
    }
    match Header::parse(data.get(512..1024).unwrap_or_default()) {
        None => bad.push("no footer".into()),
        Some(footer) if footer.directory_at == AT_END => {
            bad.push("the footer points to another footer".into());
        }
        Some(footer) => {
            let as_header = Header {
                directory_at: AT_END,
                ..footer
            };
            if as_header != *header {
                bad.push("the footer differs from the header".into());
            }
            geometry(file, &footer, report);
        }
    }
    test(
        report,
        "footer",
        bad.is_empty(),
        "the footer agrees with the header",
        bad.join("; "),
    );
    Ok(())
}
