//! Damaged and hostile ext2, ext3 and ext4 images: whatever the bytes, an open, a walk over all
//! names, reads of content, attributes and maps end in an answer or an error, soon.
//!
//! Seeds are small images made by mke2fs; one has a dirty journal written by debugfs. Half of the
//! cases open with checksums ignored, and in a part of the others checksums are repaired after the
//! mutation, so that what lies behind them is reached.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use guestlens::block::memory::MemoryBackend;
use guestlens::fs::ext4::Ext4Driver;
use guestlens::fs::{FileSystem, FileType, FsDriver, FsErrorKind, FsOptions, InodeNo};
use guestlens::ondisk::checksum::crc32c_raw;
use support::fuzz::{Rng, mutate, run};
use support::{shell, workdir};

/// One seed and where its metadata lies: most mutations hit these ranges.
struct Seed {
    image: Vec<u8>,
    metadata: Vec<std::ops::Range<usize>>,
}

/// A tree with one of each, small enough for a 64 KiB image.
const TREE: &str = r#"
mkdir -p t/dir/sub t/many; cd t
printf hello > dir/hello; head -c 3000 /dev/zero | tr '\0' a > dir/three-k
ln -s target fast; ln -s "$(head -c 80 /dev/zero | tr '\0' s)" slow
mknod null c 1 3 2>/dev/null || true; mkfifo fifo
ln dir/hello hard; truncate -s 70000 sparse; printf tail >> sparse
for i in $(seq 1 120); do : > many/a-name-of-some-length-$i; done
setfattr -n user.small -v value dir/hello; setfattr -n user.large -v "$(head -c 300 /dev/zero | tr '\0' L)" dir/hello
"#;

/// The same seeds in each run.
const FIXED: &str =
    "export E2FSPROGS_FAKE_TIME=1700000000; uuid=6a1f2b3c-0d4e-4f50-8192-a3b4c5d6e7f8";

fn seeds(dir: &Path) -> Vec<Seed> {
    shell(dir, TREE);
    let mut seeds = Vec::new();
    for (name, size, options) in [
        (
            "ext2",
            "192K",
            "-t ext2 -b 1024 -N 152 -I 128 -O ^resize_inode",
        ),
        (
            "rev",
            "192K",
            "-t ext4 -b 1024 -N 152 -I 256 -O ^has_journal,^resize_inode,^metadata_csum,uninit_bg,^64bit",
        ),
        (
            "ext4",
            "192K",
            "-t ext4 -b 1024 -N 152 -I 256 -O ^has_journal,^resize_inode,metadata_csum,64bit",
        ),
        (
            "inline",
            "192K",
            "-t ext4 -b 1024 -N 152 -I 512 -O ^has_journal,^resize_inode,metadata_csum,inline_data",
        ),
        (
            "bigalloc",
            "512K",
            "-t ext4 -b 1024 -C 4096 -N 152 -O ^has_journal,^resize_inode,bigalloc,extent,^metadata_csum",
        ),
        (
            "meta_bg",
            "256K",
            "-t ext4 -b 1024 -N 152 -O ^has_journal,^resize_inode,meta_bg,^metadata_csum",
        ),
    ] {
        shell(
            dir,
            &format!(
                "{FIXED}\ntruncate -s {size} {name}; mke2fs -F -q -U $uuid -E hash_seed=$uuid {options} -d t {name}; e2fsck -fyD {name} >/dev/null 2>&1 || true"
            ),
        );
        seeds.push(seed(std::fs::read(dir.join(name)).unwrap()));
    }
    // Journals of four kinds, in images as small as a journal can be.
    for (name, features, open) in [
        ("j-none", "^metadata_csum,^64bit", ""),
        ("j-none64", "^metadata_csum,64bit", ""),
        ("j-v2", "^metadata_csum,64bit", "-c -v 2"),
        ("j-v3", "metadata_csum,64bit", "-c -v 3"),
    ] {
        shell(
            dir,
            &format!(
                r#"{FIXED}
truncate -s 2560K {name}
mke2fs -F -q -U $uuid -E hash_seed=$uuid -t ext4 -b 1024 -N 64 -O ^resize_inode,{features} -J size=1 {name}
head -c 2048 /dev/zero | tr '\0' j > two
debugfs -w -R 'write two data' {name} >/dev/null 2>&1
b=$(debugfs -R 'blocks data' {name} 2>/dev/null | tr ' ' ,); b=${{b%,}}
printf 'jo {open}\njw -b %s two\njw -r %s\njw -b %s two\njc\n' "$b" "${{b%%,*}}" "${{b##*,}}" > script
debugfs -w -f script {name} >/dev/null 2>&1"#
            ),
        );
        let image = std::fs::read(dir.join(name)).unwrap();
        assert!(image[1024 + 0x60] & 4 != 0, "{name}: not dirty");
        seeds.push(seed(image));
    }
    seeds
}

fn seed(image: Vec<u8>) -> Seed {
    // Superblock and descriptors; every 1 KiB block that is not a plain repetition of one byte and
    // not text of the tree is metadata.
    let mut metadata = vec![1024..2048, 1024..2048, 2048..3072];
    for (index, block) in image.chunks(1024).enumerate() {
        if index > 2 && block.iter().any(|b| *b != block[0]) {
            metadata.push(index * 1024..(index + 1) * 1024);
        }
    }
    Seed { image, metadata }
}

/// Puts the right checksums of superblock and inodes back, as far as the geometry still allows.
fn repair(image: &mut [u8]) {
    let word = |image: &[u8], at: usize| -> usize {
        image
            .get(at..at + 4)
            .map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()) as usize)
    };
    let half = |image: &[u8], at: usize| word(image, at) & 0xFFFF;
    if word(image, 1024 + 0x64) & 0x400 == 0 {
        return;
    }
    let seed = crc32c_raw(!0, &image[1024 + 0x68..1024 + 0x78]);
    let crc = crc32c_raw(!0, &image[1024..1024 + 0x3FC]);
    image[1024 + 0x3FC..2048].copy_from_slice(&crc.to_le_bytes());
    let wide = word(image, 1024 + 0x60) & 0x80 != 0;
    let desc_len = if wide { 64 } else { 32 };
    let mut desc = image[2048..2048 + desc_len].to_vec();
    desc[0x1E..0x20].fill(0);
    let crc = crc32c_raw(crc32c_raw(seed, &0u32.to_le_bytes()), &desc);
    image[2048 + 0x1E..2048 + 0x20].copy_from_slice(&(crc as u16).to_le_bytes());
    let (table, size) = (word(image, 2048 + 8), half(image, 1024 + 0x58));
    if !size.is_power_of_two() || !(256..=1024).contains(&size) {
        return;
    }
    for index in 0..word(image, 1024 + 0x28).min(256) {
        let at = table.saturating_mul(1024).saturating_add(index * size);
        let Some(inode) = image.get_mut(at..at.saturating_add(size)) else {
            return;
        };
        inode[0x7C..0x7E].fill(0);
        let high = u16::from_le_bytes([inode[0x80], inode[0x81]]) >= 4;
        if high {
            inode[0x82..0x84].fill(0);
        }
        let iseed = crc32c_raw(
            crc32c_raw(seed, &(index as u32 + 1).to_le_bytes()),
            &inode[0x64..0x68],
        );
        let crc = crc32c_raw(iseed, inode);
        inode[0x7C..0x7E].copy_from_slice(&(crc as u16).to_le_bytes());
        if high {
            inode[0x82..0x84].copy_from_slice(&((crc >> 16) as u16).to_le_bytes());
        }
        // The tail of a directory's or a tree's first blocks.
        let mapped = u32::from_le_bytes(inode[0x28 + 20..0x28 + 24].try_into().unwrap()) as usize;
        for block in mapped..mapped.saturating_add(3) {
            let Some(raw) = block
                .checked_mul(1024)
                .and_then(|a| image.get_mut(a..a + 1024))
            else {
                break;
            };
            if raw[1012..1020] == [0, 0, 0, 0, 12, 0, 0, 0xDE] {
                let crc = crc32c_raw(iseed, &raw[..1012]);
                raw[1020..].copy_from_slice(&crc.to_le_bytes());
            } else if raw[..2] == [0x0A, 0xF3] {
                let crc = crc32c_raw(iseed, &raw[..1020]);
                raw[1020..].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }
}

/// Bounds of one walk; a hostile tree may be endless.
const MAX_INODES: usize = 120;
const MAX_NAMES: usize = 400;
const MAX_EXTENTS: usize = 64;

/// Uses everything a filesystem offers, within bounds. Errors are fine.
fn exercise(fs: &dyn FileSystem, buf: &mut [u8]) -> usize {
    let mut todo = vec![fs.root()];
    let mut seen = std::collections::HashSet::new();
    let mut names = 0;
    let _ = fs.usage();
    while let Some(ino) = todo.pop() {
        if seen.len() > MAX_INODES || !seen.insert(ino) {
            continue;
        }
        let Ok(attributes) = fs.attributes(ino) else {
            continue;
        };
        if let Ok(list) = fs.xattr_names(ino) {
            for name in list {
                let _ = fs.xattr(ino, &name);
            }
        }
        match attributes.file_type {
            FileType::Regular => {
                let mut offset = 0;
                for _ in 0..MAX_EXTENTS {
                    let Ok(extent) = fs.extent_at(ino, offset) else {
                        break;
                    };
                    assert!(extent.len > 0);
                    offset += extent.len;
                }
                for offset in [
                    0,
                    1000,
                    attributes.size / 2,
                    attributes.size.saturating_sub(5),
                ] {
                    let _ = fs.read_at(ino, offset, buf);
                }
                fs.prefetch(ino, 0, u64::MAX);
            }
            FileType::Symlink => {
                let _ = fs.read_link(ino);
            }
            FileType::Directory => {
                let mut some = Vec::new();
                let mut last = 0;
                let _ = fs.read_dir(ino, 0, &mut |entry| {
                    assert!(entry.next > last, "a cookie does not rise");
                    last = entry.next;
                    names += 1;
                    todo.push(entry.ino);
                    if some.len() < 3 {
                        some.push(entry.name.to_vec());
                    }
                    if names < MAX_NAMES {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                for name in some {
                    let _ = fs.lookup(ino, &name);
                }
                let _ = fs.lookup(ino, b"not there");
                let _ = fs.lookup(ino, b"..");
                let _ = fs.read_dir(ino, last | 1, &mut |_| ControlFlow::Break(()));
            }
            _ => {}
        }
        let _ = fs.lookup(InodeNo(ino.0), b"x");
    }
    names
}

fn open(
    image: Vec<u8>,
    ignore_checksums: bool,
    no_replay: bool,
) -> guestlens::fs::Result<Arc<dyn FileSystem>> {
    let device = MemoryBackend::from_bytes(image)
        .into_device()
        .into_read_only();
    let _ = Ext4Driver.probe(&device);
    Ext4Driver.open(
        &device,
        &FsOptions {
            ignore_checksums,
            no_replay,
        },
    )
}

#[test]
fn mutated_images_end_in_answers_or_errors() {
    let dir = workdir();
    let seeds = seeds(dir.path());
    for seed in &seeds {
        let fs = open(seed.image.clone(), false, false).unwrap();
        assert!(exercise(&*fs, &mut [0; 4096]) > 0, "a seed shows nothing");
    }
    let opened = std::sync::atomic::AtomicU64::new(0);
    run(100_000, |number, rng: &mut Rng| {
        // The larger seeds with journals take one case in eight.
        let small = seeds.len() - 4;
        let seed = match number % 8 {
            0 => &seeds[small + rng.index(4)],
            _ => &seeds[rng.index(small)],
        };
        let mut image = seed.image.clone();
        for _ in 0..=rng.index(3) {
            let range = seed.metadata[rng.index(seed.metadata.len())].clone();
            mutate(rng, &mut image, range);
        }
        let ignore_checksums = rng.one_in(2);
        if !ignore_checksums && rng.one_in(2) {
            repair(&mut image);
        }
        if let Ok(fs) = open(image, ignore_checksums, rng.one_in(8)) {
            opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            exercise(&*fs, &mut [0; 4096]);
        }
    });
    let opened = opened.into_inner();
    eprintln!("{opened} of the mutated images opened");
    assert!(opened > 20_000, "the mutations stop too early: {opened}");
}

fn debugfs(image: &Path, command: &str) -> String {
    let out = support::tool("debugfs")
        .args(["-w", "-R", command])
        .arg(image)
        .current_dir(image.parent().unwrap())
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The four images the most careful reader we know of fails on.
mod killers {
    use super::*;

    fn image(dir: &Path) -> std::path::PathBuf {
        shell(
            dir,
            "mkdir t; printf fine > t/sibling; truncate -s 8M img; \
             mke2fs -F -q -t ext4 -b 1024 -O ^metadata_csum,^64bit -d t img",
        );
        dir.join("img")
    }

    #[test]
    fn an_extent_node_that_points_at_itself() {
        let dir = workdir();
        let path = image(dir.path());
        shell(dir.path(), "head -c 1024 /dev/zero | tr '\\0' z > node");
        debugfs(&path, "write node loop");
        let block: u32 = debugfs(&path, "blocks loop").trim().parse().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // A node of depth 1 with one index entry that leads to its own block.
        let mut node = vec![0x0A, 0xF3, 1, 0, 84, 0, 1, 0, 0, 0, 0, 0];
        node.extend([0; 4]);
        node.extend(block.to_le_bytes());
        node.extend([0; 4]);
        let at = block as usize * 1024;
        bytes[at..at + node.len()].copy_from_slice(&node);
        // The root: the same entry, with room for four.
        node[4] = 4;
        let stat = debugfs(&path, "imap loop");
        let (table, offset) = (field(&stat, "located at block "), field(&stat, "offset 0x"));
        let inode = table * 1024 + offset;
        bytes[inode + 0x28..inode + 0x28 + node.len()].copy_from_slice(&node);
        let fs = open(bytes, false, false).unwrap();
        let looped = fs.lookup(fs.root(), b"loop").unwrap();
        let error = fs.read_at(looped, 0, &mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), FsErrorKind::Damaged);
        let sibling = fs.lookup(fs.root(), b"sibling").unwrap();
        let mut buf = [0; 10];
        assert_eq!(fs.read_at(sibling, 0, &mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"fine");
    }

    fn field(text: &str, after: &str) -> usize {
        let rest = &text[text.find(after).unwrap_or_else(|| panic!("{text}")) + after.len()..];
        let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
        let radix = if after.ends_with("0x") { 16 } else { 10 };
        usize::from_str_radix(&digits, radix).unwrap()
    }

    #[test]
    fn a_very_long_name_is_an_error() {
        let dir = workdir();
        let fs = open(std::fs::read(image(dir.path())).unwrap(), false, false).unwrap();
        for name in [vec![b'.'; 100_000], vec![b'a'; 256]] {
            let error = fs.lookup(fs.root(), &name).unwrap_err();
            assert_eq!(error.kind(), FsErrorKind::NameTooLong);
        }
    }

    #[test]
    fn a_block_size_of_a_gibibyte() {
        let dir = workdir();
        let mut bytes = std::fs::read(image(dir.path())).unwrap();
        for log in [7u8, 20, 21, 22, 31, 32, 255] {
            bytes[1024 + 0x18] = log;
            bytes.truncate(8192 * 1024);
            // A backup serves, or there is an error; nothing is sized by the number.
            match open(bytes.clone(), false, false) {
                Ok(fs) => assert!(!fs.info().notices.is_empty()),
                Err(error) => assert_eq!(error.kind(), FsErrorKind::Damaged),
            }
        }
    }

    #[test]
    fn a_block_that_a_later_transaction_revokes() {
        let dir = workdir();
        let path = image(dir.path());
        shell(
            dir.path(),
            "head -c 1024 /dev/zero | tr '\\0' N > new; head -c 1024 /dev/zero | tr '\\0' O > old",
        );
        debugfs(&path, "write new data");
        let block = debugfs(&path, "blocks data").trim().to_owned();
        std::fs::write(
            dir.path().join("script"),
            format!(
                "jo\njw -b {block} {0}/old\njw -r {block}\njc\n",
                dir.path().display()
            ),
        )
        .unwrap();
        shell(dir.path(), "debugfs -w -f script img >/dev/null 2>&1");
        let fs = open(std::fs::read(&path).unwrap(), false, false).unwrap();
        assert!(fs.info().journal_replayed, "{:?}", fs.info());
        let data = fs.lookup(fs.root(), b"data").unwrap();
        let mut buf = [0; 1024];
        fs.read_at(data, 0, &mut buf).unwrap();
        assert!(buf.iter().all(|&b| b == b'N'), "stale data");
    }
}
