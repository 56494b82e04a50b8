"""What of torch stands on process groups, tried on three ranks; each part checks its result.

Prints "rank R: N parts" at its end; anything wrong raises.
"""

import shutil
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed import _functional_collectives as funcol
from torch.distributed import rpc
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel as DDP

import regroup.torch  # noqa: F401

rank = size = mesh = None


def network(width=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def batch(of):
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(of))


def averaged_gradients():
    """Of all ranks' batches, worked out here."""
    model = network()
    for each in range(size):
        (model(batch(each)).square().mean() / size).backward()
    return [param.grad for param in model.parameters()]


def close(got, wanted, what):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text: f"{what}: {text}")


def compiled_ddp():
    model = torch.compile(DDP(network()), backend="aot_eager")
    model(batch(rank)).square().mean().backward()
    close([p.grad for p in model.parameters()], averaged_gradients(), "compiled DDP")


def compiled_collectives():
    def twice_the_sum(x):
        return funcol.all_reduce(x * 2, "sum", dist.group.WORLD)

    made = torch.compile(twice_the_sum, backend="aot_eager", fullgraph=True)
    wanted = torch.full((3,), 2.0 * sum(range(size)))
    close([made(torch.full((3,), float(rank)))], [wanted], "a compiled all_reduce")


def fsdp2_and_checkpoint():
    model = fully_shard(network(), mesh=mesh)
    model(batch(rank)).square().mean().backward()
    close([p.grad.full_tensor() for p in model.parameters()], averaged_gradients(), "FSDP2")
    folder = [tempfile.mkdtemp(prefix="regroup-dcp.")] if rank == 0 else [None]
    dist.broadcast_object_list(folder, 0)
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder[0])
    with torch.no_grad():
        kept = [p.full_tensor().clone() for p in model.parameters()]
        for param in model.parameters():
            param.zero_()
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder[0])
    model.load_state_dict(state["model"])
    close([p.full_tensor() for p in model.parameters()], kept, "a loaded checkpoint")
    if rank == 0:
        shutil.rmtree(folder[0])


def dtensors():
    whole = torch.arange(36.0).view(6, 6)
    rows = distribute_tensor(whole, mesh, [Shard(0)])
    close([rows.redistribute(mesh, [Shard(1)]).full_tensor()], [whole], "resharding")
    product = rows @ DTensor.from_local(whole, mesh, [Replicate()])
    close([product.full_tensor()], [whole @ whole], "a product")


def zero():
    model = DDP(network())
    optim = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.5)
    model(batch(rank)).square().mean().backward()
    optim.step()
    before = list(network().parameters())
    wanted = [p - 0.5 * g for p, g in zip(before, averaged_gradients(), strict=True)]
    close(list(model.parameters()), wanted, "ZeRO")


def pipeline():
    torch.manual_seed(2)
    layers = nn.Sequential(*(nn.Linear(12, 12) for _ in range(size)))
    x, y = batch(7).repeat(2, 1), batch(8).repeat(2, 1)
    mse = nn.functional.mse_loss
    stage = PipelineStage(layers[rank], rank, size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, n_microbatches=4, loss_fn=mse)
    if rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=y) if rank == size - 1 else schedule.step()
    got = layers[rank].weight.grad.clone()
    layers.zero_grad()
    mse(layers(x), y).backward()
    close([got], [layers[rank].weight.grad], "a pipeline")


def called(x):
    return x + rank


def remote_calls():
    rpc.init_rpc(f"rank{rank}", rank=rank, world_size=size)
    after = (rank + 1) % size
    assert rpc.rpc_sync(f"rank{after}", called, args=(10,)) == 10 + after
    rpc.shutdown()


PARTS = (compiled_ddp, compiled_collectives, fsdp2_and_checkpoint, dtensors, zero, pipeline,
         remote_calls)


def main():
    global rank, size, mesh
    dist.init_process_group("regroup")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    for part in PARTS:
        part()
    print(f"rank {rank}: {len(PARTS)} parts", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
