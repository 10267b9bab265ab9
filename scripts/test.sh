#!/usr/bin/env bash
# Runs every test and ends with one line: "N passed, N failed, N skipped".
#
# usage: scripts/test.sh [--no-install] [--no-lint] [--no-user] [FILTER...]
#
#   --no-install   use what is installed; install nothing
#   --no-lint      leave out cargo fmt, clippy and shellcheck
#   --no-user      as root, leave out the second pass as an ordinary user
#   FILTER         only tests whose name contains one of these (implies --no-lint)
#
# Run as root it compares with the kernel's own mounts as well, and then runs the tests that behave
# differently for an ordinary user (GUESTLENS_USER_TESTS, a pattern of test files) once more as nobody.
set -u -o pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
# shellcheck source=scripts/setup.sh
. scripts/setup.sh

lint=1 user=1
while [ $# -gt 0 ]; do
    case $1 in
    --no-install) GUESTLENS_NO_INSTALL=1 ;;
    --no-lint) lint=0 ;;
    --no-user) user=0 ;;
    -h | --help)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --)
        shift
        break
        ;;
    -*)
        say "unknown option $1"
        exit 2
        ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] && lint=0
filters=("$@")

started=$SECONDS
passed=0 failed=0 skipped=0
failures=()

finish() {
    local name
    if [ "${#failures[@]}" -gt 0 ]; then
        printf '\nfailed:\n'
        for name in "${failures[@]}"; do printf '  %s\n' "$name"; done
    fi
    printf '\nin %d s\n' $((SECONDS - started))
    if [ "$skipped" -gt 0 ]; then
        printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    else
        printf '%d passed, %d failed\n' "$passed" "$failed"
    fi
    [ "$failed" = 0 ]
    exit
}

good() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    failures+=("$1")
}
left_out() {
    skipped=$((skipped + 1))
    printf 'SKIPPED %s: %s\n' "$1" "$2"
}

# A check that is not a Rust test: its name, then the command.
check() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then good; else bad "$name"; fi
}

# Adds up the "test result:" lines of a log. A test that ended by skip!() was counted as passed by
# the test harness; the skip log says which those were.
# $1: log, $2: skip log, $3: the command's exit status, $4: what it was.
count() {
    local log=$1 skips=$2 status=$3 what=$4 p f i s
    read -r p f i < <(awk '
        /^test result: / {
            for (n = 1; n < NF; n++) {
                if ($(n + 1) ~ /^passed/) p += $n
                if ($(n + 1) ~ /^failed/) f += $n
                if ($(n + 1) ~ /^ignored/) i += $n
            }
        }
        END { print p + 0, f + 0, i + 0 }' "$log")
    s=0
    if [ -s "$skips" ]; then
        s=$(wc -l <"$skips")
        printf '\nskipped (%s):\n' "$what"
        sort "$skips" | sed 's/^/  /'
    fi
    passed=$((passed + p - s)) failed=$((failed + f)) skipped=$((skipped + s + i))
    while read -r name; do
        failures+=("$name ($what)")
    done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
    if [ "$status" != 0 ] && [ "$f" = 0 ]; then
        # Did not build, was killed, or ran out of time: no test result says so.
        bad "$what: exit status $status"
    fi
}

# What the tests left mounted or attached below their scratch directory.
leftovers() {
    local found
    found=$(
        awk -v dir="$work/" 'index($2, dir) == 1 { print "still mounted: " $2 }' /proc/self/mounts
        losetup -a 2>/dev/null | grep -F "$work/" | sed 's/^/still attached: /'
    )
    [ -z "$found" ] && return 0
    printf '%s\n' "$found"
    return 1
}

cleanup() {
    awk -v dir="$work/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r point; do umount -l "$point" 2>/dev/null || fusermount3 -uz "$point" 2>/dev/null; done
    losetup -a 2>/dev/null | grep -F "$work/" | cut -d: -f1 |
        while read -r device; do losetup -d "$device"; done
    rm -rf --one-file-system "$work"
}

setup_tools build test || say "going on; tests that need these will fail and say so"
if ! setup_rust; then
    bad "a Rust toolchain"
    finish
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/guestlens-tests.XXXXXX") || exit 1
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 711 "$work"
mkdir "$work/tmp"
chmod 1777 "$work/tmp"
export TMPDIR=$work/tmp
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto} RUST_BACKTRACE=${RUST_BACKTRACE:-1}

if [ "$lint" = 1 ]; then
    if cargo fmt --version >/dev/null 2>&1; then
        check "cargo fmt --check" cargo fmt --all -- --check
    else
        left_out "cargo fmt --check" "rustfmt is not installed"
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        check "cargo clippy" cargo clippy --locked --all-targets -q -- -D warnings
    else
        left_out "cargo clippy" "clippy is not installed"
    fi
    if have shellcheck; then
        check "shellcheck" shellcheck -x -S warning scripts/*.sh .ci/run
    else
        left_out "shellcheck" "shellcheck is not installed"
    fi
fi

printf '\n== build\n'
cargo test --locked --no-run 2>&1 | tee "$work/build.log"
status=${PIPESTATUS[0]}
if [ "$status" != 0 ]; then
    bad "the build of the tests"
    finish
fi

printf '\n== tests\n'
: >"$work/skips"
export GUESTLENS_SKIP_LOG=$work/skips
# A test that hangs must not hang what waits for this script.
timeout --kill-after=30 "${GUESTLENS_TEST_SECONDS:-1500}" \
    cargo test --locked --no-fail-fast -- "${filters[@]}" </dev/null 2>&1 | tee "$work/tests.log"
count "$work/tests.log" "$work/skips" "${PIPESTATUS[0]}" "tests"
[ "$(id -u)" = 0 ] && check "nothing left mounted or attached" leftovers

# The second pass, as an ordinary user: who may mount, and with which rights, differs.
user_pass() {
    local pattern=${GUESTLENS_USER_TESTS:-tests/(cli|mount|fuse)[a-z_]*\.rs}
    local dir=$work/user source binary name status
    mkdir "$dir" "$dir/bin" "$dir/home" "$dir/tmp"
    cp target/debug/guestlens "$dir/bin/"
    : >"$dir/skips"
    chown -R nobody: "$dir/home" "$dir/tmp" "$dir/skips"
    chmod 755 "$dir" "$dir/bin"
    while read -r source binary; do
        [[ $source =~ ^$pattern$ ]] || continue
        # Copied because the clone may be where nobody may not look.
        name=${binary##*/}
        cp "$binary" "$dir/bin/$name"
        printf '\n-- %s as nobody\n' "$source"
        (
            cd "$dir/home" || exit 1
            exec setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups --inh-caps=-all \
                env HOME="$dir/home" TMPDIR="$dir/tmp" GUESTLENS_SKIP_LOG="$dir/skips" \
                GUESTLENS_BIN="$dir/bin/guestlens" XDG_RUNTIME_DIR="$dir/home" \
                timeout --kill-after=30 600 "$dir/bin/$name" "${filters[@]}"
        ) </dev/null 2>&1 | tee "$dir/log"
        status=${PIPESTATUS[0]}
        count "$dir/log" /dev/null "$status" "$source as nobody"
    done < <(sed -n 's/^ *Executable \(tests[^ ]*\) (\(.*\))$/\1 \2/p' "$work/build.log")
    if [ -s "$dir/skips" ]; then
        printf '\nskipped (as nobody):\n'
        sort "$dir/skips" | sed 's/^/  /'
        skipped=$((skipped + $(wc -l <"$dir/skips"))) passed=$((passed - $(wc -l <"$dir/skips")))
    fi
}

if [ "$user" = 1 ] && [ "$(id -u)" = 0 ]; then
    printf '\n== the same as an ordinary user\n'
    if id nobody >/dev/null 2>&1 && have setpriv; then
        user_pass
    else
        left_out "the pass as an ordinary user" "there is no user nobody, or no setpriv"
    fi
fi

finish
