"""What happens in a chaos job: drawn from (seed, number of the job), the same for the same two."""

import random
from dataclasses import dataclass, field

RANKS_MIN = 2
RANKS_MAX = 8
SMALL_MIB = 100
LARGE_MIB = 2048
LARGE_RANKS_MAX = 3

# What one volley does, and how often it is drawn.
REPLAY_KINDS = {
    "kill": 26,  # SIGKILL to one rank
    "burst": 14,  # to several within milliseconds
    "cascade": 20,  # to one, then to others while the recovery is under way
    "segv": 8,  # SIGSEGV, with or without a core dump by the job's limit
    "pause": 10,  # SIGSTOP and SIGCONT within 200 ms: must not evict
    "freeze": 4,  # SIGSTOP for seconds: evicted, replaced, and dead afterwards
    "coordinator": 6,  # SIGKILL to the coordinator
    "headless": 8,  # to the coordinator and to a rank
    "spare": 4,  # to a spare
}
SHRINK_KINDS = {"kill": 30, "burst": 6, "cascade": 10, "segv": 10, "pause": 14, "headless": 10}
ABORT_KINDS = {"kill": 5, "segv": 3, "burst": 2, "headless": 2}
POLICIES = {"replay": 60, "carry_on": 16, "shrink": 12, "abort": 8}

PAUSE_MS = (5, 180)
FREEZE_MS = (2500, 4500)


@dataclass
class Volley:
    kind: str
    after_s: float  # from the moment the job is whole
    share: float = 0.5  # how many of those that may be hit, for several victims
    gaps_ms: list = field(default_factory=list)  # between one victim and the next
    chance: int = 0  # seed of the choice of victims


@dataclass
class JobPlan:
    seed: int
    number: int
    ranks: int
    spares: int
    policy: str
    resident_mib: int
    cores: bool  # a SIGSEGV leaves a core dump
    volleys: list
    launcher_killed: bool  # the job ends by SIGKILL to its launcher

    def describe(self):
        words = [f"-n {self.ranks} --spares {self.spares} {self.policy} {self.resident_mib} MiB"]
        if self.cores:
            words.append("core dumps")
        if self.launcher_killed:
            words.append("launcher killed at the end")
        return ", ".join(words)

    def is_large(self):
        return self.resident_mib >= LARGE_MIB


def weighed(chance, weights):
    return chance.choices(list(weights), list(weights.values()))[0]


def draw_volley(chance, kind):
    gaps = []
    if kind == "burst":
        gaps = [chance.choice((0, 0, chance.uniform(0, 3))) for _ in range(RANKS_MAX)]
    elif kind == "cascade":
        # From within the agreement to within the heal.
        gaps = [chance.choice((0.3, 1, 3, 10, 30, 60)) * chance.uniform(0.5, 1.5) for _ in range(3)]
    elif kind == "headless":
        gaps = [chance.choice((0, 1, 5, 30)) * chance.uniform(0, 1)]
    elif kind == "pause":
        gaps = [chance.uniform(*PAUSE_MS)]
    elif kind == "freeze":
        gaps = [chance.uniform(*FREEZE_MS)]
    return Volley(
        kind,
        chance.expovariate(1 / 0.25),
        chance.uniform(0.2, 1),
        gaps,
        chance.getrandbits(32),
    )


def draw(seed, number, large_ranks_max=LARGE_RANKS_MAX, policies=tuple(POLICIES)):
    """The plan of one job. `large_ranks_max`: for how many ranks of 2 GiB this machine is good."""
    chance = random.Random(seed * 1_000_003 + number)
    policy = weighed(chance, {name: POLICIES[name] for name in policies})
    large = chance.random() < 0.15
    ranks = chance.randint(RANKS_MIN, RANKS_MAX)
    spares = chance.choice((0, 1, 1, 2))
    cores = chance.random() < 0.3
    launcher_killed = chance.random() < 0.06
    volleys = chance.randint(8, 16)
    if large and large_ranks_max >= RANKS_MIN:
        ranks = 2 + ranks % (min(large_ranks_max, LARGE_RANKS_MAX) - 1)
        spares = min(spares, 1)
        cores = False  # writing gigabytes to the disk is no test of ours
        volleys //= 2
    else:
        large = False
    kinds = REPLAY_KINDS
    if policy == "shrink":
        kinds, spares, launcher_killed = SHRINK_KINDS, 0, False
    if policy == "abort":
        kinds, volleys, launcher_killed = ABORT_KINDS, 1, False
    return JobPlan(
        seed=seed,
        number=number,
        ranks=ranks,
        spares=spares,
        policy=policy,
        resident_mib=LARGE_MIB if large else SMALL_MIB,
        cores=cores,
        volleys=[draw_volley(chance, weighed(chance, kinds)) for _ in range(volleys)],
        launcher_killed=launcher_killed,
    )
