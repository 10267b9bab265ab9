//! Sockets that are listened on, clients, their limits and their end.
//!
//! A server offers one export to any number of clients, up to [`MAX_CLIENTS`] at a time, each on a
//! thread of its own. Told to stop, it takes no further client and no further request, finishes
//! what it has received, and returns; making that durable is the caller's.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::connection::{Budget, Connection};
use super::export::Export;
use super::handshake;
use super::stream::Stream;
use crate::ondisk::text::printable;
use crate::remote::error::{RemoteError, RemoteErrorKind, Result};

/// Most clients at a time; a further one is sent away. `nbdcopy` uses four connections.
pub const MAX_CLIENTS: usize = 64;

/// After this time a client that stops in the middle of a request, or takes no replies, is let go.
pub const STALLED: Duration = Duration::from_secs(120);

/// Memory for requests of all clients, in bytes; see [`Budget`].
const MEMORY: u64 = 256 << 20;

/// How long requests may take that are being done when the server is to stop.
const GRACE: Duration = Duration::from_secs(30);

/// Clients the kernel keeps waiting.
const BACKLOG: i32 = 64;

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// On the local host, under a name that goes away with this value.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Its name.
        path: PathBuf,
        /// What makes it this one: device and inode.
        id: (u64, u64),
    },
    /// On the network.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens under a name in a directory, which only the user of this process may connect to.
    /// A socket of that name that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// If there is anything else of that name, or the host refuses.
    pub fn unix(path: &Path) -> Result<Self> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

        let shown = shown(path);
        let failed = |e: io::Error| RemoteError::io(format!("cannot listen on {shown}"), e);
        let address = SocketAddrUnix::new(path).map_err(|e| {
            RemoteError::io(format!("{shown} cannot be the name of a socket"), e.into())
                .with_hint("names of sockets have at most 107 bytes: give a shorter one")
        })?;
        remove_stale(path)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| failed(e.into()))?;
        // The name gets the mode the socket has when it is bound: there is no moment in which
        // anybody else may connect.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))
            .map_err(|e| failed(e.into()))?;
        rustix::net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
        let id = std::fs::symlink_metadata(path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(failed)?;
        let listener = Self::Unix {
            listener: UnixListener::from(socket),
            path: path.to_owned(),
            id,
        };
        rustix::net::listen(listener.as_fd(), BACKLOG).map_err(|e| failed(e.into()))?;
        Ok(listener)
    }

    /// Listens on an address of the network.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn tcp(address: SocketAddr) -> Result<Self> {
        TcpListener::bind(address)
            .map(Self::Tcp)
            .map_err(|e| RemoteError::io(format!("cannot listen on {address}"), e))
    }

    /// The address for clients, with the name of an export.
    ///
    /// # Errors
    /// If the host does not tell.
    pub fn uri(&self, export: &[u8]) -> io::Result<String> {
        let export = super::super::url::encode(export);
        Ok(match self {
            Self::Unix { path, .. } => {
                use std::os::unix::ffi::OsStrExt as _;
                let path = std::path::absolute(path)?;
                let path = super::super::url::encode_path(path.as_os_str().as_bytes());
                format!("nbd+unix:///{export}?socket={path}")
            }
            Self::Tcp(listener) => format!("nbd://{}/{export}", listener.local_addr()?),
        })
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix { listener, .. } => listener.accept().map(|(s, _)| Stream::Unix(s)),
            Self::Tcp(listener) => listener.accept().map(|(s, _)| Stream::Tcp(s)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { listener, .. } => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, id, .. } = self {
            // Somebody else's socket of the same name stays.
            let same = std::fs::symlink_metadata(&*path)
                .is_ok_and(|m| (m.dev(), m.ino()) == *id && m.file_type().is_socket());
            if same {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Removes a socket that a killed server left behind.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let shown = shown(path);
    if !metadata.file_type().is_socket() {
        return Err(RemoteError::new(
            RemoteErrorKind::Refused,
            format!("{shown} is there already and is no socket"),
        )
        .with_hint("give the name of a socket that is to be made"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| RemoteError::io(format!("cannot remove the old socket {shown}"), e)),
        Err(e) => Err(RemoteError::io(
            format!("{shown} is there already, and whether it is in use cannot be told"),
            e,
        )),
        Ok(_) => Err(RemoteError::new(
            RemoteErrorKind::Refused,
            format!("another server listens on {shown}"),
        )),
    }
}

fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    printable(path.as_os_str().as_bytes())
}

/// Ends a server from another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// A stop that was not asked for yet.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Asks for it.
    pub fn ask(&self) {
        // It cannot fail before it was asked for 2^64 times.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A server of one export.
#[derive(Debug)]
pub struct Server {
    /// What it listens on.
    pub listeners: Vec<Listener>,
    /// What it offers.
    pub export: Arc<Export>,
    /// Whether it ends when the last client has gone.
    pub once: bool,
}

/// The clients of a server.
struct Clients {
    state: Mutex<ClientsState>,
    changed: Condvar,
    budget: Budget,
}

#[derive(Default)]
struct ClientsState {
    next: u64,
    streams: HashMap<u64, Arc<Stream>>,
    /// Whether anybody has come and agreed on an export.
    served: bool,
}

impl Server {
    /// Serves until it is to stop; all requests that were received are done then.
    ///
    /// # Errors
    /// If the host refuses to wait for clients.
    pub fn run(&self, stop: &Stop) -> Result<()> {
        let clients = Arc::new(Clients {
            state: Mutex::default(),
            changed: Condvar::new(),
            budget: Budget::new(MEMORY),
        });
        let ended = self.accept_clients(&clients, stop);
        clients.finish();
        ended.map_err(|e| RemoteError::io("cannot wait for clients", e))
    }

    fn accept_clients(&self, clients: &Arc<Clients>, stop: &Stop) -> io::Result<()> {
        for listener in &self.listeners {
            // Somebody who has gone between the two calls must not make `accept` wait.
            rustix::io::ioctl_fionbio(listener, true)?;
        }
        loop {
            let mut fds: Vec<PollFd<'_>> = self
                .listeners
                .iter()
                .map(|l| PollFd::from_borrowed_fd(l.as_fd(), PollFlags::IN))
                .chain([PollFd::new(&*stop.0, PollFlags::IN)])
                .collect();
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.last() == Some(&true) {
                return Ok(());
            }
            for (listener, ready) in self.listeners.iter().zip(ready) {
                if !ready {
                    continue;
                }
                match listener.accept() {
                    Ok(stream) => self.welcome(clients, stream, stop),
                    Err(e) => {
                        tracing::debug!("a client could not be accepted: {e}");
                        if e.kind() != io::ErrorKind::WouldBlock {
                            // Out of descriptors, for example: waiting is all there is to do.
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
            }
        }
    }

    fn welcome(&self, clients: &Arc<Clients>, stream: Stream, stop: &Stop) {
        stream.tune();
        let timeouts = rustix::io::ioctl_fionbio(&stream, false)
            .map_err(io::Error::from)
            .and_then(|()| stream.set_write_timeout(Some(STALLED)));
        if let Err(e) = timeouts {
            tracing::debug!("a client could not be set up: {e}");
            return;
        }
        let stream = Arc::new(stream);
        let Some(number) = clients.add(&stream) else {
            tracing::warn!("a client was sent away: there are {MAX_CLIENTS} already");
            return;
        };
        let guest = Present {
            clients: Arc::clone(clients),
            number,
            stop: self.once.then(|| stop.clone()),
        };
        let export = Arc::clone(&self.export);
        let started = std::thread::Builder::new()
            .name("nbd-client".into())
            .spawn(move || {
                // Also when the thread ends by a panic, the client is no longer counted.
                let guest = guest;
                if let Err(e) = serve(&stream, &export, &guest) {
                    tracing::debug!("a client's connection ended: {e}");
                }
                stream.shutdown(Shutdown::Both);
            });
        if let Err(e) = started {
            tracing::warn!("a client was sent away: {e}");
        }
    }
}

/// All of one connection.
fn serve(stream: &Stream, export: &Export, guest: &Present) -> io::Result<()> {
    let Some(agreed) = handshake::negotiate(stream, export)? else {
        return Ok(());
    };
    stream.set_read_timeout(Some(STALLED))?;
    guest.clients.state.lock().served = true;
    Connection {
        stream,
        export,
        agreed,
        budget: &guest.clients.budget,
    }
    .serve()
}

impl Clients {
    fn add(&self, stream: &Arc<Stream>) -> Option<u64> {
        let mut state = self.state.lock();
        if state.streams.len() >= MAX_CLIENTS {
            return None;
        }
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.streams.insert(number, Arc::clone(stream));
        Some(number)
    }

    /// Takes no further requests and waits until those received are done.
    fn finish(&self) {
        let mut state = self.state.lock();
        for how in [Shutdown::Read, Shutdown::Both] {
            for stream in state.streams.values() {
                stream.shutdown(how);
            }
            let Some(until) = Instant::now().checked_add(GRACE) else {
                return;
            };
            while !state.streams.is_empty() {
                if self.changed.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
        }
    }
}

/// A client while it is there.
struct Present {
    clients: Arc<Clients>,
    number: u64,
    /// What to ask when the last one goes.
    stop: Option<Stop>,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut state = self.clients.state.lock();
        state.streams.remove(&self.number);
        if let (true, true, Some(stop)) = (state.streams.is_empty(), state.served, &self.stop) {
            stop.ask();
        }
        self.clients.changed.notify_all();
    }
}
