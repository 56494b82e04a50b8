#!/usr/bin/env python3
"""The PyTorch binding, whole jobs of it: operations, stock DDP beside Gloo, losses with and without
attach(). Runs with the Python of the virtual environment that ./dev test makes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch.distributed as dist

REGROUP = os.environ["REGROUP_BINARY"]
HERE = Path(__file__).resolve().parent
PATIENCE_S = 100


class Ended:
    """A command and what it left."""

    def __init__(self, words, directory, environment=None):
        variables = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        variables |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | (environment or {})
        process = subprocess.Popen(words, cwd=directory, env=variables, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        try:
            self.out, self.err = process.communicate(timeout=PATIENCE_S)
            self.hung = False
        except subprocess.TimeoutExpired:
            process.terminate()
            self.out, self.err = process.communicate()
            self.hung = True
        self.code = process.returncode

    def story(self):
        return f"exit code {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"

    def digests(self):
        return re.findall(r"rank \d+ of \d+ digest=(\w+)", self.out)

    def losses(self):
        return {int(s): float(v) for s, v in re.findall(r"step (\d+) loss (\S+)", self.out)}


class Jobs(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="regroup-torch.")
        self.addCleanup(self.directory.cleanup)

    def run_job(self, flags, program, *arguments, environment=None):
        words = [REGROUP, "run", "--log-dir", "logs", *flags, "--", sys.executable,
                 str(HERE / program), *arguments]
        return Ended(words, self.directory.name, environment)

    def train(self, flags, *arguments, environment=None):
        ended = self.run_job(flags, "train_ddp.py", *arguments, environment=environment)
        self.assertFalse(ended.hung, ended.story())
        return ended

    def assert_trained(self, ended, ranks):
        self.assertEqual(ended.code, 0, ended.story())
        self.assertEqual(len(ended.digests()), ranks, ended.story())
        self.assertEqual(len(set(ended.digests())), 1, ended.story())
        return ended.digests()[0]

    def killed(self, flags, optimizer, *kills):
        """The training with attach(), in which ranks die; each kill is RANK:STEP:WHERE."""
        deaths = [word for kill in kills for word in ("--die", kill)]
        ended = self.train(flags, "--attach", "--optimizer", optimizer, *deaths)
        self.assertEqual(ended.err.count("SIGKILL"), len(kills), ended.story())
        return ended


class TorchTest(Jobs):
    def test_operations(self):
        ended = self.run_job(["-n", "3"], "operations.py")
        self.assertFalse(ended.hung, ended.story())
        self.assertEqual(ended.code, 0, ended.story())
        self.assertEqual(len(re.findall(r"rank \d: \d+ checks", ended.out)), 3, ended.story())

    def with_mpirun(self):
        if not shutil.which("mpirun"):
            return self.train(["-n", "2"])
        words = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "2", REGROUP, "exec",
                 "--", sys.executable, str(HERE / "train_ddp.py")]
        return Ended(words, self.directory.name)

    def test_stock_ddp_has_gloos_curve_and_always_the_same_bits(self):
        first = self.train(["-n", "2"])
        digest = self.assert_trained(first, 2)
        self.assertEqual(self.assert_trained(self.with_mpirun(), 2), digest)
        killed = self.killed(["-n", "2", "--spares", "1"], "adamw", "1:0:start", "0:3:backward")
        self.assertEqual(self.assert_trained(killed, 2), digest, killed.story())
        self.assertEqual(killed.losses(), first.losses(), killed.story())
        # Gloo meets in our store, too.
        gloo = self.train(["-n", "2"], "--backend", "gloo")
        self.assert_trained(gloo, 2)
        self.assertEqual(set(gloo.losses()), set(range(12)), gloo.story())
        for step, loss in gloo.losses().items():
            self.assertAlmostEqual(first.losses()[step], loss, delta=1e-5 * abs(loss) + 1e-7)

    def test_without_attach_a_loss_is_a_typed_error(self):
        ended = self.run_job(["-n", "2"], "without_attach.py")
        self.assertFalse(ended.hung, ended.story())
        self.assertNotEqual(ended.code, 0, ended.story())
        self.assertRegex(ended.out, r"rank 0 step 8: .*more than 64 MiB", ended.story())

    def test_ranks_leave_with_a_call_under_way(self):
        for how in ("destroy", "exit"):
            ended = self.run_job(["-n", "2"], "leaving.py", how)
            self.assertFalse(ended.hung, ended.story())
            self.assertEqual(ended.code, 0, ended.story())
            self.assertEqual((ended.out.count("let go"), ended.out.count("ended")), (2, 2),
                             ended.story())
            self.assertNotIn("replaced", ended.err, ended.story())

    def test_another_torch_is_refused_by_name(self):
        script = ("import sys, types; other = types.ModuleType('regroup.torch._built_for');"
                  "other.torch = '1.2.3'; sys.modules['regroup.torch._built_for'] = other;"
                  "import regroup.torch")
        ended = Ended([sys.executable, "-c", script], self.directory.name)
        for word in ("ImportError", "1.2.3", "pip install"):
            self.assertIn(word, ended.err)

    def test_one_rank_needs_no_launcher(self):
        script = ("import torch, torch.distributed as d, regroup.torch;"
                  "d.init_process_group('regroup', init_method='tcp://127.0.0.1:0', rank=0,"
                  " world_size=1); x = torch.ones(3); d.all_reduce(x); print(x.sum().item());"
                  "import os; print('threads', len(os.listdir('/proc/self/task')))")
        ended = Ended([sys.executable, "-c", script], self.directory.name)
        self.assertEqual(ended.code, 0, ended.story())
        self.assertIn("3.0", ended.out)
        script = script.replace("world_size=1", "world_size=2").replace(
            "tcp://127.0.0.1:0", "file://" + self.directory.name + "/meet")
        ended = Ended([sys.executable, "-c", script], self.directory.name)
        self.assertIn("regroup run -n 2", ended.err)


class MoreTest(Jobs):
    """What takes longer: ./dev test --all, and with another torch."""

    def test_without_a_spare_and_with_state_made_at_the_first_update(self):
        digest = self.assert_trained(self.train(["-n", "2"], "--optimizer", "sgd"), 2)
        killed = self.killed(["-n", "2"], "sgd", "0:7:update")
        self.assertEqual(self.assert_trained(killed, 2), digest, killed.story())

    def test_a_loss_in_a_communication_hook_of_the_programs_own(self):
        whole = self.assert_trained(self.train(["-n", "2"], "--attach", "--hook"), 2)
        ended = self.train(["-n", "2", "--spares", "1"], "--attach", "--hook", "--die",
                           "1:4:start")
        self.assertEqual(ended.err.count("SIGKILL"), 1, ended.story())
        self.assertEqual(self.assert_trained(ended, 2), whole, ended.story())

    def test_what_stands_on_groups(self):
        ended = self.run_job(["-n", "3"], "consumers.py")
        self.assertFalse(ended.hung, ended.story())
        self.assertEqual(ended.code, 0, ended.story())
        self.assertEqual(len(re.findall(r"rank \d: 7 parts", ended.out)), 3, ended.story())

    def test_carry_on_finishes_the_step_with_the_others(self):
        ended = self.train(["-n", "3", "--spares", "1", "--on-loss", "carry_on"], "--attach",
                           "--carry-on", "--steps", "40", "--die", "0:5:backward")
        self.assertEqual(ended.err.count("SIGKILL"), 1, ended.story())
        self.assert_trained(ended, 3)
        self.assertRegex(ended.out, r"rank 1 step 5 with \[1, 2\]", ended.story())

    def test_shrink_does_the_step_again_with_those_that_are_left(self):
        ended = self.train(["-n", "4", "--on-loss", "shrink"], "--attach", "--carry-on",
                           "--steps", "20", "--die", "0:5:backward", "--die", "2:9:update")
        self.assertEqual(ended.err.count("SIGKILL"), 2, ended.story())
        self.assert_trained(ended, 2)
        self.assertRegex(ended.out, r"rank 1 step 5 with \[1, 2, 3\]", ended.story())
        self.assertRegex(ended.out, r"rank 3 step 10 with \[1, 3\]", ended.story())

    def test_what_cannot_be_done_without_a_rank_is_said(self):
        for policy in ("carry_on", "shrink"):
            ended = self.run_job(["-n", "3", "--on-loss", policy], "needs_all.py")
            self.assertFalse(ended.hung, ended.story())
            self.assertNotEqual(ended.code, 0, ended.story())
            self.assertRegex(ended.out + ended.err, "CommError: .*all_gather.*2 of its 3 ranks "
                             "left.*only all_reduce and barrier can do with fewer", ended.story())

    def test_buffers_that_a_lost_rank_would_broadcast_are_refused(self):
        ended = self.train(["-n", "2", "--on-loss", "shrink"], "--attach")
        self.assertNotEqual(ended.code, 0, ended.story())
        self.assertRegex(ended.out + ended.err, "ValueError: .*shrink.*broadcast_buffers=False",
                         ended.story())

    def reconfigured(self, flags, policy):
        ended = self.run_job(["-n", "3", "--on-loss", policy, *flags], "reconfigure.py", policy)
        self.assertFalse(ended.hung, ended.story())
        self.assertEqual(ended.code, 0, ended.story())
        return {int(r): int(n) for r, n in re.findall(r"rank (\d): reconfigured (\d+)", ended.out)}

    @unittest.skipUnless(hasattr(dist, "_reconfigure"), "this torch has no reconfigure")
    def test_reconfigure_shrinks_grows_and_cures(self):
        self.assertEqual(set(self.reconfigured([], "shrink")), {0, 2})

    @unittest.skipUnless(hasattr(dist, "_reconfigure"), "this torch has no reconfigure")
    def test_reconfigure_takes_in_a_newcomer(self):
        self.assertEqual(self.reconfigured(["--spares", "1"], "replace"), {0: 1, 1: 2, 2: 2})

    @unittest.skipUnless(hasattr(dist, "_reconfigure"), "this torch finds no backends by itself")
    def test_torch_finds_the_backend_by_its_name(self):
        ended = self.run_job(["-n", "2"], "without_import.py")
        self.assertFalse(ended.hung, ended.story())
        self.assertEqual(ended.code, 0, ended.story())
        self.assertEqual(sorted(re.findall(r"rank (\d) of 2: \[2.0, 2.0\]", ended.out)), ["0", "1"],
                         ended.story())

    @unittest.skipUnless(importlib.util.find_spec("torchft"), "there is no torchft")
    def test_the_group_for_torchft(self):
        ended = self.run_job(["-n", "3", "--on-loss", "shrink"], "torchft_ranks.py")
        self.assertFalse(ended.hung, ended.story())
        self.assertEqual(ended.code, 0, ended.story())
        self.assertEqual(sorted(re.findall(r"rank (\d): configured (\d)", ended.out)),
                         [("1", "5"), ("2", "4")], ended.story())


if __name__ == "__main__":
    unittest.main(verbosity=2)
