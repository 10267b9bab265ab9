//! Mutation fuzz of every parser of network configuration: no panic, no case that takes long.

mod support;

use std::time::{Duration, Instant};

use guestlens::network::{self, MemoryFiles};
use support::fuzz::{self, Rng};
use support::netplan::check_netplan;

const CASES: u64 = 100_000;
/// How long a file as large as is read at all may take, in a debug build.
const LARGE_LIMIT: Duration = Duration::from_secs(2);

const SCRIPTS: &str = "etc/sysconfig/network-scripts/";

fn rhel(consumer: &str, changed: &str, bytes: Vec<u8>) -> MemoryFiles {
    let files = [
        (
            "ifcfg-eth0",
            "DEVICE=eth0\nBOOTPROTO=none\nIPADDR=10.0.0.5\nPREFIX=24\nGATEWAY=10.0.0.1\n",
        ),
        (
            "ifcfg-bond0",
            "DEVICE=bond0\nTYPE=Bond\nBONDING_OPTS=\"mode=1 miimon=100\"\n",
        ),
        ("ifcfg-br0", "DEVICE=br0\nTYPE=Bridge\nSTP=on\nDELAY=4\n"),
    ];
    let mut tree = MemoryFiles::new();
    for (name, text) in files {
        tree = tree.file(&format!("{SCRIPTS}{name}"), text);
    }
    tree = if consumer == "NetworkManager" {
        tree.link(
            "etc/systemd/system/multi-user.target.wants/NetworkManager.service",
            "/x",
        )
    } else {
        tree.file("etc/rc.d/rc3.d/S10network", "")
    };
    tree.file(changed, bytes)
}

fn debian(changed: &str, bytes: Vec<u8>) -> MemoryFiles {
    let tree = MemoryFiles::new()
        .link(
            "etc/systemd/system/multi-user.target.wants/networking.service",
            "/x",
        )
        .file(
            "etc/network/interfaces",
            "auto lo\niface lo inet loopback\nsource interfaces.d/*\n",
        );
    tree.file(changed, bytes)
}

/// Path to change, seed, tree.
fn seeds() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        (
            "nm",
            "etc/sysconfig/network-scripts/ifcfg-eth1",
            "DEVICE=\"eth1\"\nHWADDR=52:54:00:12:34:56\nIPADDR0=10.0.0.5\nPREFIX0=24\nIPADDR1=10.1.0.5\nNETMASK1=255.255.0.0\n\
             GATEWAY0=10.0.0.1\nDNS1=1.1.1.1\nDOMAIN='a b'\nIPV6INIT=yes\nIPV6ADDR=2001:db8::1/64\nIPV6_DEFAULTGW=fe80::1%eth1\n\
             MTU=1500\nETHTOOL_OPTS=\"-K ${DEVICE} tso off\"\nexport A=$'\\x41'\\''\nWPA_PSK=x\nMASTER=bond0\n",
        ),
        (
            "init",
            "etc/sysconfig/network-scripts/ifcfg-eth0.10.20",
            "VLAN=yes; PHYSDEV=eth0 VID=7\nBOOTPROTO=dhcp # c\nBRIDGE=br0\nBRIDGING_OPTS=\"path_cost=5 priority=1\"\n\
             A='x\ny'\nIPADDR=`x`\nROUTING_RULE_1=\"from 10.0.0.0/8 table 5\"\nunset A\n",
        ),
        (
            "nm",
            "etc/sysconfig/network-scripts/ifcfg-eth0:1",
            "DEVICE=eth0:1\nIPADDR=10.0.0.7\nONPARENT=no\n",
        ),
        (
            "init",
            "etc/sysconfig/network-scripts/ifcfg-eth0-range0",
            "IPADDR_START=10.0.0.9\nIPADDR_END=10.0.0.20\nCLONENUM_START=3\n",
        ),
        (
            "init",
            "etc/sysconfig/network-scripts/route-eth0",
            "# x\n10.0.0.0/8 via 10.0.0.1 metric 5 table 7 mtu lock 1400\ndefault via (null) dev eth0 src 10.0.0.5\nvia 10.0.0.1 to 1/8 onlink advmss 7\n",
        ),
        (
            "nm",
            "etc/sysconfig/network-scripts/route-eth0",
            "ADDRESS0=10.0.0.0\nNETMASK0=255.0.0.0\nGATEWAY0=10.0.0.1\nMETRIC0=7\nOPTIONS0=\"mtu 1400\"\nADDRESS2=1.2.3.4\n",
        ),
        (
            "nm",
            "etc/sysconfig/network-scripts/rule-eth0",
            "from 10.0.0.0/8 table 5 prio 7 fwmark 0x1/0xff\nnot iif eth0 lookup main\n",
        ),
        (
            "nm",
            "etc/sysconfig/network",
            "NETWORKING=yes\nHOSTNAME=a.b\nGATEWAY=10.0.0.1\nGATEWAYDEV=eth0\nIPV6_DEFAULTGW=fe80::1%eth0\n",
        ),
        (
            "init",
            "etc/sysconfig/static-routes",
            "any net 10.0.0.0 netmask 255.0.0.0 gw 10.0.0.1\n",
        ),
        (
            "deb",
            "etc/network/interfaces.d/a",
            "auto eth0 eth0:0\nallow-hotplug eth1\niface eth0 inet static\n\taddress 10.0.0.5/24\n\tnetmask 255.255.0.0\n\tgateway 10.0.0.1\n\
             \tdns-nameservers 1.1.1.1 \\\n 2.2.2.2\n\tup ip route add 10.0.0.0/8 via 10.0.0.1 || true\n\tdown route del -net 10.0.0.0/8\n\
             iface eth0 inet6 auto\n\tdhcp 1\n\tprivext 2\niface eth0:0 inet static inherits eth0\n\taddress 10.0.0.6\n\
             mapping eth*\n\tscript /x\n\tmap a home\niface home inet dhcp\n\thostname x\nrename a=b\nsource *\nsource-directory .\n",
        ),
        (
            "deb",
            "etc/network/interfaces.d/b",
            "auto br0\niface br0 inet manual\n\tbridge_ports eth0 eth1 regex eth.*\n\tbridge_stp on\n\tbridge_fd 2.0\n\tbridge_pathcost eth0 5\n\
             iface bond0 inet dhcp\n\tbond-slaves none\n\tbond-mode 4\n\tbond-arp-ip-target 10.0.0.1\niface eth2 inet manual\n\tbond-master bond0\n\
             iface eth0.5 inet static\n\taddress 10.0.0.1/255.255.0.0\n\tpointopoint 10.0.0.2\n\tmtu 1400\niface sit0 inet6 v4tunnel\n\tendpoint 1.2.3.4\n",
        ),
        (
            "deb",
            "etc/hosts",
            "127.0.0.1 localhost # x\n::1 ip6 a b\nbogus\n",
        ),
        (
            "deb",
            "etc/resolv.conf",
            "# generated by x\nnameserver 1.1.1.1\nsearch a b\noptions ndots:2\nsortlist 1\ndomain x\n",
        ),
        (
            "deb",
            "etc/udev/rules.d/70-persistent-net.rules",
            "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:12:34:56\", NAME=\"eth0\"\n",
        ),
        (
            "deb",
            "etc/systemd/network/10-x.link",
            "[Match]\nMACAddress=52:54:00:12:34:56\n[Link]\nName=eth0\n",
        ),
        ("deb", "etc/hostname", "# x\nhost\n"),
    ]
}

fn mutate(rng: &mut Rng, seed: &[u8], other: &[u8]) -> Vec<u8> {
    const BITS: [&[u8]; 22] = [
        b"\"",
        b"'",
        b"\\",
        b"$",
        b"`",
        b"$(",
        b"\n",
        b"=",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b":",
        b"/",
        b"\r\n",
        b"4294967296",
        b"-1",
        b"[",
        b"*",
        b"#",
        b"$'\\",
        b"inherits ",
        b" ",
    ];
    let mut out = seed.to_vec();
    for _ in 0..=rng.index(6) {
        let at = rng.index(out.len() + 1);
        match rng.index(8) {
            0 => {
                if let Some(b) = out.get_mut(at) {
                    *b ^= 1 << rng.index(8);
                }
            }
            1 => {
                let bits = BITS[rng.index(BITS.len())];
                out.splice(at..at, bits.iter().copied());
            }
            2 => {
                let end = (at + rng.index(12)).min(out.len());
                out.drain(at..end);
            }
            3 => out.truncate(at),
            4 => {
                let end = (at + rng.index(40)).min(out.len());
                let piece = out[at..end].to_vec();
                let to = rng.index(out.len() + 1);
                out.splice(to..to, piece);
            }
            5 => {
                let from = rng.index(other.len() + 1);
                let end = (from + rng.index(60)).min(other.len());
                out.splice(at..at, other[from..end].iter().copied());
            }
            6 => {
                // Swap two lines.
                let mut lines: Vec<Vec<u8>> = out
                    .split_inclusive(|b| *b == b'\n')
                    .map(<[u8]>::to_vec)
                    .collect();
                if lines.len() > 1 {
                    let (a, b) = (rng.index(lines.len()), rng.index(lines.len()));
                    lines.swap(a, b);
                }
                out = lines.concat();
            }
            _ => {
                let byte = (rng.next() & 0xff) as u8;
                if let Some(b) = out.get_mut(at) {
                    *b = byte;
                }
            }
        }
    }
    out
}

fn tree(kind: &str, path: &str, bytes: Vec<u8>) -> MemoryFiles {
    match kind {
        "nm" => rhel("NetworkManager", path, bytes),
        "init" => rhel("initscripts", path, bytes),
        _ => debian(path, bytes),
    }
}

/// Every line of canonical YAML is a key, an item, or both; strings never run over lines.
fn looks_like_yaml(text: &str) -> bool {
    text.lines().all(|line| {
        let bare = line.trim_start_matches([' ', '-']);
        (bare.contains(": ") || bare.ends_with(':') || line.trim_start().starts_with('-'))
            && !line.chars().any(char::is_control)
    })
}

#[test]
fn mutated_files_do_no_harm() {
    let seeds = seeds();
    fuzz::run(CASES, |number, rng| {
        let (kind, path, seed) = seeds[number as usize % seeds.len()];
        let other = seeds[rng.index(seeds.len())].2;
        let bytes = mutate(rng, seed.as_bytes(), other.as_bytes());
        let document = network::read(&tree(kind, path, bytes));
        if number % 7 == 0 {
            check_netplan(&document.to_json());
        }
        if number % 61 == 0 {
            let yaml = document.to_yaml();
            assert!(looks_like_yaml(&yaml), "{yaml}");
            document.summary();
        }
    });
}

/// A file as large as is read at all, made of one thing repeated.
#[test]
fn large_files_are_read_in_time() {
    let pieces: [(&str, &str, &str); 18] = [
        ("nm", "etc/sysconfig/network-scripts/ifcfg-eth1", "A=1\n"),
        ("init", "etc/sysconfig/network-scripts/ifcfg-eth1", "A='"),
        ("init", "etc/sysconfig/network-scripts/ifcfg-eth1", "A='\n"),
        ("init", "etc/sysconfig/network-scripts/ifcfg-eth1", "A=$(("),
        ("init", "etc/sysconfig/network-scripts/ifcfg-eth1", "A=\"\n"),
        (
            "init",
            "etc/sysconfig/network-scripts/ifcfg-eth1",
            "A=1 B=2 ",
        ),
        ("init", "etc/sysconfig/network-scripts/ifcfg-eth1", "A=\"${"),
        (
            "nm",
            "etc/sysconfig/network-scripts/route-eth0",
            "1.2.3.4 via 1.1.1.1\n",
        ),
        (
            "nm",
            "etc/sysconfig/network-scripts/rule-eth0",
            "from 1.2.3.4 table 5\n",
        ),
        ("deb", "etc/network/interfaces.d/a", "iface a inherits a\n"),
        (
            "deb",
            "etc/network/interfaces.d/a",
            "iface e0 inet static\naddress 1.2.3.4\nup ip route add 1/8 via 1.1.1.1\n",
        ),
        ("deb", "etc/network/interfaces.d/a", "source *\n"),
        ("deb", "etc/network/interfaces.d/a", "\\\n"),
        ("deb", "etc/network/interfaces.d/a", "auto a b c d\n"),
        (
            "deb",
            "etc/network/interfaces.d/a",
            "iface b inet manual\nbridge_ports a b c d e f g h\n",
        ),
        ("deb", "etc/hosts", "1.1.1.1 a\n"),
        ("deb", "etc/resolv.conf", "nameserver 1.1.1.1\n"),
        ("deb", "etc/resolv.conf", "\0"),
    ];
    for (kind, path, piece) in pieces {
        for size in [1 << 20, 2 << 20] {
            let bytes = piece.repeat(size / piece.len()).into_bytes();
            let files = tree(kind, path, bytes);
            let read = || {
                let started = Instant::now();
                let yaml = network::read(&files).to_yaml();
                (yaml, started.elapsed())
            };
            let (yaml, mut took) = read();
            if took >= LARGE_LIMIT {
                // A busy machine may delay it once.
                took = read().1;
            }
            assert!(took < LARGE_LIMIT, "{path} of {piece:?}: {took:?}");
            assert!(yaml.starts_with("network:\n"));
        }
    }
}
