//! The bytes of the NBD protocol: numbers, and pure functions between them and values.
//!
//! Specification: "The NBD protocol" (`doc/proto.md` of NetworkBlockDevice/nbd), sections
//! "Newstyle negotiation", "Transmission", "Values". Everything is big-endian.

use crate::ondisk::bytes::{Cursor, be16, be32, be64};
use crate::ondisk::units::usize_from_u32;

/// What the server says first, in both styles of negotiation.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Newstyle negotiation; also before each option of the client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// Before each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Oldstyle negotiation, which is not spoken.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// Handshake flag: fixed newstyle. The same bit in the client's flags.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zeroes after `EXPORT_NAME`. The same bit in the client's flags.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Largest read or write served or asked for, in bytes: what every client assumes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest string of the protocol, in bytes.
pub const MAX_STRING: usize = 4096;
/// Most data of one option or of the answer to one: a list of names has room.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;

/// Options of the client.
pub mod option {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of answers to options.
pub mod reply {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information in [`reply::INFO`].
pub mod info {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod flag {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
    /// Flags.
    pub const FLAG_FUA: u16 = 1;
    pub const FLAG_NO_HOLE: u16 = 1 << 1;
    pub const FLAG_DF: u16 = 1 << 2;
    pub const FLAG_REQ_ONE: u16 = 1 << 3;
    pub const FLAG_FAST_ZERO: u16 = 1 << 4;
    pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of chunks in structured and extended replies.
pub mod chunk {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in every error.
    pub const ERROR: u16 = 1 << 15;
    pub const ERROR_PLAIN: u16 = ERROR | 1;
}

/// Errors of commands; the numbers are Linux's.
pub mod errno {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// Name of the metadata context of holes and zeroes.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// In it: nothing is stored.
pub const STATE_HOLE: u32 = 1;
/// In it: reads as zeroes.
pub const STATE_ZERO: u32 = 2;
/// Name of QEMU's metadata context of depths in a backing chain: 0 is stored nowhere, 1 is in the
/// image itself.
pub const ALLOCATION_DEPTH: &[u8] = b"qemu:allocation-depth";

/// How replies are sent, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// A header, and data if there was no error.
    Simple,
    /// Replies to reads and block status in chunks.
    Structured,
    /// Requests and replies with lengths of 64 bits, all in chunks.
    Extended,
}

/// Size of a request's header.
pub const fn request_len(mode: Mode) -> usize {
    match mode {
        Mode::Simple | Mode::Structured => 28,
        Mode::Extended => 32,
    }
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Size of a simple reply's header.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Size of a structured chunk's header.
pub const STRUCTURED_REPLY_LEN: usize = 20;
/// Size of an extended chunk's header.
pub const EXTENDED_REPLY_LEN: usize = 32;

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of [`command`].
    pub flags: u16,
    /// Of [`command`].
    pub command: u16,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    /// Byte offset in the export.
    pub offset: u64,
    /// Bytes the request is about; for a write, also the bytes that follow.
    pub len: u64,
}

impl Request {
    /// Reads a header; `None` if this is none, after which the stream makes no sense.
    pub fn parse(bytes: &[u8], mode: Mode) -> Option<Self> {
        let (magic, len) = match mode {
            Mode::Extended => (EXTENDED_REQUEST_MAGIC, be64(bytes, 24)?),
            Mode::Simple | Mode::Structured => (REQUEST_MAGIC, u64::from(be32(bytes, 24)?)),
        };
        if be32(bytes, 0)? != magic {
            return None;
        }
        Some(Self {
            flags: be16(bytes, 4)?,
            command: be16(bytes, 6)?,
            cookie: be64(bytes, 8)?,
            offset: be64(bytes, 16)?,
            len,
        })
    }

    /// Appends the header. `None` if the length does not fit the mode.
    pub fn encode(&self, mode: Mode, into: &mut Vec<u8>) -> Option<()> {
        let magic = match mode {
            Mode::Extended => EXTENDED_REQUEST_MAGIC,
            Mode::Simple | Mode::Structured => REQUEST_MAGIC,
        };
        let short = u32::try_from(self.len).ok();
        if mode != Mode::Extended && short.is_none() {
            return None;
        }
        into.extend_from_slice(&magic.to_be_bytes());
        into.extend_from_slice(&self.flags.to_be_bytes());
        into.extend_from_slice(&self.command.to_be_bytes());
        into.extend_from_slice(&self.cookie.to_be_bytes());
        into.extend_from_slice(&self.offset.to_be_bytes());
        match short {
            Some(len) if mode != Mode::Extended => into.extend_from_slice(&len.to_be_bytes()),
            _ => into.extend_from_slice(&self.len.to_be_bytes()),
        }
        Some(())
    }
}

/// A reply's header, or that of one chunk of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// The whole reply; data follows if the request was a read and `error` is 0.
    Simple {
        /// 0, or one of [`errno`].
        error: u32,
        /// Of the request.
        cookie: u64,
    },
    /// A chunk of the reply.
    Chunk {
        /// Whether this is the last chunk of its reply.
        done: bool,
        /// Of [`chunk`].
        kind: u16,
        /// Of the request.
        cookie: u64,
        /// Bytes that follow.
        len: u64,
    },
}

impl ReplyHeader {
    /// How many bytes the header has that starts with these four.
    pub fn len_of(magic: [u8; 4], mode: Mode) -> Option<usize> {
        match (u32::from_be_bytes(magic), mode) {
            (SIMPLE_REPLY_MAGIC, Mode::Simple | Mode::Structured) => Some(SIMPLE_REPLY_LEN),
            (STRUCTURED_REPLY_MAGIC, Mode::Structured) => Some(STRUCTURED_REPLY_LEN),
            (EXTENDED_REPLY_MAGIC, Mode::Extended) => Some(EXTENDED_REPLY_LEN),
            _ => None,
        }
    }

    /// Reads a header of the length that [`ReplyHeader::len_of`] told.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let magic = be32(bytes, 0)?;
        if magic == SIMPLE_REPLY_MAGIC {
            return Some(Self::Simple {
                error: be32(bytes, 4)?,
                cookie: be64(bytes, 8)?,
            });
        }
        let len = match magic {
            STRUCTURED_REPLY_MAGIC => u64::from(be32(bytes, 16)?),
            // The offset before it repeats the request's and says nothing.
            EXTENDED_REPLY_MAGIC => be64(bytes, 24)?,
            _ => return None,
        };
        Some(Self::Chunk {
            done: be16(bytes, 4)? & chunk::FLAG_DONE != 0,
            kind: be16(bytes, 6)?,
            cookie: be64(bytes, 8)?,
            len,
        })
    }
}

/// Appends a simple reply's header.
pub fn put_simple_reply(error: u32, cookie: u64, into: &mut Vec<u8>) {
    into.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    into.extend_from_slice(&error.to_be_bytes());
    into.extend_from_slice(&cookie.to_be_bytes());
}

/// Appends a chunk's header for a request; `len` bytes of payload are to follow.
pub fn put_chunk(
    mode: Mode,
    done: bool,
    kind: u16,
    request: &Request,
    len: u32,
    into: &mut Vec<u8>,
) {
    let extended = mode == Mode::Extended;
    let magic = if extended {
        EXTENDED_REPLY_MAGIC
    } else {
        STRUCTURED_REPLY_MAGIC
    };
    into.extend_from_slice(&magic.to_be_bytes());
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    into.extend_from_slice(&flags.to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    into.extend_from_slice(&request.cookie.to_be_bytes());
    if extended {
        into.extend_from_slice(&request.offset.to_be_bytes());
        into.extend_from_slice(&u64::from(len).to_be_bytes());
    } else {
        into.extend_from_slice(&len.to_be_bytes());
    }
}

/// The header of an option: its number and how much data follows. `None` if this is none.
pub fn parse_option(bytes: [u8; 16]) -> Option<(u32, u32)> {
    (be64(&bytes, 0)? == OPTION_MAGIC).then_some(())?;
    Some((be32(&bytes, 8)?, be32(&bytes, 12)?))
}

/// An option with its data; `None` if the data is longer than any option's.
pub fn encode_option(number: u32, data: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(data.len()).ok()?;
    let mut bytes = Vec::with_capacity(data.len().saturating_add(16));
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(data);
    Some(bytes)
}

/// The header of the answer to an option: option, type, how much data follows.
pub fn parse_option_reply(bytes: [u8; 20]) -> Option<(u32, u32, u32)> {
    (be64(&bytes, 0)? == OPTION_REPLY_MAGIC).then_some(())?;
    Some((be32(&bytes, 8)?, be32(&bytes, 12)?, be32(&bytes, 16)?))
}

/// Appends the answer to an option. What is longer than any answer is cut.
pub fn put_option_reply(option: u32, kind: u32, data: &[u8], into: &mut Vec<u8>) {
    let data = data.get(..usize_from_u32(MAX_OPTION_BYTES)).unwrap_or(data);
    into.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    into.extend_from_slice(&option.to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    put_len(data.len(), into);
    into.extend_from_slice(data);
}

/// Appends a length of 32 bits. Callers bound it.
pub fn put_len(len: usize, into: &mut Vec<u8>) {
    into.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

/// A 32-bit length and as many bytes.
pub fn take_string<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let len = usize_from_u32(u32::from_be_bytes(cursor.take_array()?));
    (len <= MAX_STRING).then_some(())?;
    cursor.take(len)
}

/// Data of `INFO` and `GO`.
#[derive(Debug, PartialEq, Eq)]
pub struct GoRequest<'a> {
    /// The export.
    pub name: &'a [u8],
    /// Which kinds of [`info`] the client asks for.
    pub infos: Vec<u16>,
}

impl<'a> GoRequest<'a> {
    /// Reads it.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let name = take_string(&mut cursor)?;
        let count = u16::from_be_bytes(cursor.take_array()?);
        let mut infos = Vec::new();
        // Bounded by the option's length.
        for _ in 0..count {
            infos.push(u16::from_be_bytes(cursor.take_array()?));
        }
        (cursor.remaining() == 0).then_some(Self { name, infos })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        put_len(self.name.len(), &mut data);
        data.extend_from_slice(self.name);
        let count = u16::try_from(self.infos.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&count.to_be_bytes());
        for kind in self.infos.iter().take(usize::from(count)) {
            data.extend_from_slice(&kind.to_be_bytes());
        }
        data
    }
}

/// Data of `SET_META_CONTEXT` and `LIST_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export.
    pub name: &'a [u8],
    /// Which contexts.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> MetaContextRequest<'a> {
    /// Reads it.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let name = take_string(&mut cursor)?;
        let count = u32::from_be_bytes(cursor.take_array()?);
        let mut queries = Vec::new();
        // Each takes four bytes of an option of bounded length.
        for _ in 0..count {
            queries.push(take_string(&mut cursor)?);
        }
        (cursor.remaining() == 0).then_some(Self { name, queries })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        put_len(self.name.len(), &mut data);
        data.extend_from_slice(self.name);
        put_len(self.queries.len(), &mut data);
        for query in &self.queries {
            put_len(query.len(), &mut data);
            data.extend_from_slice(query);
        }
        data
    }
}

/// What an export says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub len: u64,
    /// Of [`flag`].
    pub flags: u16,
}

impl ExportInfo {
    /// Reads the data of `INFO_EXPORT` after its kind, which is also the answer to `EXPORT_NAME`.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let flags = be16(data, 8)?;
        (data.len() == 10 && flags & flag::HAS_FLAGS != 0).then_some(())?;
        Some(Self {
            len: be64(data, 0)?,
            flags,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> [u8; 10] {
        let mut data = [0; 10];
        let (len, flags) = data.split_at_mut(8);
        len.copy_from_slice(&self.len.to_be_bytes());
        flags.copy_from_slice(&self.flags.to_be_bytes());
        data
    }
}

/// Sizes of requests an export takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it.
    pub minimum: u32,
    /// Best performance.
    pub preferred: u32,
    /// Largest read or write.
    pub maximum: u32,
}

impl BlockSizes {
    /// What a client assumes that was told nothing, except that it may be 512 then.
    pub const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: MAX_PAYLOAD,
    };

    /// Reads the data of `INFO_BLOCK_SIZE` after its kind. `None` also where the numbers are not
    /// what the specification allows.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let sizes = Self {
            minimum: be32(data, 0)?,
            preferred: be32(data, 4)?,
            maximum: be32(data, 8)?,
        };
        let sane = data.len() == 12
            && sizes.minimum.is_power_of_two()
            && sizes.minimum <= 64 << 10
            && sizes.preferred.is_power_of_two()
            && sizes.preferred >= sizes.minimum.max(512)
            && sizes.maximum >= sizes.minimum
            && (sizes.maximum == u32::MAX || sizes.maximum.is_multiple_of(sizes.minimum));
        sane.then_some(sizes)
    }

    /// Writes it.
    pub fn encode(&self) -> [u8; 12] {
        let mut data = [0; 12];
        for (place, value) in
            data.chunks_exact_mut(4)
                .zip([self.minimum, self.preferred, self.maximum])
        {
            place.copy_from_slice(&value.to_be_bytes());
        }
        data
    }
}

/// Descriptors of a block status chunk: pairs of length and status.
pub fn parse_block_status(kind: u16, data: &[u8]) -> Option<(u32, Vec<(u64, u64)>)> {
    let context = be32(data, 0)?;
    let list = match kind {
        chunk::BLOCK_STATUS => {
            let (list, rest) = data.get(4..)?.as_chunks::<8>();
            rest.is_empty().then_some(())?;
            list.iter()
                .map(|d| Some((u64::from(be32(d, 0)?), u64::from(be32(d, 4)?))))
                .collect::<Option<Vec<_>>>()?
        }
        chunk::BLOCK_STATUS_EXT => {
            let (list, rest) = data.get(8..)?.as_chunks::<16>();
            rest.is_empty().then_some(())?;
            (usize_from_u32(be32(data, 4)?) == list.len()).then_some(())?;
            list.iter()
                .map(|d| Some((be64(d, 0)?, be64(d, 8)?)))
                .collect::<Option<Vec<_>>>()?
        }
        _ => return None,
    };
    (!list.is_empty() && list.iter().all(|(len, _)| *len > 0)).then_some((context, list))
}

/// Number and text of an error chunk.
pub fn parse_error_chunk(data: &[u8]) -> Option<(u32, &[u8])> {
    let len = usize::from(be16(data, 4)?);
    Some((be32(data, 0)?, data.get(6..6usize.checked_add(len)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let request = Request {
                flags: command::FLAG_FUA,
                command: command::WRITE,
                cookie: 0x0102_0304_0506_0708,
                offset: 1 << 40,
                len: 4096,
            };
            let mut bytes = Vec::new();
            request.encode(mode, &mut bytes).unwrap();
            assert_eq!(bytes.len(), request_len(mode));
            assert_eq!(Request::parse(&bytes, mode), Some(request));
            assert_eq!(Request::parse(&bytes[..bytes.len() - 1], mode), None);
            bytes[0] ^= 1;
            assert_eq!(Request::parse(&bytes, mode), None);
        }
        let long = Request {
            flags: 0,
            command: command::WRITE_ZEROES,
            cookie: 0,
            offset: 0,
            len: 1 << 32,
        };
        assert!(long.encode(Mode::Structured, &mut Vec::new()).is_none());
        assert!(long.encode(Mode::Extended, &mut Vec::new()).is_some());
    }

    #[test]
    fn replies_survive_the_wire() {
        let request = Request {
            flags: 0,
            command: command::READ,
            cookie: 7,
            offset: 512,
            len: 1,
        };
        for (mode, len) in [(Mode::Structured, 20), (Mode::Extended, 32)] {
            let mut bytes = Vec::new();
            put_chunk(mode, true, chunk::OFFSET_HOLE, &request, 12, &mut bytes);
            let magic = bytes[..4].try_into().unwrap();
            assert_eq!(ReplyHeader::len_of(magic, mode), Some(len));
            assert_eq!(ReplyHeader::len_of(magic, Mode::Simple), None);
            assert_eq!(
                ReplyHeader::parse(&bytes),
                Some(ReplyHeader::Chunk {
                    done: true,
                    kind: chunk::OFFSET_HOLE,
                    cookie: 7,
                    len: 12
                })
            );
        }
    }

    #[test]
    fn option_data_that_lies_about_its_length_is_refused() {
        let go = GoRequest {
            name: b"disk",
            infos: vec![info::BLOCK_SIZE],
        };
        let data = go.encode();
        assert_eq!(GoRequest::parse(&data), Some(go));
        for cut in 0..data.len() {
            assert_eq!(GoRequest::parse(&data[..cut]), None, "{cut}");
        }
        let meta = MetaContextRequest {
            name: b"",
            queries: vec![BASE_ALLOCATION, b"x:"],
        };
        let data = meta.encode();
        assert_eq!(MetaContextRequest::parse(&data), Some(meta));
        for cut in 0..data.len() {
            assert_eq!(MetaContextRequest::parse(&data[..cut]), None, "{cut}");
        }
        assert_eq!(
            MetaContextRequest::parse(&[0, 0, 0, 0, 255, 255, 255, 255]),
            None
        );
        assert_eq!(GoRequest::parse(&[255; 6]), None);
    }

    #[test]
    fn block_sizes_outside_the_specification_are_refused() {
        assert_eq!(
            BlockSizes::parse(&BlockSizes::DEFAULT.encode()),
            Some(BlockSizes::DEFAULT)
        );
        for (minimum, preferred, maximum) in [
            (0, 4096, 4096),
            (3, 4096, 4096),
            (512, 256, 4096),
            (512, 4096, 513),
            (1 << 17, 1 << 17, 1 << 20),
        ] {
            let sizes = BlockSizes {
                minimum,
                preferred,
                maximum,
            };
            assert_eq!(BlockSizes::parse(&sizes.encode()), None, "{sizes:?}");
        }
    }

    #[test]
    fn block_status_is_checked() {
        let mut data = vec![0, 0, 0, 9];
        assert_eq!(parse_block_status(chunk::BLOCK_STATUS, &data), None);
        data.extend([0, 0, 16, 0, 0, 0, 0, 3]);
        assert_eq!(
            parse_block_status(chunk::BLOCK_STATUS, &data),
            Some((9, vec![(4096, 3)]))
        );
        data.extend([0; 8]);
        assert_eq!(
            parse_block_status(chunk::BLOCK_STATUS, &data),
            None,
            "length 0"
        );
        data.pop();
        assert_eq!(parse_block_status(chunk::BLOCK_STATUS, &data), None);
        let mut long = vec![0, 0, 0, 1, 0, 0, 0, 1];
        long.extend(5u64.to_be_bytes());
        long.extend(2u64.to_be_bytes());
        assert_eq!(
            parse_block_status(chunk::BLOCK_STATUS_EXT, &long),
            Some((1, vec![(5, 2)]))
        );
        long[7] = 2;
        assert_eq!(parse_block_status(chunk::BLOCK_STATUS_EXT, &long), None);
    }
}
