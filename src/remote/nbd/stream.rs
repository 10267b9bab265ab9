//! A connected socket of either family, readable and writable from several threads.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// Socket buffers that are asked for, in bytes; the kernel gives what it allows.
const SOCKET_BUFFER: usize = 1 << 20;

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// Of the local host.
    Unix(UnixStream),
    /// Of a network.
    Tcp(TcpStream),
}

impl Stream {
    /// Prepares the socket for requests and replies: large buffers, nothing held back.
    pub fn tune(&self) {
        // All of this is about speed, or about noticing a dead peer sooner.
        let _ = setsockopt(&self, sockopt::SndBuf, &SOCKET_BUFFER);
        let _ = setsockopt(&self, sockopt::RcvBuf, &SOCKET_BUFFER);
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
            let _ = setsockopt(&self, sockopt::KeepAlive, &true);
        }
    }

    /// How long a read may wait.
    ///
    /// # Errors
    /// Of the host.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How long a write may wait.
    ///
    /// # Errors
    /// Of the host.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(timeout),
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Ends one or both directions; whoever waits for it wakes up.
    pub fn shutdown(&self, how: Shutdown) {
        // A socket whose other side is gone is as good.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// Reads what is there, waiting for the first byte.
    ///
    /// # Errors
    /// Of the host.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Unix(stream) => (&*stream).read(buf),
                Self::Tcp(stream) => (&*stream).read(buf),
            };
            match read {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Writes all of it. Callers see to it that no other thread writes meanwhile.
    ///
    /// # Errors
    /// Of the host.
    pub fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => (&*stream).write_all(buf),
            Self::Tcp(stream) => (&*stream).write_all(buf),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}
