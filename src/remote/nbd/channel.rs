//! The client's side of a connection: plain or TLS, read by one thread at a time and written by
//! any.

use std::io;
use std::net::Shutdown;

use parking_lot::Mutex;

use super::stream::Stream;
#[cfg(feature = "remote")]
use crate::remote::tls::TlsStream;

/// A connection to a server.
pub enum Channel {
    /// As it is.
    Plain(Stream, Mutex<()>),
    /// Encrypted.
    #[cfg(feature = "remote")]
    Tls(Box<TlsStream>),
}

impl Channel {
    /// A connection without encryption.
    pub fn plain(stream: Stream) -> Self {
        Self::Plain(stream, Mutex::new(()))
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        match self {
            Self::Plain(stream, _) => stream,
            #[cfg(feature = "remote")]
            Self::Tls(tls) => tls.stream(),
        }
    }

    /// Reads what is there, waiting for the first byte. 0: the server has ended the connection.
    ///
    /// # Errors
    /// Of the socket.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream, _) => stream.read(buf),
            #[cfg(feature = "remote")]
            Self::Tls(tls) => tls.read(buf),
        }
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// Of the socket; [`io::ErrorKind::UnexpectedEof`] if the server ends the connection.
    pub fn read_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let read = self.read(buf)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = buf.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends one thing after the other, with nothing of another thread between them.
    ///
    /// # Errors
    /// Of the socket; part of it may have been sent.
    pub fn send(&self, parts: [&[u8]; 2]) -> io::Result<()> {
        match self {
            Self::Plain(stream, sending) => {
                let _turn = sending.lock();
                for part in parts.into_iter().filter(|p| !p.is_empty()) {
                    stream.write_all(part)?;
                }
                Ok(())
            }
            #[cfg(feature = "remote")]
            Self::Tls(tls) => tls.send(parts),
        }
    }

    /// Ends the connection; whoever waits for it wakes up.
    pub fn shutdown(&self) {
        self.stream().shutdown(Shutdown::Both);
    }
}
