//! Keys of encrypted images: from files, from file descriptors, from a person at the terminal.
//! Never from the command line or the environment, where other users can see them.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::Args;
use parking_lot::Mutex;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use zeroize::Zeroizing;

use super::failure::{Context as _, Failure, Outcome};
use super::text::host_path;
use crate::crypto::{KeyRequest, KeySource, Passphrase};

/// Largest key file, as in cryptsetup.
const MAX_KEY_BYTES: usize = 8 << 20;
/// How often a person is asked for one passphrase.
const MAX_ASKED: u32 = 3;

/// Where keys come from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Encrypted images")]
pub struct KeyArgs {
    /// Passphrase of encrypted images: all bytes of this file, a newline at its end as well;
    /// repeat for several
    #[arg(long, value_name = "FILE")]
    pub key_file: Vec<PathBuf>,

    /// The same from an open file descriptor, to its end (0 is stdin)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub key_fd: Vec<i32>,

    /// What was read of them. A descriptor can be read only once.
    #[arg(skip)]
    read: OnceLock<Vec<Passphrase>>,
}

impl KeyArgs {
    /// Whether any key is named.
    pub fn any(&self) -> bool {
        !self.key_file.is_empty() || !self.key_fd.is_empty()
    }

    /// The keys that are named, or else, where somebody is at the terminal and it may be, what they
    /// type.
    ///
    /// # Errors
    /// If a file or descriptor cannot be read.
    pub fn source(&self, may_ask: bool) -> Outcome<KeySource> {
        let keys = self.given()?.to_vec();
        if !keys.is_empty() {
            return Ok(KeySource::new(move |request| {
                keys.get(usize::try_from(request.attempt).ok()?).cloned()
            }));
        }
        if may_ask && io::stdin().is_terminal() {
            let terminal = Terminal::default();
            return Ok(KeySource::new(move |request| terminal.next(request)));
        }
        Ok(KeySource::default())
    }

    /// The key of something that is made now: the first one named, or typed twice.
    ///
    /// # Errors
    /// If there is none, it is empty, or was typed in two ways.
    pub fn new_key(&self, what: &Path) -> Outcome<Passphrase> {
        if let Some(key) = self.given()?.first() {
            return Ok(key.clone());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage("encryption needs a passphrase")
                .with_hint("give it in a file or descriptor; --help says how"));
        }
        let what = host_path(what);
        let first = ask(&format!("New passphrase for {what}: "))?;
        if first.as_bytes().is_empty() {
            return Err(Failure::new("no passphrase was typed"));
        }
        if ask("The same again: ")?.as_bytes() != first.as_bytes() {
            return Err(Failure::new("these were two different passphrases"));
        }
        Ok(first)
    }

    fn given(&self) -> Outcome<&[Passphrase]> {
        if let Some(keys) = self.read.get() {
            return Ok(keys);
        }
        let mut keys = Vec::new();
        for path in &self.key_file {
            let name = || format!("key file {}", host_path(path));
            if path.as_os_str() == "-" {
                return Err(Failure::usage("--key-file reads no stdin; --key-fd 0 does"));
            }
            keys.push(read_key(File::open(path).context(name)?).context(name)?);
        }
        for fd in &self.key_fd {
            let name = || format!("key descriptor {fd}");
            keys.push(read_key(descriptor(*fd).context(name)?).context(name)?);
        }
        Ok(self.read.get_or_init(|| keys))
    }
}

/// The passphrase of an image that is made beside one that is read.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "New qcow2 images")]
pub struct NewKeyArgs {
    /// Passphrase of the new image with --encrypt: all bytes of this file, a newline at its end as
    /// well
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    pub new_key_file: Option<PathBuf>,

    /// The same from an open file descriptor, to its end (0 is stdin)
    #[arg(
        long,
        value_name = "N",
        requires = "encrypt",
        conflicts_with = "new_key_file"
    )]
    #[arg(value_parser = clap::value_parser!(i32).range(0..))]
    pub new_key_fd: Option<i32>,
}

impl NewKeyArgs {
    /// As [`KeyArgs::new_key`].
    ///
    /// # Errors
    /// See there.
    pub fn new_key(&self, what: &Path) -> Outcome<Passphrase> {
        let keys = KeyArgs {
            key_file: self.new_key_file.iter().cloned().collect(),
            key_fd: self.new_key_fd.iter().copied().collect(),
            ..KeyArgs::default()
        };
        keys.new_key(what)
    }
}

/// A descriptor this process was given, as one of our own. The safe ways to it are a copy of it,
/// or, where the kernel or a sandbox does not allow that, opening the same thing again.
fn descriptor(fd: i32) -> io::Result<File> {
    let copy = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|this| pidfd_getfd(this, fd, PidfdGetfdFlags::empty()));
    match copy {
        Ok(copy) => Ok(File::from(copy)),
        Err(rustix::io::Errno::BADF) => Err(rustix::io::Errno::BADF.into()),
        Err(_) => File::open(format!("/proc/self/fd/{fd}")),
    }
}

/// All bytes, and no copy of them left behind.
fn read_key(mut from: impl Read) -> Outcome<Passphrase> {
    let mut key = Zeroizing::new(vec![0; 4096]);
    let mut len = 0;
    loop {
        if len == key.len() {
            if len >= MAX_KEY_BYTES {
                return Err(Failure::new("it has more than 8 MiB"));
            }
            let mut larger = Zeroizing::new(vec![0; len * 2]);
            larger[..len].copy_from_slice(&key);
            key = larger;
        }
        match from.read(&mut key[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if len == 0 {
        return Err(Failure::new("it is empty"));
    }
    Ok(Passphrase::new(key[..len].to_vec()))
}

fn ask(prompt: &str) -> io::Result<Passphrase> {
    let typed = rpassword::prompt_password(prompt)?;
    Ok(Passphrase::new(typed.into_bytes()))
}

/// A person. The files of a chain often have the same passphrase, so the one typed last is tried
/// before asking again.
#[derive(Default)]
struct Terminal {
    state: Mutex<Typed>,
}

#[derive(Default)]
struct Typed {
    last: Option<Passphrase>,
    /// Nobody answers.
    gave_up: bool,
    /// Asked for the present thing.
    asked: u32,
}

impl Terminal {
    fn next(&self, request: &KeyRequest) -> Option<Passphrase> {
        let mut typed = self.state.lock();
        if request.attempt == 0 {
            typed.asked = 0;
            if let Some(last) = &typed.last {
                return Some(last.clone());
            }
        }
        if typed.gave_up || typed.asked >= MAX_ASKED {
            return None;
        }
        let again = if typed.asked > 0 { "Wrong. " } else { "" };
        typed.asked += 1;
        let prompt = format!(
            "{again}Passphrase for {} ({}): ",
            request.what, request.scheme
        );
        match ask(&prompt) {
            Ok(key) if !key.as_bytes().is_empty() => {
                typed.last = Some(key.clone());
                Some(key)
            }
            // Nothing typed, Ctrl-C, Ctrl-D, no terminal.
            Ok(_) | Err(_) => {
                typed.gave_up = true;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_and_exact() {
        let long = vec![7; 100_000];
        assert_eq!(read_key(long.as_slice()).unwrap().as_bytes(), long);
        assert_eq!(read_key(&b"a b\n"[..]).unwrap().as_bytes(), b"a b\n");
        assert!(read_key(io::repeat(1)).is_err());
        assert!(read_key(io::empty()).is_err());
        assert!(descriptor(1 << 20).is_err());
    }
}
