//! Release files and settings of a guest, mutated: no panic, no long run, and `meta/os` stays one
//! harmless line for each key.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use guestlens::fs::{
    Attributes, DirEntry, FileExtent, FileSystem, FileType, FsError, FsErrorKind, FsInfo, FsUsage,
    InodeNo, Result, Timestamp,
};
use guestlens::guest::GuestView;
use guestlens::inspect::System;
use guestlens::meta;
use support::fuzz::{self, Rng, mutate_text};

enum Node {
    File(Vec<u8>),
    Link(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, u64>),
}

/// A filesystem in memory; inode `n` is `nodes[n - 1]`.
struct Memory {
    info: FsInfo,
    nodes: Vec<Node>,
}

fn missing() -> FsError {
    FsError::new(FsErrorKind::NotFound, "no such file")
}

impl Memory {
    fn new(files: &[(String, bool, Vec<u8>)]) -> Self {
        let mut nodes = vec![Node::Dir(BTreeMap::new())];
        for (path, link, content) in files {
            let mut here = 0;
            let parts: Vec<&str> = path.split('/').collect();
            for (n, part) in parts.iter().enumerate() {
                let next = nodes.len() as u64 + 1;
                let last = n + 1 == parts.len();
                let Node::Dir(names) = &mut nodes[here] else {
                    break;
                };
                let at = *names.entry(part.as_bytes().to_vec()).or_insert(next);
                if at == next {
                    nodes.push(match (last, link) {
                        (false, _) => Node::Dir(BTreeMap::new()),
                        (true, false) => Node::File(content.clone()),
                        (true, true) => Node::Link(content.clone()),
                    });
                }
                here = at as usize - 1;
            }
        }
        Self {
            info: FsInfo::default(),
            nodes,
        }
    }

    fn node(&self, ino: InodeNo) -> Result<&Node> {
        self.nodes.get(ino.0 as usize - 1).ok_or_else(missing)
    }
}

impl FileSystem for Memory {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn usage(&self) -> Result<FsUsage> {
        Ok(FsUsage::default())
    }

    fn root(&self) -> InodeNo {
        InodeNo(1)
    }

    fn lookup(&self, dir: InodeNo, name: &[u8]) -> Result<InodeNo> {
        if name == b"." || name == b".." {
            return Ok(self.root());
        }
        match self.node(dir)? {
            Node::Dir(names) => names.get(name).map(|&n| InodeNo(n)).ok_or_else(missing),
            _ => Err(FsError::new(FsErrorKind::NotDirectory, "no directory")),
        }
    }

    fn attributes(&self, ino: InodeNo) -> Result<Attributes> {
        let (file_type, size) = match self.node(ino)? {
            Node::File(bytes) => (FileType::Regular, bytes.len()),
            Node::Link(target) => (FileType::Symlink, target.len()),
            Node::Dir(_) => (FileType::Directory, 0),
        };
        Ok(Attributes {
            ino,
            generation: 0,
            file_type,
            permissions: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: size as u64,
            blocks: 0,
            block_size: 4096,
            device: None,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            crtime: None,
        })
    }

    fn read_at(&self, ino: InodeNo, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let Node::File(bytes) = self.node(ino)? else {
            return Err(FsError::new(FsErrorKind::Invalid, "no file"));
        };
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn extent_at(&self, _: InodeNo, _: u64) -> Result<FileExtent> {
        Err(FsError::new(FsErrorKind::Invalid, "no extents"))
    }

    fn read_dir(
        &self,
        dir: InodeNo,
        _: u64,
        visit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let Node::Dir(names) = self.node(dir)? else {
            return Err(FsError::new(FsErrorKind::NotDirectory, "no directory"));
        };
        for (n, (name, &ino)) in (1..).zip(names) {
            let entry = DirEntry {
                ino: InodeNo(ino),
                file_type: None,
                name,
                next: n,
            };
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, ino: InodeNo) -> Result<Vec<u8>> {
        match self.node(ino)? {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(FsError::new(FsErrorKind::Invalid, "no link")),
        }
    }

    fn xattr(&self, _: InodeNo, _: &[u8]) -> Result<Vec<u8>> {
        Err(FsError::new(FsErrorKind::NoAttribute, "none"))
    }

    fn xattr_names(&self, _: InodeNo) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}

const TOKENS: [&[u8]; 28] = [
    b"ID=",
    b"\nID=",
    b"ID_LIKE=",
    b"VERSION_ID=",
    b"PRETTY_NAME=",
    b"\"",
    b"'",
    b"\\",
    b"\n",
    b"$(",
    b"`",
    b"\0",
    b"\x1b[",
    b"\xff",
    b"release ",
    b"Update ",
    b"(",
    b")",
    b"12.5",
    b"18446744073709551616",
    b"debian",
    b"fedora",
    b"VERSION = ",
    b"DISTRIB_ID=",
    b"../",
    b"/",
    b"zoneinfo/",
    b"\xe2\x80\xae",
];

/// Path, whether a link, content.
#[rustfmt::skip]
const FILES: [(&str, bool, &[u8]); 24] = [
    ("etc/os-release", false, b"ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\n"),
    ("usr/lib/os-release", false, b"ID=centos\nID_LIKE=\"rhel fedora\"\nVERSION_ID=7\nVERSION=\"7 (Core)\"\n"),
    ("etc/lsb-release", false, b"DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=8.04\nDISTRIB_DESCRIPTION=\"Ubuntu 8.04\"\n"),
    ("etc/redhat-release", false, b"Red Hat Enterprise Linux AS release 4 (Nahant Update 8)\n"),
    ("etc/centos-release", false, b"CentOS Linux release 7.9.2009 (Core)\n"),
    ("etc/debian_version", false, b"12.5\n"),
    ("etc/SuSE-release", false, b"SUSE Linux Enterprise Server 11\nVERSION = 11\nPATCHLEVEL = 4\n"),
    ("etc/alpine-release", false, b"3.19.1\n"),
    ("etc/gentoo-release", false, b"Gentoo Base System release 2.14\n"),
    ("etc/br-version", false, b"2012.05\n"),
    ("etc/hostname", false, b"host\n"),
    ("etc/HOSTNAME", false, b"# x\nhost\n"),
    ("etc/sysconfig/network", false, b"HOSTNAME=\"a\"\n"),
    ("etc/config/system", false, b"config system\n\toption hostname 'OpenWrt'\n"),
    ("etc/machine-id", false, b"0123456789abcdef0123456789abcdef\n"),
    ("etc/localtime", true, b"/usr/share/zoneinfo/Europe/Berlin"),
    ("etc/timezone", false, b"Europe/Berlin\n"),
    ("sbin/init", true, b"../usr/lib/systemd/systemd"),
    ("usr/lib/systemd/systemd", false, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0"),
    ("bin/bash", false, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0"),
    ("bin/ls", true, b"bash"),
    ("boot/vmlinuz-6.1.0-18-amd64", false, b""),
    ("lib/modules/5.10.0/x", false, b""),
    ("var/lib/dpkg/status", false, b""),
];

fn tree(rng: &mut Rng) -> Vec<(String, bool, Vec<u8>)> {
    let mut files = Vec::new();
    for (path, link, content) in FILES {
        if !rng.one_in(3) {
            continue;
        }
        let mut content = content.to_vec();
        if !rng.one_in(4) {
            mutate_text(rng, &mut content, &TOKENS);
        }
        let mut path = path.to_owned();
        if path.starts_with("boot/") || path.starts_with("lib/") {
            let mut name = path.into_bytes();
            let at = name.len() - 3;
            name[at] = b' ' + rng.below(90) as u8;
            path = String::from_utf8_lossy(&name).into_owned();
        }
        files.push((path, if rng.one_in(20) { !link } else { link }, content));
    }
    files
}

/// Whether a line is `KEY=` and one word of the quoting that `meta/os` states.
fn is_harmless(line: &str) -> bool {
    let Some((key, word)) = line.split_once('=') else {
        return false;
    };
    if !key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        || word.chars().any(char::is_control)
    {
        return false;
    }
    if let Some(inner) = word.strip_prefix('"').and_then(|w| w.strip_suffix('"')) {
        return !inner.contains(['"', '\'', '\\', '$', '`']);
    }
    word.strip_prefix('\'')
        .and_then(|w| w.strip_suffix('\''))
        .is_some_and(|inner| !inner.replace("'\\''", "").contains('\''))
}

#[test]
fn mutated_guests() {
    fuzz::run(100_000, |number, rng| {
        let files = tree(rng);
        let view = GuestView::new(Arc::new(Memory::new(&files)), 0);
        let system = System::of_tree(0, "sda1", Arc::new(view));
        assert!(system.problems().count() <= 64);
        let systems = [system];
        let text = meta::os::shell(&systems);
        assert_eq!(text.lines().count(), 23, "case {number}\n{text}");
        for line in text.lines() {
            assert!(is_harmless(line), "case {number}: {line}");
        }
        let json = serde_json::to_string(&meta::os::json(&systems)).unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    });
}
