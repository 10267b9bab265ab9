# shellcheck shell=bash
# Sourced by the scripts beside it: finds what they need and installs what is missing, with the
# distribution's own package manager and nothing else.
#
#   setup_tools build test     install the tools of these groups; 1 if some are still missing
#   setup_rust                 a cargo at least as new as Cargo.toml's rust-version; 1 if there is none
#
# GUESTLENS_NO_INSTALL=1 installs nothing and only reports.

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

# command, Debian package(s), RPM package(s), groups. "-" where a family has no package, and so does
# without the command. python3:MODULE is a module of the distribution's own Python.
# A command marked with ? is used if it is there; nothing fails without it.
TOOLS='
cc                  gcc,libc6-dev           gcc                     build
qemu-img            qemu-utils              qemu-img                test,guest,bench
qemu-io             qemu-utils              qemu-img                test
qemu-storage-daemon qemu-utils              qemu-img                test,bench
qemu-nbd            qemu-utils              qemu-img                test,bench
nbdinfo             libnbd-bin              libnbd                  test
nbdcopy             libnbd-bin              libnbd                  test
openssl             openssl                 openssl                 test
mke2fs              e2fsprogs               e2fsprogs               test,guest,bench
debugfs             e2fsprogs               e2fsprogs               test
sgdisk              gdisk                   gdisk                   test,guest
sfdisk              fdisk                   util-linux              test
mkfs.fat            dosfstools              dosfstools              test,guest
mcopy               mtools                  mtools                  test,guest
fusermount3         fuse3                   fuse3                   test,guest,bench
getfattr            attr                    attr                    test
setfacl             acl                     acl                     test
rsync               rsync                   rsync                   test
git                 git                     git                     test
strace?             strace                  strace                  test
python3             python3                 python3                 test,bench
python3:yaml        python3-yaml            python3-pyyaml          test
ifquery             ifupdown                -                       test
setpriv             util-linux              util-linux              test
losetup             mount                   util-linux              test,bench
mkfs.xfs?           xfsprogs                xfsprogs                test
mkfs.btrfs?         btrfs-progs             btrfs-progs             test
mkfs.f2fs?          f2fs-tools              f2fs-tools              test
mkfs.erofs?         erofs-utils             erofs-utils             test
mksquashfs?         squashfs-tools          squashfs-tools          test
genisoimage?        genisoimage             genisoimage             test
mkntfs?             ntfs-3g                 ntfsprogs               test
mkfs.exfat?         exfatprogs              exfatprogs              test
mkudffs?            udftools                udftools                test
cryptsetup?         cryptsetup-bin          cryptsetup              test
fuse2fs?            fuse2fs                 fuse2fs                 bench
shellcheck?         shellcheck              ShellCheck              test
zstd                zstd                    zstd                    bench
'

say() { printf '%s\n' "$*" >&2; }

have() {
    case $1 in
    python3:*) /usr/bin/python3 -c "import ${1#*:}" >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# The way to become root, as a command prefix in AS_ROOT; 1 if there is none.
find_root() {
    AS_ROOT=()
    [ "$(id -u)" = 0 ] && return 0
    have sudo || return 1
    if sudo -n true 2>/dev/null; then
        AS_ROOT=(sudo -n)
    elif [ -t 0 ] && [ -t 2 ]; then
        AS_ROOT=(sudo)
    else
        return 1
    fi
}

package_family() {
    if have apt-get; then
        echo deb
    elif have dnf; then
        echo rpm
    else
        echo none
    fi
}

# Installs packages; 1 if that cannot be done here.
install_packages() {
    [ "${GUESTLENS_NO_INSTALL:-}" = 1 ] && return 1
    find_root || return 1
    say "installing: $*"
    case $(package_family) in
    deb)
        # A repository that cannot be reached must not stop what the others have.
        [ -n "${LISTS_UPDATED:-}" ] ||
            "${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null >&2 || true
        LISTS_UPDATED=1
        "${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" </dev/null >/dev/null
        ;;
    rpm)
        "${AS_ROOT[@]}" dnf install -y -q --setopt=install_weak_deps=False "$@" </dev/null >&2
        ;;
    *) return 1 ;;
    esac
}

# Lines "command package" of what the groups given lack. $1: "required" or "optional".
missing_tools() {
    local kind=$1 name deb rpm groups group package
    shift
    while read -r name deb rpm groups; do
        [ -n "$name" ] || continue
        case $name in
        *\?)
            [ "$kind" = optional ] || continue
            name=${name%\?}
            ;;
        *) [ "$kind" = required ] || continue ;;
        esac
        for group in "$@"; do
            case ",$groups," in
            *",$group,"*)
                if ! have "$name"; then
                    package=$deb
                    [ "$(package_family)" = rpm ] && package=$rpm
                    [ "$package" = - ] || echo "$name $package"
                fi
                break
                ;;
            esac
        done
    done <<<"$TOOLS"
}

setup_tools() {
    local required optional package
    local -a packages
    required=$(missing_tools required "$@")
    optional=$(missing_tools optional "$@")
    if [ -n "$required" ]; then
        mapfile -t packages < <(awk '{ gsub(",", "\n", $2); print $2 }' <<<"$required" | sort -u)
        install_packages "${packages[@]}" || true
    fi
    if [ -n "$optional" ]; then
        # One by one: what a distribution does not have must not keep the rest away.
        mapfile -t packages < <(awk '{ print $2 }' <<<"$optional" | sort -u)
        for package in "${packages[@]}"; do
            install_packages "$package" || true
        done
    fi
    hash -r
    required=$(missing_tools required "$@")
    [ -z "$required" ] && return 0
    say "not there, and could not be installed from here:"
    while read -r name package; do
        say "  $name (package ${package//,/ })"
    done <<<"$required"
    return 1
}

# Whether version $1 is at least version $2.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

rust_is_new_enough() {
    have cargo && have rustc || return 1
    local version
    version=$(rustc --version 2>/dev/null | awk '{ print $2 }')
    [ -n "$version" ] && at_least "${version%%-*}" "$1"
}

# The version of a package the package manager would install, empty if it has none.
candidate_version() {
    case $(package_family) in
    deb) LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }' ;;
    rpm) LC_ALL=C dnf -q info "$1" 2>/dev/null | awk '$1 == "Version" { print $3; exit }' ;;
    esac
}

setup_rust() {
    local wanted
    # Without these neither rustup nor cargo can download anything.
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] ||
        install_packages ca-certificates || true
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    have cargo || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    rust_is_new_enough "$wanted" && return 0
    if [ "${GUESTLENS_NO_INSTALL:-}" != 1 ]; then
        if have rustup; then
            rustup toolchain install stable --profile minimal -c rustfmt -c clippy >&2 || true
            rustup default stable >&2 || true
        elif [ -n "$(candidate_version rustup)" ] && install_packages rustup; then
            # Debian's package is rustup itself, Fedora's the program that sets it up.
            if have rustup-init && ! have rustup; then
                rustup-init -y --profile minimal -c rustfmt -c clippy --no-modify-path >&2 || true
            else
                rustup toolchain install stable --profile minimal -c rustfmt -c clippy >&2 || true
                rustup default stable >&2 || true
            fi
        elif at_least "$(candidate_version cargo | sed 's/^[0-9]*://; s/[+~-].*//')" "$wanted"; then
            install_packages cargo rustc || true
        fi
        hash -r
        case ":$PATH:" in
        *":${CARGO_HOME:-$HOME/.cargo}/bin:"*) ;;
        *) PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH" ;;
        esac
        rust_is_new_enough "$wanted" && return 0
    fi
    say "Rust $wanted or newer is needed, and could not be had from this distribution's packages."
    say "Install it with rustup (see https://rustup.rs) and run this again."
    return 1
}
