#!/usr/bin/env python3
"""The programs of perf/torch with the smallest settings: they end, and print their tables."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BIN = Path(os.environ["REGROUP_BINARY"]).parent
PERF = Path(__file__).resolve().parents[2] / "perf" / "torch"


class PerfTest(unittest.TestCase):
    def output(self, words):
        with tempfile.TemporaryDirectory(prefix="regroup-torch-perf.") as directory:
            ended = subprocess.run(words, cwd=directory, capture_output=True, text=True,
                                   timeout=150, env=os.environ | {"OMP_NUM_THREADS": "1"})
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        return ended.stdout

    def under_regroup(self, program, *arguments):
        return self.output([BIN / "regroup", "run", "-q", "-n", "2", "--log-dir", "logs", "--",
                            sys.executable, PERF / program, *arguments])

    def test_all_reduce_beside_gloo(self):
        said = self.under_regroup("compare_gloo.py", "-e", "512", "--blocks", "2")
        self.assertRegex(said, r"512 +[\d.]+ +[\d.]+ +[\d.]+")

    def test_a_step_beside_gloo(self):
        said = self.under_regroup("ddp_step.py", "--blocks", "2", "--steps", "3", "--width", "64")
        self.assertRegex(said, r"gloo ms +regroup ms +ratio\n.*[\d.]+ +[\d.]+ +[\d.]+")

    def test_what_a_call_costs(self):
        said = self.output([sys.executable, PERF / "call_cost.py", "--bin-dir", BIN, "--launches",
                            "1", "--calls", "100"])
        self.assertRegex(said, r"torch.distributed +[\d.]+ +[\d.-]+")

    def test_from_a_kill_to_the_next_update(self):
        said = self.output([sys.executable, PERF / "kill_to_step.py", "--regroup",
                            BIN / "regroup", "--kills", "2", "--pause", "0.5"])
        self.assertRegex(said, r"regroup: 2 kills, ms to the next update: median [\d.]+")

    @unittest.skipUnless(importlib.util.find_spec("torchft"), "there is no torchft")
    def test_torchfts_manager_outlives_kills_with_our_group(self):
        said = self.output([sys.executable, PERF / "kill_to_step.py", "--regroup",
                            BIN / "regroup", "--side", "torchft-regroup", "--average", "manager",
                            "--kills", "2", "--pause", "0.5"])
        self.assertRegex(said, r"torchft-regroup: 2 kills, ms to the next update: median [\d.]+")

    def test_each_says_what_it_takes(self):
        for program in PERF.glob("*.py"):
            self.assertIn("usage:", self.output([sys.executable, program, "--help"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
