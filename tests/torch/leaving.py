"""Ranks leave while a call is under way, and the group's thread is the last to hold a tensor that
Python has seen: to let it go it needs Python's lock, which nobody may hold who waits for it.

    leaving.py destroy|exit
"""

import hashlib
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

import regroup.torch  # noqa: F401


class SlowToGo:
    """Lets others have Python's lock in the middle of it."""

    def __del__(self):
        hashlib.sha256(bytes(100 << 20))
        print("let go", flush=True)


def main():
    dist.init_process_group("regroup")
    # The last to let its group go is DDP's reducer, in C++.
    model = DDP(torch.nn.Linear(4, 4), process_group=dist.new_group([0, 1]))
    model(torch.ones(2, 4)).sum().backward()
    tensor = torch.ones(1000)
    tensor.held = SlowToGo()
    dist.all_reduce(tensor, group=model.process_group, async_op=True)
    del tensor
    if sys.argv[1] == "destroy":
        dist.destroy_process_group()
    del model
    print("ended", flush=True)


if __name__ == "__main__":
    main()
