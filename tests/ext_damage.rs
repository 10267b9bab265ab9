//! What damage to an ext4 image costs: one object, not its neighbours; and what an open says.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use guestlens::block::BlockDevice;
use guestlens::block::file::FileBackend;
use guestlens::fs::ext4::Ext4Driver;
use guestlens::fs::{FileSystem, FsDriver, FsErrorKind, FsOptions, Result};
use guestlens::volumes::Probe;
use support::{shell, workdir};

fn device(image: &Path) -> BlockDevice {
    let file = std::fs::File::open(image).unwrap();
    BlockDevice::new(Arc::new(FileBackend::new(file, true).unwrap()))
}

fn open_with(image: &Path, options: &FsOptions) -> Result<Arc<dyn FileSystem>> {
    Ext4Driver.open(&device(image), options)
}

fn open(image: &Path) -> Arc<dyn FileSystem> {
    open_with(image, &FsOptions::default()).unwrap()
}

fn image(dir: &Path, options: &str) -> PathBuf {
    shell(
        dir,
        &format!(
            "rm -rf t; mkdir -p t/d; for i in $(seq 400); do echo $i > t/d/a-name-of-some-length-$i; done; \
             printf fine > t/fine; ln -s fine t/link; truncate -s 24M img; \
             mke2fs -F -q -t ext4 -b 1024 {options} -d t img; e2fsck -fyD img >/dev/null || true"
        ),
    );
    dir.join("img")
}

/// Runs debugfs commands on an image.
fn debugfs(image: &Path, commands: &str) {
    let dir = image.parent().unwrap();
    std::fs::write(dir.join("commands"), commands).unwrap();
    shell(
        dir,
        &format!(
            "debugfs -w -f commands '{}' >/dev/null 2>&1",
            image.display()
        ),
    );
}

fn names(fs: &dyn FileSystem, path: &[u8]) -> (usize, Result<()>) {
    let dir = fs.lookup(fs.root(), path).unwrap();
    let mut count = 0;
    let result = fs.read_dir(dir, 0, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    (count, result)
}

/// Byte offset of the first block of something debugfs can `bmap`.
fn block_of(image: &Path, what: &str, index: u32) -> usize {
    let out = shell(
        image.parent().unwrap(),
        &format!(
            "debugfs -R 'bmap {what} {index}' '{}' 2>/dev/null",
            image.display()
        ),
    );
    out.trim().parse::<usize>().unwrap() * 1024
}

fn flip(image: &Path, at: usize) {
    let mut bytes = std::fs::read(image).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn a_wrong_inode_checksum_costs_one_inode() {
    let dir = workdir();
    let path = image(dir.path(), "-O metadata_csum");
    let out = shell(
        dir.path(),
        "debugfs -R 'imap /d/a-name-of-some-length-7' img 2>/dev/null",
    );
    let number = |after: &str, radix| {
        let rest = out.split(after).nth(1).unwrap();
        let digits: String = rest.chars().take_while(|c| c.is_digit(radix)).collect();
        usize::from_str_radix(&digits, radix).unwrap()
    };
    // The low byte of its size.
    flip(
        &path,
        number("located at block ", 10) * 1024 + number("offset 0x", 16) + 4,
    );
    let fs = open(&path);
    let d = fs.lookup(fs.root(), b"d").unwrap();
    let bad = fs.lookup(d, b"a-name-of-some-length-7").unwrap();
    assert_eq!(fs.attributes(bad).unwrap_err().kind(), FsErrorKind::Damaged);
    for i in (1..=400).filter(|&i| i != 7) {
        let good = fs
            .lookup(d, format!("a-name-of-some-length-{i}").as_bytes())
            .unwrap();
        assert!(fs.attributes(good).unwrap().size > 0);
    }
    let lenient = FsOptions {
        ignore_checksums: true,
        ..FsOptions::default()
    };
    assert!(open_with(&path, &lenient).unwrap().attributes(bad).is_ok());
}

#[test]
fn a_damaged_index_leaves_every_name_reachable() {
    let dir = workdir();
    for features in ["metadata_csum", "^metadata_csum"] {
        let path = image(dir.path(), &format!("-O {features}"));
        // A hash in the root, then the root's kind of hash.
        for offset in [48, 28] {
            flip(&path, block_of(&path, "/d", 0) + offset);
            let fs = open(&path);
            let d = fs.lookup(fs.root(), b"d").unwrap();
            let mut found = 0;
            for i in 1..=400 {
                found += u32::from(
                    fs.lookup(d, format!("a-name-of-some-length-{i}").as_bytes())
                        .is_ok(),
                );
            }
            // Without a checksum a wrong hash among good ones cannot be told, as in the kernel.
            if features == "metadata_csum" || offset == 28 {
                assert_eq!(found, 400, "{features} {offset}");
            }
            assert_eq!(names(&*fs, b"d").0, 400);
        }
    }
}

#[test]
fn a_damaged_directory_block_costs_its_own_names() {
    let dir = workdir();
    let path = image(dir.path(), "-O metadata_csum");
    flip(&path, block_of(&path, "/d", 2) + 9);
    let fs = open(&path);
    let (count, result) = names(&*fs, b"d");
    assert_eq!(result.unwrap_err().kind(), FsErrorKind::Damaged);
    assert!((300..400).contains(&count), "{count}");
}

#[test]
fn a_backup_serves_when_the_superblock_is_gone() {
    for features in ["metadata_csum", "^metadata_csum"] {
        let dir = workdir();
        let path = image(dir.path(), &format!("-O {features}"));
        let pristine = std::fs::read(&path).unwrap();
        let wipe = |range: std::ops::Range<usize>| {
            let mut bytes = pristine.clone();
            bytes[range].fill(0);
            std::fs::write(&path, bytes).unwrap();
        };
        wipe(1024..2048);
        assert!(matches!(
            Ext4Driver.probe(&device(&path)).unwrap(),
            Probe::Damaged((), _)
        ));
        let fs = open(&path);
        assert_eq!(names(&*fs, b"d").0, 400);
        assert!(
            fs.info().notices[0].contains("backup"),
            "{:?}",
            fs.info().notices
        );
        assert!(!fs.info().read_only_reasons.is_empty());
    }
}

#[test]
fn what_is_refused_is_named() {
    let dir = workdir();
    let path = image(dir.path(), "-O ^metadata_csum");
    let pristine = std::fs::read(&path).unwrap();
    for (bits, name) in [(0x1u32, "compression"), (0x8_0000, "incompat_0x80000")] {
        let mut bytes = pristine.clone();
        let at = 1024 + 0x60;
        let old = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&(old | bits).to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = open_with(&path, &FsOptions::default()).err().unwrap();
        assert_eq!(error.kind(), FsErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
    shell(
        dir.path(),
        "truncate -s 8M journal; mke2fs -F -q -O journal_dev journal",
    );
    let probe = Ext4Driver
        .probe(&device(&dir.path().join("journal")))
        .unwrap();
    assert!(matches!(probe, Probe::NotMine));
    let error = open_with(&dir.path().join("journal"), &FsOptions::default());
    assert_eq!(error.err().unwrap().kind(), FsErrorKind::Unsupported);
}

#[test]
fn a_journal_that_is_damaged_is_not_replayed_and_said_so() {
    let dir = workdir();
    let path = image(dir.path(), "-O metadata_csum,64bit -J size=1");
    shell(
        dir.path(),
        "head -c 1024 /dev/zero | tr '\\0' N > new; head -c 1024 /dev/zero | tr '\\0' O > old",
    );
    debugfs(
        &path,
        &format!("write {0}/old data\n", dir.path().display()),
    );
    let data = block_of(&path, "/data", 0) / 1024;
    debugfs(
        &path,
        &format!(
            "jo -c -v 3\njw -b {data} {0}/new\njc\n",
            dir.path().display()
        ),
    );
    let content = |options: &FsOptions| {
        let fs = open_with(&path, options).unwrap();
        let mut buf = [0; 1024];
        let ino = fs.lookup(fs.root(), b"data").unwrap();
        fs.read_at(ino, 0, &mut buf).unwrap();
        (buf[0], fs.info().clone())
    };
    let (byte, info) = content(&FsOptions::default());
    assert!(
        (byte, info.journal_replayed, info.clean) == (b'N', true, false),
        "{info:?}"
    );
    let raw = FsOptions {
        no_replay: true,
        ..FsOptions::default()
    };
    let (byte, info) = content(&raw);
    assert!(
        byte == b'O' && !info.journal_replayed && !info.notices.is_empty(),
        "{info:?}"
    );
    let pristine = std::fs::read(&path).unwrap();

    // The journal's superblock, its descriptor's checksum, the logged copy, the commit block.
    let journal = |index| block_of(&path, "<8>", index);
    for (block, offset) in [(0, 0x1F), (1, 20), (2, 100), (3, 49)] {
        flip(&path, journal(block) + offset);
        let (byte, info) = content(&FsOptions::default());
        assert_eq!(byte, b'O', "block {block} of the journal");
        assert!(
            !info.notices.is_empty(),
            "block {block} of the journal: nothing is said"
        );
        std::fs::write(&path, &pristine).unwrap();
    }
}

#[test]
fn a_terabyte_opens_at_once() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 1T img; mke2fs -F -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 img",
    );
    let started = Instant::now();
    let fs = open(&dir.path().join("img"));
    let mut count = 0;
    fs.read_dir(fs.root(), 0, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    let took = started.elapsed();
    assert_eq!(count, 1);
    assert!(took.as_millis() < 100, "{took:?}");
}

#[test]
fn cookies_resume_anywhere() {
    let dir = workdir();
    for features in ["metadata_csum", "^dir_index", "inline_data"] {
        let path = image(dir.path(), &format!("-I 1024 -O {features}"));
        let fs = open(&path);
        for at in [&b"d"[..], b"."] {
            let ino = fs.lookup(fs.root(), at).unwrap();
            let mut whole = Vec::new();
            fs.read_dir(ino, 0, &mut |e| {
                whole.push((e.name.to_vec(), e.next));
                ControlFlow::Continue(())
            })
            .unwrap();
            let (mut one_by_one, mut cookie) = (Vec::new(), 0);
            loop {
                let before = cookie;
                fs.read_dir(ino, cookie, &mut |e| {
                    one_by_one.push((e.name.to_vec(), e.next));
                    cookie = e.next;
                    ControlFlow::Break(())
                })
                .unwrap();
                if cookie == before {
                    break;
                }
            }
            assert_eq!(whole, one_by_one, "{features}");
        }
    }
}

#[test]
fn encrypted_files_need_a_key_but_can_be_seen() {
    let dir = workdir();
    let path = image(dir.path(), "-O encrypt,metadata_csum");
    // The flags a kernel sets on what it encrypts; the content is what a reader without the key
    // would have to take for cipher text.
    debugfs(
        &path,
        "set_inode_field /fine flags 0x80800\nset_inode_field /link flags 0x800\n\
         set_inode_field /d flags 0x81800\n",
    );
    let fs = open(&path);
    let ino = |name: &[u8]| fs.lookup(fs.root(), name).unwrap();
    let error = fs.read_at(ino(b"fine"), 0, &mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), FsErrorKind::NoKey);
    assert_eq!(
        fs.read_link(ino(b"link")).unwrap_err().kind(),
        FsErrorKind::NoKey
    );
    assert_eq!(fs.attributes(ino(b"fine")).unwrap().size, 4);
    let mut shown = Vec::new();
    fs.read_dir(ino(b"d"), 0, &mut |entry| {
        shown.push((entry.name.to_vec(), entry.ino));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(shown.len(), 400);
    for (name, target) in shown {
        assert!(
            name.iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        );
        assert_eq!(fs.lookup(ino(b"d"), &name).unwrap(), target);
    }
}

#[test]
fn fast_commits_are_reported() {
    if !support::is_root() {
        support::skip!("leaving a journal dirty needs a mount by the kernel");
    }
    let dir = workdir();
    shell(
        dir.path(),
        r#"truncate -s 64M live; mke2fs -F -q -t ext4 -O fast_commit -b 4096 live; mkdir m; mount -o loop live m
trap 'umount m' EXIT
echo one > m/one; sync -f m
for i in 1 2 3; do echo $i > m/f$i; python3 -c "import os; f=os.open('m/f$i', os.O_RDWR); os.fsync(f)"; done
cp --sparse=always live img"#,
    );
    let fs = open(&dir.path().join("img"));
    let info = fs.info();
    assert!(
        info.notices
            .iter()
            .any(|notice| notice.contains("fast-commit")),
        "{:?}",
        info.notices
    );
    fs.lookup(fs.root(), b"one").unwrap();
}
