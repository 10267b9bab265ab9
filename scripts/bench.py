#!/usr/bin/env python3
"""The measuring half of scripts/bench.sh, which makes the fixtures and calls this.

Every contender serves the same guest. One round measures all of them, in an order that rotates from
round to round, so that a busy neighbour meets each of them; what is reported is the median of the
rounds and ratios between medians. For a cold figure the contender is mounted afresh and the page,
dentry and inode caches are dropped right before the clock starts; the warm figure is the same thing
once more.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

BIG = "srv/big/data"
RANDOM_READS = 8192
READERS = 4


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("3\n")


def quiet(*command, **options):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)


def wait_until(condition, what, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen within {seconds} s")
        time.sleep(0.001)


def peak_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return None


def daemon_of(program, argument):
    """The process running `program` with `argument` in its command line."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                exe = os.path.basename(os.readlink(f"/proc/{entry}/exe"))
                if exe == program and argument.encode() in words:
                    return int(entry)
    return None


class Guestlens:
    def __init__(self, binary, image, work):
        self.binary, self.image, self.point = binary, image, os.path.join(work, "mnt")

    def up(self):
        os.makedirs(self.point, exist_ok=True)
        quiet(self.binary, "mount", self.image, self.point)
        return os.path.join(self.point, "fs")

    def peak(self):
        pid = daemon_of(os.path.basename(os.path.realpath(self.binary)), self.point)
        return pid and peak_kib(pid)

    def down(self):
        quiet(self.binary, "umount", self.point)


class Fuse2fs:
    def __init__(self, image, work):
        self.image, self.point = image, os.path.join(work, "mnt")

    def up(self):
        os.makedirs(self.point, exist_ok=True)
        quiet("fuse2fs", "-o", "ro", self.image, self.point, stderr=subprocess.DEVNULL)
        return self.point

    def peak(self):
        pid = daemon_of("fuse2fs", self.point)
        return pid and peak_kib(pid)

    def down(self):
        pid = daemon_of("fuse2fs", self.point)
        quiet("umount", self.point)
        if pid:
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of fuse2fs", 60)


class Kernel:
    def __init__(self, image, work):
        self.image, self.point = image, os.path.join(work, "mnt")

    def up(self):
        os.makedirs(self.point, exist_ok=True)
        quiet("mount", "-t", "ext4", "-o", "loop,ro", self.image, self.point)
        return self.point

    def peak(self):
        return None

    def down(self):
        quiet("umount", self.point)


class Exported:
    """A peer that needs a flat file, on qemu-storage-daemon's FUSE export of a qcow2."""

    def __init__(self, peer, image, work):
        self.image = image
        self.export = os.path.join(work, "export")
        self.peer = peer(self.export, work)
        self.point = self.peer.point
        self.process = None

    def up(self):
        with open(self.export, "w"):
            pass
        self.process = subprocess.Popen(
            ["qemu-storage-daemon",
             "--blockdev", f"driver=file,node-name=file,filename={self.image},read-only=on",
             "--blockdev", "driver=qcow2,node-name=disk,file=file,read-only=on",
             "--export", f"type=fuse,id=export,node-name=disk,mountpoint={self.export},writable=off"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_until(lambda: os.stat(self.export).st_size > 0, "the export")
        return self.peer.up()

    def peak(self):
        return peak_kib(self.process.pid)

    def down(self):
        try:
            self.peer.down()
            # The loop device lets go of the export a moment after the unmount.
            time.sleep(0.05)
        finally:
            self.process.terminate()
            self.process.wait()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.export)


def pipeline(script, root):
    started = time.perf_counter()
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}", "bash", root], check=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return time.perf_counter() - started, done.stdout.decode().strip()


def walk(root):
    """Seconds for `find -ls` of everything."""
    return pipeline('find "$1" -ls | wc -l', root)


def tar(root):
    """Seconds for `tar` of all small files."""
    return pipeline('tar -C "$1" --exclude=./srv/big -cf - . | wc -c', root)


def sequential(root):
    """MB/s of reading the big file from its beginning to its end."""
    path = os.path.join(root, BIG)
    size = os.stat(path).st_size
    started = time.perf_counter()
    quiet("dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none")
    return size / 1e6 / (time.perf_counter() - started), str(size)


def random_reads(root):
    """4 KiB reads per second at random places of the big file, by four processes."""
    path = os.path.join(root, BIG)
    pages = os.stat(path).st_size // 4096
    go, ready = os.pipe(), os.pipe()
    children = []
    for reader in range(READERS):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                file = os.open(path, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
                pick = random.Random(reader)
                places = [pick.randrange(pages) * 4096 for _ in range(RANDOM_READS // READERS)]
                os.write(ready[1], b"r")
                os.read(go[0], 1)
                for place in places:
                    if len(os.pread(file, 4096, place)) != 4096:
                        raise OSError("short read")
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    for _ in children:
        os.read(ready[0], 1)
    started = time.perf_counter()
    os.write(go[1], b"g" * READERS)
    failed = [os.waitpid(pid, 0)[1] for pid in children]
    seconds = time.perf_counter() - started
    for end in (*go, *ready):
        os.close(end)
    if any(failed):
        raise RuntimeError(f"a random reader of {path} failed")
    return RANDOM_READS / seconds, ""


METRICS = {
    "ls": ("nothing to first ls", "ms", None),
    "walk": ("find -ls of everything", "s", walk),
    "tar": ("tar of all small files", "s", tar),
    "seq": ("sequential read", "MB/s", sequential),
    "rand": ("random 4 KiB reads", "/s", random_reads),
}


def contenders(options):
    at = lambda name: os.path.join(options.fixtures, name)
    lens = lambda name: lambda work: Guestlens(options.guestlens, at(name), work)
    kernel = lambda name: lambda work: Exported(Kernel, at(name), work)
    everything = ["ls", "walk", "tar", "seq", "rand"]
    table = {
        "guestlens raw": (lens("raw.img"), everything),
        "guestlens qcow2": (lens("plain.qcow2"), everything),
        "guestlens qcow2 zlib": (lens("zlib.qcow2"), everything),
        "guestlens qcow2 zstd": (lens("zstd.qcow2"), everything),
        "guestlens overlay": (lens("overlay.qcow2"), everything),
        "guestlens 16 overlays": (lens("chain16.qcow2"), ["ls"]),
        "guestlens 1 TiB sparse": (lens("tebibyte.img"), ["ls"]),
        "kernel, loop, raw": (lambda work: Kernel(at("raw.img"), work), everything),
        "kernel, qsd, qcow2": (kernel("plain.qcow2"), everything),
        "kernel, qsd, zlib": (kernel("zlib.qcow2"), ["seq", "rand"]),
        "kernel, qsd, zstd": (kernel("zstd.qcow2"), ["seq", "rand"]),
    }
    if shutil.which("fuse2fs"):
        table["fuse2fs raw"] = (lambda work: Fuse2fs(at("raw.img"), work), everything)
        table["fuse2fs, qsd, qcow2"] = (
            lambda work: Exported(Fuse2fs, at("plain.qcow2"), work), everything)
    return table


def measure(make, metric, slow):
    """One cold figure (and the warm one, unless `slow`), and the peak memory in KiB."""
    work = tempfile.mkdtemp(prefix="guestlens-bench-")
    contender = make(work)
    warm = None
    drop_caches()
    started = time.perf_counter()
    try:
        root = contender.up()
        if metric == "ls":
            quiet("ls", root)
            cold, seen = (time.perf_counter() - started) * 1e3, ""
        else:
            function = METRICS[metric][2]
            drop_caches()
            cold, seen = function(root)
            if not slow:
                # What takes milliseconds is done more than once.
                times = 5 if metric in ("seq", "rand") else 1
                warm = statistics.median(function(root)[0] for _ in range(times))
        peak = contender.peak()
    except BaseException:
        # Leave nothing behind, but let the first failure be the one that is reported.
        with contextlib.suppress(Exception):
            contender.down()
        raise
    else:
        contender.down()
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(contender.point)
            os.rmdir(work)
    return cold, warm, peak, seen


def verdicts(cold, warm, peak):
    """Lines (what, figure, target, reached)."""
    lines = []

    def ratio(what, over, under, least=None, most=None):
        if over is None or under is None:
            return
        value = over / under
        target = f"at least {least:g}x" if least is not None else f"at most {most:g}x"
        reached = value >= least if least is not None else value <= most
        lines.append((what, f"{value:.2f}x", target, reached))

    c = lambda metric, who: cold.get((metric, who))
    w = lambda metric, who: warm.get((metric, who))
    for image in ("raw", "qcow2"):
        ratio(f"first ls, {image}, to fuse2fs raw",
              c("ls", f"guestlens {image}"), c("ls", "fuse2fs raw"), most=1)
    for who in ("1 TiB sparse", "16 overlays"):
        value = c("ls", f"guestlens {who}")
        if value is not None:
            lines.append((f"first ls, {who}", f"{value:.1f} ms", "under 100 ms", value < 100))
    peaks = [peak[("ls", who)] for who in
             ("guestlens raw", "guestlens qcow2", "guestlens 1 TiB sparse", "guestlens 16 overlays")
             if peak.get(("ls", who))]
    if peaks:
        most = max(peaks) / 1024
        lines.append(("peak memory at first ls", f"{most:.1f} MiB", "under 32 MiB", most < 32))
    for image in ("raw", "qcow2"):
        ours, theirs = c("walk", f"guestlens {image}"), c("walk", "kernel, qsd, qcow2")
        ratio(f"walk, fuse2fs raw to {image}", c("walk", "fuse2fs raw"), ours, least=10)
        ratio(f"walk, {image} to kernel over qsd", ours, theirs, most=3)
        ours, theirs = c("tar", f"guestlens {image}"), c("tar", "kernel, qsd, qcow2")
        ratio(f"tar, fuse2fs raw to {image}", c("tar", "fuse2fs raw"), ours, least=5)
        ratio(f"tar, {image} to kernel over qsd", ours, theirs, most=2)
    ratio("sequential, raw to kernel on loop",
          c("seq", "guestlens raw"), c("seq", "kernel, loop, raw"), least=0.7)
    ratio("sequential, qcow2 to kernel over qsd",
          c("seq", "guestlens qcow2"), c("seq", "kernel, qsd, qcow2"), least=1)
    for kind in ("zlib", "zstd"):
        ratio(f"sequential, {kind} to kernel over qsd",
              c("seq", f"guestlens qcow2 {kind}"), c("seq", f"kernel, qsd, {kind}"), least=1.5)
    ratio("random, qcow2 to kernel over qsd",
          c("rand", "guestlens qcow2"), c("rand", "kernel, qsd, qcow2"), least=1)
    for kind in ("zlib", "zstd"):
        ratio(f"random, {kind} to kernel over qsd",
              c("rand", f"guestlens qcow2 {kind}"), c("rand", f"kernel, qsd, {kind}"), least=1)
    for metric, name in (("seq", "sequential"), ("rand", "random")):
        ratio(f"warm {name}, qcow2 to kernel on loop",
              w(metric, "guestlens qcow2"), w(metric, "kernel, loop, raw"), least=0.8)
    return lines


def figure(value):
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [c.rjust(n) for c, n in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guestlens", required=True)
    parser.add_argument("--fixtures", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(METRICS))
    parser.add_argument("--who", default="", help="only contenders whose name contains one of these")
    options = parser.parse_args()
    metrics = options.only.split(",")
    for metric in metrics:
        if metric not in METRICS:
            parser.error(f"no metric {metric}")

    table = {name: how for name, how in contenders(options).items()
             if any(part in name for part in options.who.split(","))}
    cold, warm, peak, seen = {}, {}, {}, {}
    started = time.monotonic()
    for number in range(options.rounds):
        for metric in metrics:
            names = [name for name, (_, wanted) in table.items() if metric in wanted]
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                key = (metric, name)
                # What takes fuse2fs tens of seconds is not done twice in a round, and only once in
                # a short run.
                slow = name.startswith("fuse2fs") and metric in ("walk", "tar")
                if slow and number > 0 and options.rounds < 5:
                    continue
                print(f"\rround {number + 1}/{options.rounds}  {metric:5} {name:24}",
                      end="", file=sys.stderr, flush=True)
                try:
                    one_cold, one_warm, one_peak, what = measure(table[name][0], metric, slow)
                except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                    print(f"\n{name}: {metric}: {error}", file=sys.stderr)
                    continue
                cold.setdefault(key, []).append(one_cold)
                if one_warm is not None:
                    warm.setdefault(key, []).append(one_warm)
                if one_peak is not None:
                    peak[key] = max(peak.get(key, 0), one_peak)
                seen.setdefault(metric, {})[name] = what
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)

    middle = lambda values: {key: statistics.median(v) for key, v in values.items()}
    cold, warm = middle(cold), middle(warm)
    with open(os.path.join(options.fixtures, "last-run.json"), "w") as out:
        join = lambda values: {" / ".join(key): value for key, value in values.items()}
        json.dump({"cold": join(cold), "warm": join(warm), "peak_kib": join(peak)}, out, indent=1)

    print(f"medians of {options.rounds} rounds, {os.cpu_count()} cores, "
          f"{time.monotonic() - started:.0f} s in all\n")
    for title, values in (("cold", cold), ("warm", warm)):
        shown = [m for m in metrics if any(key[0] == m for key in values)]
        if not shown:
            continue
        rows = [[title] + [f"{METRICS[m][0]}, {METRICS[m][1]}" for m in shown]]
        for name in table:
            cells = [figure(values.get((m, name))) for m in shown]
            if any(cells):
                rows.append([name] + cells)
        print_table(rows)
        print()
    rows = [["peak memory, MiB"] + [METRICS[m][0] for m in metrics]]
    for name in table:
        cells = [figure(peak[m, name] / 1024) if peak.get((m, name)) else "" for m in metrics]
        if any(cells):
            rows.append([name] + cells)
    if len(rows) > 1:
        print_table(rows)
        print()

    for metric, values in seen.items():
        if len(set(values.values())) > 1:
            print(f"NOT THE SAME for {metric}: {values}")
    lines = verdicts(cold, warm, peak)
    rows = [["cold unless it says warm", "figure", "target", ""]]
    rows += [[what, value, target, "PASS" if ok else "short"] for what, value, target, ok in lines]
    print_table(rows)


main()
