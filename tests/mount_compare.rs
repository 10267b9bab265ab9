//! The same files through our mount and through the kernel's own, name by name and by the tools
//! people use.

mod support;

use std::path::{Path, PathBuf};

use support::ext::{copy_rich, fill, mke2fs, rich_tree};
use support::mount::GuestMount;
use support::walk::{Ignore, assert_equal, walk_host};
use support::{KernelMount, is_root, shell, skip, workdir};

/// An image of everything there is, made by the kernel.
fn rich_image(dir: &Path, args: &str, more: &str) -> PathBuf {
    let rich = rich_tree(dir);
    let image = dir.join("rich.img");
    mke2fs(&image, "96M", args);
    fill(&image, "", &format!("{}\n{more}", copy_rich(&rich)));
    image
}

#[test]
fn name_by_name() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    for args in ["-t ext4 -I 256", "-t ext3 -b 1024", "-t ext2 -I 128"] {
        let dir = workdir();
        let image = rich_image(dir.path(), args, "");
        let kernel = KernelMount::new(&image, dir.path(), "");
        let ours = GuestMount::new(dir.path(), "ours", &[&image], &["--symlinks", "raw"]);
        let ignore = Ignore {
            inode_numbers: true,
            ..Ignore::default()
        };
        let (want, got) = (
            walk_host(kernel.path()),
            walk_host(&ours.join("volumes/sda")),
        );
        assert!(want.len() > 1500, "{}", want.len());
        assert_equal(args, &want, &got, ignore);
        ours.umount();
    }
}

/// Each of these prints the same in both mounts.
const TOOLS: [(&str, &str); 10] = [
    (
        "find",
        r"find . -printf '%y %m %U %G %n %s %b %T@ %C@ %A@ %p -> %l\0' | sort -z | sha256sum",
    ),
    (
        "find -ls",
        // Without the inode numbers; the widths of the columns depend on the order.
        "find . -ls | sed 's/^ *[0-9]* *//; s/  */ /g' | sort | sha256sum",
    ),
    (
        "tar",
        // Attributes come with the copies below: their order in an archive says nothing.
        "tar --sort=name --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime \
         -cf - . 2>/dev/null | sha256sum",
    ),
    (
        "tar --sparse",
        "tar --sort=name --numeric-owner --sparse --format=gnu -cf - . 2>/dev/null | sha256sum",
    ),
    (
        "grep -r",
        "grep -rc hello . 2>/dev/null | sort | sha256sum; grep -r --binary-files=text bottom . | sha256sum",
    ),
    (
        "du",
        "du -sk .; du -s --apparent-size -B1 .; du -alk . | sort | sha256sum",
    ),
    (
        "sha256sum",
        "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum",
    ),
    (
        "getfattr",
        "find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex | sort | sha256sum",
    ),
    (
        "getfacl",
        "find . ! -type l -print0 | sort -z | xargs -0 getfacl -n | sha256sum",
    ),
    (
        "git",
        "git -C repository log --stat --format=fuller; git -C repository fsck --full --strict 2>&1; \
         git -C repository show HEAD:file; git -C repository status --short",
    ),
];

const REPOSITORY: &str = r#"
export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE=2001-01-01T00:00:00Z GIT_COMMITTER_DATE=2001-01-01T00:00:00Z
git init -q repository
cd repository
git config user.name n; git config user.email e@example.org
for i in 1 2 3 4 5; do seq $i 2000 > file; echo $i > new$i; git add -A; git commit -qm "commit $i"; done
git gc -q
echo loose > loose; git add -A; git commit -qm loose
"#;

#[test]
fn the_tools_agree() {
    if !is_root() {
        skip!("the kernel's own mount needs root");
    }
    let dir = workdir();
    let image = rich_image(dir.path(), "-t ext4", REPOSITORY);
    let kernel = KernelMount::new(&image, dir.path(), "");
    let ours = GuestMount::new(dir.path(), "ours", &[&image], &["--symlinks", "raw"]);
    let here = ours.join("volumes/sda");
    let environment = "export GIT_OPTIONAL_LOCKS=0 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory \
                       GIT_CONFIG_VALUE_0='*' GIT_PAGER=cat";
    for (tool, script) in TOOLS {
        let script = format!("{environment}\nset +o pipefail\n{script}");
        let (want, got) = (shell(kernel.path(), &script), shell(&here, &script));
        assert!(!want.is_empty(), "{tool}");
        assert_eq!(got, want, "{tool}");
    }
    // Copies made through either mount are the same.
    let copies = [
        (
            "tar --xattrs",
            "mkdir '{to}'; tar -C '{from}' --xattrs --xattrs-include='*' --acls --selinux --format=posix \
             -cf - . | tar -C '{to}' --xattrs --xattrs-include='*' --acls -xpf - || test $? = 2",
        ),
        ("rsync", "rsync -aHAX --numeric-ids '{from}/' '{to}/'"),
        (
            "rsync --sparse",
            "rsync -aHAXS --numeric-ids '{from}/' '{to}/'",
        ),
        (
            "cp",
            "mkdir '{to}'; cp -a --sparse=always '{from}/.' '{to}/'",
        ),
    ];
    for (n, (tool, script)) in copies.into_iter().enumerate() {
        let trees = [("kernel", kernel.path()), ("ours", &here)].map(|(name, from)| {
            let to = dir.path().join(format!("copy-{n}-{name}"));
            let script = script
                .replace("{from}", from.to_str().unwrap())
                .replace("{to}", to.to_str().unwrap());
            shell(dir.path(), &script);
            walk_host(&to)
        });
        let ignore = Ignore {
            inode_numbers: true,
            ctime: true,
            atime: true,
            blocks: true,
            directory_sizes: true,
            ..Ignore::default()
        };
        assert_equal(tool, &trees[0], &trees[1], ignore);
        // And a second run finds nothing to do.
        if n == 1 {
            let again = shell(
                dir.path(),
                &format!(
                    "rsync -aHAX --numeric-ids --checksum -ni '{}/' copy-1-kernel/",
                    here.display()
                ),
            );
            assert_eq!(again, "");
        }
    }
    ours.umount();
}
