//! The guest's fstab: which filesystem goes where.
//!
//! The grammar is fstab(5) as libmount reads it: fields separated by blanks and tabs, `\040`-style
//! octal escapes, `#` comments at the start of a line, optional quotes around tag values. One bad
//! line is a problem of its own and never loses the rest.
//!
//! Every filesystem an entry names is shown at its place, `noauto` and `nofail` entries too: the
//! point is to see the files, not to boot. What cannot be shown (a type without a driver, a device
//! that is not among the images, a missing mount point) is a [`Problem`] naming the line.

use serde::Serialize;

use super::discover::{Content, Guest, Volume};
use super::error::Problem;
use super::view::{FollowFinal, GuestView, normalise};
use crate::fs::signature::is_filesystem;
use crate::fs::{FileType, FsErrorKind};
use crate::limits;
use crate::ondisk::text::printable;

/// Most fstab lines considered; real files have a dozen.
const MAX_ENTRIES: usize = 1024;

/// One line of fstab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FstabEntry {
    /// Line number, from 1.
    pub line: usize,
    /// First field as written, escapes decoded: `UUID=…`, `/dev/sda1`, `tmpfs`, … printable.
    pub spec: String,
    /// Mount point, escapes decoded and normalised, printable; `none` for swap.
    pub mount_point: String,
    /// Filesystem type as written, printable.
    #[serde(rename = "type")]
    pub fs_type: String,
    /// Mount options, printable.
    pub options: Vec<String>,
    /// Name of the volume the spec leads to, if it is among the images.
    pub volume: Option<String>,
    /// Whether its filesystem is in the tree.
    pub mounted: bool,
    #[serde(skip)]
    raw_point: Vec<u8>,
    #[serde(skip)]
    raw_spec: Vec<u8>,
}

/// The tree that belongs to a root filesystem.
pub struct Assembled {
    /// The tree.
    pub view: GuestView,
    /// All entries of its fstab, in file order.
    pub fstab: Vec<FstabEntry>,
    /// What could not be followed.
    pub problems: Vec<Problem>,
}

/// Assembles the tree of the guest whose root filesystem is on `volumes()[root]`. `None` if there
/// is no open filesystem on that volume.
pub fn assemble(guest: &Guest, root: usize) -> Option<Assembled> {
    let volume = guest.volumes().get(root)?;
    let Content::FileSystem(fs) = &volume.content else {
        return None;
    };
    let mut view = GuestView::new(std::sync::Arc::clone(fs), root);
    let mut problems = Vec::new();
    let text = match view.read_file(b"/etc/fstab", limits::MAX_CONFIG_BYTES) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != FsErrorKind::NotFound {
                problems.push(problem(0, &format!("cannot be read: {error}")));
            }
            return Some(Assembled {
                view,
                fstab: Vec::new(),
                problems,
            });
        }
    };
    let mut fstab = parse(&text, &mut problems);
    for entry in &mut fstab {
        let found = find_volume(guest, root, &entry.raw_spec, &mut problems, entry.line);
        entry.volume = found
            .and_then(|i| guest.volumes().get(i))
            .map(|v| v.name.clone());
        entry.mounted = found == Some(root) && entry.raw_point == b"/";
    }
    // Parents before children, whatever the order of the lines.
    let mut order: Vec<usize> = (0..fstab.len()).collect();
    order.sort_by_key(|&i| fstab.get(i).map_or(0, |e| e.raw_point.len()));
    for index in order {
        let Some(entry) = fstab.get_mut(index) else {
            continue;
        };
        if let Err(message) = mount_entry(guest, &mut view, entry) {
            problems.push(problem(entry.line, &message));
        }
    }
    problems.sort_by_key(line_of);
    Some(Assembled {
        view,
        fstab,
        problems,
    })
}

/// The line a problem of [`problem`] is about.
fn line_of(problem: &Problem) -> usize {
    let number = problem.subject.rsplit_once(':').map(|(_, n)| n.parse());
    number.and_then(Result::ok).unwrap_or(0)
}

fn problem(line: usize, message: &str) -> Problem {
    let subject = if line == 0 {
        "etc/fstab".to_owned()
    } else {
        format!("etc/fstab:{line}")
    };
    Problem::new(subject, printable(message.as_bytes()))
}

/// Puts one entry's filesystem into the tree. `Err` is a message for the problem list; entries
/// that are none of our business (tmpfs, swap, network) are `Ok`.
fn mount_entry(guest: &Guest, view: &mut GuestView, entry: &mut FstabEntry) -> Result<(), String> {
    if entry.raw_point.first() != Some(&b'/') || entry.raw_point == b"/" || entry.mounted {
        return Ok(());
    }
    if is_kernel_tree(&entry.raw_point) {
        return Ok(());
    }
    if is_bind(entry) {
        return bind(view, entry);
    }
    if !is_device_spec(&entry.raw_spec) {
        return Ok(());
    }
    let Some(name) = &entry.volume else {
        return Err(format!("{} is not among the images", entry.spec));
    };
    let Some((index, volume)) = guest
        .volumes()
        .iter()
        .enumerate()
        .find(|(_, v)| &v.name == name)
    else {
        return Err(format!("{name} has gone"));
    };
    match &volume.content {
        Content::FileSystem(fs) => {
            view.mount(&entry.raw_point, std::sync::Arc::clone(fs), index)
                .map_err(|error| {
                    format!("{name} cannot be shown at {}: {error}", entry.mount_point)
                })?;
            entry.mounted = true;
            Ok(())
        }
        Content::Recognised(signature) if !is_filesystem(signature.kind) => Ok(()),
        Content::Recognised(signature) => Err(format!(
            "{name} ({}) at {} cannot be read by this version",
            signature.kind, entry.mount_point
        )),
        Content::Failed { fs_type, reason } => Err(format!(
            "{name} ({fs_type}) at {} cannot be read: {reason}",
            entry.mount_point
        )),
        Content::Unknown => Err(format!(
            "{name} at {} holds nothing known",
            entry.mount_point
        )),
    }
}

/// Trees the kernel makes; fstab entries on or below them say nothing about files on disk.
fn is_kernel_tree(point: &[u8]) -> bool {
    [&b"/proc"[..], b"/sys", b"/dev", b"/selinux", b"/run"]
        .iter()
        .any(|top| {
            point
                .strip_prefix(*top)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
}

fn is_bind(entry: &FstabEntry) -> bool {
    entry.options.iter().any(|o| o == "bind" || o == "rbind")
}

/// Shows a directory of the tree at a second place.
fn bind(view: &mut GuestView, entry: &mut FstabEntry) -> Result<(), String> {
    let source = view
        .resolve(&entry.raw_spec, FollowFinal::Yes)
        .map_err(|error| format!("the source {} of a bind mount: {error}", entry.spec))?;
    let is_dir = view
        .attributes(source)
        .is_ok_and(|attributes| attributes.file_type == FileType::Directory);
    if !is_dir {
        return Err(format!(
            "the source {} of a bind mount is no directory",
            entry.spec
        ));
    }
    view.bind(&entry.raw_point, source)
        .map_err(|error| format!("{} cannot be shown: {error}", entry.mount_point))?;
    entry.mounted = true;
    Ok(())
}

/// Whether a spec names a disk or a part of one.
fn is_device_spec(spec: &[u8]) -> bool {
    tag(spec).is_some() || spec.starts_with(b"/dev/")
}

/// `UUID=x` and its kin: the tag and its value, quotes removed.
fn tag(spec: &[u8]) -> Option<(&str, &[u8])> {
    let at = spec.iter().position(|&b| b == b'=')?;
    let (name, value) = spec.split_at_checked(at)?;
    let name = std::str::from_utf8(name).ok()?;
    if !matches!(name, "UUID" | "LABEL" | "PARTUUID" | "PARTLABEL") {
        return None;
    }
    let value = value.get(1..)?;
    let unquoted = [b'"', b'\''].iter().find_map(|q| {
        value
            .strip_prefix(&[*q])
            .and_then(|v| v.strip_suffix(&[*q]))
    });
    Some((name, unquoted.unwrap_or(value)))
}

/// UUID and label of a volume's content.
fn identity(volume: &Volume) -> (Option<&str>, Option<&str>) {
    match &volume.content {
        Content::FileSystem(fs) => {
            let info = fs.info();
            (info.uuid.as_deref(), info.label.as_deref())
        }
        Content::Recognised(signature) => (signature.uuid.as_deref(), signature.label.as_deref()),
        Content::Failed { .. } | Content::Unknown => (None, None),
    }
}

/// The volume a spec leads to. Two volumes of the same UUID or label (a copied disk) are a
/// problem: the first counts, as the root's own disk comes first.
fn find_volume(
    guest: &Guest,
    root: usize,
    spec: &[u8],
    problems: &mut Vec<Problem>,
    line: usize,
) -> Option<usize> {
    let by = |wanted: &dyn Fn(&Volume) -> bool, problems: &mut Vec<Problem>| {
        let mut found = guest
            .volumes()
            .iter()
            .enumerate()
            .filter(|(_, v)| wanted(v))
            .map(|(i, _)| i);
        let first = found.next()?;
        let rest: Vec<usize> = found.collect();
        if rest.is_empty() {
            return Some(first);
        }
        problems.push(problem(
            line,
            &format!(
                "{} fits {} volumes",
                printable(spec),
                rest.len().saturating_add(1)
            ),
        ));
        Some(if rest.contains(&root) { root } else { first })
    };
    let same = |a: Option<&str>, b: &[u8]| a.is_some_and(|a| a.as_bytes().eq_ignore_ascii_case(b));
    let exact = |a: Option<&str>, b: &[u8]| a.is_some_and(|a| a.as_bytes() == b);
    let tagged = tag(spec).or_else(|| {
        let link = spec.strip_prefix(b"/dev/disk/by-")?;
        let at = link.iter().position(|&b| b == b'/')?;
        let (kind, value) = link.split_at_checked(at)?;
        let name = match kind {
            b"uuid" => "UUID",
            b"label" => "LABEL",
            b"partuuid" => "PARTUUID",
            b"partlabel" => "PARTLABEL",
            _ => return None,
        };
        Some((name, value.get(1..)?))
    });
    if let Some((name, value)) = tagged {
        let value = &unescape_udev(value)[..];
        return match name {
            "UUID" => by(&|v| same(identity(v).0, value), problems),
            "LABEL" => by(&|v| exact(identity(v).1, value), problems),
            "PARTUUID" => by(
                &|v| same(v.partition.as_ref().map(|p| p.partuuid.as_str()), value),
                problems,
            ),
            _ => by(
                &|v| {
                    let label = v.partition.as_ref().map(|p| p.label.as_str());
                    exact(label.filter(|l| !l.is_empty()), value)
                },
                problems,
            ),
        };
    }
    let name = spec.strip_prefix(b"/dev/")?;
    if name == b"root" {
        return Some(root);
    }
    let (disk, partition) = device_name(std::str::from_utf8(name).ok()?)?;
    guest
        .volumes()
        .iter()
        .position(|v| v.disk == disk && v.partition.as_ref().map(|p| p.number) == partition)
}

/// udev writes blanks and slashes of link names as `\x20`, `\x2f`.
fn unescape_udev(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| tail.strip_prefix(b"x").and_then(|t| t.get(..2)))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// `sda1`, `vdb`, `xvda2`, `hdc3`, `nvme0n1p2`, `mmcblk0p1` as the index of the disk in the order
/// the images were given, and the partition's number.
fn device_name(name: &str) -> Option<(usize, Option<u32>)> {
    let number = |digits: &str| -> Option<Option<u32>> {
        if digits.is_empty() {
            return Some(None);
        }
        // No sign, no leading zero: `sda01` is no device.
        if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
            return None;
        }
        digits.parse().ok().map(Some)
    };
    if let Some(rest) = name
        .strip_prefix("nvme")
        .or_else(|| name.strip_prefix("mmcblk"))
    {
        let nvme = name.starts_with("nvme");
        let (disk, rest) = rest.split_at(
            rest.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len()),
        );
        let disk: usize = disk.parse().ok()?;
        let rest = if nvme { rest.strip_prefix("n1")? } else { rest };
        return match rest.strip_prefix('p') {
            Some(digits) => Some((disk, Some(number(digits)??))),
            None if rest.is_empty() => Some((disk, None)),
            None => None,
        };
    }
    let rest = ["xvd", "sd", "hd", "vd"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let letters = rest
        .find(|c: char| !c.is_ascii_lowercase())
        .unwrap_or(rest.len());
    let (letters, digits) = rest.split_at(letters);
    if letters.is_empty() || letters.len() > 2 {
        return None;
    }
    let disk = letters.bytes().try_fold(0usize, |acc, b| {
        acc.checked_mul(26)?
            .checked_add(usize::from(b.checked_sub(b'a')?))?
            .checked_add(1)
    })?;
    Some((disk.checked_sub(1)?, number(digits)?))
}

/// The lines of an fstab. Bad ones become problems.
pub fn parse(text: &[u8], problems: &mut Vec<Problem>) -> Vec<FstabEntry> {
    let mut entries = Vec::new();
    // Bad lines count as well: each is a problem that is kept.
    let mut considered = 0usize;
    for (index, line) in text.split(|&b| b == b'\n').enumerate() {
        let number = index.saturating_add(1);
        let mut fields = line
            .split(|b| matches!(b, b' ' | b'\t' | b'\r'))
            .filter(|field| !field.is_empty())
            .map(decode_octal);
        let Some(spec) = fields.next() else { continue };
        if spec.first() == Some(&b'#') {
            continue;
        }
        if considered >= MAX_ENTRIES {
            problems.push(problem(number, "more lines than are considered"));
            break;
        }
        considered = considered.saturating_add(1);
        let Some(point) = fields.next() else {
            problems.push(problem(number, "no mount point"));
            continue;
        };
        let fs_type = fields.next().unwrap_or_else(|| b"auto".to_vec());
        let options = fields.next().unwrap_or_else(|| b"defaults".to_vec());
        let raw_point = if point.first() == Some(&b'/') {
            normalise(&point)
        } else {
            point
        };
        if raw_point.contains(&0) || raw_point.len() > limits::MAX_PATH_BYTES {
            problems.push(problem(number, "an impossible mount point"));
            continue;
        }
        entries.push(FstabEntry {
            line: number,
            spec: printable(&spec),
            mount_point: printable(&raw_point),
            fs_type: printable(&fs_type),
            options: options.split(|&b| b == b',').map(printable).collect(),
            volume: None,
            mounted: false,
            raw_point,
            raw_spec: spec,
        });
    }
    entries
}

/// `\040` and the like, three octal digits, as getmntent(3) decodes them.
fn decode_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                digits.iter().try_fold(0u16, |acc, digit| {
                    matches!(digit, b'0'..=b'7').then(|| (acc << 3) | u16::from(digit & 7))
                })
            });
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(code) => {
                out.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names() {
        for (name, want) in [
            ("sda", Some((0, None))),
            ("sda1", Some((0, Some(1)))),
            ("vdb12", Some((1, Some(12)))),
            ("xvdaa3", Some((26, Some(3)))),
            ("hdc", Some((2, None))),
            ("nvme0n1p2", Some((0, Some(2)))),
            ("nvme1n1", Some((1, None))),
            ("mmcblk0p1", Some((0, Some(1)))),
            ("sda01", None),
            ("sd1", None),
            ("sda+1", None),
            ("nvme0n1p", None),
            ("mapper/vg-root", None),
            ("sdaaa1", None),
        ] {
            assert_eq!(device_name(name), want, "{name}");
        }
    }

    #[test]
    fn one_bad_line_never_loses_the_rest() {
        let mut problems = Vec::new();
        let text = b"# comment\n\nUUID=1234 / ext4 defaults 0 1\nbad\n  LABEL=\"my data\"\t/srv/my\\040data ext4 ro,noauto\nproc /proc proc\r\n/dev/sdb1 /x";
        let entries = parse(text, &mut problems);
        let points: Vec<&str> = entries.iter().map(|e| e.mount_point.as_str()).collect();
        // A blank inside quotes separates, as it does for libmount: `data"` is that mount point.
        assert_eq!(points, ["/", "data\"", "/proc", "/x"]);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].subject, "etc/fstab:4");
        assert_eq!(entries[0].options, ["defaults"]);
        assert_eq!(
            decode_octal(b"/srv/my\\040data\\1\\999"),
            b"/srv/my data\\1\\999"
        );
        assert_eq!(tag(b"LABEL=\"x\""), Some(("LABEL", &b"x"[..])));
        assert_eq!(tag(b"ID=x"), None);
        assert_eq!(unescape_udev(b"my\\x20data"), b"my data");
    }
}
