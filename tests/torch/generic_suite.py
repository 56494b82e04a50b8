#!/usr/bin/env python3
"""Runs PyTorch's own distributed tests, out of the torch wheel, against a backend.

    generic_suite.py --regroup build/release/bin/regroup [--backend regroup] [--ranks 3] [TEST...]

Runs with the Python of the virtual environment that ./dev test makes. Prints a line a test and
the sums. One job runs several tests, up to one that fails: the next job begins behind it. A test
that waits for its own timeout has a job for itself, since the deadline ends the epoch for all.

--expect FILE: a line a test. "NAME" must pass; "- NAME: why" passes with Gloo and must not pass
here, so that the list says what is so. The exit code is 1 when it does not.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_S = 60
TEST_S = 20  # on the average
TOGETHER = 20
ALONE = re.compile("timeout|hang|monitored_barrier_(failure|wait)|diff_across|has_finalized")
LISTING = """
import os
os.environ["BACKEND"] = "gloo"
from torch.testing._internal.distributed import distributed_test
print(*sorted(n for n in dir(distributed_test.DistributedTest._DistTestBase)
              if n.startswith("test_")))
"""


def surroundings(directory, ranks):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
    return variables | {"OMP_NUM_THREADS": "1", "TEMP_DIR": str(directory),
                        "WORLD_SIZE": str(ranks), "PYTHONDONTWRITEBYTECODE": "1"}


def all_tests(ranks):
    listed = subprocess.run([sys.executable, "-c", LISTING], env=surroundings("/nowhere", ranks),
                            capture_output=True, text=True)
    if listed.returncode != 0:
        sys.exit(f"the tests of this torch cannot be imported:\n{listed.stderr[-2000:]}")
    return listed.stdout.split()


def verdict(said, ranks):
    """Of one test, from what its ranks said: (passed, skipped or failed; why)."""
    if failures := [why for word, why in said if word == "failed"]:
        return "failed", failures[0]
    if len(said) < ranks:
        return "failed", f"{ranks - len(said)} of {ranks} ranks did not come to its end"
    if skips := [why for word, why in said if word == "skipped"]:
        return "skipped", skips[0]
    return "passed", ""


def run_some(options, tests):
    """In one job, up to the first that fails. Returns the verdicts by test, of one at least."""
    with tempfile.TemporaryDirectory(prefix="regroup-generic.") as directory:
        for folder in ("barrier", "test_dir", "init_dir"):
            Path(directory, folder).mkdir()
        words = [options.regroup, "run", "-q", "-n", str(options.ranks), "--log-dir",
                 f"{directory}/logs", "--on-loss", "abort",
                 "--timeout", f"{START_S + TEST_S * len(tests)}s", "--",
                 sys.executable, str(HERE / "generic_rank.py"), options.backend, *tests]
        job = subprocess.run(words, env=surroundings(directory, options.ranks), cwd=directory,
                             stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = {}
    for test, word, why in re.findall(r"generic: (\w+) (passed|skipped|failed)(?:: (.*))?",
                                      job.stdout):
        said.setdefault(test, []).append((word, why))
    verdicts = {test: verdict(said[test], options.ranks) for test in tests if test in said}
    if not verdicts:
        text = (job.stderr.splitlines() or ["nothing was said"])[-1]
        verdicts[tests[0]] = "failed", f"exit code {job.returncode}: {text[:300]}"
    return verdicts


def next_ones(tests):
    """Those of the next job."""
    if ALONE.search(tests[0]):
        return tests[:1]
    alone = (at for at, test in enumerate(tests) if ALONE.search(test))
    return tests[: min(TOGETHER, next(alone, len(tests)))]


def read_expected(path):
    """The tests that must pass, and those that must not."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    passing = [line for line in lines if not line.startswith("-")]
    return passing, [line[1:].split(":")[0].strip() for line in lines if line.startswith("-")]


def unexpected(results, passing, not_passing):
    """What is not as the list says, in words."""
    def is_passed(test):
        return results.get(test, ("failed", ""))[0] == "passed"

    return [f"{test} did not pass" for test in passing if not is_passed(test)] + [
        f"{test} passes now: say so in the list" for test in not_passing if is_passed(test)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--regroup", required=True, help="the program regroup")
    parser.add_argument("--backend", default="regroup", choices=("regroup", "gloo"))
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--expect", type=Path, metavar="FILE", help="what must pass")
    parser.add_argument("tests", nargs="*", help="all, if none is named")
    options = parser.parse_args()
    passing, not_passing = read_expected(options.expect) if options.expect else ([], [])
    results = {}
    left = options.tests or passing + not_passing or all_tests(options.ranks)
    while left:
        verdicts = run_some(options, next_ones(left))
        results |= verdicts
        left = [test for test in left if test not in verdicts]
        for test, (word, why) in verdicts.items():
            print(*(text for text in (word, test, why) if text), flush=True)
    counts = {word: sum(result == word for result, _ in results.values())
              for word in ("passed", "skipped", "failed")}
    print(options.backend + ": " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    if surprises := unexpected(results, passing, not_passing):
        sys.exit("\n".join(surprises))


if __name__ == "__main__":
    main()
