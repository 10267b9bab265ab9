//! Feature bits of the superblock and what a reader may do with each.
//!
//! Bits: Linux `fs/ext4/ext4.h`; names as `dumpe2fs` writes them.

macro_rules! features {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $bit:literal, $text:literal;)* }) => {
        bitflags::bitflags! {
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct $type: u32 {
                $(#[doc = concat!("`", $text, "`")] const $name = $bit;)*
                const _ = !0;
            }
        }
        impl $type {
            const NAMES: &'static [($type, &'static str)] = &[$(($type::$name, $text)),*];

            /// Names of the bits that are set; an unknown one as `prefix_0x…`.
            pub fn names(self, prefix: &str) -> Vec<String> {
                let mut names: Vec<String> = Self::NAMES
                    .iter()
                    .filter(|(bit, _)| self.contains(*bit))
                    .map(|(_, name)| (*name).to_owned())
                    .collect();
                let known = Self::NAMES.iter().fold(0, |all, (bit, _)| all | bit.bits());
                for shift in 0..32u32 {
                    let bit = 1u32.checked_shl(shift).unwrap_or(0);
                    if self.bits() & bit & !known != 0 {
                        names.push(format!("{prefix}_{bit:#x}"));
                    }
                }
                names
            }
        }
    };
}

features! {
    /// Compatible: a reader or writer that does not know them may go on.
    Compat {
        DIR_PREALLOC = 0x1, "dir_prealloc";
        IMAGIC_INODES = 0x2, "imagic_inodes";
        HAS_JOURNAL = 0x4, "has_journal";
        EXT_ATTR = 0x8, "ext_attr";
        RESIZE_INODE = 0x10, "resize_inode";
        DIR_INDEX = 0x20, "dir_index";
        LAZY_BG = 0x40, "lazy_bg";
        SNAPSHOT_BITMAP = 0x100, "snapshot_bitmap";
        SPARSE_SUPER2 = 0x200, "sparse_super2";
        FAST_COMMIT = 0x400, "fast_commit";
        STABLE_INODES = 0x800, "stable_inodes";
        ORPHAN_FILE = 0x1000, "orphan_file";
    }
}

features! {
    /// Incompatible: a reader that does not know one must refuse.
    Incompat {
        COMPRESSION = 0x1, "compression";
        FILETYPE = 0x2, "filetype";
        RECOVER = 0x4, "needs_recovery";
        JOURNAL_DEV = 0x8, "journal_dev";
        META_BG = 0x10, "meta_bg";
        EXTENTS = 0x40, "extent";
        BIT64 = 0x80, "64bit";
        MMP = 0x100, "mmp";
        FLEX_BG = 0x200, "flex_bg";
        EA_INODE = 0x400, "ea_inode";
        DIRDATA = 0x1000, "dirdata";
        CSUM_SEED = 0x2000, "metadata_csum_seed";
        LARGEDIR = 0x4000, "large_dir";
        INLINE_DATA = 0x8000, "inline_data";
        ENCRYPT = 0x1_0000, "encrypt";
        CASEFOLD = 0x2_0000, "casefold";
    }
}

features! {
    /// Read-only compatible: a writer that does not know one must refuse.
    RoCompat {
        SPARSE_SUPER = 0x1, "sparse_super";
        LARGE_FILE = 0x2, "large_file";
        BTREE_DIR = 0x4, "btree_dir";
        HUGE_FILE = 0x8, "huge_file";
        GDT_CSUM = 0x10, "uninit_bg";
        DIR_NLINK = 0x20, "dir_nlink";
        EXTRA_ISIZE = 0x40, "extra_isize";
        HAS_SNAPSHOT = 0x80, "has_snapshot";
        QUOTA = 0x100, "quota";
        BIGALLOC = 0x200, "bigalloc";
        METADATA_CSUM = 0x400, "metadata_csum";
        REPLICA = 0x800, "replica";
        READONLY = 0x1000, "read-only";
        PROJECT = 0x2000, "project";
        SHARED_BLOCKS = 0x4000, "shared_blocks";
        VERITY = 0x8000, "verity";
        ORPHAN_PRESENT = 0x1_0000, "orphan_present";
    }
}

impl Incompat {
    /// Bits this reader understands. `compression` never left an experimental patch; its files
    /// cannot be read.
    pub const READABLE: Self = Self::from_bits_retain(
        Self::FILETYPE.bits()
            | Self::RECOVER.bits()
            | Self::META_BG.bits()
            | Self::EXTENTS.bits()
            | Self::BIT64.bits()
            | Self::MMP.bits()
            | Self::FLEX_BG.bits()
            | Self::EA_INODE.bits()
            | Self::DIRDATA.bits()
            | Self::CSUM_SEED.bits()
            | Self::LARGEDIR.bits()
            | Self::INLINE_DATA.bits()
            | Self::ENCRYPT.bits()
            | Self::CASEFOLD.bits(),
    );
}

impl RoCompat {
    /// Bits a writer of this program could keep consistent.
    pub const WRITABLE: Self = Self::from_bits_retain(
        Self::SPARSE_SUPER.bits()
            | Self::LARGE_FILE.bits()
            | Self::HUGE_FILE.bits()
            | Self::GDT_CSUM.bits()
            | Self::DIR_NLINK.bits()
            | Self::EXTRA_ISIZE.bits()
            | Self::METADATA_CSUM.bits()
            | Self::PROJECT.bits()
            | Self::VERITY.bits()
            | Self::ORPHAN_PRESENT.bits(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_named_by_number() {
        let bits = Incompat::from_bits_retain(0x2 | 0x80_0000);
        assert_eq!(bits.names("incompat"), ["filetype", "incompat_0x800000"]);
    }
}
