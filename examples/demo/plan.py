"""Who is killed when: drawn from a seed, printed, and the same for the same seed."""

import random
from dataclasses import dataclass

IN_ALL_REDUCE = (
    "after_copy_in",
    "after_publish",
    "after_await",
    "after_reduce",
    "before_complete",
    "after_complete",
)
IN_COMMIT = ("before_prepare", "after_prepare")


@dataclass
class Scripted:
    """A rank that dies by itself at an exact point; `life` counts the lives of its seat from 0."""

    rank: int
    life: int
    operation: str
    phase: str = ""
    step: int = None

    def rule(self):
        keys = [f"rank={self.rank}", f"inc={self.life}", f"op={self.operation}"]
        if self.phase:
            keys.append(f"phase={self.phase}")
        if self.step is not None:
            keys.append(f"step={self.step}")
        return ",".join(keys) + ":kill"


@dataclass
class External:
    """What is done from outside after about this share of the training. `what`: "kill" (SIGKILL to
    these ranks), "coordinator" (SIGKILL to it), "cut" (a host off the network; `ranks` are known
    once it is done) or "heal" (that host is back on it).

    Several ranks die one after the other, `gap_s` apart: the later ones while the recovery from
    the first is under way.
    """

    at: float
    what: str
    ranks: tuple = ()
    gap_s: float = 0.0

    def describe(self):
        when = f"at {self.at:.0%} of the training"
        if self.what == "coordinator":
            return f"SIGKILL from outside {when}: the coordinator"
        if self.what == "cut":
            return f"cut off the network {when}: a host with ranks, but not the launcher's"
        if self.what == "heal":
            return f"back on the network {when}: that host"
        text = f"SIGKILL from outside {when}: "
        text += " and ".join(f"rank {rank}" for rank in self.ranks)
        return text + (f", {self.gap_s * 1e3:.1f} ms apart" if self.gap_s else "")


@dataclass
class Plan:
    scripted: list
    external: list

    @property
    def kills(self):
        return len(self.scripted) + sum(len(kill.ranks) for kill in self.external)

    def script(self):
        """The value of REGROUP_FAULTS."""
        return ";".join(kill.rule() for kill in self.scripted)

    def describe(self):
        lines = [f"  at a point of its own: {kill.rule()}" for kill in self.scripted]
        return lines + [f"  {kill.describe()}" for kill in self.external]


def draw(seed, ranks, steps, hosts=1):
    """Eight kills of ranks and one of the coordinator; on several hosts a whole host in place of
    two of the former.

    Two seats die by script and two from outside, so that the number of a scripted life does not
    depend on when the others happen to die. Rank 0 is always among the four.
    """
    if ranks < 4:
        raise ValueError("the plan needs at least 4 ranks")
    chance = random.Random(seed)
    others = list(range(1, ranks))
    chance.shuffle(others)
    seats = [0, *others[:3]]
    chance.shuffle(seats)
    first, second, third, fourth = seats

    def step(low, high):
        return int(steps * chance.uniform(low, high))

    scripted = [
        Scripted(first, 0, "all_reduce", chance.choice(IN_ALL_REDUCE), step(0.05, 0.15)),
        # The newcomer dies while it heals: its seat's next life finishes what it began.
        Scripted(first, 1, "heal", "take"),
        Scripted(second, 0, "commit", chance.choice(IN_COMMIT), step(0.3, 0.4)),
        Scripted(first, 2, "all_reduce", chance.choice(IN_ALL_REDUCE), step(0.75, 0.85)),
    ]
    external = [
        External(chance.uniform(0.18, 0.26), "kill", (third,)),
        External(chance.uniform(0.44, 0.50), "coordinator"),
        External(chance.uniform(0.52, 0.60), "kill", (fourth,)),
        External(
            chance.uniform(0.64, 0.70), "kill", (third, fourth), chance.uniform(0.001, 0.008)
        ),
    ]
    if hosts > 1:
        # Who is on the host is in no script any more: the lives that scripts count are over.
        scripted.pop()
        external[2] = External(external[2].at, "cut")
        external.append(External(chance.uniform(0.75, 0.80), "heal"))
    return Plan(scripted, external)
