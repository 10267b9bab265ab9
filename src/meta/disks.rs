//! Contents of `meta/disks` and `disks.json`: disks, partitions and what they hold.
//!
//! `disks` is a table: a line for each disk, followed by its volumes. Columns are separated by at
//! least two blanks and `-` stands for nothing; sizes are in bytes. Text of the guest's choosing is
//! escaped, a blank in it as `\x20`.

use serde_json::{Value, json};

use crate::fs::{FsInfo, FsUsage};
use crate::guest::{Content, Guest, Volume};
use crate::inspect::System;
use crate::ondisk::text::printable;

const HEADINGS: [&str; 8] = [
    "NAME", "SIZE", "KIND", "TYPE", "USED", "MOUNT", "UUID", "LABEL",
];

/// `meta/disks`.
pub fn text(guest: &Guest, systems: &[System]) -> String {
    let mut rows: Vec<[String; 8]> = vec![HEADINGS.map(str::to_owned)];
    for (index, disk) in guest.disks().iter().enumerate() {
        let kind = disk.table.as_ref().map(|t| match t.kind {
            crate::volumes::TableKind::Gpt => "gpt",
            crate::volumes::TableKind::Mbr => "mbr",
        });
        rows.push([
            disk.name.clone(),
            disk.device.len().to_string(),
            "disk".into(),
            kind.unwrap_or_default().into(),
            String::new(),
            String::new(),
            disk.table
                .as_ref()
                .map(|t| t.id.clone())
                .unwrap_or_default(),
            String::new(),
        ]);
        for (at, volume) in volumes(guest, index) {
            let held = Held::of(volume);
            rows.push([
                volume.name.clone(),
                volume.device.len().to_string(),
                match volume.partition {
                    Some(_) => "partition".into(),
                    None => "volume".into(),
                },
                held.fs_type,
                held.usage
                    .map(used)
                    .map_or(String::new(), |u| u.to_string()),
                mount_points(at, &volume.name, systems).join(","),
                held.uuid.unwrap_or_default(),
                held.label.unwrap_or_default(),
            ]);
        }
    }
    table(&rows)
}

/// `meta/disks.json`: `{"disks": [{…, "volumes": [{…}]}]}`.
pub fn json(guest: &Guest, systems: &[System]) -> Value {
    let disks = guest.disks().iter().enumerate().map(|(index, disk)| {
        let volumes: Vec<Value> = volumes(guest, index)
            .map(|(at, volume)| volume_json(at, volume, systems))
            .collect();
        json!({
            "name": disk.name,
            "bytes": disk.device.len(),
            "format": disk.image.info().format,
            "table": disk.table.as_ref().map(|t| json!({
                "kind": t.kind,
                "id": t.id,
                "sector_size": t.sector_size,
                "partitions": t.partitions,
            })),
            "volumes": volumes,
        })
    });
    json!({ "disks": disks.collect::<Vec<_>>() })
}

fn volume_json(at: usize, volume: &Volume, systems: &[System]) -> Value {
    let held = Held::of(volume);
    let info: Option<&FsInfo> = match &volume.content {
        Content::FileSystem(fs) => Some(fs.info()),
        _ => None,
    };
    json!({
        "name": volume.name,
        "bytes": volume.device.len(),
        "content": held.content,
        "type": (!held.fs_type.is_empty()).then_some(held.fs_type),
        "uuid": held.uuid,
        "label": held.label,
        "mount_points": mount_points(at, &volume.name, systems),
        "usage": held.usage,
        "filesystem": info,
        "reason": held.reason,
        "partition": volume.partition,
    })
}

fn volumes(guest: &Guest, disk: usize) -> impl Iterator<Item = (usize, &Volume)> {
    let all = guest.volumes().iter().enumerate();
    all.filter(move |(_, v)| v.disk == disk)
}

/// What is in a volume, whichever way it is known.
struct Held {
    content: &'static str,
    fs_type: String,
    uuid: Option<String>,
    label: Option<String>,
    usage: Option<FsUsage>,
    reason: Option<String>,
}

impl Held {
    fn of(volume: &Volume) -> Self {
        let nothing = Self {
            content: "unknown",
            fs_type: String::new(),
            uuid: None,
            label: None,
            usage: None,
            reason: None,
        };
        match &volume.content {
            Content::FileSystem(fs) => {
                let info = fs.info();
                Self {
                    content: "filesystem",
                    fs_type: info.fs_type.clone(),
                    uuid: info.uuid.clone(),
                    label: info.label.clone(),
                    usage: fs.usage().ok(),
                    reason: None,
                }
            }
            Content::Recognised(signature) => Self {
                content: "recognised",
                fs_type: signature.kind.into(),
                uuid: signature.uuid.clone(),
                label: signature.label.clone(),
                ..nothing
            },
            Content::Failed { fs_type, reason } => Self {
                content: "failed",
                fs_type: (*fs_type).into(),
                reason: Some(reason.clone()),
                ..nothing
            },
            Content::Unknown => nothing,
        }
    }
}

/// Bytes in use.
fn used(usage: FsUsage) -> u64 {
    usage
        .blocks
        .saturating_sub(usage.blocks_free)
        .saturating_mul(u64::from(usage.block_size))
}

/// Where a volume is in the guests' trees, each place once.
fn mount_points(volume: usize, name: &str, systems: &[System]) -> Vec<String> {
    let mut points: Vec<String> = Vec::new();
    for system in systems {
        for mount in system.view.mounts().iter().filter(|m| m.volume == volume) {
            let path = printable(&mount.path);
            if !points.contains(&path) {
                points.push(path);
            }
        }
        // Swap has no place in the tree.
        for entry in &system.fstab {
            let here = entry.volume.as_deref() == Some(name);
            if entry.fs_type == "swap" && here {
                points.push("[SWAP]".into());
            }
        }
    }
    points
}

fn table(rows: &[[String; 8]]) -> String {
    let cell = |text: &String| match text.as_str() {
        "" => "-".to_owned(),
        text => printable(text.as_bytes()).replace(' ', "\\x20"),
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(cell).collect()).collect();
    let mut widths = [0usize; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Sizes to the right.
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match column {
                1 | 4 => line.extend([pad.as_str(), cell.as_str()]),
                _ => line.extend([cell.as_str(), pad.as_str()]),
            }
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
