//! An export of a server as a block device.
//!
//! Requests of several threads are under way at the same time over one connection. There is no
//! thread for replies: of the threads that wait for one, one at a time reads, its own replies
//! straight to where they are wanted, and keeps those of others for them; when its own reply is
//! complete it wakes another one to read on. With a single thread nothing is ever handed over.
//!
//! What the server says is not trusted: a reply that does not fit its request ends the connection,
//! and a read succeeds only if every byte of it was sent, once.
//!
//! Lock order: `edges`, then `input`, then `state`; sending has a lock of its own that is never
//! held with those of this module.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};

use super::channel::Channel;
use super::negotiate::{Negotiated, negotiate};
use super::wire::{
    self, BlockSizes, ExportInfo, MAX_PAYLOAD, Mode, ReplyHeader, Request, chunk, command, flag,
};
use crate::block::{
    BlockBackend, BlockError, BlockErrorKind, Extent, ExtentKind, Geometry, Result,
};
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize};
use crate::remote::RemoteOptions;
use crate::remote::error::RemoteError;
use crate::remote::url::NbdUrl;

/// Bytes received at once.
const INPUT: usize = 128 << 10;

/// Requests with at most this much data are sent in one piece.
const SMALL: usize = 64 << 10;

/// Longest range of one request without data, in bytes. Servers may have trouble with more.
const STEP: u64 = 1 << 30;

/// Bytes whose block status is asked for at once.
const STATUS_STEP: u64 = 1 << 30;

/// Most content chunks in the reply to one read.
const MAX_CHUNKS: usize = 1 << 16;

/// Longest chunk without content, in bytes: block status of a million extents.
const MAX_CHUNK: u64 = 16 << 20;

/// An export, open.
pub struct Client {
    channel: Channel,
    mode: Mode,
    info: ExportInfo,
    sizes: BlockSizes,
    allocation: Option<u32>,
    state: Mutex<State>,
    input: Mutex<Input>,
    status: Mutex<StatusCache>,
    /// Shared by aligned writes, exclusive to one that changes a part of a block.
    edges: RwLock<()>,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// Whether a thread reads.
    reading: bool,
    /// Why the connection is no longer usable.
    dead: Option<String>,
}

/// A request without its complete reply.
struct Waiting {
    reply: Reply,
    /// Content that another thread has read; made when it comes.
    content: Vec<u8>,
    complete: bool,
    /// Whether its thread waits to be woken, and so can be told to read on.
    asleep: bool,
    wake: Arc<Condvar>,
}

/// What is known of a reply so far.
#[derive(Default)]
struct Reply {
    command: u16,
    offset: u64,
    len: u64,
    /// Content received so far: start and end, from `offset`.
    runs: Vec<(u64, u64)>,
    status: Option<Vec<(u64, u64)>>,
    error: Option<(u32, String)>,
}

/// The last answer about block status, while nothing was written.
#[derive(Default)]
struct StatusCache {
    start: u64,
    runs: Vec<(u64, u64)>,
    /// How often it was thrown away.
    generation: u64,
}

/// Bytes received and not looked at yet.
struct Input {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why the connection cannot go on.
struct Dead(String);

type Step<T = ()> = std::result::Result<T, Dead>;

impl From<io::Error> for Dead {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server ended the connection".into(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                "the server does not answer".into()
            }
            _ => format!("the connection failed: {error}"),
        })
    }
}

fn broken(what: &str) -> Dead {
    Dead(format!("the server broke the NBD protocol: {what}"))
}

impl Client {
    /// Connects to an export. `write` demands that it can be written to.
    ///
    /// # Errors
    /// See [`crate::remote::RemoteErrorKind`].
    pub fn connect(
        url: &NbdUrl,
        write: bool,
        options: &RemoteOptions,
    ) -> crate::remote::Result<Self> {
        let Negotiated {
            channel,
            mode,
            mut info,
            sizes,
            allocation,
        } = negotiate(url, options)?;
        if write && info.flags & flag::READ_ONLY != 0 {
            return Err(RemoteError::new(
                crate::remote::RemoteErrorKind::Refused,
                "the server offers this export for reading only",
            ));
        }
        if !write {
            info.flags |= flag::READ_ONLY;
        }
        // What lies behind the last whole block cannot be asked for.
        let tail = info.len.checked_rem(u64::from(sizes.minimum)).unwrap_or(0);
        info.len = info.len.saturating_sub(tail);
        if info.len > crate::limits::MAX_DEVICE_BYTES {
            return Err(RemoteError::protocol(format!(
                "an export of {} bytes",
                info.len
            )));
        }
        Ok(Self {
            channel,
            mode,
            info,
            sizes,
            allocation,
            state: Mutex::default(),
            input: Mutex::new(Input {
                buf: vec![0; INPUT],
                start: 0,
                end: 0,
            }),
            status: Mutex::default(),
            edges: RwLock::new(()),
        })
    }

    fn has(&self, flags: u16) -> bool {
        self.info.flags & flags != 0
    }

    fn align(&self) -> u64 {
        u64::from(self.sizes.minimum)
    }

    /// Longest read or write, whole blocks.
    fn longest(&self) -> u64 {
        let most = u64::from(self.sizes.maximum.min(MAX_PAYLOAD));
        most.saturating_sub(most.checked_rem(self.align()).unwrap_or(0))
            .max(self.align())
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.align()) && len.is_multiple_of(self.align())
    }

    /// One request and its reply. Content goes to `into`, which is as long as the read.
    fn call(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
        into: &mut [u8],
    ) -> Result<Option<Vec<(u64, u64)>>> {
        let wake = Arc::new(Condvar::new());
        let cookie = {
            let mut state = self.state.lock();
            if let Some(why) = &state.dead {
                return Err(gone(why));
            }
            let cookie = state.next;
            state.next = cookie.wrapping_add(1);
            state.waiting.insert(
                cookie,
                Waiting {
                    reply: Reply {
                        command,
                        offset,
                        len,
                        ..Reply::default()
                    },
                    content: Vec::new(),
                    complete: false,
                    asleep: false,
                    wake: Arc::clone(&wake),
                },
            );
            cookie
        };
        let mut flags = flags;
        if self.mode == Mode::Extended && command == command::WRITE {
            flags |= command::FLAG_PAYLOAD_LEN;
        }
        let request = Request {
            flags,
            command,
            cookie,
            offset,
            len,
        };
        let sent = self.send(&request, payload);
        if let Err(dead) = sent {
            self.end(&dead);
        }
        let reply = self.wait(cookie, &wake, into)?;
        if let Some((number, text)) = reply.error {
            return Err(refused(command, offset, len, number, &text));
        }
        if command == command::READ && !covers(reply.runs, len) {
            let dead = broken("a read without all of its bytes");
            self.end(&dead);
            return Err(gone(&dead.0));
        }
        Ok(reply.status)
    }

    fn send(&self, request: &Request, payload: &[u8]) -> Step {
        let mut head = Vec::with_capacity(if payload.len() <= SMALL {
            payload.len().saturating_add(32)
        } else {
            32
        });
        request
            .encode(self.mode, &mut head)
            .ok_or_else(|| Dead("a request that is too long".into()))?;
        if payload.len() <= SMALL {
            head.extend_from_slice(payload);
            self.channel.send([&head, &[]])?;
        } else {
            self.channel.send([&head, payload])?;
        }
        Ok(())
    }

    /// Waits for the complete reply to a request, reading if no other thread does.
    fn wait(&self, cookie: u64, wake: &Condvar, into: &mut [u8]) -> Result<Reply> {
        let mut state = self.state.lock();
        loop {
            let complete = state.waiting.get(&cookie).is_some_and(|w| w.complete);
            if complete && let Some(waiting) = state.waiting.remove(&cookie) {
                let Waiting { reply, content, .. } = waiting;
                drop(state);
                if !content.is_empty() && content.len() == into.len() {
                    into.copy_from_slice(&content);
                }
                return Ok(reply);
            }
            if let Some(why) = &state.dead {
                let error = gone(why);
                // A thread that reads may still look for it; it finds out as well.
                state.waiting.remove(&cookie);
                return Err(error);
            }
            if state.reading {
                if let Some(waiting) = state.waiting.get_mut(&cookie) {
                    waiting.asleep = true;
                }
                wake.wait(&mut state);
                if let Some(waiting) = state.waiting.get_mut(&cookie) {
                    waiting.asleep = false;
                }
                continue;
            }
            state.reading = true;
            drop(state);
            let read = self.read_until(cookie, into);
            state = self.state.lock();
            state.reading = false;
            if let Err(dead) = read {
                self.bury(&mut state, &dead);
            }
            // Somebody else reads on. Who is still sending sees for himself that nobody reads.
            let asleep = |w: &&Waiting| w.asleep && !w.complete;
            if let Some(next) = state.waiting.values().find(asleep) {
                next.wake.notify_one();
            }
        }
    }

    /// Nothing more can be asked.
    fn end(&self, dead: &Dead) {
        let mut state = self.state.lock();
        self.bury(&mut state, dead);
    }

    fn bury(&self, state: &mut State, dead: &Dead) {
        state.dead.get_or_insert_with(|| dead.0.clone());
        self.channel.shutdown();
        for waiting in state.waiting.values() {
            waiting.wake.notify_one();
        }
    }

    /// Reads replies until the one to `own` is complete.
    fn read_until(&self, own: u64, into: &mut [u8]) -> Step {
        let mut input = self.input.lock();
        // Content of our own reply that came while another thread read stays where it is.
        let mut mine = {
            let mut state = self.state.lock();
            let Some(waiting) = state.waiting.get_mut(&own) else {
                return Ok(());
            };
            if waiting.complete {
                return Ok(());
            }
            let content = std::mem::take(&mut waiting.content);
            if content.len() == into.len() {
                into.copy_from_slice(&content);
            }
            std::mem::take(&mut waiting.reply)
        };
        loop {
            let magic = input.array(&self.channel)?;
            let len = ReplyHeader::len_of(magic, self.mode)
                .ok_or_else(|| broken("something that is no reply"))?;
            let mut header = [0; wire::EXTENDED_REPLY_LEN];
            let (start, rest) = header.split_at_mut(4);
            start.copy_from_slice(&magic);
            let rest = rest
                .get_mut(..len.saturating_sub(4))
                .ok_or_else(|| broken("something that is no reply"))?;
            input.exact(&self.channel, rest)?;
            let header =
                ReplyHeader::parse(&header).ok_or_else(|| broken("something that is no reply"))?;
            let cookie = match header {
                ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. } => cookie,
            };
            if cookie == own {
                if self.payload(&mut input, &header, &mut mine, into)? {
                    let mut state = self.state.lock();
                    if let Some(waiting) = state.waiting.get_mut(&own) {
                        waiting.reply = mine;
                        waiting.complete = true;
                    }
                    return Ok(());
                }
                continue;
            }
            // Of another thread: its place is taken over while bytes are read into it.
            let (mut reply, mut content) = {
                let mut state = self.state.lock();
                let Some(waiting) = state.waiting.get_mut(&cookie).filter(|w| !w.complete) else {
                    return Err(broken("a reply to nothing that was asked"));
                };
                (
                    std::mem::take(&mut waiting.reply),
                    std::mem::take(&mut waiting.content),
                )
            };
            if reply.command == command::READ && content.is_empty() {
                content = vec![0; to_usize(reply.len).unwrap_or(0)];
            }
            let done = self.payload(&mut input, &header, &mut reply, &mut content)?;
            let mut state = self.state.lock();
            if let Some(waiting) = state.waiting.get_mut(&cookie) {
                waiting.reply = reply;
                waiting.content = content;
                waiting.complete = done;
                if done {
                    waiting.wake.notify_one();
                }
            }
        }
    }

    /// What follows a header; true if the reply is complete with it.
    fn payload(
        &self,
        input: &mut Input,
        header: &ReplyHeader,
        reply: &mut Reply,
        into: &mut [u8],
    ) -> Step<bool> {
        let (done, kind, len) = match *header {
            ReplyHeader::Simple { error: 0, .. } => {
                if reply.command == command::READ {
                    if self.mode != Mode::Simple {
                        return Err(broken("a simple reply to a read"));
                    }
                    input.exact(&self.channel, into)?;
                    reply.runs.push((0, reply.len));
                }
                return Ok(true);
            }
            ReplyHeader::Simple { error, .. } => {
                reply.error = Some((error, String::new()));
                return Ok(true);
            }
            ReplyHeader::Chunk {
                done, kind, len, ..
            } => (done, kind, len),
        };
        let wrong = || broken("a chunk that does not fit its request");
        match kind {
            chunk::NONE if len == 0 && done => {}
            chunk::OFFSET_DATA if reply.command == command::READ => {
                let offset = u64::from_be_bytes(input.array(&self.channel)?);
                let data = len.checked_sub(8).filter(|d| *d > 0).ok_or_else(wrong)?;
                let place = reply.place(offset, data, into).ok_or_else(wrong)?;
                input.exact(&self.channel, place)?;
            }
            chunk::OFFSET_HOLE if reply.command == command::READ && len == 12 => {
                let offset = u64::from_be_bytes(input.array(&self.channel)?);
                let hole = u32::from_be_bytes(input.array(&self.channel)?);
                let place = reply
                    .place(offset, u64::from(hole), into)
                    .ok_or_else(wrong)?;
                place.fill(0);
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT
                if reply.command == command::BLOCK_STATUS =>
            {
                let data = input.chunk(&self.channel, len)?;
                let (context, list) = wire::parse_block_status(kind, &data).ok_or_else(wrong)?;
                if Some(context) == self.allocation {
                    reply.status = Some(list);
                }
            }
            kind if kind & chunk::ERROR != 0 => {
                let data = input.chunk(&self.channel, len)?;
                let (number, text) = wire::parse_error_chunk(&data).ok_or_else(wrong)?;
                if number == 0 {
                    return Err(wrong());
                }
                let text = printable(text).chars().take(200).collect();
                reply.error.get_or_insert((number, text));
            }
            _ => return Err(wrong()),
        }
        Ok(done)
    }

    /// Status of `offset` and what follows, from the last answer or a new one.
    fn status_at(&self, offset: u64, len: u64) -> Result<Option<(u64, u64)>> {
        let generation = {
            let cache = self.status.lock();
            if let Some(found) = cache.find(offset) {
                return Ok(Some(found));
            }
            cache.generation
        };
        let align = self.align();
        let start = offset.saturating_sub(offset.checked_rem(align).unwrap_or(0));
        let end = self.info.len;
        let want = len.max(STATUS_STEP).min(end.saturating_sub(start));
        let want = want.min(u64::from(u32::MAX) & !0xFFFF);
        let status = self.call(command::BLOCK_STATUS, 0, start, want, &[], &mut [])?;
        let Some(runs) = status else {
            return Ok(None);
        };
        let mut cache = self.status.lock();
        let fresh = StatusCache {
            start,
            runs,
            generation,
        };
        let found = fresh.find(offset);
        if cache.generation == generation {
            *cache = fresh;
        }
        Ok(found)
    }

    fn forget_status(&self) {
        let mut cache = self.status.lock();
        cache.runs.clear();
        cache.generation = cache.generation.wrapping_add(1);
    }

    /// Blocks whole around a range.
    fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let align = self.align();
        let start = offset.saturating_sub(offset.checked_rem(align).unwrap_or(0));
        let end = offset.saturating_add(len);
        let end = end.checked_next_multiple_of(align).unwrap_or(end);
        (start, end.min(self.info.len).saturating_sub(start))
    }

    fn write_aligned(&self, mut offset: u64, mut buf: &[u8]) -> Result<()> {
        while !buf.is_empty() {
            let piece = to_usize(self.longest()).unwrap_or(buf.len()).min(buf.len());
            let (head, rest) = buf.split_at(piece);
            self.call(command::WRITE, 0, offset, to_u64(piece), head, &mut [])?;
            offset = offset.saturating_add(to_u64(piece));
            buf = rest;
        }
        Ok(())
    }

    /// The part of a range that is whole blocks.
    fn inside(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let align = self.align();
        let start = offset.checked_next_multiple_of(align)?;
        let end = offset.checked_add(len)?;
        let end = end.checked_sub(end.checked_rem(align)?)?;
        let len = end.checked_sub(start)?;
        (len > 0).then_some((start, len))
    }

    /// A command without data, in steps.
    fn over(&self, command: u16, flags: u16, mut offset: u64, mut len: u64) -> Result<()> {
        while len > 0 {
            let step = len.min(STEP);
            self.call(command, flags, offset, step, &[], &mut [])?;
            offset = offset.saturating_add(step);
            len = len.saturating_sub(step);
        }
        Ok(())
    }

    fn write_real_zeroes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        static ZEROES: [u8; SMALL] = [0; SMALL];
        while len > 0 {
            let piece = len.min(to_u64(SMALL));
            let zeroes = ZEROES.get(..to_usize(piece).unwrap_or(0));
            self.write_all_at(offset, zeroes.unwrap_or_default())?;
            offset = offset.saturating_add(piece);
            len = len.saturating_sub(piece);
        }
        Ok(())
    }
}

impl Reply {
    /// Where content goes. `None` if it is not of this request, or there is too much of it.
    fn place<'a>(&mut self, offset: u64, len: u64, into: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let start = offset.checked_sub(self.offset)?;
        let end = start.checked_add(len)?;
        (len > 0 && end <= self.len && self.runs.len() < MAX_CHUNKS).then_some(())?;
        self.runs.push((start, end));
        into.get_mut(to_usize(start)?..to_usize(end)?)
    }
}

/// Whether runs are `0..len`, each byte once.
fn covers(mut runs: Vec<(u64, u64)>, len: u64) -> bool {
    runs.sort_unstable();
    let mut at = 0;
    for (start, end) in runs {
        if start != at {
            return false;
        }
        at = end;
    }
    at == len
}

impl StatusCache {
    fn find(&self, offset: u64) -> Option<(u64, u64)> {
        let mut at = self.start;
        if offset < at {
            return None;
        }
        for (len, flags) in &self.runs {
            let end = at.saturating_add(*len);
            if offset < end {
                return Some((end.saturating_sub(offset), *flags));
            }
            at = end;
        }
        None
    }
}

impl Input {
    fn exact(&mut self, channel: &Channel, buf: &mut [u8]) -> Step {
        let here = self.end.saturating_sub(self.start).min(buf.len());
        let (head, mut rest) = buf.split_at_mut(here);
        let from = self.buf.get(self.start..self.start.saturating_add(here));
        head.copy_from_slice(from.unwrap_or_default());
        self.start = self.start.saturating_add(here);
        while !rest.is_empty() {
            if rest.len() >= INPUT {
                let read = channel.read(rest)?;
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                rest = rest.get_mut(read..).unwrap_or_default();
                continue;
            }
            let read = channel.read(&mut self.buf)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let used = read.min(rest.len());
            let (head, tail) = rest.split_at_mut(used);
            head.copy_from_slice(self.buf.get(..used).unwrap_or_default());
            (self.start, self.end) = (used, read);
            rest = tail;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, channel: &Channel) -> Step<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(channel, &mut bytes)?;
        Ok(bytes)
    }

    /// A chunk without content.
    fn chunk(&mut self, channel: &Channel, len: u64) -> Step<Vec<u8>> {
        if len > MAX_CHUNK {
            return Err(broken("a chunk that is too long"));
        }
        let mut bytes = vec![0; to_usize(len).unwrap_or(0)];
        self.exact(channel, &mut bytes)?;
        Ok(bytes)
    }
}

fn gone(why: &str) -> BlockError {
    BlockError::io(
        "the connection to the NBD server is lost",
        io::Error::other(why.to_owned()),
    )
}

fn refused(command: u16, offset: u64, len: u64, number: u32, text: &str) -> BlockError {
    let what = match command {
        command::READ => "a read",
        command::WRITE => "a write",
        command::FLUSH => "a flush",
        command::TRIM => "a trim",
        command::WRITE_ZEROES => "zeroes",
        _ => "a question",
    };
    let said = if text.is_empty() {
        String::new()
    } else {
        format!(" (\"{text}\")")
    };
    // The protocol's numbers are Linux's.
    let error = io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(5));
    BlockError::io(
        format!("the NBD server refuses {what} of {len} bytes at {offset}{said}"),
        error,
    )
}

impl BlockBackend for Client {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.info.len,
            block_size: self.sizes.minimum.max(512),
            read_only: self.has(flag::READ_ONLY),
        }
    }

    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        let len = to_u64(buf.len());
        if !self.is_aligned(offset, len) {
            let (start, around) = self.around(offset, len);
            let mut whole = vec![0; to_usize(around).unwrap_or(0)];
            self.read_exact_at(start, &mut whole)?;
            let from = to_usize(offset.saturating_sub(start)).unwrap_or(0);
            let part = whole.get(from..from.saturating_add(buf.len()));
            buf.copy_from_slice(part.ok_or_else(outside)?);
            return Ok(());
        }
        while !buf.is_empty() {
            let piece = to_usize(self.longest()).unwrap_or(buf.len()).min(buf.len());
            let (head, rest) = buf.split_at_mut(piece);
            self.call(command::READ, 0, offset, to_u64(piece), &[], head)?;
            offset = offset.saturating_add(to_u64(piece));
            buf = rest;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let data = Extent {
            host_offset: Some(offset),
            ..Extent::data(len)
        };
        if self.allocation.is_none() {
            return Ok(data);
        }
        let Some((run, flags)) = self.status_at(offset, len)? else {
            return Ok(data);
        };
        let hole = flags & u64::from(wire::STATE_HOLE) != 0;
        let zero = flags & u64::from(wire::STATE_ZERO) != 0;
        Ok(Extent {
            // A hole that does not read as zeroes must be read to know.
            kind: match (zero, hole) {
                (true, true) => ExtentKind::Hole,
                (true, false) => ExtentKind::Zero,
                (false, _) => ExtentKind::Data,
            },
            len: run.min(len).max(1),
            ..data
        })
    }

    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.forget_status();
        let len = to_u64(buf.len());
        let written = if self.is_aligned(offset, len) {
            let _others = self.edges.read();
            self.write_aligned(offset, buf)
        } else {
            let _alone = self.edges.write();
            let (start, around) = self.around(offset, len);
            let mut whole = vec![0; to_usize(around).unwrap_or(0)];
            self.read_exact_at(start, &mut whole)?;
            let from = to_usize(offset.saturating_sub(start)).unwrap_or(0);
            let part = whole.get_mut(from..from.saturating_add(buf.len()));
            part.ok_or_else(outside)?.copy_from_slice(buf);
            self.write_aligned(start, &whole)
        };
        self.forget_status();
        written
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        if !self.has(flag::SEND_WRITE_ZEROES) {
            return self.write_real_zeroes(offset, len);
        }
        let Some((start, inside)) = self.inside(offset, len) else {
            return self.write_real_zeroes(offset, len);
        };
        let flags = if may_unmap { 0 } else { command::FLAG_NO_HOLE };
        self.forget_status();
        let zeroed = {
            let _others = self.edges.read();
            self.over(command::WRITE_ZEROES, flags, start, inside)
        };
        self.forget_status();
        zeroed?;
        let end = start.saturating_add(inside);
        self.write_real_zeroes(offset, start.saturating_sub(offset))?;
        self.write_real_zeroes(end, offset.saturating_add(len).saturating_sub(end))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let (true, Some((start, len))) = (self.has(flag::SEND_TRIM), self.inside(offset, len))
        else {
            return Ok(());
        };
        self.forget_status();
        let discarded = self.over(command::TRIM, 0, start, len);
        self.forget_status();
        discarded
    }

    fn flush(&self) -> Result<()> {
        if self.has(flag::SEND_FLUSH) {
            self.call(command::FLUSH, 0, 0, 0, &[], &mut [])?;
        }
        Ok(())
    }
}

fn outside() -> BlockError {
    BlockError::new(
        BlockErrorKind::OutOfRange,
        "beyond the last whole block of the export",
    )
}

impl Drop for Client {
    fn drop(&mut self) {
        let bye = Request {
            flags: 0,
            command: command::DISC,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        // The server may be gone, and there is nobody to tell.
        let _ = self.send(&bye, &[]);
        self.channel.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_complete_when_every_byte_came_once() {
        assert!(covers(vec![(512, 1024), (0, 512)], 1024));
        assert!(!covers(vec![(0, 512)], 1024));
        assert!(!covers(vec![(0, 512), (0, 512)], 1024));
        assert!(!covers(vec![(0, 600), (512, 1024)], 1024));
        assert!(!covers(vec![], 1));
    }

    #[test]
    fn status_is_found_by_offset() {
        let cache = StatusCache {
            start: 100,
            runs: vec![(10, 0), (20, 3)],
            generation: 0,
        };
        assert_eq!(cache.find(99), None);
        assert_eq!(cache.find(100), Some((10, 0)));
        assert_eq!(cache.find(115), Some((15, 3)));
        assert_eq!(cache.find(130), None);
    }
}
