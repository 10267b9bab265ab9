//! ext2, ext3 and ext4 against the kernel: every image is walked through our driver and through
//! the kernel's own loop mount of the same image, and compared name by name: type, mode, owner,
//! link count, size, blocks, times with nanoseconds, device numbers, extended attributes, link
//! targets, content, holes.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestlens::block::BlockDevice;
use guestlens::block::file::FileBackend;
use guestlens::fs::{FileSystem, FsOptions, api::drivers};
use guestlens::volumes::Probe;
use support::ext::{ReplayedMount, copy_rich, fill, mke2fs, rich_tree};
use support::mount::GuestMount;
use support::walk::{Ignore, Tree, assert_equal, walk_driver, walk_host};
use support::{KernelMount, guestlens, shell, skip, tool};

fn open(image: &Path) -> Arc<dyn FileSystem> {
    let backend = FileBackend::new(File::open(image).unwrap(), true).unwrap();
    let device = BlockDevice::new(Arc::new(backend));
    for driver in drivers() {
        if let Probe::Mine(()) | Probe::Damaged((), _) = driver.probe(&device).unwrap() {
            return driver
                .open(&device, &FsOptions::default())
                .unwrap_or_else(|e| panic!("{}: {e:?}", image.display()));
        }
    }
    panic!("{}: no driver knows it", image.display());
}

/// `statfs` as the kernel reports it: block size, blocks, free, available, inodes, free inodes.
fn kernel_usage(path: &Path) -> [u64; 6] {
    let s = nix::sys::statvfs::statvfs(path).unwrap();
    [
        s.block_size(),
        s.blocks(),
        s.blocks_free(),
        s.blocks_available(),
        s.files(),
        s.files_free(),
    ]
}

fn our_usage(fs: &dyn FileSystem) -> [u64; 6] {
    let u = fs.usage().unwrap();
    [
        u.block_size.into(),
        u.blocks,
        u.blocks_free,
        u.blocks_available,
        u.inodes,
        u.inodes_free,
    ]
}

fn unchanged_by(image: &Path, body: impl FnOnce()) {
    let sum = || {
        shell(
            image.parent().unwrap(),
            &format!("md5sum < '{}'", image.display()),
        )
    };
    let before = sum();
    body();
    assert_eq!(
        before,
        sum(),
        "{}: reading changed the image",
        image.display()
    );
}

/// Compares a clean image with the kernel's mount of it: through the driver, through our own
/// mount, and through an archive that GNU tar extracts.
fn compare(name: &str, image: &Path, dir: &Path, options: &str, ignore: Ignore) -> usize {
    let mut names = 0;
    unchanged_by(image, || {
        let kernel = KernelMount::new(image, dir, options);
        let want = walk_host(kernel.path());
        let fs = open(image);
        let got = walk_driver(&*fs);
        assert_equal(name, &want, &got, ignore);
        let usage = kernel_usage(kernel.path());
        assert_eq!(usage, our_usage(&*fs), "{name}: statfs");
        drop(fs);
        let mounted = through_fuse(name, image, dir, &want, ignore);
        assert_eq!(usage, mounted, "{name}: statfs through the mount");
        names = want.len();
        // Most filesystems that an archive is extracted to hold no attributes of many KiB.
        let small = want
            .values()
            .all(|r| r.xattrs.values().all(|v| v.len() < 2000));
        if names < 10_000 && small {
            through_tar(name, image, dir, &want);
        }
    });
    names
}

/// The same through `guestlens mount`; returns what statfs says there.
fn through_fuse(name: &str, image: &Path, dir: &Path, want: &Tree, ignore: Ignore) -> [u64; 6] {
    let mount = GuestMount::new(dir, "fuse", &[image], &["--symlinks", "raw"]);
    let root = mount.join("volumes/sda");
    let got = walk_host(&root);
    // The mount makes inode numbers of its own; hard links must still be the same ones.
    let ignore = Ignore {
        inode_numbers: true,
        ..ignore
    };
    assert_equal(&format!("{name} through the mount"), want, &got, ignore);
    let usage = kernel_usage(&root);
    mount.umount();
    usage
}

/// The same through `guestlens tar-out`, as far as an archive can tell: no sockets, and what the
/// filesystem it is extracted to decides itself.
fn through_tar(name: &str, image: &Path, dir: &Path, want: &Tree) {
    let archive = dir.join("out.tar");
    let told = guestlens()
        .args(["tar-out", "--volume", "sda", "-o"])
        .args([&archive, image])
        .arg("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    let complete = told.status.success()
        || (told.status.code() == Some(3) && said.lines().all(|l| l.contains("a socket")));
    assert!(complete, "{name}: {said}");
    let to = dir.join("extracted");
    std::fs::create_dir(&to).unwrap();
    support::run(
        tool("tar")
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--numeric-owner",
                "-xpf",
            ])
            .args([&archive, Path::new("-C"), &to]),
    );
    let comparable = |tree: &Tree| {
        let mut tree = tree.clone();
        tree.retain(|_, r| r.mode & 0o170000 != 0o140000);
        for r in tree.values_mut().filter(|r| r.mode & 0o170000 == 0o040000) {
            r.nlink = 0;
        }
        tree
    };
    let ignore = Ignore {
        atime: true,
        ctime: true,
        holes: true,
        blocks: true,
        directory_sizes: true,
        inode_numbers: true,
        ..Ignore::default()
    };
    let got = comparable(&walk_host(&to));
    assert_equal(
        &format!("{name} through tar-out"),
        &comparable(want),
        &got,
        ignore,
    );
    std::fs::remove_file(&archive).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
}

/// One image of the matrix.
struct Case {
    name: &'static str,
    size: &'static str,
    mke2fs: &'static str,
    /// Options of the kernel's read-write mount.
    mount: &'static str,
    /// Run on the image file `$img` between mke2fs and filling.
    prepare: &'static str,
}

const fn case(name: &'static str, size: &'static str, mke2fs: &'static str) -> Case {
    Case {
        name,
        size,
        mke2fs,
        mount: "",
        prepare: "",
    }
}

/// What old mke2fs versions enabled by default, on top of
/// sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr.
const EXT2: &str = "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr";
const EXT3: &str =
    "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal";
const RHEL6: &str = "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,uninit_bg,dir_nlink,extra_isize";
const RHEL7: &str = "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,uninit_bg,dir_nlink,extra_isize,64bit";
const CSUM: &str = "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize";
const SEED: &str = "-O none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,orphan_file,64bit,dir_nlink,extra_isize";

fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, options) in [
        ("ext2", EXT2),
        ("ext3", EXT3),
        ("rhel6", RHEL6),
        ("rhel7", RHEL7),
        ("csum", CSUM),
        ("seed", SEED),
    ] {
        for block in [1024, 2048, 4096] {
            let leak = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
            cases.push(case(
                leak(format!("{family}-{block}")),
                "40M",
                leak(format!("{options} -b {block} -I 256 -N 4000")),
            ));
        }
    }
    cases.extend([
        case(
            "inline-1k",
            "40M",
            "-t ext4 -O inline_data,extent,metadata_csum -b 1024 -I 256 -N 4000",
        ),
        case(
            "inline-4k",
            "40M",
            "-t ext4 -O inline_data,extent,metadata_csum -b 4096 -I 1024 -N 4000",
        ),
        case(
            "inline-nocsum",
            "40M",
            "-t ext4 -O inline_data,extent,^metadata_csum -b 4096 -I 512 -N 4000",
        ),
        case(
            "bigalloc-16k",
            "64M",
            "-t ext4 -O bigalloc,extent,metadata_csum -C 16384 -b 4096 -N 4000",
        ),
        case(
            "bigalloc-64k",
            "256M",
            "-t ext4 -O bigalloc,extent -C 65536 -b 1024 -N 4000",
        ),
        case(
            "meta-bg",
            "80M",
            "-t ext4 -O meta_bg,^resize_inode,extent,metadata_csum,64bit -b 1024 -N 4000",
        ),
        case(
            "meta-bg-32",
            "80M",
            "-t ext4 -O meta_bg,^resize_inode,extent,^64bit,^metadata_csum -b 1024 -N 4000",
        ),
        case(
            "no-resize",
            "40M",
            "-t ext4 -O ^resize_inode,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "inode-128",
            "40M",
            "-t ext4 -O extent,^metadata_csum -I 128 -b 4096 -N 4000",
        ),
        case(
            "inode-128-csum",
            "40M",
            "-t ext4 -O extent,metadata_csum -I 128 -b 1024 -N 4000",
        ),
        case(
            "ext3-inode-128",
            "40M",
            "-O none,sparse_super,filetype,dir_index,ext_attr,has_journal -I 128 -b 1024 -N 4000",
        ),
        case(
            "ext2-rev-bare",
            "40M",
            "-O none,ext_attr -I 128 -b 1024 -N 4000",
        ),
        case(
            "inode-1024",
            "40M",
            "-t ext4 -O extent,metadata_csum -I 1024 -b 4096 -N 4000",
        ),
        case(
            "largedir",
            "40M",
            "-t ext4 -O large_dir,extent,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "no-journal",
            "40M",
            "-t ext4 -O ^has_journal,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "no-flex",
            "40M",
            "-t ext4 -O ^flex_bg,extent,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "sparse-super2",
            "40M",
            "-t ext4 -O sparse_super2,^resize_inode,extent,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "no-dir-index",
            "40M",
            "-t ext4 -O ^dir_index,extent,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "no-filetype",
            "40M",
            "-t ext4 -O ^filetype,extent,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "no-extents",
            "40M",
            "-t ext4 -O ^extent,^64bit,metadata_csum -b 1024 -N 4000",
        ),
        case(
            "quota",
            "40M",
            "-t ext4 -O quota,project,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "mmp",
            "40M",
            "-t ext4 -O mmp,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "verity-flag",
            "40M",
            "-t ext4 -O verity,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "encrypt-flag",
            "40M",
            "-t ext4 -O encrypt,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "casefold",
            "40M",
            "-t ext4 -O casefold,extent,metadata_csum -b 4096 -N 4000",
        ),
        case(
            "small-journal",
            "40M",
            "-t ext4 -O extent,metadata_csum -J size=1 -b 1024 -N 4000",
        ),
        case(
            "block-8k",
            "64M",
            "-t ext4 -O extent,metadata_csum -b 8192 -N 4000",
        ),
        case(
            "block-16k",
            "96M",
            "-t ext4 -O extent,metadata_csum -b 16384 -N 4000",
        ),
        case(
            "block-64k",
            "400M",
            "-t ext4 -O extent,metadata_csum -b 65536 -N 4000",
        ),
        Case {
            prepare: "tune2fs -E hash_alg=tea $img",
            ..case(
                "hash-tea",
                "40M",
                "-t ext4 -O extent,metadata_csum -b 1024 -N 4000",
            )
        },
        Case {
            prepare: "tune2fs -E hash_alg=legacy $img",
            ..case(
                "hash-legacy",
                "40M",
                "-t ext4 -O extent,metadata_csum -b 1024 -N 4000",
            )
        },
        Case {
            prepare: "debugfs -w -R 'ssv flags 2' $img",
            ..case(
                "hash-unsigned",
                "40M",
                "-t ext4 -O extent,metadata_csum -b 1024 -N 4000",
            )
        },
        Case {
            prepare: "debugfs -w -R 'ssv flags 1' $img",
            ..case(
                "hash-signed",
                "40M",
                "-t ext4 -O extent,metadata_csum -b 1024 -N 4000",
            )
        },
    ]);
    cases
}

/// Compares with what `debugfs` extracts where the kernel does not mount the image.
fn compare_with_debugfs(name: &str, image: &Path, dir: &Path) {
    let out = dir.join(format!("rdump-{name}"));
    std::fs::create_dir_all(&out).unwrap();
    shell(
        dir,
        &format!(
            "debugfs -R 'rdump / {}' '{}' 2>/dev/null",
            out.display(),
            image.display()
        ),
    );
    let mut want = walk_host(&out);
    let mut got = walk_driver(&*open(image));
    // rdump makes no device nodes and sets whole seconds only.
    let comparable = |tree: &mut Tree| {
        tree.retain(|_, r| matches!(r.mode & 0o170000, 0o100000 | 0o040000 | 0o120000));
        for r in tree.values_mut() {
            // rdump sets neither setuid, setgid and sticky bits nor the owner of a link.
            r.mode &= !0o7000;
            if r.target.is_some() {
                (r.uid, r.gid) = (0, 0);
            }
            r.nlink = 0;
            r.mtime = (0, 0);
        }
        tree.remove(&b""[..]);
    };
    comparable(&mut want);
    comparable(&mut got);
    let ignore = Ignore {
        xattrs: true,
        atime: true,
        ctime: true,
        holes: true,
        blocks: true,
        directory_sizes: true,
        directory_mtimes: true,
        inode_numbers: false,
    };
    for tree in [&mut want, &mut got] {
        for r in tree.values_mut() {
            r.inode = 0;
        }
    }
    assert_equal(name, &want, &got, ignore);
}

fn run_matrix(which: impl Fn(usize) -> bool) {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let rich = rich_tree(work.path());
    let (mut kernel, mut debugfs, mut names) = (0, 0, 0);
    for (_, case) in matrix().into_iter().enumerate().filter(|(i, _)| which(*i)) {
        let dir = work.path().join(case.name);
        std::fs::create_dir(&dir).unwrap();
        let image = dir.join("img");
        mke2fs(&image, case.size, case.mke2fs);
        if !case.prepare.is_empty() {
            shell(
                &dir,
                &format!(
                    "img='{}'; {} >/dev/null 2>&1",
                    image.display(),
                    case.prepare
                ),
            );
        }
        let mounts = |options: &str| {
            let point = dir.join("probe");
            std::fs::create_dir_all(&point).unwrap();
            let mut mount = tool("mount");
            mount.args(["-o", options]).arg(&image).arg(&point);
            let mounted = mount.output().unwrap().status.success();
            if mounted {
                support::run(tool("umount").arg(&point));
            }
            mounted
        };
        // A kernel without quota support mounts such an image read-only; one without the Unicode
        // tables does not mount a casefolding one at all.
        if mounts("loop") {
            fill(&image, case.mount, &copy_rich(&rich));
            names += compare(case.name, &image, &dir, "", Ignore::default());
            kernel += 1;
        } else {
            let args = format!("{} -d '{}'", case.mke2fs, rich.display());
            mke2fs(&image, case.size, &args);
            if mounts("loop,ro") {
                names += compare(case.name, &image, &dir, "", Ignore::default());
                kernel += 1;
            } else {
                compare_with_debugfs(case.name, &image, &dir);
                eprintln!(
                    "{}: the kernel does not mount it; compared with debugfs",
                    case.name
                );
                debugfs += 1;
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    eprintln!("{kernel} images equal to the kernel's view ({names} names), {debugfs} to debugfs");
}

#[test]
fn families_and_block_sizes() {
    run_matrix(|i| i < 18);
}

#[test]
fn features() {
    run_matrix(|i| i >= 18);
}

#[test]
fn ea_inode_and_large_values() {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let image = work.path().join("img");
    mke2fs(
        &image,
        "40M",
        "-t ext4 -O ea_inode,extent,metadata_csum -b 4096 -N 2000",
    );
    fill(
        &image,
        "",
        r#"python3 - <<'P'
import os
for i, n in enumerate((10, 3000, 5000, 20000, 60000)):
    p = 'f%d' % i; open(p, 'w').close(); os.setxattr(p, 'user.big', bytes([65 + i]) * n)
open('g', 'w').close(); os.setxattr('g', 'user.big', b'D' * 20000); os.setxattr('g', 'user.two', b'E' * 30000)
P"#,
    );
    assert_eq!(
        compare("ea_inode", &image, work.path(), "", Ignore::default()),
        8
    );
}

#[test]
fn two_hundred_thousand_names() {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let image = work.path().join("img");
    mke2fs(
        &image,
        "120M",
        "-t ext4 -O extent,metadata_csum,^has_journal -b 1024 -N 210000 -I 128",
    );
    fill(
        &image,
        "",
        "mkdir big; touch f; python3 - <<'P'\nimport os\nopen('big/0','w').close()\nn=0\nsrc='big/0'\nfor i in range(1,200000):\n    if i % 60000 == 0:\n        src='big/%d'%i; open(src,'w').close(); continue\n    os.link(src,'big/%d'%i)\nP",
    );
    let names = compare("200,000 names", &image, work.path(), "", Ignore::default());
    assert_eq!(names, 200_000 + 4);
    // Every name is found through the index as well.
    let fs = open(&image);
    let big = fs.lookup(fs.root(), b"big").unwrap();
    for i in (0..200_000).step_by(97) {
        fs.lookup(big, i.to_string().as_bytes()).unwrap();
    }
    assert!(fs.lookup(big, b"200000").is_err());
}

#[test]
fn one_hundred_thousand_extents_and_seventy_thousand_directories() {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let image = work.path().join("extents");
    mke2fs(
        &image,
        "260M",
        "-t ext4 -O extent,metadata_csum -b 1024 -N 200 -m 0",
    );
    fill(
        &image,
        "",
        r#"python3 - <<'P'
import os
f = os.open('holes', os.O_RDWR | os.O_CREAT)
block = bytes(range(256)) * 4
for i in range(0, 200000, 2000):
    os.pwrite(f, block * 2000, i * 1024)
os.fsync(f)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
for i in range(0, 200000, 2):
    assert libc.fallocate(f, 3, i * 1024, 1024) == 0, os.strerror(ctypes.get_errno())
P"#,
    );
    compare(
        "100,000 extents",
        &image,
        work.path(),
        "",
        Ignore::default(),
    );
    std::fs::remove_file(&image).unwrap();

    let image = work.path().join("subdirs");
    mke2fs(
        &image,
        "340M",
        "-t ext4 -O extent,dir_nlink,^metadata_csum,^has_journal -b 1024 -N 71000 -I 128",
    );
    fill(
        &image,
        "",
        "mkdir many; python3 -c \"\nimport os\nfor i in range(66000): os.mkdir('many/%d' % i)\"",
    );
    let fs = open(&image);
    let many = fs.lookup(fs.root(), b"many").unwrap();
    let kernel = KernelMount::new(&image, work.path(), "");
    let stat = shell(
        work.path(),
        &format!("stat -c %h '{}/many'", kernel.path().display()),
    );
    assert_eq!(stat.trim(), fs.attributes(many).unwrap().nlink.to_string());
    let mut count = 0;
    fs.read_dir(many, 0, &mut |_| {
        count += 1;
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count, 66_000);
}

/// Copies an image while the kernel has it mounted and its journal holds what is not in place yet.
fn crash_copy(dir: &Path, rich: &Path, name: &str, mke2fs_args: &str, options: &str) -> PathBuf {
    let live = dir.join(format!("live-{name}"));
    let image = dir.join(name);
    mke2fs(&live, "40M", mke2fs_args);
    // What reaches the image with `sync` is the journal; in place it comes minutes later.
    fill(
        &live,
        options,
        &format!(
            "{}\nsync -f .\nmkdir late; for i in $(seq 200); do echo $i > late/$i; done; sync -f .\n\
             rm -r many; mkdir again; for i in $(seq 300); do echo $i > again/$i; done; sync -f .\n\
             mv late/7 again/seven; rm late/8; sync -f .\n\
             cp --sparse=always '{}' '{}'",
            copy_rich(rich),
            live.display(),
            image.display()
        ),
    );
    std::fs::remove_file(live).unwrap();
    let features = shell(
        dir,
        &format!("dumpe2fs -h '{}' 2>/dev/null", image.display()),
    );
    assert!(
        features.contains("needs_recovery"),
        "{name}: the copy is not dirty\n{features}"
    );
    image
}

#[test]
fn journals_left_dirty_by_the_kernel() {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let rich = rich_tree(work.path());
    let none = "-t ext4 -O extent,^metadata_csum,^64bit -N 5000";
    let wide = "-t ext4 -O extent,^metadata_csum,64bit -N 5000";
    let v3 = "-t ext4 -O extent,metadata_csum,64bit -N 5000";
    for (name, args, options) in [
        ("ext3-plain-1k", format!("{EXT3} -b 1024 -N 5000"), ""),
        ("ext3-plain-4k", format!("{EXT3} -b 4096 -N 5000"), ""),
        ("none-4k", format!("{none} -b 4096"), ""),
        ("none-64bit-1k", format!("{wide} -b 1024"), ""),
        ("v1-4k", format!("{none} -b 4096"), "journal_checksum"),
        (
            "v1-async-4k",
            format!("{none} -b 4096"),
            "journal_async_commit,data=writeback",
        ),
        ("v3-1k", format!("{v3} -b 1024"), ""),
        ("v3-4k", format!("{v3} -b 4096"), ""),
        (
            "v3-async-4k",
            format!("{v3} -b 4096"),
            "journal_async_commit,data=writeback",
        ),
        ("v3-small-1k", format!("{v3} -b 1024 -J size=4"), ""),
        ("v3-seed-orphan", format!("{SEED} -b 4096 -N 5000"), ""),
        (
            "data-journal",
            format!("{v3} -b 4096 -J size=16"),
            "data=journal",
        ),
    ] {
        let image = crash_copy(work.path(), &rich, name, &args, options);
        unchanged_by(&image, || {
            let fs = open(&image);
            assert!(fs.info().journal_replayed, "{name}: not replayed");
            let kernel = ReplayedMount::new(&image, work.path());
            let want = walk_host(kernel.path());
            assert!(
                want.contains_key(&b"again/seven"[..]),
                "{name}: the kernel did not replay"
            );
            assert_equal(name, &want, &walk_driver(&*fs), Ignore::default());
            through_fuse(name, &image, work.path(), &want, Ignore::default());
        });
        std::fs::remove_file(&image).unwrap();
    }
}

/// Journals written block by block with debugfs: checksum version, revokes, escapes.
#[test]
fn journals_written_by_debugfs() {
    if !support::is_root() {
        skip!("comparing with the kernel's mount needs root");
    }
    let work = support::workdir();
    let dir = work.path();
    let plain = "-t ext4 -O extent,^metadata_csum,^64bit -b 1024";
    let wide = "-t ext4 -O extent,^metadata_csum,64bit -b 1024";
    let csum = "-t ext4 -O extent,metadata_csum,64bit -b 1024";
    // `B0` … are the blocks of the file `data`; `new`, `old` and `magic` are blocks to log.
    let write = "jw -b B0 new\n";
    let revoked = "jw -b B0 old\njw -b B1 new\njw -r B0\n";
    let revoked_then_written = "jw -b B0 old\njw -r B0\njw -b B0 new\n";
    let escaped = "jw -b B0 magic\njw -b B1,B2 two\n";
    let mut count = 0;
    for (kind, args, open_options) in [
        ("none", plain, ""),
        ("none64", wide, ""),
        ("v2", wide, "-c -v 2"),
        ("v3", wide, "-c -v 3"),
        ("v3csum", csum, "-c -v 3"),
        ("v2csum", csum, "-c -v 2"),
    ] {
        for (what, script) in [
            ("write", write),
            ("revoked", revoked),
            ("revoked-then-written", revoked_then_written),
            ("escaped", escaped),
        ] {
            // debugfs 1.47 writes revoke blocks of journals with checksums that the kernel rejects;
            // the journals left by the kernel itself hold such revokes.
            if kind.starts_with("v") && what.starts_with("revoked") {
                continue;
            }
            let name = format!("{kind}-{what}");
            let image = dir.join(&name);
            mke2fs(&image, "8M", args);
            fill(
                &image,
                "",
                "head -c 4096 /dev/zero | tr '\\0' d > data; echo other > other",
            );
            let blocks = shell(
                dir,
                &format!("debugfs -R 'blocks data' '{}' 2>/dev/null", image.display()),
            );
            let blocks: Vec<&str> = blocks.split_whitespace().collect();
            assert_eq!(blocks.len(), 4, "{blocks:?}");
            let mut commands = format!("jo {open_options}\n{script}jc\n");
            for (i, block) in blocks.iter().enumerate() {
                commands = commands.replace(&format!("B{i}"), block);
            }
            shell(
                dir,
                &format!(
                    r#"python3 - <<'P'
open('new','wb').write(b'N'*1024)
open('old','wb').write(b'O'*1024)
open('two','wb').write(b'1'*1024+b'2'*1024)
open('magic','wb').write(bytes.fromhex('c03b3998')+b'M'*1020)
P
printf '%s' '{commands}' > commands
debugfs -w -f commands '{}' >out 2>&1
if grep -qiE 'error|invalid|unknown|usage|fail' out; then cat out; exit 1; fi"#,
                    image.display()
                ),
            );
            unchanged_by(&image, || {
                let fs = open(&image);
                assert!(fs.info().journal_replayed, "{name}: not replayed");
                let kernel = ReplayedMount::new(&image, dir);
                let want = walk_host(kernel.path());
                assert_equal(&name, &want, &walk_driver(&*fs), Ignore::default());
            });
            count += 1;
            std::fs::remove_file(&image).unwrap();
            std::fs::remove_file(dir.join(format!("replay-{name}"))).unwrap();
        }
    }
    eprintln!("{count} journals replayed as the kernel does");
}
