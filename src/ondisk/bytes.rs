//! Bounded access to bytes from an image: free functions for "the integer at this offset", and a
//! [`Cursor`] for records of variable length. Nothing here panics; what lies outside is `None`.

/// Bytes `offset..offset + len`, if they are all inside.
pub fn slice(data: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    data.get(offset..offset.checked_add(len)?)
}

/// `N` bytes at `offset` as an array.
pub fn array<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    slice(data, offset, N)?.try_into().ok()
}

macro_rules! integers {
    ($($le:ident $be:ident $ty:ty;)*) => {$(
        #[doc = concat!("Little-endian `", stringify!($ty), "` at `offset`.")]
        pub fn $le(data: &[u8], offset: usize) -> Option<$ty> {
            Some(<$ty>::from_le_bytes(array(data, offset)?))
        }
        #[doc = concat!("Big-endian `", stringify!($ty), "` at `offset`.")]
        pub fn $be(data: &[u8], offset: usize) -> Option<$ty> {
            Some(<$ty>::from_be_bytes(array(data, offset)?))
        }
    )*};
}

integers! {
    le16 be16 u16;
    le32 be32 u32;
    le64 be64 u64;
}

/// Whether every byte is zero (true for an empty slice).
pub fn is_zero(data: &[u8]) -> bool {
    // Chunked so that the compiler compares machine words; large zero checks are on copy paths.
    let mut chunks = data.chunks_exact(16);
    chunks
        .by_ref()
        .all(|c| <[u8; 16]>::try_from(c).is_ok_and(|a| u128::from_ne_bytes(a) == 0))
        && chunks.remainder().iter().all(|&b| b == 0)
}

/// A position that walks forward through a slice and never past its end.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    data: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }

    /// Offset of the next byte from the start of the slice.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> usize {
        self.data.len().saturating_sub(self.position)
    }

    /// Takes the next `len` bytes; takes nothing if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = slice(self.data, self.position, len)?;
        self.position = self.position.checked_add(len)?;
        Some(taken)
    }

    /// Takes the next `N` bytes as an array.
    pub fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_outside_the_slice_are_none() {
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(le16(&data, 0), Some(0x0201));
        assert_eq!(be32(&data, 4), Some(0x0506_0708));
        assert_eq!(le64(&data, 1), None);
        assert_eq!(le16(&data, usize::MAX), None);
    }

    #[test]
    fn zero_check_sees_every_position() {
        for len in 0..40 {
            let mut data = vec![0u8; len];
            assert!(is_zero(&data));
            for i in 0..len {
                data[i] = 1;
                assert!(!is_zero(&data), "len {len} byte {i}");
                data[i] = 0;
            }
        }
    }

    #[test]
    fn cursor_takes_all_or_nothing() {
        let mut c = Cursor::new(&[1, 2, 3]);
        assert_eq!(c.take(4), None);
        assert_eq!(c.take_array::<2>(), Some([1, 2]));
        assert_eq!(c.remaining(), 1);
    }
}
