#!/usr/bin/env python3
"""What a call costs through torch.distributed, over what it costs in C++: an all_reduce of 8 bytes.

    python perf/torch/call_cost.py --bin-dir build/release/bin

Launches the C++ program regroup-perf and this one with the same number of ranks, in turns, and
shows the median of the launches; and the cost in a group of one rank, where nothing is exchanged.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def microseconds(group, calls, asynchronous):
    """Of one call, the median of the blocks."""
    import torch
    import torch.distributed as dist

    tensor = torch.zeros(2)
    blocks = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(calls):
            work = dist.all_reduce(tensor, group=group, async_op=asynchronous)
            if asynchronous:
                work.wait()
        blocks.append((time.perf_counter() - began) / calls * 1e6)
    return statistics.median(blocks[1:])


def be_a_rank(calls):
    """Runs under the launcher; rank 0 prints what it measured."""
    import torch.distributed as dist

    import regroup.torch as rg

    dist.init_process_group("regroup")
    rank = dist.get_rank()
    alone = dist.new_group([rank], use_local_synchronization=True)
    job = rg.attach()
    job.reform()
    found = {name: microseconds(group, calls, asynchronous)
             for name, group, asynchronous in (("blocking", None, False), ("async", None, True),
                                               ("alone", alone, False))}
    if rank == 0:
        print("cost: " + json.dumps(found), flush=True)
    dist.destroy_process_group()


def run(words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(words)} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def launch(options, directory):
    """One of each: microseconds of a call by name."""
    words = [f"{options.bin_dir}/regroup", "run", "-q", "-n", str(options.ranks), "--log-dir",
             f"{directory}/logs", "--"]
    results = Path(directory) / "cpp.json"
    run([*words, f"{options.bin_dir}/regroup-perf", "all_reduce", "-b", "8", "--inplace", "in",
         "--mode", "streaming", "--no-bind", "--json", str(results)])
    (row,) = json.loads(results.read_text())["results"]
    said = run([*words, sys.executable, __file__, "--rank", "--calls", str(options.calls)])
    return json.loads(re.search(r"cost: (.*)", said)[1]) | {"C++": row["time_us"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin-dir", help="folder of regroup and regroup-perf")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="calls of a block")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        be_a_rank(options.calls)
        return
    if not options.bin_dir:
        parser.error("--bin-dir is needed")
    with tempfile.TemporaryDirectory(prefix="regroup-call-cost.") as directory:
        launches = [launch(options, directory) for _ in range(options.launches)]
    cost = {name: statistics.median(one[name] for one in launches) for name in launches[0]}
    print(f"# all_reduce of 8 bytes, {options.ranks} ranks, median of {options.launches} launches")
    print(f"{'call':<40} {'us':>8} {'over C++':>9}")
    for name, what in (("C++", "the C++ API"), ("blocking", "torch.distributed"),
                       ("async", "torch.distributed, async_op and wait()")):
        print(f"{what:<40} {cost[name]:>8.2f} {cost[name] - cost['C++']:>9.2f}")
    print(f"{'torch.distributed, a group of one rank':<40} {cost['alone']:>8.2f}")


if __name__ == "__main__":
    main()
