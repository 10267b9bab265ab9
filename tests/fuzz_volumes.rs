//! Partition tables and signatures, mutated: no panic, no long run, and whatever is found lies
//! where it says.

mod support;

use guestlens::block::memory::MemoryBackend;
use guestlens::fs::signature::recognise;
use guestlens::ondisk::checksum::crc32;
use guestlens::volumes::find_table;
use support::fuzz::{self, mutate};
use support::{shell, workdir};

const DISK: usize = 192 << 10;

/// Small disks with a table each, and the places of it that matter.
fn disks() -> Vec<(Vec<u8>, Vec<std::ops::Range<usize>>)> {
    let dir = workdir();
    shell(
        dir.path(),
        r#"
truncate -s 192K gpt mbr
sgdisk -a1 -n1:40:99 -n2:100:200 -n5:210:300 -t1:ef00 -c2:data gpt >/dev/null
printf 'label: dos\n1: start=8,size=40,type=83,bootable\n2: start=64,size=300,type=5\n5: start=72,size=20\n6: start=100,size=20\n7: start=140,size=20\n' |
    sfdisk -q --force mbr
truncate -s 192K swap fat
mkswap -q swap 2>/dev/null || mkswap swap >/dev/null
mkfs.fat fat >/dev/null
"#,
    );
    let read = |name: &str| {
        let mut bytes = std::fs::read(dir.path().join(name)).unwrap();
        bytes.resize(DISK, 0);
        bytes
    };
    let end = DISK - 33 * 512;
    vec![
        (
            read("gpt"),
            vec![
                440..512,
                512..604,
                1024..1800,
                DISK - 512..DISK - 420,
                end..end + 600,
            ],
        ),
        (
            read("mbr"),
            vec![
                440..512,
                64 * 512 + 440..65 * 512,
                92 * 512 + 440..93 * 512,
                440..DISK,
            ],
        ),
        (read("swap"), vec![1024..1100, 4086..4096]),
        (read("fat"), vec![0..90, 440..512]),
        (vec![0; DISK], vec![0..4096, 0..70 << 10]),
    ]
}

/// Makes a header's checksums right again, so that what lies behind them is reached.
fn repair(disk: &mut [u8], header: usize) {
    let array = &disk[1024..1024 + 128 * 128];
    let sum = crc32(array);
    disk[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
    disk[header + 16..header + 20].fill(0);
    let sum = crc32(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn mutated_tables_and_signatures() {
    let disks = disks();
    fuzz::run(100_000, |number, rng| {
        let (disk, places) = &disks[rng.index(disks.len())];
        let mut disk = disk.clone();
        for _ in 0..=rng.index(3) {
            let place = places[rng.index(places.len())].clone();
            mutate(rng, &mut disk, place);
        }
        if rng.one_in(2) {
            repair(&mut disk, 512);
        }
        if rng.one_in(30) {
            disk.truncate(rng.index(DISK));
        }
        let device = MemoryBackend::from_bytes(disk).into_device();
        let size = [None, None, None, Some(512), Some(4096)][rng.index(5)];
        if let Ok(Some(found)) = find_table(&device, size) {
            let partitions = &found.table.partitions;
            assert!(partitions.len() <= 256, "case {number}");
            assert!(found.problems.len() <= 1024, "case {number}");
            for pair in partitions.windows(2) {
                assert!(pair[0].number < pair[1].number, "case {number}");
            }
            for partition in partitions {
                if let Ok(part) = partition.device(&device) {
                    assert!(part.len() <= device.len(), "case {number}");
                    if rng.one_in(8) {
                        let _ = recognise(&part);
                    }
                }
            }
        }
        let _ = recognise(&device);
    });
}
