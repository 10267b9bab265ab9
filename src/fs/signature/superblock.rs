//! Filesystems told by a magic at a fixed place, and swap.

use super::{Look, Signature};
use crate::ondisk::bytes::{array, le16, le32, slice};

/// How a filesystem is told and where its UUID and label are, all in bytes from the start of the
/// volume; a label has a length as well.
struct Layout {
    kind: &'static str,
    magic_at: u64,
    magic: &'static [u8],
    uuid_at: Option<u64>,
    label: Option<(u64, usize)>,
}

const LAYOUTS: &[Layout] = &[
    Layout {
        kind: "xfs",
        magic_at: 0,
        magic: b"XFSB",
        uuid_at: Some(32),
        label: Some((108, 12)),
    },
    Layout {
        kind: "erofs",
        magic_at: 1024,
        magic: &[0xE2, 0xE1, 0xF5, 0xE0],
        uuid_at: Some(1024 + 48),
        label: Some((1024 + 64, 16)),
    },
    Layout {
        kind: "nilfs2",
        magic_at: 1024 + 6,
        magic: &[0x34, 0x34],
        uuid_at: Some(1024 + 152),
        label: Some((1024 + 168, 80)),
    },
    Layout {
        kind: "jfs",
        magic_at: 32768,
        magic: b"JFS1",
        uuid_at: Some(32768 + 136),
        label: Some((32768 + 152, 16)),
    },
    Layout {
        kind: "reiserfs",
        magic_at: 65536 + 52,
        magic: b"ReIsEr2Fs",
        uuid_at: Some(65536 + 84),
        label: Some((65536 + 100, 16)),
    },
    Layout {
        kind: "reiserfs",
        magic_at: 65536 + 52,
        magic: b"ReIsEr3Fs",
        uuid_at: Some(65536 + 84),
        label: Some((65536 + 100, 16)),
    },
    Layout {
        kind: "reiserfs",
        magic_at: 65536 + 52,
        magic: b"ReIsErFs",
        uuid_at: None,
        label: None,
    },
    Layout {
        kind: "btrfs",
        magic_at: 65536 + 64,
        magic: b"_BHRfS_M",
        uuid_at: Some(65536 + 32),
        label: Some((65536 + 299, 256)),
    },
    Layout {
        kind: "bcachefs",
        magic_at: 4096 + 24,
        magic: &[
            0xC6, 0x85, 0x73, 0xF6, 0x66, 0xCE, 0x90, 0xA9, 0xD9, 0x6A, 0x60, 0xCF, 0x80, 0x3D,
            0xF7, 0xEF,
        ],
        uuid_at: Some(4096 + 56),
        label: Some((4096 + 72, 32)),
    },
];

impl Layout {
    fn find(&self, look: &Look<'_>) -> Option<Signature> {
        if !look.has(self.magic_at, self.magic) {
            return None;
        }
        let uuid = self
            .uuid_at
            .and_then(|at| look.bytes(at, 16))
            .and_then(|raw| array(&raw, 0));
        let label = self.label.and_then(|(at, len)| look.bytes(at, len));
        Some(Signature::new(self.kind).uuid(uuid).label(label.as_deref()))
    }
}

pub(super) fn find(look: &Look<'_>) -> Option<Signature> {
    swap(look)
        .or_else(|| f2fs(look))
        .or_else(|| squashfs(look))
        .or_else(|| LAYOUTS.iter().find_map(|layout| layout.find(look)))
        .or_else(|| iso9660(look))
}

/// Swap: the magic ends the first page, of whatever size; the header is at 1024
/// (`union swap_header`). A hibernated system leaves its own magic there.
fn swap(look: &Look<'_>) -> Option<Signature> {
    for page in [4096u64, 8192, 16384, 32768, 65536] {
        let Some(magic) = page.checked_sub(10).and_then(|at| look.bytes(at, 10)) else {
            continue;
        };
        let header = |kind| {
            let raw = look.bytes(1024, 128)?;
            let found = Signature::new(kind);
            // Version 1 is the only one with a UUID and a label.
            if le32(&raw, 0)? != 1 {
                return Some(found);
            }
            Some(found.uuid(array(&raw, 12)).label(slice(&raw, 28, 16)))
        };
        if magic == *b"SWAPSPACE2" {
            return header("swap");
        }
        if magic == *b"SWAP-SPACE" {
            return Some(Signature::new("swap"));
        }
        const SUSPENDED: [&[u8]; 5] = [
            b"S1SUSPEND",
            b"S2SUSPEND",
            b"ULSUSPEND",
            b"LINHIB0001",
            &[0xED, 0xC3, 0x02, 0xE9, 0x98, 0x56, 0xE5, 0x0C],
        ];
        if SUSPENDED.iter().any(|s| magic.starts_with(s)) {
            return header("swsuspend");
        }
    }
    None
}

/// F2FS: the label is UTF-16.
fn f2fs(look: &Look<'_>) -> Option<Signature> {
    if !look.has(1024, &[0x10, 0x20, 0xF5, 0xF2]) {
        return None;
    }
    let raw = look.bytes(1024, 124 + 1024)?;
    let label = crate::ondisk::text::utf16le(slice(&raw, 124, 1024)?);
    Some(
        Signature::new("f2fs")
            .uuid(array(&raw, 108))
            .label(Some(label.as_bytes())),
    )
}

/// SquashFS has neither UUID nor label; before version 4 blkid names it otherwise.
fn squashfs(look: &Look<'_>) -> Option<Signature> {
    let raw = look.bytes(0, 96)?;
    let big = match slice(&raw, 0, 4)? {
        b"hsqs" => false,
        b"sqsh" => true,
        _ => return None,
    };
    let major = le16(&raw, 28).map(|m| if big { m.swap_bytes() } else { m })?;
    Some(Signature::new(if major < 4 {
        "squashfs3"
    } else {
        "squashfs"
    }))
}

/// ISO 9660: the UUID is the date of modification, or else of creation (ECMA-119, 8.4).
fn iso9660(look: &Look<'_>) -> Option<Signature> {
    let raw = look.bytes(32768, 2048)?;
    if slice(&raw, 1, 5)? != b"CD001" {
        return None;
    }
    let date = |at: usize| {
        let digits = slice(&raw, at, 16)?;
        let given = digits.iter().any(|&d| d != b'0') && digits.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(digits).ok().filter(|_| given)?;
        let mut out = String::new();
        for (i, c) in text.chars().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10 | 12 | 14) {
                out.push('-');
            }
            out.push(c);
        }
        Some(out)
    };
    Some(Signature {
        uuid: date(830).or_else(|| date(813)),
        ..Signature::new("iso9660").label(slice(&raw, 40, 32))
    })
}
