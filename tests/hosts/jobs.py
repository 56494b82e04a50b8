"""Jobs on several hosts under test: started, read line by line, and never left running."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

REGROUP = os.environ["REGROUP_BINARY"]
FAKE_RANK = os.environ["FAKE_RANK"]

sys.path.insert(0, str(Path(__file__).parent.parent / "support" / "hosts"))
from processes import (  # noqa: E402,F401
    PATIENCE, all_pids, command_line, environment_of, is_running, state_of, until)


class Run:
    """One `regroup run`, or another command that runs a job; its output as it comes."""

    def __init__(self, directory, words, prefix=(), environment=None, command="run"):
        self.logs = Path(directory) / "logs"
        outer = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        outer.update(environment or {})
        self.process = subprocess.Popen(
            [*prefix, REGROUP, command, "--log-dir", str(self.logs), *words], cwd=directory,
            env=outer, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True)
        self.text = {"out": "", "err": ""}
        self.readers = [threading.Thread(target=self._read, args=(name, stream))
                        for name, stream in (("out", self.process.stdout),
                                             ("err", self.process.stderr))]
        for reader in self.readers:
            reader.start()

    def _read(self, name, stream):
        for line in stream:
            self.text[name] += line
        stream.close()

    @property
    def out(self):
        return self.text["out"]

    @property
    def err(self):
        return self.text["err"]

    def wait_for(self, *words, patience=PATIENCE):
        def there():
            return all(word in self.out or word in self.err for word in words)
        try:
            until(lambda: there() or self.process.poll() is not None, f"{words}", patience)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self}") from None
        until(lambda: there() or not any(r.is_alive() for r in self.readers), "its last lines")
        assert there(), f"it ended without {words}:\n{self}"

    def end(self):
        """Its exit code once it has ended."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self}") from None
        for reader in self.readers:
            reader.join(PATIENCE)
        return self.process.returncode if self.process.returncode >= 0 \
            else 128 - self.process.returncode

    def job(self):
        header = until(lambda: [line for line in self.err.splitlines() if " job " in line],
                       f"the first line of {self}")
        return header[0].split(" job ", 1)[1].split()[0]

    def events(self, kind=None):
        try:
            lines = (self.logs / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [e for e in found if kind is None or e["kind"] == kind]

    def processes(self, *variables):
        """Those of this job, which hold all these variables."""
        wanted = [f"REGROUP_JOB_ID={self.job()}", *variables]
        found = []
        for pid in all_pids():
            environment = environment_of(pid)
            if all(w.encode() in environment for w in wanted) and is_running(pid):
                found.append(pid)
        return found

    def rank(self, rank):
        return until(lambda: self.processes(f"REGROUP_RANK={rank}"), f"rank {rank}")[0]

    def agent(self, number):
        """The agent of this host: the parent of what runs there."""
        mark = f"REGROUP_HOST_ID={self.job()}.{number}"
        pid = until(lambda: self.processes(mark), f"a process on host {number}")[0]
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    def kill_rest(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self.readers:
            reader.join(PATIENCE)

    def __str__(self):
        return f"--- out\n{self.out}--- err\n{self.err}"


class JobsCase(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="regroup-hosts.")
        self.runs = []

    def tearDown(self):
        for run in self.runs:
            run.kill_rest()
        self.directory.cleanup()

    def start(self, *words, **more):
        self.runs.append(Run(self.directory.name, [str(w) for w in words], **more))
        return self.runs[-1]

    def assert_ends(self, run, code=0):
        self.assertEqual(run.end(), code, str(run))

    def assert_nothing_left(self, run):
        left = []

        def gone():
            left[:] = [(pid, command_line(pid)) for pid in run.processes()]
            return not left
        try:
            until(gone, "the end of all processes", 15)
        except AssertionError:
            self.fail(f"left behind: {left}\n{run}")

    def interrupt(self, run):
        run.process.send_signal(signal.SIGINT)
