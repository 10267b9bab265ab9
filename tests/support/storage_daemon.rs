//! A qemu-storage-daemon that exports an image over NBD, killed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub struct StorageDaemon {
    child: Child,
    ready: PathBuf,
}

impl StorageDaemon {
    /// Exports `image` on a socket beside it; what the daemon says, if it cannot open the image.
    pub fn try_export(format: &str, image: &Path, writable: bool) -> Result<Self, String> {
        let on = |yes| if yes { "on" } else { "off" };
        let ready = image.with_extension("ready");
        let _ = std::fs::remove_file(&ready);
        let mut child = super::tool("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=file,filename={},read-only={}",
                image.display(),
                on(!writable)
            ))
            .arg("--blockdev")
            .arg(format!(
                "driver={format},node-name=disk,file=file,read-only={}",
                on(!writable)
            ))
            .arg("--nbd-server")
            .arg(format!(
                "addr.type=unix,addr.path={}",
                image.with_extension("socket").display()
            ))
            .arg("--export")
            .arg(format!(
                "type=nbd,id=export,node-name=disk,writable={}",
                on(writable)
            ))
            // The file appears when everything is set up.
            .arg("--pidfile")
            .arg(&ready)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !ready.exists() {
            if child.try_wait().unwrap().is_some() {
                let output = child.wait_with_output().unwrap();
                return Err(String::from_utf8_lossy(&output.stderr).into_owned());
            }
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { child, ready })
    }

    /// The same where it must work.
    pub fn export(format: &str, image: &Path, writable: bool) -> Self {
        Self::try_export(format, image, writable).unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.ready);
    }
}
