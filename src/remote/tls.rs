//! TLS of clients: whom to trust, and a connection that one thread reads and others write.
//!
//! Lock order: sending, then the state of the connection; no I/O happens under the latter.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::error::{RemoteError, RemoteErrorKind, Result};
use super::nbd::stream::Stream;
use super::options::TlsOptions;
use crate::ondisk::text::printable;

/// Bytes received from the socket at once: about one record.
const RAW: usize = 16 << 10;

/// Largest file of certificates that is read, in bytes.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// The certificates to trust, if not the public ones.
///
/// # Errors
/// If the file cannot be read or holds none.
pub fn read_authorities(options: &TlsOptions) -> Result<Option<Vec<CertificateDer<'static>>>> {
    options
        .authorities
        .as_deref()
        .map(|path| certificates(path, &read_pem(path)?))
        .transpose()
}

fn config(options: &TlsOptions) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match read_authorities(options)? {
        Some(list) => {
            for certificate in list {
                roots.add(certificate).map_err(|e| unusable(&e))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(&e))?
        .with_root_certificates(roots);
    let Some(path) = &options.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let pem = read_pem(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|e| unusable(&e).within(format!("the key in {}", shown(path))))?;
    builder
        .with_client_auth_cert(certificates(path, &pem)?, key)
        .map_err(|e| unusable(&e).within(shown(path)))
}

fn unusable(error: &dyn std::fmt::Display) -> RemoteError {
    RemoteError::new(
        RemoteErrorKind::Unsupported,
        format!("TLS cannot be set up: {error}"),
    )
}

fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    printable(path.as_os_str().as_bytes())
}

fn read_pem(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| RemoteError::io(format!("cannot read {}", shown(path)), e);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_PEM_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| unusable(&e).within(shown(path)))?;
    if list.is_empty() {
        return Err(RemoteError::new(
            RemoteErrorKind::Unsupported,
            format!("there is no certificate in {}", shown(path)),
        )
        .with_hint("certificates are expected as PEM: -----BEGIN CERTIFICATE-----"));
    }
    Ok(list)
}

/// An encrypted connection.
pub struct TlsStream {
    stream: Stream,
    state: Mutex<ClientConnection>,
    /// Held while records are sent, so that they leave in the order they were made.
    sending: Mutex<()>,
    /// Received and not decrypted; used by the one reader.
    received: Mutex<Received>,
}

struct Received {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl TlsStream {
    /// Shakes hands with the server `host`.
    ///
    /// # Errors
    /// If the server is not who it should be, or the host reports an error.
    pub fn connect(stream: Stream, host: &str, options: &TlsOptions) -> Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            RemoteError::new(
                RemoteErrorKind::Address,
                format!("'{host}' is no name a certificate can be for"),
            )
        })?;
        let connection =
            ClientConnection::new(Arc::new(config(options)?), name).map_err(|e| unusable(&e))?;
        let tls = Self {
            stream,
            state: Mutex::new(connection),
            sending: Mutex::new(()),
            received: Mutex::new(Received {
                buf: vec![0; RAW],
                start: 0,
                end: 0,
            }),
        };
        tls.shake_hands().map_err(|e| {
            let untrusted = e
                .get_ref()
                .and_then(|e| e.downcast_ref::<rustls::Error>())
                .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
            let failed = RemoteError::io("no TLS connection could be made", e);
            if untrusted {
                failed.with_hint(
                    "--tls-ca FILE names the authority that signed the server's certificate",
                )
            } else {
                failed
            }
        })?;
        Ok(tls)
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    fn shake_hands(&self) -> io::Result<()> {
        let mut received = self.received.lock();
        loop {
            self.send_records()?;
            if !self.state.lock().is_handshaking() {
                return Ok(());
            }
            if !self.receive(&mut received)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Decrypts what is here, or receives more. False: nothing more comes.
    fn receive(&self, received: &mut Received) -> io::Result<bool> {
        if received.start >= received.end {
            received.start = 0;
            received.end = self.stream.read(&mut received.buf)?;
            if received.end == 0 {
                return Ok(false);
            }
        }
        let mut state = self.state.lock();
        let mut raw = received
            .buf
            .get(received.start..received.end)
            .unwrap_or_default();
        let taken = state.read_tls(&mut raw)?;
        received.start = received.start.saturating_add(taken);
        let processed = state.process_new_packets();
        drop(state);
        if let Err(e) = processed {
            // The alert that says so is for the server; what matters is why.
            let _ = self.send_records();
            return Err(io::Error::new(io::ErrorKind::InvalidData, e));
        }
        Ok(true)
    }

    /// As [`super::nbd::channel::Channel::read`].
    ///
    /// # Errors
    /// Of the socket, or of what came through it.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut received = self.received.lock();
        loop {
            let wants_write = {
                let mut state = self.state.lock();
                match state.reader().read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => state.wants_write(),
                    other => return other,
                }
            };
            if wants_write {
                self.send_records()?;
            }
            if !self.receive(&mut received)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// As [`super::nbd::channel::Channel::send`].
    ///
    /// # Errors
    /// Of the socket.
    pub fn send(&self, parts: [&[u8]; 2]) -> io::Result<()> {
        let _turn = self.sending.lock();
        for mut part in parts {
            while !part.is_empty() {
                let taken = self.state.lock().writer().write(part)?;
                part = part.get(taken..).unwrap_or_default();
                self.send_made()?;
            }
        }
        Ok(())
    }

    fn send_records(&self) -> io::Result<()> {
        let _turn = self.sending.lock();
        self.send_made()
    }

    /// Sends the records there are; the turn is held.
    fn send_made(&self) -> io::Result<()> {
        let mut records = Vec::new();
        {
            let mut state = self.state.lock();
            while state.wants_write() {
                state.write_tls(&mut records)?;
            }
        }
        self.stream.write_all(&records)
    }
}
