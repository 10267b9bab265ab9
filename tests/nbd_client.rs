//! Images behind NBD servers, as every verb opens them: against qemu-nbd, qemu-storage-daemon and
//! servers that lie.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestlens::block::{BlockDevice, BlockErrorKind, ExtentKind};
use guestlens::formats::{FormatErrorKind, OpenOptions, open_path};
use support::{guestlens, run, shell, tool, workdir};

/// A server of another program; killed when dropped.
struct Server(Child);

impl Server {
    fn qemu_nbd(dir: &Path, arguments: &[&str]) -> Self {
        let child = tool("qemu-nbd")
            .current_dir(dir)
            .args(["-t", "-e", "8", "-k"])
            .arg(dir.join("s"))
            .args(arguments)
            .spawn()
            .unwrap();
        let server = Self(child);
        wait_for(&dir.join("s"));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(socket: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    // Its name is there before it is listened on.
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < until, "{} is not there", socket.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn uri(dir: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", dir.join("s").display())
}

fn open(uri: &str, format: &str, write: bool) -> BlockDevice {
    let options = OpenOptions {
        format: Some(format.into()),
        write,
        ..OpenOptions::default()
    };
    let image = open_path(Path::new(uri), &options).unwrap_or_else(|e| panic!("{e:?}"));
    let device = image.device();
    // Images of this kind keep what they need in their device.
    drop(image);
    device
}

/// 16 MiB with data and holes.
fn image(dir: &Path) {
    shell(
        dir,
        "truncate -s 16M disk.raw
         seq 1 300000 | dd of=disk.raw bs=64k seek=16 conv=notrunc status=none
         head -c 3000000 /dev/urandom | dd of=disk.raw bs=1M seek=9 conv=notrunc status=none
         qemu-img convert -f raw -O qcow2 -c disk.raw disk.qcow2",
    );
}

#[test]
fn reads_what_qemu_nbd_offers() {
    let dir = workdir();
    image(dir.path());
    let _server = Server::qemu_nbd(dir.path(), &["-r", "-x", "e", "-f", "qcow2", "disk.qcow2"]);
    let bytes = std::fs::read(dir.path().join("disk.raw")).unwrap();
    let device = Arc::new(open(&uri(dir.path(), "e"), "raw", false));
    assert_eq!(device.len(), 16 << 20);
    assert!(device.read_vec(0, 16 << 20).unwrap() == bytes);
    // From several threads at once, small and large, aligned and not.
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (device, bytes) = (Arc::clone(&device), &bytes);
            scope.spawn(move || {
                for n in 0..60usize {
                    let offset = (n * 7919 * 4099 + thread * 999_983) % (15 << 20);
                    let len = 1 + (n * 104_729) % (if n % 10 == 0 { 1 << 20 } else { 9000 });
                    let read = device.read_vec(offset as u64, len).unwrap();
                    assert!(read == bytes[offset..offset + len], "{offset}+{len}");
                }
            });
        }
    });
    // The map, as qemu-img sees it of the same image.
    let mut at = 0;
    let mut holes = 0;
    while at < device.len() {
        let extent = device.extent_at(at, device.len() - at).unwrap();
        let (start, end) = (at as usize, (at + extent.len) as usize);
        if extent.kind == ExtentKind::Hole {
            assert!(bytes[start..end].iter().all(|b| *b == 0));
            holes += extent.len;
        }
        at += extent.len;
    }
    assert!(holes > 6 << 20, "{holes}");
    assert_eq!(
        device.write_all_at(0, &[1]).unwrap_err().kind(),
        BlockErrorKind::ReadOnly
    );
}

/// The image's own bytes behind the export; what it is, is found out here.
#[test]
fn verbs_take_a_qcow2_image_behind_an_export() {
    let dir = workdir();
    shell(
        dir.path(),
        "mkdir -p t/etc; echo remote >t/etc/hostname; echo ID=debian >t/etc/os-release
         truncate -s 24M d.raw; mke2fs -q -F -t ext4 -d t d.raw
         qemu-img convert -f raw -O qcow2 d.raw d.qcow2",
    );
    let _server = Server::qemu_nbd(dir.path(), &["-r", "-f", "raw", "d.qcow2"]);
    let uri = uri(dir.path(), "");
    let cat = run(guestlens().args(["cat", &uri, "/etc/hostname"]));
    assert_eq!(cat.stdout, b"remote\n");
    let info = run(guestlens().args(["info", "--json", &uri]));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], 24 << 20);
    let ls = run(guestlens().args(["ls", &uri, "/etc"]));
    assert_eq!(ls.stdout, b"hostname\nos-release\n");
}

/// A name inside an image leads nowhere, whatever a user may name.
#[test]
fn names_inside_images_are_not_followed() {
    let dir = workdir();
    image(dir.path());
    let _server = Server::qemu_nbd(dir.path(), &["-r", "-f", "raw", "disk.raw"]);
    let uri = uri(dir.path(), "");
    shell(
        dir.path(),
        &format!("qemu-img create -q -f qcow2 -u -b '{uri}' -F raw top.qcow2 16M"),
    );
    let options = OpenOptions::default();
    let error = open_path(&dir.path().join("top.qcow2"), &options)
        .err()
        .unwrap();
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    // And an image that came from far away refers to nothing here.
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -b disk.raw -F raw near.qcow2",
    );
    drop(_server);
    let _ = std::fs::remove_file(dir.path().join("s"));
    let _server = Server::qemu_nbd(dir.path(), &["-r", "-f", "raw", "near.qcow2"]);
    let error = open_path(Path::new(&uri), &options).err().unwrap();
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
}

#[test]
fn writes_to_a_storage_daemon() {
    let dir = workdir();
    image(dir.path());
    let child = tool("qemu-storage-daemon")
        .current_dir(dir.path())
        .args([
            "--blockdev",
            "driver=file,node-name=f,filename=disk.qcow2,discard=unmap",
            "--blockdev",
            "driver=qcow2,node-name=q,file=f,discard=unmap",
            "--nbd-server",
        ])
        .arg(format!(
            "addr.type=unix,addr.path={}",
            dir.path().join("s").display()
        ))
        .args(["--export", "type=nbd,id=e,node-name=q,name=w,writable=on"])
        .args(["--pidfile", "pid"])
        .spawn()
        .unwrap();
    let mut server = Server(child);
    // The export is added after the socket is there, and this file after the export.
    let until = Instant::now() + Duration::from_secs(20);
    while !dir.path().join("pid").exists() {
        assert!(Instant::now() < until, "the storage daemon is not ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut bytes = std::fs::read(dir.path().join("disk.raw")).unwrap();
    {
        let device = open(&uri(dir.path(), "w"), "raw", true);
        let mut change = |at: usize, new: &[u8]| {
            device.write_all_at(at as u64, new).unwrap();
            bytes[at..at + new.len()].copy_from_slice(new);
        };
        change(0, &[1; 5]);
        change(70_001, &vec![2; 200_000]);
        change((16 << 20) - 3, &[3; 3]);
        change(5 << 20, &vec![4; 3 << 20]);
        assert_eq!(
            device.extent_at(5 << 20, 4096).unwrap().kind,
            ExtentKind::Data
        );
        device.write_zeroes(6 << 20, (1 << 20) + 77, true).unwrap();
        bytes[6 << 20..(7 << 20) + 77].fill(0);
        device.write_zeroes(9 << 20, 1 << 20, false).unwrap();
        bytes[9 << 20..10 << 20].fill(0);
        device.discard(12 << 20, 1 << 20).unwrap();
        device.flush().unwrap();
        assert_ne!(
            device.extent_at(6 << 20, 4096).unwrap().kind,
            ExtentKind::Data
        );
        // What was discarded may read as anything; here it is zeroes.
        bytes[12 << 20..13 << 20].fill(0);
        assert!(device.read_vec(0, 16 << 20).unwrap() == bytes);
    }
    let pid = nix::unistd::Pid::from_raw(server.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    server.0.wait().unwrap();
    shell(
        dir.path(),
        "qemu-img check -q disk.qcow2; qemu-img convert -f qcow2 -O raw disk.qcow2 out.raw",
    );
    assert!(std::fs::read(dir.path().join("out.raw")).unwrap() == bytes);
}

#[test]
fn an_export_for_reading_is_not_opened_for_writing() {
    let dir = workdir();
    image(dir.path());
    let _server = Server::qemu_nbd(dir.path(), &["-r", "-f", "raw", "disk.raw"]);
    let options = OpenOptions {
        format: Some("raw".into()),
        write: true,
        ..OpenOptions::default()
    };
    let error = open_path(Path::new(&uri(dir.path(), "")), &options)
        .err()
        .unwrap();
    assert_eq!(error.kind(), FormatErrorKind::NotAllowed);
    let output = guestlens()
        .args(["info", &uri(dir.path(), "nope")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("it has no such export"), "{text}");
}

/// Our own server, in the mode our own client prefers: extended headers.
#[test]
fn our_server_and_our_client() {
    let dir = workdir();
    image(dir.path());
    let mut server = Server(
        guestlens()
            .current_dir(dir.path())
            .args(["nbd", "disk.raw", "--format", "raw", "--rw", "--unix", "s"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_for(&dir.path().join("s"));
    let mut bytes = std::fs::read(dir.path().join("disk.raw")).unwrap();
    {
        let device = open(&uri(dir.path(), ""), "raw", true);
        assert!(device.read_vec(0, 16 << 20).unwrap() == bytes);
        device.write_all_at(12_345, &vec![9; 100_000]).unwrap();
        bytes[12_345..112_345].fill(9);
        device.write_zeroes(1 << 20, 2 << 20, true).unwrap();
        bytes[1 << 20..3 << 20].fill(0);
        device.flush().unwrap();
        assert_eq!(
            device.extent_at(1 << 20, 16384).unwrap().kind,
            ExtentKind::Hole
        );
        assert!(device.read_vec(0, 16 << 20).unwrap() == bytes);
    }
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    // Killed: what was flushed is there.
    assert!(std::fs::read(dir.path().join("disk.raw")).unwrap() == bytes);
}

/// The server goes away while requests are under way: every one of them ends with an error.
#[test]
fn a_server_that_dies() {
    let dir = workdir();
    image(dir.path());
    let server = Server::qemu_nbd(dir.path(), &["-r", "-f", "raw", "disk.raw"]);
    let device = open(&uri(dir.path(), ""), "raw", false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(30);
                let error = loop {
                    assert!(Instant::now() < until);
                    if let Err(e) = device.read_vec(0, 1 << 20) {
                        break e;
                    }
                };
                assert_eq!(error.kind(), BlockErrorKind::Io);
                assert!(error.to_string().contains("connection"), "{error}");
            });
        }
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            drop(server);
        });
    });
    assert!(device.read_vec(0, 1).is_err());
}

#[cfg(feature = "remote")]
#[test]
fn over_tls() {
    let dir = workdir();
    image(dir.path());
    // An authority, a server for 127.0.0.1, a client.
    shell(
        dir.path(),
        "mkdir x509 client
         openssl ecparam -name prime256v1 -genkey -noout -out ca.key
         openssl req -x509 -new -key ca.key -days 30 -subj /CN=ca -out x509/ca-cert.pem \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>&1
         for who in server client; do
             openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $who.key
             openssl req -new -key $who.key -subj /CN=$who -out $who.csr
             printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=%sAuth\\nbasicConstraints=CA:FALSE\\nkeyUsage=digitalSignature\\n' $who >ext
             openssl x509 -req -in $who.csr -CA x509/ca-cert.pem -CAkey ca.key -CAcreateserial \
                 -days 30 -extfile ext -out $who.pem 2>&1
         done
         cp server.pem x509/server-cert.pem; cp server.key x509/server-key.pem
         cat client.pem client.key >identity.pem",
    );
    let port = {
        // Free a moment ago; nothing else on this host asks for ports by number.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    };
    let child = tool("qemu-nbd")
        .current_dir(dir.path())
        .args(["-t", "-e", "8", "-r", "-f", "raw", "-b", "127.0.0.1", "-p"])
        .arg(port.to_string())
        .args([
            "--object",
            "tls-creds-x509,id=t,dir=x509,endpoint=server,verify-peer=yes",
            "--tls-creds",
            "t",
            "disk.raw",
        ])
        .spawn()
        .unwrap();
    let _server = Server(child);
    let until = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let name = format!("nbds://127.0.0.1:{port}/");
    let mut options = OpenOptions {
        format: Some("raw".into()),
        ..OpenOptions::default()
    };
    options.remote.tls.authorities = Some(dir.path().join("x509/ca-cert.pem"));
    options.remote.tls.identity = Some(dir.path().join("identity.pem"));
    let image = open_path(Path::new(&name), &options).unwrap_or_else(|e| panic!("{e:?}"));
    let device = image.device();
    let bytes = std::fs::read(dir.path().join("disk.raw")).unwrap();
    assert!(device.read_vec(0, 16 << 20).unwrap() == bytes);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (device, bytes) = (&device, &bytes);
            scope.spawn(move || {
                for n in 0..40 {
                    let offset = (n * 104_729 + thread * 3_000_017) % (15 << 20);
                    let len = 1 + n * 997;
                    let read = device.read_vec(offset as u64, len).unwrap();
                    assert!(read == bytes[offset..offset + len]);
                }
            });
        }
    });
    // Trusted by nobody we know; and without TLS not at all.
    options.remote.tls.authorities = None;
    let error = open_path(Path::new(&name), &options).err().unwrap();
    assert!(
        error.hint().unwrap_or_default().contains("--tls-ca"),
        "{error:?}"
    );
    let plain = format!("nbd://127.0.0.1:{port}/");
    let error = open_path(Path::new(&plain), &options).err().unwrap();
    assert!(
        error.hint().unwrap_or_default().contains("nbds://"),
        "{error:?}"
    );
}

/// Answers of a server that lies, one connection each: none of them makes us panic, wait for ever
/// or take wrong bytes for right ones.
#[test]
fn servers_that_lie() {
    let dir = workdir();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    // A conversation as a good server has it, for an export of 64 KiB full of ones: simple
    // replies, then the first request's reply.
    let good = {
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        let answer = |option: u32, kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
            bytes
        };
        bytes.extend(answer(11, 1 << 31 | 1, b""));
        bytes.extend(answer(8, 1, b""));
        bytes.extend(answer(10, 4, b"\0\0\0\x05base:allocation"));
        bytes.extend(answer(10, 1, b""));
        let mut info = vec![0, 0];
        info.extend((64u64 << 10).to_be_bytes());
        info.extend([0, 3]);
        bytes.extend(answer(7, 3, &info));
        bytes.extend(answer(7, 3, &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]));
        bytes.extend(answer(7, 1, b""));
        // Replies to cookie 0: 4096 bytes in two chunks.
        for (done, offset) in [(0u16, 0u64), (1, 2048)] {
            bytes.extend(0x668e_33efu32.to_be_bytes());
            bytes.extend(done.to_be_bytes());
            bytes.extend(1u16.to_be_bytes());
            bytes.extend(0u64.to_be_bytes());
            bytes.extend(2056u32.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            bytes.extend([1; 2048]);
        }
        bytes
    };
    let script: Vec<(Vec<u8>, bool)> = {
        let mut seed = 0x2545_F491_4F6C_DD1Du64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut script = vec![(good.clone(), true)];
        for cut in [0, 7, 18, 37, 100, good.len() - 2049, good.len() - 1] {
            script.push((good[..cut].to_vec(), false));
        }
        for _ in 0..400 {
            let mut bytes = good.clone();
            // Mostly in headers: the data is most of the bytes.
            let heads = good.len() - 4096;
            let at = usize::try_from(next()).unwrap_or(0) % heads;
            let at = if at > heads - 28 { at + 2048 } else { at };
            bytes[at] = next() as u8;
            script.push((bytes, false));
        }
        script
    };
    let answers: Vec<Vec<u8>> = script.iter().map(|(bytes, _)| bytes.clone()).collect();
    let serving = std::thread::spawn(move || {
        for bytes in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // Until the client has gone; it may send requests meanwhile.
            let mut rest = [0; 4096];
            while stream.read(&mut rest).is_ok_and(|n| n > 0) {}
        }
    });
    let name = uri(dir.path(), "");
    let options = OpenOptions {
        format: Some("raw".into()),
        ..OpenOptions::default()
    };
    let start = Instant::now();
    let mut good_reads = 0;
    for (_, must_work) in &script {
        let read = match open_path(Path::new(&name), &options) {
            Ok(image) if image.device().len() >= 4096 => image.device().read_vec(0, 4096).ok(),
            _ => None,
        };
        if *must_work {
            assert!(read.as_deref() == Some(&[1; 4096][..]));
        }
        // A flipped bit of the data itself cannot be seen; a missing or moved byte can.
        if let Some(read) = read {
            assert!(read.iter().filter(|b| **b != 1).count() <= 1);
            good_reads += 1;
        }
    }
    serving.join().unwrap();
    assert!(good_reads > 10 && good_reads < 350, "{good_reads}");
    assert!(start.elapsed() < Duration::from_secs(60));
}
