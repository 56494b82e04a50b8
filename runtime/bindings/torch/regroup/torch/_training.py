"""Steps that are done again when a rank is lost, and the state that a newcomer is given."""

import functools
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.parallel.distributed as torch_ddp
from torch.nn.parallel import DistributedDataParallel

from . import _C
from ._batches import Batches
from ._contributors import average_what_is_left
from ._errors import RankLostError, RevokedError
from ._objects import ObjectState
from ._optimizer import OptimizerState
from ._random import RandomState


def _named(given, kind, default):
    """One thing, a list or a dict of things, as a dict."""
    if given is None:
        return {}
    if isinstance(given, kind):
        return {default: given}
    if isinstance(given, dict):
        return given
    return {f"{default}{i}": thing for i, thing in enumerate(given)}


def attach(model=None, optim=None, state=None, volatile=None):
    """Registers what a newcomer must be given, and returns the Job whose steps() are to be run.

    Called once, on all ranks alike, when the program is set up: behind init_process_group, DDP's
    constructor, and loading of a checkpoint, before the first step.

    model: a module or several (list, dict), in host memory, with or without DDP. Parameters are
        replicated state; buffers are this rank's own, since forward changes them before the commit.
    optim: the optimizer, or several. The step is committed when the first of them is about to
        update, so all collectives of a step belong before that.
    state: {name: thing}, equal on all ranks between steps: a tensor, a module, or an object with
        state_dict() and load_state_dict() of plain values and tensors (schedulers, scalers).
    volatile: likewise, but this rank's own; restored when a step is begun again.
    Random generators of torch (CPU), random and numpy are registered without being asked.

    Memory: registered tensors stay at their address until the process ends.
    Errors: TypeError, ValueError (something that cannot be healed, named); CommError.
    """
    return Job(
        models=_named(model, torch.nn.Module, "model"),
        optimizers=_named(optim, torch.optim.Optimizer, "optim"),
        replicated=state or {},
        volatile=volatile or {},
    )


class Job:
    """This process's seat in the job, and its loop of steps. Use it from one thread."""

    def __init__(self, models, optimizers, replicated, volatile):
        if dist.is_initialized() and dist.get_debug_level() == dist.DebugLevel.DETAIL:
            raise RuntimeError(
                "TORCH_DISTRIBUTED_DEBUG=DETAIL doubles each call in a Gloo group, which does not "
                "outlive a loss; unset it to use attach()"
            )
        self._job = _C.attach()
        self._training = _C.Training(self._job)
        self._optimizers = [OptimizerState(n, o) for n, o in optimizers.items()]
        self._objects = []  # replicated
        self._own_objects = []  # volatile
        self._now = RandomState("random")
        self._at_epoch = RandomState("random_at_epoch")
        self._models = list(models.values())
        for name, model in models.items():
            self._add_model(name, model)
        for each in self._optimizers:
            self._add_all(each.memory(), False)
            each.optimizer.register_step_pre_hook(self._before_update)
            each.optimizer.register_step_post_hook(self._after_update)
        for name, thing in replicated.items():
            self._add_thing(name, thing, False, self._objects)
        for name, thing in volatile.items():
            self._add_thing(name, thing, True, self._own_objects)
        self._add_all(self._now.memory(), True)
        self._add_all(self._at_epoch.memory(), True)
        self._healed = not self._job.is_replacement
        self._step = None  # the step that is open
        self._committed = True
        self._lost = False  # it was not committed, and is to be begun again
        self._updated = set()
        for model in self._models:
            if isinstance(model, DistributedDataParallel):
                _settle_buckets(model)
                if self._job.goes_on_with_fewer:
                    average_what_is_left(model)

    # ---- what is registered

    def _add_all(self, memory, is_volatile):
        for name, tensor in memory:
            self._training.add(name, tensor.detach(), is_volatile)

    def _add_model(self, name, model):
        model = getattr(model, "module", model) if _is_wrapper(model) else model
        for kind, tensors in (("param", model.named_parameters), ("buffer", model.named_buffers)):
            for key, tensor in tensors():
                if type(tensor.data).__name__ == "DTensor":
                    raise TypeError(
                        f"{name}: {key} is a DTensor, of which each rank holds a part only; "
                        "attach() heals replicated parameters. Keep copies of such parts "
                        "elsewhere, as examples/11_fsdp2 does"
                    )
                self._add_all([(f"{name}.{kind}.{key}", tensor)], kind == "buffer")

    def _add_thing(self, name, thing, is_volatile, objects):
        if isinstance(thing, torch.Tensor):
            return self._add_all([(name, thing)], is_volatile)
        each = ObjectState(name, thing)
        objects.append(each)
        return self._add_all(each.memory(), is_volatile)

    def _gather(self):
        """Everything into the registered memory, between steps."""
        if self._committed:
            for each in (*self._optimizers, *self._objects):
                each.gather()
        self._gather_volatile()

    def _gather_volatile(self):
        self._now.gather()
        for each in self._own_objects:
            each.gather()

    def _scatter(self, newcomer):
        """What the registered memory holds, to a newcomer or to a step that is begun again."""
        for each in self._optimizers:
            each.scatter() if newcomer else each.scatter_hyper()
            each.optimizer.zero_grad(set_to_none=True)
        for each in (*self._objects, *self._own_objects):
            each.scatter()
        self._now.scatter()

    # ---- the job

    @property
    def rank(self):
        """This process's seat."""
        return self._job.rank

    @property
    def size(self):
        """Seats of the job."""
        return self._job.size

    @property
    def incarnation(self):
        """Which life of the job's processes this is; never used again."""
        return self._job.incarnation

    @property
    def is_replacement(self):
        """True when somebody else held this seat before."""
        return self._job.is_replacement

    @property
    def drained(self):
        """True once this process has left its seat by `regroup drain`: the program is to end."""
        return self._job.drained

    def reform(self):
        """Without steps (`--on-loss replace`): enters the newest view and heals newcomers. Called
        once when the set-up is over, and after each RankLostError; then run the request again."""
        self._gather()
        self._training.reform()
        if not self._healed:
            self._healed = True
            self._scatter(newcomer=True)

    # ---- steps

    def steps(self, loader, total):
        """Gives (step, batch) for steps 0..total-1, and a step again if a rank was lost in it. A
        newcomer waits here until it is healed, and begins with the step that the others are in.

        loader: as _batches.Batches says. The batch is kept for a second attempt: do not change it
        in place.
        """
        batches = Batches(loader, self._now, self._at_epoch)
        self._training.begin(total)
        while self._begin_step():
            batch = batches.get(self._step)
            yield self._step, batch
            if not self._committed and not self._lost:
                with self.step(self._step):
                    pass  # the program did not use step(): commit here
        self._step = None

    def _begin_step(self):
        self._gather()
        try:
            if not self._training.next():
                return False
        except Exception:
            if self._job.drained:
                return False
            raise
        self._step = self._training.index
        self._committed = self._lost = False
        self._losses_told = _C.losses_told()
        self._updated.clear()
        if not self._healed:
            self._healed = True
            self._scatter(newcomer=True)
        elif self._training.attempt > 1:
            self._scatter(newcomer=False)
        return True

    @contextmanager
    def step(self, step):
        """The body of one step. It is committed when the optimizer is about to update, at the
        latest at the body's end; after a loss before that, steps() gives the same step again."""
        if step != self._step:
            raise ValueError(f"step({step}) is not the one that steps() gave last: {self._step}")
        try:
            yield
            if not self._committed:
                self._commit()
        except RuntimeError as lost:
            # Who raises in a callback of a future, as DDP's communication hooks do, is named in the
            # text of a RuntimeError of torch's.
            told = _C.losses_told() > self._losses_told
            if not told and not isinstance(lost, (RankLostError, RevokedError)):
                raise
            self._lost = not self._committed
            if self._committed and len(self._updated) < len(self._optimizers):
                raise
            if self._committed:
                print(f"regroup: what followed the update in step {step} was cut short: {lost}",
                      file=sys.stderr, flush=True)

    def _commit(self):
        self._gather_volatile()
        self._training.commit()
        self._committed = True

    def _before_update(self, *_):
        if self._step is not None and not self._committed:
            self._commit()

    def _after_update(self, optimizer, *_):
        self._updated.add(id(optimizer))


def mark_model_broadcasts():
    """DDP's constructor broadcasts the model through buffers of its own, which no newcomer needs:
    heal brings it the parameters. Marked as such they need not be kept for it."""
    broadcast = torch_ddp._sync_module_states
    if getattr(broadcast, "_regroup", False):
        return

    @functools.wraps(broadcast)
    def marked(*args, **kwargs):
        before = _C.set_healed_later(True)
        try:
            return broadcast(*args, **kwargs)
        finally:
            _C.set_healed_later(before)

    marked._regroup = True
    torch_ddp._sync_module_states = marked


def _is_wrapper(model):
    return isinstance(model, (DistributedDataParallel, torch.nn.DataParallel))


def _settle_buckets(ddp):
    """Lays out DDP's buckets now, since a newcomer cannot take part in their later rebuild."""
    if ddp.static_graph:
        raise ValueError(
            "DDP(static_graph=True) learns from its first iteration, which a newcomer makes later "
            "than the others; use static_graph=False with attach()"
        )
    if ddp.find_unused_parameters:
        return  # its buckets are never rebuilt
    parameters, _ = ddp._build_params_for_reducer()
    _C.order_buckets(ddp.reducer, len(parameters))
    ddp.reducer._rebuild_buckets()
