//! What a partition table scheme yields.

use serde::Serialize;

use crate::block::BlockDevice;
use crate::ondisk::uuid::Uuid;

/// What a look at a device found.
#[derive(Debug)]
pub enum Probe<T> {
    /// Something else, or nothing.
    NotMine,
    /// It is ours, and sound.
    Mine(T),
    /// It is ours and usable, but damaged; the text says how.
    Damaged(T, String),
}

/// The scheme of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// DOS partition table, with logical partitions.
    Mbr,
}

impl TableKind {
    /// Every scheme that [`find_table`] knows.
    pub const ALL: [Self; 2] = [Self::Gpt, Self::Mbr];

    /// Its name: `gpt`, `mbr`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        }
    }
}

/// A disk's partition table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The scheme.
    pub kind: TableKind,
    /// Disk identifier: the GPT disk GUID, or the MBR signature as 8 hexadecimal digits.
    pub id: String,
    /// Sector size the table is written in, in bytes.
    pub sector_size: u32,
    /// Partitions in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A partition table and what is wrong with it.
#[derive(Clone, Debug)]
pub struct FoundTable {
    /// The table; of a damaged one, what could be had.
    pub table: Table,
    /// What is wrong, each in one printable line.
    pub problems: Vec<String>,
}

pub use super::table::find_table;

/// One partition.
#[derive(Clone, Debug, Serialize)]
pub struct Partition {
    /// Number as Linux counts: 1 to 4 and logical ones from 5 in an MBR, the entry's place in GPT.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// GPT type GUID, or the MBR type as two hexadecimal digits.
    #[serde(rename = "type")]
    pub type_id: String,
    /// PARTUUID as udev writes it: the GPT partition GUID, or `SIGNATURE-NN`; empty if the disk
    /// has no MBR signature.
    pub partuuid: String,
    /// GPT partition name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// MBR active flag, or GPT attribute bit 2.
    pub bootable: bool,
    /// An MBR extended partition: a container of logical ones, not a volume.
    pub extended: bool,
}

/// GPT type of an EFI system partition.
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xC12A7328_F81F_11D2_BA4B_00A0C93EC93B);

impl Partition {
    /// The partition as a device, cut off where the disk ends.
    ///
    /// # Errors
    /// If nothing of it lies on the disk.
    pub fn device(&self, disk: &BlockDevice) -> crate::block::Result<BlockDevice> {
        let end = self.start.saturating_add(self.len).min(disk.len());
        disk.slice(self.start..end)
    }
}
