//! One file per verb: its arguments and what it does.

pub mod capabilities;
pub mod cat;
pub mod check;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod cp;
pub mod create;
pub mod filesystems;
pub mod find;
pub mod generate;
pub mod info;
pub mod inspect;
pub mod ls;
pub mod map;
pub mod mount;
mod mount_contents;
pub mod nbd;
pub mod network;
pub mod rebase;
pub mod resize;
pub mod snapshot;
pub mod stat;
pub mod tar_out;
pub mod umount;
pub mod verify;

use clap::Subcommand;

use super::args::LogArgs;
use super::failure::Outcome;
use super::output::Output;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the guest read-only; returns when the mount answers
    Mount(mount::MountArgs),
    /// Unmount; returns when everything is released
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// List directories
    Ls(ls::LsArgs),
    /// Write files to stdout
    Cat(cat::CatArgs),
    /// Copy files and directories out of the guest
    Cp(cp::CpArgs),
    /// Show owner, mode, times, extended attributes of files
    Stat(stat::StatArgs),
    /// Find files by name and type
    Find(find::FindArgs),
    /// Show images, backing chains, snapshots, partitions
    Info(info::InfoArgs),
    /// Show who the guest is: distribution, version, host name, …
    Inspect(inspect::InspectArgs),
    /// Offer an image to NBD clients
    Nbd(nbd::NbdArgs),
    /// Show the guest's network configuration
    Network(network::NetworkArgs),
    /// List volumes and what they hold
    Filesystems(filesystems::FilesystemsArgs),
    /// Show how full filesystems are
    Df(filesystems::FilesystemsArgs),
    /// Show where a disk or file holds data and where holes
    Map(map::MapArgs),
    /// Check whether an image is consistent; repair it
    Check(check::CheckArgs),
    /// Make a new, empty image
    Create(create::CreateArgs),
    /// Copy the content of an image into a new image
    Convert(convert::ConvertArgs),
    /// Tell whether two images show the same disk
    Compare(compare::CompareArgs),
    /// Tell whether a file from anywhere is safe to be taken as a disk image
    Verify(verify::VerifyArgs),
    /// Make a disk longer or shorter
    Resize(resize::ResizeArgs),
    /// List, take, apply, delete, extract snapshots inside an image
    Snapshot(snapshot::SnapshotArgs),
    /// Give an image another backing file, or none
    Rebase(rebase::RebaseArgs),
    /// Write what an image holds into its backing file
    Commit(commit::CommitArgs),
    /// Show what this build can do
    Capabilities(capabilities::CapabilitiesArgs),
    /// Write a part of the guest as a tar archive
    TarOut(tar_out::TarOutArgs),
    /// Write manual pages or shell completions
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

/// Does what was asked.
///
/// # Errors
/// If it could not be done.
pub fn run(command: Command, log: &LogArgs, out: &mut Output) -> Outcome {
    match command {
        Command::Mount(args) => mount::run(&args, log),
        Command::Umount(args) => umount::run(&args),
        Command::Ls(args) => ls::run(&args, out),
        Command::Cat(args) => cat::run(&args, out),
        Command::Cp(args) => cp::run(&args, log),
        Command::Stat(args) => stat::run(&args, out),
        Command::Find(args) => find::run(&args, out),
        Command::Info(args) => info::run(&args, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Nbd(args) => nbd::run(&args),
        Command::Network(args) => network::run(&args, out),
        Command::Filesystems(args) => filesystems::list(&args, out),
        Command::Df(args) => filesystems::usage(&args, out),
        Command::Map(args) => map::run(&args, out),
        Command::Check(args) => check::run(&args, out),
        Command::Resize(args) => resize::run(&args, out),
        Command::Snapshot(args) => snapshot::run(&args, log, out),
        Command::Rebase(args) => rebase::run(&args, log, out),
        Command::Commit(args) => commit::run(&args, log, out),
        Command::Create(args) => create::run(&args, out),
        Command::Convert(args) => convert::run(&args, log, out),
        Command::Compare(args) => compare::run(&args, log, out),
        Command::Verify(args) => verify::run(&args, out),
        Command::Capabilities(args) => capabilities::run(&args, out),
        Command::TarOut(args) => tar_out::run(&args, out),
        Command::Generate(args) => generate::run(&args, out),
    }
}
