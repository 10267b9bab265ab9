//! Contents for disk images, and comparing an opened device with what it should hold.

use std::path::Path;
use std::process::Command;

use guestlens::block::{BlockDevice, ExtentKind};
use guestlens::formats::{FormatError, Image, OpenOptions, open_path};

use super::fuzz::Rng;

/// Patterned, compressible, incompressible and empty stretches.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Rng::new(seed);
    let mut bytes = vec![0u8; size];
    let mut at = 0;
    while at < size {
        let len = (1 + random.index(200_000)).min(size - at);
        let piece = &mut bytes[at..at + len];
        match random.below(4) {
            0 => {}
            1 => piece.fill(random.next() as u8),
            2 => piece
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = (i / 97) as u8),
            _ => piece.iter_mut().for_each(|b| *b = random.next() as u8),
        }
        at += len;
    }
    bytes
}

/// What `qemu-img convert` reads from an image.
pub fn qemu_reads(image: &Path, format: &str) -> Vec<u8> {
    let out = image.with_file_name("reference.raw");
    super::run(
        super::tool("qemu-img")
            .current_dir(image.parent().unwrap())
            .args(["convert", "-f", format, "-O", "raw"])
            .arg(image)
            .arg(&out),
    );
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    bytes
}

/// Runs qemu-io commands, one a line.
pub fn qemu_io(image: &Path, format: &str, script: &str) {
    let mut command: Command = super::tool("qemu-io");
    command
        .current_dir(image.parent().unwrap())
        .args(["-f", format, "-d", "unmap"]);
    for line in script.lines() {
        command.arg("-c").arg(line);
    }
    super::run(command.arg(image));
}

/// Opens an image that must open.
pub fn open(image: &Path) -> std::sync::Arc<dyn Image> {
    open_path(image, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e:?}", image.display()))
}

/// Opens an image that must be refused.
pub fn refused(image: &Path, options: &OpenOptions) -> FormatError {
    match open_path(image, options) {
        Ok(_) => panic!("{} was opened", image.display()),
        Err(e) => e,
    }
}

/// An error with everything it was caused by.
pub fn in_full(error: &FormatError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Reads `device` whole, in random pieces from three threads, and extent by extent.
pub fn compare(name: &str, device: &BlockDevice, truth: &[u8], seed: u64) {
    assert_eq!(device.len(), truth.len() as u64, "{name}: size");
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut random = Rng::new(seed * 3 + thread + 1);
                for _ in 0..60 {
                    let at = random.index(truth.len());
                    let len = (1 + random.index(150_000)).min(truth.len() - at);
                    let got = device
                        .read_vec(at as u64, len)
                        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
                    assert!(got == truth[at..at + len], "{name}: {len} bytes at {at}");
                }
            });
        }
    });
    device.prefetch(0, device.len());
    let whole = device
        .read_vec(0, truth.len())
        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
    if let Some(at) = whole.iter().zip(truth).position(|(a, b)| a != b) {
        panic!(
            "{name}: differs at {at}: {} instead of {}",
            whole[at], truth[at]
        );
    }
    let mut at = 0;
    while at < device.len() {
        let extent = device.extent_at(at, device.len() - at).unwrap();
        let end = at + extent.len;
        let stored = &truth[at as usize..end as usize];
        if extent.kind != ExtentKind::Data {
            assert!(stored.iter().all(|b| *b == 0), "{name}: {extent:?} at {at}");
        }
        at = end;
    }
}
