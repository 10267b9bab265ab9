//! Independent implementations read the same images as we do. They are no engines (see
//! docs/architecture.md), but where they read at all, they must agree with us.

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use guestlens::formats::{OpenOptions, open_path};
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
/// backing file: what `qcow2-rs` reads. (It refuses zstd, extended L2 and data files, fails on raw
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
for c in 512 4k 64k 2M; do
    qemu-img convert -O qcow2 -o cluster_size=$c raw plain-$c.qcow2
    qemu-img convert -c -O qcow2 -o cluster_size=$c raw packed-$c.qcow2 2>/dev/null || rm -f packed-$c.qcow2
done
qemu-img convert -O qcow2 -o compat=0.10 raw v2.qcow2
qemu-img create -q -f qcow2 -b plain-64k.qcow2 -F qcow2 overlay.qcow2
qemu-io -c 'write -P 7 1M 100k' -c 'write -z 3M 1M' -c 'write -P 9 5000k 1k' overlay.qcow2 >/dev/null
"#,
    );
    let mut compared = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "qcow2") {
            continue;
        }
        let image = open_path(&path, &OpenOptions::default()).unwrap();
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
