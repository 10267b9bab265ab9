//! Hashes of directory names (linux `fs/ext4/hash.c`; half MD4 is the first two and a half rounds
//! of RFC 1320, TEA is Wheeler and Needham's cipher used as a compression function).

/// Which function, and whether characters are signed (as they are on x86) or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    function: Function,
    unsigned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Legacy,
    HalfMd4,
    Tea,
}

impl Version {
    /// From the root's `hash_version` and the superblock's flag.
    pub fn from_disk(version: u8, unsigned_by_default: bool) -> Option<Self> {
        let (function, unsigned) = match version {
            0 => (Function::Legacy, unsigned_by_default),
            1 => (Function::HalfMd4, unsigned_by_default),
            2 => (Function::Tea, unsigned_by_default),
            3 => (Function::Legacy, true),
            4 => (Function::HalfMd4, true),
            5 => (Function::Tea, true),
            _ => return None,
        };
        Some(Self { function, unsigned })
    }
}

/// The hash that orders a directory; its lowest bit is always 0.
pub fn hash(name: &[u8], version: Version, seed: &[u32; 4]) -> u32 {
    let mut state = match seed {
        [0, 0, 0, 0] => [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476],
        seed => *seed,
    };
    let unsigned = version.unsigned;
    let value = match version.function {
        Function::Legacy => legacy(name, unsigned),
        Function::HalfMd4 => {
            for at in (0..name.len()).step_by(32) {
                let words = words::<8>(name.get(at..).unwrap_or_default(), unsigned);
                half_md4(&mut state, &words);
            }
            let [_, hash, ..] = state;
            hash
        }
        Function::Tea => {
            for at in (0..name.len()).step_by(16) {
                let words = words::<4>(name.get(at..).unwrap_or_default(), unsigned);
                tea(&mut state, &words);
            }
            let [hash, ..] = state;
            hash
        }
    };
    let value = value & !1;
    // The largest value means "end of directory".
    if value == 0xFFFF_FFFE {
        0xFFFF_FFFC
    } else {
        value
    }
}

/// A character as the hash sees it.
fn widen(byte: u8, unsigned: bool) -> u32 {
    match unsigned {
        true => u32::from(byte),
        false => i32::from(byte.cast_signed()).cast_unsigned(),
    }
}

/// The first `4 * N` bytes of `rest` as words, padded with its length.
fn words<const N: usize>(rest: &[u8], unsigned: bool) -> [u32; N] {
    let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let pad = len | len << 8;
    let pad = pad | pad << 16;
    let mut out = [pad; N];
    for (word, bytes) in out.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(pad, |word, &byte| {
            widen(byte, unsigned).wrapping_add(word << 8)
        });
    }
    out
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut hash0, mut hash1) = (0x12A3_FE2Du32, 0x37AB_E8F9u32);
    for &byte in name {
        let product = widen(byte, unsigned).wrapping_mul(7_152_373);
        let mut hash = hash1.wrapping_add(hash0 ^ product);
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7FFF_FFFF);
        }
        hash1 = hash0;
        hash0 = hash;
    }
    hash0 << 1
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [mut b0, mut b1, ..] = *state;
    let [a, b, c, d] = *key;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        b0 = b0.wrapping_add(
            (b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b),
        );
        b1 = b1.wrapping_add(
            (b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d),
        );
    }
    let [s0, s1, ..] = state;
    *s0 = s0.wrapping_add(b0);
    *s1 = s1.wrapping_add(b1);
}

/// A round's mixing function, constant, order of words and rotations.
type Round = (fn(u32, u32, u32) -> u32, u32, [u32; 8], [u32; 4]);

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    let [i0, i1, i2, i3, i4, i5, i6, i7] = *input;
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let rounds: [Round; 3] = [
        (f, 0, [i0, i1, i2, i3, i4, i5, i6, i7], [3, 7, 11, 19]),
        (
            g,
            0x5A82_7999,
            [i1, i3, i5, i7, i0, i2, i4, i6],
            [3, 5, 9, 13],
        ),
        (
            h,
            0x6ED9_EBA1,
            [i3, i7, i2, i6, i1, i5, i0, i4],
            [3, 9, 11, 15],
        ),
    ];
    for (mix, constant, order, shifts) in rounds {
        for (word, shift) in order.into_iter().zip(shifts.into_iter().cycle()) {
            let fresh = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(word)
                .wrapping_add(constant)
                .rotate_left(shift);
            // Each step computes the register that is oldest; the others move up.
            (a, d, c, b) = (d, c, b, fresh);
        }
    }
    let [s0, s1, s2, s3] = state;
    *s0 = s0.wrapping_add(a);
    *s1 = s1.wrapping_add(b);
    *s2 = s2.wrapping_add(c);
    *s3 = s3.wrapping_add(d);
}

#[cfg(test)]
mod tests {
    use super::*;

    // Values of `debugfs -R "dx_hash -h KIND NAME"` (e2fsprogs 1.47), default seed. It knows no
    // unsigned kinds; the kernel's images test those.
    #[test]
    fn values_of_debugfs() {
        for &(function, name, want) in VALUES {
            let version = Version::from_disk(function, false).unwrap();
            assert_eq!(
                hash(name.as_bytes(), version, &[0; 4]),
                want,
                "{function} {name}"
            );
        }
    }

    const VALUES: &[(u8, &str, u32)] = &[
        (0, "a", 0xe74b53e2),
        (1, "a", 0xd5fa7d7a),
        (2, "a", 0x6d0ea4c0),
        (0, "hello", 0x32252546),
        (1, "hello", 0x1746da32),
        (2, "hello", 0x6f5bb1a8),
        (0, "lost+found", 0x5e2aba24),
        (1, "lost+found", 0x591de422),
        (2, "lost+found", 0x2dbf9e80),
        (0, "grüße", 0xcc69faba),
        (1, "grüße", 0xd75e0ad8),
        (2, "grüße", 0xc271df04),
        (
            0,
            "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-and-more",
            0xb6a430c6,
        ),
        (
            1,
            "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-and-more",
            0x69a87b78,
        ),
        (
            2,
            "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-and-more",
            0xe73b7456,
        ),
    ];
}
