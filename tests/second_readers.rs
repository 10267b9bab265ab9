//! Independent implementations read the same images as we do. They are no engines (see
//! docs/architecture.md), but where they read at all, they must agree with us.

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use guestlens::block::BlockDevice;
use guestlens::block::file::FileBackend;
use guestlens::formats::reference::ReferencePolicy;
use guestlens::formats::{OpenOptions, open_path};
use guestlens::fs::{FileType, FsOptions, api::drivers};
use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_sync;

/// Runs a future whose I/O is synchronous underneath, so that it is never really pending.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("a synchronous future never finished");
}

/// Version 2 and 3, several cluster sizes, deflate-compressed clusters, zero clusters, a qcow2
/// backing file: what `qcow2-rs` reads. (It overflows on 512-byte clusters, takes
/// relative backing names from the working directory, refuses zstd, extended L2 and data files, fails on raw
/// backing files and takes encrypted images for plain ones.)
#[test]
fn qcow2_rs_reads_the_same_bytes() {
    let work = support::workdir();
    let dir = work.path();
    support::shell(
        dir,
        r#"
python3 - <<'P'
import random
r = random.Random(7)
with open('raw', 'wb') as f:
    for i in range(128):
        f.write(r.choice([bytes(65536), r.randbytes(65536), b'text ' * 13107 + b'!']))
P
for c in 4k 64k 256k 2M; do
    qemu-img convert -O qcow2 -o cluster_size=$c raw plain-$c.qcow2
    qemu-img convert -c -O qcow2 -o cluster_size=$c raw packed-$c.qcow2 2>/dev/null || rm -f packed-$c.qcow2
done
qemu-img convert -O qcow2 -o compat=0.10 raw v2.qcow2
qemu-img create -q -f qcow2 -b "$PWD/plain-64k.qcow2" -F qcow2 overlay.qcow2
qemu-io -c 'write -P 7 1M 100k' -c 'write -z 3M 1M' -c 'write -P 9 5000k 1k' overlay.qcow2 >/dev/null
"#,
    );
    let mut compared = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "qcow2") {
            continue;
        }
        let policy = ReferencePolicy {
            allowed: vec![dir.to_owned()],
            ..ReferencePolicy::default()
        };
        let options = OpenOptions {
            policy,
            ..OpenOptions::default()
        };
        let image = open_path(&path, &options).unwrap();
        let ours = image
            .device()
            .read_vec(0, image.device().len() as usize)
            .unwrap();
        drop(image);
        let params = Qcow2DevParams::new(9, None, None, true, false);
        let theirs = qcow2_setup_dev_sync(&path, &params).unwrap();
        now(theirs.qcow2_prep_io()).unwrap();
        let mut buf = Qcow2IoBuf::<u8>::new(ours.len());
        now(theirs.read_at(&mut buf, 0)).unwrap();
        assert!(ours[..] == buf[..], "{}", path.display());
        compared += 1;
    }
    assert!(compared >= 9, "only {compared} images");
    eprintln!("{compared} images read alike");
}

/// Types, sizes, modes, link targets and content of everything `ext4-view` reads: extents,
/// directories with an index, checksums. (It knows no inode numbers, link counts or extended
/// attributes, and no inline data, meta_bg or large directories.)
#[test]
fn ext4_view_reads_the_same_files() {
    let work = support::workdir();
    let dir = work.path();
    support::shell(
        dir,
        r#"
mkdir -p t/a/b/c t/many
for i in $(seq 600); do echo "file $i" > t/many/name-$i; done
seq 1 200000 > t/a/numbers; truncate -s 3M t/a/hole; printf end | dd of=t/a/hole bs=1 seek=2000000 conv=notrunc 2>/dev/null
ln -s ../a/numbers t/a/b/link; ln t/a/numbers t/a/b/c/hard; chmod 4711 t/a/numbers
mke2fs -q -t ext4 -b 1024 -d t one 30M
mke2fs -q -t ext4 -b 4096 -d t four 30M
mke2fs -q -t ext3 -b 1024 -d t three 30M
mke2fs -q -t ext2 -b 2048 -d t two 30M
"#,
    );
    let mut compared = 0;
    for name in ["one", "four", "three", "two"] {
        let path = dir.join(name);
        let theirs = ext4_view::Ext4::load(Box::new(std::fs::read(&path).unwrap())).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let device = BlockDevice::new(std::sync::Arc::new(FileBackend::new(file, true).unwrap()));
        let fs = drivers()[0].open(&device, &FsOptions::default()).unwrap();
        let mut todo = vec![(String::from("/"), fs.root())];
        while let Some((path, ino)) = todo.pop() {
            let ours = fs.attributes(ino).unwrap();
            let meta = theirs.symlink_metadata(path.as_str()).unwrap();
            assert_eq!(
                u32::from(meta.mode()) & 0o7777,
                ours.mode() & 0o7777,
                "{name}:{path}"
            );
            assert_eq!(
                (meta.uid(), meta.gid()),
                (ours.uid, ours.gid),
                "{name}:{path}"
            );
            compared += 1;
            match ours.file_type {
                FileType::Directory => {
                    assert!(meta.is_dir());
                    let mut names = Vec::new();
                    fs.read_dir(ino, 0, &mut |e| {
                        names.push((String::from_utf8(e.name.to_vec()).unwrap(), e.ino));
                        std::ops::ControlFlow::Continue(())
                    })
                    .unwrap();
                    let count = theirs.read_dir(path.as_str()).unwrap().count();
                    assert_eq!(count, names.len() + 2, "{name}:{path}");
                    let slash = if path == "/" { "" } else { "/" };
                    todo.extend(
                        names
                            .into_iter()
                            .map(|(n, i)| (format!("{path}{slash}{n}"), i)),
                    );
                }
                FileType::Symlink => {
                    let target = theirs.read_link(path.as_str()).unwrap();
                    assert_eq!(
                        <_ as AsRef<[u8]>>::as_ref(&target),
                        fs.read_link(ino).unwrap()
                    );
                }
                // It takes holes of block-mapped files for block 0 and refuses them.
                _ if path == "/a/hole" && matches!(name, "two" | "three") => {}
                _ => {
                    let mut bytes = vec![0; ours.size as usize];
                    assert_eq!(fs.read_at(ino, 0, &mut bytes).unwrap(), bytes.len());
                    assert!(
                        theirs.read(path.as_str()).unwrap() == bytes,
                        "{name}:{path}"
                    );
                }
            }
        }
    }
    assert!(compared > 2400, "only {compared} files");
    eprintln!("{compared} files read alike");
}
