#!/usr/bin/env python3
"""guestlens nbd against qemu-nbd with the same client, qemu-img bench; called by scripts/bench.sh.

4 KiB reads and writes, one after the other or at random, one or sixteen at a time, of a raw and of a
qcow2 image whose clusters are allocated, in the page cache. One round measures both servers in turn;
what is reported is the median of the rounds, in requests per second, and the ratio of the medians.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time

SIZE = 256 << 20
STEP = 4096
# qemu-img bench goes in steps; one that is odd in units of 4 KiB visits every block of an image of
# a power of two once, far from the last one.
FAR = 10007 * STEP


def run(*command):
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def make(work):
    """The images: random data, so that nothing is a hole or compresses."""
    raw = os.path.join(work, "disk.raw")
    with open("/dev/urandom", "rb") as source, open(raw, "wb") as out:
        for _ in range(SIZE >> 20):
            out.write(source.read(1 << 20))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, os.path.join(work, "disk.qcow2"))


@contextlib.contextmanager
def server(who, binary, image, kind, socket, write):
    if who == "guestlens":
        command = [binary, "nbd", image, "--format", kind, "--unix", socket]
        command += ["--rw"] if write else []
    else:
        command = ["qemu-nbd", "-t", "-e", "8", "-f", kind, "-k", socket, image]
        command += [] if write else ["-r"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not os.path.exists(socket):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"{who} does not listen")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def measure(socket, write, far, depth, count):
    command = ["qemu-img", "bench", "-f", "raw", "-c", str(count), "-d", str(depth), "-s", str(STEP),
               "-S", str(FAR if far else STEP)]
    if write:
        command += ["-w", "--pattern=7"]
    # Its own clock: starting the client is nobody's work here.
    out = run(*command, f"nbd+unix:///?socket={socket}").stdout
    seconds = float(out.split("completed in ")[1].split()[0])
    return count / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guestlens", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=40000)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    names = ["guestlens", "qemu-nbd"]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="guestlens-bench-", dir="/var/tmp") as work:
        make(work)
        socket = os.path.join(work, "s")
        for number in range(options.rounds):
            for kind in ("raw", "qcow2"):
                image = os.path.join(work, f"disk.{kind}")
                for write in (False, True):
                    for who in names if number % 2 == 0 else reversed(names):
                        with server(who, options.guestlens, image, kind, socket, write):
                            for far in (False, True):
                                for depth in (1, 16):
                                    what = (kind, "write" if write else "read",
                                            "random" if far else "sequential", depth)
                                    # The first requests warm the server and the page cache.
                                    measure(socket, write, far, depth, options.count // 10)
                                    value = measure(socket, write, far, depth, options.count)
                                    figures.setdefault(what, {}).setdefault(who, []).append(value)
    print(f"NBD, 4 KiB requests per second, medians of {options.rounds} rounds")
    print(f"{'':36}{'guestlens':>12}{'qemu-nbd':>12}{'ratio':>8}")
    result, short = {}, 0
    for what, values in figures.items():
        ours, theirs = (statistics.median(values[who]) for who in names)
        label = "{} {} {}, depth {}".format(*what)
        verdict = "PASS" if ours >= theirs else "short"
        short += ours < theirs
        print(f"{label:36}{ours:12.0f}{theirs:12.0f}{ours / theirs:8.2f}  {verdict}")
        result[label] = {"guestlens": ours, "qemu-nbd": theirs, "ratio": ours / theirs}
    if options.json:
        with open(options.json, "w") as out:
            json.dump(result, out, indent=1)


main()
