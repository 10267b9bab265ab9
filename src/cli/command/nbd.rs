//! `guestlens nbd`: an image as an NBD export.
//!
//! The server prints one line when clients may come: the export's address (one line for each
//! socket), or a JSON document of one line. With `--fork` the program starts itself again as the
//! server and ends once that has said so; until then the server's messages go to the user's
//! stderr, and its exit status is that of the command.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use clap::Args;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use crate::block::BlockDevice;
use crate::cli::args::OpenArgs;
use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::session::check_unlocked;
use crate::cli::target;
use crate::formats::{Image, open_path};
use crate::fuse::mounts::shown;
use crate::fuse::session::let_go_of_terminal;
use crate::remote::nbd::export::Export;
use crate::remote::nbd::server::{Listener, Server, Stop};

/// Set for the server to the process number of the command that started it.
const SERVER: &str = "GUESTLENS_NBD_SERVER_OF";

/// Arguments of `nbd`.
#[derive(Args, Debug)]
pub struct NbdArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// Listen on this socket; only the user who runs the server may connect
    #[arg(long, value_name = "SOCKET", required_unless_present = "tcp")]
    pub unix: Option<PathBuf>,

    /// Listen on this address, or on this port of 127.0.0.1; there is no encryption, and whoever
    /// reaches it may connect
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = tcp_address)]
    pub tcp: Option<SocketAddr>,

    /// Let clients write
    #[arg(long, conflicts_with_all = ["snapshot", "live"])]
    pub rw: bool,

    /// Write also where nothing shows whether another program uses the image
    #[arg(long, requires = "rw")]
    pub force: bool,

    /// Name of the export; the empty name always leads to it as well
    #[arg(long, value_name = "NAME", default_value = "")]
    pub name: OsString,

    /// End when the last client has gone
    #[arg(long)]
    pub once: bool,

    /// Return when the server is ready, and leave it running in the background
    #[arg(long)]
    pub fork: bool,

    /// Write the server's process number to this new file, which goes away with it
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Say that the server is ready in JSON, on one line
    #[arg(long)]
    pub json: bool,

    /// How the image is opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

fn tcp_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into());
    }
    text.parse()
        .map_err(|_| "not an address and port like 127.0.0.1:10809 or [::1]:10809".into())
}

/// Serves.
///
/// # Errors
/// If the image cannot be opened or offered, or what clients wrote could not be made durable.
pub fn run(args: &NbdArgs) -> Outcome {
    if !args.open.add.is_empty() {
        return Err(Failure::usage("nbd takes one image, and no -a"));
    }
    let server = std::env::var(SERVER).is_ok_and(|pid| pid == nix::unistd::getppid().to_string());
    if args.fork && !server {
        return start_server();
    }
    serve(args, server)
}

fn start_server() -> Outcome {
    let program = std::env::current_exe().context(|| "cannot find this program".into())?;
    let mut server = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(SERVER, std::process::id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "cannot start the server".into())?;
    let mut said = Vec::new();
    if let Some(stdout) = server.stdout.take() {
        // It closes its stdout once it has said where it listens.
        for line in BufReader::new(stdout).lines() {
            said.push(line.context(|| "cannot hear from the server".into())?);
        }
    }
    if !said.is_empty() {
        let mut stdout = std::io::stdout().lock();
        for line in said {
            writeln!(stdout, "{line}")?;
        }
        return Ok(Exit::Done);
    }
    match server.wait()?.code() {
        Some(2) => Ok(Exit::Usage),
        // It has said why.
        Some(_) => Ok(Exit::Failed),
        None => Err(Failure::new("the server was killed")),
    }
}

/// The image, and what of it is offered.
fn open(args: &NbdArgs) -> Outcome<(Arc<dyn Image>, BlockDevice)> {
    let mut options = args.open.guest_options()?.image;
    options.write = args.rw;
    options.force = args.force;
    let image = open_path(&args.image, &options)?;
    check_unlocked(&image)?;
    for warning in &image.info().warnings {
        complain(&format!("{}: {warning}", shown(&args.image)));
    }
    let device = match &args.open.snapshot {
        None => image.device(),
        Some(wanted) => {
            let index = target::find_snapshot(&image, wanted)?;
            image.open_snapshot(index)?
        }
    };
    let device = if args.rw {
        device
    } else {
        device.into_read_only()
    };
    Ok((image, device))
}

fn serve(args: &NbdArgs, server: bool) -> Outcome {
    // Before any thread starts, so that it holds for all of them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Stop::new()?;
    let ask = stop.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.wait().is_ok() {
                ask.ask();
            }
        })?;

    let (image, device) = open(args)?;
    if server {
        // No terminal's Ctrl-C or hang-up from here on; until now a passphrase could be typed.
        let _ = nix::unistd::setsid();
    }
    let name = args.name.as_encoded_bytes();
    let export = Export::new(&device, name, &description(&image))?;
    let mut listeners = Vec::new();
    if let Some(path) = &args.unix {
        listeners.push(Listener::unix(path)?);
    }
    if let Some(address) = args.tcp {
        if !address.ip().is_loopback() {
            complain(&format!(
                "whoever reaches {address} may {} this image",
                if args.rw { "change" } else { "read" }
            ));
        }
        listeners.push(Listener::tcp(address)?);
    }
    let serving = Server {
        listeners,
        export: Arc::new(export),
        once: args.once,
    };
    let pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    announce(args, &serving)?;
    if server {
        // The socket and the file of the process number are removed by their names at the end.
        let_go_of_terminal(None)?;
    }
    let served = serving.run(&stop);

    // All requests are done. What was written is made durable, whatever else went wrong, before
    // the socket goes away.
    let closed = if args.rw {
        close(&image, &device)
    } else {
        Ok(())
    };
    drop(pid_file);
    drop(serving);
    closed.context(|| shown(&args.image))?;
    served?;
    Ok(Exit::Done)
}

fn close(image: &Arc<dyn Image>, device: &BlockDevice) -> Outcome<()> {
    device.flush()?;
    if let Some(writer) = image.writer() {
        writer.close()?;
    }
    Ok(())
}

fn description(image: &Arc<dyn Image>) -> String {
    let info = image.info();
    let name = info.filename.file_name().unwrap_or_default();
    format!("{} ({})", shown(Path::new(name)), info.format)
}

fn announce(args: &NbdArgs, serving: &Server) -> Outcome<()> {
    let mut uris = Vec::new();
    for listener in &serving.listeners {
        uris.push(listener.uri(serving.export.name())?);
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let line = json!({
            "uri": uris.first(),
            "uris": uris,
            "pid": std::process::id(),
            "size": serving.export.device().len(),
            "read-only": serving.export.device().read_only(),
        });
        writeln!(stdout, "{line}")?;
    } else {
        for uri in uris {
            writeln!(stdout, "{uri}")?;
        }
    }
    stdout.flush()?;
    Ok(())
}

/// The file with the server's process number.
struct PidFile {
    path: PathBuf,
    file: File,
}

/// A file with a process number is no longer than this, in bytes.
const PID_FILE_BYTES: usize = 16;

impl PidFile {
    /// Makes it; takes the place only of a file that a server left which is not there any more.
    fn write(path: &Path) -> Outcome<Self> {
        let new = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(path)
        };
        let file = match new() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !is_left_over(path) {
                    return Err(Failure::new(format!("{} exists", shown(path))).with_hint(
                        "--pid-file takes the place of nothing but the file of a server that is gone",
                    ));
                }
                std::fs::remove_file(path).context(|| shown(path))?;
                new()
            }
            made => made,
        };
        let file = file.context(|| shown(path))?;
        let made = Self {
            path: std::path::absolute(path)?,
            file,
        };
        writeln!(&made.file, "{}", std::process::id()).context(|| shown(path))?;
        Ok(made)
    }
}

/// Whether `path` is a regular file with the number of a process that is not there, and nothing
/// else.
fn is_left_over(path: &Path) -> bool {
    pid_in(path).is_some_and(|(_, pid)| {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, None) == Err(nix::errno::Errno::ESRCH)
    })
}

/// The process number that is all there is in a regular file, and what is known about the file.
fn pid_in(path: &Path) -> Option<(Metadata, i32)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > PID_FILE_BYTES as u64 {
        return None;
    }
    let mut text = String::new();
    file.take(PID_FILE_BYTES as u64)
        .read_to_string(&mut text)
        .ok()?;
    let digits = text.strip_suffix('\n').unwrap_or(&text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let pid: i32 = digits.parse().ok()?;
    (pid > 0).then_some((metadata, pid))
}

impl Drop for PidFile {
    /// Removes it, if it is still the one that was made.
    fn drop(&mut self) {
        let Ok(ours) = self.file.metadata() else {
            return;
        };
        let still = pid_in(&self.path).is_some_and(|(there, pid)| {
            (there.dev(), there.ino()) == (ours.dev(), ours.ino())
                && u32::try_from(pid).is_ok_and(|pid| pid == std::process::id())
        });
        if still {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
