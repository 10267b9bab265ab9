//! qcow2: features, references, and where its tables lead.
//!
//! Fields are looked at one by one, so that each check has its own answer also where an open would
//! stop at the first; what is left is what an open checks.

use super::report::Report;
use super::{judged, test};
use crate::block::BlockDevice;
use crate::formats::error::Result;
use crate::formats::qcow2::header::Header;
use crate::formats::qcow2::{layout, read_header, snapshot};
use crate::ondisk::bytes::{be32, be64, slice};
use crate::ondisk::text::printable;
use crate::ondisk::units::{to_u64, to_usize, usize_from_u32};

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;

const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// Most table bytes looked through: what an image of 8 TiB in clusters of 64 KiB has.
const MAX_TABLES: u64 = 1 << 30;
/// Table bytes read at once.
const PIECE: u64 = 1 << 20;

/// Checks an image; returns the size of its virtual disk.
///
/// # Errors
/// What reading reports.
pub fn check(file: &BlockDevice, report: &mut Report) -> Result<Option<u64>> {
    let mut head = [0; 112];
    let len = file.read_some_at(0, &mut head)?;
    let head = head.get(..len).unwrap_or_default();
    let Some(version) = be32(head, 4).filter(|_| len >= 72) else {
        report.fail("header", "the header is cut short");
        return Ok(None);
    };
    let size = be64(head, 24);
    let known = matches!(version, 2 | 3);
    test(
        report,
        "version",
        known,
        "the version is known",
        format!("version {version}, not 2 or 3"),
    );
    fields(head, version, report);
    if version >= 3 {
        features(be64(head, 72).unwrap_or(0), report);
    }
    extensions(file, head, version, report)?;
    let Some(header) = judged(read_header(file), "header", report)? else {
        return Ok(size);
    };
    report.pass(
        "header",
        "the header is sound, its tables lie inside the file",
    );
    snapshots(file, &header, report)?;
    refcounts(file, &header, report);
    tables(file, &header, report)?;
    Ok(Some(header.size))
}

fn fields(head: &[u8], version: u32, report: &mut Report) {
    let u32_at = |at| be32(head, at).unwrap_or(0);
    let backing = be64(head, 8).unwrap_or(0);
    test(
        report,
        "backing-file",
        backing == 0,
        "there is no backing file",
        "the image stands on a backing file, which is another file",
    );
    let bits = u32_at(20);
    test(
        report,
        "cluster-bits",
        (9..=21).contains(&bits),
        "the cluster size is within bounds",
        format!("cluster_bits is {bits}, not 9 to 21"),
    );
    match u32_at(32) {
        0 => report.pass("encryption", "the content is not encrypted"),
        method @ (1 | 2) => report.fail(
            "encryption",
            format!(
                "the content is encrypted ({}) and cannot be looked at",
                if method == 1 { "AES" } else { "LUKS" }
            ),
        ),
        method => report.fail("encryption", format!("unknown encryption method {method}")),
    }
    let l1 = u64::from(u32_at(36)).saturating_mul(8);
    test(
        report,
        "l1-size",
        l1 <= 32 << 20,
        "the L1 table is within bounds",
        format!("an L1 table of {l1} bytes"),
    );
    let table = u64::from(u32_at(56)).saturating_mul(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    test(
        report,
        "refcount-table-size",
        table <= 8 << 20 && table > 0,
        "the refcount table is within bounds",
        format!("a refcount table of {table} bytes"),
    );
    let count = u32_at(60);
    test(
        report,
        "snapshot-count",
        count <= 65536,
        "the number of snapshots is within bounds",
        format!("{count} snapshots"),
    );
    if version >= 3 {
        let order = u32_at(96);
        test(
            report,
            "refcount-order",
            order <= 6,
            "the refcount width is known",
            format!("refcount_order is {order}, not 0 to 6"),
        );
        let len = u64::from(u32_at(100));
        let cluster = 1_u64.checked_shl(bits).unwrap_or(0);
        test(
            report,
            "header-length",
            (104..=cluster).contains(&len) && len.is_multiple_of(8),
            "the header's length is within bounds",
            format!("header_length is {len}"),
        );
    }
}

fn features(bits: u64, report: &mut Report) {
    test(
        report,
        "data-file",
        bits & INCOMPATIBLE_DATA_FILE == 0,
        "there is no external data file",
        "the content is in an external data file, which is another file",
    );
    let unknown = bits & !INCOMPATIBLE_KNOWN;
    test(
        report,
        "unknown-features",
        unknown == 0,
        "all incompatible features are known",
        format!("unknown incompatible features {unknown:#x}"),
    );
    test(
        report,
        "extended-l2",
        bits & INCOMPATIBLE_EXTENDED_L2 == 0,
        "no extended L2 entries",
        "the image has extended L2 entries, which not every reader knows",
    );
    test(
        report,
        "corrupt",
        bits & INCOMPATIBLE_CORRUPT == 0,
        "the image is not marked as corrupt",
        "the image is marked as corrupt",
    );
    if bits & INCOMPATIBLE_DIRTY != 0 {
        report.note("dirty", "the image was not closed properly");
    }
}

/// Header extensions: each inside the first cluster, and what they hold.
fn extensions(file: &BlockDevice, head: &[u8], version: u32, report: &mut Report) -> Result<()> {
    let bits = be32(head, 20).unwrap_or(0);
    let start = if version >= 3 {
        usize_from_u32(be32(head, 100).unwrap_or(0))
    } else {
        72
    };
    if !(9..=21).contains(&bits) {
        return Ok(());
    }
    let mut data = vec![0; 1_usize.wrapping_shl(bits)];
    let len = file.read_some_at(0, &mut data)?;
    data.truncate(len);
    let backing_at = be64(head, 8).filter(|&at| at != 0).and_then(to_usize);
    let end = backing_at.unwrap_or(len).min(len);
    let mut bad = Vec::new();
    let mut at = start;
    let mut seen: Vec<u32> = Vec::new();
    // Each step moves on by at least 8 bytes, so the cluster bounds the loop.
    while at < end {
        let (Some(kind), Some(len)) = (be32(&data, at), be32(&data, at.saturating_add(4))) else {
            bad.push("the extensions are cut short".to_owned());
            break;
        };
        if kind == 0 {
            break;
        }
        let body = at.saturating_add(8);
        let len = usize_from_u32(len);
        let Some(content) = slice(&data, body, len).filter(|_| body.saturating_add(len) <= end)
        else {
            bad.push(format!("extension {kind:#x} does not fit"));
            break;
        };
        if seen.contains(&kind) && seen.len() < 64 {
            bad.push(format!("extension {kind:#x} is there twice"));
        }
        seen.push(kind);
        match kind {
            EXTENSION_DATA_FILE => report.fail(
                "data-file",
                format!("an external data file is named: '{}'", printable(content)),
            ),
            EXTENSION_BACKING_FORMAT if backing_at.is_none() => {
                bad.push("the format of a backing file that is not there".into());
            }
            EXTENSION_BACKING_FORMAT => {}
            EXTENSION_FEATURE_NAMES if !len.is_multiple_of(48) => {
                bad.push(format!("a table of feature names of {len} bytes"));
            }
            EXTENSION_FEATURE_NAMES => {}
            EXTENSION_ENCRYPTION if len != 16 => {
                bad.push(format!("an encryption header of {len} bytes"));
            }
            EXTENSION_ENCRYPTION => {}
            EXTENSION_BITMAPS if len != 24 => {
                bad.push(format!("a bitmaps extension of {len} bytes"));
            }
            EXTENSION_BITMAPS => report.note("bitmaps", "the image holds dirty bitmaps"),
            _ => report.note("header-extensions", format!("unknown extension {kind:#x}")),
        }
        if seen.len() > 64 || bad.len() > 8 {
            bad.push("too many extensions".into());
            break;
        }
        at = body.saturating_add(len.checked_next_multiple_of(8).unwrap_or(usize::MAX));
    }
    test(
        report,
        "header-extensions",
        bad.is_empty(),
        "the header extensions are sound",
        bad.join("; "),
    );
    Ok(())
}

fn snapshots(file: &BlockDevice, header: &Header, report: &mut Report) -> Result<()> {
    let Some(list) = judged(snapshot::read_table(file, header), "snapshot-table", report)? else {
        return Ok(());
    };
    let mut bad = Vec::new();
    for snapshot in &list {
        let (at, entries) = (snapshot.l1_offset, snapshot.l1_entries);
        let size = snapshot.info.virtual_size;
        let checked =
            crate::formats::qcow2::header::check_l1(&header.layout, size, at, entries, file.len());
        if let Err(e) = checked {
            bad.push(format!("snapshot '{}': {e}", snapshot.info.name));
        }
        if bad.len() > 8 {
            break;
        }
    }
    test(
        report,
        "snapshot-table",
        bad.is_empty(),
        "the snapshot table is sound",
        bad.join("; "),
    );
    if !list.is_empty() {
        report.note("snapshots", format!("{} internal snapshots", list.len()));
    }
    Ok(())
}

fn refcounts(file: &BlockDevice, header: &Header, report: &mut Report) {
    let len =
        u64::from(header.refcount_table_clusters).saturating_mul(header.layout.cluster_size());
    let at = header.refcount_table_offset;
    let inside = at > 0 && at.checked_add(len).is_some_and(|end| end <= file.len());
    test(
        report,
        "refcount-table",
        inside,
        "the refcount table lies inside the file",
        format!(
            "a refcount table of {len} bytes at {at} of a file of {}",
            file.len()
        ),
    );
}

/// What the active tables lead to.
#[derive(Default)]
struct Mapped {
    plain: u64,
    compressed: u64,
    packed_bytes: u64,
    /// Host offsets in the L2 table at hand; at most as many as a table has entries.
    hosts: Vec<u64>,
    /// One of them was there twice.
    twice: Option<u64>,
    /// Where tables are, from the first to the last: start and end.
    tables: Vec<(u64, u64)>,
    bad: Vec<String>,
}

impl Mapped {
    /// Tables must lie apart from each other.
    fn place_tables(&mut self, mut tables: Vec<(u64, u64)>) {
        tables.retain(|(start, end)| start < end);
        tables.sort_unstable();
        let overlap = tables.windows(2).find_map(|pair| match pair {
            [a, b] if a.1 > b.0 => Some((a.0, b.0)),
            _ => None,
        });
        if let Some((a, b)) = overlap {
            self.bad(format!("the tables at {a} and {b} overlap"));
        }
        self.tables = tables;
    }

    /// Whether a cluster lies on a table.
    fn hits_table(&self, host: u64) -> bool {
        let next = self.tables.partition_point(|(start, _)| *start <= host);
        next.checked_sub(1)
            .and_then(|n| self.tables.get(n))
            .is_some_and(|(_, end)| host < *end)
    }

    fn bad(&mut self, what: String) {
        if self.bad.len() < 8 {
            self.bad.push(what);
        }
    }
}

/// Looks through the active L1 and L2 tables: every offset inside the file, and no more clusters
/// than the file has room for.
fn tables(file: &BlockDevice, header: &Header, report: &mut Report) -> Result<()> {
    let cluster = header.layout.cluster_size();
    let bytes = to_usize(u64::from(header.l1_entries).saturating_mul(8)).unwrap_or(0);
    // At most 32 MiB, inside the file.
    let l1 = if bytes > 0 {
        file.read_vec(header.l1_offset, bytes)?
    } else {
        Vec::new()
    };
    let mut mapped = Mapped::default();
    let mut l2: Vec<u64> = Vec::new();
    for (number, entry) in l1.chunks_exact(8).enumerate() {
        let at = be64(entry, 0).unwrap_or(0) & layout::OFFSET_MASK;
        if at == 0 {
            continue;
        }
        let inside = at.checked_add(cluster).is_some_and(|end| end <= file.len());
        if header.layout.aligned(at) && inside {
            l2.push(at);
        } else {
            mapped.bad(format!("L1 entry {number} leads to {at}"));
        }
    }
    let count = l2.len();
    l2.sort_unstable();
    l2.dedup();
    if l2.len() < count {
        mapped.bad("L1 entries share an L2 table".into());
    }
    if to_u64(l2.len()).saturating_mul(cluster) > MAX_TABLES {
        report.fail("tables", "there are more tables than are looked through");
        return Ok(());
    }
    let mut places = fixed_tables(file, header, &mut mapped)?;
    places.extend(l2.iter().map(|&at| (at, at.saturating_add(cluster))));
    mapped.place_tables(places);
    for at in l2 {
        table(file, header, at, &mut mapped)?;
    }
    test(
        report,
        "tables",
        mapped.bad.is_empty(),
        "all tables and clusters lie inside the file, apart from each other",
        mapped.bad.join("; "),
    );
    // Each table by itself, and all together by what they take at least.
    let taken = mapped
        .plain
        .saturating_mul(cluster)
        .saturating_add(mapped.packed_bytes);
    let room = file.len();
    let shared = match mapped.twice {
        Some(host) => Some(format!("the cluster at {host} is used more than once")),
        None if taken > room.saturating_add(cluster) => Some(format!(
            "clusters of {taken} bytes in a file of {room}: some are used more than once"
        )),
        None => None,
    };
    test(
        report,
        "shared-clusters",
        shared.is_none(),
        "no cluster is used twice",
        shared.unwrap_or_default(),
    );
    if mapped.compressed > 0 {
        report.note(
            "expansion",
            format!(
                "{} compressed bytes become {}",
                mapped.packed_bytes,
                mapped.compressed.saturating_mul(cluster)
            ),
        );
    }
    Ok(())
}

/// Where the header, the L1 table and the refcounts are.
fn fixed_tables(
    file: &BlockDevice,
    header: &Header,
    mapped: &mut Mapped,
) -> Result<Vec<(u64, u64)>> {
    let cluster = header.layout.cluster_size();
    let l1 = header.l1_offset;
    let l1_len = u64::from(header.l1_entries).saturating_mul(8);
    let at = header.refcount_table_offset;
    // At most 8 MiB, as the header was checked for.
    let len = u64::from(header.refcount_table_clusters).saturating_mul(cluster);
    let mut places = vec![
        (0, cluster),
        (l1, l1.saturating_add(l1_len)),
        (at, at.saturating_add(len)),
    ];
    let mut table = vec![0; to_usize(len).unwrap_or(0)];
    let read = file.read_some_at(at, &mut table)?;
    table.truncate(read);
    for entry in table.chunks_exact(8) {
        let block = be64(entry, 0).unwrap_or(0) & !511;
        if block == 0 {
            continue;
        }
        let end = block.saturating_add(cluster);
        if !header.layout.aligned(block) || end > file.len() {
            mapped.bad(format!("a refcount block at {block}"));
        } else {
            places.push((block, end));
        }
    }
    Ok(places)
}

fn table(file: &BlockDevice, header: &Header, at: u64, mapped: &mut Mapped) -> Result<()> {
    let cluster = header.layout.cluster_size();
    let entry_len = 1_usize.wrapping_shl(header.layout.l2_entry_bits());
    let mut done = 0;
    while done < cluster {
        let len = PIECE.min(cluster.saturating_sub(done));
        let piece = file.read_vec(at.saturating_add(done), to_usize(len).unwrap_or(0))?;
        for entry in piece.chunks_exact(entry_len) {
            entry_at(file, header, entry, mapped);
        }
        done = done.saturating_add(len);
    }
    mapped.hosts.sort_unstable();
    let pair = mapped.hosts.windows(2).find(|p| p.first() == p.last());
    if let Some(&[host, ..]) = pair {
        mapped.twice = Some(host);
    }
    mapped.hosts.clear();
    Ok(())
}

fn entry_at(file: &BlockDevice, header: &Header, entry: &[u8], mapped: &mut Mapped) {
    let value = be64(entry, 0).unwrap_or(0);
    if value == 0 {
        return;
    }
    // Subclusters do not matter for where an entry leads.
    let mut plain = header.layout;
    plain.subclusters = false;
    match plain.decode(value, 0, 0).map(|run| run.mapping) {
        Ok(layout::Mapping::Compressed { host, len, .. }) => {
            mapped.compressed = mapped.compressed.saturating_add(1);
            mapped.hosts.push(host);
            // The length is rounded up to sectors; half of that is wrong on average.
            mapped.packed_bytes = mapped
                .packed_bytes
                .saturating_add(len.saturating_sub(511).max(8));
            if host >= file.len() {
                mapped.bad(format!("a compressed cluster at {host}"));
            }
        }
        Ok(layout::Mapping::Data { host } | layout::Mapping::Zero { host: Some(host) }) => {
            mapped.plain = mapped.plain.saturating_add(1);
            mapped.hosts.push(host);
            if host >= file.len() {
                mapped.bad(format!("a cluster at {host}"));
            } else if mapped.hits_table(host) {
                mapped.bad(format!("a cluster at {host}, where a table is"));
            }
        }
        Ok(_) => {}
        // Version 2 and subclusters have no zero bit; it is an error where it is read.
        Err(e) => mapped.bad(e.to_string()),
    }
}
