#!/usr/bin/env python3
"""What a loss costs, beside Open MPI's ULFM in the same run: perf/kills.py --help.

The smaller world needs a fresh job for each kill: one of ours and one of ULFM's follow each other.
The full world with a warm spare is one job with all its kills. Prints Markdown; of a run that is
ended in the middle, or whose job fails, what was measured until then.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("detect_us", "release_us", "first_us")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Cut(Exception):
    """The measurement cannot go on: why, and the exit code that says so."""

    def __init__(self, why, code):
        super().__init__(why)
        self.code = code


def size_of(text):
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def percentile(values, share):
    """The smallest measured value that `share` of all do not exceed."""
    ordered = sorted(values)
    rank = -(-share * len(ordered) // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def run_regroup(options, scratch, launcher, kills, ranks):
    """The samples of one job."""
    path = f"{scratch}/regroup.json"
    if os.path.exists(path):
        os.unlink(path)
    command = [f"{options.bin_dir}/regroup", "run", "-q", "-n", str(ranks), *launcher]
    command += ["--log-dir", f"{scratch}/run", "--timeout", f"{60 + 5 * kills}s", "--"]
    command += [f"{options.bin_dir}/regroup-perf", "all_reduce", "-b", "8", "--kill"]
    command += [f"{options.victim}@{options.op}", "--kills", str(kills)]
    command += ["--resident", options.resident, "--json", path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        raise Cut(f"{' '.join(command)} ended with {done.returncode}\n{said}", 1)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def run_ulfm(options, scratch):
    """(release, first) of one kill, or None when it did not end or was wrong."""
    notes = f"{scratch}/ulfm"
    if os.path.exists(notes):
        os.unlink(notes)
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    command = [f"{options.rivals}/openmpi5/bin/mpirun", *as_root, "--oversubscribe"]
    command += ["--with-ft", "ulfm", "-n", str(options.ranks), f"{options.rivals}/programs/ulfm"]
    command += [notes, str(options.victim), str(options.op), str(size_of(options.resident)), "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.ulfm_timeout)
    except subprocess.TimeoutExpired:
        return None
    for line in done.stdout.split("\n"):
        if line.startswith("{"):
            result = json.loads(line)
            if result["wrong"] == 0:
                return result["release_us"], result["first_us"]
    return None


def measure_smaller_world(options, scratch, document):
    ranks = options.ranks
    ours = new_row(options, "regroup", ranks, ranks - 1)
    document["results"].append(ours)
    with_ulfm = "ulfm" in options.parts
    ulfm = new_row(options, "ulfm", ranks, ranks - 1)
    if with_ulfm:
        document["results"].append(ulfm)
    for _ in range(options.kills):
        add(document, ours, run_regroup(options, scratch, ["--on-loss", "shrink"], 1, ranks))
        if not with_ulfm:
            continue
        theirs = run_ulfm(options, scratch)
        ulfm["unfinished"] += theirs is None
        for phase, value in zip(("release_us", "first_us"), theirs or ()):
            ulfm["samples"][phase].append(value)


def measure_full_world(options, scratch, document):
    ranks = options.spare_ranks
    row = new_row(options, "regroup", ranks, ranks)
    document["results"].append(row)
    add(document, row, run_regroup(options, scratch, ["--spares", "1"], options.kills, ranks))


def new_row(options, implementation, ranks, ranks_after):
    return {
        "implementation": implementation,
        "ranks": ranks,
        "ranks_after": ranks_after,
        "resident_bytes": size_of(options.resident),
        "wrong": 0,
        "unfinished": 0,
        "samples": {phase: [] for phase in PHASES},
    }


def add(document, row, job):
    """What one job measured."""
    document["machine"] = job["machine"]
    result = job["results"][0]
    row["wrong"] += result["wrong"]
    for phase in PHASES:
        row["samples"][phase] += result["samples"][phase]


def to_markdown(rows):
    lines = [
        "| who | ranks | resident | from the kill until | n | p50 ms | p90 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    words = {
        "detect_us": "evidence",
        "release_us": "all survivors have their error",
        "first_us": "first correct all-reduce",
    }
    for row in rows:
        name = {"regroup": "Regroup", "ulfm": "Open MPI 5.0.11 ULFM"}[row["implementation"]]
        world = f"{row['ranks']} -> {row['ranks_after']}"
        if row["ranks"] == row["ranks_after"]:
            world += ", warm spare"
        resident = f"{row['resident_bytes'] / (1 << 30):.1f} GiB"
        for phase in PHASES:
            values = row["samples"].get(phase)
            if not values:
                continue
            cells = [f"{percentile(values, s) / 1e3:.2f}" for s in (0.5, 0.9, 0.99, 1)]
            lines.append(
                f"| {name} | {world} | {resident} | {words[phase]} | {len(values)} | "
                + " | ".join(cells)
                + " |"
            )
        if row["wrong"] or row["unfinished"]:
            lines.append(
                f"| {name} | {world} | {resident} | wrong {row['wrong']}, did not end "
                f"{row['unfinished']} | | | | | |"
            )
    return "\n".join(lines)


def find(rows, implementation, full):
    for row in rows:
        same = row["ranks"] == row["ranks_after"]
        if row["implementation"] == implementation and same == full and row["samples"]["first_us"]:
            return row["samples"]
    return None


def verdicts(rows):
    """Lines that compare with the figures that the design names."""
    out = []

    def say(what, value, limit, unit="ms", at_least=False):
        good = value >= limit if at_least else value <= limit
        sign = ">=" if at_least else "<="
        word = "met" if good else "MISSED"
        out.append(f"- {word}: {what} {value:.2f} {unit} (target {sign} {limit})")

    smaller, full, ulfm = (
        find(rows, "regroup", False),
        find(rows, "regroup", True),
        find(rows, "ulfm", False),
    )
    if smaller:
        if smaller["detect_us"]:
            say("detected, p99", percentile(smaller["detect_us"], 0.99) / 1e3, 10)
        say("smaller world, p50", percentile(smaller["first_us"], 0.5) / 1e3, 10)
        say("smaller world, p99", percentile(smaller["first_us"], 0.99) / 1e3, 40)
    if full:
        say("full world with a warm spare, p50", percentile(full["first_us"], 0.5) / 1e3, 20)
        say("full world with a warm spare, p99", percentile(full["first_us"], 0.99) / 1e3, 100)
    if smaller and ulfm:
        ratio = percentile(ulfm["first_us"], 0.5) / percentile(smaller["first_us"], 0.5)
        large = rows[0]["resident_bytes"] >= 1 << 30
        say("times as fast as ULFM, p50", ratio, 10 if large else 3, "x", True)
    return out


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4, help="of the worlds that shrink")
    parser.add_argument("--spare-ranks", type=int, default=8, help="of the world with a spare")
    parser.add_argument("--resident", default="100M", help="memory that each rank touches")
    parser.add_argument("--victim", type=int, default=2)
    parser.add_argument("--op", type=int, default=3)
    parser.add_argument("--parts", default="shrink,ulfm,spare")
    parser.add_argument("--ulfm-timeout", type=float, default=60)
    parser.add_argument("--bin-dir", default=str(ROOT / "build/release/bin"))
    parser.add_argument("--rivals", default=str(ROOT / "build/rivals"))
    parser.add_argument("--json", help="all samples")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if "ulfm" in options.parts and not os.path.exists(f"{options.rivals}/programs/ulfm"):
        print("kills.py: without ULFM: perf/rivals/setup.sh openmpi5 installs it", file=sys.stderr)
        options.parts.remove("ulfm")
    return options


def end_by(number, _):
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Cut(f"ended by {signal.Signals(number).name}", 128 + number)


def main():
    options = parse_arguments()
    began, code = time.monotonic(), 0
    document = {"machine": {}, "settings": vars(options), "results": []}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_by)
    with tempfile.TemporaryDirectory(prefix="regroup-kills.") as scratch:
        try:
            if "shrink" in options.parts:
                measure_smaller_world(options, scratch, document)
            if "spare" in options.parts:
                measure_full_world(options, scratch, document)
        except Cut as cut:
            code = cut.code
            print(f"kills.py: {cut}\nwhat was measured until then:", file=sys.stderr)
    rows, machine = document["results"], document["machine"]
    print(to_markdown(rows))
    print()
    print("\n".join(verdicts(rows)))
    spent = time.monotonic() - began
    print(f"\n{spent:.0f} s on {machine.get('cpu')}, {machine.get('cores')} cores")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
    return code


if __name__ == "__main__":
    sys.exit(main())
