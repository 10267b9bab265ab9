//! Paths are walked inside the guest: whatever its links say, nothing outside is reached.

mod support;

use std::path::Path;

use guestlens::formats::reference::ReferencePolicy;
use guestlens::fs::{FileType, FsErrorKind};
use guestlens::guest::view::FollowFinal;
use guestlens::guest::{Guest, GuestOptions, GuestView, ImageArgument, mounts};

fn guest(dir: &Path) -> Guest {
    support::shell(
        dir,
        r#"
mkdir -p a/etc a/deep/er a/data b/sub
echo inside > a/etc/shadow; echo two > b/sub/two
printf '/dev/sda / ext4\n/dev/sdb /data ext4\n' > a/etc/fstab
cd a
ln -s /etc/shadow absolute; ln -s ../../../../../etc/shadow climb; ln -s absolute twice
ln -s loop-b loop-a; ln -s loop-a loop-b; ln -s self self; ln -s nowhere dangling
ln -s /data/sub into-mount; ln -s deep/er/../../etc dots; ln -s etc/ slash; ln -s / top
ln -s etc/shadow/ file-as-dir; ln -s /proc/self/root/etc/passwd procfs; ln -s .. deep/up
n=0; ln -s etc/shadow chain0; while [ $n -lt 45 ]; do ln -s chain$n chain$((n+1)); n=$((n+1)); done
cd ../b; ln -s ../etc/shadow out; ln -s /etc/shadow out-absolute
cd ..
mke2fs -q -F -t ext4 -b 1024 -d a one.img 8M
mke2fs -q -F -t ext2 -b 1024 -d b two.img 8M"#,
    );
    let images = ["one.img", "two.img"].map(|name| ImageArgument {
        path: dir.join(name),
        format: Some("raw".into()),
    });
    let mut options = GuestOptions::default();
    options.image.policy = ReferencePolicy {
        refuse_all: true,
        ..ReferencePolicy::default()
    };
    Guest::open(&images, &options).unwrap()
}

fn kind(view: &GuestView, path: &str) -> FsErrorKind {
    view.resolve(path.as_bytes(), FollowFinal::Yes)
        .expect_err(path)
        .kind()
}

#[test]
fn links_end_inside_the_guest() {
    let dir = support::workdir();
    let guest = guest(dir.path());
    let assembled = mounts::assemble(&guest, 0).unwrap();
    assert!(assembled.problems.is_empty(), "{:?}", assembled.problems);
    let view = assembled.view;
    let read = |path: &str| {
        let bytes = view.read_file(path.as_bytes(), 1000);
        String::from_utf8(bytes.unwrap_or_else(|e| panic!("{path}: {e:?}"))).unwrap()
    };
    for path in [
        "/etc/shadow",
        "etc/shadow",
        "absolute",
        "/climb",
        "twice",
        "dots/shadow",
        "slash/shadow",
        "top/top/etc/shadow",
        "//etc/./shadow",
        "../../etc/shadow",
        "deep/up/etc/shadow",
        "data/../etc/shadow",
        "data/out",
        "data/out-absolute",
        "data/sub/../../etc/shadow",
        "into-mount/../../etc/shadow",
        "chain39",
    ] {
        assert_eq!(read(path), "inside\n", "{path}");
    }
    assert_eq!(read("into-mount/two"), "two\n");
    assert_eq!(read("/data/sub/two"), "two\n");

    assert_eq!(kind(&view, "chain40"), FsErrorKind::Loop);
    assert_eq!(kind(&view, "loop-a"), FsErrorKind::Loop);
    assert_eq!(kind(&view, "self/x"), FsErrorKind::Loop);
    assert_eq!(kind(&view, "dangling"), FsErrorKind::NotFound);
    assert_eq!(kind(&view, "procfs"), FsErrorKind::NotFound);
    assert_eq!(kind(&view, "etc/shadow/"), FsErrorKind::NotDirectory);
    assert_eq!(kind(&view, "etc/shadow/x"), FsErrorKind::NotDirectory);
    assert_eq!(kind(&view, "file-as-dir"), FsErrorKind::NotDirectory);
    assert_eq!(kind(&view, "etc/\0"), FsErrorKind::Invalid);
    assert_eq!(kind(&view, &"x/".repeat(3000)), FsErrorKind::NameTooLong);
    assert_eq!(kind(&view, &"x".repeat(300)), FsErrorKind::NameTooLong);

    // A link itself, when it is the last component and not to be followed.
    let link = view.resolve(b"/loop-a", FollowFinal::No).unwrap();
    assert_eq!(view.attributes(link).unwrap().file_type, FileType::Symlink);
    // The root of a mounted filesystem is what stands at its mount point.
    let listed = view.list(view.root()).unwrap();
    let (_, data) = listed.iter().find(|(name, _)| name == b"data").unwrap();
    assert_eq!(data.mount, 1);
    assert_eq!(view.step(*data, b"..").unwrap(), view.root());
    assert_eq!(view.step(view.root(), b"..").unwrap(), view.root());
}
