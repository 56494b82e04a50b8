"""An optimizer's state as memory that can be registered before the first step.

Optimizers make their state in their first step, and registration ends before it. So the layout is
found on a copy, and what the optimizer makes later is moved into the memory that was registered;
from then on its in-place updates happen there.
"""

import copy

import torch


def _numbers(value, path):
    """The numbers in a hyperparameter: [(path, value)]; None when it has none."""
    if isinstance(value, (bool, int, float)):
        return [(path, value)]
    if isinstance(value, (tuple, list)):
        return [n for i, v in enumerate(value) for n in _numbers(v, (*path, i))]
    return []


def _replaced(value, numbers):
    """`value` with its numbers taken from the iterator."""
    if isinstance(value, bool):
        return bool(next(numbers))
    if isinstance(value, (int, float)):
        return type(value)(next(numbers))
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(v, numbers) for v in value)
    return value


class OptimizerState:
    """State and hyperparameters of one optimizer, equal on all ranks between steps."""

    def __init__(self, name, optimizer):
        self.name = name
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.present = torch.zeros(max(1, len(self.params)), dtype=torch.uint8)
        self.slots = []  # of each parameter: {key: tensor or None for a number}
        for state in self._probe():
            slots = {}
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    slots[key] = torch.zeros_like(value, memory_format=torch.preserve_format)
                elif isinstance(value, (bool, int, float)):
                    slots[key] = torch.zeros(1, dtype=torch.float64)
                elif value is not None:
                    raise TypeError(
                        f"{self._what()}: its state {key!r} is a {type(value).__name__}, which "
                        "cannot travel to a newcomer"
                    )
            self.slots.append(slots)
        self.hyper = torch.zeros(max(1, len(self._hyper())), dtype=torch.float64)
        self.hyper_tensors = [
            value
            for group in optimizer.param_groups
            for key, value in group.items()
            if key != "params" and isinstance(value, torch.Tensor)
        ]

    def _what(self):
        return f"optimizer {self.name!r} ({type(self.optimizer).__name__})"

    def _probe(self):
        """The state that one step makes, found on a copy."""
        try:
            twin = copy.deepcopy(self.optimizer)
            params = [p for group in twin.param_groups for p in group["params"]]
            with torch.no_grad():
                for param in params:
                    param.grad = torch.zeros_like(param)
            twin.step()
        except Exception as why:
            raise TypeError(
                f"{self._what()}: the layout of its state could not be found by a step of a copy "
                f"without gradients ({why}); attach() needs an optimizer that can be copied and "
                "stepped without a closure"
            ) from why
        return [twin.state.get(p, {}) for p in params]

    def memory(self):
        """(name, tensor) of all that is to be registered."""
        yield f"{self.name}.present", self.present
        yield f"{self.name}.hyper", self.hyper
        for i, tensor in enumerate(self.hyper_tensors):
            yield f"{self.name}.hyper{i}", tensor
        for i, slots in enumerate(self.slots):
            for key, tensor in slots.items():
                yield f"{self.name}.{i}.{key}", tensor

    def _hyper(self):
        return [
            number
            for group in self.optimizer.param_groups
            for key, value in group.items()
            if key != "params"
            for number in _numbers(value, (key,))
        ]

    def gather(self):
        """Moves what the optimizer holds into the registered memory, where it stays."""
        values = [float(value) for _, value in self._hyper()]
        if len(values) > self.hyper.numel():
            raise RuntimeError(f"{self._what()}: it has more hyperparameters than when attached")
        self.hyper[: len(values)] = torch.tensor(values, dtype=torch.float64)
        for i, param in enumerate(self.params):
            state = self.optimizer.state.get(param)
            self.present[i] = 1 if state else 0
            if state:
                self._adopt(state, self.slots[i])

    def _adopt(self, state, slots):
        for key, value in state.items():
            if value is None:
                continue
            to = slots.get(key)
            if isinstance(value, torch.Tensor) and to is not None:
                if value is to:
                    continue
                if value.shape != to.shape or value.dtype != to.dtype:
                    raise RuntimeError(f"{self._what()}: its state {key!r} has changed its shape")
                to.copy_(value)
                state[key] = to
            elif isinstance(value, (bool, int, float)) and to is not None:
                to[0] = float(value)
            else:
                raise RuntimeError(
                    f"{self._what()}: its state {key!r} was not there when its layout was found"
                )

    def scatter(self):
        """Gives a newcomer's optimizer what the registered memory holds."""
        self.scatter_hyper()
        kinds = self._probe()
        for i, param in enumerate(self.params):
            if not int(self.present[i]):
                self.optimizer.state.pop(param, None)
                continue
            state = self.optimizer.state[param]
            for key, kind in kinds[i].items():
                to = self.slots[i].get(key)
                is_tensor = isinstance(kind, torch.Tensor)
                state[key] = to if is_tensor or to is None else type(kind)(float(to[0]))

    def scatter_hyper(self):
        numbers = iter(self.hyper.tolist())
        for group in self.optimizer.param_groups:
            for key, value in group.items():
                if key != "params" and not isinstance(value, torch.Tensor):
                    group[key] = _replaced(value, numbers)
