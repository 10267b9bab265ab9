//! The content of an image that a table maps piece by piece to its file, to nothing, or to its
//! parent: what VHD and VHDX have in common.

use crate::block::{BlockBackend, BlockDevice, BlockError, Extent, ExtentKind, Geometry, Result};
use crate::ondisk::units::{to_u64, to_usize};

/// Pieces joined to one run at most; a bound on the work of one lookup.
const MAX_PIECES: usize = 4096;

/// Where guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image file, at a host offset.
    Here(u64),
    /// Zeroes, says the table.
    Zero,
    /// In the parent, or nowhere.
    Below,
}

/// Guest bytes with the same mapping, consecutive in the file where they are there.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Where the first byte is.
    pub place: Place,
}

/// What a format knows.
pub trait Mapping: Send + Sync {
    /// What the format is called in messages.
    const NAME: &'static str;

    /// Size of the virtual disk in bytes.
    fn disk_len(&self) -> u64;

    /// Bytes of a sector of the virtual disk.
    fn sector_size(&self) -> u32;

    /// The image file.
    fn file(&self) -> BlockDevice;

    /// Whether host offsets are those of a file of the host.
    fn verbatim(&self) -> bool {
        true
    }

    /// What is below.
    fn parent(&self) -> Option<&BlockDevice>;

    /// A run that starts at `at`, as long as one look at the table tells.
    fn piece_at(&self, at: u64) -> Result<Run>;
}

/// A readable content; see the module text.
pub struct Mapped<M>(pub M);

impl<M: Mapping> Mapped<M> {
    fn run_at(&self, at: u64, max: u64) -> Result<Run> {
        let mut run = self.0.piece_at(at)?;
        for _ in 0..MAX_PIECES {
            if run.len >= max {
                break;
            }
            // An error belongs to the read that starts there.
            let Ok(next) = self.0.piece_at(at.saturating_add(run.len)) else {
                break;
            };
            let continues = match (run.place, next.place) {
                (Place::Here(a), Place::Here(b)) => a.checked_add(run.len) == Some(b),
                (a, b) => a == b,
            };
            if !continues {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        run.len = run.len.min(max);
        Ok(run)
    }

    fn read_here(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.0.file().read_some_at(host, buf)?;
        if read < buf.len() {
            return Err(BlockError::damaged(format!(
                "a block with bytes at {host}+{} is outside the file",
                buf.len()
            )));
        }
        Ok(())
    }

    fn read_below(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let read = match self.0.parent() {
            Some(parent) => parent.read_some_at(at, buf)?,
            None => 0,
        };
        buf.get_mut(read..).unwrap_or_default().fill(0);
        Ok(())
    }
}

impl<M: Mapping> BlockBackend for Mapped<M> {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.0.disk_len(),
            block_size: self.0.sector_size(),
            read_only: true,
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let run = self
                .run_at(at, to_u64(rest.len()))
                .map_err(|e| e.within(format!("{} mapping of guest offset {at}", M::NAME)))?;
            let len = to_usize(run.len).unwrap_or(usize::MAX).min(rest.len());
            let Some((piece, tail)) = rest.split_at_mut_checked(len) else {
                return Err(BlockError::damaged("a run longer than the request"));
            };
            match run.place {
                Place::Here(host) => self.read_here(host, piece)?,
                Place::Zero => piece.fill(0),
                Place::Below => self.read_below(at, piece)?,
            }
            at = at.saturating_add(run.len);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.run_at(offset, len)?;
        Ok(match (run.place, self.0.parent()) {
            (Place::Here(host), _) => Extent {
                host_offset: self.0.verbatim().then_some(host),
                ..Extent::data(run.len)
            },
            (Place::Zero, _) => Extent {
                kind: ExtentKind::Zero,
                ..Extent::hole(run.len)
            },
            (Place::Below, Some(parent)) => match parent.len().checked_sub(offset) {
                Some(inside @ 1..) => {
                    let below = parent.extent_at(offset, run.len.min(inside))?;
                    Extent {
                        depth: below.depth.saturating_add(1),
                        ..below
                    }
                }
                _ => Extent::hole(run.len),
            },
            (Place::Below, None) => Extent::hole(run.len),
        })
    }

    fn prefetch(&self, offset: u64, len: u64) {
        if let Ok(run) = self.run_at(offset, len) {
            match (run.place, self.0.parent()) {
                (Place::Here(host), _) => self.0.file().prefetch(host, run.len),
                (Place::Below, Some(parent)) => parent.prefetch(offset, run.len),
                (Place::Zero, _) | (Place::Below, None) => {}
            }
        }
    }
}
