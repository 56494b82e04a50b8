"""How the processes of a job meet: through the launcher, whose store outlives every rank."""

import importlib
import os
from urllib.parse import parse_qs, urlparse

from torch.distributed.constants import default_pg_timeout

from . import _C

# torch.distributed has a function of the module's name.
torch_rendezvous = importlib.import_module("torch.distributed.rendezvous")


def _require(url, name, value):
    """`init_process_group(rank=..., world_size=...)` must not contradict the launcher."""
    given = parse_qs(urlparse(url).query).get(name)
    if given is not None and int(given[0]) != value:
        raise ValueError(
            f"init_process_group was given {name}={given[0]}, but the launcher says {value}; "
            "leave it out"
        )


def _through_launcher(url, timeout=default_pg_timeout, **_):
    if os.environ.get("REGROUP_SPARE") == "1":
        # Optimizers import it, which takes seconds; a spare has the time for it now.
        importlib.import_module("torch._dynamo")
    job = _C.attach(timeout.total_seconds())
    _require(url, "rank", job.rank)
    _require(url, "world_size", job.size)
    # A spare learns its seat only now.
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(job.rank)
    os.environ["WORLD_SIZE"] = str(job.size)
    store = _C.make_store()
    store.set_timeout(timeout)
    yield store, job.rank, job.size
    raise RuntimeError("a job is joined once; env:// cannot rendezvous again")


def use_launcher_for_env():
    """In a process that Regroup launched, env:// means its launcher."""
    if _C.is_launched():
        torch_rendezvous._rendezvous_handlers["env"] = _through_launcher
