//! An object of a web server as a read-only block device.
//!
//! Read by ranges (RFC 9110, section 14), in blocks that are kept in the cluster cache. Missing
//! blocks side by side are asked for at once, and a reader that goes on where it stopped is given
//! more and more of what follows. Each answer must be about the same object: of the size it had,
//! with the validator it had (a strong `ETag`, else `Last-Modified`); what has changed meanwhile
//! is an error, not a mixture. A server that does not serve ranges is refused at once.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, ResponseExt as _};

use super::RemoteOptions;
use super::error::{RemoteError, RemoteErrorKind, Result};
use super::url;
use crate::block::cache::{Cluster, ClusterCache, SourceId};
use crate::block::{BlockBackend, BlockError, BlockErrorKind, Geometry, Result as BlockResult};
use crate::limits;
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize};

/// Bytes in one block of the cache.
const BLOCK: u64 = 256 << 10;

/// Most blocks asked for at once: 4 MiB.
const MOST_BLOCKS: u64 = 16;

/// Redirections followed from one name.
const MAX_REDIRECTS: u32 = 5;

/// How often a request is tried that failed for a reason that may pass.
const TRIES: u32 = 3;

/// Waited before a request is tried again, longer each time.
const PAUSE: Duration = Duration::from_millis(300);

/// How long the server has to take the connection and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one request may take altogether: 4 MiB at 32 KiB/s.
const WHOLE: Duration = Duration::from_secs(128);

/// Longest headers of an answer, in bytes.
const MAX_HEADERS: usize = 32 << 10;

/// Longest validator that is remembered, in bytes.
const MAX_VALIDATOR: usize = 512;

/// An object, open.
pub struct HttpObject {
    agent: Agent,
    /// As the user named it.
    name: String,
    /// Where it was found in the end.
    place: Mutex<String>,
    len: u64,
    validator: Validator,
    cache: Arc<ClusterCache>,
    source: SourceId,
    ahead: Mutex<Ahead>,
}

/// What tells one state of an object from another.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Validator {
    /// A strong entity tag.
    Tag(String),
    /// When it was changed, to the second.
    Date(String),
    /// The server says nothing: the size must do.
    None,
}

/// Where the last read ended, and how much is asked for beyond the next.
#[derive(Debug, Default)]
struct Ahead {
    next: u64,
    blocks: u64,
}

/// Why a request failed, and whether it may succeed later.
struct Failed {
    error: RemoteError,
    passing: bool,
}

impl Failed {
    fn for_good(error: RemoteError) -> Self {
        Self {
            error,
            passing: false,
        }
    }
}

/// What an answer says about the object.
struct Facts {
    start: u64,
    end: u64,
    total: u64,
    validator: Validator,
}

impl HttpObject {
    /// Looks at an object.
    ///
    /// # Errors
    /// See [`RemoteErrorKind`].
    pub fn open(name: &str, options: &RemoteOptions, cache: Arc<ClusterCache>) -> Result<Self> {
        let agent = agent(name, options)?;
        let mut object = Self {
            agent,
            name: name.to_owned(),
            place: Mutex::new(name.to_owned()),
            len: 0,
            validator: Validator::None,
            cache,
            source: SourceId::fresh(),
            ahead: Mutex::default(),
        };
        let (facts, first) = object.try_often(|object| {
            let response = object.ask(0, BLOCK)?;
            let facts = facts(&response)?;
            let wanted = BLOCK.min(facts.total);
            if facts.start != 0 || facts.end != wanted {
                return Err(Failed::for_good(RemoteError::protocol(
                    "the server sent another range than was asked for",
                )));
            }
            let bytes = body(response, wanted)?;
            Ok((facts, bytes))
        })?;
        if facts.total > limits::MAX_DEVICE_BYTES {
            return Err(RemoteError::protocol(format!(
                "an object of {} bytes",
                facts.total
            )));
        }
        if facts.validator == Validator::None {
            tracing::warn!(
                "{}: the server does not tell whether the object changes while it is read",
                url::shown(name.as_bytes())
            );
        }
        object.len = facts.total;
        object.validator = facts.validator;
        object.keep(0, first.into());
        Ok(object)
    }

    /// Asks for `len` bytes from `offset`; the answer is one about a range.
    fn ask(&self, offset: u64, len: u64) -> std::result::Result<Response<Body>, Failed> {
        let place = self.place.lock().clone();
        let last = offset.saturating_add(len).saturating_sub(1);
        let mut request = self
            .agent
            .get(&place)
            .header("Range", format!("bytes={offset}-{last}"))
            .header("Accept-Encoding", "identity");
        if let Validator::Tag(tag) = &self.validator {
            request = request.header("If-Range", tag.as_str());
        }
        let response = request.call().map_err(failed)?;
        let status = response.status();
        if status == StatusCode::PARTIAL_CONTENT {
            let found = response.get_uri().to_string();
            if self.name.to_ascii_lowercase().starts_with("https:")
                && !found.to_ascii_lowercase().starts_with("https:")
            {
                return Err(Failed::for_good(RemoteError::new(
                    RemoteErrorKind::Refused,
                    "the server redirects from https to http",
                )));
            }
            if found != place {
                *self.place.lock() = found;
            }
            return Ok(response);
        }
        // Where a name leads may hold for a while only; the name is good for longer.
        let moved = place != self.name && (status.is_client_error() || status.is_redirection());
        if moved {
            self.place.lock().clone_from(&self.name);
        }
        Err(self.refused(status, moved))
    }

    fn refused(&self, status: StatusCode, moved: bool) -> Failed {
        let error = match status {
            StatusCode::OK if self.validator != Validator::None => changed(),
            StatusCode::OK => RemoteError::new(
                RemoteErrorKind::Unsupported,
                "the web server does not serve ranges of this object",
            )
            .with_hint(
                "download it first, or offer it from a server that can (nginx, Apache, S3 …)",
            ),
            StatusCode::RANGE_NOT_SATISFIABLE if self.len == 0 => {
                RemoteError::new(RemoteErrorKind::Unsupported, "the object is empty")
            }
            StatusCode::RANGE_NOT_SATISFIABLE => changed(),
            StatusCode::NOT_FOUND | StatusCode::GONE => RemoteError::new(
                RemoteErrorKind::Refused,
                "the web server has no such object",
            )
            .with_hint("check the address for typing errors"),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RemoteError::new(
                RemoteErrorKind::Refused,
                "the web server does not let us read this object",
            ),
            other => RemoteError::new(
                RemoteErrorKind::Refused,
                format!("the web server answers {}", other.as_u16()),
            ),
        };
        Failed {
            error,
            passing: moved
                || status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT,
        }
    }

    fn try_often<T>(&self, attempt: impl Fn(&Self) -> std::result::Result<T, Failed>) -> Result<T> {
        let mut tries = 0u32;
        loop {
            tries = tries.saturating_add(1);
            match attempt(self) {
                Ok(done) => return Ok(done),
                Err(failed) if failed.passing && tries < TRIES => {
                    tracing::debug!("trying again: {}", failed.error);
                    std::thread::sleep(PAUSE.saturating_mul(tries));
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    /// Bytes of the object, no more than [`MOST_BLOCKS`] blocks.
    fn fetch(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.try_often(|object| {
            let response = object.ask(offset, len)?;
            let facts = facts(&response)?;
            if facts.total != object.len || facts.validator != object.validator {
                return Err(Failed::for_good(changed()));
            }
            if facts.start != offset || facts.end != offset.saturating_add(len) {
                return Err(Failed::for_good(RemoteError::protocol(
                    "the server sent another range than was asked for",
                )));
            }
            body(response, len)
        })
    }

    fn keep(&self, start: u64, block: Cluster) {
        if !self.cache.has_or_loads(self.source, start) {
            // Never fails: there is nothing to load.
            let _ = self.cache.get_or_load(self.source, start, || Ok(block));
        }
    }

    /// How many blocks to ask for from `start`, when a read wants those up to `end`.
    fn worth(&self, start: u64, end: u64, ahead: u64) -> u64 {
        let wanted = end.saturating_sub(start).div_ceil(BLOCK);
        let most = wanted.saturating_add(ahead).clamp(1, MOST_BLOCKS);
        let mut count = 1u64;
        while count < most {
            let next = start.saturating_add(count.saturating_mul(BLOCK));
            if next >= self.len || self.cache.has_or_loads(self.source, next) {
                break;
            }
            count = count.saturating_add(1);
        }
        count
    }

    /// The block at `start`; `end` is where the read ends that wants it.
    fn block(&self, start: u64, end: u64, ahead: u64) -> BlockResult<Cluster> {
        let mut more = Vec::new();
        let block = self.cache.get_or_load(self.source, start, || {
            let count = self.worth(start, end, ahead);
            let len = count
                .saturating_mul(BLOCK)
                .min(self.len.saturating_sub(start));
            let bytes = self.fetch(start, len).map_err(|e| {
                let name = url::shown(self.name.as_bytes());
                BlockError::io(
                    format!("cannot read {len} bytes at {start} of {name}"),
                    std::io::Error::other(chain(&e)),
                )
            })?;
            let mut blocks = bytes.chunks(to_usize(BLOCK).unwrap_or(usize::MAX));
            let first = blocks.next().map(Cluster::from);
            more = blocks.map(Cluster::from).collect();
            first.ok_or_else(|| {
                BlockError::new(BlockErrorKind::OutOfRange, "beyond the end of the object")
            })
        })?;
        // Not before the first one is there: two readers must not wait for each other's blocks.
        let mut at = start;
        for next in more {
            at = at.saturating_add(BLOCK);
            self.keep(at, next);
        }
        Ok(block)
    }

    /// How many blocks beyond a read's are worth asking for, as it continues the last one or not.
    fn look_ahead(&self, start: u64, end: u64) -> u64 {
        let mut ahead = self.ahead.lock();
        let continues = start <= ahead.next && ahead.next <= start.saturating_add(BLOCK);
        ahead.blocks = if continues {
            ahead.blocks.saturating_mul(2).clamp(1, MOST_BLOCKS)
        } else {
            0
        };
        ahead.next = end;
        ahead.blocks
    }
}

/// An error with its causes, in one line.
fn chain(error: &RemoteError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl BlockBackend for HttpObject {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.len,
            block_size: 512,
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, mut buf: &mut [u8]) -> BlockResult<()> {
        let end = offset.saturating_add(to_u64(buf.len()));
        let ahead = self.look_ahead(offset, end);
        let mut at = offset;
        while !buf.is_empty() {
            let skip = at.checked_rem(BLOCK).unwrap_or(0);
            let start = at.saturating_sub(skip);
            let block = self.block(start, end, ahead)?;
            let part = to_usize(skip)
                .and_then(|skip| block.get(skip..))
                .filter(|part| !part.is_empty())
                .ok_or_else(|| {
                    BlockError::new(BlockErrorKind::OutOfRange, "beyond the end of the object")
                })?;
            let len = part.len().min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            head.copy_from_slice(part.get(..len).unwrap_or_default());
            at = at.saturating_add(to_u64(len));
            buf = rest;
        }
        Ok(())
    }
}

fn agent(name: &str, options: &RemoteOptions) -> Result<Agent> {
    let mut tls = TlsConfig::builder();
    if let Some(list) = super::tls::read_authorities(&options.tls)? {
        let list: Vec<_> = list
            .iter()
            .map(|c| Certificate::from_der(c).to_owned())
            .collect();
        tls = tls.root_certs(RootCerts::new_with_certs(&list));
    }
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .max_redirects_will_error(true)
        .max_response_header_size(MAX_HEADERS)
        .user_agent(concat!("guestlens/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_global(Some(WHOLE))
        .tls_config(tls.build())
        .build();
    // Said here, because what the client says about a wrong address repeats it with its secrets.
    if name.parse::<ureq::http::Uri>().is_err() {
        return Err(RemoteError::new(
            RemoteErrorKind::Address,
            "no address of a web server",
        ));
    }
    Ok(config.new_agent())
}

fn failed(error: ureq::Error) -> Failed {
    let (text, passing) = match &error {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) => ("the web server does not answer", true),
        ureq::Error::HostNotFound => ("there is no host of this name", false),
        ureq::Error::TooManyRedirects => ("the web server redirects without end", false),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => ("no TLS connection could be made", false),
        // The client's own words may repeat the address with its secrets.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::RequireHttpsOnly(_) => {
            return Failed::for_good(RemoteError::new(
                RemoteErrorKind::Address,
                "the address leads nowhere",
            ));
        }
        _ => ("the request failed", false),
    };
    let untrusted = matches!(
        &error,
        ureq::Error::Rustls(rustls::Error::InvalidCertificate(_))
    );
    let mut said = RemoteError::io(text, error.into_io());
    if untrusted {
        said = said
            .with_hint("--tls-ca FILE names the authority that signed the server's certificate");
    }
    Failed {
        error: said,
        passing,
    }
}

fn changed() -> RemoteError {
    RemoteError::new(
        RemoteErrorKind::Refused,
        "the object on the web server has changed since it was opened",
    )
}

/// What the headers of an answer say about range and object.
fn facts(response: &Response<Body>) -> std::result::Result<Facts, Failed> {
    let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
    if header(CONTENT_ENCODING).is_some_and(|e| !e.eq_ignore_ascii_case("identity")) {
        return Err(Failed::for_good(RemoteError::new(
            RemoteErrorKind::Unsupported,
            "the web server sends the object in another encoding",
        )));
    }
    let range = header(CONTENT_RANGE).unwrap_or_default();
    let Some((start, end, total)) = content_range(range) else {
        return Err(Failed::for_good(RemoteError::protocol(format!(
            "the web server does not say which range it sends: '{}'",
            printable(range.as_bytes())
                .chars()
                .take(80)
                .collect::<String>()
        ))));
    };
    let strong = header(ETAG).filter(|t| t.starts_with('"') && t.len() <= MAX_VALIDATOR);
    let date = header(LAST_MODIFIED).filter(|d| d.len() <= MAX_VALIDATOR);
    let validator = match (strong, date) {
        (Some(tag), _) => Validator::Tag(tag.to_owned()),
        (None, Some(date)) => Validator::Date(date.to_owned()),
        (None, None) => Validator::None,
    };
    Ok(Facts {
        start,
        end,
        total,
        validator,
    })
}

/// Start, end (exclusive) and size of the whole in a `Content-Range` header.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let number = |text: &str| {
        let text = text.trim();
        // `parse` would take a sign as well.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok())?
    };
    let (start, last, total) = (number(start)?, number(last)?, number(total)?);
    let sane = unit.eq_ignore_ascii_case("bytes") && start <= last && last < total;
    sane.then_some((start, last.checked_add(1)?, total))
}

/// The body of an answer, which has `len` bytes.
fn body(response: Response<Body>, len: u64) -> std::result::Result<Vec<u8>, Failed> {
    let mut bytes = Vec::new();
    let read = response
        .into_body()
        .into_reader()
        .take(len)
        .read_to_end(&mut bytes);
    let problem = match read {
        Ok(_) if to_u64(bytes.len()) == len => return Ok(bytes),
        Ok(_) => std::io::ErrorKind::UnexpectedEof.into(),
        Err(e) => e,
    };
    Err(Failed {
        error: RemoteError::io("the web server did not send all it should", problem),
        passing: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 0-99/200"), Some((0, 100, 200)));
        assert_eq!(content_range("Bytes 5-5/6"), Some((5, 6, 6)));
        for bad in [
            "",
            "bytes */200",
            "bytes 0-99/*",
            "bytes 9-3/200",
            "bytes 0-200/200",
            "bytes +0-1/3",
            "lines 0-1/3",
            "bytes 0-18446744073709551615/18446744073709551615",
            "bytes 0-99999999999999999999/100",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
