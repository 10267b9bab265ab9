//! Which names are remote, and what they consist of.
//!
//! Specification of NBD's: "The NBD URI specification" (`doc/uri.md` of NetworkBlockDevice/nbd);
//! of what they consist of: RFC 3986.

use std::path::PathBuf;

use super::error::{RemoteError, RemoteErrorKind, Result};

/// Longest name that is taken for one, in bytes.
const MAX_LEN: usize = 8192;

/// Port of NBD.
const NBD_PORT: u16 = 10809;

/// A remote name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// An export of an NBD server.
    Nbd(NbdUrl),
    /// An object of a web server: the name as given.
    Http(String),
}

/// An export of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUrl {
    /// Where the server is.
    pub place: NbdPlace,
    /// Whether TLS is demanded.
    pub tls: bool,
    /// The export; may be empty.
    pub export: Vec<u8>,
}

/// Where an NBD server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdPlace {
    /// Host name or address without brackets, and port.
    Tcp(String, u16),
    /// A socket on this host.
    Unix(PathBuf),
}

/// Whether a name that a user gave is remote by how it begins.
pub fn is_remote(name: &[u8]) -> bool {
    let Some(colon) = name.iter().position(|b| *b == b':') else {
        return false;
    };
    let (scheme, rest) = name.split_at(colon);
    let known = ["nbd", "nbds", "nbd+unix", "nbds+unix", "http", "https"];
    rest.starts_with(b"://")
        && known
            .iter()
            .any(|k| scheme.eq_ignore_ascii_case(k.as_bytes()))
}

/// Takes a remote name apart. `None`: it is a name of something else.
///
/// # Errors
/// [`RemoteErrorKind::Address`] for what looks like one and is not.
pub fn parse(name: &[u8]) -> Result<Option<Url>> {
    if !is_remote(name) {
        return Ok(None);
    }
    let wrong =
        |why: &str| RemoteError::new(RemoteErrorKind::Address, format!("{}: {why}", shown(name)));
    if name.len() > MAX_LEN {
        return Err(RemoteError::new(
            RemoteErrorKind::Address,
            format!("an address of more than {MAX_LEN} bytes"),
        ));
    }
    let text = std::str::from_utf8(name).map_err(|_| wrong("not UTF-8"))?;
    if text.chars().any(|c| c.is_control() || c == ' ') {
        return Err(wrong("an address has no spaces in it"));
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("no address"))?;
    let scheme = scheme.to_ascii_lowercase();
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    if !fragment.is_empty() {
        return Err(wrong("an image has no parts to point at with '#'"));
    }
    if scheme.starts_with("http") {
        return Ok(Some(Url::Http(text.to_owned())));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(wrong("NBD knows no users"));
    }
    let mut socket = None;
    for part in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "socket" => socket = Some(decode(value).ok_or_else(|| wrong("a broken %XX"))?),
            _ => {
                return Err(wrong(&format!(
                    "'{}' is not known here",
                    shown(key.as_bytes())
                )));
            }
        }
    }
    let place = match (scheme.ends_with("+unix"), socket) {
        (true, Some(path)) if authority.is_empty() => {
            use std::os::unix::ffi::OsStringExt as _;
            NbdPlace::Unix(std::ffi::OsString::from_vec(path).into())
        }
        (true, _) => {
            return Err(wrong(
                "a local server is named like nbd+unix:///EXPORT?socket=/PATH",
            ));
        }
        (false, Some(_)) => return Err(wrong("a socket belongs to nbd+unix:")),
        (false, None) => {
            let (host, port) = host_and_port(authority).ok_or_else(|| wrong("no host and port"))?;
            NbdPlace::Tcp(host, port)
        }
    };
    Ok(Some(Url::Nbd(NbdUrl {
        place,
        tls: scheme.starts_with("nbds"),
        export: decode(path).ok_or_else(|| wrong("a broken %XX"))?,
    })))
}

fn host_and_port(authority: &str) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':')?)),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return None;
    }
    let port = match port {
        None | Some("") => NBD_PORT,
        Some(port) => port.parse().ok()?,
    };
    Some((host.to_owned(), port))
}

/// A remote name as it may be shown: without the name and password of a user, and without what
/// follows a question mark in names of web servers, which often is a secret as well.
pub fn shown(name: &[u8]) -> String {
    let text = crate::ondisk::text::printable(name);
    let Some((scheme, rest)) = text.split_once("://") else {
        return text;
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, mut tail) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let mut hidden = "";
    if scheme.to_ascii_lowercase().starts_with("http")
        && let Some((path, _)) = tail.split_once('?')
    {
        (tail, hidden) = (path, "?…");
    }
    format!("{scheme}://{host}{tail}{hidden}")
}

/// Bytes with `%XX` undone.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()?.checked_mul(16)?.checked_add(digit()?)?;
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(bytes)
}

/// Bytes with everything that could mean something written as `%XX`.
pub fn encode(bytes: &[u8]) -> String {
    encode_except(bytes, b"-._~")
}

/// The same, slashes left as they are.
pub fn encode_path(bytes: &[u8]) -> String {
    encode_except(bytes, b"-._~/")
}

fn encode_except(bytes: &[u8], plain: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || plain.contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nbd(text: &str) -> NbdUrl {
        match parse(text.as_bytes()).unwrap().unwrap() {
            Url::Nbd(url) => url,
            Url::Http(_) => panic!("{text}"),
        }
    }

    #[test]
    fn nbd_addresses() {
        assert_eq!(
            nbd("nbd://host"),
            NbdUrl {
                place: NbdPlace::Tcp("host".into(), 10809),
                tls: false,
                export: vec![]
            }
        );
        assert_eq!(
            nbd("NBDS://[::1]:99/a%2fb%20c"),
            NbdUrl {
                place: NbdPlace::Tcp("::1".into(), 99),
                tls: true,
                export: b"a/b c".to_vec()
            }
        );
        assert_eq!(
            nbd("nbd+unix:///x?socket=/tmp/a%20b"),
            NbdUrl {
                place: NbdPlace::Unix("/tmp/a b".into()),
                tls: false,
                export: b"x".to_vec()
            }
        );
        assert_eq!(nbd("nbd+unix://?socket=s").export, b"");
    }

    #[test]
    fn what_is_no_address() {
        for bad in [
            "nbd://",
            "nbd:///x",
            "nbd://h:port/",
            "nbd://h:70000",
            "nbd://u@h/",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/s",
            "nbd://h/x?socket=/s",
            "nbd://h/%zz",
            "nbd://h/%4",
            "nbd://h/x?y=1",
            "nbd://[::1/x",
            "nbd://h/a b",
            "http://h/x#part",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for other in [
            "disk.img",
            "nbd:unix:/x",
            "nbd",
            "/a://b",
            "ftp://x/y",
            "json:{}",
        ] {
            assert_eq!(parse(other.as_bytes()).unwrap(), None, "{other}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(
            shown(b"https://me:secret@host:1/a?token=1"),
            "https://host:1/a?…"
        );
        assert_eq!(shown(b"nbd+unix:///x?socket=/s"), "nbd+unix:///x?socket=/s");
        assert_eq!(shown(b"http://a@b@c/d@e"), "http://c/d@e");
    }

    #[test]
    fn encoding_is_undone_by_decoding() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        assert_eq!(decode(&encode_path(&all)).unwrap(), all);
    }
}
