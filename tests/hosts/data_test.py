#!/usr/bin/env python3
"""Real ranks on several hosts, whose data moves over UCX. Hosts are agents beside each other."""

import json
import os
import re
import signal
import sys
import unittest
from pathlib import Path

from jobs import REGROUP, JobsCase, state_of, until

RANK_PROGRAM = os.environ["RANK_PROGRAM"]
PERF = Path(REGROUP).parent / "regroup-perf"
MODULE = Path(REGROUP).parent.parent / "lib" / "libregroup-ucx.so"
THREE = ("--hosts", "h1:1,h2:1,h3:1", "--interface", "lo", "--starter", "env")
TWO = ("--hosts", "h1:2,h2:1", "--interface", "lo", "--starter", "env")


# In a sanitized build LeakSanitizer's own tracer may crash at the end of a process with UCX's
# threads in it ("Tracer caught signal 11"), which then counts as lost. The same programs without
# UCX are looked at for leaks.
os.environ["ASAN_OPTIONS"] = f"{os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"


class Data(JobsCase):
    def train(self, *words, faults=""):
        run = self.start("-n", 3, *words, "--", RANK_PROGRAM, "train", 6,
                         environment={"REGROUP_FAULTS": faults, "UCX_TLS": "tcp"})
        self.assert_ends(run)
        digests = re.findall(r"digest=(\w+)", run.out)
        self.assertEqual(len(digests), 3, str(run))
        self.assertEqual(len(set(digests)), 1, str(run))
        return run, digests[0]

    def test_the_bits_do_not_depend_on_the_hosts(self):
        _, alone = self.train()
        self.assertEqual(self.train(*TWO)[1], alone)
        self.assertEqual(self.train(*THREE)[1], alone)

    def test_a_rank_that_is_killed_is_replaced_and_the_bits_stay(self):
        _, alone = self.train()
        for op, phase in (("all_reduce", "after_publish"), ("all_reduce", "after_complete"),
                          ("commit", "after_prepare")):
            where = f"rank=1,inc=0,op={op},step=3,phase={phase}"
            run, digest = self.train(*THREE, faults=f"{where}:kill")
            self.assertEqual(digest, alone, str(run))
            self.assertRegex(run.err, r"rank 1 .*lost: killed by SIGKILL")

    def test_a_seat_that_moves_is_given_its_prologue_and_its_volatile_state(self):
        # Host h2 has no spare: what its rank had is with others.
        moves = ("--hosts", "h1:1,h2:1,h3:2", "--interface", "lo", "--starter", "env",
                 "--spares", 1)
        _, alone = self.train()
        where = "rank=1,inc=0,op={},step={},phase={}:kill"
        again = "rank={},inc=0,op={},step=4,phase={}:kill"
        for faults in (where.format("all_reduce", 1, "after_publish"),
                       where.format("commit", 3, "after_prepare"),
                       # The one that keeps it is lost before the next commit, or with it.
                       where.format("commit", 3, "before_prepare") + ";"
                       + again.format(2, "all_reduce", "enter"),
                       where.format("all_gather", 2, "before_complete") + ";"
                       + "rank=1,inc=1,op=all_reduce,step=4,phase=enter:kill"):
            run, digest = self.train(*moves, faults=faults)
            self.assertEqual(digest, alone, f"{faults}\n{run}")
            self.assertRegex(run.err, r"rank 1 is on host h[13] now")

    @unittest.skipUnless(PERF.exists(), "built without regroup-perf")
    def test_what_is_measured_of_the_network_is_what_attach_takes(self):
        file = Path(self.directory.name) / "tuning"
        run = self.start("-n", 3, *TWO, "--", PERF, "--tune", file, environment={"UCX_TLS": "tcp"})
        self.assert_ends(run)
        found = dict(re.findall(r"^(net_\w+)=([\d.]+)$", file.read_text(), re.M))
        self.assertEqual(set(found), {"net_latency_us", "net_message_us", "net_gbps"})
        for name, value in found.items():
            self.assertGreater(float(value), 0, name)
        for algorithm in ("doubling", "halving", "ring", "tree"):
            result = Path(self.directory.name) / f"{algorithm}.json"
            run = self.start("-n", 3, *TWO, "--", PERF, "all_reduce", "--sizes", "8,100K", "-n", 3,
                             "--check", "--blocks", 1, "--algo", algorithm, "--json", result,
                             environment={"UCX_TLS": "tcp", "REGROUP_TUNING": file.read_text()})
            self.assert_ends(run)
            rows = json.loads(result.read_text())["results"]
            carried = [row["algorithm"] == algorithm and row["wrong"] == 0 for row in rows]
            self.assertEqual(carried, [True] * 4, str(run))

    @unittest.skipUnless(PERF.exists(), "built without regroup-perf")
    def test_the_network_is_not_measured_within_a_host(self):
        run = self.start("-n", 2, "--", PERF, "--tune", "/dev/null")
        self.assertEqual(run.end(), 64, str(run))
        self.assertIn("regroup run --hosts a:2,b:2", run.err)

    def shares(self, *words, faults=""):
        run = self.start("-n", 3, *words, "--", RANK_PROGRAM, "shares", 3,
                         environment={"REGROUP_FAULTS": faults, "UCX_TLS": "tcp"})
        self.assert_ends(run)
        found = set(re.findall(r"wrong=0 digest=(\w+)", run.out))
        self.assertEqual(run.out.count("wrong=0 digest="), 3, str(run))
        self.assertEqual(len(found), 1, str(run))
        return run, found

    def test_operations_with_shares_give_the_same_and_outlive_a_death(self):
        _, alone = self.shares()
        self.assertEqual(self.shares(*TWO)[1], alone)
        # Rank 1 shares its host with rank 0, where it is replaced.
        where = "rank=1,inc=0,op={},step=1,phase={}:kill"
        for op, phase in (("all_to_all_v", "after_publish"), ("scatter_v", "before_complete"),
                          ("coalesced", "after_await")):
            run, found = self.shares(*TWO, faults=where.format(op, phase))
            self.assertEqual(found, alone, str(run))
            self.assertRegex(run.err, r"rank 1 .*lost: killed by SIGKILL")

    def test_whoever_finds_a_way_broken_is_told_of_the_loss(self):
        """The network may tell of a death before the agents do."""
        # One of three operations in a row is an all_gather.
        faults = ";".join(f"rank=1,inc=0,op=all_gather,seq={seq},phase=before_copy_in:stop"
                          for seq in (20, 21, 22))
        run = self.start("-n", 3, *THREE, "--on-loss", "replace", "--detect-budget", "20s", "--",
                         RANK_PROGRAM, "serve", 60,
                         environment={"REGROUP_FAULTS": faults, "UCX_TLS": "tcp"})
        victim = run.rank(1)
        until(lambda: state_of(victim) == "T", "the victim's stop")
        agent = run.agent(2)
        os.kill(agent, signal.SIGSTOP)
        os.kill(victim, signal.SIGKILL)
        try:
            until(lambda: run.events("wedged"), "a survivor that finds its way broken")
        finally:
            os.kill(agent, signal.SIGCONT)
        self.assert_ends(run)
        self.assertEqual(len(re.findall(r"served=60 wrong=0 ", run.out)), 3, str(run))
        told = re.findall(r"rank [02] request \d+: (.*)", run.out)
        self.assertTrue(told, str(run))
        for text in told:
            self.assertRegex(text, "RankLost: rank 1 .*lost|Revoked: group .* cannot go on",
                             str(run))


if __name__ == "__main__":
    if not MODULE.exists():
        print("skipped: built without UCX (Debian: libucx-dev)")
        sys.exit(77)
    unittest.main()
