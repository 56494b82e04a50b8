"""The state of each rank twice: in its own process and in that of the next rank.

What a rank holds alone (its shards of the weights and of the optimizer's state) dies with it,
unless somebody else has a copy. Rank r + 1 is the guard of rank r.
"""

import torch
import torch.distributed as dist


class Buddies:
    """Collective: all ranks make one, and call it alike."""

    def __init__(self, numel):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.guard, self.ward = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        largest = torch.tensor([numel])
        dist.all_reduce(largest, dist.ReduceOp.MAX)  # shards differ in size
        self.numel, self.room = numel, largest.item()
        self.own = {}  # by step: this rank's state at the step's beginning
        self.wards = {}  # that of the rank before

    def keep(self, step, state):
        """All ranks hand their state at the beginning of `step` to their guards. The one of the
        step before stays until the next call: this step may still be lost."""
        mine = torch.zeros(self.room)
        mine[: self.numel] = state
        received = torch.empty(self.room)
        self._exchange([(mine, self.guard)], [(received, self.ward)])
        self.own = {s: held for s, held in self.own.items() if s == step - 1} | {step: mine}
        self.wards = {s: held for s, held in self.wards.items() if s == step - 1} | {step: received}

    def at(self, step, initial):
        """This rank's state at the beginning of `step`, which a newcomer gets from its guard, and
        begins step 0 with `initial`. All ranks call it before each attempt."""
        if step == 0:
            self.own.setdefault(0, torch.cat([initial, torch.zeros(self.room - self.numel)]))
        held = [torch.zeros(2, dtype=torch.bool) for _ in range(self.size)]
        dist.all_gather(held, torch.tensor([step in self.own, step in self.wards]))
        if not all(flags.all() for flags in held):
            self._restore(step, held)
        return self.own[step][: self.numel]

    def _restore(self, step, held):
        bereft = [r for r in range(self.size) if not held[r][0]]
        for r in bereft:
            if not held[(r + 1) % self.size][1]:
                raise RuntimeError(f"rank {r} was lost together with its guard")
        got = torch.empty(self.room)
        self._exchange([(self.wards[step], self.ward)] if self.ward in bereft else [],
                       [(got, self.guard)] if self.rank in bereft else [])
        if self.rank in bereft:
            self.own[step] = got
        self.keep(step, self.own[step][: self.numel])

    @staticmethod
    def _exchange(sends, receives):
        batch = [dist.P2POp(dist.isend, tensor, other) for tensor, other in sends]
        batch += [dist.P2POp(dist.irecv, tensor, other) for tensor, other in receives]
        for work in dist.batch_isend_irecv(batch) if batch else []:
            work.wait()
