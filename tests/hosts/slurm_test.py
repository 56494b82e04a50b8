#!/usr/bin/env python3
"""`regroup run --hosts slurm` in an allocation of several hosts, with srun as the starter."""

import os
import signal
import sys
import unittest
from pathlib import Path

from jobs import FAKE_RANK, command_line, until
import namespaces  # where jobs says
import slurm  # likewise
from namespaces_test import HostsCase

SRUN = "srun --overlap -N 1 -n 1 -w {host}"


class Allocation(HostsCase):
    names = ("a", "b")
    clock_ahead = None

    def setUp(self):
        super().setUp()
        self.network.know_each_other(self.directory.name)
        folder = Path(self.directory.name) / "slurm"
        folder.mkdir()
        Path(self.directory.name).chmod(0o755)
        self.cluster = slurm.Slurm(
            folder, {name: f"10.77.0.{number}" for number, name in enumerate(self.names, 1)},
            lambda host: self.network[host].enter())
        try:
            self.cluster.start()
        except RuntimeError:
            self.cluster.end()
            raise

    def tearDown(self):
        self.cluster.end()
        super().tearDown()

    def allocated(self, ranks, *words):
        """In an allocation of both hosts, which is given back when it ends."""
        salloc = ["salloc", "-Q", "-N", "2", "-n", "4"]
        return self.start("-n", ranks, "--hosts", "slurm", "--interface", "10.77.0.1", "--starter",
                          SRUN, *words,
                          prefix=[*self.network["a"].enter(self.directory.name), *salloc])

    def assert_nothing_left_on(self, *hosts):
        for host in hosts:
            until(lambda h=host: not [pid for pid in self.network[h].pids()
                                      if FAKE_RANK.encode() in command_line(pid)
                                      or b"--stdio" in command_line(pid)],
                  f"the end of the job on {host}", 15)

    def test_a_job_has_the_hosts_of_the_allocation(self):
        run = self.allocated(4, "--", FAKE_RANK)
        self.assert_ends(run)
        self.assertIn("3: view epoch=1 seats=1,2,3,4", run.out)
        self.assertIn("4 ranks on 2 hosts", run.err)
        self.assert_nothing_left_on("a", "b")

    def test_a_killed_step_daemon_costs_its_host_and_not_the_job(self):
        """srun itself waits for Slurm then; it is ended with the job."""
        run = self.allocated(4, "--spares", 3, "--", FAKE_RANK, "linger")
        self.settled(run, 0, 1, 2, 3)
        agent = self.agent_on("b")
        stat = Path(f"/proc/{agent}/stat").read_text()
        os.kill(int(stat.rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
        self.settled(run, 0, 1, 2, 3, epoch=2)
        self.end_it(run)
        self.assert_nothing_left_on("a", "b")


if __name__ == "__main__":
    reason = namespaces.why_not() or slurm.why_not()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main()
