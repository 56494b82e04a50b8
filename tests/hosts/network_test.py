#!/usr/bin/env python3
"""Faults of the network, of hosts and of processes at exact points of operations between hosts, on
ranks that check every value themselves: network_test.py [--all] [-v].

The fault script stops a rank at a phase; there the test does what it is about and lets the rank go
on. Without --all two cells, with it each fault in each phase under each algorithm.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import unittest
from pathlib import Path

from jobs import REGROUP, JobsCase, command_line, environment_of, is_running, state_of, until
import namespaces  # where jobs says

PROGRAM = Path(REGROUP).parent.parent / "test" / "chaos_rank"
MODULE = Path(REGROUP).parent.parent / "lib" / "libregroup-ucx.so"
VICTIM = 2  # on host b
STEP = 12
PHASES = ("enter", "before_copy_in", "after_publish", "after_await", "after_reduce",
          "before_complete", "after_complete")
IN_COMMIT = ("before_prepare", "after_prepare")
ALGORITHMS = ("oneshot", "twoshot", "rails", "doubling", "halving", "ring", "tree")
DETECT_S = 3  # a rank that stands still is found by this test well before it is given up
FLAP = threading.Event()  # never set: that long is what a flapping link is
FLAP_S = 0.1
FAULTS = ("kill", "stop", "cut", "mute", "deaf", "flap")


SOME_CELLS = (("cut", "all_reduce", "after_publish", "rails"),
              ("deaf", "all_reduce", "before_complete", "twoshot"))


def all_cells():
    cells = [(fault, "all_reduce", phase, algorithm) for fault in FAULTS for phase in PHASES
             for algorithm in ALGORITHMS]
    return cells + [(fault, "commit", phase, "rails") for fault in FAULTS for phase in IN_COMMIT]


class NetworkCase(JobsCase):
    @classmethod
    def add(cls, cell):
        """One test: survivors agree, and all values are right."""
        setattr(cls, "test_" + "_".join(cell), lambda self: self.perform(*cell))

    def setUp(self):
        super().setUp()
        self.network = namespaces.Network(("a", "b", "c"))

    def tearDown(self):
        self.network.close()  # and all that runs there, which whoever reads its output waits for
        super().tearDown()

    def perform(self, fault, operation, phase, algorithm):
        stop_file = Path(self.directory.name) / "stop"
        action = "kill" if fault == "kill" else "stop"
        faults = f"rank={VICTIM},inc=0,op={operation},step={STEP},phase={phase}:{action}"
        starter = self.network.starter(self.directory.name)
        run = self.start(
            "-n", 4, "--hosts", "a:2,b:2,c:2", "--interface", "eth0", "--spares", 2,
            "--detect-budget", f"{DETECT_S}s", "--starter", starter, "--", PROGRAM, "--seed", 1,
            "--stop-file", stop_file, prefix=self.network["a"].enter(self.directory.name),
            environment={"UCX_TLS": "tcp", "REGROUP_ALGO": f"0-:{algorithm}",
                         "REGROUP_FAULTS": faults})
        if fault not in ("kill", "stop"):
            getattr(self, fault)(self.stopped(run, phase))
        if fault != "flap":
            until(lambda: [e for e in run.events("view_installed") if e["epoch"] == 2],
                  f"a second view\n{run}")
            self.network.heal("b")
            self.speak_and_hear()
        # Everybody goes on, and then comes to an end.
        until(lambda: any(e["rank"] == VICTIM for e in run.events("entered")) or fault == "flap",
              f"the seat's next member\n{run}")
        stop_file.touch()
        self.assert_ends(run)
        self.check(run)
        until(lambda: not self.network["b"].pids(), f"the end of all on b\n{run}", 15)

    def stopped(self, run, phase):
        """The victim, once it stands still."""
        pid = until(self.victim, "the victim's process")
        try:
            until(lambda: not is_running(pid) or state_of(pid) == "T", "")
        except AssertionError:
            self.fail(f"no stop in {phase}\n{run}")
        self.assertTrue(is_running(pid), f"it was given up before it was seen to stand\n{run}")
        return pid

    def victim(self):
        for pid in self.network["b"].pids():
            if str(PROGRAM).encode() in command_line(pid) and \
                    f"REGROUP_RANK={VICTIM}".encode() in environment_of(pid):
                return pid
        return None

    def check(self, run):
        self.assertNotIn("WRONG", run.out, str(run))
        ended = re.findall(r"chaos seat=(\d+) steps=(\d+) size=4 digest=(\w+)", run.out)
        self.assertEqual(sorted(seat for seat, _, _ in ended), ["0", "1", "2", "3"], str(run))
        self.assertEqual(len({(steps, digest) for _, steps, digest in ended}), 1, str(run))
        _, steps, digest = ended[0]
        expected = subprocess.run(
            [PROGRAM, "--seed", "1", "--oracle-ranks", "4", "--oracle-steps", steps],
            capture_output=True, text=True, check=True).stdout
        self.assertEqual(digest, expected.strip(), str(run))

    # ---- what is done while the rank stands still

    def cut(self, victim):
        self.network.cut("b")
        os.kill(victim, signal.SIGCONT)

    def mute(self, victim):
        """Host b hears, and is not heard."""
        self.network.run_on("b", "tc", "qdisc", "replace", "dev", "eth0", "root", "blackhole")
        os.kill(victim, signal.SIGCONT)

    def deaf(self, victim):
        """Host b is heard, and does not hear."""
        self.network.run_on("switch", "tc", "qdisc", "replace", "dev", "to-b", "root", "blackhole")
        os.kill(victim, signal.SIGCONT)

    def speak_and_hear(self):
        for host, device in (("b", "eth0"), ("switch", "to-b")):
            self.network.run_on(host, "tc", "qdisc", "del", "dev", device, "root", fails=True)

    def flap(self, victim):
        os.kill(victim, signal.SIGCONT)
        for _ in range(5):
            self.network.cut("b")
            FLAP.wait(FLAP_S)
            self.network.heal("b")
            FLAP.wait(FLAP_S)


if __name__ == "__main__":
    reason = namespaces.why_not()
    if not MODULE.exists():
        reason = "built without UCX (Debian: libucx-dev)"
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    everything = "--all" in sys.argv
    for one in all_cells() if everything else SOME_CELLS:
        NetworkCase.add(one)
    unittest.main(argv=[word for word in sys.argv if word != "--all"])
