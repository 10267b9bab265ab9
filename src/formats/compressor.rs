//! Compressing one cluster or grain at a time.
//!
//! A compressor is set up once for a thread and used again for every cluster: setting one up costs
//! as much as a small cluster.

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::block::{BlockError, BlockErrorKind, Result};
use crate::ondisk::units::to_usize;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Raw deflate whose window is 4 KiB, the most that QEMU's decoder of qcow2 clusters has.
    Deflate,
    /// Deflate in zlib's framing, window of 32 KiB.
    Zlib,
    /// One Zstandard frame.
    Zstd,
}

impl Method {
    /// The level that is taken if the user asks for none: output as large as QEMU's (which takes
    /// zlib's and Zstandard's own defaults), give or take a few per cent, in less time.
    pub fn default_level(self) -> i32 {
        match self {
            Self::Deflate | Self::Zlib => 6,
            Self::Zstd => 3,
        }
    }

    /// The levels there are.
    pub fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Self::Deflate | Self::Zlib => 1..=9,
            Self::Zstd => 1..=19,
        }
    }
}

/// A compressor; see the module text.
pub struct Compressor {
    engine: Engine,
    out: Vec<u8>,
    /// Longest output that is of use.
    most: usize,
}

enum Engine {
    Deflate(Box<Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// One whose output is never longer than `most` bytes.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(method: Method, level: i32, most: usize) -> Result<Self> {
        let deflate = Compression::new(u32::try_from(level).unwrap_or(6).min(9));
        let engine = match method {
            Method::Deflate => {
                Engine::Deflate(Box::new(Compress::new_with_window_bits(deflate, false, 12)))
            }
            Method::Zlib => Engine::Deflate(Box::new(Compress::new(deflate, true))),
            Method::Zstd => Engine::Zstd(
                zstd::bulk::Compressor::new(level)
                    .map_err(|e| BlockError::io("cannot set up a compressor", e))?,
            ),
        };
        // Room for whatever deflate makes of an input of that size: resetting an encoder that
        // still has output leaves its buffer shorter (zlib-rs 0.6), so it always gets to the end.
        let room = match method {
            Method::Deflate | Method::Zlib => most.saturating_add(most / 4).saturating_add(1024),
            Method::Zstd => most,
        };
        Ok(Self {
            engine,
            out: vec![0; room],
            most,
        })
    }

    /// The compressed form of `input`, which is about as long as the output may be, or `None` if it would be longer than allowed.
    ///
    /// # Errors
    /// If the compressor fails.
    pub fn compress(&mut self, input: &[u8]) -> Result<Option<&[u8]>> {
        let len = match &mut self.engine {
            Engine::Deflate(engine) => {
                engine.reset();
                let status = engine
                    .compress(input, &mut self.out, FlushCompress::Finish)
                    .map_err(|e| BlockError::new(BlockErrorKind::Io, e.to_string()))?;
                if status != Status::StreamEnd {
                    return Err(BlockError::new(
                        BlockErrorKind::Io,
                        "the compressor made more than it can",
                    ));
                }
                to_usize(engine.total_out()).unwrap_or(usize::MAX)
            }
            Engine::Zstd(engine) => {
                match engine.compress_to_buffer(input, self.out.as_mut_slice()) {
                    Ok(len) => len,
                    // Only the lack of room can be the reason.
                    Err(_) => return Ok(None),
                }
            }
        };
        Ok(self.out.get(..len).filter(|_| len <= self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_refused() {
        let mut x = 1_u64;
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x.to_le_bytes()[0]
            })
            .collect();
        for method in [Method::Deflate, Method::Zlib, Method::Zstd] {
            let mut c = Compressor::new(method, method.default_level(), 4095).unwrap();
            assert!(c.compress(&noise).unwrap().is_none());
            let len = c.compress(&[7; 4096]).unwrap().unwrap().len();
            assert!(len < 100, "{len}");
            for _ in 0..100 {
                assert!(c.compress(&noise).unwrap().is_none());
            }
        }
    }
}
