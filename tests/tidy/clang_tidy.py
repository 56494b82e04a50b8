#!/usr/bin/env python3
"""Runs clang-tidy over the files that a build compiles, each once and as it ships.

A file that was clean is not read again until its preprocessed text, its flags, .clang-tidy or the
program change: the whole tree takes half an hour of one core, a change only its own files.

usage: clang_tidy.py --database TREE/compile_commands.json --state DIR [--jobs N] [FILE...]
Prints each finding once; exit code 1 when there is one.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

CLANG_TIDY = "clang-tidy-16"
ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = re.compile(r"(runtime|transports|launcher|examples|tests|perf)/.*\.cpp$")
# As nobody ships it: read only where it is the one way in which a file is compiled.
BROKEN = re.compile(r"-DREGROUP_(MUTANTS|WITHOUT_FAULT_TOLERANCE)")
FINDING = re.compile(r": (warning|error): ")


def shipped(database: pathlib.Path, only: list[str]) -> list[dict]:
    """One entry per file of ours."""
    entries = {}
    compiled = json.loads(database.read_text())
    compiled.sort(key=lambda entry: bool(BROKEN.search(entry["command"])))
    for entry in compiled:
        name = os.path.relpath(entry["file"], ROOT)
        if not OURS.match(name):
            continue
        if not only or any(name.startswith(os.path.relpath(word, ROOT)) for word in only):
            entries.setdefault(entry["file"], entry)
    return list(entries.values())


def key(entry: dict, settings: bytes) -> str | None:
    """Names what clang-tidy would read; None when the preprocessor fails, which it then reports."""
    words = [word for word in shlex.split(entry["command"]) if word != "-c"]
    if "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    # -C: comments hold NOLINT marks.
    run = subprocess.run([*words, "-E", "-P", "-C"], cwd=entry["directory"], capture_output=True)
    if run.returncode != 0:
        return None
    return hashlib.sha256(settings + entry["file"].encode() + run.stdout).hexdigest()


def check(entry: dict, database: pathlib.Path, state: pathlib.Path, settings: bytes) -> list[str]:
    """Returns the findings of one file."""
    name = key(entry, settings)
    if name and (state / name).exists():
        return []
    run = subprocess.run(
        [CLANG_TIDY, "-quiet", "-p", str(database.parent),
         "-extra-arg=-Wno-unknown-warning-option", entry["file"]],
        capture_output=True, text=True)
    found = [line for line in run.stdout.splitlines() if FINDING.search(line)]
    if run.returncode != 0 and not found:
        tail = run.stderr[-500:]
        found = [f"{entry['file']}: error: clang-tidy ended with {run.returncode}: {tail}"]
    if name and not found:
        (state / name).touch()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=pathlib.Path, required=True)
    parser.add_argument("--state", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    entries = shipped(args.database, args.files)
    if not entries:
        print("clang-tidy: the build compiles none of these files", file=sys.stderr)
        return 1
    lint = args.state / "database"
    lint.mkdir(parents=True, exist_ok=True)
    (lint / "compile_commands.json").write_text(json.dumps(entries))
    version = subprocess.run([CLANG_TIDY, "--version"], capture_output=True, check=True).stdout
    settings = version + (ROOT / ".clang-tidy").read_bytes()
    seen: set[str] = set()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        one = lambda entry: check(entry, lint / "compile_commands.json", args.state, settings)
        for findings in pool.map(one, entries):
            for line in findings:
                if line not in seen:
                    seen.add(line)
                    print(line, flush=True)
    print(f"clang-tidy: {len(entries)} files, {len(seen)} findings")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
