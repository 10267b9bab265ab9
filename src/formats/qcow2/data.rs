//! Where plain (not compressed) clusters are: the image file or its external data file.
//!
//! Every guest byte of such a cluster goes through [`DataFile::read`] and [`DataFile::write`], which
//! know both of its addresses and encrypt and decrypt whole sectors in between.

use parking_lot::RwLock;
use zeroize::Zeroizing;

use super::encryption::{Encryption, Numbering, SECTOR, no_key_text};
use super::view::read_present;
use crate::block::{BlockDevice, BlockError, BlockErrorKind, Result};
use crate::crypto::cipher::SectorCipher;
use crate::ondisk::units::{to_u64, to_usize};

/// Encrypted and written at once, in bytes; a bound on the copy that is needed for it.
const WRITE_PIECE: usize = 1 << 20;

/// The file with the clusters.
pub struct DataFile {
    device: BlockDevice,
    encryption: Option<Encryption>,
    /// Held while a part of a sector is read, changed and written back: alone, so that nothing
    /// that others write to that sector meanwhile is undone.
    partial: RwLock<()>,
}

impl DataFile {
    /// Clusters in `device`.
    pub fn new(device: BlockDevice, encryption: Option<Encryption>) -> Self {
        Self {
            device,
            encryption,
            partial: RwLock::new(()),
        }
    }

    /// The file itself, for what is not about content.
    pub fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// What its content is encrypted with.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }

    /// Whether zero bytes in the file are not zero bytes for the guest: then nothing can be left
    /// to a hole in the file, and nothing be zeroed without writing it.
    pub fn scrambled(&self) -> bool {
        self.encryption.is_some()
    }

    /// Reads guest bytes that are at `host` in the file and at `guest` on the virtual disk. What
    /// lies past the end of the file reads as zeroes, or what zeroes decrypt to.
    ///
    /// # Errors
    /// [`BlockErrorKind::NoKey`], or what the device reports.
    pub fn read(&self, host: u64, guest: u64, buf: &mut [u8]) -> Result<()> {
        let Some(encryption) = &self.encryption else {
            return self.read_stored(host, buf);
        };
        let key = Key::of(encryption)?;
        each_piece(host, guest, buf, |host, guest, piece| {
            let (sectors, rest) = piece.as_chunks_mut::<SECTOR>();
            if !rest.is_empty() {
                let (start, mut sector) = self.read_sector(&key, host, guest)?;
                let from = sector.get_mut(start..).unwrap_or_default();
                for (to, from) in piece.iter_mut().zip(from) {
                    *to = *from;
                }
                return Ok(());
            }
            self.read_stored(host, sectors.as_flattened_mut())?;
            key.cipher.decrypt(key.number(host, guest), sectors);
            Ok(())
        })
    }

    /// Writes guest bytes; the counterpart of [`DataFile::read`].
    ///
    /// # Errors
    /// [`BlockErrorKind::NoKey`], or what the device reports.
    pub fn write(&self, host: u64, guest: u64, buf: &[u8]) -> Result<()> {
        let Some(encryption) = &self.encryption else {
            return self.device.write_all_at(host, buf);
        };
        let key = Key::of(encryption)?;
        let (mut host, mut guest) = (host, guest);
        let mut rest = buf;
        while !rest.is_empty() {
            let len = piece_len(host, rest.len()).min(WRITE_PIECE);
            let (piece, tail) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            let mut copy = piece.to_vec();
            match copy.as_chunks_mut::<SECTOR>() {
                (sectors, []) => {
                    key.cipher.encrypt(key.number(host, guest), sectors);
                    let _with_others = self.partial.read();
                    self.device.write_all_at(host, sectors.as_flattened())?;
                }
                _ => self.write_partial(&key, host, guest, piece)?,
            }
            host = host.saturating_add(to_u64(piece.len()));
            guest = guest.saturating_add(to_u64(piece.len()));
            rest = tail;
        }
        Ok(())
    }

    fn write_partial(&self, key: &Key<'_>, host: u64, guest: u64, piece: &[u8]) -> Result<()> {
        let _alone = self.partial.write();
        let (start, mut sector) = self.read_sector(key, host, guest)?;
        for (to, from) in sector.iter_mut().skip(start).zip(piece) {
            *to = *from;
        }
        let before = to_u64(start);
        let (host, guest) = (host.saturating_sub(before), guest.saturating_sub(before));
        let sector = std::slice::from_mut(&mut *sector);
        key.cipher.encrypt(key.number(host, guest), sector);
        self.device.write_all_at(host, sector.as_flattened())
    }

    /// The sector an offset lies in, decrypted, and where in it.
    fn read_sector(
        &self,
        key: &Key<'_>,
        host: u64,
        guest: u64,
    ) -> Result<(usize, Zeroizing<[u8; SECTOR]>)> {
        let start = within_sector(host);
        let before = to_u64(start);
        let (host, guest) = (host.saturating_sub(before), guest.saturating_sub(before));
        let mut sector = Zeroizing::new([0; SECTOR]);
        self.read_stored(host, sector.as_mut_slice())?;
        let one = std::slice::from_mut(&mut *sector);
        key.cipher.decrypt(key.number(host, guest), one);
        Ok((start, sector))
    }

    fn read_stored(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let read = read_present(&self.device, host, buf)?;
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// A cipher and the numbers of its sectors.
struct Key<'a> {
    cipher: &'a SectorCipher,
    numbering: Numbering,
}

impl<'a> Key<'a> {
    fn of(encryption: &'a Encryption) -> Result<Self> {
        let cipher = encryption.cipher().ok_or_else(|| {
            BlockError::new(BlockErrorKind::NoKey, no_key_text(encryption.scheme()))
        })?;
        Ok(Self {
            cipher,
            numbering: encryption.numbering(),
        })
    }

    fn number(&self, host: u64, guest: u64) -> u64 {
        let offset = match self.numbering {
            Numbering::Host => host,
            Numbering::Guest => guest,
        };
        offset.wrapping_shr(SECTOR.trailing_zeros())
    }
}

/// Where in its sector an offset is.
fn within_sector(offset: u64) -> usize {
    to_usize(offset & to_u64(SECTOR).wrapping_sub(1)).unwrap_or_default()
}

/// How many of `len` bytes from `host` on are handled together: whole sectors, or what there is of
/// a sector at either end.
fn piece_len(host: u64, len: usize) -> usize {
    let start = within_sector(host);
    if start > 0 || len < SECTOR {
        SECTOR.saturating_sub(start).min(len)
    } else {
        len & !SECTOR.wrapping_sub(1)
    }
}

/// Calls `each` with every piece of a range.
fn each_piece(
    mut host: u64,
    mut guest: u64,
    buf: &mut [u8],
    mut each: impl FnMut(u64, u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let mut rest = buf;
    while !rest.is_empty() {
        let len = piece_len(host, rest.len());
        let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
            break;
        };
        each(host, guest, piece)?;
        host = host.saturating_add(to_u64(len));
        guest = guest.saturating_add(to_u64(len));
        rest = tail;
    }
    Ok(())
}
