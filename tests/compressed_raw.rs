//! Raw disks in gzip, xz and zstd data: as the usual tools make them, and as nobody should.

mod support;

use std::io::Write as _;
use std::path::Path;

use flate2::write::{DeflateEncoder, GzEncoder};
use flate2::{Compression, Crc};
use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::disk::{compare, content, in_full, open, refused};
use support::{guestlens, shell, workdir};

/// One BGZF member.
fn bgzf_member(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    let body = encoder.finish().unwrap();
    let mut crc = Crc::new();
    crc.update(data);
    let size = (18 + body.len() + 8 - 1) as u16;
    let mut member = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0".to_vec();
    member.extend(size.to_le_bytes());
    member.extend(body);
    member.extend(crc.sum().to_le_bytes());
    member.extend((data.len() as u32).to_le_bytes());
    member
}

fn bgzf(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in data.chunks(0xff00) {
        out.extend(bgzf_member(piece));
    }
    // The empty member that marks the end.
    out.extend(bgzf_member(&[]));
    out
}

/// The zstd seekable format of frames that are there.
fn seek_table(frames: &[(u32, u32)], checksums: bool) -> Vec<u8> {
    let entry = if checksums { 12 } else { 8 };
    let mut out = 0x184d_2a5e_u32.to_le_bytes().to_vec();
    out.extend((frames.len() as u32 * entry + 9).to_le_bytes());
    for (stored, len) in frames {
        out.extend(stored.to_le_bytes());
        out.extend(len.to_le_bytes());
        if checksums {
            out.extend([0; 4]);
        }
    }
    out.extend((frames.len() as u32).to_le_bytes());
    out.push(if checksums { 0x80 } else { 0 });
    out.extend(0x8f92_eab1_u32.to_le_bytes());
    out
}

fn same(path: &Path, raw: &[u8], parts: u64, format: &str) {
    let opened = open(path);
    let info = opened.info();
    assert_eq!((info.format, info.format_detected), (format, true));
    assert_eq!(info.format_specific["parts"], parts, "{}", path.display());
    assert_eq!(info.virtual_size, raw.len() as u64);
    compare(&path.display().to_string(), &opened.device(), raw, parts);
}

#[test]
fn data_in_parts_are_read_from_anywhere() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let raw = content((5 << 20) + 512, 1);
    std::fs::write(at("raw"), &raw).unwrap();
    shell(
        dir.path(),
        "xz -k -c --block-size=1MiB raw > blocks.xz
         xz -k -c -T2 --block-size=300KiB --check=sha256 raw > threads.xz
         xz -k -c -0 --check=crc32 raw > one.xz
         xz -k -c -9 --check=none raw > nine.xz
         xz -k -c --x86 --lzma2=dict=64KiB --block-size=2MiB raw > filter.xz
         (head -c 2M raw | xz -c; head -c 4096 /dev/zero; tail -c +2097153 raw | xz --block-size=1MiB -c) > streams.xz
         gzip -k -c raw > one.gz; gzip -9 -c -N raw > named.gz
         (head -c 1000000 raw | gzip; tail -c +1000001 raw | gzip -1; head -c 700 /dev/zero) > members.gz
         zstd -q -k raw -o one.zst; zstd -q -c < raw > unsized.zst; zstd -q --no-check -19 -k raw -o nineteen.zst
         (head -c 1000000 raw | zstd -q -c; tail -c +1000001 raw > tail; zstd -q -c tail) > frames.zst
         pzstd -q -p 2 -k raw -o parallel.zst
         rm -f tail",
    );
    for (name, parts) in [
        ("blocks.xz", 6),
        ("threads.xz", 18),
        ("one.xz", 1),
        ("nine.xz", 1),
        ("filter.xz", 3),
        ("streams.xz", 5),
    ] {
        same(&at(name), &raw, parts, "xz");
    }
    for (name, parts) in [("one.gz", 1), ("named.gz", 1), ("members.gz", 2)] {
        same(&at(name), &raw, parts, "gz");
    }
    for (name, parts) in [
        ("one.zst", 1),
        ("unsized.zst", 1),
        ("nineteen.zst", 1),
        ("frames.zst", 2),
    ] {
        same(&at(name), &raw, parts, "zst");
    }
    compare("pzstd", &open(&at("parallel.zst")).device(), &raw, 3);
    std::fs::write(at("b.gz"), bgzf(&raw)).unwrap();
    same(&at("b.gz"), &raw, raw.len().div_ceil(0xff00) as u64, "gz");
    // Frames that do not say how long they are, listed in a table.
    for checksums in [false, true] {
        let (mut bytes, mut frames) = (Vec::new(), Vec::new());
        for piece in raw.chunks(100_000) {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
            encoder.write_all(piece).unwrap();
            let frame = encoder.finish().unwrap();
            frames.push((frame.len() as u32, piece.len() as u32));
            bytes.extend(frame);
        }
        bytes.extend(seek_table(&frames, checksums));
        std::fs::write(at("seekable.zst"), &bytes).unwrap();
        same(&at("seekable.zst"), &raw, frames.len() as u64, "zst");
        // A table that is wrong is noticed by what comes out.
        frames[3].1 += 1;
        frames[4].1 -= 1;
        let end = bytes.len() - seek_table(&frames, checksums).len();
        bytes.truncate(end);
        bytes.extend(seek_table(&frames, checksums));
        std::fs::write(at("seekable.zst"), &bytes).unwrap();
        let device = open(&at("seekable.zst")).device();
        assert!(device.read_vec(0, 300_000).unwrap() == raw[..300_000]);
        assert!(device.read_vec(300_000, 100).is_err());
        assert!(device.read_vec(400_500, 100).is_err());
    }
    // Not a whole number of sectors, and looking like something else inside.
    let mut odd = raw[..1_000_001].to_vec();
    odd[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    std::fs::write(at("odd"), &odd).unwrap();
    odd.resize(1_000_001_usize.next_multiple_of(512), 0);
    shell(
        dir.path(),
        "gzip odd; gunzip -k odd.gz; zstd -q odd; xz odd",
    );
    for name in ["odd.gz", "odd.zst", "odd.xz"] {
        compare(name, &open(&at(name)).device(), &odd, 9);
    }
}

#[test]
fn large_parts_are_read_from_the_beginning_only() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    shell(
        dir.path(),
        "truncate -s 66M raw; head -c 1M /dev/urandom | dd of=raw bs=1M seek=20 conv=notrunc status=none
         head -c 2M /dev/urandom | dd of=raw bs=1M seek=64 conv=notrunc status=none
         gzip -1 -k raw; xz -0 -k raw; zstd -q -1 -k raw; zstd -q -1 -c < raw > unsized.zst
         xz -0 -c --block-size=64MiB raw > blocks.xz",
    );
    let raw = std::fs::read(at("raw")).unwrap();
    for name in ["raw.gz", "raw.xz", "raw.zst", "unsized.zst"] {
        let error = refused(&at(name), &OpenOptions::default());
        assert_eq!(
            error.kind(),
            FormatErrorKind::Unsupported,
            "{name}: {error:?}"
        );
        assert!(
            in_full(&error).contains("cannot be read from the middle"),
            "{name}"
        );
        assert!(error.hint().unwrap().contains("unpack it first"));
        let forward = OpenOptions {
            sequential: true,
            ..OpenOptions::default()
        };
        let device = open_path(&at(name), &forward).unwrap().device();
        assert_eq!(device.len(), raw.len() as u64);
        let started = std::time::Instant::now();
        for (index, piece) in raw.chunks(300_000).enumerate() {
            let read = device
                .read_vec(index as u64 * 300_000, piece.len())
                .unwrap();
            assert!(read == piece, "{name} at piece {index}");
        }
        // Backwards is possible, only slow.
        assert!(device.read_vec(21 << 20, 5000).unwrap() == raw[21 << 20..(21 << 20) + 5000]);
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }
    let output = guestlens().arg("info").arg(at("raw.gz")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("guestlens convert"), "{said}");
    let output = guestlens()
        .args(["convert", "--to", "raw"])
        .args([at("raw.gz"), at("copy")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(at("copy")).unwrap() == raw);
    // The largest part that may be.
    let device = open(&at("blocks.xz")).device();
    assert!(device.read_vec(63 << 20, 3 << 20).unwrap() == raw[63 << 20..]);
    assert!(device.read_vec(0, 3 << 20).unwrap() == raw[..3 << 20]);
}

#[test]
fn damage_is_an_error() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let raw = content(2 << 20, 5);
    std::fs::write(at("raw"), &raw).unwrap();
    shell(
        dir.path(),
        "gzip -k raw; xz -k --block-size=500KiB raw; zstd -q -k --check raw",
    );
    std::fs::write(at("raw.bgz"), bgzf(&raw)).unwrap();
    for name in ["raw.gz", "raw.bgz", "raw.xz", "raw.zst"] {
        let good = std::fs::read(at(name)).unwrap();
        let case = at("case");
        // One changed byte somewhere: never other content without an error.
        for step in 1..40 {
            let mut bytes = good.clone();
            let place = bytes.len() / 40 * step;
            bytes[place] ^= 0x10;
            std::fs::write(&case, &bytes).unwrap();
            let Ok(image) = open_path(&case, &OpenOptions::default()) else {
                continue;
            };
            let whole = image.device().read_vec(0, raw.len());
            assert!(whole.is_err(), "{name} with byte {place} changed");
        }
        // Cut short anywhere: refused, or what there is.
        for step in 1..20 {
            std::fs::write(&case, &good[..good.len() / 20 * step]).unwrap();
            if let Ok(image) = open_path(&case, &OpenOptions::default()) {
                let device = image.device();
                let whole = device.read_vec(0, raw.len().min(device.len() as usize));
                assert!(
                    whole.is_err() || device.len() < raw.len() as u64 && name == "raw.bgz",
                    "{name} cut to {step}/20"
                );
            }
        }
        // Something else behind it.
        let mut bytes = good.clone();
        bytes.extend(b"something else behind it");
        std::fs::write(&case, &bytes).unwrap();
        let error = refused(&case, &OpenOptions::default());
        assert_eq!(error.kind(), FormatErrorKind::Damaged, "{name}");
    }
}

#[test]
fn bombs_do_not_unpack() {
    let dir = workdir();
    let at = |name: &str| dir.path().join(name);
    let started = std::time::Instant::now();
    // 70 MiB of zeroes again and again; ten times that in little members; a claim of 2^60 bytes.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; 70 << 20]).unwrap();
    std::fs::write(at("large.gz"), encoder.finish().unwrap()).unwrap();
    let member = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(b"x").unwrap();
        encoder.finish().unwrap()
    };
    std::fs::write(at("many.gz"), member.repeat((1 << 20) + 1)).unwrap();
    std::fs::write(at("many.bgz"), bgzf_member(b"x").repeat((1 << 20) + 1)).unwrap();
    let mut frame = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    frame.push(0xe0);
    frame.extend((1_u64 << 60).to_le_bytes());
    frame.extend([1, 0, 0]);
    std::fs::write(at("claim.zst"), &frame).unwrap();
    // A window of 2^41 bytes.
    let mut frame = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    frame.extend([0x00, 0xff, 3, 0, 0, 7]);
    std::fs::write(at("window.zst"), &frame).unwrap();
    let tiny = zstd::bulk::compress(b"x", 1).unwrap();
    std::fs::write(at("many.zst"), tiny.repeat((1 << 20) + 1)).unwrap();
    for name in [
        "large.gz",
        "many.gz",
        "many.bgz",
        "claim.zst",
        "window.zst",
        "many.zst",
    ] {
        let error = refused(&at(name), &OpenOptions::default());
        assert!(
            matches!(
                error.kind(),
                FormatErrorKind::Unsupported | FormatErrorKind::Damaged
            ),
            "{name}: {error:?}"
        );
    }
    assert!(started.elapsed().as_secs() < 40, "{:?}", started.elapsed());
}
