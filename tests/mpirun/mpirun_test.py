#!/usr/bin/env python3
"""regroup mpirun with an mpirun that this test plays itself, so that it may do anything."""

import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from cells import PATIENCE_S, end_of, kill_all_with, processes_with

REGROUP = os.environ["REGROUP_BINARY"]

# Starts the places as Open MPI would: the words from regroup on, in each of them.
PLACES = """
while [[ "$1" != -n ]]; do shift; done
places=$2; shift 2
for ((i = 0; i < places; ++i)); do
  OMPI_COMM_WORLD_RANK=$i OMPI_COMM_WORLD_SIZE=$places OMPI_COMM_WORLD_LOCAL_RANK=$i \\
    OMPI_COMM_WORLD_LOCAL_SIZE=$places "$@" &
done
"""
# A process that never ends and does not mind being asked to.
FOR_EVER = "trap '' TERM; exec tail -f /dev/null\n"


class Started:
    """One regroup mpirun, and whether anything of it is left."""

    def __init__(self, directory, words, **variables):
        self.marker = {f"REGROUP_TEST={directory}".encode()}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        environment.update(variables, REGROUP_TEST=directory)
        self.process = subprocess.Popen(
            [REGROUP, "mpirun", *words], cwd=directory, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self):
        return end_of(self.process)

    def left(self):
        return processes_with(self.marker)

    def kill(self):
        kill_all_with(self.marker)
        self.process.communicate()


class MpirunTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="regroup-mpirun.")
        self.started = []

    def tearDown(self):
        for one in self.started:
            one.kill()
        self.directory.cleanup()

    def fake(self, body, version="mpirun (Open MPI) 4.1.4"):
        path = Path(self.directory.name) / "fake mpirun"
        version = f"[[ $1 == --version ]] && {{ echo '{version}'; exit; }}"
        path.write_text(f"#!/bin/bash\n{version}\n{body}")
        path.chmod(0o755)
        return str(path)

    def start(self, words, **variables):
        self.started.append(Started(self.directory.name, words, **variables))
        return self.started[-1]

    def run_to_end(self, words, **variables):
        one = self.start(words, **variables)
        out = one.end()
        self.assertEqual(one.left(), [], "left behind")
        return out

    def test_the_code_is_the_jobs_whatever_mpirun_ends_with(self):
        words = ["--mpirun", self.fake(PLACES + "wait; exit 42\n"), "-n", "2", "--", "sh", "-c"]
        code, out, err = self.run_to_end([*words, "echo $RANK of $WORLD_SIZE"])
        self.assertEqual((code, sorted(out.splitlines())), (0, ["0 of 2", "1 of 2"]), err)
        code, _, err = self.run_to_end([*words, "exit 7"])
        self.assertEqual(code, 7, err)

    def test_flags_and_spares_reach_mpirun(self):
        fake = self.fake('printf "%s|" "$@"; echo\n' + PLACES + "wait\n")
        code, out, err = self.run_to_end(
            ["--mpirun", fake, "--host", "here:9", "-np", "2", "--spares", "1", "-x", "A=b", "-v",
             "--", "true", "-n"])
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"^--enable-recovery\|--oversubscribe\|--host\|here:9\|-x\|A=b\|"
                              r"-n\|3\|/.*regroup\|exec\|--agent\|[^|]*\|--\|true\|-n\|\n$")
        self.assertIn(f"regroup: Open MPI 4.1.4 ({fake}) starts 3 places on this host", err)
        self.assertIn(f"regroup: '{fake}' --enable-recovery --oversubscribe --host here:9", err)

    def test_one_that_hangs_after_the_job_is_ended(self):
        words = ["--mpirun", self.fake(PLACES + "wait\n" + FOR_EVER), "-n", "2", "--", "true"]
        code, _, err = self.run_to_end(words)
        self.assertEqual(code, 0, err)
        self.assertRegex(err, r"E-MPI-3 mpirun \(pid \d+\) has not ended 5 s after its places")

    def test_one_that_starts_nothing_is_ended(self):
        words = ["--mpirun", self.fake(FOR_EVER), "-n", "2", "--start-timeout", "1s", "--", "true"]
        code, _, err = self.run_to_end(words)
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-3 after 1 s still waiting for places 0, 1 of 2", err)

    def test_interrupted_before_the_job_began(self):
        fake = self.fake("echo begun\n" + FOR_EVER)
        one = self.start(["--mpirun", fake, "-n", "2", "--", "true"])
        self.assertEqual(one.process.stdout.readline(), "begun\n")
        one.process.send_signal(signal.SIGINT)
        code, _, err = one.end()
        self.assertEqual(code, 130, err)
        self.assertIn("SIGINT ended the job before it began", err)
        self.assertEqual(one.left(), [])

    def test_one_that_fails_tells_with_its_own_code(self):
        words = ["--mpirun", self.fake("echo no slots >&2; exit 5\n"), "-n", "2", "--", "true"]
        code, _, err = self.run_to_end(words)
        self.assertEqual(code, 5)
        self.assertIn("no slots", err)
        self.assertIn("E-RDZV-3 the launcher ended before all places", err)

    def test_no_mpirun(self):
        for words in (["--mpirun", "/nowhere/mpirun"], []):
            code, _, err = self.run_to_end([*words, "-n", "2", "--", "/bin/true"],
                                           PATH=self.directory.name)
            self.assertEqual(code, 66)
            self.assertIn("E-MPI-1 no mpirun: ", err)
            self.assertIn("--mpirun", err)

    def test_an_mpirun_of_a_kind_that_is_not_known(self):
        fake = self.fake("", version="Acme MPI 3.1")
        code, _, err = self.run_to_end(["--mpirun", fake, "-n", "2", "--", "true"])
        self.assertEqual(code, 69)
        self.assertIn("E-MPI-2", err)
        self.assertIn("'Acme MPI 3.1' names neither Open MPI nor MPICH", err)

    def test_wrong_words(self):
        for words, expected in ((["--", "true"], "E-USE-1"), (["-n", "2", "true"], "E-USE-7"),
                                (["-n", "2", "--", "true", ":", "true"], "E-USE-11"),
                                (["-n", "0", "--", "true"], "E-USE-2"),
                                (["-n", "2", "--start-timeout", "x", "--", "true"], "E-USE-8")):
            code, _, err = self.run_to_end(words)
            self.assertEqual((code, expected in err), (64, True), err)
        code, _, err = self.run_to_end(["-n", "2", "--", "/nowhere/program"])
        self.assertEqual((code, "E-PROG-1" in err), (66, True), err)

    def test_inside_a_rank_of_another_job(self):
        """What the outer job left in the environment says nothing about the inner one."""
        fake = self.fake(PLACES + "wait\n")
        outer = subprocess.run(
            [REGROUP, "run", "-q", "-n", "2", "--", "sh", "-c",
             '"$0" mpirun -q --log-dir "in$RANK" --mpirun "$1" -n 3 -- '
             'sh -c "echo \\$RANK of \\$WORLD_SIZE"', REGROUP, fake],
            cwd=self.directory.name, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(outer.returncode, 0, outer.stderr)
        lines = sorted(line.split(" ", 1)[-1] for line in outer.stdout.splitlines())
        self.assertEqual(lines, sorted(2 * [f"{rank} of 3" for rank in range(3)]), outer.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + sys.argv[1:])
