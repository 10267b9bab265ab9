//! ext2/3/4 images made by the reference tools and filled through the kernel.

use std::path::{Path, PathBuf};

use super::{run, shell, tool};

/// A tree of everything a filesystem can hold, made on the host once per test and copied in.
/// Needs root (device nodes, owners, security attributes).
pub fn rich_tree(dir: &Path) -> PathBuf {
    let root = dir.join("rich");
    std::fs::create_dir(&root).unwrap();
    shell(&root, RICH);
    root
}

const RICH: &str = r#"
mkdir -p a/b/c/d/e empty many
echo hello > a/hello; ln a/hello a/b/hard1; ln a/hello a/b/c/hard2
: > a/zero-length
printf x > a/one-byte
head -c 1023 /dev/zero | tr '\0' n > a/n1023; head -c 1024 /dev/zero | tr '\0' o > a/n1024
head -c 4096 /dev/zero | tr '\0' p > a/n4096; head -c 4097 /dev/zero | tr '\0' q > a/n4097
seq 1 60000 > a/numbers
chmod 4755 a/n1023; chmod 2755 a/n1024; chmod 1777 empty; chmod 000 a/one-byte; chmod 0640 a/hello
chown 1000:1000 a/n4096; chown 70000:80000 a/n4097; chown 4294967290:4000000000 a/numbers
chown -h 1000:1001 a/b
ln -s short s-fast; ln -s /etc/passwd s-absolute; ln -s ../../../../../../etc/shadow s-climb
ln -s nowhere s-dangling; chown -h 1234:5678 s-dangling
python3 - <<'P'
import os, socket
for n in (1, 58, 59, 60, 61, 100, 500, 1000): os.symlink('t' * n, 's-len%d' % n)
os.symlink(b'\xff\xfe\n', b's-bytes')
names = [b'new\nline', b'tab\there', b'\xff\xfe invalid utf-8', b' leading and trailing ', b'-dash',
         b'quote"\'`$(x)', b'x' * 255, 'grüße-\u4f60\u597d'.encode(), b'...', b'..a', b'back\\slash']
for n in names: open(n, 'wb').write(n)
s = socket.socket(socket.AF_UNIX); s.bind('sock')
for i in range(1500): open('many/entry-with-a-medium-name-%05d' % i, 'w').close()
# Holes in front, between and behind; sizes that end inside a block.
with open('a/sparse', 'wb') as f:
    f.seek(70000); f.write(b'A' * 5000); f.seek(300000); f.write(b'B'); f.seek(1200000); f.write(b'C' * 9000)
    f.truncate(2500001)
with open('a/hole-only', 'wb') as f: f.truncate(123456)
d = 'a/b/c/d/e'
for i in range(40):
    d += '/deep%d' % i; os.mkdir(d)
open(d + '/bottom', 'w').write('bottom')
times = {'t-1960': (-315619200, 123456789), 't-1901': (-2147483648, 0), 't-2100': (4102444800, 999999999),
         't-2400': (13569465600, 1), 't-2038': (2147483648, 5), 't-epoch': (0, 0)}
for n, (s_, ns) in times.items():
    open(n, 'w').close(); t = s_ * 10**9 + ns; os.utime(n, ns=(t, t))
P
mknod dev-null c 1 3; mknod dev-sda b 8 1; mknod dev-big c 300 70000; mknod dev-wide b 255 256; mkfifo fifo
mkdir x; for i in small large selinux caps acl many-attrs; do echo $i > x/$i; done; mkdir x/acldir
setfattr -n user.small -v value x/small
setfattr -n user.empty -v "" x/small
setfattr -n user.large -v "$(head -c 600 /dev/zero | tr '\0' L)" x/large
setfattr -n security.selinux -v system_u:object_r:etc_t:s0 x/selinux
setfattr -h -n security.selinux -v system_u:object_r:link_t:s0 s-fast
setfattr -n trusted.overlay.opaque -v y empty
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 x/caps
setfacl -m u:1000:rw,g:2000:r,m::rw x/acl
setfacl -m u:1000:rwx -d -m u:1000:rx,g:5:- x/acldir
for i in 1 2 3 4 5 6 7 8; do setfattr -n user.attribute-$i -v "value $i" x/many-attrs; done
"#;

/// Makes an image of `size` with `mke2fs ARGS` (and `-F -q`).
pub fn mke2fs(image: &Path, size: &str, args: &str) {
    shell(
        image.parent().unwrap(),
        &format!(
            "rm -f '{0}'; truncate -s {size} '{0}'; mke2fs -F -q {args} '{0}'",
            image.display()
        ),
    );
}

/// Mounts an image read-write in the kernel, runs a script in its root, unmounts.
pub fn fill(image: &Path, options: &str, script: &str) {
    let point = image.with_extension("mnt");
    std::fs::create_dir_all(&point).unwrap();
    let comma = if options.is_empty() { "" } else { "," };
    run(tool("mount")
        .arg("-o")
        .arg(format!("loop{comma}{options}"))
        .arg(image)
        .arg(&point));
    let result = std::panic::catch_unwind(|| shell(&point, script));
    run(tool("umount").arg(&point));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A script that copies the rich tree into the current directory and adds what only the target
/// filesystem itself makes: unwritten extents, interleaved (fragmented) files, deleted names.
pub fn copy_rich(rich: &Path) -> String {
    format!(
        r#"
cp -a '{}'/. .
fallocate -l 200K prealloc 2>/dev/null || true
fallocate -n -l 100K a/hello 2>/dev/null || true
for i in $(seq 1 30); do for f in frag1 frag2 frag3; do head -c 5000 /dev/urandom >> $f; done; done
rm many/entry-with-a-medium-name-000[3-7]*
mv many/entry-with-a-medium-name-00099 many/renamed
"#,
        rich.display()
    )
}

/// The kernel's own view of an image whose journal needs recovery: a copy on a writable loop
/// device, mounted read-only, which lets the kernel replay first.
pub struct ReplayedMount {
    device: String,
    point: PathBuf,
}

impl ReplayedMount {
    /// Copies `image` into `dir` and mounts the copy.
    pub fn new(image: &Path, dir: &Path) -> Self {
        let name = image.file_name().unwrap().to_string_lossy();
        let copy = dir.join(format!("replay-{name}"));
        run(tool("cp").arg("--sparse=always").arg(image).arg(&copy));
        let point = dir.join(format!("replayed-{name}"));
        std::fs::create_dir_all(&point).unwrap();
        let out = run(tool("losetup").arg("-f").arg("--show").arg(&copy));
        let device = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        let mount = Self { device, point };
        run(tool("mount")
            .arg("-o")
            .arg("ro")
            .arg(&mount.device)
            .arg(&mount.point));
        mount
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for ReplayedMount {
    fn drop(&mut self) {
        let _ = tool("umount").arg("-l").arg(&self.point).status();
        let _ = tool("losetup").arg("-d").arg(&self.device).status();
    }
}
