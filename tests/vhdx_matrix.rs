//! VHDX images: made by qemu-img and compared with what it reads, also with logs that need to be
//! replayed; differencing ones, which QEMU does not open, made by the specification and compared
//! with what was put in.

mod support;

use std::path::Path;
use std::sync::Arc;

use guestlens::block::{BlockErrorKind, ExtentKind};
use guestlens::formats::{FormatError, FormatErrorKind, Image, OpenOptions, open_path};
use guestlens::ondisk::uuid::Uuid;
use support::fuzz::Rng;
use support::qemu_io::QemuIo;
use support::vhdx::{
    BAT_AT, BAT_ID, Change, FILE_PARAMETERS, HEADERS, METADATA_AT, METADATA_ID, MIB, Parent,
    REGION_TABLES, Vhdx, guid, log_entry, region_table, seal,
};
use support::{run, tool, workdir};

fn open(path: &Path) -> Result<Arc<dyn Image>, FormatError> {
    open_path(path, &OpenOptions::default())
}

fn refused(path: &Path) -> FormatError {
    match open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn whole(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

fn content(image: &Arc<dyn Image>) -> Vec<u8> {
    let device = image.device();
    device
        .read_vec(0, usize::try_from(device.len()).unwrap())
        .unwrap()
}

/// What qemu-img reads after it replayed the log, of a copy.
fn qemu_reads(path: &Path) -> Vec<u8> {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    let out = path.with_extension("raw");
    let _ = tool("qemu-img")
        .args(["check", "-q", "-r", "all", "-f", "vhdx"])
        .arg(&copy)
        .output()
        .unwrap();
    run(tool("qemu-img")
        .args(["convert", "-f", "vhdx", "-O", "raw"])
        .arg(&copy)
        .arg(&out));
    std::fs::read(&out).unwrap()
}

fn same(image: &Arc<dyn Image>, truth: &[u8], rng: &mut Rng, name: &str) {
    let device = image.device();
    assert_eq!(device.len(), truth.len() as u64, "{name}");
    assert_eq!(image.info().virtual_size, device.len(), "{name}");
    assert!(content(image) == truth, "{name}");
    for _ in 0..50 {
        let at = rng.index(truth.len());
        let len = rng.index(3_000_000).min(truth.len() - at);
        assert!(
            device.read_vec(at as u64, len).unwrap() == truth[at..at + len],
            "{name}: {at}+{len}"
        );
    }
    let mut at = 0;
    while at < truth.len() as u64 {
        let extent = device.extent_at(at, device.len() - at).unwrap();
        let end = at + extent.len;
        if extent.kind != ExtentKind::Data {
            let zero = truth[at as usize..end as usize].iter().all(|&b| b == 0);
            assert!(zero, "{name}: {at}..{end} is no hole");
        }
        at = end;
    }
}

#[test]
fn as_qemu_reads_them() {
    let dir = workdir();
    let rng = &mut Rng::new(1);
    for (number, (subformat, block, log, size)) in [
        ("dynamic", "1M", "1M", 5 << 20),
        ("dynamic", "2M", "2M", 9 << 20),
        ("dynamic", "8M", "1M", (20 << 20) + 512),
        ("dynamic", "256M", "4M", 1 << 20),
        ("dynamic", "1M", "1M", 3 << 30),
        ("fixed", "1M", "1M", 5 << 20),
        ("fixed", "16M", "3M", (2 << 20) + 512),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{number}.vhdx"));
        let option = format!("subformat={subformat},block_size={block},log_size={log}");
        run(tool("qemu-img")
            .args(["create", "-q", "-f", "vhdx", "-o", &option])
            .arg(&path)
            .arg(size.to_string()));
        let mut io = tool("qemu-io");
        io.args(["-f", "vhdx"]);
        for n in 1..8 {
            let len = (1 + rng.below(256)) * 512;
            let at = rng.below((size - len) / 512) * 512;
            io.args(["-c", &format!("write -P {n} {at} {len}")]);
        }
        run(io.arg(&path));
        let image = open(&path).unwrap();
        let info = image.info();
        assert!(info.warnings.is_empty() && !info.dirty_flag, "{info:?}");
        assert_eq!((info.format, info.virtual_size), ("vhdx", size));
        assert_eq!(info.format_specific["subformat"], subformat);
        if size < 1 << 30 {
            same(&image, &qemu_reads(&path), rng, &format!("{number}"));
        } else {
            // Its bitmaps' entries lie among those of its blocks.
            let raw = dir.path().join("raw");
            run(tool("qemu-img")
                .args(["convert", "-f", "vhdx", "-O", "raw"])
                .arg(&path)
                .arg(&raw));
            let file = guestlens::formats::open_path(&raw, &OpenOptions::default()).unwrap();
            let (ours, theirs) = (image.device(), file.device());
            for at in (0..size).step_by(64 << 20) {
                assert!(
                    ours.read_vec(at, 64 << 20).unwrap() == theirs.read_vec(at, 64 << 20).unwrap()
                );
            }
        }
    }
}

#[test]
fn what_a_killed_writer_leaves() {
    let dir = workdir();
    let path = dir.path().join("image.vhdx");
    run(tool("qemu-img")
        .args(["create", "-q", "-f", "vhdx", "-o", "block_size=1M"])
        .arg(&path)
        .arg("8M"));
    let mut writer = QemuIo::open_as("vhdx", &path, &[]);
    for command in ["write -P 1 0 1500K", "write -P 2 6M 4K", "flush"] {
        writer.say(command);
    }
    drop(writer);
    let before = std::fs::read(&path).unwrap();
    let image = open(&path).unwrap();
    same(&image, &qemu_reads(&path), &mut Rng::new(1), "killed");
    drop(image);
    assert!(std::fs::read(&path).unwrap() == before);
}

/// An image whose table is right only after its log was replayed.
/// Also as it is once everything is in its place.
fn with_log(rng: &mut Rng, number: u64) -> (Vec<u8>, Vec<u8>) {
    let id = Uuid::from_u128(0x4711);
    let blocks = 6;
    let mut image = Vhdx::new(blocks * MIB, MIB);
    image.log_id = id;
    for block in 0..blocks {
        image
            .sectors
            .insert(block * 2048 + rng.index(2048), 1 + block as u8);
    }
    let bytes = image.build();
    let end = bytes.len() as u64;
    let mut applied = bytes.clone();
    let table = &bytes[BAT_AT..BAT_AT + 4096];
    // Each entry leaves the table in another state; the last one counts. Some also write into
    // blocks, or zero parts of them.
    let mut ring = vec![0; MIB];
    let start = (rng.below(200) * 4096) as usize;
    let mut at = if number.is_multiple_of(3) {
        MIB - 8192
    } else {
        start
    };
    let count = 1 + rng.below(6);
    let first_sequence = 1 + rng.below(1 << 40);
    let first_at = at;
    for n in 0..count {
        let mut table = table.to_vec();
        for _ in 0..rng.below(4) {
            let block = rng.index(blocks);
            let state = [0_u64, 2, 3][rng.index(3)];
            table[block * 8..block * 8 + 8].copy_from_slice(&state.to_le_bytes());
        }
        let mut changes = vec![Change::Data(BAT_AT as u64, table)];
        let payload = (BAT_AT + MIB) as u64;
        for _ in 0..rng.below(5) {
            let to = payload + rng.below((end - payload) / 4096) * 4096;
            if rng.one_in(2) {
                let len = (1 + rng.below(64)) * 4096;
                changes.push(Change::Zero(to, len.min(end - to)));
            } else {
                let sector = (0..4096).map(|_| rng.next() as u8).collect();
                changes.push(Change::Data(to, sector));
            }
        }
        for change in &changes {
            match change {
                Change::Data(at, sector) => applied[*at as usize..][..4096].copy_from_slice(sector),
                Change::Zero(at, len) => applied[*at as usize..][..*len as usize].fill(0),
            }
        }
        // Nothing has reached its place since the first entry. (With a later tail QEMU would write
        // older entries again, over what is newer.)
        let entry = log_entry(id, first_sequence + n, first_at as u32, end, &changes);
        for (n, byte) in entry.iter().enumerate() {
            ring[(at + n) % MIB] = *byte;
        }
        at += entry.len();
    }
    // What a torn write or an older log leaves behind.
    let mut stale = log_entry(
        if rng.one_in(2) {
            id
        } else {
            Uuid::from_u128(9)
        },
        first_sequence + count,
        at as u32 % MIB as u32,
        end,
        &[Change::Zero(BAT_AT as u64, 4096)],
    );
    if stale[32..48] == id.to_bytes_le() {
        stale[4000] ^= 1;
    }
    for (n, byte) in stale.iter().enumerate() {
        ring[(at + n) % MIB] = *byte;
    }
    image.log = ring;
    image.log_id = Uuid::nil();
    for at in HEADERS {
        applied[at..at + 4096].copy_from_slice(&image.header(3));
    }
    image.log_id = id;
    (image.build(), applied)
}

#[test]
fn logs_replayed_as_qemu_does() {
    let dir = workdir();
    let rng = &mut Rng::new(5);
    for number in 0..24 {
        let path = dir.path().join(format!("{number}.vhdx"));
        let (bytes, applied) = with_log(rng, number);
        std::fs::write(&path, applied).unwrap();
        let truth = content(&open(&path).unwrap());
        std::fs::write(&path, &bytes).unwrap();
        let image = open(&path).unwrap();
        assert!(image.info().dirty_flag, "{number}");
        same(&image, &truth, rng, &format!("log {number}"));
        // Not every sequence that goes around the end of the ring is found by QEMU.
        if !number.is_multiple_of(3) {
            assert!(qemu_reads(&path) == truth, "log {number} in QEMU");
        }
        drop(image);
        assert!(std::fs::read(&path).unwrap() == bytes);
        for suffix in ["vhdx", "copy", "raw"] {
            let _ = std::fs::remove_file(path.with_extension(suffix));
        }
    }
}

#[test]
fn logs_that_lie() {
    let dir = workdir();
    let path = dir.path().join("image.vhdx");
    let id = Uuid::from_u128(0x4711);
    let mut image = Vhdx::new(2 * MIB, MIB);
    image.log_id = id;
    image.sectors.insert(7, 7);
    let model = image.model(&[]);
    let len = image.build().len() as u64;
    let mut with = |log: Vec<u8>| {
        image.log = log;
        std::fs::write(&path, image.build()).unwrap();
    };
    // An empty log under an identity, as one that was just opened has.
    with(Vec::new());
    assert!(content(&open(&path).unwrap()) == model);
    // Zeroes up to the end of the world take no memory.
    with(log_entry(
        id,
        1,
        0,
        len,
        &[Change::Zero(64 * MIB as u64, 1 << 60)],
    ));
    assert!(content(&open(&path).unwrap()) == model);
    with(log_entry(
        id,
        1,
        0,
        len,
        &[Change::Data(
            ((i64::MAX as u64) & !4095) - 4096,
            vec![1; 4096],
        )],
    ));
    assert!(content(&open(&path).unwrap()) == model);
    // The file was longer once.
    with(log_entry(id, 1, 0, len + 4096, &[]));
    let error = refused(&path);
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    assert!(whole(&error).contains("cut short"), "{}", whole(&error));
    // A log that takes the metadata away.
    with(log_entry(
        id,
        1,
        0,
        len,
        &[Change::Zero(METADATA_AT as u64, 4096)],
    ));
    assert_eq!(refused(&path).kind(), FormatErrorKind::Damaged);
    // Descriptors without end; a sequence whose tail is elsewhere.
    let mut many = log_entry(id, 1, 0, len, &[Change::Zero(METADATA_AT as u64, 4096)]);
    many[24..28].fill(0xff);
    seal(&mut many);
    with(many);
    assert!(content(&open(&path).unwrap()) == model);
    with(log_entry(
        id,
        1,
        8192,
        len,
        &[Change::Zero(METADATA_AT as u64, 4096)],
    ));
    assert!(content(&open(&path).unwrap()) == model);
}

#[test]
fn block_states_and_sector_sizes() {
    let dir = workdir();
    let rng = &mut Rng::new(6);
    for (number, sector) in [512, 4096, 512, 4096].into_iter().enumerate() {
        let blocks = 8;
        let mut image = Vhdx::new(blocks * MIB - 4096 * number, MIB);
        image.sector = sector;
        for (block, state) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
            image.states.insert(block, state);
        }
        for _ in 0..50 {
            let from = 4 * MIB / sector;
            let to = image.size / sector;
            image
                .sectors
                .insert(from + rng.index(to - from), rng.next() as u8);
        }
        let path = dir.path().join(format!("{number}.vhdx"));
        std::fs::write(&path, image.build()).unwrap();
        let opened = open(&path).unwrap();
        let truth = image.model(&[]);
        if sector == 512 {
            assert!(qemu_reads(&path) == truth);
        }
        same(&opened, &truth, rng, &format!("{number}"));
        assert_eq!(opened.device().block_size(), sector as u32);
        let kind = |mib: u64| opened.device().extent_at(mib << 20, 4096).unwrap().kind;
        assert_eq!(kind(0), ExtentKind::Hole);
        for zero in 1..4 {
            assert_eq!(kind(zero), ExtentKind::Zero);
        }
    }
}

#[test]
fn differencing_chains() {
    let rng = &mut Rng::new(3);
    for (number, (block_size, sector)) in [(MIB, 512), (2 * MIB, 4096), (4 * MIB, 512)]
        .into_iter()
        .enumerate()
    {
        let dir = workdir();
        let depth = number + 1;
        let mut model = Vec::new();
        let mut parent = None;
        for level in 0..=depth {
            let mut image = Vhdx::new(12 * MIB + 4096 * rng.index(3), block_size);
            image.sector = sector;
            image.data_write_id = Uuid::from_u128(100 + level as u128);
            image.parent = parent.clone();
            let sectors = image.size / sector;
            for _ in 0..30 {
                let first = rng.index(sectors);
                for s in first..(first + 1 + rng.index(50)).min(sectors) {
                    if level != 1 || s >= block_size / sector {
                        let byte = if rng.one_in(8) { 0 } else { rng.next() as u8 };
                        image.sectors.insert(s, byte);
                    }
                }
            }
            if level == 1 {
                image.states.insert(0, 2);
            }
            let name = format!("level{level}.vhdx");
            std::fs::write(dir.path().join(&name), image.build()).unwrap();
            model = image.model(&model);
            let named = match level % 3 {
                0 => ("relative_path", format!(r".\{name}")),
                1 => ("absolute_win32_path", format!(r"C:\Hyper-V\{name}")),
                _ => ("volume_path", format!(r"\\?\Volume{{26A21BDA}}\x\{name}")),
            };
            parent = Some(Parent {
                linkage: image.data_write_id,
                names: vec![named],
            });
        }
        let path = dir.path().join(format!("level{depth}.vhdx"));
        let image = open(&path).unwrap();
        same(&image, &model, rng, &format!("blocks of {block_size}"));
        assert_eq!(image.info().format_specific["subformat"], "differencing");
        let device = image.device();
        let mut depths = std::collections::BTreeSet::new();
        let mut at = 0;
        while at < device.len() {
            let extent = device.extent_at(at, device.len() - at).unwrap();
            if extent.kind == ExtentKind::Data {
                depths.insert(extent.depth);
            }
            at += extent.len;
        }
        assert_eq!(depths, (0..=depth as u32).collect());
        let mut count = 0;
        let mut here = Some(&image);
        while let Some(image) = here {
            count += 1;
            here = image.backing();
        }
        assert_eq!(count, depth + 1);
    }
}

#[test]
fn parents_by_policy() {
    let dir = workdir();
    let path = dir.path().join("child.vhdx");
    let base = Vhdx::new(2 * MIB, MIB);
    std::fs::write(dir.path().join("base.vhdx"), base.build()).unwrap();
    let with = |linkage: u128, names: &[(&'static str, &str)]| {
        let mut child = base.clone();
        child.data_write_id = Uuid::from_u128(5);
        child.parent = Some(Parent {
            linkage: Uuid::from_u128(linkage),
            names: names.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
        });
        std::fs::write(&path, child.build()).unwrap();
    };
    with(
        0x1111,
        &[
            ("absolute_win32_path", r"C:\gone.vhdx"),
            ("relative_path", r".\base.vhdx"),
        ],
    );
    assert!(open(&path).is_ok());
    with(0x1112, &[("relative_path", r".\base.vhdx")]);
    let error = refused(&path);
    assert_eq!(error.kind(), FormatErrorKind::Damaged);
    assert!(whole(&error).contains("data write id"), "{}", whole(&error));
    with(
        0x1111,
        &[("parent_linkage2", "{00000000-0000-0000-0000-000000001111}")],
    );
    assert_eq!(refused(&path).kind(), FormatErrorKind::Damaged);
    with(
        0x1112,
        &[
            ("parent_linkage2", "{00000000-0000-0000-0000-000000001111}"),
            ("volume_path", r"\\?\Volume{0}\base.vhdx"),
        ],
    );
    assert!(open(&path).is_ok());
    with(0x1111, &[("relative_path", r"..\..\..\..\etc\hostname")]);
    let error = refused(&path);
    assert_eq!(
        error.kind(),
        FormatErrorKind::NotAllowed,
        "{}",
        whole(&error)
    );
    with(0x1111, &[("relative_path", r".\child.vhdx")]);
    assert!(whole(&refused(&path)).contains("leads back"));
}

#[test]
fn damaged_headers_and_tables() {
    let dir = workdir();
    let path = dir.path().join("image.vhdx");
    let mut image = Vhdx::new(4 * MIB, MIB);
    image.sectors.insert(2049, 9);
    let good = image.build();
    let model = image.model(&[]);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
    };
    let reads = |word: &str| {
        let opened = open(&path).unwrap();
        let warnings = opened.info().warnings.join("\n");
        assert!(warnings.contains(word), "{warnings}");
        assert!(content(&opened) == model);
    };
    with(&|b| b[HEADERS[0] + 99] ^= 1);
    reads("one of the two headers");
    with(&|b| b[HEADERS[1] + 99] ^= 1);
    reads("one of the two headers");
    with(&|b| b[REGION_TABLES[0] + 99] ^= 1);
    reads("the second is used");
    let fails = |kind: FormatErrorKind, words: &str, change: &dyn Fn(&mut Vec<u8>)| {
        with(change);
        let error = refused(&path);
        let text = whole(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(words), "{words}: {text}");
        assert!(
            error.hint().is_some() || kind == FormatErrorKind::Unsupported,
            "{text}"
        );
    };
    use FormatErrorKind::{Damaged, Unsupported};
    fails(Damaged, "neither", &|b| {
        b[HEADERS[0] + 99] ^= 1;
        b[HEADERS[1] + 99] ^= 1;
    });
    fails(Damaged, "same number", &|b| {
        let mut other = image.header(1);
        other[100] = 1;
        seal(&mut other);
        b[HEADERS[1]..][..4096].copy_from_slice(&other);
    });
    fails(Damaged, "neither", &|b| {
        b[REGION_TABLES[0] + 99] ^= 1;
        b[REGION_TABLES[1] + 99] ^= 1;
    });
    type Regions<'a> = &'a [(&'a str, usize, usize, bool)];
    let unknown = "00000001-0002-0003-0004-000000000005";
    let bat = (BAT_ID, BAT_AT, MIB, true);
    let metadata = (METADATA_ID, METADATA_AT, MIB, true);
    let tables: [(FormatErrorKind, &str, Regions<'_>); 9] = [
        (
            Unsupported,
            unknown,
            &[bat, metadata, (unknown, 4 * MIB, MIB, true)],
        ),
        (
            Damaged,
            "overlap",
            &[bat, metadata, (unknown, BAT_AT, MIB, false)],
        ),
        (Damaged, "overlap", &[bat, (METADATA_ID, MIB, MIB, true)]),
        (Damaged, "overlap", &[bat, (METADATA_ID, 0, MIB, true)]),
        (
            Damaged,
            "twice",
            &[bat, metadata, (BAT_ID, 4 * MIB, MIB, true)],
        ),
        (
            Damaged,
            "outside",
            &[bat, (METADATA_ID, 1 << 40, MIB, true)],
        ),
        (
            Damaged,
            "outside",
            &[bat, (METADATA_ID, usize::MAX - 10, MIB, true)],
        ),
        (Damaged, "no metadata", &[bat]),
        (Damaged, "no block allocation table", &[metadata]),
    ];
    for (kind, words, regions) in tables {
        fails(kind, words, &|b| {
            let table = region_table(regions);
            b[REGION_TABLES[0]..][..table.len()].copy_from_slice(&table);
        });
    }
    fails(Damaged, "2048 regions", &|b| {
        let table = &mut b[REGION_TABLES[0]..][..64 << 10];
        table[8..12].copy_from_slice(&2048_u32.to_le_bytes());
        seal(table);
    });
    let m = METADATA_AT;
    let item = m + 64 * 1024;
    fails(Damaged, "2048 metadata", &|b| {
        b[m + 10..m + 12].copy_from_slice(&[0, 8])
    });
    fails(Damaged, "signature", &|b| b[m] = 0);
    fails(Unsupported, unknown, &|b| {
        b[m + 32..m + 48].copy_from_slice(&guid(unknown));
    });
    fails(Damaged, "lacks the file parameters", &|b| {
        b[m + 32 + 24] = 1 | b[m + 32 + 24] & !4
    });
    fails(Damaged, "twice", &|b| {
        b[m + 64..m + 80].copy_from_slice(&guid(FILE_PARAMETERS));
    });
    fails(Damaged, "cannot be at", &|b| {
        b[m + 32 + 16..m + 32 + 20].fill(0xff)
    });
    fails(Damaged, "cannot be at", &|b| {
        b[m + 32 + 16..m + 32 + 20].fill(0)
    });
    fails(Damaged, "cannot be at", &|b| {
        b[m + 32 + 20..m + 32 + 24].fill(0xff)
    });
    fails(Damaged, "blocks of", &|b| b[item..item + 4].fill(0));
    fails(Damaged, "blocks of", &|b| b[item] = 1);
    fails(Damaged, "virtual disk of", &|b| {
        b[item + 16..item + 24].fill(0xff)
    });
    fails(Damaged, "virtual disk of", &|b| b[item + 16] = 1);
    fails(Damaged, "too small", &|b| {
        b[item + 16..item + 24].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    });
    fails(Damaged, "logical sector", &|b| b[item + 48] = 1);
    // Tables that lie about blocks.
    for entry in [7_u64 | 8 << 20, 4, 5, 6] {
        with(&|b| b[BAT_AT + 8..BAT_AT + 16].copy_from_slice(&entry.to_le_bytes()));
        let opened = open(&path).unwrap();
        assert_eq!(opened.device().read_vec(0, 512).unwrap(), [0; 512]);
        let error = opened.device().read_vec(MIB as u64, 512).unwrap_err();
        assert_eq!(error.kind(), BlockErrorKind::Damaged);
    }
    with(&|b| b.truncate(b.len() - 2 * MIB));
    let opened = open(&path).unwrap();
    assert!(opened.info().warnings.join("").contains("cut short"));
    assert_eq!(opened.device().read_vec(0, 512).unwrap(), [0; 512]);
    assert!(opened.device().read_vec(MIB as u64, 512).is_err());
}
