//! Compressed clusters: decoding one, and the worker threads that decode several at a time.
//!
//! The output is exactly one cluster, so a bomb cannot unpack; input is what one L2 entry can
//! describe. Decoders are kept per thread, because setting one up costs as much as a small
//! cluster.
//!
//! The workers start with the first job and serve all images of the process. A process that forks
//! after that has none in the child: jobs are then dropped and readers decode for themselves.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crossbeam_channel::{Sender, bounded};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::bulk::Decompressor;
use zstd::zstd_safe::find_frame_compressed_size;

use super::layout::Compression;
use crate::block::{BlockError, Result};
use crate::ondisk::units::to_usize;

thread_local! {
    static INFLATE: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    static ZSTD: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Fills `cluster` from compressed bytes, after which `input` may hold anything.
///
/// # Errors
/// [`crate::block::BlockErrorKind::Damaged`] if they are not exactly one cluster.
pub fn decode(compression: Compression, input: &[u8], cluster: &mut [u8]) -> Result<()> {
    let whole = match compression {
        Compression::Deflate => inflate(input, cluster),
        Compression::Zstd => unzstd(input, cluster),
    };
    if whole {
        Ok(())
    } else {
        Err(BlockError::damaged(
            "a compressed cluster does not decompress to one cluster",
        ))
    }
}

fn inflate(input: &[u8], cluster: &mut [u8]) -> bool {
    INFLATE.with_borrow_mut(|decoder| {
        let decoder = match decoder {
            Some(decoder) => {
                decoder.reset(false);
                decoder
            }
            None => decoder.insert(Decompress::new(false)),
        };
        let status = decoder.decompress(input, cluster, FlushDecompress::Finish);
        matches!(
            status,
            Ok(Status::StreamEnd | Status::BufError | Status::Ok)
        ) && to_usize(decoder.total_out()) == Some(cluster.len())
    })
}

fn unzstd(mut input: &[u8], mut cluster: &mut [u8]) -> bool {
    ZSTD.with_borrow_mut(|decoder| {
        let decoder = match decoder {
            Some(decoder) => decoder,
            None => match Decompressor::new() {
                Ok(new) => decoder.insert(new),
                Err(_) => return false,
            },
        };
        // A cluster may consist of several frames; each consumes input, which bounds the loop.
        while !cluster.is_empty() {
            let Ok(frame_len @ 1..) = find_frame_compressed_size(input) else {
                return false;
            };
            let Some((frame, rest)) = input.split_at_checked(frame_len) else {
                return false;
            };
            let Ok(written) = decoder.decompress_to_buffer(frame, cluster) else {
                return false;
            };
            let Some((_, tail)) = std::mem::take(&mut cluster).split_at_mut_checked(written) else {
                return false;
            };
            (input, cluster) = (rest, tail);
        }
        true
    })
}

/// Something for a worker to do.
pub type Job = Box<dyn FnOnce() + Send>;

/// Jobs waiting at most; beyond that, readers are faster than the workers and do it themselves.
const QUEUE: usize = 256;
/// More workers than this do not help one reader.
const MAX_WORKERS: usize = 16;

/// Gives a job to a worker. `false`: there is none free, and the job was dropped.
pub fn submit(job: Job) -> bool {
    static WORKERS: OnceLock<Sender<Job>> = OnceLock::new();
    let queue = WORKERS.get_or_init(|| {
        let (sender, receiver) = bounded::<Job>(QUEUE);
        let count = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_WORKERS);
        for _ in 0..count {
            let receiver = receiver.clone();
            // Fewer workers than wanted, or none, only make reading slower.
            let _ = std::thread::Builder::new()
                .name("decompress".into())
                .spawn(move || {
                    for job in receiver {
                        let _ = catch_unwind(AssertUnwindSafe(job));
                    }
                });
        }
        sender
    });
    queue.try_send(job).is_ok()
}
