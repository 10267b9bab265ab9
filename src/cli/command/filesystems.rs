//! `guestlens filesystems` and `guestlens df`: what the volumes hold and how full they are.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::args::OpenArgs;
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::cli::session::Session;
use crate::cli::{complain, text};
use crate::fs::FsUsage;
use crate::guest::{Content, Volume};
use crate::ondisk::text::printable;

/// Arguments of `filesystems` and `df`.
#[derive(Args, Debug)]
pub struct FilesystemsArgs {
    /// Images; several are sda, sdb, … of one guest
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// Sizes with a unit instead of exact numbers
    #[arg(short = 'H', long)]
    pub human_readable: bool,

    /// One JSON list
    #[arg(long)]
    pub json: bool,

    /// How the images are opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// One volume as both verbs show it.
struct Row {
    name: String,
    fs_type: String,
    label: String,
    uuid: String,
    size: u64,
    usage: Option<FsUsage>,
    mountpoints: Vec<String>,
    problem: Option<String>,
}

/// Lists all volumes.
///
/// # Errors
/// If an image cannot be opened.
pub fn list(args: &FilesystemsArgs, out: &mut Output) -> Outcome {
    let (session, rows) = rows(args)?;
    if args.json {
        let list: Vec<Value> = rows.iter().map(Row::json).collect();
        out.json(&list)?;
    } else {
        let lines: Vec<Vec<String>> = rows
            .iter()
            .map(|r| {
                vec![
                    r.name.clone(),
                    r.fs_type.clone(),
                    r.label.clone(),
                    r.uuid.clone(),
                    args.amount(r.size),
                    r.usage
                        .map_or_else(|| "-".into(), |u| args.amount(used(&u))),
                    r.mountpoints.join(","),
                ]
            })
            .collect();
        let names = [
            "Name",
            "Type",
            "Label",
            "UUID",
            "Size",
            "Used",
            "Mountpoint",
        ];
        out.table(&names, &["Size", "Used"], &lines)?;
        session.tell_problems();
    }
    Ok(Exit::Done)
}

/// Shows how full the filesystems are.
///
/// # Errors
/// If an image cannot be opened.
pub fn usage(args: &FilesystemsArgs, out: &mut Output) -> Outcome {
    let (_, rows) = rows(args)?;
    let mut exit = Exit::Done;
    for row in &rows {
        if let Some(problem) = &row.problem {
            complain(&format!("{}: {problem}", row.name));
            exit = Exit::Partial;
        }
    }
    let open: Vec<&Row> = rows.iter().filter(|r| r.usage.is_some()).collect();
    if args.json {
        let list: Vec<Value> = open.iter().map(|r| r.json()).collect();
        out.json(&list)?;
        return Ok(exit);
    }
    let lines: Vec<Vec<String>> = open
        .iter()
        .filter_map(|r| {
            let u = r.usage?;
            let (size, used) = (bytes(&u, u.blocks), used(&u));
            let available = bytes(&u, u.blocks_available);
            // As df: of what an ordinary user can use, rounded up.
            let whole = u128::from(used).saturating_add(u128::from(available));
            let percent = u128::from(used).saturating_mul(100).div_ceil(whole.max(1));
            Some(vec![
                r.name.clone(),
                r.fs_type.clone(),
                args.amount(size),
                args.amount(used),
                args.amount(available),
                format!("{percent}%"),
                u.inodes.to_string(),
                u.inodes.saturating_sub(u.inodes_free).to_string(),
                r.mountpoints.join(","),
            ])
        })
        .collect();
    let names = [
        "Name",
        "Type",
        "Size",
        "Used",
        "Available",
        "Use%",
        "Inodes",
        "IUsed",
        "Mountpoint",
    ];
    out.table(
        &names,
        &["Size", "Used", "Available", "Use%", "Inodes", "IUsed"],
        &lines,
    )?;
    Ok(exit)
}

impl FilesystemsArgs {
    fn amount(&self, bytes: u64) -> String {
        if self.human_readable {
            text::size(bytes)
        } else {
            bytes.to_string()
        }
    }
}

fn bytes(usage: &FsUsage, blocks: u64) -> u64 {
    blocks.saturating_mul(u64::from(usage.block_size))
}

fn used(usage: &FsUsage) -> u64 {
    bytes(usage, usage.blocks.saturating_sub(usage.blocks_free))
}

impl Row {
    fn json(&self) -> Value {
        let bytes_of = |pick: fn(&FsUsage) -> u64| self.usage.map(|u| bytes(&u, pick(&u)));
        json!({
            "name": self.name,
            "type": self.fs_type,
            "label": self.label,
            "uuid": self.uuid,
            "size": self.size,
            "usage": self.usage,
            "size_bytes": bytes_of(|u| u.blocks),
            "used_bytes": self.usage.map(|u| used(&u)),
            "available_bytes": bytes_of(|u| u.blocks_available),
            "mountpoints": self.mountpoints,
            "problem": self.problem,
        })
    }
}

fn rows(args: &FilesystemsArgs) -> Outcome<(Session, Vec<Row>)> {
    let session = Session::open(&args.open, &args.open.all_images(&args.images)?)?;
    let rows = session
        .guest
        .volumes()
        .iter()
        .enumerate()
        .map(|(index, volume)| {
            let mut row = row(volume);
            for system in session.systems() {
                for mount in system.view.mounts().iter().filter(|m| m.volume == index) {
                    row.mountpoints.push(printable(&mount.path));
                }
            }
            row
        })
        .collect();
    Ok((session, rows))
}

fn row(volume: &Volume) -> Row {
    let mut row = Row {
        name: volume.name.clone(),
        fs_type: "unknown".into(),
        label: String::new(),
        uuid: String::new(),
        size: volume.device.len(),
        usage: None,
        mountpoints: Vec::new(),
        problem: None,
    };
    let text = |s: &Option<String>| printable(s.as_deref().unwrap_or_default().as_bytes());
    match &volume.content {
        Content::FileSystem(fs) => {
            let info = fs.info();
            row.fs_type.clone_from(&info.fs_type);
            row.label = text(&info.label);
            row.uuid = text(&info.uuid);
            match fs.usage() {
                Ok(usage) => row.usage = Some(usage),
                Err(error) => row.problem = Some(error.to_string()),
            }
        }
        Content::Recognised(signature) => {
            row.fs_type = signature.kind.into();
            row.label = text(&signature.label);
            row.uuid = text(&signature.uuid);
        }
        Content::Failed { fs_type, reason } => {
            row.fs_type = (*fs_type).into();
            row.problem = Some(reason.clone());
        }
        Content::Unknown => {}
    }
    row
}
