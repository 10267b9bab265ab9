//! Image files as block devices.
//!
//! | module | responsibility |
//! |---|---|
//! | [`api`] | [`api::Image`], opening by path |
//! | [`check`] | checking and repairing an image file |
//! | [`detect`] | the table of formats, and which one a file is of |
//! | [`error`] | [`error::FormatError`] |
//! | [`follow`] | images that lack a file they refer to |
//! | [`mod@rebase`] | moving content along a backing chain |
//! | [`reference`] | which files an image may make us open |
//! | [`host_file`] | opening and locking files of the host |
//! | [`info`] | what is known about an image, in the words of qemu-img |
//! | [`raw`], [`raw_build`] | raw images; making them |
//! | [`read_ahead`] | recognises readers that go forward |
//! | [`qcow2`] | qcow2 images |
//! | [`vmdk`], [`vhd`], [`vhdx`], [`vdi`] | images of other virtual machines |
//! | [`build`], [`convert`] | making new images, and copying a disk into one |
//! | [`compare`] | whether two disks show the same |
//! | [`compressor`] | compressing clusters |
//! | [`compressed`] | raw disks inside gzip, xz and zstd streams |
//! | [`mapped`] | what VHD and VHDX have in common |
//! | [`verify`] | whether a file is safe to be taken as an image |
//! | [`slices`] | tables of image files, through the cluster cache |
//! | [`windows_path`] | parents named by a path of Windows |

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod api;
pub mod build;
pub mod check;
pub mod compare;
pub mod compressed;
pub mod compressor;
pub mod convert;
pub mod detect;
pub mod error;
pub mod follow;
pub mod host_file;
pub mod info;
pub mod mapped;
pub mod qcow2;
pub mod raw;
pub mod raw_build;
pub mod read_ahead;
pub mod rebase;
pub mod reference;
pub mod slices;
pub mod vdi;
pub mod verify;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod windows_path;

pub use api::{
    Image, ImageInfo, ImageWriter, OpenOptions, SnapshotInfo, open_device, open_device_among,
    open_path,
};
pub use error::{FormatError, FormatErrorKind};
