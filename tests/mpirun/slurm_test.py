#!/usr/bin/env python3
"""regroup exec under a real srun, of a cluster that is this host alone. 77: something is not
installed, or this is not root."""

import argparse
import os
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path

import cells
from cells import Failed, check

sys.path.insert(0, str(Path(__file__).parent.parent / "support" / "hosts"))
from slurm import Slurm, why_not  # noqa: E402

# What a lost place needs to leave the others alone: docs/mpirun.md.
RECOVERY = ["--no-kill", "--kill-on-bad-exit=0", "--wait=0"]


class SrunCells(cells.Cells):
    """What differs under srun: the places' parent is not srun but its step daemon."""

    def shim_killed_recovery(self):
        """The job goes on to its end, but srun's code is that of the place that was killed."""
        run = self.start(self.digits, flags=self.launcher.recovery)
        run.wait_for(cells.MIDDLE)
        os.kill(self.shim_of(run, 1), signal.SIGKILL)
        code = run.wait()
        check(code == 137, f"exit code {code}")
        digest = cells.digest_of(run.output)
        check(digest is not None and digest == self.expected(), f"digest {digest}")
        run.await_nothing_left()
        return "137, same digest, seat taken by another place"

    def step_daemon_killed(self):
        """That srun itself then waits for Slurm is no matter of the job's."""
        run = self.start(self.digits)
        run.wait_for(cells.MIDDLE)
        ours = [run.job()["pid"]]
        for rank in range(cells.RANKS):
            ours += [run.pid_of(rank), self.shim_of(run, rank)]
        ends = [os.pidfd_open(pid) for pid in ours]
        os.kill(cells.parent_of(self.shim_of(run, 0)), signal.SIGKILL)
        for pid, end in zip(ours, ends):
            check(select.select([end], [], [], 20)[0], f"left behind: {cells.describe(pid)}")
            os.close(end)
        return "nothing left"

    def spare_takes_the_seat(self):
        run = self.start(self.digits, options=["--spares", "1"], ranks=cells.RANKS + 1)
        run.wait_for(cells.MIDDLE)
        os.kill(run.pid_of(1), signal.SIGKILL)
        self.check_whole(run)
        taken = [(e["rank"], e["how"]) for e in run.events("replaced")]
        check(taken == [(1, "spare")], f"the spare did not take the seat: {taken}")
        return "0, same digest, spare took the seat"


CELLS = ["undisturbed", "rank_killed", "rank_killed_tcp", "spare_takes_the_seat",
         "never_attaches", "shim_killed", "shim_killed_recovery", "agent_killed", "terminated",
         "step_daemon_killed"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin-dir", type=Path, required=True)
    parser.add_argument("cells", nargs="*")
    arguments = parser.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}")
        return cells.SKIPPED
    srun = cells.Launcher("srun", ["--quiet"], RECOVERY)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="regroup-slurm.") as folder:
        slurm = Slurm(folder, {socket.gethostname().partition(".")[0]: "127.0.0.1"})
        try:
            slurm.start()
            for cell in arguments.cells or CELLS:
                code, text = cells.run_cell(srun, cell, arguments.bin_dir.resolve(), SrunCells)
                print(f"{'FAILED ' if code else ''}{cell}: {text}", flush=True)
                bad += code
        except (Failed, RuntimeError) as error:
            print(error)
            bad += 1
        finally:
            slurm.end()
            if bad:
                print(slurm.said())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
