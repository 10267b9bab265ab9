//! The client's side of the negotiation.
//!
//! Asked for, in this order: TLS if the user demands it, extended headers or else structured
//! replies, `base:allocation`, and the export. What a server does not know is done without.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::channel::Channel;
use super::stream::Stream;
use super::wire::{
    self, BlockSizes, ExportInfo, GoRequest, MAX_OPTION_BYTES, MetaContextRequest, Mode, info,
    option, reply,
};
use crate::ondisk::bytes::{be16, be32, be64};
use crate::ondisk::text::printable;
use crate::ondisk::units::usize_from_u32;
use crate::remote::RemoteOptions;
use crate::remote::error::{RemoteError, RemoteErrorKind, Result};
use crate::remote::url::{NbdPlace, NbdUrl};

/// How long a server has to take a connection, and to say anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server may be silent while it owes a reply. Flushes of slow disks take a while.
const REPLY: Duration = Duration::from_secs(300);

/// Most answers to one option.
const MAX_ANSWERS: usize = 64;

/// Addresses of one host name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A connection to an export, ready for requests.
pub struct Negotiated {
    /// The connection; its timeouts are set.
    pub channel: Channel,
    /// How replies come.
    pub mode: Mode,
    /// Size and abilities.
    pub info: ExportInfo,
    /// Sizes of requests.
    pub sizes: BlockSizes,
    /// Number of `base:allocation`, if the server has it.
    pub allocation: Option<u32>,
}

/// Connects and negotiates.
///
/// # Errors
/// See [`RemoteErrorKind`].
pub fn negotiate(url: &NbdUrl, options: &RemoteOptions) -> Result<Negotiated> {
    let stream = connect(&url.place)?;
    stream.tune();
    let timeouts = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    timeouts.map_err(lost)?;
    let mut talk = Talk {
        channel: Channel::plain(stream),
    };
    let no_zeroes = talk.hello()?;
    if url.tls {
        talk = talk.start_tls(url, options)?;
    }
    let mode = talk.mode()?;
    let allocation = match mode {
        Mode::Simple => None,
        _ => talk.allocation(&url.export)?,
    };
    let (info, sizes) = talk.go(&url.export, no_zeroes)?;
    let stream = talk.channel.stream();
    let timeouts = stream
        .set_read_timeout(Some(REPLY))
        .and_then(|()| stream.set_write_timeout(Some(REPLY)));
    timeouts.map_err(lost)?;
    Ok(Negotiated {
        channel: talk.channel,
        mode,
        info,
        sizes,
        allocation,
    })
}

fn connect(place: &NbdPlace) -> Result<Stream> {
    match place {
        NbdPlace::Unix(path) => UnixStream::connect(path).map(Stream::Unix).map_err(|e| {
            use std::os::unix::ffi::OsStrExt as _;
            let path = printable(path.as_os_str().as_bytes());
            RemoteError::io(format!("cannot connect to the socket {path}"), e)
        }),
        NbdPlace::Tcp(host, port) => {
            let failed = |e| RemoteError::io(format!("cannot connect to {host} port {port}"), e);
            let addresses = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in addresses.take(MAX_ADDRESSES) {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(stream) => return Ok(Stream::Tcp(stream)),
                    Err(e) => last = e,
                }
            }
            Err(failed(last))
        }
    }
}

fn lost(error: io::Error) -> RemoteError {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server ended the connection",
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server does not answer",
        _ => "the connection failed",
    };
    RemoteError::io(what, error)
}

/// An answer to an option.
struct Answer {
    kind: u32,
    data: Vec<u8>,
}

impl Answer {
    fn is_error(&self) -> bool {
        self.kind & reply::ERROR != 0
    }

    /// As an error of ours.
    fn refusal(&self, what: &str) -> RemoteError {
        let why = match self.kind {
            reply::ERR_UNSUP => "it does not know how",
            reply::ERR_POLICY => "its policy does not allow it",
            reply::ERR_INVALID => "it takes the request for wrong",
            reply::ERR_TLS_REQD => "it demands TLS",
            reply::ERR_UNKNOWN => "it has no such export",
            reply::ERR_SHUTDOWN => "it is shutting down",
            reply::ERR_BLOCK_SIZE_REQD => "it demands that its block size is kept to",
            reply::ERR_TOO_BIG => "it takes the request for too long",
            _ => "it gives no known reason",
        };
        let text: String = printable(&self.data).chars().take(200).collect();
        let said = if text.is_empty() {
            String::new()
        } else {
            format!(" (\"{text}\")")
        };
        let error = RemoteError::new(
            RemoteErrorKind::Refused,
            format!("the server refuses {what}: {why}{said}"),
        );
        match self.kind {
            reply::ERR_TLS_REQD => error.with_hint("name it as nbds://HOST/EXPORT"),
            reply::ERR_UNKNOWN => {
                error.with_hint("the name of the export follows the host: nbd://HOST/EXPORT")
            }
            _ => error,
        }
    }
}

struct Talk {
    channel: Channel,
}

impl Talk {
    fn read<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.channel.read_exact(&mut bytes).map_err(lost)?;
        Ok(bytes)
    }

    /// Whether the server agrees to leave out the zeroes.
    fn hello(&self) -> Result<bool> {
        let hello: [u8; 16] = self.read()?;
        if be64(&hello, 0) != Some(wire::MAGIC) {
            return Err(RemoteError::protocol("what answers there is no NBD server"));
        }
        match be64(&hello, 8) {
            Some(wire::OPTION_MAGIC) => {}
            Some(wire::OLDSTYLE_MAGIC) => return Err(too_old()),
            _ => return Err(RemoteError::protocol("what answers there is no NBD server")),
        }
        let flags = u16::from_be_bytes(self.read()?);
        if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(too_old());
        }
        let ours = flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        self.channel
            .send([&u32::from(ours).to_be_bytes(), &[]])
            .map_err(lost)?;
        Ok(ours & wire::FLAG_NO_ZEROES != 0)
    }

    fn ask(&self, number: u32, data: &[u8]) -> Result<()> {
        let bytes = wire::encode_option(number, data)
            .ok_or_else(|| RemoteError::protocol("an option that is too long"))?;
        self.channel.send([&bytes, &[]]).map_err(lost)
    }

    fn answer(&self, number: u32) -> Result<Answer> {
        let Some((option, kind, len)) = wire::parse_option_reply(self.read()?) else {
            return Err(RemoteError::protocol("an answer that is none"));
        };
        if option != number || len > MAX_OPTION_BYTES {
            return Err(RemoteError::protocol("an answer to nothing that was asked"));
        }
        let mut data = vec![0; usize_from_u32(len)];
        self.channel.read_exact(&mut data).map_err(lost)?;
        Ok(Answer { kind, data })
    }

    /// Asks for something that is there or not.
    fn ask_whether(&self, number: u32) -> Result<bool> {
        self.ask(number, &[])?;
        let answer = self.answer(number)?;
        match answer.kind {
            reply::ACK => Ok(true),
            reply::ERR_TLS_REQD => Err(answer.refusal("to talk")),
            _ if answer.is_error() => Ok(false),
            _ => Err(RemoteError::protocol("an answer that does not belong here")),
        }
    }

    #[cfg(feature = "remote")]
    fn start_tls(self, url: &NbdUrl, options: &RemoteOptions) -> Result<Self> {
        self.ask(option::STARTTLS, &[])?;
        let answer = self.answer(option::STARTTLS)?;
        if answer.kind != reply::ACK {
            return Err(answer.refusal("TLS"));
        }
        let Channel::Plain(stream, _) = self.channel else {
            return Ok(self);
        };
        let host = match &url.place {
            NbdPlace::Tcp(host, _) => host,
            NbdPlace::Unix(_) => "localhost",
        };
        let tls = crate::remote::tls::TlsStream::connect(stream, host, &options.tls)?;
        Ok(Self {
            channel: Channel::Tls(Box::new(tls)),
        })
    }

    #[cfg(not(feature = "remote"))]
    fn start_tls(self, _: &NbdUrl, _: &RemoteOptions) -> Result<Self> {
        Err(crate::remote::not_built("NBD with TLS"))
    }

    fn mode(&self) -> Result<Mode> {
        if self.ask_whether(option::EXTENDED_HEADERS)? {
            Ok(Mode::Extended)
        } else if self.ask_whether(option::STRUCTURED_REPLY)? {
            Ok(Mode::Structured)
        } else {
            Ok(Mode::Simple)
        }
    }

    fn allocation(&self, export: &[u8]) -> Result<Option<u32>> {
        let request = MetaContextRequest {
            name: export,
            queries: vec![wire::BASE_ALLOCATION],
        };
        let number = option::SET_META_CONTEXT;
        self.ask(number, &request.encode())?;
        let mut found = None;
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(number)?;
            match answer.kind {
                reply::META_CONTEXT => {
                    if answer.data.get(4..) == Some(wire::BASE_ALLOCATION) {
                        found = be32(&answer.data, 0);
                    }
                }
                reply::ACK => return Ok(found),
                // What is wrong with the export, the next option tells.
                _ if answer.is_error() => return Ok(None),
                _ => break,
            }
        }
        Err(RemoteError::protocol("an answer that does not belong here"))
    }

    fn go(&self, export: &[u8], no_zeroes: bool) -> Result<(ExportInfo, BlockSizes)> {
        let request = GoRequest {
            name: export,
            infos: vec![info::BLOCK_SIZE],
        };
        self.ask(option::GO, &request.encode())?;
        let (mut about, mut sizes) = (None, None);
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(option::GO)?;
            match answer.kind {
                reply::INFO => {
                    let data = answer.data.get(2..).unwrap_or_default();
                    let malformed = || RemoteError::protocol("malformed facts about the export");
                    match be16(&answer.data, 0) {
                        Some(info::EXPORT) => {
                            about = Some(ExportInfo::parse(data).ok_or_else(malformed)?);
                        }
                        Some(info::BLOCK_SIZE) => {
                            sizes = Some(BlockSizes::parse(data).ok_or_else(malformed)?);
                        }
                        Some(_) => {}
                        None => return Err(malformed()),
                    }
                }
                reply::ACK => {
                    let about =
                        about.ok_or_else(|| RemoteError::protocol("no size of the export"))?;
                    return Ok((about, sizes.unwrap_or(BlockSizes::DEFAULT)));
                }
                reply::ERR_UNSUP => return self.export_name(export, no_zeroes),
                _ if answer.is_error() => {
                    let what = format!("export '{}'", printable(export));
                    return Err(answer.refusal(&what));
                }
                _ => break,
            }
        }
        Err(RemoteError::protocol("an answer that does not belong here"))
    }

    /// The old way, which servers before 2017 know only. They end the connection if they have no
    /// such export.
    fn export_name(&self, export: &[u8], no_zeroes: bool) -> Result<(ExportInfo, BlockSizes)> {
        self.ask(option::EXPORT_NAME, export)?;
        let answer: [u8; 10] = self.read().map_err(|e| {
            e.with_hint("the server may have no export of this name: nbd://HOST/EXPORT")
        })?;
        if !no_zeroes {
            let _: [u8; 124] = self.read()?;
        }
        let about = ExportInfo::parse(&answer)
            .ok_or_else(|| RemoteError::protocol("malformed facts about the export"))?;
        Ok((about, BlockSizes::DEFAULT))
    }
}

fn too_old() -> RemoteError {
    RemoteError::new(
        RemoteErrorKind::Unsupported,
        "the server speaks only the old NBD handshake, from before 2011",
    )
}
