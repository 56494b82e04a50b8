"""What the soak draws and how it counts."""

import unittest
from collections import Counter
from types import SimpleNamespace

import jobplan
from attack import Attack
from story import Story
from tally import Tally


class Plans(unittest.TestCase):
    def test_the_same_seed_draws_the_same_plan(self):
        self.assertEqual(jobplan.draw(7, 3), jobplan.draw(7, 3))
        self.assertNotEqual(jobplan.draw(7, 3), jobplan.draw(7, 4))
        self.assertNotEqual(jobplan.draw(7, 3), jobplan.draw(8, 3))

    def test_all_that_the_soak_promises_is_drawn(self):
        plans = [jobplan.draw(1, number) for number in range(400)]
        self.assertEqual({p.ranks for p in plans}, set(range(2, 9)))
        self.assertEqual({p.policy for p in plans}, set(jobplan.POLICIES))
        self.assertEqual({p.resident_mib for p in plans}, {100, 2048})
        self.assertEqual({p.cores for p in plans}, {False, True})
        self.assertTrue(any(p.launcher_killed for p in plans))
        kinds = Counter(v.kind for p in plans for v in p.volleys)
        self.assertEqual(set(kinds), set(jobplan.REPLAY_KINDS))

    def test_a_small_machine_gets_no_large_ranks(self):
        plans = [jobplan.draw(1, number, large_ranks_max=1) for number in range(200)]
        self.assertFalse(any(p.is_large() for p in plans))
        plans = [jobplan.draw(1, number) for number in range(200)]
        self.assertTrue(all(p.ranks <= 3 for p in plans if p.is_large()))


def view(epoch, seats, resume_step):
    return {"kind": "view_installed", "epoch": epoch, "seats": seats, "resume_step": resume_step}


def story_of(seats):
    story = Story()
    for seat, incarnation in enumerate(seats):
        story.feed(
            {"kind": "process_started", "rank": seat, "incarnation": incarnation, "pid": 0}
        )
    story.feed(view(1, list(seats), 1))
    return story


class Stories(unittest.TestCase):
    def test_whole_once_all_members_are_in_the_newest_view(self):
        story = story_of([11, 12])
        story.feed({"kind": "entered", "epoch": 1, "incarnation": 11})
        self.assertFalse(story.is_whole(False))
        story.feed({"kind": "entered", "epoch": 1, "incarnation": 12})
        self.assertTrue(story.is_whole(False))
        story.feed({"kind": "lost", "incarnation": 12, "evidence": "beacon"})
        self.assertFalse(story.is_whole(False))

    def test_a_vacant_seat_is_whole_only_where_seats_may_be_vacant(self):
        story = story_of([11, 12])
        story.feed({"kind": "view_installed", "epoch": 2, "seats": [11, 0], "resume_step": 5})
        story.feed({"kind": "entered", "epoch": 2, "incarnation": 11})
        self.assertFalse(story.is_whole(False))
        self.assertTrue(story.is_whole(True))


class Victims(unittest.TestCase):
    def test_the_anchor_is_spared_and_no_step_is_poisoned(self):
        attack = Attack(jobplan.draw(1, 0), story_of([11, 12, 13]), None)
        attack.anchor = 12
        self.assertEqual(sorted(attack._victims()), [11, 13])
        # Both hits belong to the step that the next view begins with, whatever this one's was.
        attack.hits[0] = 2
        self.assertEqual(attack._victims(), [13])
        attack.story.feed(view(2, [11, 12, 13], 9))
        attack._attribute_hits()
        self.assertEqual(attack._victims(), [13])
        attack.story.feed(view(3, [11, 12, 13], 10))
        attack._attribute_hits()
        self.assertEqual(sorted(attack._victims()), [11, 13])


def lost(evidence):
    return {"evidence": evidence}


def job_of(plan, how, evidence, failures=()):
    attack = SimpleNamespace(kills=Counter(how.values()), how=how, paused=[])
    story = SimpleNamespace(
        lost={i: lost(e) for i, e in evidence.items()}, resume_step=3, coordinator_restarts=0
    )
    return SimpleNamespace(plan=plan, attack=attack, story=story, failures=list(failures))


class Tallies(unittest.TestCase):
    def test_the_share_by_beacon_leaves_core_dumps_and_freezes_out(self):
        plan = jobplan.draw(1, 0)
        plan.cores, plan.resident_mib = True, 100
        tally = Tally()
        how = {1: "kill", 2: "kill", 3: "segv", 4: "freeze"}
        tally.add(job_of(plan, how, {1: "beacon", 2: "reaped", 3: "reaped", 4: "silence"}))
        self.assertEqual(tally.share_by_beacon(), 50)
        self.assertIsNone(tally.share_by_beacon(large_only=True))

    def test_a_failure_or_too_few_kills_fail_the_soak(self):
        plan = jobplan.draw(1, 0)
        tally = Tally()
        tally.add(job_of(plan, {1: "kill"}, {1: "beacon"}))
        self.assertEqual(tally.verdict(1, 0), "")
        self.assertIn("1 kills, 2 were wanted", tally.verdict(2, 0))
        tally.add(job_of(plan, {}, {}, [("wrong", "a bit")]))
        self.assertIn("1 wrong", tally.verdict(1, 0))
        self.assertIn("wrong=1 hangs=0", tally.line(1))


if __name__ == "__main__":
    unittest.main()
