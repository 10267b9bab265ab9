//! An image for each way in which images have broken those who opened them. Every one is shown,
//! converted, checked, compared, verified, opened for writing and written to by the program itself,
//! under limits of time and memory; no byte of a file of the host may come out or be changed.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use guestlens::ondisk::uuid::Uuid;
use support::hostile::{COPIED, L1, L2, Qcow2, TAIL};
use support::vhd::{Vhd, seal as seal_vhd};
use support::vhdx::{
    BAT_AT, HEADERS, METADATA_AT, MIB, Parent, REGION_TABLES, Vhdx, seal as seal_vhdx,
};
use support::{guestlens_path, run, shell, tool, workdir};

const CANARY: &[u8] = b"canary:x:0:0:what only the host may know:";
/// Address space a command may use, in bytes.
const MEMORY: u64 = 1 << 30;
/// Processor time a command may use, in seconds (in the debug profile).
const CPU_SECONDS: u64 = 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Opens {
    /// Every command refuses it.
    No,
    /// It can be looked at, whatever is behind what is seen.
    Yes,
    /// Either will do.
    Perhaps,
}
use Opens::{No, Perhaps, Yes};

struct Case {
    name: &'static str,
    /// The attack it stands for.
    attack: &'static str,
    image: Vec<u8>,
    opens: Opens,
    safe: bool,
}

/// The directory of the images, and beside it what they try to reach.
struct World {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, (Vec<u8>, i64, i64)>,
}

impl World {
    fn new() -> Self {
        let dir = workdir();
        shell(
            dir.path(),
            "mkdir in out; mkfifo in/fifo; ln -s ../out in/outside; ln -s ../out/canary in/link",
        );
        let secret = CANARY.repeat(100_000_usize.div_ceil(CANARY.len()));
        let out = dir.path().join("out");
        std::fs::write(out.join("canary"), &secret).unwrap();
        shell(
            dir.path(),
            "qemu-img convert -f raw -O qcow2 out/canary out/canary.qcow2",
        );
        std::fs::write(dir.path().join("in/link-key"), "secret").unwrap();
        // Parents that would fit, with the secret in them.
        let mut vhd = Vhd::new(1 << 20, 4096);
        for sector in 0..100 {
            let from = sector as usize * 512;
            vhd.sectors
                .insert(sector, secret[from..from + 512].try_into().unwrap());
        }
        std::fs::write(out.join("canary.vhd"), vhd.build()).unwrap();
        let mut bytes = Vhdx {
            sectors: [(0, 1)].into(),
            ..Vhdx::new(MIB, MIB)
        }
        .build();
        let at = bytes.len() - 2 * MIB;
        bytes[at..at + secret.len()].copy_from_slice(&secret);
        std::fs::write(out.join("canary.vhdx"), bytes).unwrap();
        let mut world = Self {
            dir,
            before: BTreeMap::new(),
        };
        world.before = world.outside();
        world
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn outside(&self) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
        std::fs::read_dir(self.path().join("out"))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let metadata = std::fs::metadata(&path).unwrap();
                let bytes = std::fs::read(&path).unwrap();
                (path, (bytes, metadata.mtime(), metadata.mtime_nsec()))
            })
            .collect()
    }

    /// The program, in the images' directory, under limits.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = tool("prlimit");
        command
            .arg(format!("--as={MEMORY}"))
            .arg(format!("--cpu={CPU_SECONDS}"))
            .args(["--core=0", "timeout", "-s", "KILL", "120"])
            .arg(guestlens_path())
            .args(args)
            .current_dir(self.path().join("in"))
            .env("RUST_BACKTRACE", "0");
        command
    }

    /// Runs it; returns whether it did what it was asked to.
    fn guestlens(&self, args: &[&str], context: &str) -> (Option<i32>, Output) {
        let output = self.command(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let context = format!("{context}: {args:?}: {}: {errors}", output.status);
        assert!(!errors.contains("panicked"), "{context}");
        // Not killed for time or memory, no abort.
        assert!(
            matches!(output.status.code(), Some(0 | 1 | 3 | 4)),
            "{context}"
        );
        assert!(!contains(&output.stdout), "{context}");
        assert!(!contains(&output.stderr), "{context}");
        (output.status.code(), output)
    }
}

fn contains(bytes: &[u8]) -> bool {
    bytes
        .windows(CANARY.len())
        .step_by(1)
        .any(|w| w[0] == CANARY[0] && w == CANARY)
}

/// The data of a file, however long its holes are.
fn file_contains(path: &Path) -> bool {
    let image = open_path(
        path,
        &OpenOptions {
            format: Some("raw".into()),
            ..OpenOptions::default()
        },
    );
    let Ok(image) = image else {
        return false;
    };
    let device = image.device();
    let mut at = 0;
    let mut read = 0;
    while at < device.len() && read < 64 << 20 {
        let extent = device.extent_at(at, device.len() - at).unwrap();
        if !extent.reads_zero() {
            let len = extent.len.min(1 << 20);
            if contains(&device.read_vec(at, len as usize).unwrap()) {
                return true;
            }
            read += len;
            at += len;
            continue;
        }
        at += extent.len;
    }
    false
}

fn cases(world: &World) -> Vec<Case> {
    let out = world.path().join("out").display().to_string();
    let canary = format!("{out}/canary");
    let mut cases = Vec::new();
    let mut add = |name, attack, image: Vec<u8>, opens, safe| {
        cases.push(Case {
            name,
            attack,
            image,
            opens,
            safe,
        });
    };
    let backed = |name: &str, format: Option<&str>| {
        Qcow2 {
            backing: Some(name.into()),
            backing_format: format.map(|f| f.into()),
            ..Qcow2::default()
        }
        .build()
    };
    let data = |name: &str, autoclear| {
        Qcow2 {
            incompatible: 4,
            autoclear,
            data_file: Some(name.into()),
            l2: vec![COPIED, COPIED | 65536],
            ..Qcow2::default()
        }
        .build()
    };

    // Backing files.
    for (name, attack, to, format) in [
        (
            "backing",
            "CVE-2011-3147, CVE-2015-5163: a file of the host",
            canary.as_str(),
            Some("raw"),
        ),
        (
            "backing-qcow2",
            "the same, an image",
            &format!("{out}/canary.qcow2"),
            Some("qcow2"),
        ),
        (
            "backing-up",
            "the same, by a relative path",
            "../out/canary",
            Some("raw"),
        ),
        (
            "backing-dots",
            "the same, in and out again",
            "./x/../../out/canary",
            Some("raw"),
        ),
        (
            "backing-link",
            "the same, by a symbolic link",
            "link",
            Some("raw"),
        ),
        (
            "backing-outside",
            "the same, by a directory that is one",
            "outside/canary",
            Some("raw"),
        ),
        (
            "backing-probed",
            "CVE-2010-2239: without its format",
            &canary,
            None,
        ),
        (
            "backing-near",
            "the same, in the directory",
            "backing",
            None,
        ),
        (
            "backing-fifo",
            "a FIFO nobody writes to",
            "fifo",
            Some("raw"),
        ),
        (
            "backing-zero",
            "a device without end",
            "/dev/zero",
            Some("raw"),
        ),
        ("backing-tty", "a terminal", "/dev/tty", Some("raw")),
        (
            "backing-mem",
            "a process's memory",
            "/proc/self/mem",
            Some("raw"),
        ),
        ("backing-fd", "an open file", "/proc/self/fd/0", Some("raw")),
        ("backing-dir", "a directory", ".", Some("raw")),
        ("backing-self", "itself", "backing-self", Some("qcow2")),
        (
            "backing-nbd",
            "a server",
            "nbd://127.0.0.1:1/x",
            Some("raw"),
        ),
        (
            "backing-http",
            "a web server",
            "http://127.0.0.1:1/x",
            Some("raw"),
        ),
        (
            "backing-ssh",
            "another host",
            "ssh://127.0.0.1/x",
            Some("raw"),
        ),
        (
            "backing-fdset",
            "a file of the management",
            "fd:0",
            Some("raw"),
        ),
        (
            "backing-file",
            "a file by its protocol",
            &format!("file:{canary}"),
            Some("raw"),
        ),
        (
            "backing-json",
            "CVE-2024-4467",
            &format!(r#"json:{{"driver":"file","filename":"{canary}"}}"#),
            Some("raw"),
        ),
        (
            "backing-json2",
            "CVE-2024-4467, nested",
            &format!(
                r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{out}/canary.qcow2"}}}}"#
            ),
            Some("qcow2"),
        ),
        ("backing-nul", "a name with a NUL", "a\0b", Some("raw")),
        (
            "backing-esc",
            "a name that paints the terminal",
            "\x1b]0;x\x07\x1b[2J",
            Some("raw"),
        ),
        (
            "backing-format",
            "a format that opens more",
            &canary,
            Some("blkverify:raw"),
        ),
    ] {
        add(name, attack, backed(to, format), No, false);
    }

    // Data files.
    for (name, attack, to) in [
        (
            "data",
            "CVE-2024-32498: a file of the host",
            canary.as_str(),
        ),
        ("data-up", "the same, by a relative path", "../out/canary"),
        ("data-link", "the same, by a symbolic link", "link"),
        ("data-fifo", "a FIFO nobody writes to", "fifo"),
        ("data-self", "itself", "data-self"),
        (
            "data-json",
            "CVE-2024-4467: a name in JSON",
            r#"json:{"driver":"file","filename":"/etc/passwd"}"#,
        ),
        ("data-nbd", "a server", "nbd:127.0.0.1:1"),
    ] {
        add(name, attack, data(to, 0), No, false);
    }
    add(
        "data-raw",
        "CVE-2024-32498, raw",
        data(&canary, 2),
        No,
        false,
    );
    add(
        "data-nameless",
        "a data file without a name",
        Qcow2 {
            incompatible: 4,
            ..Qcow2::default()
        }
        .build(),
        No,
        false,
    );

    // Descriptors.
    let descriptor = |create: &str, extent: &str, parent: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID={}\ncreateType=\"{create}\"\n{extent}\n{parent}\nddb.adapterType = \"ide\"\n",
            if parent.is_empty() { "ffffffff" } else { "fffffffe" }
        )
        .into_bytes()
    };
    for (name, attack, extent) in [
        (
            "vmdk-flat",
            "CVE-2022-47951: a flat extent is a file of the host",
            format!("RW 190 FLAT \"{canary}\" 0"),
        ),
        (
            "vmdk-up",
            "the same, by a relative path",
            "RW 190 FLAT \"../out/canary\" 0".into(),
        ),
        (
            "vmdk-link",
            "the same, by a symbolic link",
            "RW 190 FLAT \"link\" 0".into(),
        ),
        (
            "vmdk-vmfs",
            "the same, as ESX writes it",
            format!("RW 190 VMFS \"{canary}\""),
        ),
        (
            "vmdk-sparse",
            "the same, a sparse extent",
            format!("RW 190 SPARSE \"{out}/canary.qcow2\""),
        ),
        (
            "vmdk-fifo",
            "a FIFO nobody writes to",
            "RW 190 FLAT \"fifo\" 0".into(),
        ),
        (
            "vmdk-json",
            "a name in JSON",
            "RW 190 FLAT \"json:{}\" 0".into(),
        ),
        ("vmdk-self", "itself", "RW 1 FLAT \"vmdk-self\" 0".into()),
        (
            "vmdk-offset",
            "an offset that overflows",
            "RW 190 FLAT \"vmdk-flat\" 18446744073709551615".into(),
        ),
        (
            "vmdk-size",
            "a size that overflows",
            "RW 18446744073709551615 FLAT \"vmdk-flat\" 0".into(),
        ),
        (
            "vmdk-zero",
            "an extent of zeroes without end",
            "RW 36028797018963967 ZERO".into(),
        ),
    ] {
        let opens = if name == "vmdk-zero" { Perhaps } else { No };
        add(
            name,
            attack,
            descriptor("monolithicFlat", &extent, ""),
            opens,
            false,
        );
    }
    let many = "RW 1 ZERO\n".repeat(200_000);
    add(
        "vmdk-many",
        "extents without number",
        descriptor("custom", &many, ""),
        Perhaps,
        false,
    );
    add(
        "vmdk-parent",
        "a parent that is a file of the host",
        descriptor(
            "monolithicSparse",
            "RW 8 ZERO",
            &format!("parentFileNameHint=\"{canary}\""),
        ),
        Perhaps,
        false,
    );
    let mut hidden = b"\n\n# nothing here\nversion=1\n".to_vec();
    hidden.extend(descriptor(
        "monolithicFlat",
        &format!("RW 190 FLAT \"{canary}\" 0"),
        "",
    ));
    add(
        "vmdk-hidden",
        "a descriptor behind comments",
        hidden,
        Perhaps,
        false,
    );
    let sparse = |change: &[(usize, &[u8])]| {
        let mut v = vec![0; 65536];
        v[..4].copy_from_slice(b"KDMV");
        for (at, value) in [
            (4, 1_u64),
            (8, 3),
            (12, 2048),
            (20, 128),
            (28, 1),
            (36, 20),
            (56, 26),
            (64, 128),
        ] {
            v[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        v[8..12].copy_from_slice(&3_u32.to_le_bytes());
        v[44..48].copy_from_slice(&512_u32.to_le_bytes());
        v[73..77].copy_from_slice(b"\n \r\n");
        let text = descriptor("monolithicSparse", "RW 2048 SPARSE \"x.vmdk\"", "");
        v[512..512 + text.len()].copy_from_slice(&text);
        for (at, value) in change {
            v[*at..*at + value.len()].copy_from_slice(value);
        }
        v
    };
    for (name, attack, change) in [
        (
            "vmdk-grain",
            "CVE-2014-0144 class: a grain of no size",
            (20_usize, [0_u8; 8]),
        ),
        ("vmdk-grain-max", "a grain that overflows", (20, [0xff; 8])),
        (
            "vmdk-capacity",
            "a capacity that overflows",
            (12, [0xff; 8]),
        ),
        (
            "vmdk-directory",
            "a directory outside the file",
            (56, [0xfe; 8]),
        ),
        ("vmdk-footer", "a footer that is not there", (56, [0xff; 8])),
        (
            "vmdk-descriptor",
            "a descriptor without end",
            (36, [0xff; 8]),
        ),
    ] {
        add(
            name,
            attack,
            sparse(&[(change.0, &change.1)]),
            Perhaps,
            false,
        );
    }
    add(
        "vmdk-tables",
        "grain tables without end",
        sparse(&[(44, &[0xff; 4])]),
        Perhaps,
        false,
    );

    // VHD and VHDX.
    let vhd = Vhd::new(1 << 20, 4096);
    let child = |name: &str, code: &'static [u8; 4]| {
        Vhd {
            id: [9; 16],
            parent: Some(([7; 16], String::new(), vec![(code, name.to_owned())])),
            ..vhd.clone()
        }
        .build()
    };
    add(
        "vhd-parent",
        "a parent out of the directory",
        child(r"..\out\canary.vhd", b"W2ru"),
        No,
        false,
    );
    add(
        "vhd-parent-abs",
        "a parent by its path here",
        child(&format!("{out}/canary.vhd"), b"W2ku"),
        No,
        false,
    );
    add(
        "vhd-parent-link",
        "a parent by a symbolic link",
        child(r".\outside\canary.vhd", b"W2ru"),
        No,
        false,
    );
    add(
        "vhd-parent-url",
        "a parent by a URL",
        child(&format!("file://{out}/canary.vhd"), b"MacX"),
        No,
        false,
    );
    add(
        "vhd-parent-fifo",
        "a parent that is a FIFO",
        child("fifo", b"Wi2k"),
        No,
        false,
    );
    add(
        "vhd-self",
        "a parent that is itself",
        child("vhd-self", b"Wi2k"),
        No,
        false,
    );
    let broken = |at: usize, value: &[u8]| {
        let mut bytes = vhd.build();
        bytes[512 + at..512 + at + value.len()].copy_from_slice(value);
        seal_vhd(&mut bytes[512..1536], 36);
        bytes
    };
    add(
        "vhd-block-0",
        "CVE-2014-0142: division by the block size",
        broken(32, &[0; 4]),
        No,
        false,
    );
    add(
        "vhd-block-max",
        "CVE-2014-0142: a block size that overflows",
        broken(32, &[0xff; 4]),
        No,
        false,
    );
    add(
        "vhd-entries",
        "CVE-2014-0144: a table that is too small",
        broken(28, &[0; 4]),
        No,
        false,
    );
    add(
        "vhd-entries-max",
        "CVE-2014-0144: a table without end",
        broken(28, &[0xff; 4]),
        Perhaps,
        true,
    );
    add(
        "vhd-table",
        "a table outside the file",
        broken(16, &[0x7f; 8]),
        No,
        false,
    );
    let mut bytes = vhd.build();
    bytes[1536..2560].fill(0xfe);
    add("vhd-blocks", "blocks outside the file", bytes, Yes, false);
    let mut bytes = vhd.build();
    for at in [0, bytes.len() - 512] {
        bytes[at + 48..at + 56].fill(0xff);
        seal_vhd(&mut bytes[at..at + 512], 64);
    }
    add("vhd-size", "a size that overflows", bytes, No, false);

    let vhdx = Vhdx::new(MIB, MIB);
    let names = |key, name: String| {
        let mut child = vhdx.clone();
        child.parent = Some(Parent {
            linkage: vhdx.data_write_id,
            names: vec![(key, name)],
        });
        child.data_write_id = Uuid::from_u128(5);
        child.build()
    };
    add(
        "vhdx-parent",
        "a parent out of the directory",
        names("relative_path", r"..\out\canary.vhdx".into()),
        No,
        false,
    );
    add(
        "vhdx-parent-abs",
        "a parent by its path here",
        names("absolute_win32_path", format!("{out}/canary.vhdx")),
        No,
        false,
    );
    add(
        "vhdx-parent-link",
        "a parent by a symbolic link",
        names("relative_path", r".\outside\canary.vhdx".into()),
        No,
        false,
    );
    add(
        "vhdx-self",
        "a parent that is itself",
        names("relative_path", "vhdx-self".into()),
        No,
        false,
    );
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = vhdx.build();
        change(&mut bytes);
        for at in HEADERS {
            seal_vhdx(&mut bytes[at..at + 4096]);
        }
        for at in REGION_TABLES {
            seal_vhdx(&mut bytes[at..at + (64 << 10)]);
        }
        bytes
    };
    let item = METADATA_AT + (64 << 10);
    for (name, attack, at, value, opens) in [
        (
            "vhdx-block-0",
            "CVE-2014-0148 class: division by the block size",
            item,
            &[0; 4][..],
            No,
        ),
        (
            "vhdx-block-max",
            "a block size that overflows",
            item,
            &[0xff; 4],
            No,
        ),
        (
            "vhdx-sector-0",
            "CVE-2014-0148: a sector of no size",
            item + 48,
            &[0; 4],
            No,
        ),
        (
            "vhdx-size",
            "a size that overflows",
            item + 16,
            &[0xff; 8],
            No,
        ),
        (
            "vhdx-items",
            "items without end",
            METADATA_AT + 10,
            &[0xff; 2],
            No,
        ),
        (
            "vhdx-log",
            "CVE-2014-0148: a log outside the file",
            HEADERS[1] + 48,
            &[1; 32],
            No,
        ),
        (
            "vhdx-regions",
            "regions without end",
            REGION_TABLES[0] + 8,
            &[0xff; 4],
            No,
        ),
        (
            "vhdx-region",
            "a region outside the file",
            REGION_TABLES[0] + 32,
            &[0xff; 8],
            No,
        ),
        (
            "vhdx-bat",
            "blocks outside the file",
            BAT_AT,
            &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
            Yes,
        ),
    ] {
        add(
            name,
            attack,
            broken(&|b| b[at..at + value.len()].copy_from_slice(value)),
            opens,
            false,
        );
    }

    // VDI.
    let vdi = |at: usize, value: &[u8]| {
        let mut v = vec![0; 2 << 20];
        v[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        for (at, value) in [
            (0x44, 0x1_0001_u32),
            (0x48, 0x190),
            (0x4c, 1),
            (0x154, 0x200),
            (0x158, 0x400),
            (0x168, 512),
            (0x170, 1 << 20),
            (0x178, 1 << 20),
            (0x180, 1),
            (0x184, 1),
        ] {
            v[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        v[at..at + value.len()].copy_from_slice(value);
        v
    };
    for (name, attack, at, value) in [
        (
            "vdi-block-0",
            "CVE-2014-0144: division by the block size",
            0x178,
            &[0; 4][..],
        ),
        (
            "vdi-blocks",
            "CVE-2014-0144: blocks without end",
            0x180,
            &[0xff; 4],
        ),
        ("vdi-size", "a size that overflows", 0x170, &[0xff; 8]),
        ("vdi-map", "a map outside the file", 0x154, &[0xff; 4]),
        ("vdi-parent", "a parent", 0x1b8, &[1; 16]),
    ] {
        add(name, attack, vdi(at, value), Perhaps, false);
    }

    // Numbers in a qcow2 header.
    let patched = |patches: &[(usize, &[u8])]| {
        Qcow2 {
            patches: patches.iter().map(|(a, v)| (*a, v.to_vec())).collect(),
            ..Qcow2::default()
        }
        .build()
    };
    for (name, attack, patches) in [
        (
            "bits-0",
            "CVE-2014-0144: clusters of no size",
            &[(20, &[0; 4][..])][..],
        ),
        (
            "bits-63",
            "CVE-2014-0144: clusters that overflow",
            &[(20, &[0, 0, 0, 63])],
        ),
        (
            "bits-70",
            "what OpenStack's inspector calls safe",
            &[(20, &[0, 0, 0, 70])],
        ),
        (
            "l1-max",
            "CVE-2014-0143: an L1 table of 2^32 entries",
            &[(36, &[0xff; 4])],
        ),
        (
            "l1-none",
            "CVE-2014-0145 class: an L1 table that is too small",
            &[(24, &[0, 0, 1, 0, 0, 0, 0, 0])],
        ),
        (
            "l1-far",
            "an L1 table outside the file",
            &[(40, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0])],
        ),
        (
            "l1-overflow",
            "an L1 table whose end overflows",
            &[(40, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0])],
        ),
        (
            "refcounts-max",
            "CVE-2014-0143: a refcount table of 2^32 clusters",
            &[(56, &[0xff; 4])],
        ),
        (
            "refcount-order",
            "a refcount of 2^255 bits",
            &[(96, &[0, 0, 0, 255])],
        ),
        (
            "header-max",
            "CVE-2014-0147 class: a header without end",
            &[(100, &[0xff; 4])],
        ),
        (
            "backing-max",
            "CVE-2014-0145: a name without end",
            &[(8, &[0, 0, 0, 0, 0, 0, 0, 104]), (16, &[0xff; 4])],
        ),
        (
            "backing-far",
            "a name outside the file",
            &[(8, &[0x7f; 8]), (16, &[0, 0, 0, 9])],
        ),
        (
            "extension-max",
            "an extension without end",
            &[(104, &[0xe2, 0x79, 0x2a, 0xca, 0xff, 0xff, 0xff, 0xff])],
        ),
        (
            "size-max",
            "CVE-2013-2096: a disk of 16 EiB",
            &[(24, &[0xff; 8])],
        ),
        ("encryption", "an unknown method", &[(32, &[0xff; 4])]),
        ("features", "unknown features", &[(72, &[0xff; 8])]),
    ] {
        add(name, attack, patched(patches), No, false);
    }
    for (name, attack, patches) in [
        (
            "snapshots-max",
            "CVE-2014-0145: 2^32 snapshots",
            &[(60, &[0xff; 4][..])][..],
        ),
        (
            "snapshots-far",
            "snapshots outside the file",
            &[(60, &[0, 0, 0, 9]), (64, &[0x7f; 8])],
        ),
        (
            "snapshots-extra",
            "CVE-2014-0146: snapshots that overflow",
            &[
                (60, &[0, 0, 0, 9]),
                (64, &[0, 0, 0, 0, 0, 5, 0, 0]),
                (TAIL, &[0xff; 4096]),
            ],
        ),
        (
            "refcounts-far",
            "refcounts outside the file",
            &[(48, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0])],
        ),
        (
            "refcounts-header",
            "CVE-2014-0143 class: refcounts in the header",
            &[(48, &[0; 8])],
        ),
        (
            "refcounts-self",
            "a refcount block that is the table",
            &[(65536, &[0, 0, 0, 0, 0, 1, 0, 0])],
        ),
        (
            "l2-far",
            "an L2 table outside the file",
            &[(L1, &[0x80, 0, 0xff, 0xff, 0xff, 0xff, 0, 0])],
        ),
        (
            "l2-header",
            "an L2 table in the header",
            &[(L1, &[0x80, 0, 0, 0, 0, 0, 2, 0])],
        ),
        (
            "l2-self",
            "a cluster that is the L2 table: a write destroys the map",
            &[(L2, &[0x80, 0, 0, 0, 0, 4, 0, 0])],
        ),
        (
            "l2-l1",
            "a cluster that is the L1 table",
            &[(L2, &[0x80, 0, 0, 0, 0, 3, 0, 0])],
        ),
        (
            "l2-refcounts",
            "a cluster that is the refcount block",
            &[(L2, &[0x80, 0, 0, 0, 0, 2, 0, 0])],
        ),
        (
            "l2-head",
            "a cluster that is the header: a write makes another image",
            &[(L2, &[0x80, 0, 0, 0, 0, 0, 0, 0]), (L2 + 7, &[0])],
        ),
    ] {
        // Offset 0 means that there is no cluster.
        add(name, attack, patched(patches), Perhaps, name == "l2-head");
    }
    // Sizes and bombs.
    let mut huge = Qcow2 {
        size: 1 << 50,
        ..Qcow2::default()
    };
    huge.patches.push((36, (2_u32 << 20).to_be_bytes().into()));
    huge.patches.push((40, (TAIL as u64).to_be_bytes().into()));
    huge.patches.push((TAIL + (16 << 20), vec![0; 8]));
    add(
        "huge",
        "CVE-2013-2096: 1 PiB in 16 MiB",
        huge.build(),
        Yes,
        false,
    );
    let zeroes = vec![0; 65536];
    let deflated = {
        use std::io::Write as _;
        let best = flate2::Compression::best();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), best);
        encoder.write_all(&vec![0; 16 << 20]).unwrap();
        encoder.finish().unwrap()
    };
    let packed = |stream: &[u8], zstd: bool| {
        let sectors = (stream.len() as u64).div_ceil(512) - 1;
        let mut image = Qcow2 {
            size: 512 << 20,
            incompatible: if zstd { 8 } else { 0 },
            l2: vec![1 << 62 | sectors << 54 | TAIL as u64; 8192],
            tail: stream.to_vec(),
            ..Qcow2::default()
        };
        if zstd {
            image.patches.push((100, vec![0, 0, 0, 112, 1]));
            image.patches.push((105, vec![0; 7]));
        }
        image.build()
    };
    add(
        "bomb-zlib",
        "CVE-2013-4463: 512 MiB from one compressed cluster",
        packed(&deflated, false),
        Yes,
        false,
    );
    let frame = zstd::bulk::compress(&zeroes, 19).unwrap();
    add(
        "bomb-zstd",
        "the same by zstd",
        packed(&frame, true),
        Perhaps,
        false,
    );
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 19).unwrap();
    add(
        "bomb-zstd-long",
        "a cluster of 16 MiB in a place for 64 KiB",
        packed(&bomb, true),
        Perhaps,
        false,
    );
    add(
        "bomb-shared",
        "512 MiB from one plain cluster",
        Qcow2 {
            size: 512 << 20,
            l2: vec![COPIED | TAIL as u64; 8192],
            tail: vec![0x5a; 65536],
            ..Qcow2::default()
        }
        .build(),
        Yes,
        false,
    );

    // Streams that are much longer than they look, or lie about it.
    let gzip = {
        use std::io::Write as _;
        let best = flate2::Compression::best();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), best);
        for _ in 0..64 {
            encoder.write_all(&vec![0; 1 << 20]).unwrap();
        }
        encoder.finish().unwrap()
    };
    let mut lies = gzip.clone();
    let end = lies.len();
    lies[end - 4..].fill(0xff);
    add(
        "bomb-gz",
        "CVE-2013-4463: 64 MiB in 64 KiB",
        gzip,
        Perhaps,
        false,
    );
    add(
        "gz-size",
        "a size that is not that of the content",
        lies,
        Perhaps,
        false,
    );
    let zst = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let mut lies = zst.clone();
    lies[4..16].fill(0xff);
    add(
        "bomb-zst",
        "CVE-2013-4463: 64 MiB in 6 KiB",
        zst,
        Perhaps,
        false,
    );
    add("zst-window", "a window without end", lies, Perhaps, false);
    let mut xz = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec();
    xz.resize(1 << 20, 0xff);
    add("xz-index", "an index without end", xz, Perhaps, false);

    // Keys: a header that makes whoever tries one count for ever.
    let luks = |patches: &[(usize, &[u8])]| {
        let mut image = Qcow2::default();
        image.patches.push((32, vec![0, 0, 0, 2]));
        let mut extension = vec![0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16];
        extension.extend((TAIL as u64).to_be_bytes());
        extension.extend((2_u64 << 20).to_be_bytes());
        image.patches.push((104, extension));
        let mut header = vec![0; 2 << 20];
        header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        header[8..11].copy_from_slice(b"aes");
        header[40..51].copy_from_slice(b"xts-plain64");
        header[72..78].copy_from_slice(b"sha256");
        header[104..108].copy_from_slice(&4096_u32.to_be_bytes());
        header[108..112].copy_from_slice(&64_u32.to_be_bytes());
        header[164..168].copy_from_slice(&1000_u32.to_be_bytes());
        header[208..212].copy_from_slice(&0x00ac_71f3_u32.to_be_bytes());
        header[212..216].copy_from_slice(&1000_u32.to_be_bytes());
        header[248..252].copy_from_slice(&8_u32.to_be_bytes());
        header[252..256].copy_from_slice(&4000_u32.to_be_bytes());
        for (at, value) in patches {
            header[*at..*at + value.len()].copy_from_slice(value);
        }
        image.tail = header;
        image.build()
    };
    for (name, attack, at) in [
        (
            "luks-iterations",
            "a key derivation of 2^32 steps",
            212_usize,
        ),
        ("luks-digest", "a digest of 2^32 steps", 164),
        ("luks-stripes", "key material of 2^32 stripes", 252),
        ("luks-key", "a key of 2^32 bytes", 108),
        ("luks-offset", "key material outside the file", 248),
    ] {
        add(name, attack, luks(&[(at, &[0xff; 4])]), Perhaps, false);
    }

    // Files with two faces, and formats that are not read.
    let mut hybrid = Qcow2::default();
    hybrid.patches.push((510, b"\x55\xaa".to_vec()));
    add(
        "hybrid-mbr",
        "qcow2 and a boot record",
        hybrid.build(),
        No,
        false,
    );
    let mut hybrid = Qcow2::default();
    hybrid.patches.push((32769, b"CD001".to_vec()));
    add(
        "hybrid-iso",
        "qcow2 and ISO 9660",
        hybrid.build(),
        No,
        false,
    );
    let mut qcow = vec![0; 65536];
    qcow[..8].copy_from_slice(b"QFI\xfb\0\0\0\x01");
    qcow[32] = 0xff;
    add(
        "qcow1",
        "CVE-2014-0222, CVE-2014-0223: qcow version 1",
        qcow,
        No,
        false,
    );
    let mut qed = vec![0; 65536];
    qed[..4].copy_from_slice(b"QED\0");
    add("qed", "QED, which names backing files", qed, No, false);
    let mut parallels = vec![0; 65536];
    parallels[..16].copy_from_slice(b"WithoutFreeSpace");
    add(
        "parallels",
        "CVE-2014-0142: Parallels",
        parallels,
        No,
        false,
    );
    cases
}

/// Looks at it, converts it, checks it, opens it for writing and writes to it.
fn abuse(world: &World, case: &Case) {
    let context = format!("{} ({})", case.name, case.attack);
    let inside = world.path().join("in");
    let path = inside.join(case.name);
    std::fs::write(&path, &case.image).unwrap();
    let started = Instant::now();
    let look = |args: &[&str]| {
        let (code, _) = world.guestlens(args, &context);
        if code == Some(0) {
            assert_ne!(case.opens, No, "{context}: {args:?}");
        }
        code
    };
    for verb in ["info", "map"] {
        let code = look(&[verb, "--json", case.name]);
        if case.opens == Yes && verb == "info" {
            assert_eq!(code, Some(0), "{context}");
        }
    }
    for format in ["raw", "qcow2"] {
        let target = format!("{}.{format}", case.name);
        let mut args = vec!["convert", "--to", format, case.name, &target];
        if case.name.starts_with("luks") {
            args.extend(["--key-file", "link-key"]);
        }
        look(&args);
        let target = inside.join(target);
        if target.exists() {
            assert!(!file_contains(&target), "{context}");
            std::fs::remove_file(target).unwrap();
        }
    }
    world.guestlens(&["compare", case.name, case.name], &context);
    world.guestlens(&["check", case.name], &context);
    let (code, output) = world.guestlens(&["verify", "--json", case.name], &context);
    let verdict = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        code,
        Some(if case.safe { 0 } else { 4 }),
        "{context}: {verdict}"
    );
    assert!(
        std::fs::read(&path).unwrap() == case.image,
        "{context}: changed by reading"
    );
    // Now for writing.
    world.guestlens(&["check", "--repair", case.name], &context);
    std::fs::write(&path, &case.image).unwrap();
    if write(world, case.name, &context) {
        assert_ne!(case.opens, No, "{context}: opened for writing");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(120),
        "{context}: {:?}",
        started.elapsed()
    );
    assert!(
        world.outside() == world.before,
        "{context}: the host's files changed"
    );
}

/// Offers it for writing and writes to it; whether it could be opened.
fn write(world: &World, name: &str, context: &str) -> bool {
    let socket = world.path().join("socket");
    let _ = std::fs::remove_file(&socket);
    let mut server = world
        .command(&["nbd", "--rw", "--once", "--json", "--unix"])
        .arg(&socket)
        .arg(name)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ready = !line.is_empty();
    if ready {
        let export = format!("nbd+unix:///?socket={}", socket.display());
        // Whether a write succeeds is the image's affair.
        let _ = tool("timeout")
            .args(["60", "qemu-io", "-f", "raw"])
            .args(["-c", "read 0 64k", "-c", "write -P 90 0 64k"])
            .args([
                "-c",
                "write -P 91 256k 512",
                "-c",
                "discard 128k 64k",
                "-c",
                "flush",
            ])
            .arg(&export)
            .output()
            .unwrap();
    }
    let output = server.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{context}: {errors}");
    assert!(
        output.status.code().is_some_and(|c| c < 100),
        "{context}: {}: {errors}",
        output.status
    );
    assert!(!contains(&output.stderr), "{context}");
    ready
}

#[test]
fn no_image_gets_out() {
    let world = World::new();
    let cases = cases(&world);
    assert!(cases.len() > 100, "{}", cases.len());
    let mut names: Vec<_> = cases.iter().map(|c| c.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| abuse(&world, case)));
        if tried.is_err() {
            wrong.push(case.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn chains_without_end() {
    let world = World::new();
    let inside = world.path().join("in");
    for number in 0..1000 {
        let image = Qcow2 {
            backing: Some(format!("chain{}", number + 1).into()),
            backing_format: Some("qcow2".into()),
            ..Qcow2::default()
        };
        let bytes = image.build();
        std::fs::write(inside.join(format!("chain{number}")), bytes).unwrap();
    }
    for (name, to) in [("one", "two"), ("two", "one")] {
        let image = Qcow2 {
            backing: Some(to.into()),
            backing_format: Some("qcow2".into()),
            ..Qcow2::default()
        };
        std::fs::write(inside.join(name), image.build()).unwrap();
    }
    for name in ["chain0", "one"] {
        // The image itself is told, what lies below is not looked at.
        let (code, _) = world.guestlens(&["info", name], name);
        assert_eq!(code, Some(3));
        let (code, _) = world.guestlens(&["convert", "--to", "raw", name, "raw"], name);
        assert_eq!(code, Some(1));
        assert!(!write(&world, name, name));
    }
}

/// CVE-2008-2004, CVE-2010-2237, CVE-2013-1922, CVE-2014-0134, CVE-2015-1851, CVE-2015-7548,
/// CVE-2016-2140, CVE-2026-24708 and others: a guest writes an image's header into its raw disk,
/// and somebody opens the disk later without saying that it is raw.
#[test]
fn a_raw_disk_stays_raw() {
    let world = World::new();
    let path = world.path().join("in/disk");
    let canary = world.path().join("out/canary").display().to_string();
    let mut disk = Qcow2 {
        backing: Some(canary.clone().into_bytes()),
        backing_format: Some("raw".into()),
        ..Qcow2::default()
    }
    .build();
    disk.resize(1 << 20, 0x11);
    std::fs::write(&path, &disk).unwrap();
    // As raw it is what it is, to the last byte.
    let (code, _) = world.guestlens(
        &["convert", "--format", "raw", "--to", "raw", "disk", "copy"],
        "raw",
    );
    assert_eq!(code, Some(0));
    assert!(std::fs::read(world.path().join("in/copy")).unwrap() == disk);
    for verb in ["info", "map"] {
        let (code, output) = world.guestlens(&[verb, "--json", "--format", "raw", "disk"], "raw");
        assert_eq!(code, Some(0));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("qcow2") && !text.contains(&canary), "{text}");
    }
    let (code, _) = world.guestlens(&["verify", "--format", "raw", "disk"], "raw");
    assert_eq!(code, Some(4));
    // Without its format it is refused, also for writing.
    let convert = ["convert", "--to", "raw", "disk", "copy2"];
    assert_eq!(world.guestlens(&convert, "guessed").0, Some(1));
    // What its header says is told, and nothing it names is looked at.
    let (code, _) = world.guestlens(&["info", "disk"], "guessed");
    assert_eq!(code, Some(3));
    assert!(!write(&world, "disk", "guessed"));
    // And a disk that looks raw is written to only if that is said.
    std::fs::write(&path, vec![0x22; 1 << 20]).unwrap();
    assert!(!write(&world, "disk", "guessed"));
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    let error = open_path(&path, &options).err().unwrap();
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    assert!(
        error.hint().unwrap_or_default().contains("--format raw")
            || format!("{error:?}").contains("--format raw")
    );
    assert!(std::fs::read(&path).unwrap() == vec![0x22; 1 << 20]);
    let help = run(Command::new(guestlens_path()).arg("--help")).stdout;
    let help = String::from_utf8(help).unwrap();
    for verb in ["resize", "snapshot", "rebase", "commit"] {
        if !help.lines().any(|l| l.trim_start().starts_with(verb)) {
            support::record_skip(&format!("there is no verb {verb}"));
            continue;
        }
        let args: &[&str] = match verb {
            "resize" => &["resize", "disk", "2M"],
            "snapshot" => &["snapshot", "create", "disk", "name"],
            "rebase" => &["rebase", "disk"],
            _ => &["commit", "disk"],
        };
        let output = world.command(args).output().unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{verb}: {output:?}");
        assert!(
            std::fs::read(&path).unwrap() == vec![0x22; 1 << 20],
            "{verb}"
        );
    }
    assert!(world.outside() == world.before);
}
