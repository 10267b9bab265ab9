//! Network files no administrator would write: odd names and values in every place that reaches the
//! document, trees that try to lead out of the guest, and the document of a real image.

mod support;

use std::path::Path;

use guestlens::guest::{Content, Guest, GuestOptions, GuestView, ImageArgument};
use guestlens::meta;
use guestlens::network::{self, Document, MemoryFiles};
use support::{ext, guestlens, run, shell, workdir};

const SCRIPTS: &str = "etc/sysconfig/network-scripts/";

/// Strings YAML readers take for something else, break at, or show wrongly.
fn odd() -> Vec<String> {
    let mut odd: Vec<String> = [
        "yes",
        "No",
        "~",
        "null",
        "0x10",
        "0o17",
        "017",
        "1:2:3",
        "52:54:00:12:34:56",
        "=",
        "<<",
        "1e3",
        "1_000",
        ".inf",
        ".NaN",
        "-0",
        "+1",
        "1.5",
        "2001-01-01",
        "- a",
        "-",
        "?",
        "? a",
        ": a",
        "a: b",
        "a:",
        "a #b",
        "#a",
        "&a",
        "*a",
        "!a",
        "%a",
        "@a",
        "`a`",
        "|",
        ">",
        "[a",
        "{a}",
        "a]",
        "a,b",
        "\"a\"",
        "a\\nb",
        "\\",
        "'a'",
        "---",
        "...",
        "--- a",
        "on",
        "OFF",
        "y",
        "N",
        "\u{85}a",
        "a\u{2028}b",
        "a\u{2029}",
        "\u{feff}a",
        "\u{202e}a",
        "\u{1b}[31mred\u{1b}[0m",
        "a\u{7f}",
        "a\u{9f}b",
        "\u{fffe}",
        "\u{ffff}",
        "\u{e000}",
        "\u{1f600}",
        "\u{e0041}",
        "a\u{300}",
        "gr\u{fc}n",
        "\u{ad}",
        "\u{0}a",
        "a\tb",
        "%s%n",
        "${A}",
        "../../x",
        "/",
        "*",
        "a b",
    ]
    .map(str::to_owned)
    .to_vec();
    odd.push("k".repeat(1023));
    odd.push("k\u{e9}\"".repeat(400));
    odd.push("1".repeat(5000));
    odd
}

fn nm(files: MemoryFiles) -> MemoryFiles {
    let wants = "etc/systemd/system/multi-user.target.wants/NetworkManager.service";
    files.link(wants, "/x")
}

fn debian(files: MemoryFiles) -> MemoryFiles {
    let wants = "etc/systemd/system/multi-user.target.wants/networking.service";
    files.link(wants, "/x")
}

/// `$'…'` with everything escaped that has a meaning in it.
fn ansi(text: &str) -> String {
    let mut out = String::from("$'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out + "'"
}

fn trees() -> Vec<MemoryFiles> {
    let mut trees = Vec::new();
    for text in odd() {
        let word = ansi(&text);
        let file_name = text.replace(['/', '\0'], "_");
        let long = file_name.chars().count() > 60;
        let mut files = nm(MemoryFiles::new())
            .file(
                &format!("{SCRIPTS}ifcfg-a"),
                format!(
                    "DEVICE={word}\nNAME={word}\nUUID={word}\nDHCP_HOSTNAME={word}\nDOMAIN={word}\nZONE={word}\n\
                     IPADDR=10.0.0.1\nIPV6INIT=yes\nIPV6_TOKEN={word}\nTYPE=Wireless\nESSID={word}\nWPA_PSK={word}hunter2\n\
                     KEY_MGMT={word}\nIEEE_8021X_IDENTITY={word}\nMASTER_X={word}\nKEY1={word}hunter2\n"
                ),
            )
            .file(&format!("{SCRIPTS}ifcfg-b"), format!("DEVICE=b\nBRIDGE={word}\nBRIDGING_OPTS='path_cost=3'\n"))
            .file(&format!("{SCRIPTS}ifcfg-c"), format!("DEVICE=c\nPHYSDEV={word}\nVLAN=yes\nVLAN_ID=3\n"))
            .file(
                &format!("{SCRIPTS}ifcfg-team0"),
                format!("DEVICE=team0\nDEVICETYPE=Team\nTEAM_CONFIG={}\n", ansi(&serde_json::json!({ text.clone(): [text, 1e300, -1e-9, [[{}]]] }).to_string())),
            )
            .file("etc/hostname", format!("{text}\n"))
            .file("etc/hosts", format!("127.0.0.1 {text} # {text}\n{text}\n"))
            .file("etc/resolv.conf", format!("search {text}\noptions {text}\nsortlist {text}\n{text}\n"));
        if !long {
            files = files
                .file(&format!("{SCRIPTS}ifcfg-{file_name}"), "IPADDR=10.0.0.2\n")
                .file(
                    &format!("{SCRIPTS}ifcfg-b:{file_name}"),
                    "IPADDR=10.0.0.2\n",
                )
                .file(
                    &format!("{SCRIPTS}route-{file_name}"),
                    format!("{text}\n10.0.0.0/8 dev {text}\n"),
                )
                .file(
                    &format!("{SCRIPTS}keys-{file_name}"),
                    format!("KEY={word}hunter2\nhunter2\n'hunter2\n"),
                );
        }
        trees.push(files);
        let mut files = debian(MemoryFiles::new()).file(
            "etc/network/interfaces",
            format!(
                "auto {text}\niface {text} inet static\n address 10.0.0.1/24\n hostname {text}\n dns-search {text}\n foo {text}\n \
                 {text} bar\n bridge_ports {text}\n bridge_pathcost {text} 3\n wpa-ssid {text}\n wpa-psk {text}hunter2\n up {text}\n\
                 iface v inet manual\n vlan-raw-device {text}\n vlan-id 5\niface {text}:1 inet static\n address 10.0.0.2\n\
                 iface b inet manual\n bond-master {text}\nmapping {text}\n script {text}\n map {text}\nrename a={text}\nsource {text}\n"
            ),
        );
        if !long {
            files = files.file(&format!("etc/network/interfaces.d/{file_name}"), "x");
        }
        trees.push(files);
    }
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    trees.push(nm(MemoryFiles::new()).file(
        &format!("{SCRIPTS}ifcfg-t"),
        format!("DEVICE=t\nDEVICETYPE=Team\nTEAM_CONFIG='{deep}'\n"),
    ));
    trees
}

/// Rules of the canonical text that need no YAML reader.
fn check_text(yaml: &str) {
    assert!(yaml.starts_with("network:\n  version: 2\n") && yaml.ends_with('\n'));
    for line in yaml.lines() {
        assert_eq!(line.trim_end(), line, "{line:?}");
        let bad = |c: char| {
            c.is_control()
                || matches!(
                    c,
                    '\u{feff}' | '\u{2028}'..='\u{202e}' | '\u{fffe}' | '\u{ffff}'
                )
        };
        assert!(!line.contains(bad), "{line:?}");
        // A MAC or an IPv6 address is never bare.
        let value = line.rsplit_once(": ").map_or(line, |(_, value)| value);
        let bare = !value.contains('"') && value.matches(':').count() > 1;
        assert!(!bare, "{line:?}");
    }
}

fn check_secrets(document: &Document) {
    for text in [
        document.to_yaml(),
        document.to_json().to_string(),
        document.summary(),
        document.netplan_yaml(),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// PyYAML sees in every document what the JSON view says.
#[test]
fn odd_text_stays_what_it_is() {
    let dir = workdir();
    let mut lines = String::new();
    let mut count = 0;
    for files in trees() {
        let document = network::read(&files);
        check_text(&document.to_yaml());
        check_secrets(&document);
        assert!(
            !document
                .summary()
                .contains(|c: char| c != '\n' && c.is_control())
        );
        for yaml in [document.to_yaml(), document.netplan_yaml()] {
            lines += &serde_json::json!([yaml, document.to_json()]).to_string();
            lines.push('\n');
        }
        count += 2;
    }
    std::fs::write(dir.path().join("documents"), lines).unwrap();
    let script = "import json, yaml\n\
        loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)\n\
        n = 0\n\
        for line in open('documents', encoding='utf-8', newline='\\n'):\n\
        \x20   text, want = json.loads(line)\n\
        \x20   for l in {loader, yaml.SafeLoader} if len(text) < 20000 else {loader}:\n\
        \x20       got = yaml.load(text, Loader=l)\n\
        \x20       assert got == (want if n % 2 == 0 else {'network': want['network']}), (text, want)\n\
        \x20   n += 1\n\
        print(n)\n";
    let mut python = std::process::Command::new("/usr/bin/python3");
    let output = run(python.current_dir(dir.path()).arg("-c").arg(script));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        count.to_string()
    );
}

/// Whatever stands between the quotes of a secret, closed or not, one line or several.
#[test]
fn secrets_stay_hidden() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % n as u64).unwrap()
    };
    let keys = ["WPA_PSK", "KEY1", "IEEE_8021X_PASSWORD", "KEY_ESP_IN"];
    let inside = [
        "hunter2",
        " ",
        "\n",
        "=",
        "\nA=",
        "\nNOTE=hunter2",
        "#",
        ";",
        "`",
        "$(",
        "x",
        "\\\"",
        "\\",
        "\t",
        "'",
        "\"",
    ];
    for _ in 0..20_000 {
        let quote = ["'", "\"", "$'"][below(3)];
        let own = &quote[quote.len() - 1..];
        let mut value = format!("{quote}hunter2");
        for _ in 0..below(8) {
            let part = inside[below(inside.len())];
            // The value's own quote would close it, a backslash before it not.
            let escaped = part == "\\\"" && own == "\"";
            if escaped || !part.contains(own) && part != "\\" {
                value.push_str(part);
            }
        }
        if below(2) == 0 {
            value.push_str(own);
        }
        let text = format!("DEVICE=eth0\n{}={value}\nBOOTPROTO=dhcp\n", keys[below(4)]);
        let files = MemoryFiles::new().file(&format!("{SCRIPTS}ifcfg-eth0"), text.clone());
        for files in [
            nm(files.clone()),
            files.link("etc/rc.d/rc3.d/S10network", "../init.d/network"),
        ] {
            let yaml = network::read(&files).to_yaml();
            assert!(!yaml.contains("hunter2"), "{text}\n{yaml}");
        }
    }
}

/// Thousands of files, more than are read at all: bounded, said, and in time.
#[test]
fn thousands_of_files() {
    let mut many = nm(MemoryFiles::new());
    for n in 0..5000 {
        many = many.file(
            &format!("{SCRIPTS}ifcfg-eth{n}"),
            format!(
                "DEVICE=eth{n}\nIPADDR=10.{}.{}.1\nPREFIX=24\nMASTER=bond{}\n",
                n / 250,
                n % 250,
                n % 3
            ),
        );
        many = many.file(
            &format!("{SCRIPTS}route-eth{n}"),
            "10.0.0.0/8 via 10.0.0.1\n",
        );
    }
    let start = std::time::Instant::now();
    let document = network::read(&many);
    check_text(&document.to_yaml());
    assert!(
        document
            .guest
            .warnings
            .iter()
            .any(|w| w.message.contains("too many files"))
    );
    let mut sources = String::new();
    let mut many = debian(MemoryFiles::new());
    for n in 0..5000 {
        many = many.file(
            &format!("etc/network/interfaces.d/{n}"),
            format!(
                "auto e{n}\niface e{n} inet dhcp\nsource /etc/network/interfaces.d/{}\n",
                (n + 1) % 5000
            ),
        );
        sources += &format!("source interfaces.d/{n}\n");
    }
    let document = network::read(&many.file(
        "etc/network/interfaces",
        sources + "source interfaces.d/*\n",
    ));
    check_text(&document.to_yaml());
    assert!(document.devices.len() > 4000, "{}", document.devices.len());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

fn view(image: &Path) -> GuestView {
    let argument = ImageArgument {
        path: image.to_path_buf(),
        format: Some("raw".into()),
    };
    let guest = Guest::open(&[argument], &GuestOptions::default()).unwrap();
    let fs = guest.volumes().iter().find_map(|v| match &v.content {
        Content::FileSystem(fs) => Some(fs.clone()),
        _ => None,
    });
    GuestView::new(fs.unwrap(), 0)
}

/// The same tree in memory and in an ext4 image gives the same document; links, pipes, loops and
/// large files of the image lead nowhere, least of all to the host.
#[test]
fn an_image_gives_the_same_document() {
    let dir = workdir();
    let secret = dir.path().join("host-file");
    std::fs::write(&secret, "auto host0\niface host0 inet dhcp\n").unwrap();
    let host = secret.to_str().unwrap();
    shell(
        dir.path(),
        &format!(
            "mkdir -p t/etc/network/interfaces.d t/etc/systemd/system/multi-user.target.wants t/srv\n\
             ln -s /lib/systemd/system/networking.service t/etc/systemd/system/multi-user.target.wants/\n\
             ln -s /srv/interfaces t/etc/network/interfaces\n\
             printf 'source /etc/network/interfaces.d/*\\nauto lo\\niface lo inet loopback\\n' > t/srv/interfaces\n\
             cd t/etc/network/interfaces.d\n\
             printf 'auto eth0\\niface eth0 inet static\\n address 10.0.0.5/24\\n gateway 10.0.0.1\\n' > 1\n\
             ln 1 hard; ln -s {host} 2; ln -s ../../../../../../../../../..{host} 3; ln -s 4 4; ln -s 6 5; ln -s 5 6\n\
             mkdir 7; mkfifo 8; head -c 3000000 /dev/zero > 9; printf '\\357\\273\\277auto eth9\\r\\n\\000' > a\n\
             ln -s ../interfaces.d b; ln -s /etc/network/interfaces c; ln -s . d\n\
             for n in $(seq 1000 2500); do printf \"auto e$n\\niface e$n inet dhcp\\n\" > $n; done\n\
             cd ../..; echo image > hostname; ln -s ../run/systemd/resolve/stub-resolv.conf resolv.conf"
        ),
    );
    let image = dir.path().join("image");
    ext::mke2fs(
        &image,
        "32M",
        &format!("-t ext4 -N 4096 -d '{}'", dir.path().join("t").display()),
    );
    let meta = meta::network::render(&view(&image));
    check_text(&meta.yaml);

    let d = "etc/network/interfaces.d/";
    let mut files = MemoryFiles::new()
        .link(
            "etc/systemd/system/multi-user.target.wants/networking.service",
            "/lib/systemd/system/networking.service",
        )
        .link("etc/network/interfaces", "/srv/interfaces")
        .file(
            "srv/interfaces",
            "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n",
        )
        .file("etc/hostname", "image\n")
        .link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
        .file(&format!("{d}9"), vec![0; 3_000_000])
        .file(&format!("{d}a"), &b"\xef\xbb\xbfauto eth9\r\n\0"[..])
        // A pipe is no file, as a directory is none.
        .file(&format!("{d}7/x"), "")
        .file(&format!("{d}8/x"), "");
    for name in ["1", "hard"] {
        files = files.file(
            &format!("{d}{name}"),
            "auto eth0\niface eth0 inet static\n address 10.0.0.5/24\n gateway 10.0.0.1\n",
        );
    }
    for (name, target) in [
        ("2", host),
        ("3", &format!("../../../../../../../../../..{host}")),
        ("4", "4"),
        ("5", "6"),
        ("6", "5"),
        ("b", "../interfaces.d"),
        ("c", "/etc/network/interfaces"),
        ("d", "."),
    ] {
        files = files.link(&format!("{d}{name}"), target);
    }
    for n in 1000..=2500 {
        files = files.file(
            &format!("{d}{n}"),
            format!("auto e{n}\niface e{n} inet dhcp\n"),
        );
    }
    let document = network::read(&files);
    let memory = document.to_yaml();
    for (ours, theirs) in meta.yaml.lines().zip(memory.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(meta.yaml.len(), memory.len());
    assert_eq!(meta.json, document.to_json());
    assert!(!meta.yaml.contains("host0"), "the host's file was read");
    assert!(meta.yaml.contains("- 10.0.0.5/24") && meta.yaml.contains("  e2500:"));
    let told = |path: &str, what: &str| {
        let file = format!("{d}{path}");
        let said = document
            .guest
            .warnings
            .iter()
            .any(|w| w.file == file && w.message.contains(what));
        assert!(said, "{path}: {what}");
    };
    for path in ["2", "3", "4", "5", "6"] {
        told(path, "leads nowhere");
    }
    for path in ["7", "8", "b", "d"] {
        told(path, "not a regular file");
    }
    told("9", "larger than");

    for (args, want) in [
        (&["network"][..], meta.yaml.clone()),
        (&["network", "--view", "netplan"], meta.netplan_yaml.clone()),
        (&["network", "--view", "summary"], meta.summary.clone()),
    ] {
        let output = run(guestlens().args(args).arg(&image));
        assert!(String::from_utf8_lossy(&output.stdout) == want, "{args:?}");
    }
    let output = run(guestlens().args(["network", "--json"]).arg(&image));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, meta.json);
}
