"""One rank that runs some of PyTorch's own distributed tests, which the torch wheel carries
(torch/testing/_internal/distributed/distributed_test.py): generic_suite.py starts it under
`regroup run`.

    generic_rank.py BACKEND TEST...     BACKEND: regroup, or gloo to compare with

Prints "generic: TEST passed", "... skipped: why" or "... failed: what". It ends with exit code 1
after a failure, since that may have left the group in the middle of something.
"""

import os
import sys
import traceback
import unittest
from datetime import timedelta

SKIP_CODES = range(70, 100)  # of sys.exit() in torch's decorators

# What the module asks for as it is imported. Its decorators decide by BACKEND which tests fit:
# ours is to pass those that fit Gloo.
os.environ["BACKEND"] = "gloo"

import torch.distributed as dist  # noqa: E402
from torch.testing._internal import common_utils  # noqa: E402
from torch.testing._internal.distributed import distributed_test  # noqa: E402

import regroup.torch  # noqa: E402, F401

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
TEMP_DIR = os.environ["TEMP_DIR"]


class LikeGloo(str):
    """Our name, in a module that asks at many places whether it is Gloo's."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return str.__eq__(self, other) or other == "gloo"

    def __ne__(self, other):
        return not self == other


class Generic(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    pass


def make_group(backend, test):
    distributed_test.BACKEND = LikeGloo(backend)
    meeting = {} if backend == "regroup" else {
        "init_method": f"file://{TEMP_DIR}/meeting-{test}", "rank": RANK, "world_size": SIZE}
    seconds = distributed_test.CUSTOM_PG_TIMEOUT.get(test, 40)
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds), **meeting)


def outcome(name):
    try:
        test = Generic(name)
        test.rank = RANK
        test.file_name = f"{TEMP_DIR}/file-{name}"
        common_utils.set_rng_seed()
        test._barrier()
        getattr(test, name)()
    except unittest.SkipTest as reason:
        return f"skipped: {reason}"
    except SystemExit as end:
        reason = f"torch's decorator ends with {end.code}"
        return f"skipped: {reason}" if end.code in SKIP_CODES else f"failed: {reason}"
    except BaseException as error:
        traceback.print_exc()
        lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line]
        return f"failed: {' '.join(lines)[:300]}"
    return "passed"


def main():
    backend, *tests = sys.argv[1:]
    make_group(backend, tests[0])
    for test in tests:
        said = outcome(test)
        print(f"generic: {test} {said}", flush=True)
        if said.startswith("failed"):
            os._exit(1)
        distributed_test.Barrier.sync(wait_for=SIZE, timeout=60)
        if not dist.is_initialized():
            sys.exit()  # the test's own doing: the next one gets a new job
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
