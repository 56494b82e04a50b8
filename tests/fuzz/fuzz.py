#!/usr/bin/env python3
"""Explores every decoder with libFuzzer, from the committed corpus on, two targets at a time.

A finding is kept as a file, named in the output, and makes the exit code 1. New inputs that reach
new code stay in --work, which later runs begin with; the committed corpus is never written.
"""
import argparse
import concurrent.futures
import pathlib
import re
import subprocess
import sys

SLACK_S = 60  # for the start under a sanitizer and the last input


def targets(binary):
    said = subprocess.run([binary], stderr=subprocess.PIPE, text=True, check=False, timeout=SLACK_S)
    return re.findall(r"^--target=(\w+)$", said.stderr, re.MULTILINE)


def explore(target, args):
    """(target, whether it stood, one line)."""
    work = args.work / target
    findings = args.work / "findings"
    work.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    command = [args.binary, f"--target={target}", work, args.corpus / target,
               f"-max_total_time={args.seconds}", "-timeout=20", "-rss_limit_mb=2048",
               "-max_len=16384", "-print_final_stats=1", f"-artifact_prefix={findings}/{target}-"]
    with open(args.work / f"{target}.log", "wb") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False,
                                  timeout=args.seconds + SLACK_S).returncode
        except subprocess.TimeoutExpired:
            code = -1
    text = (args.work / f"{target}.log").read_text(errors="replace")
    stat = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    cover = re.findall(r"\bcov: (\d+)", text)
    ran = int(stat.group(1)) if stat else 0
    line = f"{target}: {ran} inputs, {cover[-1] if cover else 0} edges"
    if code == 0 and ran > 0:
        return target, True, line
    tail = "\n".join(text.splitlines()[-40:])
    return target, False, f"{line}, ended with {code}\n{tail}\nrepeat: " + " ".join(
        str(word) for word in (args.binary, f"--target={target}", f"{findings}/{target}-..."))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="regroup-fuzz")
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=int, default=5, help="for each target")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("targets", nargs="*", help="all when none is named")
    args = parser.parse_args()
    names = args.targets or targets(args.binary)
    if not names:
        sys.exit(f"{args.binary} names no target")
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        for _, stood, line in pool.map(lambda name: explore(name, args), names):
            print(line, flush=True)
            bad += not stood
    print(f"{len(names)} targets, {bad} with findings")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
