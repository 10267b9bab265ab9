#!/usr/bin/env bash
# Measures guestlens against fuse2fs, the kernel's ext4 and qemu-img, all on the same guest, in one
# run.
#
# usage: scripts/bench.sh [--quick] [--rounds N] [--only METRIC,...] [--who NAME,...] [--no-install]
#
#   --quick      3 rounds instead of 5, fuse2fs's slowest figures only once
#   --only       of: ls walk tar seq rand nbd convert
#   --who        only contenders whose name contains one of these, as in "guestlens,loop"
#   The fixtures (about 8 GiB) are made once, in GUESTLENS_BENCH_DIR, by default
#   ~/.cache/guestlens/bench; remove that directory to make them anew.
#
# Needs root: the peers it measures against do (loop mounts, dropping the page cache).
# GUESTLENS names the binary to measure (default: a release build of this tree).
set -eu -o pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/setup.sh
. scripts/setup.sh
# shellcheck source=scripts/debian-root.sh
. scripts/debian-root.sh

pass=()
only=
rounds=5
while [ $# -gt 0 ]; do
    case $1 in
    --no-install) export GUESTLENS_NO_INSTALL=1 ;;
    --quick)
        rounds=3
        pass+=(--rounds 3)
        ;;
    --only)
        only=$2
        shift
        ;;
    --rounds)
        rounds=$2
        pass+=("$1" "$2")
        shift
        ;;
    --who)
        pass+=("$1" "$2")
        shift
        ;;
    -h | --help)
        sed -n '2,16s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        say "unknown option $1"
        exit 2
        ;;
    esac
    shift
done

if [ "$(id -u)" != 0 ]; then
    say "root is needed: kernel mounts are measured too, and the page cache is dropped for cold figures"
    exit 1
fi

place=${GUESTLENS_BENCH_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/guestlens/bench}
mkdir -p "$place"

# The guest: a whole-disk ext4, so that every contender reads it without offsets.
#   /          a Debian system with kernel headers, compilers and Python: some 40,000 files
#   /srv/many  20,000 files of 1 to 4 KiB
#   /srv/big/data   1 GiB of what is in the system itself, as an archive: compresses about 2.5 to 1
make_root() {
    cat >"$place/customize" <<'SCRIPT'
set -eu
root=$1
echo bench >"$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
printf 'auto lo\niface lo inet loopback\n' >"$root/etc/network/interfaces"
mkdir -p "$root/srv/many" "$root/srv/big"
SCRIPT
    setup_debian_root || exit 1
    debian_root "$place/root" "${SUITE:-bookworm}" "$place/customize" \
        systemd-sysv ifupdown netbase python3 perl linux-headers-amd64 build-essential git
    python3 - "$place/root" <<'SCRIPT'
import os, random, subprocess, sys
root = sys.argv[1]
pick = random.Random(1)
for number in range(20_000):
    line = f"{number} {pick.getrandbits(256):x}\n".encode()
    with open(f"{root}/srv/many/{number:05}", "wb") as file:
        file.write((line * 64)[: pick.randrange(1024, 4096)])
want = 1 << 30
with open(f"{root}/srv/big/data", "wb") as out:
    while out.tell() < want:
        tar = subprocess.Popen(
            ["tar", "-C", root, "--sort=name", "-c", "usr", "etc", "var"], stdout=subprocess.PIPE)
        while out.tell() < want and (piece := tar.stdout.read(1 << 20)):
            out.write(piece[: want - out.tell()])
        tar.stdout.close()
        tar.wait()
SCRIPT
}

make_fixtures() {
    say "making the fixtures in $place; this takes some minutes, once"
    rm -rf --one-file-system "${place:?}"/*
    make_root
    truncate -s 6G "$place/raw.img"
    mke2fs -q -F -t ext4 -L root -d "$place/root" "$place/raw.img"
    remove_debian_root "$place/root"
    cd "$place"
    qemu-img convert -f raw -O qcow2 raw.img plain.qcow2
    qemu-img convert -f raw -O qcow2 -c raw.img zlib.qcow2
    qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd raw.img zstd.qcow2
    qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 overlay.qcow2
    # The overlay holds every 16th MiB itself; what is written is what was there.
    python3 - raw.img <<'SCRIPT'
import os, subprocess, sys
commands, size = [], os.path.getsize(sys.argv[1])
with open(sys.argv[1], "rb") as raw:
    for at in range(0, size, 16 << 20):
        raw.seek(at)
        piece = raw.read(1 << 20)
        if piece.strip(b"\0"):
            with open("piece", "wb") as out:
                out.write(piece)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s piece {at} {len(piece)}",
                            "overlay.qcow2"], check=True, stdout=subprocess.DEVNULL)
os.unlink("piece")
SCRIPT
    # A chain of 16 overlays over the plain image.
    local below=plain.qcow2 number
    for number in $(seq 1 16); do
        qemu-img create -q -f qcow2 -b "$below" -F qcow2 "chain$number.qcow2"
        below=chain$number.qcow2
    done
    # 1 TiB, sparse, with a small tree in it.
    mkdir -p small/etc small/usr/lib
    cp /etc/os-release small/usr/lib/
    ln -s ../usr/lib/os-release small/etc/os-release
    truncate -s 1T tebibyte.img
    mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d small tebibyte.img
    rm -r small
    sync
    touch made
    cd "$ROOT"
}

setup_tools build bench || exit 1
have fuse2fs || say "fuse2fs is not there: it is left out"
if [ -z "${GUESTLENS:-}" ]; then
    setup_rust || exit 1
    cargo build --release --locked --quiet
    GUESTLENS=$ROOT/target/release/guestlens
fi
# The block view over NBD makes its own images.
case ",$only," in
,, | *,nbd,*)
    python3 scripts/bench_nbd.py --guestlens "$GUESTLENS" --rounds "$rounds"
    [ "$only" != nbd ] || exit 0
    only=$(tr , '\n' <<<"$only" | grep -vx nbd | paste -sd,)
    ;;
esac
[ -f "$place/made" ] || make_fixtures
case ",$only," in
,, | *,convert,*)
    python3 scripts/bench_convert.py --guestlens "$GUESTLENS" --fixtures "$place" --rounds "$rounds"
    [ "$only" != convert ] || exit 0
    only=$(tr , '\n' <<<"$only" | grep -vx convert | paste -sd,)
    ;;
esac
[ -z "$only" ] || pass+=(--only "$only")
exec python3 scripts/bench.py --guestlens "$GUESTLENS" --fixtures "$place" "${pass[@]}"
