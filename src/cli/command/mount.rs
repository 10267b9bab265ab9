//! `guestlens mount`: the guest as files, through FUSE.
//!
//! Without `--foreground` the program starts itself again, as the server, in a session of its own,
//! and waits. The server opens the images (so that their locks belong to it), mounts, and says
//! `ready` on its standard output; until then its messages go to the user's stderr, and its exit
//! status is that of the command.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

use crate::cli::args::{LogArgs, OpenArgs};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Failure, Outcome};
use crate::cli::session::Session;
use crate::fuse::mounts::{self, MountEntry};
use crate::fuse::options::MountOptions;
use crate::fuse::session;
use crate::fuse::state::StateFile;
use crate::tree::layout::Layout;
use crate::tree::symlink::Symlinks;
use crate::tree::{Tree, TreeOptions};

/// Set for the server to the process number of the command that started it.
const SERVER: &str = "GUESTLENS_MOUNT_SERVER_OF";
const READY: &str = "ready";

/// How long files that are in use keep a server alive that was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// Arguments of `mount`.
#[derive(Args, Debug)]
pub struct MountArgs {
    /// Images and, last, the directory to mount on
    #[arg(value_name = "IMAGE|MOUNTPOINT", required = true)]
    pub paths: Vec<PathBuf>,

    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,

    /// Let other users in, with the guest's permissions enforced (ordinary users need
    /// user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    pub allow_other: bool,

    /// What is done with the targets of symbolic links
    #[arg(long, value_enum, value_name = "HOW", default_value_t = SymlinksArg::Confine)]
    pub symlinks: SymlinksArg,

    /// Do not run programs from the mount
    #[arg(long)]
    pub noexec: bool,

    /// Append the server's messages to this file, once it is in the background
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What is done with the targets of symbolic links.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SymlinksArg {
    /// Rewrite them so that they stay inside the guest's tree
    Confine,
    /// Show the guest's bytes; absolute links then lead to this host's files
    Raw,
}

/// Mounts.
///
/// # Errors
/// If the guest cannot be opened or mounted.
pub fn run(args: &MountArgs, log: &LogArgs) -> Outcome {
    let _ = log;
    let Some((point, images)) = args.paths.split_last() else {
        return Err(Failure::usage("no mount point given"));
    };
    if images.is_empty() && args.open.add.is_empty() {
        return Err(Failure::usage(
            "mount takes at least an image and a mount point",
        ));
    }
    let server = is_server();
    if args.foreground || server {
        serve(args, images, point, server)
    } else {
        start_server(images, point)
    }
}

/// Whether this process was started by [`start_server`].
fn is_server() -> bool {
    std::env::var(SERVER).is_ok_and(|pid| pid == nix::unistd::getppid().to_string())
}

/// Bytes at the start of an image that opening it looks at.
const HEAD_BYTES: i64 = 64 << 10;

/// Has the host read (a part of) a regular file into its page cache, without waiting for it.
fn read_soon(path: &Path, len: i64) {
    let is_file = std::fs::metadata(path).is_ok_and(|m| m.is_file());
    if is_file && let Ok(file) = File::open(path) {
        let _ = posix_fadvise(&file, 0, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

fn start_server(images: &[PathBuf], point: &Path) -> Outcome {
    // After a cold start most of the time goes into reading this program, page by page where it
    // is touched; read at once it takes a third.
    read_soon(Path::new("/proc/self/exe"), 0);
    let program = std::env::current_exe().context(|| "cannot find this program".into())?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut server = Command::new(program)
        .args(arguments)
        .env(SERVER, std::process::id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "cannot start the server".into())?;
    // While the server starts there is nothing else to do here.
    for image in images {
        read_soon(image, HEAD_BYTES);
    }
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .context(|| "cannot hear from the server".into())?;
    }
    if line.trim_end() == READY {
        // The first answer of the mount itself.
        std::fs::metadata(point).context(|| mounts::shown(point))?;
        return Ok(Exit::Done);
    }
    let status = server.wait()?;
    match status.code() {
        Some(2) => Ok(Exit::Usage),
        // It has said why.
        Some(_) => Ok(Exit::Failed),
        None => Err(Failure::new(format!("the server ended: {status}"))),
    }
}

fn serve(args: &MountArgs, images: &[PathBuf], point: &Path, server: bool) -> Outcome {
    // Before any thread starts, so that it holds for all of them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;

    let log = args.log_file.as_deref().map(open_log).transpose()?;
    let opened = Session::open(&args.open, &args.open.all_images(images)?)?;
    if server {
        // Whoever had to be asked for a passphrase was. No terminal's Ctrl-C or hang-up from here
        // on.
        let _ = nix::unistd::setsid();
    }
    let guest = Arc::new(opened.guest);
    let tree = Tree::new(TreeOptions {
        symlinks: match args.symlinks {
            SymlinksArg::Confine => Symlinks::Confine,
            SymlinksArg::Raw => Symlinks::Raw,
        },
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    });
    // Before it is mounted, and before this process changes its directory.
    let shown_at = std::fs::canonicalize(point).context(|| mounts::shown(point))?;
    let layout = Layout {
        options: opened.options,
        roots: super::mount_contents::roots,
        meta: Arc::new(move |guest, roots, snapshot| {
            super::mount_contents::meta(guest, roots, snapshot, &shown_at)
        }),
    };
    layout.show(&tree, &guest)?;
    drop(guest);

    let options = MountOptions {
        allow_other: args.allow_other,
        no_exec: args.noexec,
    };
    let mounted = session::mount_tree(Arc::new(tree), point, options)?;
    let entry = mounted.entry().clone();
    // From here on there are answers: the mount may cover places this process needs itself.
    let serving = std::thread::Builder::new()
        .name("serve".into())
        .spawn(move || mounted.serve())?;
    let state = match StateFile::write(&entry.device, &entry.point) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::warn!("umount will not wait for this process: no state file: {error}");
            None
        }
    };
    let state = Arc::new(Mutex::new(state));
    detach_on_signal(signals, entry.clone(), Arc::clone(&state))?;
    if server && let Err(error) = report_ready(log) {
        session::detach(&entry);
        return Err(error);
    }
    let ended = serving.join();
    // Gone by umount, or by a signal. The record goes last: with it, this process is known.
    drop(state.lock().take());
    let ended = ended.map_err(|_| Failure::new("internal error in the server"))?;
    ended.context(|| "the kernel's FUSE device".into())?;
    Ok(Exit::Done)
}

fn open_log(path: &Path) -> Outcome<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .context(|| mounts::shown(path))
}

/// Tells the command that started this server, and lets go of it.
fn report_ready(log: Option<File>) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    session::let_go_of_terminal(log)?;
    // No directory of the host is kept busy.
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Ends the mount at SIGTERM, SIGINT and SIGHUP: takes it away even if it is in use, waits a moment
/// for those who use it, and ends the process.
fn detach_on_signal(
    signals: SigSet,
    entry: MountEntry,
    state: Arc<Mutex<Option<StateFile>>>,
) -> Outcome<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.wait().is_ok() {
                session::detach(&entry);
                std::thread::sleep(GRACE);
                // Still here: files are open. They get errors from now on.
                drop(state.lock().take());
                std::process::exit(0);
            }
        })?;
    Ok(())
}
