//! The server's side of the transmission phase, for one connection.
//!
//! One thread receives requests into a buffer of fixed size and does the quick ones itself, in
//! the order they came, collecting the replies until no further request is waiting; slow ones go
//! to a few threads of the connection ([`super::pace`] decides). Replies may leave in any order,
//! as the protocol allows; whole ones, under one lock.
//!
//! Bounds: a request of more than [`MAX_PAYLOAD`] bytes is refused; what all connections of a
//! server hold in memory for requests is in [`Budget`]; a client that stops in the middle of a
//! request, or takes no replies, is let go after [`super::server::STALLED`].

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::{Condvar, Mutex};

use super::export::{Export, errno_of};
use super::handshake::Agreed;
use super::pace::Pace;
use super::stream::Stream;
use super::wire::{
    self, MAX_PAYLOAD, Mode, Request, chunk, command, errno, put_chunk, put_simple_reply,
};
use crate::block::BlockError;
use crate::ondisk::units::to_usize;

/// Bytes received at once.
const INPUT: usize = 256 << 10;

/// Requests up to this many bytes have their replies collected before they are sent.
const SMALL: u64 = 64 << 10;

/// Replies collected, in bytes, before they are sent although more requests are waiting.
const COLLECT: usize = 128 << 10;

/// A long read is answered in pieces of at most this many bytes.
const PIECE: u64 = 1 << 20;

/// Most pieces of holes and data in one reply; the rest is sent as data.
const MAX_RUNS: usize = 64;

/// Most descriptors in one reply to a block status request.
const MAX_DESCRIPTORS: usize = 4096;

/// Threads of one connection beside the one that receives.
const WORKERS: usize = 8;

/// Requests waiting for one of those.
const QUEUE: usize = 16;

/// Longest text in an error reply, in characters.
const MAX_ERROR_TEXT: usize = 512;

/// Memory for requests that all connections of a server share. Whoever asks waits until there is
/// enough; those who have some give it back after a bounded time, because stalled clients go.
#[derive(Debug)]
pub struct Budget {
    left: Mutex<u64>,
    more: Condvar,
}

impl Budget {
    /// `bytes` of memory, at least enough for one request.
    pub fn new(bytes: u64) -> Self {
        Self {
            left: Mutex::new(bytes.max(u64::from(MAX_PAYLOAD))),
            more: Condvar::new(),
        }
    }

    fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(u64::from(MAX_PAYLOAD));
        let mut left = self.left.lock();
        loop {
            if let Some(rest) = left.checked_sub(bytes) {
                *left = rest;
                return Share {
                    budget: self,
                    bytes,
                };
            }
            self.more.wait(&mut left);
        }
    }
}

struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut left = self.budget.left.lock();
        *left = left.saturating_add(self.bytes);
        self.budget.more.notify_all();
    }
}

/// One connection after the negotiation.
pub struct Connection<'a> {
    /// The socket; its timeouts are set.
    pub stream: &'a Stream,
    /// What is offered.
    pub export: &'a Export,
    /// What was agreed on.
    pub agreed: Agreed,
    /// Shared with the other connections.
    pub budget: &'a Budget,
}

impl Connection<'_> {
    /// Serves until the client goes, or breaks the protocol; all requests are done then.
    ///
    /// # Errors
    /// Of the socket.
    pub fn serve(self) -> io::Result<()> {
        let shared = Shared {
            connection: self,
            sending: Mutex::new(()),
            pace: Pace::default(),
            broken: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        };
        let (sender, receiver) = bounded(QUEUE);
        let shared = &shared;
        std::thread::scope(|scope| {
            let mut workers = 0usize;
            let hand_over = |job| {
                let busy = shared.busy.fetch_add(1, Ordering::Relaxed);
                if busy >= workers && workers < WORKERS {
                    let receiver = receiver.clone();
                    let started = std::thread::Builder::new()
                        .name("nbd-worker".into())
                        .spawn_scoped(scope, move || shared.work(receiver));
                    match started {
                        Ok(_) => workers = workers.saturating_add(1),
                        // The receiving thread can do everything.
                        Err(_) if workers == 0 => return Err(job),
                        Err(_) => {}
                    }
                }
                sender.send(job).map_err(|e| e.0)
            };
            let received = shared.receive(hand_over);
            drop(sender);
            received
        })
    }
}

/// A request for another thread.
struct Job<'a> {
    request: Request,
    payload: Vec<u8>,
    share: Option<Share<'a>>,
}

struct Shared<'a> {
    connection: Connection<'a>,
    /// Held while a reply is sent.
    sending: Mutex<()>,
    pace: Pace,
    /// Set once nothing can be sent any more.
    broken: AtomicBool,
    /// Requests that were handed over and are not done.
    busy: AtomicUsize,
}

impl<'a> Shared<'a> {
    /// Receives requests; does them, or hands them over.
    fn receive(&self, mut hand_over: impl FnMut(Job<'a>) -> Result<(), Job<'a>>) -> io::Result<()> {
        let mode = self.connection.agreed.mode;
        let header_len = wire::request_len(mode);
        let mut input = Input::new(self.connection.stream);
        let mut out = Vec::with_capacity(COLLECT);
        loop {
            if input.waiting() < header_len {
                self.send(&mut out)?;
                if !input.fill(header_len)? {
                    return Ok(());
                }
            }
            let Some(request) = input
                .take(header_len)
                .and_then(|header| Request::parse(header, mode))
            else {
                tracing::debug!("an NBD client sent something that is no request");
                return Ok(());
            };
            if request.command == command::DISC {
                return self.send(&mut out);
            }
            let has_payload = request.command == command::WRITE
                || (mode == Mode::Extended && request.flags & command::FLAG_PAYLOAD_LEN != 0);
            let payload_len = if has_payload { request.len } else { 0 };
            if payload_len > u64::from(MAX_PAYLOAD) {
                // Skipping over it would mean to read it.
                tracing::debug!("an NBD client sent a request of {payload_len} bytes");
                return Ok(());
            }
            let payload_len = to_usize(payload_len).ok_or(io::ErrorKind::InvalidData)?;

            let durable = request.flags & command::FLAG_FUA != 0
                && !self.connection.export.device().read_only();
            let small =
                request.len <= SMALL || !matches!(request.command, command::READ | command::WRITE);
            let alone = self.busy.load(Ordering::Relaxed) == 0 && input.waiting() <= payload_len;
            let here = !self.pace.is_slow(request.command, durable) && (small || alone);

            if payload_len <= INPUT {
                if input.waiting() < payload_len {
                    self.send(&mut out)?;
                    if !input.fill(payload_len)? {
                        return Ok(());
                    }
                }
                let payload = input.take(payload_len).unwrap_or_default();
                if here {
                    let share = (!small).then(|| self.connection.budget.take(request.len));
                    self.perform(&request, payload, &mut out)?;
                    drop(share);
                    if out.len() >= COLLECT {
                        self.send(&mut out)?;
                    }
                    continue;
                }
                self.send(&mut out)?;
                let job = self.job(request, payload.to_vec());
                if let Err(job) = hand_over(job) {
                    self.do_job(&job, &mut out)?;
                }
                continue;
            }
            // A long write; its bytes are received where they stay.
            self.send(&mut out)?;
            let mut job = self.job(request, Vec::new());
            job.payload.resize(payload_len, 0);
            if !input.read_exact(&mut job.payload)? {
                return Ok(());
            }
            if here && input.waiting() == 0 {
                self.perform(&job.request, &job.payload, &mut out)?;
            } else if let Err(job) = hand_over(job) {
                self.do_job(&job, &mut out)?;
            }
        }
    }

    fn job(&self, request: Request, payload: Vec<u8>) -> Job<'a> {
        let memory = match request.command {
            command::READ | command::WRITE => request.len,
            _ => 0,
        };
        Job {
            share: (memory > SMALL).then(|| self.connection.budget.take(memory)),
            request,
            payload,
        }
    }

    /// A thread beside the receiving one.
    fn work(&self, jobs: Receiver<Job<'a>>) {
        let mut out = Vec::new();
        for job in jobs {
            if self.do_job(&job, &mut out).is_err() {
                self.give_up();
            }
            drop(job.share);
            // A rare large reply does not keep its memory.
            out.clear();
            out.shrink_to(2 << 20);
        }
    }

    fn do_job(&self, job: &Job<'a>, out: &mut Vec<u8>) -> io::Result<()> {
        let done = self.perform(&job.request, &job.payload, out);
        self.busy.fetch_sub(1, Ordering::Relaxed);
        done?;
        self.send(out)
    }

    /// Nothing can be sent any more: the receiving thread is to find out.
    fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.connection.stream.shutdown(Shutdown::Both);
    }

    /// Sends what was collected.
    fn send(&self, out: &mut Vec<u8>) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if self.broken.load(Ordering::Relaxed) {
            out.clear();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = {
            let _turn = self.sending.lock();
            self.connection.stream.write_all(out)
        };
        out.clear();
        if sent.is_err() {
            // Half a reply may be out: nothing after it would make sense.
            self.give_up();
        }
        sent
    }

    /// Does a request and appends the reply, or the end of it: a long one is sent on the way.
    fn perform(&self, request: &Request, payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let start = Instant::now();
        let durable = request.flags & command::FLAG_FUA != 0;
        match request.command {
            command::READ => self.read(request, out)?,
            command::BLOCK_STATUS => self.block_status(request, out),
            _ => match self.change(request, payload) {
                Ok(()) => self.put_done(request, out),
                Err((number, text)) => self.put_error(request, number, &text, out),
            },
        }
        self.pace
            .note(request.command, durable, request.len, start.elapsed());
        Ok(())
    }

    fn mode(&self) -> Mode {
        self.connection.agreed.mode
    }

    fn put_done(&self, request: &Request, out: &mut Vec<u8>) {
        if self.mode() == Mode::Extended {
            put_chunk(Mode::Extended, true, chunk::NONE, request, 0, out);
        } else {
            put_simple_reply(0, request.cookie, out);
        }
    }

    fn put_error(&self, request: &Request, number: u32, text: &str, out: &mut Vec<u8>) {
        let mode = self.mode();
        let plain = !matches!(request.command, command::READ | command::BLOCK_STATUS);
        if mode == Mode::Simple || (mode == Mode::Structured && plain) {
            put_simple_reply(number, request.cookie, out);
            return;
        }
        let text: String = text.chars().take(MAX_ERROR_TEXT).collect();
        let text = text.as_bytes();
        let text_len = u16::try_from(text.len()).unwrap_or(0);
        let len = u32::from(text_len).saturating_add(6);
        put_chunk(mode, true, chunk::ERROR_PLAIN, request, len, out);
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&text_len.to_be_bytes());
        out.extend_from_slice(text);
    }

    /// Whether a request lies inside the export and is not too long.
    fn check(&self, request: &Request) -> Result<(), (u32, &'static str)> {
        let end = request.offset.checked_add(request.len);
        if end.is_none_or(|end| end > self.connection.export.device().len()) {
            return Err(match request.command {
                command::WRITE | command::WRITE_ZEROES => {
                    (errno::ENOSPC, "beyond the end of the export")
                }
                _ => (errno::EINVAL, "beyond the end of the export"),
            });
        }
        let with_data = matches!(request.command, command::READ | command::WRITE);
        if with_data && request.len > u64::from(MAX_PAYLOAD) {
            return Err((errno::EINVAL, "longer than requests may be"));
        }
        Ok(())
    }

    fn read(&self, request: &Request, out: &mut Vec<u8>) -> io::Result<()> {
        let known = command::FLAG_FUA | command::FLAG_DF;
        let wrong = (request.flags & !known != 0).then_some((errno::EINVAL, "unknown flag"));
        if let Some((number, text)) = wrong.or_else(|| self.check(request).err()) {
            self.put_error(request, number, text, out);
            return Ok(());
        }
        if request.len == 0 {
            match self.mode() {
                Mode::Simple => put_simple_reply(0, request.cookie, out),
                mode => put_chunk(mode, true, chunk::NONE, request, 0, out),
            }
            return Ok(());
        }
        let whole = self.mode() == Mode::Simple
            || request.flags & command::FLAG_DF != 0
            || request.len <= SMALL;
        if whole {
            if let Err(e) = self.put_data(request, request.offset, request.len, true, out) {
                self.put_error(request, errno_of(&e), &e.to_string(), out);
            }
            return Ok(());
        }
        self.read_in_pieces(request, out)
    }

    /// Appends bytes of the device with the header that says which; on error nothing.
    fn put_data(
        &self,
        request: &Request,
        offset: u64,
        len: u64,
        done: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BlockError> {
        let start = out.len();
        // Both are bounded by MAX_PAYLOAD.
        let payload = u32::try_from(len.saturating_add(8)).unwrap_or(0);
        match self.mode() {
            Mode::Simple => put_simple_reply(0, request.cookie, out),
            mode => {
                put_chunk(mode, done, chunk::OFFSET_DATA, request, payload, out);
                out.extend_from_slice(&offset.to_be_bytes());
            }
        }
        let data = out.len();
        out.resize(data.saturating_add(to_usize(len).unwrap_or(0)), 0);
        let place = out.get_mut(data..).unwrap_or_default();
        let read = self.connection.export.device().read_exact_at(offset, place);
        if read.is_err() {
            out.truncate(start);
        }
        read
    }

    fn read_in_pieces(&self, request: &Request, out: &mut Vec<u8>) -> io::Result<()> {
        let device = self.connection.export.device();
        let end = request.offset.saturating_add(request.len);
        let mut at = request.offset;
        let mut runs = 0usize;
        while at < end {
            let left = end.saturating_sub(at);
            runs = runs.saturating_add(1);
            // Where the map cannot be read, reading the data says why.
            let extent = (runs <= MAX_RUNS)
                .then(|| device.extent_at(at, left).ok())
                .flatten();
            let zero = extent.is_some_and(|e| e.reads_zero());
            let run = extent.map_or(left, |e| e.len.min(left));
            let run = if zero { run } else { run.min(PIECE) };
            let done = at.saturating_add(run) >= end;
            if zero {
                put_chunk(self.mode(), done, chunk::OFFSET_HOLE, request, 12, out);
                out.extend_from_slice(&at.to_be_bytes());
                wire::put_len(to_usize(run).unwrap_or(0), out);
            } else if let Err(e) = self.put_data(request, at, run, done, out) {
                self.put_error(request, errno_of(&e), &e.to_string(), out);
                return Ok(());
            }
            if out.len() >= COLLECT {
                self.send(out)?;
            }
            at = at.saturating_add(run);
        }
        Ok(())
    }

    fn block_status(&self, request: &Request, out: &mut Vec<u8>) {
        let contexts = &self.connection.agreed.contexts;
        let known = command::FLAG_FUA | command::FLAG_REQ_ONE;
        let wrong = if contexts.is_empty() {
            Some((
                errno::EINVAL,
                "no metadata was asked for in the negotiation",
            ))
        } else if request.flags & !known != 0 {
            Some((errno::EINVAL, "unknown flag"))
        } else if request.len == 0 {
            Some((errno::EINVAL, "nothing has no status"))
        } else {
            self.check(request).err()
        };
        if let Some((number, text)) = wrong {
            self.put_error(request, number, text, out);
            return;
        }
        let most = if request.flags & command::FLAG_REQ_ONE != 0 {
            1
        } else {
            MAX_DESCRIPTORS
        };
        let lists =
            match self
                .connection
                .export
                .block_status(contexts, request.offset, request.len, most)
            {
                Ok(lists) => lists,
                Err(e) => {
                    self.put_error(request, errno_of(&e), &e.to_string(), out);
                    return;
                }
            };
        let mode = self.mode();
        let count = contexts.len();
        for (n, (context, list)) in contexts.iter().zip(&lists).enumerate() {
            let done = n.saturating_add(1) == count;
            let mut data = context.id().to_be_bytes().to_vec();
            let kind = if mode == Mode::Extended {
                wire::put_len(list.len(), &mut data);
                for (len, status) in list {
                    data.extend_from_slice(&len.to_be_bytes());
                    data.extend_from_slice(&u64::from(*status).to_be_bytes());
                }
                chunk::BLOCK_STATUS_EXT
            } else {
                // Lengths of compact requests have 32 bits.
                for (len, status) in list {
                    wire::put_len(to_usize(*len).unwrap_or(0), &mut data);
                    data.extend_from_slice(&status.to_be_bytes());
                }
                chunk::BLOCK_STATUS
            };
            let len = u32::try_from(data.len()).unwrap_or(0);
            put_chunk(mode, done, kind, request, len, out);
            out.extend_from_slice(&data);
        }
    }

    /// Everything that is answered by success or an error alone.
    fn change(&self, request: &Request, payload: &[u8]) -> Result<(), (u32, String)> {
        let device = self.connection.export.device();
        let failed = |e: BlockError| (errno_of(&e), e.to_string());
        let wrong = |(number, text): (u32, &str)| (number, text.to_owned());
        let known = command::FLAG_FUA
            | match request.command {
                command::WRITE => command::FLAG_PAYLOAD_LEN,
                command::WRITE_ZEROES => command::FLAG_NO_HOLE | command::FLAG_FAST_ZERO,
                _ => 0,
            };
        if request.flags & !known != 0 {
            return Err((errno::EINVAL, "unknown flag".into()));
        }
        let (offset, len) = (request.offset, request.len);
        match request.command {
            command::FLUSH => return device.flush().map_err(failed),
            command::CACHE => {
                self.check(request).map_err(wrong)?;
                device.prefetch(offset, len);
                return Ok(());
            }
            command::WRITE | command::WRITE_ZEROES | command::TRIM => {}
            _ => return Err((errno::EINVAL, "unknown command".into())),
        }
        if device.read_only() {
            return Err((errno::EPERM, "the export is read-only".into()));
        }
        self.check(request).map_err(wrong)?;
        match request.command {
            command::WRITE => device.write_all_at(offset, payload),
            command::TRIM => device.discard(offset, len),
            _ => {
                if request.flags & command::FLAG_FAST_ZERO != 0 {
                    return self.zero_at_once(request);
                }
                let may_unmap = request.flags & command::FLAG_NO_HOLE == 0;
                device.write_zeroes(offset, len, may_unmap)
            }
        }
        .map_err(failed)?;
        if request.flags & command::FLAG_FUA != 0 {
            device.flush().map_err(failed)?;
        }
        Ok(())
    }

    /// Zeroes that must not take longer than nothing: what reads as zeroes already. Whether a
    /// device would have to write anything else, it does not tell.
    fn zero_at_once(&self, request: &Request) -> Result<(), (u32, String)> {
        let device = self.connection.export.device();
        let mut at = request.offset;
        let mut left = request.len;
        for _ in 0..MAX_RUNS {
            if left == 0 {
                return Ok(());
            }
            match device.extent_at(at, left) {
                Ok(extent) if extent.reads_zero() && request.flags & command::FLAG_NO_HOLE == 0 => {
                    at = at.saturating_add(extent.len);
                    left = left.saturating_sub(extent.len);
                }
                _ => break,
            }
        }
        if left == 0 {
            return Ok(());
        }
        Err((errno::ENOTSUP, "this may take as long as writing".into()))
    }
}

/// Bytes received and not looked at yet.
struct Input<'a> {
    stream: &'a Stream,
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Input<'a> {
    fn new(stream: &'a Stream) -> Self {
        Self {
            stream,
            buf: vec![0; INPUT],
            start: 0,
            end: 0,
        }
    }

    fn waiting(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Receives until `len` bytes (no more than [`INPUT`]) are here. False: the client has ended
    /// the connection, or stopped in the middle.
    fn fill(&mut self, len: usize) -> io::Result<bool> {
        if self.waiting() == 0 {
            (self.start, self.end) = (0, 0);
        } else if self.buf.len().saturating_sub(self.start) < len {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.waiting());
        }
        while self.waiting() < len {
            let between = self.waiting() == 0;
            let room = self.buf.get_mut(self.end..).unwrap_or_default();
            match self.stream.read(room) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end = self.end.saturating_add(read),
                // A client may be silent between requests for as long as it likes.
                Err(e) if between && is_timeout(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let end = self.start.checked_add(len).filter(|end| *end <= self.end)?;
        let taken = self.buf.get(self.start..end);
        self.start = end;
        taken
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let here = self.waiting().min(buf.len());
        let (head, mut rest) = buf.split_at_mut(here);
        head.copy_from_slice(self.take(here).unwrap_or_default());
        while !rest.is_empty() {
            let read = self.stream.read(rest)?;
            if read == 0 {
                return Ok(false);
            }
            rest = rest.get_mut(read..).unwrap_or_default();
        }
        Ok(true)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
