//! The server's side of the negotiation ("Newstyle negotiation" of the specification).
//!
//! Nothing a client says here costs more than [`MAX_OPTION_BYTES`] of memory, [`MAX_OPTIONS`]
//! rounds and [`TIME`].

use std::io;
use std::time::{Duration, Instant};

use super::export::{Export, MetaContext};
use super::stream::Stream;
use super::wire::{
    self, GoRequest, MAX_OPTION_BYTES, MetaContextRequest, Mode, info, option, put_option_reply,
    reply,
};
use crate::ondisk::units::usize_from_u32;

/// How long the whole negotiation may take.
const TIME: Duration = Duration::from_secs(30);

/// Options one client may send. A curious one sends a dozen.
const MAX_OPTIONS: usize = 256;

/// What was agreed on.
#[derive(Debug)]
pub struct Agreed {
    /// How replies are sent.
    pub mode: Mode,
    /// Metadata the client may ask for.
    pub contexts: Vec<MetaContext>,
}

/// Negotiates. `None`: the client went away, or was sent away.
///
/// # Errors
/// Of the socket.
pub fn negotiate(stream: &Stream, export: &Export) -> io::Result<Option<Agreed>> {
    let mut talk = Talk {
        stream,
        export,
        until: Instant::now().checked_add(TIME),
        no_zeroes: false,
        agreed: Agreed {
            mode: Mode::Simple,
            contexts: Vec::new(),
        },
    };
    let flags = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
    let mut hello = Vec::new();
    hello.extend_from_slice(&wire::MAGIC.to_be_bytes());
    hello.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&flags.to_be_bytes());
    stream.write_all(&hello)?;

    let mut answer = [0; 4];
    talk.read(&mut answer)?;
    let answer = u32::from_be_bytes(answer);
    if answer & !u32::from(flags) != 0 {
        return Ok(None);
    }
    talk.no_zeroes = answer & u32::from(wire::FLAG_NO_ZEROES) != 0;
    let fixed = answer & u32::from(wire::FLAG_FIXED_NEWSTYLE) != 0;
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; 16];
        talk.read(&mut header)?;
        let Some((number, len)) = wire::parse_option(header) else {
            return Ok(None);
        };
        // A client that does not know the fixed newstyle understands no answer to another option.
        if len > MAX_OPTION_BYTES || (!fixed && number != option::EXPORT_NAME) {
            return Ok(None);
        }
        let mut data = vec![0; usize_from_u32(len)];
        talk.read(&mut data)?;
        match talk.option(number, &data)? {
            Next::Option => {}
            Next::Transmission => return Ok(Some(talk.agreed)),
            Next::End => return Ok(None),
        }
    }
    Ok(None)
}

enum Next {
    Option,
    Transmission,
    End,
}

struct Talk<'a> {
    stream: &'a Stream,
    export: &'a Export,
    until: Option<Instant>,
    no_zeroes: bool,
    agreed: Agreed,
}

impl Talk<'_> {
    fn read(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let left = self
                .until
                .and_then(|until| until.checked_duration_since(Instant::now()))
                .filter(|left| !left.is_zero())
                .ok_or(io::ErrorKind::TimedOut)?;
            self.stream.set_read_timeout(Some(left))?;
            let read = self.stream.read(buf)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = buf.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    fn answer(&self, number: u32, kind: u32, data: &[u8]) -> io::Result<Next> {
        let mut bytes = Vec::new();
        put_option_reply(number, kind, data, &mut bytes);
        self.stream.write_all(&bytes)?;
        Ok(Next::Option)
    }

    fn option(&mut self, number: u32, data: &[u8]) -> io::Result<Next> {
        match number {
            option::EXPORT_NAME => self.export_name(data),
            option::ABORT => {
                // The client may be gone already, which is as well.
                let _ = self.answer(number, reply::ACK, &[]);
                Ok(Next::End)
            }
            option::LIST if data.is_empty() => self.list(),
            option::INFO | option::GO => self.go(number, data),
            option::STRUCTURED_REPLY if data.is_empty() && self.agreed.mode != Mode::Extended => {
                self.agreed.mode = Mode::Structured;
                self.answer(number, reply::ACK, &[])
            }
            option::EXTENDED_HEADERS if data.is_empty() => {
                self.agreed.mode = Mode::Extended;
                self.answer(number, reply::ACK, &[])
            }
            option::SET_META_CONTEXT | option::LIST_META_CONTEXT => self.meta_context(number, data),
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => self.answer(
                number,
                reply::ERR_INVALID,
                b"this cannot be asked for like that",
            ),
            option::STARTTLS => {
                self.answer(number, reply::ERR_POLICY, b"this server speaks no TLS")
            }
            _ => self.answer(number, reply::ERR_UNSUP, &[]),
        }
    }

    fn export_name(&mut self, name: &[u8]) -> io::Result<Next> {
        // There is no way to refuse but to end.
        if !self.export.answers_to(name) || self.agreed.mode == Mode::Extended {
            return Ok(Next::End);
        }
        let info = self.export.info(self.agreed.mode != Mode::Simple);
        let mut bytes = info.encode().to_vec();
        if !self.no_zeroes {
            bytes.extend_from_slice(&[0; 124]);
        }
        self.stream.write_all(&bytes)?;
        Ok(Next::Transmission)
    }

    fn list(&self) -> io::Result<Next> {
        let mut data = Vec::new();
        wire::put_len(self.export.name().len(), &mut data);
        data.extend_from_slice(self.export.name());
        data.extend_from_slice(self.export.description().as_bytes());
        self.answer(option::LIST, reply::SERVER, &data)?;
        self.answer(option::LIST, reply::ACK, &[])
    }

    fn go(&mut self, number: u32, data: &[u8]) -> io::Result<Next> {
        let Some(request) = GoRequest::parse(data) else {
            return self.answer(number, reply::ERR_INVALID, b"malformed option");
        };
        if !self.export.answers_to(request.name) {
            return self.answer(
                number,
                reply::ERR_UNKNOWN,
                b"there is no export of this name",
            );
        }
        let with_kind = |kind: u16, data: &[u8]| {
            let mut bytes = kind.to_be_bytes().to_vec();
            bytes.extend_from_slice(data);
            bytes
        };
        let export = self.export.info(self.agreed.mode != Mode::Simple);
        let mut answers = vec![with_kind(info::EXPORT, &export.encode())];
        if request.infos.contains(&info::NAME) {
            answers.push(with_kind(info::NAME, self.export.name()));
        }
        if request.infos.contains(&info::DESCRIPTION) && !self.export.description().is_empty() {
            answers.push(with_kind(
                info::DESCRIPTION,
                self.export.description().as_bytes(),
            ));
        }
        answers.push(with_kind(info::BLOCK_SIZE, &self.export.sizes().encode()));
        let mut bytes = Vec::new();
        for answer in answers {
            put_option_reply(number, reply::INFO, &answer, &mut bytes);
        }
        put_option_reply(number, reply::ACK, &[], &mut bytes);
        self.stream.write_all(&bytes)?;
        Ok(match number {
            option::GO => Next::Transmission,
            _ => Next::Option,
        })
    }

    fn meta_context(&mut self, number: u32, data: &[u8]) -> io::Result<Next> {
        let set = number == option::SET_META_CONTEXT;
        if set {
            // Whatever comes of it replaces what was chosen before.
            self.agreed.contexts.clear();
        }
        let Some(request) = MetaContextRequest::parse(data) else {
            return self.answer(number, reply::ERR_INVALID, b"malformed option");
        };
        if self.agreed.mode == Mode::Simple {
            return self.answer(
                number,
                reply::ERR_INVALID,
                b"structured replies come before this",
            );
        }
        if !self.export.answers_to(request.name) {
            return self.answer(
                number,
                reply::ERR_UNKNOWN,
                b"there is no export of this name",
            );
        }
        let all = !set && request.queries.is_empty();
        let mut bytes = Vec::new();
        for context in MetaContext::ALL {
            let name = context.name();
            // In a list, `base:` stands for everything that begins like that.
            let wanted = request.queries.iter().any(|query| {
                *query == name || (!set && query.ends_with(b":") && name.starts_with(query))
            });
            if !(all || wanted) {
                continue;
            }
            let id = if set { context.id() } else { 0 };
            let mut answer = id.to_be_bytes().to_vec();
            answer.extend_from_slice(name);
            put_option_reply(number, reply::META_CONTEXT, &answer, &mut bytes);
            if set {
                self.agreed.contexts.push(context);
            }
        }
        put_option_reply(number, reply::ACK, &[], &mut bytes);
        self.stream.write_all(&bytes)?;
        Ok(Next::Option)
    }
}
