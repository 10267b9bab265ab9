//! The architecture a program is made for, from its ELF header (System V ABI, "ELF Header").

use crate::ondisk::bytes::array;

/// Bytes of the header that are looked at.
pub const HEAD_BYTES: usize = 64;

/// Architecture as virt-inspector names it; `elf-N` for a machine without a name here. `None` if
/// it is no ELF file.
pub fn architecture(head: &[u8; HEAD_BYTES]) -> Option<String> {
    if array(head, 0) != Some(*b"\x7fELF") {
        return None;
    }
    let [class, data] = array(head, 4)?;
    let wide = match class {
        1 => false,
        2 => true,
        _ => return None,
    };
    let little = match data {
        1 => true,
        2 => false,
        _ => return None,
    };
    let machine: [u8; 2] = array(head, 18)?;
    let machine = if little {
        u16::from_le_bytes(machine)
    } else {
        u16::from_be_bytes(machine)
    };
    let name = match (machine, wide, little) {
        (3 | 6, ..) => "i386",
        (62, ..) => "x86_64",
        (2 | 18, ..) => "sparc",
        (43, ..) => "sparc64",
        (50, ..) => "ia64",
        (20, ..) => "ppc",
        (21, _, false) => "ppc64",
        (21, _, true) => "ppc64le",
        (40, ..) => "arm",
        (183, ..) => "aarch64",
        (243, false, _) => "riscv32",
        (243, true, _) => "riscv64",
        (22, false, _) => "s390",
        (22, true, _) => "s390x",
        (258, false, _) => "loongarch32",
        (258, true, _) => "loongarch64",
        (8, false, false) => "mips",
        (8, false, true) => "mipsel",
        (8, true, false) => "mips64",
        (8, true, true) => "mips64el",
        (4, ..) => "m68k",
        (15, ..) => "parisc",
        (42, ..) => "sh4",
        (0x9026, ..) => "alpha",
        (other, ..) => return Some(format!("elf-{other}")),
    };
    Some(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines() {
        let head = |class: u8, data: u8, machine: u16| {
            let mut head = [0; HEAD_BYTES];
            head[..4].copy_from_slice(b"\x7fELF");
            head[4] = class;
            head[5] = data;
            head[18..20].copy_from_slice(&match data {
                1 => machine.to_le_bytes(),
                _ => machine.to_be_bytes(),
            });
            head
        };
        for (class, data, machine, want) in [
            (2, 1, 62, Some("x86_64")),
            (1, 1, 3, Some("i386")),
            (2, 1, 183, Some("aarch64")),
            (2, 1, 21, Some("ppc64le")),
            (2, 2, 21, Some("ppc64")),
            (2, 2, 22, Some("s390x")),
            (1, 2, 22, Some("s390")),
            (2, 1, 243, Some("riscv64")),
            (1, 1, 40, Some("arm")),
            (2, 1, 258, Some("loongarch64")),
            (2, 1, 9999, Some("elf-9999")),
            (3, 1, 62, None),
            (2, 0, 62, None),
        ] {
            let got = architecture(&head(class, data, machine));
            assert_eq!(got.as_deref(), want);
        }
        assert_eq!(architecture(&[0; HEAD_BYTES]), None);
        // The test's own program is evidence from outside.
        let own = std::fs::read("/proc/self/exe").unwrap();
        let own = architecture(own.first_chunk().unwrap());
        assert_eq!(own.as_deref(), Some(std::env::consts::ARCH));
    }
}
