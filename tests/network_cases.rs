//! Trees of native network files and the canonical document each must give.
//!
//! `tests/network/NAME.case` holds the files (each line behind `|`, with `\\`, `\r`, `\0`, `\a`,
//! `\x01`, `\u{…}` escaped, `\c` for "no line end"), links, who is started (`@`), and behind
//! `=== expect` the whole text of `meta/network`. `GUESTLENS_BLESS=1` writes the expectations anew;
//! read the difference before committing it.

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use guestlens::network::codec::assignments::{self, Dialect, Kind, Value};
use guestlens::network::{self, MemoryFiles};
use support::netplan::check_netplan;
use support::{run, shell, tool, workdir};

fn unescape(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let (c, mut tail) = match rest[at + 1..].chars().next().expect("an escape") {
            '\\' => ('\\', &rest[at + 2..]),
            'r' => ('\r', &rest[at + 2..]),
            '0' => ('\0', &rest[at + 2..]),
            'a' => ('\u{7}', &rest[at + 2..]),
            'x' => ('\u{1}', &rest[at + 4..]),
            'c' => return out + "\\c",
            'u' => {
                let end = rest[at..].find('}').expect("}") + at;
                let code = u32::from_str_radix(&rest[at + 3..end], 16).expect("a code");
                (char::from_u32(code).expect("a character"), &rest[end + 1..])
            }
            other => panic!("\\{other} in {line}"),
        };
        out.push(c);
        std::mem::swap(&mut rest, &mut tail);
    }
    out + rest
}

fn starts(who: &str, files: MemoryFiles) -> MemoryFiles {
    let wants = "etc/systemd/system/multi-user.target.wants";
    match who {
        "NetworkManager" => files.link(&format!("{wants}/NetworkManager.service"), "/x"),
        "initscripts" => files.link("etc/rc.d/rc3.d/S10network", "../init.d/network"),
        "ifupdown" => files.link(&format!("{wants}/networking.service"), "/x"),
        "openrc" => files.link("etc/runlevels/boot/networking", "/etc/init.d/networking"),
        "none" => files,
        other => panic!("nobody is called {other}"),
    }
}

/// The tree of a case, the text before the expectation, and the expectation.
fn load(path: &Path) -> (MemoryFiles, String, String) {
    let text = std::fs::read_to_string(path).expect("a case");
    let (input, expected) = text.split_once("=== expect\n").expect("=== expect");
    let mut files = MemoryFiles::new();
    let mut current: Option<(String, String)> = None;
    for line in input.lines() {
        if let Some(body) = line.strip_prefix('|') {
            let content = &mut current.as_mut().expect("a file").1;
            let body = unescape(body);
            match body.strip_suffix("\\c") {
                Some(body) => content.push_str(body),
                None => content.extend([body.as_str(), "\n"]),
            }
            continue;
        }
        if let Some((name, content)) = current.take() {
            files = files.file(&name, content);
        }
        if let Some(who) = line.strip_prefix("@ ") {
            files = starts(who, files);
        } else if let Some(name) = line.strip_prefix("=== ") {
            match name.split_once(" -> ") {
                Some((name, target)) => files = files.link(name, target),
                None => current = Some((name.to_owned(), String::new())),
            }
        } else {
            assert!(line.starts_with('#'), "{}: {line}", path.display());
        }
    }
    if let Some((name, content)) = current {
        files = files.file(&name, content);
    }
    (files, input.to_owned(), expected.to_owned())
}

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/network");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("cases")
        .map(|e| e.expect("an entry").path())
        .collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "case"));
    found.sort();
    assert!(found.len() >= 60, "{} cases", found.len());
    found
}

#[test]
fn each_tree_gives_its_document() {
    let bless = std::env::var_os("GUESTLENS_BLESS").is_some();
    let mut wrong = String::new();
    for path in cases() {
        let (files, input, expected) = load(&path);
        let document = network::read(&files);
        let yaml = document.to_yaml();
        if bless {
            std::fs::write(&path, format!("{input}=== expect\n{yaml}")).expect("to write");
        } else if yaml != expected {
            let _ = writeln!(wrong, "=== {}\n{yaml}", path.display());
        }
        check_netplan(&document.to_json());
        // Secrets of all cases are this word.
        assert!(!yaml.contains("hunter2"), "{}: {yaml}", path.display());
        assert!(!document.to_json().to_string().contains("hunter2"));
        assert_eq!(yaml, network::read(&files).to_yaml(), "{}", path.display());
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// PyYAML, which reads YAML 1.1, must see the document the JSON view holds.
#[test]
fn pyyaml_reads_the_same_document() {
    let dir = workdir();
    let mut count = 0;
    for path in cases() {
        let (files, ..) = load(&path);
        let document = network::read(&files);
        let stem = dir.path().join(path.file_stem().expect("a stem"));
        std::fs::write(stem.with_extension("yaml"), document.to_yaml()).expect("to write");
        std::fs::write(stem.with_extension("json"), document.to_json().to_string())
            .expect("to write");
        std::fs::write(stem.with_extension("netplan"), document.netplan_yaml()).expect("to write");
        count += 1;
    }
    let odd = [
        "",
        "no",
        "1:20",
        "52:54:00:12:34:56",
        "0x10",
        "1e3",
        "~",
        "a: b",
        "- x",
        "\u{85}\u{2028}\u{feff}",
        "\u{7f}\0\t\n\"\\",
        "\u{fffe}\u{1f600}",
        "2001-01-01",
        "1_000",
        ".5",
        "#x",
        "%",
        "key: [",
        "!x",
        "y",
        "=",
        "<<",
    ];
    let value = serde_json::json!({ "odd": odd, "keys": odd.iter().map(|o| ((*o).to_owned(), 1)).collect::<std::collections::BTreeMap<_, _>>() });
    std::fs::write(dir.path().join("odd.yaml"), network::yaml::emit(&value)).expect("to write");
    std::fs::write(dir.path().join("odd.json"), value.to_string()).expect("to write");
    let script = "import glob, json, os, yaml\n\
        n = 0\n\
        for path in sorted(glob.glob('*.yaml')):\n\
        \x20   got = yaml.safe_load(open(path, encoding='utf-8', newline='').read())\n\
        \x20   want = json.load(open(path[:-5] + '.json', encoding='utf-8'))\n\
        \x20   assert got == want, (path, got, want)\n\
        \x20   plan = path[:-5] + '.netplan'\n\
        \x20   if os.path.exists(plan):\n\
        \x20       assert yaml.safe_load(open(plan, encoding='utf-8').read()) == {'network': want['network']}, plan\n\
        \x20   n += 1\n\
        print(n)\n";
    // The distribution's interpreter is the one its package python3-yaml belongs to.
    let mut python = std::process::Command::new("/usr/bin/python3");
    let output = run(python.current_dir(dir.path()).arg("-c").arg(script));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        (count + 1).to_string()
    );
}

/// bash must see the words our reader sees, in assignments quoted in every way there is.
#[test]
fn quoting_agrees_with_bash() {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut below = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let alphabet: Vec<char> = "ab1 \t\"'\\#;=$`.-/:~\u{e9}&|<>(){}*?!".chars().collect();
    let mut file = String::new();
    let mut script = String::new();
    const COUNT: usize = 1500;
    for n in 0..COUNT {
        let mut word = String::new();
        for _ in 0..=below(4) {
            let text: String = (0..below(6))
                .map(|_| alphabet[below(alphabet.len())])
                .collect();
            match below(4) {
                0 => {
                    let _ = write!(word, "'{}'", text.replace('\'', ""));
                }
                1 => {
                    word.push('"');
                    for c in text.chars() {
                        // An escape before other characters keeps its backslash.
                        if matches!(c, '"' | '\\' | '$' | '`') || below(4) == 0 {
                            word.push('\\');
                        }
                        word.push(c);
                    }
                    word.push('"');
                }
                2 => {
                    word.push_str("$'");
                    for c in text.chars() {
                        match c {
                            '\'' | '\\' => word.extend(['\\', c]),
                            '\t' => word.push_str("\\t"),
                            c if c.is_ascii() && below(3) == 0 => {
                                let _ = write!(word, "\\x{:02x}", c as u32);
                            }
                            c if c.is_ascii() && below(3) == 0 => {
                                let _ = write!(word, "\\{:03o}", c as u32);
                            }
                            c => word.push(c),
                        }
                    }
                    word.push('\'');
                }
                _ => {
                    for c in text.chars() {
                        if !c.is_ascii_alphanumeric() {
                            word.push('\\');
                        }
                        word.push(c);
                    }
                }
            }
        }
        let _ = writeln!(file, "V{n}={word}");
        let _ = writeln!(script, "printf '%s\\0' \"$V{n}\"");
    }
    let dir = workdir();
    std::fs::write(dir.path().join("vars"), &file).expect("to write");
    std::fs::write(dir.path().join("show"), &script).expect("to write");
    let mut bash = tool("bash");
    bash.current_dir(dir.path())
        .env("LC_ALL", "C.UTF-8")
        .args(["-c", ". ./vars; . ./show"]);
    let output = run(bash.stderr(Stdio::inherit()));
    let words: Vec<&[u8]> = output.stdout.split(|b| *b == 0).collect();
    assert_eq!(words.len(), COUNT + 1);
    for dialect in [Dialect::Shell, Dialect::LineByLine] {
        let mut seen = 0;
        for statement in assignments::parse(file.as_bytes(), dialect) {
            match statement.kind {
                Kind::Assignment {
                    value: Value::Literal(value),
                    ..
                } => {
                    let line = file.lines().nth(seen).expect("a line");
                    assert_eq!(
                        String::from_utf8_lossy(&value),
                        String::from_utf8_lossy(words[seen]),
                        "{line}"
                    );
                    seen += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, COUNT);
    }
}

/// `ifquery` must see the addresses, masks and included files our reader sees.
#[test]
fn interfaces_agree_with_ifquery() {
    let dir = workdir();
    let mut compared = 0;
    for (name, text, queries) in [
        (
            "masks",
            "auto e0\niface e0 inet static\n address 10.0.0.1/24\n netmask 255.255.0.0\n\
             iface e1 inet static\n address 10.0.0.1/255.255.255.0\niface e2 inet static\n address 172.16.0.1\n netmask 24\n",
            &["e0", "e1", "e2"][..],
        ),
        (
            "continued",
            "iface e0 inet \\\n static\n address 10.0.0.1/24\n# x \\\n mtu 1400\n dns-nameservers 1.1.1.1 \\\n 2.2.2.2\n",
            &["e0"][..],
        ),
        (
            "inherits",
            "iface base0 inet static\n address 10.0.0.1/24\n mtu 9000\niface e0 inet static inherits base0\n gateway 10.0.0.254\n",
            &["e0"][..],
        ),
        (
            "sources",
            "source d/*\nsource-directory e\n",
            &["e0", "e1", "e2"][..],
        ),
        (
            "bare",
            "iface e0 inet static\n auto\n address 10.0.0.9/24\n",
            &["e0"][..],
        ),
        (
            "vlan",
            "iface e0.0030 inet static\n address 10.0.0.9/24\n",
            &["e0.0030"][..],
        ),
    ] {
        let root = dir.path().join(name).join("etc/network");
        std::fs::create_dir_all(root.join("d")).expect("a directory");
        std::fs::create_dir_all(root.join("e")).expect("a directory");
        let mut tree = vec![("interfaces".to_owned(), text.to_owned())];
        if name == "sources" {
            for (file, iface) in [
                ("d/e0.cfg", "e0"),
                ("d/x~", "e1"),
                ("e/plain", "e2"),
                ("e/no.cfg", "e3"),
            ] {
                let text = format!("iface {iface} inet static\n address 10.0.0.7/24\n");
                tree.push((file.to_owned(), text));
            }
        }
        let mut files = starts("ifupdown", MemoryFiles::new());
        for (file, text) in &tree {
            std::fs::write(root.join(file), text).expect("to write");
            files = files.file(&format!("etc/network/{file}"), text.as_str());
        }
        let mut document = network::read(&files);
        for iface in queries {
            let out = shell(
                &root,
                &format!("ifquery -i {}/interfaces {iface}", root.display()),
            );
            let get = |key: &str| {
                out.lines()
                    .find_map(|l| Some(l.strip_prefix(key)?.strip_prefix(": ")?.to_owned()))
            };
            let device = document
                .find(iface)
                .unwrap_or_else(|| panic!("{name}: {iface}"));
            let ours = device.addresses.first().expect("an address");
            let address = get("address").expect("an address");
            assert_eq!(
                ours.ip.to_string(),
                address.split('/').next().unwrap_or_default(),
                "{out}"
            );
            let mask = get("netmask")
                .or_else(|| address.split_once('/').map(|(_, p)| p.to_owned()))
                .expect("a mask");
            assert_eq!(
                Some(ours.prefix),
                network::address::mask(&mask),
                "{name} {iface} {out}"
            );
            assert_eq!(
                device.mtu.map(|m| m.to_string()),
                get("mtu"),
                "{name} {out}"
            );
            if let Some(servers) = get("dns-nameservers") {
                assert_eq!(
                    device.nameservers.addresses.join(" "),
                    servers.split_whitespace().collect::<Vec<_>>().join(" ")
                );
            }
            let via = device.routes.first().and_then(|r| r.via.clone());
            assert_eq!(via, get("gateway"), "{name} {out}");
            compared += 1;
        }
        if name == "sources" {
            assert!(document.find("e3").is_none());
        }
        if name == "bare" {
            let list = shell(
                &root,
                &format!("ifquery --list -i {}/interfaces", root.display()),
            );
            assert!(list.lines().any(|l| l == "e0"), "{list}");
            assert!(
                document
                    .find("e0")
                    .is_some_and(|d| d.activation_mode.is_none())
            );
        }
    }
    assert!(compared >= 10);
    std::io::stdout().flush().expect("stdout");
}

/// The document of a file that is refused as a whole says so.
#[test]
fn ifquery_refuses_what_we_warn_about() {
    let dir = workdir();
    for (name, text) in [
        ("misplaced", "auto e0\n mtu 5\niface e0 inet dhcp\n"),
        ("empty-option", "auto e0\niface e0 inet dhcp\n hostname\n"),
        ("method", "auto e0\niface e0 inet bogus\n"),
        ("family", "auto e0\niface e0 bogus static\n"),
        (
            "comment",
            "auto e0\niface e0 inet static\n address \\\n# foo\nnetmask\n",
        ),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("to write");
        let status = tool("ifquery")
            .arg("-i")
            .arg(&path)
            .arg("e0")
            .output()
            .expect("ifquery");
        assert!(!status.status.success(), "{name}");
        let files = starts("ifupdown", MemoryFiles::new()).file("etc/network/interfaces", text);
        let document = network::read(&files);
        assert!(
            document
                .guest
                .warnings
                .iter()
                .any(|w| w.message.contains("refuses the whole")),
            "{name}: {}",
            document.to_yaml()
        );
    }
}
