//! Passphrases, and where they come from.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A passphrase or the content of a key file; wiped when dropped, never shown.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes over bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// What is to be opened, for a source that asks a person or has several keys.
#[derive(Clone, Debug)]
pub struct KeyRequest {
    /// What is encrypted, printable: the path of an image, or a volume's name.
    pub what: String,
    /// How: `LUKS`, `AES`.
    pub scheme: &'static str,
    /// How many keys of this source were wrong so far.
    pub attempt: u32,
}

/// Most keys tried for one thing: each costs what its keyslots say.
pub const MAX_ATTEMPTS: u32 = 8;

/// What came of trying keys.
#[derive(Debug)]
pub enum Tried<T> {
    /// One was right.
    Opened(T),
    /// There was none to try.
    NoKey,
    /// All were wrong.
    WrongKey,
}

impl<T> Tried<T> {
    /// What was opened.
    pub fn opened(self) -> Option<T> {
        match self {
            Self::Opened(opened) => Some(opened),
            Self::NoKey | Self::WrongKey => None,
        }
    }
}

type Ask = dyn Fn(&KeyRequest) -> Option<Passphrase> + Send + Sync;

/// Gives one key after the other for what is to be opened, `None` if there is no further one.
/// Called only when a key is needed.
#[derive(Clone)]
pub struct KeySource(Arc<Ask>);

impl KeySource {
    /// Asks `source`.
    pub fn new(source: impl Fn(&KeyRequest) -> Option<Passphrase> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// One key for everything.
    pub fn one(key: Passphrase) -> Self {
        Self::new(move |request| (request.attempt == 0).then(|| key.clone()))
    }

    /// Asks for keys until one opens: `open` is tried with each and tells by `None` that it was
    /// wrong.
    ///
    /// # Errors
    /// What `open` reports.
    pub fn try_each<T, E>(
        &self,
        what: &str,
        scheme: &'static str,
        mut open: impl FnMut(&[u8]) -> Result<Option<T>, E>,
    ) -> Result<Tried<T>, E> {
        for attempt in 0..MAX_ATTEMPTS {
            let request = KeyRequest {
                what: what.to_owned(),
                scheme,
                attempt,
            };
            let Some(key) = self.next(&request) else {
                return Ok(match attempt {
                    0 => Tried::NoKey,
                    _ => Tried::WrongKey,
                });
            };
            if let Some(opened) = open(key.as_bytes())? {
                return Ok(Tried::Opened(opened));
            }
        }
        Ok(Tried::WrongKey)
    }

    /// The next key to try.
    pub fn next(&self, request: &KeyRequest) -> Option<Passphrase> {
        (self.0)(request)
    }
}

impl Default for KeySource {
    /// No keys.
    fn default() -> Self {
        Self::new(|_| None)
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySource(…)")
    }
}
