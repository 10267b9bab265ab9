//! `guestlens nbd` as other programs' NBD clients see it: qemu-img, qemu-io, libnbd's tools; and as
//! clients see it that do not keep to the protocol.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::{guestlens, run, shell, tool, workdir};

/// A server that is ready; killed when dropped.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut child = guestlens()
            .current_dir(dir)
            .arg("nbd")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut uri = Vec::new();
        let stdout = child.stdout.as_mut().unwrap();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            uri.push(byte[0]);
        }
        let uri = String::from_utf8(uri).unwrap();
        assert!(uri.starts_with("nbd"), "{uri:?}");
        Self { child, uri }
    }

    /// Ends it by a signal; it must end well.
    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `disk.raw` of 48 MiB and a bit less than a sector more, with data, zeroes and holes; the same
/// in `disk.qcow2`, partly compressed.
fn images(dir: &Path) {
    shell(
        dir,
        "truncate -s 48M disk.raw
         seq 1 400000 | dd of=disk.raw bs=64k seek=16 conv=notrunc status=none
         head -c 5000000 /dev/urandom | dd of=disk.raw bs=1M seek=20 conv=notrunc status=none
         qemu-img convert -f raw -O qcow2 -c disk.raw disk.qcow2
         qemu-io -f qcow2 -c 'write -P 7 40M 1M' -c 'write -z 30M 1M' disk.qcow2 >/dev/null
         qemu-img convert -f qcow2 -O raw disk.qcow2 disk.raw",
    );
}

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut command = tool("qemu-io");
    command.args(["-f", "raw"]);
    for c in commands {
        command.args(["-c", c]);
    }
    let output = run(command.arg(uri));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !text.contains("failed") && !text.contains("error"),
        "{text}"
    );
    text
}

#[test]
fn other_clients_read_the_same_bytes() {
    let dir = workdir();
    images(dir.path());
    let server = Server::start(
        dir.path(),
        &["disk.qcow2", "--unix", "s", "--name", "a/b c"],
    );
    assert!(server.uri.starts_with("nbd+unix:///a%2Fb%20c?socket=/"));
    let uri = &server.uri;
    shell(
        dir.path(),
        &format!(
            "qemu-img compare -f raw -F raw disk.raw '{uri}'
             qemu-img convert -f raw -O raw -m 8 -W '{uri}' copy.raw
             cmp disk.raw copy.raw
             nbdcopy '{uri}' copy2.raw
             cmp disk.raw copy2.raw
             nbdcopy --connections=4 --requests=64 --request-size=8192 '{uri}' copy3.raw
             cmp disk.raw copy3.raw"
        ),
    );
    let info = shell(
        dir.path(),
        &format!("nbdinfo '{uri}'; nbdinfo --list '{uri}'"),
    );
    for wanted in [
        "export-size: 50331648 (48M)",
        "is_read_only: true",
        "can_multi_conn: true",
        "base:allocation",
        "qemu:allocation-depth",
        "description: disk.qcow2 (qcow2)",
        "export=\"a/b c\"",
    ] {
        assert!(info.contains(wanted), "{wanted}: {info}");
    }
    assert!(
        !tool("nbdinfo")
            .arg(uri.replace("a%2Fb%20c", "other"))
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    server.stop();
    assert!(!dir.path().join("s").exists());
}

/// The map is that of qemu-nbd.
#[test]
fn block_status_is_that_of_qemu_nbd() {
    let dir = workdir();
    images(dir.path());
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
         qemu-io -f qcow2 -c 'write -P 1 1M 3M' -c 'write -z 21M 1M' top.qcow2 >/dev/null",
    );
    let ours = Server::start(dir.path(), &["top.qcow2", "--unix", "s"]);
    let mut theirs = tool("qemu-nbd")
        .current_dir(dir.path())
        .args(["-r", "-t", "-A", "-f", "qcow2", "-e", "4", "-k"])
        .arg(dir.path().join("q"))
        .arg("top.qcow2")
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(dir.path().join("q")).is_err() {
        assert!(Instant::now() < until, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let map = |uri: &str, kind: &str| {
        shell(
            dir.path(),
            &format!("nbdinfo --map={kind} --json '{uri}' | tr -d ' \\n'"),
        )
    };
    let their_uri = format!("nbd+unix:///?socket={}", dir.path().join("q").display());
    for kind in ["base:allocation", "qemu:allocation-depth"] {
        let (ours, theirs) = (map(&ours.uri, kind), map(&their_uri, kind));
        assert!(ours.len() > 100, "{ours}");
        assert_eq!(ours, theirs, "{kind}");
    }
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    ours.stop();
}

/// A qcow2 image over a backing file, with a snapshot: written to, it is clean after the end, and
/// after a kill it has all that was flushed and leaks at most.
#[test]
fn qcow2_images_are_written() {
    for killed in [false, true] {
        let dir = workdir();
        images(dir.path());
        shell(
            dir.path(),
            "qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
             qemu-io -f qcow2 -c 'write -P 1 2M 1M' top.qcow2 >/dev/null
             qemu-img snapshot -c s top.qcow2
             cp top.qcow2 model.qcow2",
        );
        let mut server = Server::start(
            dir.path(),
            &["top.qcow2", "--format", "qcow2", "--rw", "--unix", "s"],
        );
        let commands = [
            "write -P 7 1000 5000",
            "write -P 2 2M 70k",
            "write -z 20M 1M",
            "write -P 9 30M 3M",
            "discard 40M 1M",
            "write -P 4 47M 1M",
            "flush",
        ];
        qemu_io(&server.uri, &commands);
        if killed {
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        } else {
            server.stop();
        }
        let check = tool("qemu-img")
            .current_dir(dir.path())
            .args(["check", "-q", "top.qcow2"])
            .status()
            .unwrap();
        match check.code() {
            Some(0) => {}
            // Leaks only.
            Some(3) if killed => {}
            other => panic!("killed {killed}: qemu-img check: {other:?}"),
        }
        let mut model = tool("qemu-io");
        model.current_dir(dir.path()).args(["-f", "qcow2"]);
        for command in commands {
            model.args(["-c", command]);
        }
        run(model.arg("model.qcow2"));
        shell(
            dir.path(),
            "# What was discarded may differ.
             for image in top model; do
                 qemu-io -f qcow2 -c 'write -z 40M 1M' $image.qcow2 >/dev/null
             done
             qemu-img compare -f qcow2 -F qcow2 top.qcow2 model.qcow2",
        );
    }
}

#[test]
fn what_is_written_arrives() {
    let dir = workdir();
    images(dir.path());
    let server = Server::start(
        dir.path(),
        &["disk.raw", "--format", "raw", "--rw", "--unix", "s"],
    );
    let same = [
        "write -P 7 1000 5000",
        "write -z 4M 1M",
        "write -z -u 5M 64k",
        "write -f -P 9 20M 3M",
        "write -P 3 10M 17M",
        "write -P 5 50331000 648",
        "discard 8M 1M",
        "flush",
    ];
    qemu_io(&server.uri, &same);
    let checks = [
        "read -P 7 1000 5000",
        "read -P 0 4M 1M",
        "read -P 0 5M 64k",
        "read -P 3 10M 17M",
        "read -P 5 50331000 648",
    ];
    let text = qemu_io(&server.uri, &checks);
    assert!(!text.contains("Pattern verification"), "{text}");
    server.stop();
    let file = dir.path().join("disk.raw");
    let text = qemu_io(file.to_str().unwrap(), &checks);
    assert!(!text.contains("Pattern verification"), "{text}");
    assert_eq!(std::fs::metadata(file).unwrap().len(), 48 << 20);
}

/// Clients that write at the same time, each to its own part, over several connections.
#[test]
fn clients_at_the_same_time() {
    let dir = workdir();
    shell(dir.path(), "truncate -s 64M disk.raw");
    let server = Server::start(
        dir.path(),
        &["disk.raw", "--format", "raw", "--rw", "--unix", "s"],
    );
    let uri = &server.uri;
    shell(
        dir.path(),
        &format!(
            "for n in 1 2 3 4 5 6; do
                 qemu-img bench -q -f raw -w -c 500 -d 16 -s 4096 --pattern=$n \
                     -o $((n * 8))M '{uri}' >/dev/null &
             done
             qemu-img bench -q -f raw -c 3000 -d 32 -s 65536 '{uri}' >/dev/null
             wait"
        ),
    );
    for n in 1..=6 {
        let text = qemu_io(uri, &[&format!("read -P {n} {}M 2000k", n * 8)]);
        assert!(!text.contains("Pattern"), "{n}: {text}");
    }
    server.stop();
}

#[test]
fn a_read_only_export_and_requests_outside() {
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M disk.raw");
    let server = Server::start(dir.path(), &["disk.raw", "--unix", "s"]);
    assert!(
        !tool("qemu-io")
            .args(["-f", "raw", "-c", "write 0 512", &server.uri])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    // By hand, because no client sends such requests.
    let mut client = Raw::go(&dir.path().join("s"));
    assert_eq!(client.request(1, 0, 0, 4, Some(&[1; 4])), 1, "EPERM");
    assert_eq!(client.request(0, 0, 1 << 20, 1, None), 22, "EINVAL");
    assert_eq!(client.request(0, 0, u64::MAX, 4096, None), 22);
    assert_eq!(client.request(0, 0, 0, 33 << 20, None), 22);
    assert_eq!(client.request(99, 0, 0, 0, None), 22);
    assert_eq!(client.request(7, 0, 0, 512, None), 22, "no context");
    assert_eq!(client.request(0, 1 << 9, 0, 512, None), 22, "unknown flag");
    assert_eq!(client.request(4, 0, 0, 512, None), 1);
    assert_eq!(client.request(3, 0, 0, 0, None), 0, "flush");
    server.stop();
}

/// A client made by hand: fixed newstyle, simple replies.
struct Raw(UnixStream);

impl Raw {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(stream)
    }

    fn go(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        let mut hello = [0; 18];
        client.0.read_exact(&mut hello).unwrap();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        client.0.write_all(&3u32.to_be_bytes()).unwrap();
        client.0.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        client.0.read_exact(&mut [0; 10]).unwrap();
        client
    }

    /// The error of a reply; the data of a good read is thrown away.
    fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        payload: Option<&[u8]>,
    ) -> u32 {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload.unwrap_or_default());
        self.0.write_all(&bytes).unwrap();
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(reply[8..], 7u64.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        if command == 0 && error == 0 {
            self.0.read_exact(&mut vec![0; len as usize]).unwrap();
        }
        error
    }
}

/// Pseudo-random bytes from a fixed seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Whatever is sent, the server lives, stays small, and serves the next client.
#[test]
fn clients_that_do_not_keep_to_the_protocol() {
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M disk.raw");
    let server = Server::start(
        dir.path(),
        &["disk.raw", "--format", "raw", "--rw", "--unix", "s"],
    );
    let socket = dir.path().join("s");
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let option = |number: u32, len: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let mut hostile: Vec<Vec<u8>> = vec![
        vec![],
        vec![0xFF; 64],
        [&[0, 0, 0, 3][..], &option(7, u32::MAX, b"")].concat(),
        [&[0, 0, 0, 3][..], &option(7, 6, &[255; 6])].concat(),
        [
            &[0, 0, 0, 3][..],
            &option(10, 8, &[0, 0, 0, 0, 255, 255, 255, 255]),
        ]
        .concat(),
        [&[0, 0, 0, 0][..], &option(3, 0, b"")].concat(),
        [&[0, 0, 0, 3][..], &option(1, 3, b"abc")].concat(),
        [&[0, 0, 0, 3][..], &option(3, 0, b"").repeat(5000)].concat(),
    ];
    for _ in 0..100 {
        // Noise after a good start, at every stage.
        let mut bytes = vec![0, 0, 0, 3];
        for _ in 0..noise.next() % 4 {
            let number = u32::try_from(noise.next() % 13).unwrap();
            let len = usize::try_from(noise.next() % 40).unwrap();
            let data: Vec<u8> = (0..len).map(|_| noise.next() as u8).collect();
            bytes.extend(option(number, u32::try_from(len).unwrap(), &data));
        }
        bytes.extend(option(1, 0, b""));
        for _ in 0..noise.next() % 6 {
            bytes.extend(0x2560_9513u32.to_be_bytes());
            bytes.extend((noise.next() as u16).to_be_bytes());
            bytes.extend(u16::try_from(noise.next() % 10).unwrap().to_be_bytes());
            bytes.extend(noise.next().to_be_bytes());
            bytes.extend((noise.next() >> (noise.next() % 64)).to_be_bytes());
            bytes.extend(((noise.next() as u32) >> (noise.next() % 32)).to_be_bytes());
        }
        bytes.extend((0..noise.next() % 100).map(|n| n as u8));
        hostile.push(bytes);
    }
    for bytes in hostile {
        let mut client = Raw::connect(&socket);
        // The server may end the connection in the middle of it.
        let _ = client.0.write_all(&bytes);
        let _ = client.0.shutdown(std::net::Shutdown::Write);
        let _ = client.0.read_to_end(&mut Vec::new());
    }
    // Long writes that never come, from many at once, do not make it large or deaf.
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let mut client = Raw::go(&socket);
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1]);
        bytes.extend([0; 16]);
        bytes.extend((32u32 << 20).to_be_bytes());
        client.0.write_all(&bytes).unwrap();
        stalled.push(client);
    }
    let mut client = Raw::go(&socket);
    assert_eq!(client.request(0, 0, 0, 4096, None), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 300 << 10, "{line}");
    // They do not keep it from ending either.
    server.stop();
}

#[test]
fn a_killed_server_leaves_a_socket_that_is_replaced() {
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M disk.raw; echo x >file");
    let socket = dir.path().join("s");
    let mut server = Server::start(dir.path(), &["disk.raw", "--unix", "s"]);
    assert_eq!(
        std::fs::symlink_metadata(&socket)
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let refused = |socket: &str| {
        let output = guestlens()
            .current_dir(dir.path())
            .args(["nbd", "disk.raw", "--unix", socket])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("s").contains("another server listens"));
    assert!(refused("file").contains("is no socket"));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(socket.exists());
    let server = Server::start(dir.path(), &["disk.raw", "--unix", "s"]);
    server.stop();
    assert!(!socket.exists());
    // Somebody else's socket of that name stays.
    let server = Server::start(dir.path(), &["disk.raw", "--unix", "s"]);
    std::fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    server.stop();
    assert!(socket.exists());
}

#[test]
fn once_and_fork() {
    let dir = workdir();
    shell(dir.path(), "truncate -s 1M disk.raw");
    let output = run(guestlens().current_dir(dir.path()).args([
        "nbd",
        "disk.raw",
        "--unix",
        "s",
        "--once",
        "--fork",
        "--pid-file",
        "pid",
        "--json",
    ]));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["size"], 1 << 20);
    let pid: PathBuf = dir.path().join("pid");
    let number = std::fs::read_to_string(&pid).unwrap();
    assert_eq!(number.trim(), said["pid"].to_string());
    run(tool("nbdinfo").arg(said["uri"].as_str().unwrap()));
    let until = Instant::now() + Duration::from_secs(20);
    while pid.exists() || dir.path().join("s").exists() {
        assert!(Instant::now() < until, "the server has not ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file of the process number takes the place of nothing but a left-over one of its kind, and
/// only what was made is removed.
#[test]
fn a_pid_file_harms_no_other_file() {
    let dir = workdir();
    shell(
        dir.path(),
        "head -c 1M /dev/urandom >disk.raw; cp disk.raw same; echo notes >notes; : >empty
         ln -s disk.raw link; ln -s new dangling; echo 1 >alive; mkfifo fifo; mkdir dir
         sh -c 'echo $$' >gone; ln -s gone to-gone",
    );
    for victim in [
        "disk.raw", "link", "notes", "empty", "dangling", "alive", "fifo", "dir", "to-gone",
    ] {
        let out = guestlens()
            .current_dir(dir.path())
            .args(["nbd", "disk.raw", "--unix", "s", "--pid-file", victim])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1), "{victim}: {out:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("exists"));
    }
    shell(
        dir.path(),
        "cmp disk.raw same; [ $(cat notes) = notes ]; [ $(cat alive) = 1 ]; [ -f empty ]
         [ ! -e new ]; [ -L dangling ]; [ -L link ]; [ -p fifo ]; [ ! -e s ]",
    );
    let server = Server::start(
        dir.path(),
        &["disk.raw", "--unix", "s", "--pid-file", "gone"],
    );
    let text = std::fs::read_to_string(dir.path().join("gone")).unwrap();
    assert_eq!(text.trim(), server.child.id().to_string());
    server.stop();
    assert!(!dir.path().join("gone").exists());
    // Another file has its name meanwhile.
    let server = Server::start(
        dir.path(),
        &["disk.raw", "--unix", "s", "--pid-file", "mine"],
    );
    shell(dir.path(), "mv mine away; echo precious >mine");
    server.stop();
    shell(dir.path(), "[ $(cat mine) = precious ]; [ -s away ]");
}

#[test]
fn over_tcp() {
    let dir = workdir();
    images(dir.path());
    let server = Server::start(dir.path(), &["disk.qcow2", "--tcp", "0"]);
    assert!(server.uri.starts_with("nbd://127.0.0.1:"), "{}", server.uri);
    run(tool("qemu-img")
        .current_dir(dir.path())
        .args(["compare", "-f", "raw", "-F", "raw", "disk.raw"])
        .arg(&server.uri));
    server.stop();
}

#[test]
fn a_snapshot() {
    let dir = workdir();
    images(dir.path());
    shell(
        dir.path(),
        "qemu-img snapshot -c before disk.qcow2
         qemu-io -f qcow2 -c 'write -P 8 0 4M' disk.qcow2 >/dev/null",
    );
    let server = Server::start(
        dir.path(),
        &["disk.qcow2", "--unix", "s", "--snapshot", "before"],
    );
    run(tool("qemu-img")
        .current_dir(dir.path())
        .args(["compare", "-f", "raw", "-F", "raw", "disk.raw"])
        .arg(&server.uri));
    server.stop();
}
