#!/usr/bin/env bash
# From a clone to a look inside a real guest: installs what is missing, builds guestlens, makes a
# small Debian guest as a qcow2 image, mounts it, shows who it is, and unmounts it.
#
# usage: scripts/quickstart.sh [--no-install]
#
# Works as root, or as an ordinary user (packages then come through sudo). The guest is kept in
# target/quickstart/, so a second run takes seconds; remove that directory to start over.
# Environment: SUITE (Debian release of the guest, default bookworm), MIRROR (an archive to take it
# from instead of the default).
set -eu -o pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
# shellcheck source=scripts/setup.sh
. scripts/setup.sh
# shellcheck source=scripts/debian-root.sh
. scripts/debian-root.sh

case ${1:-} in
'') ;;
--no-install) GUESTLENS_NO_INSTALL=1 ;;
-h | --help)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
*)
    say "unknown option $1"
    exit 2
    ;;
esac

SUITE=${SUITE:-bookworm}
place=$ROOT/target/quickstart
image=$place/debian-$SUITE.qcow2
guestlens=$ROOT/target/release/guestlens

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || step() { printf '\n%s\n' "$*"; }

# Shows a command and runs it.
run() {
    local shown="$*"
    printf '$ %s\n' "${shown//$ROOT\//}"
    "$@"
}

# A whole disk: GPT, an EFI system partition, and the root filesystem. No step mounts anything.
make_disk() {
    local stage=$1 raw=$1/disk.raw
    local esp_mib=48 root_mib=700
    local esp_serial=67aa11ed root_uuid
    root_uuid=$(cat /proc/sys/kernel/random/uuid)

    cat >"$stage/customize" <<SCRIPT
set -eu
root=\$1
echo lens >"\$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\tlens.example.org lens\n' >"\$root/etc/hosts"
echo Europe/Vienna >"\$root/etc/timezone"
ln -sf /usr/share/zoneinfo/Europe/Vienna "\$root/etc/localtime"
tr -d - </proc/sys/kernel/random/uuid >"\$root/etc/machine-id"
mkdir -p "\$root/boot/efi" "\$root/etc/network/interfaces.d"
cat >"\$root/etc/fstab" <<FSTAB
# <file system>                           <mount point> <type> <options>         <dump> <pass>
UUID=$root_uuid / ext4 errors=remount-ro 0 1
UUID=67AA-11ED                            /boot/efi     vfat   umask=0077        0      1
tmpfs                                     /tmp          tmpfs  nosuid,nodev      0      0
FSTAB
cat >"\$root/etc/network/interfaces" <<INTERFACES
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

allow-hotplug enp1s0
iface enp1s0 inet static
    address 192.0.2.10/24
    gateway 192.0.2.1
    dns-nameservers 192.0.2.53
    dns-search example.org

iface enp1s0 inet6 static
    address 2001:db8::10/64
    gateway 2001:db8::1
INTERFACES
printf 'auto enp1s0.20\niface enp1s0.20 inet dhcp\n' >"\$root/etc/network/interfaces.d/vlan20"
SCRIPT

    debian_root "$stage/root" "$SUITE" "$stage/customize" systemd-sysv ifupdown netbase iproute2

    truncate -s $((root_mib + esp_mib + 2))M "$raw"
    sgdisk --clear \
        --new=1:2048:+${esp_mib}M --typecode=1:ef00 --change-name=1:esp \
        --new=2:0:0 --typecode=2:8300 --change-name=2:root "$raw" >/dev/null
    # Written next by the guest's root, who for an ordinary user is another id.
    chmod 666 "$raw"
    local root_offset=$(((esp_mib + 1) * 1024 * 1024))
    as_guest_root mke2fs -q -F -t ext4 -L root -U "$root_uuid" -E offset=$root_offset \
        -d "$stage/root" "$raw" ${root_mib}M
    mkfs.fat -F 16 -n ESP -i $esp_serial --offset=2048 "$raw" $((esp_mib * 1024)) >/dev/null
    printf 'This is where a boot loader lives.\r\n' >"$stage/readme.txt"
    mcopy -i "$raw@@1M" "$stage/readme.txt" ::/README.TXT
    qemu-img convert -f raw -O qcow2 "$raw" "$stage/guest.qcow2"
}

step "1. What is needed"
setup_tools build guest || exit 1
if [ ! -f "$image" ]; then setup_debian_root || exit 1; fi
setup_rust || exit 1
say "tools: $(qemu-img --version | head -n 1), $(rustc --version)"

step "2. Building guestlens"
cargo build --release --locked --quiet
say "built: ${guestlens#"$ROOT"/}"

step "3. A guest to look at"
if [ -f "$image" ]; then
    say "there from an earlier run: ${image#"$ROOT"/}"
else
    say "making Debian $SUITE from its archive; this takes a minute"
    mkdir -p "$place"
    # An ordinary user's home may be closed to the ids the guest's files belong to.
    stage=$place
    [ "$(id -u)" = 0 ] || stage=${TMPDIR:-/var/tmp}
    stage=$(mktemp -d "$stage/guestlens-quickstart.XXXXXX")
    # shellcheck disable=SC2064
    trap "remove_debian_root '$stage/root'; rm -rf '$stage'" EXIT
    if ! make_disk "$stage" >"$place/log" 2>&1; then
        tail -n 20 "$place/log" >&2
        say "the guest could not be made; the whole log is ${place#"$ROOT"/}/log"
        exit 1
    fi
    mv "$stage/guest.qcow2" "$image"
    remove_debian_root "$stage/root"
    rm -rf "$stage"
    trap - EXIT
fi
run ls -sh "$image"

step "4. Inside it"
mount=$place/mnt
mkdir -p "$mount"
run "$guestlens" mount "$image" "$mount"
trap '"$guestlens" umount "$mount" || true' EXIT
run cat "$mount/meta/os"
echo
run cat "$mount/meta/network"
echo
run ls -l "$mount/fs"
run "$guestlens" umount "$mount"
trap - EXIT
rmdir "$mount"

step "Next"
cat <<NEXT
  guestlens mount IMAGE... DIR     any raw or qcow2 image, read-only; guestlens umount DIR
  guestlens inspect IMAGE          the same facts without FUSE; also ls, cat, cp, find, tar-out ...
  guestlens --help                 everything it can do
The binary is ${guestlens#"$ROOT"/}; the guest is ${image#"$ROOT"/}. README.md goes on from here.
NEXT
