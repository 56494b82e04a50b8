#!/usr/bin/env python3
"""The demo's own parts: reading a job's history, drawing kills, and noticing when a job lies."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
sys.path.insert(0, str(DEMO))

import plan  # noqa: E402
from story import EventTail, Progress, Story, percentile, phase_table, where_of  # noqa: E402

MS = 1_000_000


def event(kind, at_ms, **fields):
    time = f"2026-01-31T12:00:00.{int(at_ms * MS):09}Z"
    return {"v": 1, "time": time, "kind": kind, "offset_ns": int(at_ms * MS), **fields}


def two_ranks(*more):
    """A job of two ranks that is whole in epoch 1, and what happens then."""
    return [
        event("job_started", 0, job="j", pid=1, ranks=2, spares=1),
        event("process_started", 1, rank=0, incarnation=1, pid=101),
        event("process_started", 1, rank=1, incarnation=2, pid=102),
        event("process_started", 1, incarnation=3, pid=103),
        event("view_installed", 2, epoch=1, seats=[1, 2], resume_step=1),
        event("entered", 3, rank=0, incarnation=1, epoch=1),
        event("entered", 3, rank=1, incarnation=2, epoch=1),
        *more,
    ]


LOSS = event("lost", 100, rank=1, incarnation=2, epoch=1, operation="all_reduce", seq=7, step=8,
             phase="reduce", detect_ns=MS)
RECOVERY = [
    event("decided", 102, epoch=1, round=1, committed_step=7, cuts=[]),
    event("replaced", 103, rank=1, incarnation=3, previous=2, how="spare"),
    event("view_installed", 105, epoch=2, seats=[1, 3], resume_step=8),
    event("entered", 106, rank=0, incarnation=1, epoch=2),
    event("entered", 109, rank=1, incarnation=3, epoch=2,
          bytes_from=[{"donor": 0, "bytes": 5 * 10**6}]),
    event("first_operation", 110, epoch=2, rank=0),
]

RECOVERY_LATER = [{**one, "offset_ns": one["offset_ns"] + 1000 * MS} for one in RECOVERY[1:]]


def told(events):
    story = Story(2)
    for one in events:
        story.feed(one)
    return story


class StoryTest(unittest.TestCase):
    def test_a_loss_and_its_recovery_by_phase(self):
        story = told(two_ranks(LOSS, *RECOVERY))
        (loss,) = story.recovered()
        self.assertEqual(loss.where, "in all_reduce seq 7 of step 8, phase reduce")
        self.assertEqual([time // MS for _, time in loss.phases()], [1, 2, 3, 4, 1])
        self.assertEqual(loss.total_ns, 11 * MS)
        self.assertEqual(story.pid(1), 103)
        self.assertTrue(story.is_whole())
        self.assertIn("11.00", phase_table([loss])[-1])

    def test_a_kill_from_outside_is_counted_from_its_own_instant(self):
        story = told(two_ranks())
        story.note_kill(1, 97 * MS)
        for one in [LOSS, *RECOVERY]:
            story.feed(one)
        self.assertEqual(story.losses[0].total_ns, 13 * MS)

    def test_a_loss_without_an_operation_of_the_full_world_is_open(self):
        story = told(two_ranks(LOSS, *RECOVERY[:-1]))
        self.assertEqual(story.recovered(), [])

    def test_a_world_with_a_vacant_seat_is_no_recovery(self):
        story = told(two_ranks(
            LOSS,
            event("view_installed", 105, epoch=2, seats=[1, 0], resume_step=8),
            event("entered", 106, rank=0, incarnation=1, epoch=2),
            event("first_operation", 110, epoch=2, rank=0),
        ))
        self.assertEqual(story.recovered(), [])
        self.assertFalse(story.is_whole())
        self.assertIsNone(story.pid(1))

    def test_a_newcomer_that_dies_while_it_heals_counts_as_a_loss_of_its_own(self):
        second = event("lost", 107, rank=1, incarnation=3, epoch=2, operation="heal")
        story = told(two_ranks(
            LOSS,
            *RECOVERY[:4],
            second,
            event("process_started", 108, rank=1, incarnation=4, pid=104),
            event("view_installed", 115, epoch=3, seats=[1, 4], resume_step=8),
            event("entered", 116, rank=0, incarnation=1, epoch=3),
            event("entered", 119, rank=1, incarnation=4, epoch=3),
            event("first_operation", 120, epoch=3, rank=0),
        ))
        self.assertEqual([loss.incarnation for loss in story.recovered()], [2, 3])
        for loss in story.recovered():
            self.assertEqual(sum(time for _, time in loss.phases()), loss.total_ns)

    def test_a_member_that_goes_with_its_host_is_a_loss_once(self):
        cut = [event("wedged", 1100, epoch=1), event("decided", 1102, epoch=1, committed_step=7)]
        ended = event("lost", 3000, rank=1, incarnation=2, epoch=1, operation="all_reduce")
        story = told(two_ranks())
        story.note_kill(1, 100 * MS)
        for one in [*cut, *RECOVERY_LATER, ended]:
            story.feed(one)
        (loss,) = story.recovered()
        self.assertEqual([time // MS for _, time in loss.phases()], [1000, 2, 3, 4, 1])
        self.assertEqual(len(story.losses), 1)

    def test_a_lost_spare_is_no_kill(self):
        self.assertEqual(told(two_ranks(event("lost", 50, incarnation=3, text="x"))).losses, [])

    def test_a_newcomer_that_another_one_forestalled_is_no_kill(self):
        spared = event("lost", 104, rank=1, incarnation=9, epoch=1, text="removed from the job")
        self.assertEqual(len(told(two_ranks(LOSS, spared, *RECOVERY)).losses), 1)

    def test_words_for_a_rank_outside_operations(self):
        self.assertEqual(where_of({"operation": "none"}), "in the program's own code")

    def test_kinds_that_it_does_not_know_are_no_trouble(self):
        self.assertEqual(Story(2).feed(event("something_new", 1)), [])

    def test_lines_are_given_once_and_when_they_are_whole(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "events.jsonl")
            tail = EventTail(path)
            self.addCleanup(tail.close)
            self.assertEqual(tail.read(), [])
            path.write_text('{"a": 1}\n{"b"')
            self.assertEqual(tail.read(), [{"a": 1}])
            with path.open("a") as file:
                file.write(": 2}\n")
            self.assertEqual(tail.read(), [{"b": 2}])
            self.assertEqual(tail.read(), [])

    def test_percentiles_are_values_that_occurred(self):
        self.assertEqual(percentile([3, 1, 2, 4], 50), 2)
        self.assertEqual(percentile([3, 1, 2, 4], 99), 4)
        self.assertEqual(percentile([5], 50), 5)


class ProgressTest(unittest.TestCase):
    def test_lines_count_and_pace_fills_the_gaps(self):
        progress = Progress(epochs=100, expected_s=10)
        self.assertAlmostEqual(progress.share(0.5), 0.05)
        self.assertAlmostEqual(progress.share(5), 0.1, msg="never far ahead of what was said")
        progress.line(10, 5)
        self.assertAlmostEqual(progress.share(6), 0.12, msg="slower than expected")
        progress.line(10, 6)  # a replacement of rank 0 says it again
        self.assertAlmostEqual(progress.share(6), 0.12)
        progress.line(30, 7)
        self.assertAlmostEqual(progress.share(7.5), 0.35)


class PlanTest(unittest.TestCase):
    def test_every_seed_keeps_the_promises(self):
        for seed in range(200):
            drawn = plan.draw(seed, 4, 1000)
            self.assertGreaterEqual(drawn.kills, 6)
            outside = {rank for kill in drawn.external for rank in kill.ranks}
            inside = {kill.rank for kill in drawn.scripted}
            self.assertIn(0, outside | inside)
            self.assertFalse(outside & inside, "lives of scripted seats must not depend on others")
            operations = [kill for kill in drawn.scripted if kill.operation != "heal"]
            self.assertGreaterEqual(2 * (len(operations) + 1), drawn.kills)
            self.assertEqual([kill.what for kill in drawn.external].count("coordinator"), 1)
            self.assertEqual(drawn.external, sorted(drawn.external, key=lambda kill: kill.at))
            self.assertLess(max(kill.step or 0 for kill in drawn.scripted), 1000)

    def test_on_several_hosts_one_is_lost_behind_all_scripts(self):
        for seed in range(200):
            drawn = plan.draw(seed, 4, 1000, hosts=3)
            what = [kill.what for kill in drawn.external]
            self.assertEqual(what, ["kill", "coordinator", "cut", "kill", "heal"])
            self.assertEqual(drawn.external, sorted(drawn.external, key=lambda kill: kill.at))
            cut = drawn.external[2]
            self.assertLess(max(kill.step or 0 for kill in drawn.scripted), 1000 * cut.at)
            before = drawn.kills
            cut.ranks = (1, 2)
            self.assertEqual(drawn.kills, before + 2)

    def test_a_seed_is_a_plan(self):
        self.assertEqual(plan.draw(3, 4, 1000), plan.draw(3, 4, 1000))
        self.assertNotEqual(plan.draw(3, 4, 1000), plan.draw(4, 4, 1000))


# A launcher that writes the history it was told to, says what it was told to, and ends.
FAKE_REGROUP = f"""#!{sys.executable}
import os, pathlib, sys, threading
if sys.argv[1] != "run":
    print("{{}}")
    sys.exit(0)
folder = pathlib.Path(sys.argv[sys.argv.index("--log-dir") + 1])
told = pathlib.Path(__file__).parent / folder.name
(folder / "events.jsonl").write_text((told / "events").read_text())
print((told / "out").read_text(), flush=True)
if (told / "hangs").exists():
    threading.Event().wait()
sys.exit(int((told / "code").read_text()))
"""


class LiarTest(unittest.TestCase):
    """What the demo says about jobs that do not do what they should."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.bin = Path(folder.name, "bin")
        for name in ("calibration", "undisturbed", "disturbed"):
            (self.bin / name).mkdir(parents=True)
            self.tell(name, out=f"0: digest={'a' * 64}\n0: accuracy=0.97", code=0, events="")
        (self.bin / "regroup").write_text(FAKE_REGROUP)
        (self.bin / "regroup").chmod(0o755)
        self.logs = Path(folder.name, "logs")

    def tell(self, name, **what):
        for key, value in what.items():
            (self.bin / name / key).write_text(str(value))

    def demo(self, *arguments):
        command = [sys.executable, DEMO / "demo.py", "--bin-dir", self.bin, "--log-dir", self.logs]
        done = subprocess.run(
            [str(word) for word in [*command, *arguments]],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return done.returncode, done.stdout.splitlines()[-1]

    def expect_failed(self, why, *arguments):
        code, last = self.demo(*arguments)
        self.assertEqual(code, 1, last)
        self.assertTrue(last.startswith("demo: FAILED "), last)
        self.assertIn(why, last)

    def test_a_job_that_fails(self):
        self.tell("undisturbed", code=3)
        self.expect_failed("ended with 3")

    def test_a_program_without_a_result(self):
        self.tell("undisturbed", out="nothing")
        self.expect_failed("without its digest")

    def test_a_job_that_hangs(self):
        started = json.dumps(event("job_started", 0, job="j", pid=1, ranks=4))
        self.tell("disturbed", hangs="yes", events=started + "\n")
        self.expect_failed("no process in seat 0, 1, 2, 3", "--limit", "2")

    def test_a_job_that_nobody_could_kill(self):
        self.expect_failed("before 4 of the kills were due")


if __name__ == "__main__":
    unittest.main()
