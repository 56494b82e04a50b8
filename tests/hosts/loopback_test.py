#!/usr/bin/env python3
"""One job on several hosts, played by agents that are processes of one machine."""

import os
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from jobs import FAKE_RANK, REGROUP, JobsCase, all_pids, command_line, environment_of, until

HERE = ("--interface", "lo", "--starter", "env")


class Jobs(JobsCase):
    def two(self, *words, ranks=4, hosts="h1:2,h2:2", starter=HERE, **more):
        return self.start("-n", ranks, "--hosts", hosts, *starter, *words, **more)

    def test_ranks_run_on_both_hosts_and_print_with_their_labels(self):
        run = self.two("--", "sh", "-c", "echo $REGROUP_LOCAL_RANK of $REGROUP_LOCAL_SIZE at "
                       "$REGROUP_NODE_RANK of $REGROUP_NUM_NODES; echo err $RANK >&2")
        self.assert_ends(run)
        for rank, line in enumerate(("0 of 2 at 0 of 2", "1 of 2 at 0 of 2", "0 of 2 at 1 of 2",
                                     "1 of 2 at 1 of 2")):
            self.assertIn(f"{rank}: {line}\n", run.out)
            self.assertIn(f"{rank}: err {rank}\n", run.err)
        self.assertIn("4 ranks on 2 hosts", run.err)
        self.assertEqual({e["host"] for e in run.events("process_started")}, {"h1", "h2"})
        self.assertEqual(run.events("job_ended")[0]["ranks_finished"], 4)

    def test_ssh_is_the_starter_unless_told_otherwise(self):
        folder = Path(self.directory.name) / "my bin"
        folder.mkdir()
        (folder / "a regroup").symlink_to(REGROUP)
        ssh = folder / "ssh"  # as the real one: options, host, and the rest to a shell over there
        ssh.write_text("""#!/bin/sh
while :; do
  case $1 in -o) shift 2;; -p) port=$2; shift 2;; *) break;; esac
done
echo "to $1 port $port" >&2
shift
exec sh -c "$*"
""")
        ssh.chmod(0o755)
        hosts = Path(self.directory.name) / "hosts"
        hosts.write_text("me@h1 slots=1 ssh_port=2222\nh2 slots=1\n")
        run = self.start("-n", 2, "--hostfile", "hosts", "--interface", "lo", "--agent",
                         str(folder / "a regroup"), "--", FAKE_RANK,
                         environment={"PATH": f"{folder}:{os.environ['PATH']}"})
        self.assert_ends(run)
        self.assertIn("h1: to me@h1 port 2222", run.err)
        self.assertIn("h2: to h2 port", run.err)

    def test_this_host_is_one_of_them(self):
        run = self.start("-n", 3, "--hosts", "h1:1,localhost:2", *HERE, "--", "sh", "-c",
                         "echo at $REGROUP_NODE_RANK")
        self.assert_ends(run)
        for line in ("0: at 0", "1: at 0", "2: at 1"):
            self.assertIn(line, run.out)

    def test_everybody_is_told_where_the_others_are(self):
        run = self.two("--", FAKE_RANK, "address=at-")
        self.assert_ends(run)
        for rank in range(4):
            self.assertIn(f"{rank}: view epoch=1 seats=1,2,3,4", run.out)
            self.assertEqual(run.out.count(f"{rank}: place host=1 life=0 address=at-"), 2)
            self.assertEqual(run.out.count(f"{rank}: place host=2 life=0 address=at-"), 2)

    def test_the_programs_exit_code_is_the_jobs(self):
        run = self.two("--on-loss", "abort", "--", "sh", "-c",
                       '[ "$RANK" != 3 ] || exit 5; sleep 60')
        self.assert_ends(run, 5)
        self.assert_nothing_left(run)

    def test_a_killed_rank_is_replaced_by_a_spare_of_its_host(self):
        run = self.two("--spares", 2, "--", FAKE_RANK, "until=2", "kill=3", "keep=precious",
                       "address=at-")
        self.assert_ends(run)
        self.assertIn("3: assigned seat=3 life=1", run.out)
        self.assertIn("3: kept mirror=precious", run.out)
        self.assertIn("0: place host=2 life=1 address=at-", run.out)
        self.assertIn("SIGKILL", run.err)
        self.assertIn("rank 3 is on host h2 now; 3 kept", run.err)
        self.assertIn("4/4 ranks finished, 1 replaced", run.err)

    def test_a_rank_without_a_spare_is_started_again_where_it_was(self):
        run = self.two("--", FAKE_RANK, "until=2", "kill=2")
        self.assert_ends(run)
        self.assertIn("2: welcome seat=2 life=1", run.out)

    def test_a_group_has_one_number_on_all_hosts(self):
        run = self.two("--", FAKE_RANK, "group=dp")
        self.assert_ends(run)
        numbers = {line.split("id=")[1].split()[0] for line in run.out.splitlines()
                   if ": group dp id=" in line}
        self.assertEqual(len(numbers), 1, run.out)

    def test_ctrl_c_ends_everything(self):
        run = self.two("--spares", 1, "--", FAKE_RANK, "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        self.interrupt(run)
        self.assert_ends(run, 130)
        self.assert_nothing_left(run)

    def test_the_second_ctrl_c_kills(self):
        run = self.two("--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
        run.wait_for("0: up", "1: up", "2: up", "3: up")
        self.interrupt(run)
        run.wait_for("ending the job")
        began = time.monotonic()
        self.interrupt(run)
        self.assert_ends(run, 130)
        self.assertLess(time.monotonic() - began, 10)
        self.assert_nothing_left(run)

    def test_a_signal_reaches_all_ranks(self):
        run = self.two("--", FAKE_RANK, "signals", "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        run.process.send_signal(signal.SIGUSR2)
        run.wait_for("0: signal=USR2", "3: signal=USR2")
        self.interrupt(run)
        self.assert_ends(run, 130)

    def test_a_killed_launcher_leaves_nothing(self):
        run = self.two("--", "sh", "-c", "setsid sleep 300 & echo up; sleep 300")
        run.wait_for("0: up", "3: up")
        run.process.kill()
        self.assert_ends(run, 137)
        self.assert_nothing_left(run)

    def test_a_killed_agent_costs_its_ranks_and_its_host_comes_back(self):
        run = self.two("--spares", 2, "--", FAKE_RANK, "until=2", "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        os.kill(run.agent(2), signal.SIGKILL)
        run.wait_for("0: view epoch=2", "E-HOST-3", "2: view epoch=2", "3: view epoch=2")
        until(lambda: len([e for e in run.events("note") if e["about"] == "host"]) == 3,
              "the agent's return")
        os.kill(run.rank(0), signal.SIGKILL)  # the spare that takes its seat is made up for
        until(lambda: run.processes(f"REGROUP_HOST_ID={run.job()}.2", "REGROUP_SPARE=1"),
              "a spare on the host that is back")
        self.interrupt(run)
        self.assert_ends(run, 130)
        self.assert_nothing_left(run)

    def test_a_killed_coordinator_disturbs_nobody(self):
        run = self.two("--spares", 2, "--", FAKE_RANK, "until=2", "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        coordinator = [pid for pid in run.processes() if b"coordinator" in command_line(pid)]
        os.kill(coordinator[0], signal.SIGKILL)
        run.wait_for("starting it again")
        os.kill(run.rank(3), signal.SIGKILL)
        run.wait_for("0: view epoch=2")
        self.assertNotIn("epoch=3", run.out)
        self.interrupt(run)
        self.assert_ends(run, 130)

    def test_the_secret_stands_in_no_argument_and_no_environment(self):
        run = self.two("--", FAKE_RANK, "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        for pid in all_pids():
            environment = environment_of(pid)
            if f"REGROUP_JOB_ID={run.job()}".encode() not in environment:
                continue
            for word in environment + command_line(pid):
                digits = word.split(b"=")[-1]
                hexadecimal = all(c in b"0123456789abcdef" for c in digits)
                self.assertFalse(len(digits) == 64 and hexadecimal, word)
        self.interrupt(run)
        self.assert_ends(run, 130)

    def test_status_names_the_hosts(self):
        run = self.two("--", FAKE_RANK, "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        until(lambda: "h2" in self.status(run) and self.status(run).count("healed") == 4,
              "all four ranks in the status")
        self.interrupt(run)
        self.assert_ends(run, 130)

    @staticmethod
    def status(run):
        return os.popen(f"{REGROUP} status {run.job()}").read()

    def test_drain_and_scale_reach_other_hosts(self):
        run = self.two("--on-loss", "shrink", "--", FAKE_RANK, "until=2", "linger")
        run.wait_for("0: view epoch=1", "3: view epoch=1")
        os.system(f"{REGROUP} inject kill --rank 3 --job {run.job()}")
        run.wait_for("0: view epoch=2 seats=1,2,3,0")
        self.interrupt(run)
        self.assert_ends(run, 130)


class Refusals(JobsCase):
    def refused(self, code, *words, says, **more):
        run = self.start("-n", 2, *words, "--", "true", **more)
        self.assert_ends(run, code)
        for text in says:
            self.assertIn(text, run.err, str(run))
        self.assertNotIn("Traceback", run.err)
        return run

    def test_wrong_lists(self):
        self.refused(64, "--hosts", "a:1,a:1", says=["E-HOST-1", "host a is listed twice"])
        self.refused(64, "--hosts", "a:1", says=["E-HOST-1", "2 ranks do not fit"])
        self.refused(64, "--hosts", "a:x", says=["E-HOST-1", "'a:x' is no host"])
        self.refused(66, "--hostfile", "missing", says=["E-HOST-1", "missing"])
        self.refused(64, "--discover", "true", says=["E-HOST-7", "empty"])
        self.refused(64, "--starter", "env", says=["E-USE-12"])
        self.refused(64, "--hosts", "a:2", "--hostfile", "f", says=["E-USE-1", "--hostfile"])
        self.refused(69, "--hosts", "no-such-host.invalid:2", says=["E-HOST-8", "--interface"])
        self.refused(64, "--hosts", "a:2", "--interface", "no-such-if", says=["E-HOST-8"])

    def test_a_starter_that_is_not_there(self):
        self.refused(69, "--hosts", "h1:2", "--interface", "lo", "--starter", "/no/such/starter",
                     says=["E-HOST-2", "host h1 cannot be used", "/no/such/starter"])

    def test_a_host_that_ssh_cannot_reach(self):
        self.refused(69, "--hosts", "h1:1,h2:1", "--interface", "lo", "--starter",
                     "sh -c 'echo ssh: connect to host {host} port 22: Connection refused >&2; "
                     "exit 255' sh",
                     says=["E-HOST-2", "Connection refused", "exited with code 255"])

    def test_an_agent_that_is_not_there(self):
        self.refused(69, "--hosts", "h1:2", *HERE, "--agent", "/no/such/regroup",
                     says=["E-HOST-2", "/no/such/regroup"])

    def test_another_version(self):
        agent = Path(self.directory.name) / "old"
        agent.write_text("""#!/bin/sh
echo 'H{"regroup":1,"version":"0.0.9","host":"h1"}'
cat > orders
""")
        agent.chmod(0o755)
        self.refused(69, "--hosts", "h1:2", *HERE, "--agent", str(agent),
                     says=["E-HOST-2", "is regroup 0.0.9", "install the same one"])
        self.assertEqual((Path(self.directory.name) / "orders").read_text(), "",
                         "nothing is said to another version")

    def test_a_host_that_lacks_the_program(self):
        run = self.start("-n", 2, "--hosts", "h1:2", *HERE, "--", "./only-here")
        program = Path(self.directory.name) / "only-here"
        self.assert_ends(run, 66)
        self.assertFalse(program.exists())

    def test_noise_before_the_greeting_is_printed(self):
        run = self.start("-n", 2, "--hosts", "h1:2", "--interface", "lo", "--starter",
                         "sh -c 'echo Welcome to {host}; exec \"$@\"' sh", "--", "true")
        self.assert_ends(run)
        self.assertIn("h1: Welcome to h1", run.err)

    @unittest.skipUnless(shutil.which("mpirun.openmpi"), "no Open MPI")
    def test_another_launcher_starts_the_agents(self):
        run = self.start("-n", 2, "--hosts", "h1:1,h2:1", "--interface", "lo", "--starter",
                         "mpirun.openmpi --allow-run-as-root -n 1", "--", "sh", "-c",
                         "echo $REGROUP_NODE_RANK ${OMPI_COMM_WORLD_RANK-gone}")
        self.assert_ends(run)
        self.assertIn("0: 0 gone\n", run.out)
        self.assertIn("1: 1 gone\n", run.out)

    def test_an_agent_without_orders_ends(self):
        for said in ("", "{}\n", "rubbish\n"):
            done = subprocess.run([REGROUP, "agent", "--stdio"], input=said, text=True, timeout=30,
                                  capture_output=True)
            self.assertEqual(done.returncode, 69, done)
            self.assertTrue(done.stdout.startswith("H{"), done)
            if said:
                self.assertIn("E-HOST-4", done.stderr)

    def test_files_and_commands_name_hosts(self):
        (Path(self.directory.name) / "hosts").write_text("# two\nh1 slots=1\nh2:1\n")
        for words in (("--hostfile", "hosts"), ("--discover", "cat hosts")):
            run = self.start("-n", 2, *words, *HERE, "--", "sh", "-c", "echo $REGROUP_NODE_RANK")
            self.assert_ends(run)
            self.assertIn("0: 0\n", run.out)
            self.assertIn("1: 1\n", run.out)


if __name__ == "__main__":
    unittest.main()
