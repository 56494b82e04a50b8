#!/usr/bin/env python3
"""regroup exec under launchers that this test plays itself: what they leave in the environment is
real, the processes are real, only mpirun is missing."""

import os
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from cells import end_of

REGROUP = os.environ["REGROUP_BINARY"]


def torchrun(rank, size, local=None):
    return {"TORCHELASTIC_RUN_ID": "t", "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": local or size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}


def srun(rank, size):
    return {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_PROCID": rank, "SLURM_LOCALID": rank,
            "SLURM_STEP_NUM_TASKS": size, "SLURM_STEP_TASKS_PER_NODE": size, "SLURM_NODEID": 0,
            "SLURM_STEP_NUM_NODES": 1}


def ompi(rank, size):
    return {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": size,
            "OMPI_COMM_WORLD_LOCAL_RANK": rank, "OMPI_COMM_WORLD_LOCAL_SIZE": size,
            "PMIX_NAMESPACE": "n", "PMIX_RANK": rank}


class Place:
    """One process that the launcher, which is this test, started."""

    def __init__(self, directory, variables, words, stdin=None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        environment.update({k: str(v) for k, v in variables.items()})
        self.process = subprocess.Popen(words, cwd=directory, env=environment, text=True,
                                        stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)

    def end(self):
        return end_of(self.process)


class ExecTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="regroup-exec.")
        self.places = []

    def tearDown(self):
        for place in self.places:
            if place.process.poll() is None:
                place.process.kill()
                place.process.communicate()
        self.directory.cleanup()

    def start(self, variables, words, **more):
        self.places.append(Place(self.directory.name, variables, words, **more))
        return self.places[-1]

    def start_exec(self, variables, *program, options=(), **more):
        return self.start(variables, [REGROUP, "exec", *options, "--", *program], **more)

    def test_torchrun_and_srun_and_open_mpi(self):
        for launcher in (torchrun, srun, ompi):
            with self.subTest(launcher.__name__):
                places = [self.start_exec(launcher(r, 2), "sh", "-c", "echo $REGROUP_RANK:$RANK "
                                          "${OMPI_COMM_WORLD_RANK-gone} ${SLURM_PROCID-gone}")
                          for r in range(2)]
                for rank, place in enumerate(places):
                    code, out, err = place.end()
                    self.assertEqual((code, out), (0, f"{rank}:{rank} gone gone\n"), err)

    def test_each_place_runs_its_own_program(self):
        places = [self.start_exec(ompi(r, 2), "echo", word) for r, word in enumerate("ab")]
        self.assertEqual([place.end()[:2] for place in places], [(0, "a\n"), (0, "b\n")])

    def test_standard_input_reaches_the_place_that_has_it(self):
        reader, writer = os.pipe()
        first = self.start_exec(ompi(0, 2), "cat", stdin=reader)
        second = self.start_exec(ompi(1, 2), "cat")
        os.close(reader)
        os.write(writer, b"hello\n")
        os.close(writer)
        self.assertEqual(first.end()[:2], (0, "hello\n"))
        self.assertEqual(second.end()[:2], (0, ""))

    def test_a_script_in_between_and_two_jobs_one_after_the_other(self):
        script = f'"{REGROUP}" exec -- echo one && "{REGROUP}" exec -- echo two; exit $?'
        places = [self.start(ompi(r, 2), ["sh", "-c", script]) for r in range(2)]
        for place in places:
            code, out, err = place.end()
            self.assertEqual((code, out), (0, "one\ntwo\n"), err)

    def test_by_hand_it_is_a_job_of_one(self):
        self.assertEqual(self.start_exec({}, "sh", "-c", "echo $WORLD_SIZE; exit 5").end()[:2],
                         (5, "1\n"))

    def test_several_hosts_are_refused(self):
        code, _, err = self.start_exec(torchrun(0, 4, local=2), "true").end()
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-1 torchrun started 2 of its 4 ranks on this host", err)

    def test_a_place_that_does_not_come_is_named(self):
        options = ["--start-timeout", "11s"]
        places = [self.start_exec(ompi(r, 3), "true", options=options) for r in (0, 2)]
        ends = [place.end() for place in places]
        self.assertEqual([code for code, _, _ in ends], [69, 69])
        err = ends[0][2] + ends[1][2]
        self.assertIn("E-WAIT-1 waiting 10 s for place 1 of 3", err)
        self.assertRegex(err, r"E-RDZV-3 after 1[12] s still waiting for place 1 of 3")

    def test_a_launcher_without_a_size_is_refused(self):
        code, _, err = self.start_exec({"PMIX_RANK": 0, "PMIX_NAMESPACE": "n"}, "true").end()
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-4", err)

    def test_spares_take_places_from_the_ranks(self):
        places = [self.start_exec(ompi(r, 3), "sh", "-c", "echo $WORLD_SIZE",
                                  options=["--spares", "1"]) for r in range(3)]
        ends = [place.end() for place in places]
        self.assertEqual([code for code, _, _ in ends], [0, 0, 0], ends)
        self.assertEqual([out for _, out, _ in ends[:2]], ["2\n", "2\n"])

    def start_below_a_shell(self, variables, *words):
        """With a shell, which does not have the variables, as the place's own launcher."""
        settings = [f"{key}={value}" for key, value in variables.items()]
        return self.start({}, ["sh", "-c", '"$@"; exit $?', "sh", "env", *settings, REGROUP, "exec",
                               *words])

    def test_the_place_to_meet_is_named_by_hand(self):
        """Places that have no launcher in common; the first to come starts the agent."""
        meet = {"REGROUP_RDZV": f"unix:regroup-test/{os.getpid()}"}
        program = ["--", "sh", "-c", "echo $RANK of $WORLD_SIZE ${REGROUP_RDZV-gone}"]
        for more in ([], ["--control=tcp"]):
            for variables in (lambda r: {"REGROUP_RANK": r, "REGROUP_WORLD_SIZE": 2},
                              lambda r: ompi(r, 2)):
                with self.subTest((more, variables(0))):
                    places = [self.start_below_a_shell({**variables(r), **meet}, *more, *program)
                              for r in range(2)]
                    for rank, place in enumerate(places):
                        code, out, err = place.end()
                        self.assertEqual((code, out), (0, f"{rank} of 2 gone\n"), err)

    def test_a_place_to_meet_that_is_none_is_refused(self):
        code, _, err = self.start_exec({**ompi(0, 1), "REGROUP_RDZV": "10.0.0.1:99"}, "true").end()
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-4 REGROUP_RDZV=10.0.0.1:99 cannot be used", err)

    def test_an_agent_that_is_not_there_is_not_started(self):
        options = ["--agent", f"regroup-test/{os.getpid()}", "--start-timeout", "1s"]
        code, _, err = self.start_exec(ompi(0, 1), "true", options=options).end()
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-3 waited 1 s for the job's agent", err)

    def test_a_launcher_that_ends_before_the_agent_is_there(self):
        """The place ends with its launcher, and does not wait for --start-timeout."""
        place = self.start_below_a_shell(ompi(0, 1), "--agent", f"regroup-test/{os.getpid()}",
                                         "--start-timeout", "300s", "--", "true")
        self.assertIn("E-WAIT-1 waiting 10 s", place.process.stderr.readline())
        place.process.kill()
        _, _, err = place.end()  # the place holds the pipes until it ends
        self.assertIn("E-RDZV-3 the launcher ended before the job began", err)

    def meeting_place(self):
        start = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
        return f"\0regroup-exec/{os.getuid()}/{os.getpid()}-{start}"

    def test_garbage_at_the_meeting_place_changes_nothing(self):
        first = self.start_exec(ompi(0, 2), "echo", "a")
        strangers = []
        while len(strangers) < 20:
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                stranger.connect(self.meeting_place())
                stranger.send(os.urandom(200))
            except ConnectionRefusedError:
                stranger.close()
                self.assertIsNone(first.process.poll(), "the first place ended")
                continue
            strangers.append(stranger)
        second = self.start_exec(ompi(1, 2), "echo", "b")
        self.assertEqual([p.end()[:2] for p in (first, second)], [(0, "a\n"), (0, "b\n")])
        for stranger in strangers:
            stranger.close()

    @unittest.skipIf(os.getuid() != 0, "taking the place as another user needs root")
    def test_a_meeting_place_of_another_user_is_not_spoken_to(self):
        taken, ready = os.pipe()
        squatter = os.fork()
        if squatter == 0:
            os.setuid(65534)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            start = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(") ")[2].split()[19]
            listener.bind(f"\0regroup-exec/0/{os.getppid()}-{start}")
            listener.listen()
            os.write(ready, b"x")
            connection, _ = listener.accept()
            os._exit(0 if connection.recv(100) == b"" else 1)
        os.read(taken, 1)
        code, _, err = self.start_exec(ompi(0, 2), "true").end()
        self.assertEqual(code, 69)
        self.assertIn("E-RDZV-2", err)
        self.assertIn("belongs to user 65534", err)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(squatter, 0)[1]), 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + sys.argv[1:])
