"""PyTorch process-group backend whose collectives survive the loss of ranks.

    import regroup.torch as rg                          # registers the backend
    dist.init_process_group("regroup")                  # was "gloo"
    model = DDP(net)
    optim = torch.optim.AdamW(model.parameters())
    job = rg.attach(model=model, optim=optim)
    for step, batch in job.steps(loader, total_steps):  # a newcomer is healed here
        with job.step(step):                            # done again if a rank is lost
            loss = model(batch).mean()
            loss.backward()
            optim.step()                                # commits before anything changes
            optim.zero_grad()

Started by `regroup run -n 8 --spares 1 -- python train.py`, or by another launcher with
`regroup exec --` in front of python. docs/pytorch.md says the rest.
"""

import atexit
import os
import warnings

import torch
import torch.distributed as dist

from . import _built_for

if torch.__version__ != _built_for.torch:
    raise ImportError(
        f"regroup.torch was built for torch {_built_for.torch}, and this is torch "
        f"{torch.__version__}; their binary interfaces differ. Build it again beside this torch: "
        "pip install --force-reinstall --no-build-isolation ./runtime/bindings/torch"
    )

from . import _C  # noqa: E402
from ._contributors import active_ranks, contributors  # noqa: E402
from ._errors import CommError, DeadlineError, RankLostError, RevokedError  # noqa: E402
from ._rendezvous import use_launcher_for_env  # noqa: E402
from ._training import Job, attach, mark_model_broadcasts  # noqa: E402

__all__ = [
    "CommError",
    "DeadlineError",
    "Job",
    "RankLostError",
    "RevokedError",
    "active_ranks",
    "attach",
    "contributors",
    "register",
]

_NAME = "regroup"


def _create(options, _backend_options=None):
    return _C.make_backend(
        options.group_rank,
        options.group_size,
        options.group_id,
        options.global_ranks_in_group,
        options.timeout.total_seconds(),
        getattr(options, "enable_reconfigure", False),  # torch 2.14 and later
    )


def register():
    """Registers the backend "regroup" with torch.distributed; importing this module does it.

    Errors: RuntimeError when somebody else has taken the name.
    """
    taken = dist.Backend._plugins.get(_NAME.upper())
    if taken is not None:
        if taken.creator_fn is _create:
            return
        raise RuntimeError(f"another module has registered a backend named {_NAME!r} already")
    dist.Backend.register_backend(_NAME, _create, extended_api=True, devices=["cpu", "cuda"])


def _shut_down_at_exit(pid=os.getpid()):
    if os.getpid() == pid:
        _C.shut_down()


if os.environ.get("TORCH_DISTRIBUTED_USE_TORCHCOMMS", "0") not in ("", "0"):
    warnings.warn(
        "TORCH_DISTRIBUTED_USE_TORCHCOMMS routes backend names through torchcomms, which may not "
        "know the backend 'regroup'; unset it",
        stacklevel=2,
    )
register()
use_launcher_for_env()
mark_model_broadcasts()
atexit.register(_shut_down_at_exit)
