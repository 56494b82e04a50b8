#!/usr/bin/env python3
"""Gloo, as torch.distributed offers it, measured by regroup-perf: rival_gloo.py RANKS DIRECTORY.

Each rank is a process that waits for commands on a pipe; perf/rivals.hpp has the protocol.
"""

import json
import os
import resource
import sys
import time

import torch
import torch.distributed as dist

TYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
OPS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}
COLLECTIVES = {"all_reduce", "reduce", "broadcast", "all_gather", "barrier", "sendrecv"}
PERIOD = 509


def contribution(op, rank, count, salt):
    position = torch.arange(count) % PERIOD + salt * 11 + rank * 13
    if op == "prod":
        return torch.where((position % 3 == 0) & torch.tensor(rank < 6), 2, 1)
    return position % 7 + 1


def combined(op, ranks, count, salt):
    values = torch.stack([contribution(op, r, count, salt) for r in range(ranks)])
    return {
        "sum": lambda: values.sum(0),
        "prod": lambda: values.prod(0),
        "min": lambda: values.min(0).values,
        "max": lambda: values.max(0).values,
    }[op]()


class Bench:
    """One workload. Gloo reduces in place only, so every operation of ours is in place here."""

    def __init__(self, words, rank, ranks):
        self.collective, dtype, self.op = words[0], words[1], words[2]
        self.root, self.count = int(words[3]), int(words[4])
        self.rank, self.ranks, self.salt = rank, ranks, 0
        self.supported = (
            self.op in OPS and dtype in TYPES and self.collective in COLLECTIVES
        )
        self.dtype = TYPES.get(dtype, torch.float32)
        self.data = torch.zeros(self.count, dtype=self.dtype)
        self.parts = [torch.zeros(self.count, dtype=self.dtype) for _ in range(ranks)]

    def once(self):
        if self.collective == "all_reduce":
            dist.all_reduce(self.data, OPS[self.op])
        elif self.collective == "reduce":
            dist.reduce(self.data, self.root, OPS[self.op])
        elif self.collective == "broadcast":
            dist.broadcast(self.data, self.root)
        elif self.collective == "all_gather":
            dist.all_gather(self.parts, self.data)
        elif self.collective == "barrier":
            dist.barrier()
        else:
            after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
            sending = dist.isend(self.data, after)
            dist.recv(self.parts[0], before)
            sending.wait()

    def check(self):
        self.salt += 1
        self.data.copy_(contribution(self.op, self.rank, self.count, self.salt))
        self.once()
        return self.wrong()

    def wrong(self):
        def differing(tensor, wanted):
            return int((tensor != wanted.to(self.dtype)).sum())

        of_reduce = self.collective == "reduce" and self.rank == self.root
        if self.collective == "all_reduce" or of_reduce:
            return differing(self.data, combined(self.op, self.ranks, self.count, self.salt))
        if self.collective == "broadcast":
            return differing(self.data, contribution("sum", self.root, self.count, self.salt))
        if self.collective == "all_gather":
            return sum(
                differing(self.parts[r], contribution("sum", r, self.count, self.salt))
                for r in range(self.ranks)
            )
        if self.collective == "sendrecv":
            before = (self.rank - 1) % self.ranks
            return differing(self.parts[0], contribution("sum", before, self.count, self.salt))
        return 0

    def reset(self):
        # Repeated sums of integers in place would leave the type's range.
        self.data.fill_(0 if self.op == "sum" else 1)


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_block(bench, mode, iterations, warmups, checks):
    bench.reset()
    for _ in range(warmups):
        bench.once()
    dist.barrier()
    cpu = cpu_seconds()
    times = []
    if mode == "isolated":
        for _ in range(iterations):
            dist.barrier()
            begin = time.perf_counter_ns()
            bench.once()
            times.append((time.perf_counter_ns() - begin) / 1e3)
    else:
        begin = time.perf_counter_ns()
        for _ in range(iterations):
            bench.once()
        times.append((time.perf_counter_ns() - begin) / 1e3 / iterations)
    sums = torch.tensor([cpu_seconds() - cpu, 0.0], dtype=torch.float64)
    slowest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    for _ in range(checks):
        sums[1] += bench.check()
    dist.all_reduce(sums)
    return {
        "us": slowest.tolist(),
        "cpu_s": float(sums[0]),
        "wrong": int(sums[1]),
        "checked": checks,
    }


def rank_main(rank, ranks, directory, ports):
    torch.set_num_threads(1)
    port = int(os.read(ports, 8))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    commands = open(os.path.join(directory, f"command.{rank}"), encoding="utf-8")
    result = open(os.path.join(directory, "result"), "w", encoding="utf-8") if rank == 0 else None
    dist.barrier()

    def answer(value):
        if result:
            print(json.dumps(value), file=result, flush=True)

    answer({"ready": f"Gloo of torch {torch.__version__}"})
    bench, last = None, None
    for line in iter(commands.readline, ""):
        words = line.split()
        if words[:1] != ["block"]:
            break
        if words[1:7] != last:
            bench, last = Bench(words[1:], rank, ranks), words[1:7]
        if not bench.supported:
            answer({"error": f"Gloo has no {bench.collective} with {bench.op} and this type here"})
            continue
        answer(run_block(bench, words[7], int(words[8]), int(words[9]), int(words[10])))
    dist.destroy_process_group()


def main():
    ranks, directory = int(sys.argv[1]), sys.argv[2]
    # The store's threads hold locks of the C library now and then: a process that is forked beside
    # them may wait for one for ever. So the ranks come first, and read the store's port.
    ports = [os.pipe() for _ in range(ranks)]
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rank_main(rank, ranks, directory, ports[rank][0])
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    # No file: the directory goes away while we run.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _, to_rank in ports:
        os.write(to_rank, f"{store.port}".encode())
    failed = 0
    for _ in children:
        _, status = os.wait()
        if status != 0 and not failed:
            # The others would wait for ever for the one that is gone.
            failed = 1
            for pid in children:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
    return failed


if __name__ == "__main__":
    sys.exit(main())
