//! What a server offers: a device, under a name.

use std::error::Error;

use super::wire::{self, BlockSizes, ExportInfo, MAX_PAYLOAD, errno, flag};
use crate::block::{BlockDevice, BlockError, BlockErrorKind, Extent, ExtentKind, Result};

/// Metadata about ranges that a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:allocation-depth`: where in the backing chain.
    Depth,
}

impl MetaContext {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Depth];

    /// Name in the protocol.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Allocation => wire::BASE_ALLOCATION,
            Self::Depth => wire::ALLOCATION_DEPTH,
        }
    }

    /// Number in replies; this server chooses it.
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Depth => 2,
        }
    }

    /// Status of an extent.
    pub fn status(self, extent: &Extent) -> u32 {
        match (self, extent.kind) {
            (Self::Allocation, ExtentKind::Data) => 0,
            (Self::Allocation, ExtentKind::Zero | ExtentKind::Hole) => {
                wire::STATE_HOLE | wire::STATE_ZERO
            }
            (Self::Depth, ExtentKind::Hole) => 0,
            (Self::Depth, _) => extent.depth.saturating_add(1),
        }
    }
}

/// A device that is offered, of a size that does not change.
#[derive(Debug)]
pub struct Export {
    device: BlockDevice,
    name: Vec<u8>,
    description: String,
}

impl Export {
    /// Offers the whole of `device` as it is now. The empty name always leads to it as well.
    ///
    /// # Errors
    /// As [`BlockDevice::slice`].
    pub fn new(device: &BlockDevice, name: &[u8], description: &str) -> Result<Self> {
        Ok(Self {
            // A device that can grow does not do so because a client writes past its end.
            device: device.slice(0..device.len())?,
            name: name.to_vec(),
            description: description.to_owned(),
        })
    }

    /// The device.
    pub fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// The name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// For people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether a client that asks for `name` means this export.
    pub fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name
    }

    /// Size and abilities.
    ///
    /// All connections share one device, and its flush is about all that was written before:
    /// several connections of one client see one disk.
    pub fn info(&self, structured: bool) -> ExportInfo {
        let mut flags =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        if structured {
            flags |= flag::SEND_DF;
        }
        if self.device.read_only() {
            flags |= flag::READ_ONLY;
        } else {
            flags |=
                flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        ExportInfo {
            len: self.device.len(),
            flags,
        }
    }

    /// Sizes of requests.
    pub fn sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 1,
            preferred: self
                .device
                .block_size()
                .clamp(4096, MAX_PAYLOAD)
                .next_power_of_two(),
            maximum: MAX_PAYLOAD,
        }
    }

    /// Runs of `offset..offset + len` with their status in each of `contexts`, at most `most` of
    /// them in each; neighbours of the same status are one.
    ///
    /// # Errors
    /// Of the device.
    pub fn block_status(
        &self,
        contexts: &[MetaContext],
        offset: u64,
        len: u64,
        most: usize,
    ) -> Result<Vec<Vec<(u64, u32)>>> {
        let mut lists = vec![Vec::<(u64, u32)>::new(); contexts.len()];
        let mut at = offset;
        let mut left = len;
        while left > 0 {
            let extent = self.device.extent_at(at, left)?;
            for (context, list) in contexts.iter().zip(&mut lists) {
                let status = context.status(&extent);
                match list.last_mut() {
                    Some((run, last)) if *last == status => *run = run.saturating_add(extent.len),
                    // One more than wanted shows that the last one is complete.
                    _ => list.push((extent.len, status)),
                }
            }
            at = at.saturating_add(extent.len);
            left = left.saturating_sub(extent.len);
            if lists.iter().all(|list| list.len() > most) {
                break;
            }
            // A list that alternates while another does not is cut, not grown without end.
            if lists.iter().any(|list| list.len() > most.saturating_mul(4)) {
                break;
            }
        }
        for list in &mut lists {
            list.truncate(most);
        }
        Ok(lists)
    }
}

/// The protocol's error for one of the block layer.
pub fn errno_of(error: &BlockError) -> u32 {
    match error.kind() {
        BlockErrorKind::Io if is_full(error) => errno::ENOSPC,
        BlockErrorKind::ReadOnly | BlockErrorKind::NoKey => errno::EPERM,
        BlockErrorKind::OutOfRange => errno::EINVAL,
        BlockErrorKind::Unsupported => errno::ENOTSUP,
        BlockErrorKind::Io | BlockErrorKind::Failed | BlockErrorKind::Damaged => errno::EIO,
    }
}

/// Whether the host said that there is no space left.
fn is_full(error: &BlockError) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            );
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::MemoryBackend;

    #[test]
    fn only_a_writable_export_says_so() {
        let device = MemoryBackend::from_bytes(vec![0; 4096]).into_device();
        let export = Export::new(&device, b"x", "").unwrap();
        assert_eq!(export.info(true).len, 4096);
        assert_eq!(export.info(true).flags & flag::READ_ONLY, 0);
        assert!(export.answers_to(b"") && export.answers_to(b"x") && !export.answers_to(b"y"));
        let export = Export::new(&device.into_read_only(), b"", "").unwrap();
        let flags = export.info(false).flags;
        assert_ne!(flags & flag::READ_ONLY, 0);
        assert_eq!(
            flags & (flag::SEND_TRIM | flag::SEND_DF | flag::SEND_FUA),
            0
        );
    }

    #[test]
    fn full_is_told_from_broken() {
        let full = BlockError::io("x", std::io::Error::from_raw_os_error(28)).within("y");
        assert_eq!(errno_of(&full), errno::ENOSPC);
        let broken = BlockError::io("x", std::io::Error::from_raw_os_error(5));
        assert_eq!(errno_of(&broken), errno::EIO);
    }
}
