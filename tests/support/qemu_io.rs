//! A qemu-io that has an image open, spoken to command by command, killed when dropped.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

pub struct QemuIo(Child);

impl QemuIo {
    /// Opens the qcow2 image `image`; it is open and locked when this returns.
    pub fn open(image: &Path, options: &[&str]) -> Self {
        Self::open_as("qcow2", image, options)
    }

    /// The same for any format.
    pub fn open_as(format: &str, image: &Path, options: &[&str]) -> Self {
        let mut command = super::tool("qemu-io");
        command.args(["-f", format]).args(options).arg(image);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut opened = Self(child);
        opened.answer();
        opened
    }

    /// Runs one command. One at a time: qemu-io may not look at what came with an earlier one.
    pub fn say(&mut self, command: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        const PROMPT: &[u8] = b"qemu-io> ";
        let stdout = self.0.stdout.as_mut().unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(PROMPT) {
            stdout.read_exact(&mut byte).expect("qemu-io ended");
            text.push(byte[0]);
        }
        text.truncate(text.len() - PROMPT.len());
        String::from_utf8(text).unwrap()
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
