"""torchft's reconfigurable process group, over Regroup.

    from regroup.torchft import ProcessGroupRegroup
    manager = torchft.Manager(pg=ProcessGroupRegroup(timeout=timedelta(seconds=30)), ...)

The replicas are processes of one job of Regroup, started under `--on-loss shrink`, or `replace` to
have spares: `regroup run -n 2 --on-loss shrink -- python train.py`. torchft decides who takes part,
and calls configure() again whenever that changes; after a loss that enters the job's next epoch.
"""

import secrets
from datetime import timedelta

import torch
import torch.distributed as dist
from torchft.process_group import ProcessGroupWrapper

import regroup.torch
from regroup.torch import _C

_HANDLE = "regroup/handle/{}"
_NUMBER = "regroup/number"


class ProcessGroupRegroup(ProcessGroupWrapper):
    """All operations of torchft's groups, reduce_scatter and all-to-all among them, in host memory.

    timeout: of each operation, and of configure(). Failures are regroup.torch's errors.
    """

    def __init__(self, timeout=timedelta(seconds=60)):
        super().__init__(timeout)
        self._memberships = None
        self._backend = None  # the newest one
        self._join_failed = False

    def getBackendName(self):
        return "torchft-regroup"

    def _create_pg(self, store, rank, world_size):
        if self._memberships is None:
            if _C.is_launched():
                _C.attach(self._timeout.total_seconds())
            self._memberships = _C.Memberships(f"torchft/{self._group_rank or 0}")
        if rank == 0:
            store.set(_NUMBER, str(secrets.randbits(62)))
        store.set(_HANDLE.format(rank), self._memberships.handle)
        handles = [store.get(_HANDLE.format(r)).decode() for r in range(world_size)]
        # A new epoch is needed only if something is wrong with this one.
        epoch_is_over = self._join_failed or (
            self._backend is not None and _C.let_go(self._backend))
        self._join_failed = True
        self._backend = self._memberships.join(
            f"torchft quorum {self._quorum_id}", int(store.get(_NUMBER)), handles,
            self._timeout.total_seconds(), epoch_is_over)
        self._join_failed = False
        group = dist.ProcessGroup(store, rank, world_size)
        kind = dist.ProcessGroup.BackendType.CUSTOM
        group._set_default_backend(kind)
        group._register_backend(torch.device("cpu"), kind, self._backend)
        return group

    def abort(self, errored=True):
        if errored and self._backend is not None:
            self._backend.abort()
        self._pg = None

    def shutdown(self):
        if self._backend is not None:
            _C.let_go(self._backend)
            self._backend.shutdown()
        self._pg = None

    def errored(self):
        if self._backend is None or not _C.is_broken(self._backend):
            return None
        return regroup.torch.CommError("regroup: the group was aborted, or one of its calls failed")

    def set_timeout(self, timeout):
        super().set_timeout(timeout)
        if self._backend is not None:
            self._backend._set_default_timeout(timeout)
