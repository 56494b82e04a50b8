"""The process's random generators, as memory that can be registered."""

import random

import torch

try:
    import numpy
except ImportError:
    numpy = None

_WORDS = 625  # of a Mersenne twister: its state and its position


class RandomState:
    """The default generators of torch (CPU), random and numpy."""

    def __init__(self, name):
        self.name = name
        self.torch = torch.get_rng_state().clone()
        self.python = torch.zeros(_WORDS + 1, dtype=torch.int64)
        self.python_gauss = torch.zeros(1, dtype=torch.float64)
        self.numpy = torch.zeros(_WORDS + 1, dtype=torch.int64)
        self.numpy_gauss = torch.zeros(1, dtype=torch.float64)
        self.gather()

    def memory(self):
        """(name, tensor) of all that is to be registered."""
        yield f"{self.name}.torch", self.torch
        yield f"{self.name}.python", self.python
        yield f"{self.name}.python_gauss", self.python_gauss
        yield f"{self.name}.numpy", self.numpy
        yield f"{self.name}.numpy_gauss", self.numpy_gauss

    def gather(self):
        """From the generators into the registered memory."""
        self.torch.copy_(torch.get_rng_state())
        _, words, gauss = random.getstate()
        self.python[:_WORDS] = torch.tensor(words, dtype=torch.int64)
        self.python[_WORDS] = gauss is not None
        self.python_gauss[0] = gauss or 0.0
        if numpy is None:
            return
        _, key, position, has_gauss, cached = numpy.random.get_state(legacy=True)
        self.numpy[: _WORDS - 1] = torch.from_numpy(key.astype(numpy.int64))
        self.numpy[_WORDS - 1] = position
        self.numpy[_WORDS] = has_gauss
        self.numpy_gauss[0] = cached

    def scatter(self):
        """From the registered memory into the generators."""
        torch.set_rng_state(self.torch.clone())
        gauss = float(self.python_gauss[0]) if int(self.python[_WORDS]) else None
        random.setstate((3, tuple(self.python[:_WORDS].tolist()), gauss))
        if numpy is None:
            return
        key = self.numpy[: _WORDS - 1].numpy().astype(numpy.uint32)
        position, has_gauss = int(self.numpy[_WORDS - 1]), int(self.numpy[_WORDS])
        numpy.random.set_state(
            ("MT19937", key, position, has_gauss, float(self.numpy_gauss[0]))
        )

    def copy(self):
        """The memory's content, for paste()."""
        return [tensor.clone() for _, tensor in self.memory()]

    def paste(self, content):
        for (_, tensor), saved in zip(self.memory(), content, strict=True):
            tensor.copy_(saved)
