//! Images → disks → partitions → filesystems.
//!
//! Nothing here fails because one part is odd: a volume that cannot be opened is still listed,
//! with the reason in [`Guest::problems`].

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::block::BlockDevice;
use crate::formats::host_file;
use crate::formats::{Image, OpenOptions, SnapshotInfo, open_path};
use crate::fs::{self, FileSystem, FsOptions};
use crate::ondisk::text::printable;
use crate::volumes::{FoundTable, Partition, Probe, Table, TableKind, find_table};

use super::error::{GuestError, Problem, Result};

/// One image as the user names it.
#[derive(Clone, Debug)]
pub struct ImageArgument {
    /// Path on the host.
    pub path: PathBuf,
    /// Format, if the user states it.
    pub format: Option<String>,
}

/// How a guest is to be opened.
#[derive(Clone, Default)]
pub struct GuestOptions {
    /// How each image is opened (its `format` comes from the [`ImageArgument`]).
    pub image: OpenOptions,
    /// How each filesystem is opened.
    pub fs: FsOptions,
    /// Sector size of the disks in bytes, if the user states it.
    pub sector_size: Option<u32>,
}

/// One disk of the guest.
pub struct Disk {
    /// `sda`, `sdb`, … in the order the images were given.
    pub name: String,
    /// The image behind it.
    pub image: Arc<dyn Image>,
    /// The disk's content (of the snapshot, if the guest is a snapshot's view).
    pub device: BlockDevice,
    /// Its partition table, if it has one.
    pub table: Option<Table>,
}

/// A whole disk without a table, or a partition.
pub struct Volume {
    /// `sda1`, or `sda` for a disk without partitions.
    pub name: String,
    /// Index in [`Guest::disks`].
    pub disk: usize,
    /// The partition's bytes.
    pub device: BlockDevice,
    /// The partition, if it is one.
    pub partition: Option<Partition>,
    /// What is in it.
    pub content: Content,
}

/// What a volume holds.
#[derive(Clone)]
pub enum Content {
    /// A filesystem that is open.
    FileSystem(Arc<dyn FileSystem>),
    /// A known type without a driver here (or one that is no filesystem: swap, a PV, LUKS).
    Recognised(crate::fs::signature::Signature),
    /// A filesystem that could not be opened, and why.
    Failed {
        /// The driver that knows the type.
        fs_type: &'static str,
        /// Why, in one printable line.
        reason: String,
    },
    /// Nothing known.
    Unknown,
}

/// An opened set of images.
pub struct Guest {
    disks: Vec<Disk>,
    volumes: Vec<Volume>,
    problems: Vec<Problem>,
}

impl Guest {
    /// Opens `images` as the disks of one guest, in order.
    ///
    /// # Errors
    /// If an image cannot be opened. What is wrong inside an image ends up in
    /// [`Guest::problems`].
    pub fn open(images: &[ImageArgument], options: &GuestOptions) -> Result<Self> {
        if images.is_empty() || images.len() > MAX_IMAGES {
            return Err(GuestError::Arguments(format!(
                "a guest has between 1 and {MAX_IMAGES} images, not {}",
                images.len()
            )));
        }
        let mut opened = Vec::with_capacity(images.len());
        for argument in images {
            let options = OpenOptions {
                format: argument.format.clone(),
                ..options.image.clone()
            };
            let image =
                open_path(&argument.path, &options).map_err(|source| GuestError::Image {
                    path: host_file::shown(&argument.path),
                    source,
                })?;
            let device = image.device();
            opened.push((image, device));
        }
        Ok(Self::assemble(opened, options, Vec::new()))
    }

    /// Looks at what is on the disks. Never fails: what cannot be read is a problem.
    fn assemble(
        opened: Vec<(Arc<dyn Image>, BlockDevice)>,
        options: &GuestOptions,
        problems: Vec<Problem>,
    ) -> Self {
        let mut guest = Self {
            disks: Vec::new(),
            volumes: Vec::new(),
            problems,
        };
        for (index, (image, device)) in opened.into_iter().enumerate() {
            let name = disk_name(index);
            for warning in &image.info().warnings {
                guest.problems.push(Problem::new(&name, warning));
            }
            let mut seen = HashSet::new();
            for snapshot in &image.info().snapshots {
                if !seen.insert(snapshot.id.as_str()) {
                    guest.problems.push(Problem::new(
                        &name,
                        format!(
                            "snapshot {:?} cannot be looked at: an earlier one has its id, {:?}",
                            snapshot.name, snapshot.id
                        ),
                    ));
                }
            }
            let table = guest.add_partitions(&name, index, &device, options);
            if table.is_none() {
                guest.add_volume(name.clone(), index, device.clone(), None, options);
            }
            guest.disks.push(Disk {
                name,
                image,
                device,
                table,
            });
        }
        guest
    }

    /// Adds what the disk's table describes; `None` if it has no table.
    fn add_partitions(
        &mut self,
        name: &str,
        disk: usize,
        device: &BlockDevice,
        options: &GuestOptions,
    ) -> Option<Table> {
        let before = (self.volumes.len(), self.problems.len());
        let table = self.partitions(name, device, options)?;
        self.add_all(name, disk, device, &table, options);
        // An MBR does not say what sectors it counts in.
        let guessed = table.kind == TableKind::Mbr && options.sector_size.is_none();
        let known = |volumes: &[Volume]| {
            let mut contents = volumes.iter().map(|v| &v.content);
            contents.any(|content| !matches!(content, Content::Unknown))
        };
        let added = self.volumes.get(before.0..).unwrap_or_default();
        if !guessed || known(added) {
            return Some(table);
        }
        let Some(large) = table_in_large_sectors(device) else {
            return Some(table);
        };
        let mut other = Self {
            disks: Vec::new(),
            volumes: Vec::new(),
            problems: Vec::new(),
        };
        other.add_all(name, disk, device, &large.table, options);
        if !known(&other.volumes) {
            return Some(table);
        }
        self.volumes.truncate(before.0);
        self.problems.truncate(before.1);
        self.problems.push(Problem::new(
            name,
            format!(
                "the partition table is taken to count in sectors of {LARGE_SECTOR} bytes, since \
                 in sectors of {} bytes it leads to nothing known",
                table.sector_size
            ),
        ));
        let odd = large.problems.into_iter().map(|p| Problem::new(name, p));
        self.problems.extend(odd);
        self.volumes.append(&mut other.volumes);
        self.problems.append(&mut other.problems);
        Some(large.table)
    }

    fn add_all(
        &mut self,
        name: &str,
        disk: usize,
        device: &BlockDevice,
        table: &Table,
        options: &GuestOptions,
    ) {
        for partition in table.partitions.iter().filter(|p| !p.extended) {
            self.add_partition(name, disk, device, partition, options);
        }
    }

    fn partitions(
        &mut self,
        name: &str,
        device: &BlockDevice,
        options: &GuestOptions,
    ) -> Option<Table> {
        match find_table(device, options.sector_size) {
            Ok(Some(found)) => {
                for problem in found.problems {
                    self.problems.push(Problem::new(name, problem));
                }
                Some(found.table)
            }
            Ok(None) => None,
            Err(error) => {
                self.problems.push(Problem::new(name, chain(&error)));
                None
            }
        }
    }

    fn add_partition(
        &mut self,
        disk_name: &str,
        disk: usize,
        device: &BlockDevice,
        partition: &Partition,
        options: &GuestOptions,
    ) {
        let name = format!("{disk_name}{}", partition.number);
        match partition.device(device) {
            Ok(part) => self.add_volume(name, disk, part, Some(partition.clone()), options),
            Err(error) => self.problems.push(Problem::new(name, chain(&error))),
        }
    }

    fn add_volume(
        &mut self,
        name: String,
        disk: usize,
        device: BlockDevice,
        partition: Option<Partition>,
        options: &GuestOptions,
    ) {
        let content = self.look_into(&name, &device, options);
        self.volumes.push(Volume {
            name,
            disk,
            device,
            partition,
            content,
        });
    }

    /// Containers are asked first: what is left of a filesystem behind the header of one is old.
    fn look_into(&mut self, name: &str, device: &BlockDevice, options: &GuestOptions) -> Content {
        match fs::signature::recognise_container(device) {
            Ok(Some(container)) => return Content::Recognised(container),
            Ok(None) => {}
            Err(error) => {
                self.problems.push(Problem::new(name, chain(&error)));
                return Content::Unknown;
            }
        }
        if let Some(member) = fs::signature::recognise_array_member(device) {
            // The member of a mirror starts like the array, but only the array is known to be whole.
            let behind = fs::api::drivers()
                .iter()
                .find(|d| matches!(d.probe(device), Ok(Probe::Mine(()) | Probe::Damaged(..))));
            if let Some(driver) = behind {
                self.problems.push(Problem::new(
                    name,
                    format!(
                        "a member of a RAID array (its superblock is at the end); the {} \
                         filesystem at its start is not shown",
                        driver.name()
                    ),
                ));
            }
            return Content::Recognised(member);
        }
        for driver in fs::api::drivers() {
            let damage = match driver.probe(device) {
                Ok(Probe::NotMine) => continue,
                Ok(Probe::Mine(())) => None,
                Ok(Probe::Damaged((), damage)) => Some(damage),
                Err(error) => {
                    self.problems.push(Problem::new(name, chain(&error)));
                    continue;
                }
            };
            if let Some(damage) = damage {
                self.problems.push(Problem::new(name, damage));
            }
            return match driver.open(device, &options.fs) {
                Ok(fs) => {
                    for notice in &fs.info().notices {
                        self.problems.push(Problem::new(name, notice));
                    }
                    Content::FileSystem(fs)
                }
                Err(error) => {
                    let reason = chain(&error);
                    self.problems.push(Problem::new(name, &reason));
                    Content::Failed {
                        fs_type: driver.name(),
                        reason,
                    }
                }
            };
        }
        match fs::signature::recognise(device) {
            Ok(Some(signature)) => Content::Recognised(signature),
            Ok(None) => Content::Unknown,
            Err(error) => {
                self.problems.push(Problem::new(name, chain(&error)));
                Content::Unknown
            }
        }
    }

    /// The disks, in the order the images were given.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The volumes, disk by disk, by partition number.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// What is wrong or incomplete.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Ids of all internal snapshots of all images, each once, in the order of the tables.
    pub fn snapshot_ids(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        self.disks
            .iter()
            .flat_map(|d| &d.image.info().snapshots)
            .filter(|snapshot| seen.insert(snapshot.id.as_str()))
            .map(|snapshot| snapshot.id.clone())
            .collect()
    }

    /// The same guest as it was in an internal snapshot, by id or else by name. Images that do
    /// not have it keep their present content, which is reported as a problem.
    ///
    /// # Errors
    /// [`GuestError::NoSnapshot`] if no image has it; [`GuestError::Image`] if it cannot be
    /// opened.
    pub fn open_snapshot(&self, id: &str, options: &GuestOptions) -> Result<Self> {
        // One choice for all disks: a snapshot of another disk must not be shown beside this one
        // because its name looks like the id.
        let has_id = |s: &SnapshotInfo| s.id == id;
        let has_name = |s: &SnapshotInfo| s.name == id;
        let any = |chosen: &dyn Fn(&SnapshotInfo) -> bool| {
            let mut all = self.disks.iter().flat_map(|d| &d.image.info().snapshots);
            all.any(chosen)
        };
        let chosen: &dyn Fn(&SnapshotInfo) -> bool = if any(&has_id) {
            &has_id
        } else if any(&has_name) {
            &has_name
        } else {
            return Err(GuestError::NoSnapshot(printable(id.as_bytes())));
        };
        let mut opened = Vec::with_capacity(self.disks.len());
        let mut problems = Vec::new();
        for disk in &self.disks {
            let index = disk.image.info().snapshots.iter().position(chosen);
            let device = match index {
                Some(index) => {
                    disk.image
                        .open_snapshot(index)
                        .map_err(|source| GuestError::Image {
                            path: printable(disk.image.info().filename.as_os_str().as_bytes()),
                            source,
                        })?
                }
                None => {
                    problems.push(Problem::new(
                        &disk.name,
                        format!(
                            "has no snapshot {:?}; shown as it is now",
                            printable(id.as_bytes())
                        ),
                    ));
                    disk.image.device()
                }
            };
            opened.push((Arc::clone(&disk.image), device));
        }
        Ok(Self::assemble(opened, options, problems))
    }
}

/// Most images of one guest: `sda` to `sdzz`.
const MAX_IMAGES: usize = 26 + 26 * 26;

/// Sectors of disks with 4 KiB ones, in bytes.
const LARGE_SECTOR: u32 = 4096;

/// The MBR of a disk as it reads in sectors of 4 KiB, if that fits the disk.
fn table_in_large_sectors(device: &BlockDevice) -> Option<FoundTable> {
    let found = find_table(device, Some(LARGE_SECTOR)).ok()??;
    let fits = found
        .table
        .partitions
        .iter()
        .all(|p| p.start.saturating_add(p.len) <= device.len());
    (fits && found.table.kind == TableKind::Mbr).then_some(found)
}

/// `sda` … `sdz`, `sdaa` … `sdzz`, as Linux counts.
fn disk_name(index: usize) -> String {
    let letter = |i: usize| {
        char::from(
            b"abcdefghijklmnopqrstuvwxyz"
                .get(i % 26)
                .copied()
                .unwrap_or(b'?'),
        )
    };
    match index.checked_sub(26) {
        None => format!("sd{}", letter(index)),
        Some(rest) => format!("sd{}{}", letter(rest / 26), letter(rest)),
    }
}

/// An error and what caused it, in one printable line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    printable(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_names_count_as_linux_does() {
        for (index, name) in [
            (0, "sda"),
            (25, "sdz"),
            (26, "sdaa"),
            (51, "sdaz"),
            (52, "sdba"),
            (701, "sdzz"),
        ] {
            assert_eq!(disk_name(index), name);
        }
    }
}
