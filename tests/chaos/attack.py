"""Carries the volleys of a plan out on a running job."""

import random
import signal
import time
from dataclasses import dataclass

import machine

KILLS = ("kill", "segv", "freeze", "coordinator", "spare", "launcher")
PAUSE_LIMIT_S = 0.2  # a pause up to this never evicts
LOSSES_OF_A_SEAT_MAX = 2  # in one step; the third would poison it, and that is another test


@dataclass
class Pending:
    at: float
    action: str  # kill, coordinator or cont
    incarnation: int = None


class Attack:
    """Chooses victims and sends signals. One anchor outlives each volley: a job that lost every
    holder of its state ends, and rightly so."""

    def __init__(self, plan, story, mark):
        self.plan = plan
        self.story = story
        self.mark = mark
        self.volleys = list(plan.volleys)
        self.pending = []
        self.anchor = None
        self.whole_since = None
        self.kills = dict.fromkeys(KILLS, 0)
        self.how = {}  # incarnation -> kill, segv or freeze: what we did to it
        self.paused = []  # (incarnation, seconds) of pauses that must not have evicted
        self.losses_at = {}  # (seat, step that is done again) -> how often
        self.hits = {}  # seat -> hits since the newest view, whose step the next one will tell
        self.epoch = 0
        self.last_act = time.monotonic()
        self._chance = random.Random(0)

    def is_over(self):
        return not self.volleys and not self.pending

    def turn(self, now):
        """Does what is due."""
        self._attribute_hits()
        due = [p for p in self.pending if p.at <= now]
        self.pending = [p for p in self.pending if p.at > now]
        for one in due:
            self._perform(one)
        if self.pending or not self._is_whole():
            self.whole_since = None
            return
        self.whole_since = self.whole_since or now
        if self.volleys and now - self.whole_since >= self.volleys[0].after_s:
            self.whole_since = None
            self._begin(self.volleys.pop(0))

    def wait_s(self, now):
        """Until something is due, at most."""
        due = [p.at - now for p in self.pending]
        return max(0.0, min([0.02, *due]))

    def _is_whole(self):
        """No loss of ours is still to be noticed, and all are in the newest view."""
        story = self.story
        if any(i not in story.lost and i not in story.finished for i in self.how):
            return False
        return story.is_whole(vacancies_allowed=self.plan.policy == "shrink")

    # ---- victims ----

    def _victims(self):
        """Incarnations that may be hit, in the order in which they are."""
        members = [
            i
            for i in self.story.members()
            if i != self.anchor
            and i not in self.story.lost
            and i not in self.how
            and self._losses_of(self.story.seat_of.get(i)) < LOSSES_OF_A_SEAT_MAX
        ]
        self._chance.shuffle(members)
        return members

    def _losses_of(self, seat):
        """In the step that was done again last, and in one that may still be the same."""
        return self.losses_at.get((seat, self.story.resume_step), 0) + self.hits.get(seat, 0)

    def _attribute_hits(self):
        if self.story.epoch == self.epoch:
            return
        self.epoch = self.story.epoch
        for seat, count in self.hits.items():
            place = (seat, self.story.resume_step)
            self.losses_at[place] = self.losses_at.get(place, 0) + count
        self.hits.clear()

    def _hit(self, incarnation, number, how):
        pid = self.story.pids.get(incarnation)
        if pid is None or incarnation in self.how or incarnation in self.story.lost:
            return False
        if not machine.send_signal(pid, number, self.mark):
            return False
        self.last_act = time.monotonic()
        self.how[incarnation] = how
        self.kills[how] += 1
        seat = self.story.seat_of.get(incarnation)
        self.hits[seat] = self.hits.get(seat, 0) + 1
        return True

    # ---- volleys ----

    def _begin(self, volley):
        self._chance = random.Random(volley.chance)
        members = self.story.members()
        if not members:
            return
        self.anchor = self._chance.choice(members)
        self.last_act = time.monotonic()
        getattr(self, "_begin_" + volley.kind)(volley)

    def _later(self, gaps_ms, action):
        at = time.monotonic()
        for gap in gaps_ms:
            at += gap / 1e3
            self.pending.append(Pending(at, action))

    def _kill_one(self, number=signal.SIGKILL, how="kill"):
        for incarnation in self._victims():
            if self._hit(incarnation, number, how):
                return True
        return False

    def _begin_kill(self, volley):
        self._kill_one()

    def _begin_segv(self, volley):
        self._kill_one(signal.SIGSEGV, "segv")

    def _begin_burst(self, volley):
        others = len(self._victims())
        count = max(1, min(others, round(volley.share * others)))
        self._kill_one()
        self._later(volley.gaps_ms[: count - 1], "kill")

    def _begin_cascade(self, volley):
        self._kill_one()
        self._later(volley.gaps_ms[: 1 + round(volley.share * 2)], "kill")

    def _begin_headless(self, volley):
        self._kill_coordinator()
        self._later(volley.gaps_ms, "kill")

    def _begin_coordinator(self, volley):
        self._kill_coordinator()

    def _kill_coordinator(self):
        pid = machine.coordinator_of(self.story.launcher_pid)
        if pid and machine.send_signal(pid, signal.SIGKILL, self.mark):
            self.kills["coordinator"] += 1
            self.last_act = time.monotonic()

    def _begin_spare(self, volley):
        for incarnation in self.story.spares():
            pid = self.story.pids[incarnation]
            if incarnation not in self.how and machine.send_signal(pid, signal.SIGKILL, self.mark):
                self.how[incarnation] = "kill"
                self.kills["spare"] += 1
                return

    def _begin_pause(self, volley):
        """Stops one rank for less than what may evict; how long it was is measured."""
        victims = self._victims()
        if not victims:
            return
        pid = self.story.pids[victims[0]]
        began = time.monotonic()
        if not machine.send_signal(pid, signal.SIGSTOP, self.mark):
            return
        self._wait(volley.gaps_ms[0] / 1e3)
        machine.send_signal(pid, signal.SIGCONT, self.mark)
        lasted = time.monotonic() - began
        self.last_act = time.monotonic()
        # A machine that kept this driver from waking in time proves nothing.
        if lasted <= PAUSE_LIMIT_S:
            self.paused.append((victims[0], lasted))

    @staticmethod
    def _wait(seconds):
        signal.sigtimedwait([], seconds)

    def _begin_freeze(self, volley):
        for incarnation in self._victims():
            if self._hit(incarnation, signal.SIGSTOP, "freeze"):
                # Whoever comes back after its eviction must find itself fenced.
                at = time.monotonic() + volley.gaps_ms[0] / 1e3
                self.pending.append(Pending(at, "cont", incarnation))
                return

    def _perform(self, one):
        if one.action == "cont":
            pid = self.story.pids.get(one.incarnation)
            machine.send_signal(pid, signal.SIGCONT, self.mark)
            if one.incarnation not in self.story.lost:
                # Woken before anybody was sure: it goes on.
                self.how.pop(one.incarnation, None)
                self.kills["freeze"] -= 1
        else:
            self._kill_one()
