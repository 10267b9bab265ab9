//! How modes, times, sizes and guest names are written.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Map, Value};

use crate::fs::{Attributes, FileType, Timestamp};
use crate::ondisk::text::printable;

/// A message in one line: control characters escaped, everything else (also the backslashes of
/// what was escaped before) left as it is.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\\' => out.push('\\'),
            c => out.push_str(&printable(c.encode_utf8(&mut [0; 4]).as_bytes())),
        }
    }
    out
}

/// A path of the host, printable.
pub fn host_path(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// Puts text that may not be UTF-8 into a JSON object; see the text of [`super`].
pub fn insert_bytes(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    object.insert(
        key.into(),
        String::from_utf8_lossy(bytes).into_owned().into(),
    );
    if std::str::from_utf8(bytes).is_err() {
        object.insert(format!("{key}_bytes"), hex(bytes).into());
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// `drwxr-xr-t`, as `ls -l` writes it.
pub fn mode(attributes: &Attributes) -> String {
    let p = attributes.permissions;
    let mut out = String::with_capacity(10);
    out.push(attributes.file_type.letter());
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = p >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, p & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    out
}

/// Words for a file type, as `stat` writes them.
pub fn type_words(attributes: &Attributes) -> &'static str {
    match attributes.file_type {
        FileType::Regular if attributes.size == 0 => "regular empty file",
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharDevice => "character special file",
        FileType::BlockDevice => "block special file",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// The letter `find -type` uses.
pub fn type_letter(file_type: FileType) -> char {
    match file_type {
        FileType::Regular => 'f',
        other => other.letter(),
    }
}

/// Year, month, day, hour, minute, second of a point in time, in UTC (proleptic Gregorian).
fn civil(secs: i64) -> (i64, i64, i64, i64, i64, i64) {
    let days = secs.div_euclid(86_400);
    let rest = secs.rem_euclid(86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: eras of 400
    // years that begin on 1 March.
    let z = days.saturating_add(719_468);
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60)
}

/// `2024-02-29 12:34:56` in UTC.
pub fn time(time: Timestamp) -> String {
    let (y, mo, d, h, mi, s) = civil(time.secs);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02}")
}

/// `2024-02-29 12:34:56.123456789 +0000`, as `stat` writes it under TZ=UTC.
pub fn time_ns(t: Timestamp) -> String {
    format!("{}.{:09} +0000", time(t), t.nanos)
}

/// `2024-02-29T12:34:56.123456789Z` (RFC 3339).
pub fn time_rfc3339(time: Timestamp) -> String {
    let (y, mo, d, h, mi, s) = civil(time.secs);
    format!(
        "{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{:09}Z",
        time.nanos
    )
}

/// A number of bytes in powers of 1024 with one letter: `512`, `1.5K`, `20G`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1023.95 && unit < UNITS.len() - 1 {
        scaled /= 1024.0;
        unit += 1;
    }
    let letter = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || scaled >= 9.95 {
        format!("{scaled:.0}{letter}")
    } else {
        format!("{scaled:.1}{letter}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::InodeNo;

    #[test]
    fn messages_are_one_line_and_not_escaped_twice() {
        assert_eq!(
            one_line("a \\x1b b\u{1b}[31m\nc\n"),
            "a \\x1b b\\x1b[31m\\nc"
        );
    }

    #[test]
    fn json_of_bytes() {
        let mut object = Map::new();
        insert_bytes(&mut object, "name", b"ok");
        insert_bytes(&mut object, "target", b"a\xffb");
        assert_eq!(
            Value::Object(object).to_string(),
            "{\"name\":\"ok\",\"target\":\"a\u{fffd}b\",\"target_bytes\":\"61ff62\"}"
        );
    }

    #[test]
    fn modes_like_ls() {
        for (file_type, permissions, want) in [
            (FileType::Regular, 0o644, "-rw-r--r--"),
            (FileType::Regular, 0o4755, "-rwsr-xr-x"),
            (FileType::Regular, 0o6644, "-rwSr-Sr--"),
            (FileType::Directory, 0o1777, "drwxrwxrwt"),
            (FileType::Directory, 0o1776, "drwxrwxrwT"),
            (FileType::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            let zero = Timestamp::default();
            let attributes = Attributes {
                ino: InodeNo(1),
                generation: 0,
                file_type,
                permissions,
                nlink: 1,
                uid: 0,
                gid: 0,
                size: 0,
                blocks: 0,
                block_size: 4096,
                device: None,
                atime: zero,
                mtime: zero,
                ctime: zero,
                crtime: None,
            };
            assert_eq!(mode(&attributes), want);
        }
    }

    #[test]
    fn times_like_date() {
        // `date -u -d @N '+%F %T'`
        for (secs, want) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_210_096, "2024-02-29 12:34:56"),
            (4_294_967_296, "2106-02-07 06:28:16"),
            (-2_147_483_648, "1901-12-13 20:45:52"),
            (15_032_385_535, "2446-05-10 22:38:55"),
        ] {
            assert_eq!(time(Timestamp { secs, nanos: 0 }), want);
        }
        let t = Timestamp { secs: 1, nanos: 5 };
        assert_eq!(time_rfc3339(t), "1970-01-01T00:00:01.000000005Z");
        // No panic at the ends.
        time(Timestamp {
            secs: i64::MIN,
            nanos: 0,
        });
        time(Timestamp {
            secs: i64::MAX,
            nanos: 0,
        });
    }

    #[test]
    fn sizes_like_du() {
        for (bytes, want) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1536, "1.5K"),
            (10 << 20, "10M"),
            (1 << 40, "1.0T"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }
}
