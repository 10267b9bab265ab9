#!/usr/bin/env python3
"""Measures `guestlens convert` and opening long chains; called by scripts/bench.sh.

Each conversion is done by guestlens and by qemu-img with each of its flags that can matter, one after
the other in every round, with warm caches, into a file that is durable before the clock stops
(qemu-img: -t writeback, since its default for convert promises nothing). What is reported are ratios
of medians, against qemu-img's best.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

PARALLEL = ["-m", "16", "-t", "writeback"]
UNORDERED = ["-W", *PARALLEL]

# name: source, guestlens's options, qemu-img's options, qemu-img's flags, least ratio
CONVERSIONS = {
    "qcow2 to raw": ("plain.qcow2", ["--to", "raw"], ["-O", "raw"], [PARALLEL, UNORDERED], 1.0),
    "raw to qcow2": ("raw.img", ["--to", "qcow2"], ["-O", "qcow2"], [PARALLEL, UNORDERED], 1.0),
    "zlib to raw": ("zlib.qcow2", ["--to", "raw"], ["-O", "raw"], [PARALLEL, UNORDERED], 1.3),
    "zstd to raw": ("zstd.qcow2", ["--to", "raw"], ["-O", "raw"], [PARALLEL, UNORDERED], 1.3),
    "raw to zlib": ("raw.img", ["--to", "qcow2", "-c"], ["-O", "qcow2", "-c"], [PARALLEL], 1.3),
    "raw to zstd": ("raw.img", ["--to", "qcow2", "-c=zstd"],
                    ["-O", "qcow2", "-c", "-o", "compression_type=zstd"], [PARALLEL], 1.3),
}


def timed(*command):
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def used(path):
    return os.stat(path).st_blocks * 512


def conversions(options, work):
    out = os.path.join(work, "out")
    times, sizes = {}, {}
    for number in range(options.rounds):
        for name, (source, ours, theirs, flags, _) in CONVERSIONS.items():
            print(f"\rround {number + 1}/{options.rounds}  {name:20}", end="", file=sys.stderr,
                  flush=True)
            source = os.path.join(options.fixtures, source)
            source_format = "raw" if source.endswith(".img") else "qcow2"
            commands = {"guestlens": [options.guestlens, "convert", source, out, *ours,
                                      "--format", source_format]}
            for flag in flags:
                commands["qemu-img " + " ".join(flag)] = [
                    "qemu-img", "convert", "-f", source_format, *theirs, *flag, source, out]
            who = list(commands)
            turn = number % len(who)
            for contender in who[turn:] + who[:turn]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(out)
                times.setdefault((name, contender), []).append(timed(*commands[contender]))
                sizes[name, contender] = used(out)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    rows, lines = [], []
    for name, (_, _, _, _, least) in CONVERSIONS.items():
        median = {who: statistics.median(v) for (case, who), v in times.items() if case == name}
        ours = median.pop("guestlens")
        best = min(median, key=median.get)
        size = sizes[name, "guestlens"] / sizes[name, best]
        ratio = median[best] / ours
        rows.append([name, f"{ours:.2f} s", f"{median[best]:.2f} s", best, f"{size:.3f}"])
        lines.append([name, f"{ratio:.2f}x", f"at least {least:g}x",
                      "PASS" if ratio >= least else "short"])
        if "to z" in name:
            lines.append([f"{name}, size", f"{size:.3f}", "at most 1.05",
                          "PASS" if size <= 1.05 else "short"])
    return rows, lines


def chain(options, work):
    """`info` of the top of 16 overlays of a disk of 1 TiB."""
    below = os.path.join(work, "chain0.qcow2")
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", below, "1T"], **quiet)
    for number in range(1, 17):
        name = os.path.join(work, f"chain{number}.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", os.path.basename(below),
                        "-F", "qcow2", name], **quiet)
        below = name
    times, peak = [], 0
    for _ in range(max(options.rounds, 5)):
        started = time.perf_counter()
        child = subprocess.Popen([options.guestlens, "info", below], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        times.append((time.perf_counter() - started) * 1e3)
        child.returncode = status
        if status != 0:
            raise RuntimeError("guestlens info failed")
        peak = max(peak, usage.ru_maxrss / 1024)
    median = statistics.median(times)
    return [["open 16 overlays of 1 TiB", f"{median:.1f} ms", "under 50 ms",
             "PASS" if median < 50 else "short"],
            ["the same, peak memory", f"{peak:.1f} MiB", "under 64 MiB",
             "PASS" if peak < 64 else "short"]]


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip())
    print()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guestlens", required=True)
    parser.add_argument("--fixtures", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="convert-", dir=options.fixtures)
    try:
        opened = chain(options, work)
        rows, lines = conversions(options, work)
    finally:
        shutil.rmtree(work)
    print(f"conversions, medians of {options.rounds} rounds, {os.cpu_count()} cores\n")
    print_table([["warm", "guestlens", "qemu-img", "its best flags", "size to its"], *rows])
    print_table([["", "figure", "target", ""], *lines, *opened])


main()
