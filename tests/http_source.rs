//! Images on web servers: ranges, what a server may do wrong, and what must not be mixed up.
#![cfg(feature = "remote")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guestlens::formats::{FormatError, FormatErrorKind, OpenOptions, open_path};
use support::{guestlens, run, shell, workdir};

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Sends everything, whatever was asked for.
    NoRanges,
    /// Another range than was asked for.
    OtherRange,
    /// No `Content-Range`.
    NoContentRange,
    /// The body ends early, every time.
    Short,
    /// The body ends early, every second time.
    ShortSometimes,
    /// 503 every second time.
    BusySometimes,
    /// Sends it compressed, or says so.
    Encoded,
    /// Redirects to itself.
    Loop,
    NotFound,
    Forbidden,
    /// Headers without end.
    LongHeaders,
    /// No HTTP at all.
    Garbage,
}

struct Object {
    bytes: Mutex<Arc<Vec<u8>>>,
    tag: Mutex<Option<String>>,
    date: Option<&'static str>,
    fault: Mutex<Fault>,
    /// Path that redirects to the object, as long as it holds.
    redirect: AtomicBool,
    requests: AtomicUsize,
    sent: AtomicUsize,
    /// Headers of requests, for looking at.
    seen: Mutex<Vec<String>>,
    pause: Mutex<Duration>,
}

/// A web server with one object at `/disk`, and at `/old`, which redirects there.
struct WebServer {
    object: Arc<Object>,
    address: std::net::SocketAddr,
}

impl WebServer {
    fn start(bytes: Vec<u8>) -> Self {
        let object = Arc::new(Object {
            bytes: Mutex::new(Arc::new(bytes)),
            tag: Mutex::new(Some("\"one\"".into())),
            date: Some("Sat, 21 Nov 2020 08:00:00 GMT"),
            fault: Mutex::new(Fault::None),
            redirect: AtomicBool::new(true),
            requests: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            seen: Mutex::new(Vec::new()),
            pause: Mutex::new(Duration::ZERO),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&object);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let object = Arc::clone(&serving);
                let stream = stream.unwrap();
                std::thread::spawn(move || while serve_one(&stream, &object).unwrap_or(false) {});
            }
        });
        Self { object, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn set(&self, fault: Fault) {
        *self.object.fault.lock().unwrap() = fault;
    }

    fn requests(&self) -> usize {
        self.object.requests.load(Ordering::SeqCst)
    }
}

/// One request; whether the connection goes on.
fn serve_one(stream: &TcpStream, object: &Object) -> std::io::Result<bool> {
    let mut head = Vec::new();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let number = object.requests.fetch_add(1, Ordering::SeqCst);
    object.seen.lock().unwrap().extend(head.iter().cloned());
    std::thread::sleep(*object.pause.lock().unwrap());
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
        })
    };
    let mut stream = stream;
    let fault = *object.fault.lock().unwrap();
    let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let mut answer = |status: &str, headers: &str, body: &[u8], len: usize| {
        object.sent.fetch_add(body.len(), Ordering::SeqCst);
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{headers}\r\n"
        )?;
        stream.write_all(body)?;
        Ok::<_, std::io::Error>(())
    };
    let again = number % 2 == 1;
    match fault {
        Fault::Garbage => {
            answer("\x01\x02 what", "", b"", 0)?;
            return Ok(false);
        }
        Fault::LongHeaders => {
            let lines = "X-Long: yes yes yes yes yes yes yes yes\r\n".repeat(5000);
            answer("206 Partial Content", &lines, b"", 0)?;
            return Ok(true);
        }
        Fault::Loop => {
            answer("302 Found", &format!("Location: {path}x\r\n"), b"", 0)?;
            return Ok(true);
        }
        Fault::NotFound => {
            answer("404 Not Found", "", b"", 0)?;
            return Ok(true);
        }
        Fault::Forbidden => {
            answer("403 Forbidden", "", b"", 0)?;
            return Ok(true);
        }
        Fault::BusySometimes if again => {
            answer("503 Busy", "", b"", 0)?;
            return Ok(true);
        }
        _ => {}
    }
    if path.starts_with("/old") && object.redirect.load(Ordering::SeqCst) {
        answer("302 Found", "Location: /disk\r\n", b"", 0)?;
        return Ok(true);
    }
    let bytes = Arc::clone(&object.bytes.lock().unwrap());
    let tag = object.tag.lock().unwrap().clone();
    let mut headers = String::new();
    if let Some(tag) = &tag {
        headers += &format!("ETag: {tag}\r\n");
    }
    if let Some(date) = object.date {
        headers += &format!("Last-Modified: {date}\r\n");
    }
    if fault == Fault::Encoded {
        headers += "Content-Encoding: gzip\r\n";
    }
    let changed = header("If-Range").is_some_and(|wanted| Some(wanted) != tag);
    let range = header("Range").and_then(|r| {
        let (start, last) = r.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let Some((mut start, last)) = range.filter(|_| fault != Fault::NoRanges && !changed) else {
        answer("200 OK", &headers, &bytes, bytes.len())?;
        return Ok(true);
    };
    if start >= bytes.len() {
        answer("416 Range Not Satisfiable", "", b"", 0)?;
        return Ok(true);
    }
    if fault == Fault::OtherRange {
        start += 1;
    }
    let end = (last + 1).min(bytes.len());
    if fault != Fault::NoContentRange {
        headers += &format!(
            "Content-Range: bytes {start}-{}/{}\r\n",
            end - 1,
            bytes.len()
        );
    }
    let body = &bytes[start..end];
    let short = fault == Fault::Short || (fault == Fault::ShortSometimes && again);
    let sent = if short { &body[..body.len() / 2] } else { body };
    answer("206 Partial Content", &headers, sent, body.len())?;
    Ok(!short)
}

fn options() -> OpenOptions {
    OpenOptions {
        format: Some("raw".into()),
        ..OpenOptions::default()
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    (0..len)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        })
        .collect()
}

/// An error with all its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn refusal(url: &str) -> FormatError {
    open_path(Path::new(url), &options())
        .err()
        .expect("a refusal")
}

#[test]
fn reads_by_ranges_and_each_block_once() {
    // Not whole blocks, not whole sectors.
    let bytes = noise((5 << 20) + 777);
    let server = WebServer::start(bytes.clone());
    let image = open_path(Path::new(&server.url("/disk")), &options()).unwrap();
    let device = image.device();
    assert_eq!(device.len(), bytes.len().next_multiple_of(512) as u64);
    // One after the other: more and more is asked for at once.
    let mut read = Vec::new();
    let step = 4096;
    while read.len() + step <= bytes.len() {
        read.extend(device.read_vec(read.len() as u64, step).unwrap());
    }
    assert!(read == bytes[..read.len()]);
    let requests = server.requests();
    assert!(requests <= 8, "{requests} requests");
    assert!(server.object.sent.load(Ordering::SeqCst) <= bytes.len());
    // Again, here and there, from several threads: all of it is here already.
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (device, bytes) = (&device, &bytes);
            scope.spawn(move || {
                for n in 0..50usize {
                    let at = (n * 104_729 * 31 + thread * 999_983) % (5 << 20);
                    let read = device.read_vec(at as u64, 700).unwrap();
                    assert!(read == bytes[at..at + 700]);
                }
            });
        }
    });
    assert_eq!(server.requests(), requests);
    assert!(device.write_all_at(0, &[1]).is_err());
}

#[test]
fn verbs_take_addresses() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p t/etc; echo remote >t/etc/hostname
         truncate -s 64M d.raw; mke2fs -q -F -t ext4 -d t d.raw
         qemu-img convert -f raw -O qcow2 -c d.raw d.qcow2",
    );
    let bytes = std::fs::read(dir.path().join("d.qcow2")).unwrap();
    let server = WebServer::start(bytes);
    let url = server.url("/old/name?token=secret");
    let cat = run(guestlens().args(["cat", &url, "/etc/hostname"]));
    assert_eq!(cat.stdout, b"remote\n");
    let info = run(guestlens().args(["info", "--json", &url]));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert!(!info.to_string().contains("secret"), "{info}");
    let seen = server.object.seen.lock().unwrap().join("\n");
    assert!(seen.contains("GET /old/name?token=secret"), "{seen}");
    assert!(
        seen.to_ascii_lowercase()
            .contains("accept-encoding: identity")
    );
}

#[test]
fn servers_that_do_it_wrong_are_refused() {
    let server = WebServer::start(noise(1 << 20));
    let url = server.url("/disk");
    for (fault, says) in [
        (Fault::NoRanges, "does not serve ranges"),
        (Fault::OtherRange, "another range"),
        (Fault::NoContentRange, "does not say which range"),
        (Fault::Short, "did not send all"),
        (Fault::Encoded, "another encoding"),
        (Fault::Loop, "redirects without end"),
        (Fault::NotFound, "no such object"),
        (Fault::Forbidden, "does not let us"),
        (Fault::LongHeaders, "request failed"),
        (Fault::Garbage, "request failed"),
    ] {
        server.set(fault);
        let error = refusal(&url);
        let text = whole(&error);
        assert!(text.contains(says), "{fault:?}: {text}");
    }
    // What passes is tried again.
    for fault in [Fault::ShortSometimes, Fault::BusySometimes] {
        server.set(fault);
        let image = open_path(Path::new(&url), &options()).unwrap();
        let device = image.device();
        for at in [0, 300_000, 900_000] {
            device.read_vec(at, 4096).unwrap();
        }
    }
    let empty = WebServer::start(Vec::new());
    assert!(whole(&refusal(&empty.url("/disk"))).contains("empty"));
}

#[test]
fn an_object_that_changes_is_an_error() {
    for case in ["tag", "date", "size"] {
        let server = WebServer::start(noise(8 << 20));
        let object = &server.object;
        if case != "tag" {
            // A weak tag says nothing about bytes.
            *object.tag.lock().unwrap() = Some("W/\"x\"".into());
        }
        let image = open_path(Path::new(&server.url("/disk")), &options()).unwrap();
        let device = image.device();
        device.read_vec(0, 4096).unwrap();
        match case {
            "tag" => *object.tag.lock().unwrap() = Some("\"two\"".into()),
            "size" => {
                let longer = noise((8 << 20) + 512);
                *object.bytes.lock().unwrap() = Arc::new(longer);
            }
            _ => *object.tag.lock().unwrap() = Some("\"now strong\"".into()),
        }
        let error = device.read_vec(4 << 20, 4096).unwrap_err();
        let text = whole(&error);
        assert!(text.contains("has changed"), "{case}: {text}");
        // What was read before is still what it was.
        assert!(device.read_vec(0, 4096).is_ok());
    }
}

/// Where a name leads may end; the name is good for longer.
#[test]
fn a_redirection_is_remembered_and_renewed() {
    let bytes = noise(8 << 20);
    let server = WebServer::start(bytes.clone());
    let image = open_path(Path::new(&server.url("/old")), &options()).unwrap();
    let before = server.requests();
    assert_eq!(before, 2);
    let device = image.device();
    assert!(device.read_vec(4 << 20, 512).unwrap() == bytes[4 << 20..(4 << 20) + 512]);
    assert_eq!(server.requests(), before + 1);
    server.object.redirect.store(false, Ordering::SeqCst);
    assert!(device.read_vec(6 << 20, 512).is_ok());
}

#[test]
fn secrets_stay_out_of_messages() {
    let server = WebServer::start(noise(1 << 20));
    server.set(Fault::Forbidden);
    let url = format!("http://me:hidden@{}/disk?key=hidden", server.address);
    let error = refusal(&url);
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    assert!(!format!("{} {error:?}", whole(&error)).contains("hidden"));
    let output = guestlens().args(["-vvv", "info", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("hidden"), "{text}");
    let seen = server.object.seen.lock().unwrap().join("\n");
    assert!(
        seen.to_ascii_lowercase().contains("authorization: basic"),
        "{seen}"
    );
    let output = guestlens()
        .args(["info", "http://me:hidden@127.0.0.1:1/x?hidden"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("hidden"), "{text}");
}

/// A slow server delays, and no more is asked for than is needed.
#[test]
fn slow_servers_are_waited_for() {
    let server = WebServer::start(noise(4 << 20));
    *server.object.pause.lock().unwrap() = Duration::from_millis(400);
    let start = Instant::now();
    let image = open_path(Path::new(&server.url("/disk")), &options()).unwrap();
    let device = image.device();
    // Neighbours are asked for at once.
    device.read_vec(0, 2 << 20).unwrap();
    assert!(server.requests() <= 3, "{}", server.requests());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_server_that_accepts_and_is_silent_is_given_up() {
    // One that listens and never answers would take the whole patience; one that ends the
    // connection at once is tried a few times.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 10]);
        }
    });
    let error = refusal(&format!("http://{address}/disk"));
    assert_eq!(error.kind(), FormatErrorKind::Io);
    assert!(tried.load(Ordering::SeqCst) <= 6);
}
