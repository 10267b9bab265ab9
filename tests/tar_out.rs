//! `tar-out`: what GNU tar makes of it is what the kernel shows of the same image.

mod support;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::ext::{copy_rich, fill, mke2fs, rich_tree};
use support::walk::{Ignore, Tree, assert_equal, walk_host};
use support::{KernelMount, guestlens, is_root, run, shell, skip, tool, workdir};

/// Extracts an archive with everything GNU tar can restore.
fn extract(archive: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let output = tool("tar")
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--numeric-owner",
            "-xpf",
        ])
        .arg(archive)
        .arg("-C")
        .arg(to)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // It may tell of the record it does not know (and does not need), and of odd times.
    for line in said.lines() {
        assert!(
            line.contains("hdrcharset") || line.contains("time stamp"),
            "{said}"
        );
    }
}

/// Writes an archive; returns exit status and what was said.
fn tar_out(image: &Path, path: &str, archive: &Path) -> (Option<i32>, String) {
    let output = guestlens()
        .arg("tar-out")
        .arg(image)
        .arg(path)
        .arg("-o")
        .arg(archive)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Link counts of directories are the extracting filesystem's.
fn directories_alike(tree: &mut Tree) {
    for record in tree.values_mut() {
        if record.mode & 0o170000 == 0o040000 {
            record.nlink = 0;
        }
    }
}

const COPY: Ignore = Ignore {
    xattrs: false,
    atime: true,
    ctime: true,
    holes: false,
    blocks: true,
    directory_sizes: true,
    directory_mtimes: false,
    inode_numbers: true,
};

const MORE: &str = r#"
python3 - <<'P'
import os
deep = b'/'.join([b'd' * 60] * 6); os.makedirs(deep)
open(deep + b'/f', 'w').write('x')
os.makedirs(b'e' * 90 + b'/\xff\xfe' + b'e' * 90)
open(b'e' * 90 + b'/\xff\xfe' + b'e' * 90 + b'/\xff', 'w').write('y')
os.link(deep + b'/f', b'e' * 90 + b'/link')
os.symlink(b'\xff' * 150, b's-long-bytes')
for n in (98, 99, 100, 101): open('n' * n, 'w').close()
with open('sparse-' + 'n' * 120, 'wb') as f: f.truncate(1 << 20); f.seek(500000); f.write(b'z')
os.link('sparse-' + 'n' * 120, 'sparse-link')
with open('many-holes', 'wb') as f:
    for i in range(300): f.seek(i * 16384); f.write(b'%d' % i)
P
"#;

#[test]
fn gnu_tar_restores_what_the_kernel_shows() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    for args in ["-t ext4 -b 4096", "-t ext3 -b 1024", "-t ext2 -I 128"] {
        let dir = workdir();
        let rich = rich_tree(dir.path());
        let image = dir.path().join("rich.img");
        mke2fs(&image, "96M", args);
        fill(&image, "", &format!("{}\n{MORE}", copy_rich(&rich)));
        let archive = dir.path().join("rich.tar");
        let (status, said) = tar_out(&image, "/", &archive);
        // Tar has no sockets, and that is all that is missing.
        assert_eq!(status, Some(3), "{said}");
        assert_eq!(
            said, "guestlens: /sock: a socket; tar has no type for it\n",
            "{args}"
        );
        let to = dir.path().join("extracted");
        extract(&archive, &to);

        let kernel = KernelMount::new(&image, dir.path(), "");
        let (mut want, mut got) = (walk_host(kernel.path()), walk_host(&to));
        assert!(want.remove(b"sock".as_slice()).is_some());
        assert!(want.len() > 1500);
        directories_alike(&mut want);
        directories_alike(&mut got);
        // Holes of less than the extracting filesystem's block cannot be kept.
        let ignore = Ignore {
            holes: !args.contains("4096"),
            ..COPY
        };
        assert_equal(args, &want, &got, ignore);

        // Other readers take it as well.
        let listed = shell(
            dir.path(),
            "python3 -c \"import tarfile; print(len(tarfile.open('rich.tar').getmembers()))\"",
        );
        assert_eq!(listed.trim(), want.len().to_string());
    }
}

/// The archive of one file, directory or link.
#[test]
fn a_part_and_a_single_file() {
    let dir = workdir();
    let image = small(dir.path(), "mkdir /d\nwrite one /d/f\nsymlink /d/l f\n");
    for (path, want) in [
        ("/d", "./\n./f\n./l\n"),
        ("/d/f", "f\n"),
        // Named by the user, so followed.
        ("/d/l", "l\n"),
    ] {
        let archive = dir.path().join("part.tar");
        let _ = std::fs::remove_file(&archive);
        let (status, said) = tar_out(&image, path, &archive);
        assert_eq!((status, said.as_str()), (Some(0), ""), "{path}");
        let listed = shell(dir.path(), "tar tf part.tar");
        assert_eq!(listed, want, "{path}");
        // What exists is not overwritten.
        let (status, said) = tar_out(&image, path, &archive);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("exists"), "{said}");
    }
    let (status, _) = tar_out(&image, "/nothing", &dir.path().join("none.tar"));
    assert_eq!(status, Some(1));
    assert!(!dir.path().join("none.tar").exists());
}

/// An ext4 image made without root, filled by debugfs; `one` is a file of one line.
fn small(dir: &Path, commands: &str) -> PathBuf {
    std::fs::write(dir.join("one"), "one\n").unwrap();
    std::fs::write(dir.join("commands"), commands).unwrap();
    let image = dir.join("small.img");
    mke2fs(&image, "32M", "-t ext4 -b 4096");
    shell(dir, "debugfs -w -f commands small.img >/dev/null 2>&1");
    image
}

#[test]
fn a_tebibyte_of_nothing_is_small() {
    let dir = workdir();
    shell(
        dir.path(),
        "truncate -s 1T tebi; printf end | dd of=tebi bs=1 seek=1099511627773 conv=notrunc status=none; \
         truncate -s 1T nothing",
    );
    let image = small(dir.path(), "write tebi tebi\n");
    let archive = dir.path().join("tebi.tar");
    let (status, said) = tar_out(&image, "/tebi", &archive);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert!(std::fs::metadata(&archive).unwrap().len() < 64 << 10);
    let to = dir.path().join("to");
    extract(&archive, &to);
    let facts = shell(&to, "stat -c %s tebi; du -k tebi | cut -f1; tail -c 3 tebi");
    let mut facts = facts.lines();
    assert_eq!(facts.next(), Some("1099511627776"));
    assert!(facts.next().unwrap().parse::<u64>().unwrap() <= 64);
    assert_eq!(facts.next(), Some("end"));
}

/// Two mebibytes with an extent tree of two levels, whose second level is overwritten.
#[test]
fn what_cannot_be_read_is_told() {
    let dir = workdir();
    shell(
        dir.path(),
        r#"python3 -c "
f = open('holes', 'wb')
for i in range(0, 400, 2): f.seek(i * 4096); f.write(b'x' * 4096)
""#,
    );
    let image = small(dir.path(), "write holes a-holes\nwrite one b-one\n");
    let block = shell(
        dir.path(),
        "debugfs -R 'dump_extents -n a-holes' small.img 2>/dev/null | \
         awk '$1 == \"0/\" { print $8; exit }'",
    );
    let block: u64 = block.trim().parse().unwrap_or_else(|_| panic!("{block:?}"));
    shell(
        dir.path(),
        &format!(
            "dd if=/dev/urandom of=small.img bs=4096 seek={block} count=1 conv=notrunc status=none"
        ),
    );
    let archive = dir.path().join("damaged.tar");
    let (status, said) = tar_out(&image, "/", &archive);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("/a-holes: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // The archive is sound and the rest is in it.
    let listed = shell(
        dir.path(),
        "tar tf damaged.tar && tar xOf damaged.tar ./b-one",
    );
    assert!(listed.ends_with("one\n"), "{listed}");
}

#[test]
fn attributes_that_do_not_fit() {
    if !is_root() {
        skip!("only the kernel makes such names");
    }
    let dir = workdir();
    let image = dir.path().join("x.img");
    mke2fs(&image, "32M", "-t ext4");
    fill(
        &image,
        "",
        "touch f; setfattr -n user.a=b -v c f; setfattr -n user.ok -v d f",
    );
    let archive = dir.path().join("x.tar");
    let (status, said) = tar_out(&image, "/f", &archive);
    assert_eq!(status, Some(3));
    assert!(said.contains("user.a=b"), "{said}");
    let to = dir.path().join("to");
    extract(&archive, &to);
    assert_eq!(xattr::get(to.join("f"), "user.ok").unwrap().unwrap(), b"d");
}

/// A reader that has seen enough is no failure.
#[test]
fn broken_pipe() {
    let dir = workdir();
    shell(dir.path(), "head -c 8M /dev/urandom > big");
    let image = small(dir.path(), "write big big\n");
    for verb in [["tar-out", "/"], ["cat", "/big"]] {
        let mut child = guestlens()
            .arg(verb[0])
            .arg(&image)
            .arg(verb[1])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 512];
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut first).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{verb:?}");
    }
    // The same bytes arrive when the reader stays.
    let whole = run(guestlens().arg("cat").arg(&image).arg("/big")).stdout;
    assert_eq!(whole, std::fs::read(dir.path().join("big")).unwrap());
}
