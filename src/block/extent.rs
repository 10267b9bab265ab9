//! Where a device holds data and where it does not.

/// What a run of bytes is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Stored bytes (which may happen to be zero).
    Data,
    /// Reads as zero because the image says so explicitly.
    Zero,
    /// Reads as zero because nothing is stored anywhere along the chain.
    Hole,
}

/// A run of bytes of one kind, starting at the offset that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// What the run is made of.
    pub kind: ExtentKind,
    /// How far down the backing chain it was found; 0 is the image itself.
    pub depth: u32,
    /// Byte offset in the host file where the run is stored verbatim, if it is.
    pub host_offset: Option<u64>,
    /// Whether the stored bytes are compressed.
    pub compressed: bool,
}

impl Extent {
    /// Stored bytes in the image itself.
    pub fn data(len: u64) -> Self {
        Self {
            len,
            kind: ExtentKind::Data,
            depth: 0,
            host_offset: None,
            compressed: false,
        }
    }

    /// Zeroes that are not stored.
    pub fn hole(len: u64) -> Self {
        Self {
            kind: ExtentKind::Hole,
            ..Self::data(len)
        }
    }

    /// The same extent, no longer than `max` bytes.
    #[must_use]
    pub fn truncated(self, max: u64) -> Self {
        Self {
            len: self.len.min(max),
            ..self
        }
    }

    /// Whether the run reads as zeroes without looking at stored bytes.
    pub fn reads_zero(&self) -> bool {
        self.kind != ExtentKind::Data
    }
}
