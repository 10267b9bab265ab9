//! Mutation fuzz of every parser of network configuration: no panic, no case that takes long.

mod support;

use std::time::{Duration, Instant};

use guestlens::network::{self, MemoryFiles};
use support::netplan::check_netplan;

const CASES: usize = 100_000;
/// Far above what a case takes, for machines that have other things to do.
const LIMIT: Duration = Duration::from_secs(4);

/// xorshift64*: small, deterministic.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

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

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
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
    for _ in 0..=random.below(6) {
        let at = random.below(out.len() + 1);
        match random.below(8) {
            0 => {
                if let Some(b) = out.get_mut(at) {
                    *b ^= 1 << random.below(8);
                }
            }
            1 => {
                let bits = BITS[random.below(BITS.len())];
                out.splice(at..at, bits.iter().copied());
            }
            2 => {
                let end = (at + random.below(12)).min(out.len());
                out.drain(at..end);
            }
            3 => out.truncate(at),
            4 => {
                let end = (at + random.below(40)).min(out.len());
                let piece = out[at..end].to_vec();
                let to = random.below(out.len() + 1);
                out.splice(to..to, piece);
            }
            5 => {
                let from = random.below(other.len() + 1);
                let end = (from + random.below(60)).min(other.len());
                out.splice(at..at, other[from..end].iter().copied());
            }
            6 => {
                // Swap two lines.
                let mut lines: Vec<Vec<u8>> = out
                    .split_inclusive(|b| *b == b'\n')
                    .map(<[u8]>::to_vec)
                    .collect();
                if lines.len() > 1 {
                    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
                    lines.swap(a, b);
                }
                out = lines.concat();
            }
            _ => {
                let byte = (random.next() & 0xff) as u8;
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
    let threads = 2;
    let handles: Vec<_> = (0..threads)
        .map(|thread| {
            let seeds = seeds.clone();
            std::thread::spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (thread as u64 + 1));
                for n in 0..CASES / threads {
                    let (kind, path, seed) = seeds[n % seeds.len()];
                    let other = seeds[random.below(seeds.len())].2;
                    let bytes = mutate(&mut random, seed.as_bytes(), other.as_bytes());
                    let shown = String::from_utf8_lossy(&bytes).into_owned();
                    let files = tree(kind, path, bytes);
                    let start = Instant::now();
                    let document = std::panic::catch_unwind(|| {
                        let document = network::read(&files);
                        if n % 7 == 0 {
                            check_netplan(&document.to_json());
                        }
                        if n % 64 == 0 {
                            let yaml = document.to_yaml();
                            assert!(looks_like_yaml(&yaml), "{yaml}");
                            document.summary();
                        }
                    });
                    assert!(document.is_ok(), "case {n} of {path}:\n{shown:?}");
                    assert!(
                        start.elapsed() < LIMIT,
                        "case {n} of {path} is slow:\n{shown:?}"
                    );
                }
            })
        })
        .collect();
    for handle in handles {
        handle.join().expect("a case failed");
    }
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
            let start = Instant::now();
            let yaml = network::read(&files).to_yaml();
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(5),
                "{path} of {piece:?}: {took:?}"
            );
            assert!(yaml.starts_with("network:\n"));
        }
    }
}
