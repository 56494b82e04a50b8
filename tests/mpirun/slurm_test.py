#!/usr/bin/env python3
"""regroup exec under a real srun: munged, slurmctld and slurmd of this test's own, on the loopback
interface and in a folder that goes away. 77: something is not installed, or this is not root."""

import argparse
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cells
from cells import Failed, check

START_S = 60
# What a lost place needs to leave the others alone: docs/mpirun.md.
RECOVERY = ["--no-kill", "--kill-on-bad-exit=0", "--wait=0"]
CONFIGURATION = """
ClusterName=regroup
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP  # tidy-allow(glossary): Slurm's word
"""


def lacking():
    """Why this cannot run here; none: it can."""
    if os.geteuid() != 0:
        return "slurmd starts tasks as their user, so this needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    for program in ("munged", "slurmctld", "slurmd", "srun"):
        if shutil.which(program, path=path) is None:
            return f"{program} is not installed; ./dev setup --all installs it"
    os.environ["PATH"] = path
    return None


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Slurm:
    """A cluster of this host alone."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.chmod(0o755)  # munged refuses a folder that its clients cannot enter
        self.daemons = []
        self.marker = f"REGROUP_SLURM={folder}"
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "state").mkdir()
        (self.folder / "spool").mkdir()
        configuration = self.folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], folder=folder, ports=free_ports(2)))
        os.environ["SLURM_CONF"] = str(configuration)

    def start(self):
        until = time.monotonic() + START_S
        place = f"{self.folder}/munge"
        self.daemon("munged", "--foreground", "--force", f"--key-file={place}.key",
                    f"--socket={place}.socket", f"--pid-file={place}.pid",
                    f"--log-file={place}.log", f"--seed-file={place}.seed")
        self.until_true(["munge", "-n", "-S", f"{place}.socket"], until)
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D")
        self.until_true(["srun", "-Q", "-n", "1", "true"], until)

    def daemon(self, name, *words):
        log = open(self.folder / f"{name}.out", "wb")
        environment = dict(os.environ)
        key, value = self.marker.split("=")
        environment[key] = value
        self.daemons.append(subprocess.Popen([name, *words], env=environment, stdout=log,
                                             stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT))
        log.close()

    def until_true(self, command, until):
        while True:
            left = until - time.monotonic()
            check(left > 0, f"{command[0]} did not work within {START_S} s\n{self.said()}")
            for one in self.daemons:
                check(one.poll() is None, f"{one.args[0]} ended\n{self.said()}")
            try:
                if subprocess.run(command, capture_output=True, timeout=left).returncode == 0:
                    return
            except subprocess.TimeoutExpired:
                pass

    def said(self):
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}"
                         for path in sorted(self.folder.glob("*.out")))

    def end(self):
        for one in reversed(self.daemons):
            one.terminate()
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        for pid in cells.processes_with({self.marker.encode()}):
            os.kill(pid, signal.SIGKILL)


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
    if reason := lacking():
        print(f"skipped: {reason}")
        return cells.SKIPPED
    srun = cells.Launcher("srun", ["--quiet"], RECOVERY)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="regroup-slurm.") as folder:
        slurm = Slurm(folder)
        try:
            slurm.start()
            for cell in arguments.cells or CELLS:
                code, text = cells.run_cell(srun, cell, arguments.bin_dir.resolve(), SrunCells)
                print(f"{'FAILED ' if code else ''}{cell}: {text}", flush=True)
                bad += code
        except Failed as error:
            print(error)
            bad += 1
        finally:
            slurm.end()
            if bad:
                print(slurm.said())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
