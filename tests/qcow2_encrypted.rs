//! Encrypted qcow2 images against QEMU, which makes, reads, writes and checks them.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestlens::block::BlockErrorKind;
use guestlens::crypto::{KeySource, Passphrase};
use guestlens::formats::{FormatError, FormatErrorKind, Image, OpenOptions, open_path};
use support::fuzz::Rng;
use support::{guestlens, run, shell, tool, workdir};

const KEY: &[u8] = b"open sesame";
const SIZE: usize = 5 << 20;

/// What scripts begin with: `create IMAGE OPTIONS`, `fill IMAGE`, `raw IMAGE OUT`.
const TOOLS: &str = r#"
secrets='--object secret,id=s,file=key --object secret,id=t,file=key2'
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
opts() { echo driver=qcow2,file.filename="$1",encrypt.key-secret=${2:-s}; }
create() { qemu-img create -q -f qcow2 $secrets -o "$2" "$1" ${3:-5M}; }
fill() { qemu-img convert -n $secrets --target-image-opts source "$(opts "$1")"; }
raw() { qemu-img convert -O raw $secrets --image-opts "$(opts "$1" ${3:-s})" "$2"; }
check() { qemu-img check -q $secrets --image-opts "$(opts "$1" ${2:-s})"; }
io() { qemu-io $secrets --image-opts "$(opts "$1")" "${@:2}" >/dev/null; }
"#;

fn script(dir: &Path, text: &str) -> String {
    shell(dir, &format!("{TOOLS}\n{text}"))
}

/// A directory with key files and a disk to copy: random bytes, zeroes, text, an odd end.
fn bench() -> tempfile::TempDir {
    let dir = workdir();
    let mut source = vec![0; SIZE];
    let mut rng = Rng::new(7);
    for (n, sector) in source.chunks_mut(512).enumerate() {
        match n / 100 % 4 {
            0 => sector.fill_with(|| rng.next() as u8),
            1 => sector.fill((n % 251) as u8),
            2 if n % 7 == 0 => sector.fill(1),
            _ => {}
        }
    }
    std::fs::write(dir.path().join("source"), source).unwrap();
    std::fs::write(dir.path().join("key"), KEY).unwrap();
    std::fs::write(dir.path().join("key2"), b"another").unwrap();
    dir
}

fn with_key(key: &[u8]) -> OpenOptions {
    OpenOptions {
        keys: KeySource::one(Passphrase::new(key.to_vec())),
        ..OpenOptions::default()
    }
}

fn open(path: &Path) -> Arc<dyn Image> {
    open_path(path, &with_key(KEY)).unwrap_or_else(|e| panic!("{}", whole(&e)))
}

fn refused(path: &Path, options: &OpenOptions) -> FormatError {
    match open_path(path, options) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

/// All of a device, in reads of uneven lengths.
fn read_all(image: &dyn Image) -> Vec<u8> {
    let device = image.device();
    let mut all = vec![0; device.len() as usize];
    let mut rng = Rng::new(3);
    let mut at = 0;
    while at < all.len() {
        let len = match rng.below(4) {
            0 => 1 + rng.below(700),
            1 => 512 * (1 + rng.below(40)),
            _ => 1 + rng.below(300_000),
        };
        let end = all.len().min(at + len as usize);
        device.read_exact_at(at as u64, &mut all[at..end]).unwrap();
        at = end;
    }
    all
}

/// Equal to what QEMU reads.
fn check_same(dir: &Path, name: &str) {
    script(dir, &format!("raw {name} plain"));
    let expected = std::fs::read(dir.join("plain")).unwrap();
    let found = read_all(open(&dir.join(name)).as_ref());
    assert!(found == expected, "{name} is read differently");
}

#[test]
fn ciphers_hashes_and_layouts() {
    let dir = bench();
    let dir = dir.path();
    // Making an image takes QEMU seconds, so each is several cases at once.
    let luks = [
        "aes-128 xts plain64 sha256 cluster_size=512",
        "aes-128 cbc essiv sha256 cluster_size=4k,refcount_bits=1",
        "aes-192 xts plain sha1 cluster_size=2M",
        "aes-256 xts plain64 sha512 compat=0.10",
        "aes-256 xts essiv sha224 extended_l2=on,cluster_size=128k",
        "aes-256 cbc essiv sha384 data_file=data",
        "aes-256 cbc plain64 sha1 cluster_size=64k",
    ];
    for case in luks {
        let parts: Vec<&str> = case.split(' ').collect();
        let [cipher_alg, mode, ivgen, hash, layout] = parts[..] else {
            unreachable!()
        };
        let hashed = if ivgen == "essiv" {
            ",encrypt.ivgen-hash-alg=sha256"
        } else {
            ""
        };
        script(
            dir,
            &format!(
                "rm -f image data; create image $luks,encrypt.cipher-alg={cipher_alg},\
                 encrypt.cipher-mode={mode},encrypt.ivgen-alg={ivgen},encrypt.hash-alg={hash}{hashed},{layout}
                 fill image"
            ),
        );
        check_same(dir, "image");
        let info = open(&dir.join("image")).info().clone();
        assert!(info.encrypted);
        let qemu = run(tool("qemu-img")
            .args(["info", "--output=json"])
            .arg(dir.join("image")));
        let qemu: serde_json::Value = serde_json::from_slice(&qemu.stdout).unwrap();
        let qemu = &qemu["format-specific"]["data"]["encrypt"];
        let ours = &info.format_specific["encrypt"];
        assert!(qemu.is_object());
        for (name, value) in qemu.as_object().unwrap() {
            assert_eq!(&ours[name], value, "{case}: {name}");
        }
    }
    for layout in ["", ",cluster_size=512,compat=0.10", ",data_file=data"] {
        let aes = "encrypt.format=aes,encrypt.key-secret=s";
        script(
            dir,
            &format!("rm -f image data; create image {aes}{layout}; fill image"),
        );
        check_same(dir, "image");
    }
}

/// Every layer has its key, or none; snapshots are of the same image and have the same.
#[test]
fn chains_and_snapshots() {
    let dir = bench();
    let dir = dir.path();
    script(
        dir,
        r#"create base $luks; fill base
        # Another key, and a plain layer in between.
        qemu-img create -q -f qcow2 -b base -F qcow2 -u middle 6M
        qemu-img create -q -f qcow2 $secrets -o encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=10 -b middle -F qcow2 -u top 6M
        chain=driver=qcow2,file.filename=top,encrypt.key-secret=t,backing.driver=qcow2,backing.file.filename=middle,backing.backing.driver=qcow2,backing.backing.file.filename=base,backing.backing.encrypt.key-secret=s
        qemu-io $secrets --image-opts $chain -c 'write -P 7 100k 3000' -c 'write -P 8 5M 1M' -c 'write -z 1M 100k' >/dev/null
        qemu-img convert -O raw $secrets --image-opts $chain chain.raw

        create kept $luks; fill kept
        qemu-img snapshot $secrets --image-opts -c one "$(opts kept)"
        io kept -c 'write -P 9 0 2M' -c 'write -P 10 3000k 1k'
        "#,
    );
    let keys = [KEY, b"another"];
    let options = OpenOptions {
        keys: KeySource::new(move |request| {
            assert_eq!(request.scheme, "LUKS");
            assert!(request.what.contains("/top") || request.what.contains("/base"));
            let key = keys.get(request.attempt as usize)?;
            Some(Passphrase::new(key.to_vec()))
        }),
        ..OpenOptions::default()
    };
    let top = open_path(&dir.join("top"), &options).unwrap();
    assert!(read_all(top.as_ref()) == std::fs::read(dir.join("chain.raw")).unwrap());
    let middle = top.backing().unwrap();
    assert!(!middle.info().encrypted && middle.backing().unwrap().info().encrypted);

    // Without the base's key.
    let error = refused(&dir.join("top"), &with_key(b"another"));
    assert_eq!(error.kind(), FormatErrorKind::NoKey);
    assert!(whole(&error).contains("base"), "{}", whole(&error));

    check_same(dir, "kept");
    let kept = open(&dir.join("kept"));
    let snapshot = kept.open_snapshot(0).unwrap();
    let all = snapshot.read_vec(0, SIZE).unwrap();
    assert!(all == std::fs::read(dir.join("source")).unwrap());
}

#[test]
fn keys() {
    let dir = bench();
    let dir = dir.path();
    script(
        dir,
        r#"create image $luks; fill image
        qemu-img amend $secrets --image-opts "$(opts image)" -o encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10
        create old encrypt.format=aes,encrypt.key-secret=s; fill old
        printf '%s' 'a passphrase of more than 16 bytes' >key
        create long encrypt.format=aes,encrypt.key-secret=s; fill long
        "#,
    );
    let source = std::fs::read(dir.join("source")).unwrap();
    let path = dir.join("image");
    for key in [KEY, b"another"] {
        let image = open_path(&path, &with_key(key)).unwrap();
        assert!(image.locked().is_none());
        assert!(read_all(image.as_ref()) == source);
    }
    for key in [&b"open sesame\n"[..], b"", b"Open sesame"] {
        let error = refused(&path, &with_key(key));
        assert_eq!(error.kind(), FormatErrorKind::NoKey);
        assert!(whole(&error).contains("no keyslot opens with this key"));
        assert!(!whole(&error).contains("sesame"), "{}", whole(&error));
        assert!(!format!("{error:?}").contains("sesame"));
    }
    // Without a key: all but the content.
    let image = open_path(&path, &OpenOptions::default()).unwrap();
    assert_eq!(image.device().len(), SIZE as u64);
    assert_eq!(image.locked().unwrap().kind(), FormatErrorKind::NoKey);
    assert!(
        image
            .locked()
            .unwrap()
            .hint()
            .unwrap()
            .contains("--key-file")
    );
    assert!(image.device().extent_at(0, 1 << 20).is_ok());
    let error = image.device().read_vec(0, 512).unwrap_err();
    assert_eq!(error.kind(), BlockErrorKind::NoKey);
    drop(image);
    // The same for writing says so at once.
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    assert_eq!(refused(&path, &options).kind(), FormatErrorKind::NoKey);
    // The old method has no wrong key, and is only read.
    let old = open_path(&dir.join("old"), &with_key(b"wrong")).unwrap();
    assert!(read_all(old.as_ref()) != source);
    drop(old);
    let options = OpenOptions {
        write: true,
        ..with_key(KEY)
    };
    let error = refused(&dir.join("old"), &options);
    assert_eq!(error.kind(), FormatErrorKind::Unsupported);
    assert!(whole(&error).contains("AES"));
    let long = open_path(&dir.join("long"), &with_key(b"a passphrase of 15")).unwrap();
    // Its first 16 bytes are the key.
    assert!(read_all(long.as_ref()) == source);
    let key = b"a passphrase of more than 16 bytes";
    let long = open_path(&dir.join("long"), &with_key(key)).unwrap();
    assert!(read_all(long.as_ref()) == source);
    // As many keys as a source has, up to a bound.
    let options = OpenOptions {
        keys: KeySource::new(|_| Some(Passphrase::new(b"never right".to_vec()))),
        ..OpenOptions::default()
    };
    assert_eq!(refused(&path, &options).kind(), FormatErrorKind::NoKey);
}

/// Where the LUKS header of an image is.
fn luks_offset(image: &[u8]) -> usize {
    (0..image.len())
        .step_by(512)
        .find(|&at| image[at..].starts_with(b"LUKS\xba\xbe"))
        .unwrap()
}

#[test]
fn hostile_luks_headers() {
    let dir = bench();
    let dir = dir.path();
    script(
        dir,
        r#"create image $luks,encrypt.cipher-alg=aes-128 1M
"#,
    );
    let seed = std::fs::read(dir.join("image")).unwrap();
    let luks = luks_offset(&seed);
    let pointer = 8 + seed
        .windows(4)
        .position(|w| w == [0x05, 0x37, 0xbe, 0x77])
        .unwrap();
    let path = dir.join("case");
    let with = |at: usize, bytes: &[u8]| {
        let mut image = seed.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, image).unwrap();
        let start = Instant::now();
        let result = open_path(&path, &with_key(KEY)).map(|_| ());
        assert!(start.elapsed() < Duration::from_secs(20));
        result
    };
    assert!(with(luks, b"L").is_ok());
    use FormatErrorKind::{Damaged, NoKey, Unsupported};
    let many = u32::MAX.to_be_bytes();
    for (name, at, bytes, kind, word) in [
        ("pointer to 0", pointer, &[0; 8][..], Damaged, "LUKS header"),
        (
            "pointer outside",
            pointer,
            &[0x7f; 8],
            Damaged,
            "LUKS header",
        ),
        (
            "unaligned pointer",
            pointer + 7,
            &[1],
            Damaged,
            "LUKS header",
        ),
        (
            "length outside",
            pointer + 8,
            &[0x7f; 8],
            Damaged,
            "LUKS header",
        ),
        ("no length", pointer + 8, &[0; 8], Damaged, ""),
        ("pointer's size", pointer - 1, &[8], Damaged, ""),
        ("method without pointer", 35, &[0], Damaged, "encryption"),
        ("method", 35, &[3], Damaged, "unknown encryption method 3"),
        ("magic", luks, b"M", Damaged, "magic"),
        ("version", luks + 7, &[2], Unsupported, "version 2"),
        (
            "cipher",
            luks + 8,
            b"serpent\0",
            Unsupported,
            "cipher 'serpent'",
        ),
        ("mode", luks + 40, b"ctr-plain\0", Unsupported, "mode 'ctr'"),
        ("hash", luks + 72, b"md5\0", Unsupported, "md5"),
        ("key bytes", luks + 108, &many, Unsupported, "4294967295"),
        ("digest bomb", luks + 164, &many, Damaged, "iterations"),
        ("slot bomb", luks + 212, &many, NoKey, "iterations"),
        ("no iterations", luks + 212, &[0; 4], NoKey, "iterations"),
        ("slot state", luks + 208, &[9; 4], NoKey, "state"),
        ("slot place", luks + 248, &many, NoKey, "keyslot 0"),
        ("slot in header", luks + 248, &[0; 4], NoKey, "keyslot 0"),
        ("stripes", luks + 252, &many, NoKey, "stripes"),
        (
            "no slot",
            luks + 208,
            &[0, 0, 0xde, 0xad],
            NoKey,
            "no keyslot that",
        ),
        (
            "material",
            luks + 4096 + 777,
            &[0xaa; 8],
            NoKey,
            "no keyslot opens",
        ),
        ("salt", luks + 220, &[0xaa; 8], NoKey, "no keyslot opens"),
        ("digest", luks + 112, &[0xaa; 8], NoKey, "no keyslot opens"),
    ] {
        let error = with(at, bytes).expect_err(name);
        let text = whole(&error);
        assert_eq!(error.kind(), kind, "{name}: {text}");
        assert!(text.contains(word), "{name}: {text}");
        assert!(!text.contains("sesame"));
    }
    // Cut off in the middle of the key material.
    std::fs::write(&path, &seed[..luks + 5000]).unwrap();
    assert_eq!(refused(&path, &with_key(KEY)).kind(), Damaged);
}

/// Mutated headers: an error or an image, in little time. Keyslots that could be tried are made
/// cheap, or trying them is all this would do.
#[test]
fn mutated_luks_headers() {
    use guestlens::crypto::CryptoError;
    use guestlens::crypto::luks1::{CreateOptions, HEADER_BYTES, Header, create};
    let quick = CreateOptions {
        unlock_time: Duration::ZERO,
        ..CreateOptions::default()
    };
    let (seed, _) = create(KEY, quick).unwrap();
    let mut rng = Rng::new(11);
    let start = Instant::now();
    let (mut parsed, mut tried) = (0_u32, 0_u32);
    for round in 0..40_000_u32 {
        if start.elapsed() > Duration::from_secs(10) {
            break;
        }
        let mut header = seed[..HEADER_BYTES].to_vec();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(HEADER_BYTES as u64) as usize;
            header[at] = match rng.below(3) {
                0 => rng.next() as u8,
                1 => [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
                _ => header[at] ^ (1 << rng.below(8)),
            };
        }
        if rng.below(8) == 0 {
            header.truncate(rng.below(HEADER_BYTES as u64) as usize);
        }
        let area = [seed.len() as u64, 5000, 592, 0, u64::MAX][rng.below(5) as usize];
        let Ok(mut luks) = Header::parse(&header, area) else {
            continue;
        };
        parsed += 1;
        assert!(luks.encode().len() == HEADER_BYTES);
        if round % 16 == 0 {
            luks.digest_iterations = 1;
            for slot in &mut luks.slots {
                slot.iterations = 1;
            }
            tried += 1;
            let _ = luks.unlock(KEY, |at, buf: &mut [u8]| {
                let from = seed.get(at as usize..).unwrap_or_default();
                assert!(buf.len() <= 1 << 20);
                let len = buf.len().min(from.len());
                buf[..len].copy_from_slice(&from[..len]);
                Ok::<_, CryptoError>(())
            });
        }
    }
    assert!(parsed > 1000 && tried > 50, "{parsed} {tried}");
}

#[test]
fn command_line() {
    let dir = bench();
    let dir = dir.path();
    script(
        dir,
        r#"truncate -s 5M source; mkfs.ext4 -q -F -b 1024 source; mkdir -p files
        debugfs -w -R 'write key2 secret-file' source 2>/dev/null
        create image $luks; fill image
        printf 'open sesame\n' >newline; : >empty; mkdir mnt; truncate -s 9M large"#,
    );
    let output = |arguments: &str, stdin: &str| {
        let mut command = tool("bash");
        command.current_dir(dir).arg("-c").arg(format!(
            "exec {} {arguments} {stdin}",
            guestlens().get_program().to_string_lossy()
        ));
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code().unwrap(), text)
    };
    let cases = [
        ("cat --key-file key image /secret-file", "", 0, "another"),
        (
            "cat --key-file key2 --key-file key image /secret-file",
            "",
            0,
            "another",
        ),
        ("cat --key-fd 0 image /secret-file", "<key", 0, "another"),
        (
            "cat --key-fd 0 image /secret-file",
            "< <(cat key)",
            0,
            "another",
        ),
        ("cat --key-fd 9 image /secret-file", "9<key", 0, "another"),
        (
            "cat --key-file <(cat key) image /secret-file",
            "",
            0,
            "another",
        ),
        ("cat image /secret-file", "", 1, "--key-file"),
        (
            "cat --key-file newline image /secret-file",
            "",
            1,
            "newline",
        ),
        (
            "cat --key-file key2 image /secret-file",
            "",
            1,
            "no keyslot opens",
        ),
        ("cat --key-file empty image /secret-file", "", 1, "empty"),
        (
            "cat --key-file missing image /secret-file",
            "",
            1,
            "missing",
        ),
        ("cat --key-file files image /secret-file", "", 1, "files"),
        ("cat --key-file large image /secret-file", "", 1, "8 MiB"),
        ("cat --key-file - image /secret-file", "", 2, "--key-fd 0"),
        ("cat --key-fd 77 image /secret-file", "", 1, "77"),
        ("cat --key-fd -1 image /secret-file", "", 2, "-1"),
        ("info image", "", 0, "encrypted"),
        ("info --json image", "", 0, "\"aes-256\""),
        ("map image", "", 0, "data"),
        ("check image", "", 0, ""),
    ];
    for (arguments, stdin, code, word) in cases {
        let (found, text) = output(arguments, stdin);
        assert_eq!(found, code, "{arguments}: {text}");
        assert!(text.contains(word), "{arguments}: {text}");
        assert!(!text.contains("sesame"), "{arguments}: {text}");
    }
    if !Path::new("/dev/fuse").exists() {
        support::skip!("no /dev/fuse");
    }
    // The key comes through a pipe to the command and is needed by the server it starts.
    for (keys, stdin) in [
        ("--key-fd 0", "< <(cat key)"),
        ("--key-fd 7", "7< <(cat key)"),
        ("--key-file key", ""),
    ] {
        let (code, text) = output(&format!("mount {keys} image mnt"), stdin);
        assert_eq!(code, 0, "{text}");
        let file = std::fs::read(dir.join("mnt/volumes/sda/secret-file"));
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let (code, text) = output("umount mnt", "");
        assert_eq!(code, 0, "{text}");
        assert_eq!(file.unwrap(), b"another", "{mounts}");
    }
}

/// Random writes through our writer, over backing files and snapshots, are what QEMU reads.
#[test]
fn written_in_place() {
    let dir = bench();
    let dir = dir.path();
    script(
        dir,
        r#"cp source base.raw
        create image $luks,cluster_size=4k; fill image
        qemu-img snapshot $secrets --image-opts -c one "$(opts image)"
        create over "$luks,backing_file=base.raw,backing_fmt=raw""#,
    );
    let options = OpenOptions {
        write: true,
        ..with_key(KEY)
    };
    let source = std::fs::read(dir.join("source")).unwrap();
    for name in ["image", "over"] {
        let mut expected = source.clone();
        let image = open_path(&dir.join(name), &options).unwrap();
        let device = image.device();
        let mut rng = Rng::new(5);
        for round in 0..150_u32 {
            let len = match rng.below(3) {
                0 => 1 + rng.index(600),
                1 => 512 * (1 + rng.index(20)),
                _ => 1 + rng.index(150_000),
            };
            let at = rng.index(SIZE - len);
            let range = at..at + len;
            if round % 5 == 4 {
                device
                    .write_zeroes(at as u64, len as u64, round % 2 == 0)
                    .unwrap();
                expected[range].fill(0);
            } else {
                let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
                device.write_all_at(at as u64, &bytes).unwrap();
                expected[range].copy_from_slice(&bytes);
            }
        }
        device.flush().unwrap();
        let mut found = vec![0; SIZE];
        device.read_exact_at(0, &mut found).unwrap();
        assert!(found == expected, "{name} is read differently by us");
        image.writer().unwrap().close().unwrap();
        drop((device, image));
        script(dir, &format!("check {name}; raw {name} plain"));
        assert!(
            std::fs::read(dir.join("plain")).unwrap() == expected,
            "{name} is read differently by QEMU"
        );
    }
    let image = open(&dir.join("image"));
    let snapshot = image.open_snapshot(0).unwrap();
    assert!(snapshot.read_vec(0, SIZE).unwrap() == source);
}

/// Images that are made encrypted are opened, read and written by QEMU.
#[test]
fn made_by_us() {
    let dir = bench();
    let dir = dir.path();
    let ours = |arguments: &str| {
        let bin = guestlens().get_program().to_string_lossy().into_owned();
        let out = tool("bash")
            .current_dir(dir)
            .arg("-c")
            .arg(format!("exec {bin} {arguments}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.code().unwrap(), text)
    };
    let made = |arguments: &str| {
        let (code, text) = ours(arguments);
        assert_eq!(code, 0, "{arguments}: {text}");
    };
    let luks = "--encrypt luks --unlock-time 10";
    made(&format!(
        "create --format qcow2 {luks} --key-file key empty 5M"
    ));
    made(&format!(
        "create --format qcow2 {luks} --key-file key --cluster-size 512 --compat 0.10 old 5M"
    ));
    made(&format!(
        "convert --to qcow2 {luks} --new-key-file key --format raw source image"
    ));
    made(&format!(
        "convert --to qcow2 {luks} --new-key-file key2 --key-file key --extended-l2 image again"
    ));
    script(
        dir,
        r#"for i in empty old; do
            check $i
            io $i -c 'read -P 0 0 5M' -c 'write -P 3 1000 70000' -c 'read -P 3 1000 70000' -c 'read -P 0 0 1000'
            check $i
        done
        check image; check again t
        raw image plain; cmp plain source; raw again plain t; cmp plain source"#,
    );
    for name in ["empty", "old"] {
        check_same(dir, name);
    }
    for (arguments, code, word) in [
        (
            "convert --to qcow2 --encrypt luks --format raw source x",
            2,
            "passphrase",
        ),
        (
            "convert --to qcow2 --new-key-file key --format raw source x",
            2,
            "--encrypt",
        ),
        (
            "convert --to qcow2 -c --encrypt luks --new-key-file key --format raw source x",
            1,
            "compressed",
        ),
        (
            "convert --to raw --encrypt luks --new-key-file key --format raw source x",
            2,
            "qcow2 only",
        ),
        ("convert --to raw image x", 1, "--key-file"),
        (
            "create --format raw --encrypt luks --key-file key x 1M",
            2,
            "qcow2 only",
        ),
        ("create --format qcow2 --encrypt luks x 1M", 2, "passphrase"),
        (
            "create --format qcow2 --encrypt luks --key-file key --preallocation full x 1M",
            1,
            "preallocated",
        ),
    ] {
        let (found, text) = ours(&format!("{arguments} </dev/null"));
        assert_eq!(found, code, "{arguments}: {text}");
        assert!(text.contains(word), "{arguments}: {text}");
        assert!(!dir.join("x").exists(), "{arguments}");
    }
}
