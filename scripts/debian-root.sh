# shellcheck shell=bash
# Sourced after setup.sh: makes the directory tree of a Debian system from Debian's archive, with
# mmdebstrap (as root, or as an ordinary user in a user namespace) or debootstrap (as root).
#
#   setup_debian_root                             installs the tool; 1 if there is none
#   debian_root DIR SUITE CUSTOMIZE PACKAGE...    makes DIR; CUSTOMIZE is a sh script given DIR
#   as_guest_root COMMAND...                      runs a command that sees the tree's owners as they are
#   remove_debian_root DIR                        removes it
# MIRROR, if set, is the archive to use.

setup_debian_root() {
    if ! have mmdebstrap && ! have debootstrap; then
        install_packages mmdebstrap || install_packages debootstrap || true
    fi
    if ! [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] && ! [ -f /etc/debian_version ]; then
        install_packages debian-archive-keyring || install_packages debian-keyring || true
    elif ! [ -f /usr/share/keyrings/debian-archive-keyring.gpg ]; then
        install_packages debian-archive-keyring || true
    fi
    hash -r
    if ! have mmdebstrap && ! have debootstrap; then
        say "mmdebstrap or debootstrap is needed to make a Debian guest, and could not be installed"
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! have mmdebstrap; then
            say "as an ordinary user only mmdebstrap can make a Debian guest; run this as root"
            return 1
        fi
        have newuidmap || install_packages uidmap || true
        if ! grep -q "^$(id -un):" /etc/subuid 2>/dev/null; then
            say "this user has no range in /etc/subuid, which mmdebstrap needs; add one or run as root"
            return 1
        fi
    fi
}

as_guest_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        mmdebstrap --unshare-helper "$@"
    fi
}

debian_root() {
    local dir=$1 suite=$2 customize=$3 include
    shift 3
    include=$(
        IFS=,
        echo "$*"
    )
    if have mmdebstrap; then
        local mode=root
        if [ "$(id -u)" != 0 ]; then
            mode=unshare
            # The tree belongs to this user's subordinate ids, which must be able to reach it and to
            # write the image beside it.
            chmod 1777 "$(dirname "$dir")"
            chmod 755 "$customize"
        fi
        mmdebstrap --mode=$mode --variant=minbase --format=directory --include="$include" \
            --customize-hook="sh '$customize' \"\$1\"" \
            "$suite" "$dir" ${MIRROR:+"$MIRROR"}
    else
        debootstrap --variant=minbase --include="$include" "$suite" "$dir" ${MIRROR:+"$MIRROR"}
        rm -rf "$dir/var/cache/apt/archives"/*.deb "$dir/var/lib/apt/lists"/*
        sh "$customize" "$dir"
    fi
}

remove_debian_root() {
    [ -e "$1" ] || return 0
    as_guest_root rm -rf --one-file-system "$1"
}
