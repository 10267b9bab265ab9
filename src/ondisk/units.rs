//! Conversions between integer widths that cannot lose bits.

/// A length or index as `u64`. Lossless: the crate builds only where `usize` has at most 64 bits.
pub const fn to_u64(value: usize) -> u64 {
    value as u64
}

const _: () = assert!(size_of::<usize>() <= size_of::<u64>());

/// A 64-bit value as `usize`, or `None` where the host cannot address it.
pub fn to_usize(value: u64) -> Option<usize> {
    usize::try_from(value).ok()
}

/// A 32-bit value as `usize`. Lossless: the crate builds only where `usize` has at least 32 bits.
pub const fn usize_from_u32(value: u32) -> usize {
    value as usize
}

const _: () = assert!(size_of::<usize>() >= size_of::<u32>());

/// `value` rounded up to a multiple of `unit` (which must not be zero), or `None` on overflow.
pub fn round_up(value: u64, unit: u64) -> Option<u64> {
    value.checked_next_multiple_of(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_up_overflows_into_none() {
        assert_eq!(round_up(0, 512), Some(0));
        assert_eq!(round_up(513, 512), Some(1024));
        assert_eq!(round_up(u64::MAX, 512), None);
    }
}
