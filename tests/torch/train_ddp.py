"""What the tests train: a small network with batch norm and dropout under stock DDP.

--backend says which; with --attach the loop is that of regroup.torch.attach(). Prints the loss of
each step (rank 0) and a digest of the final state (every rank).
"""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

try:
    import regroup.torch as rg
except ImportError:  # gloo's run needs nothing of ours
    rg = None


def make_loader(rank, world):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(240, 16, generator=generator)
    y = (x[:, :4].sum(dim=1, keepdim=True) > 0).float()
    data = TensorDataset(x, y)
    sampler = DistributedSampler(data, num_replicas=world, rank=rank, shuffle=True, seed=3)
    return DataLoader(data, batch_size=8, sampler=sampler)


def make_net():
    return torch.nn.Sequential(
        torch.nn.Linear(16, 64),
        torch.nn.BatchNorm1d(64),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )


def make_optimizer(kind, params):
    if kind == "sgd":
        return torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(params, lr=3e-3)


def digest(model, optim, scheduler):
    whole = hashlib.sha256()
    # Buffers are each rank's own between steps; the others are equal everywhere.
    for tensor in [*model.parameters()]:
        whole.update(tensor.detach().numpy().tobytes())
    for state in optim.state.values():
        for key in sorted(state):
            if isinstance(state[key], torch.Tensor):
                whole.update(state[key].numpy().tobytes())
    whole.update(repr(scheduler.get_last_lr()).encode())
    return whole.hexdigest()[:16]


def forward_backward(model, batch):
    x, y = batch
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
    loss.backward()
    return loss.detach()


def plain_batches(loader, total):
    step = 0
    while step < total:
        loader.sampler.set_epoch(step // len(loader))
        for batch in loader:
            if step == total:
                return
            yield step, batch
            step += 1


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--backend", default="regroup")
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--optimizer", default="adamw")
    options.add_argument("--attach", action="store_true")
    options.add_argument("--carry-on", action="store_true", help="with fewer, and say with whom")
    options.add_argument("--hook", action="store_true", help="with a communication hook")
    options.add_argument("--die", action="append", default=[], help="RANK:STEP:WHERE, first life")
    args = options.parse_args()

    dist.init_process_group(args.backend)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(100)
    net = make_net()
    torch.manual_seed(200 + rank)
    model = DDP(net, broadcast_buffers=not args.carry_on)
    if args.hook:
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    optim = make_optimizer(args.optimizer, model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optim, step_size=5, gamma=0.5)
    loader = make_loader(rank, world)
    deaths = {tuple(each.split(":")) for each in args.die} if is_first_life() else set()

    def maybe_die(step, where):
        if (str(rank), str(step), where) in deaths:
            os.kill(os.getpid(), 9)

    def body(step, batch):
        maybe_die(step, "start")
        loss = forward_backward(model, batch)
        maybe_die(step, "backward")
        if args.carry_on:
            ones = torch.ones(1)
            work = dist.all_reduce(ones, async_op=True)
            work.wait()
            assert rg.contributors(work) == rg.active_ranks() and len(rg.active_ranks()) == ones
        optim.step()
        if args.carry_on and len(rg.active_ranks()) < world:
            print(f"rank {rank} step {step} with {rg.active_ranks()}", flush=True)
        maybe_die(step, "update")
        optim.zero_grad()
        scheduler.step()
        if rank == 0:
            print(f"step {step} loss {loss.item():.9e}", flush=True)

    if args.attach:
        job = rg.attach(model=model, optim=optim, state={"scheduler": scheduler})
        for step, batch in job.steps(loader, args.steps):
            with job.step(step):
                body(step, batch)
    else:
        for step, batch in plain_batches(loader, args.steps):
            body(step, batch)
    print(f"rank {rank} of {world} digest={digest(model, optim, scheduler)}", flush=True)
    dist.destroy_process_group()


def is_first_life():
    return os.environ.get("REGROUP_LIFE", "0") == "0" and os.environ.get("REGROUP_SPARE") != "1"


if __name__ == "__main__":
    main()
