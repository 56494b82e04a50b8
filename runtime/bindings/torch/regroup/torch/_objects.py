"""Objects with a state_dict() in memory of fixed size, without pickle.

Plain values become JSON text in a buffer that is registered once; tensors get memory of their own.
"""

import base64
import json

import torch

_ROOM_MIN = 4096


class _Encoder:
    def __init__(self, name):
        self.name = name
        self.tensors = []

    def encode(self, value, path):
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            self.tensors.append(value.detach())
            return {"tensor": len(self.tensors) - 1}
        if isinstance(value, list):
            return [self.encode(v, f"{path}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [self.encode(v, f"{path}[{i}]") for i, v in enumerate(value)]}
        if isinstance(value, dict):
            pairs = [
                [self.encode(k, path), self.encode(v, f"{path}.{k}")] for k, v in value.items()
            ]
            return {"dict": pairs}
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        raise TypeError(
            f"state {self.name!r}: {path} is a {type(value).__name__}, which cannot travel to a "
            "newcomer; supported are numbers, strings, lists, tuples, dicts and tensors"
        )


def _decode(value, tensors):
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "tuple":
        return tuple(_decode(v, tensors) for v in content)
    if kind == "bytes":
        return base64.b64decode(content)
    return {_decode(k, tensors): _decode(v, tensors) for k, v in content}


class ObjectState:
    """`thing` has state_dict() and load_state_dict(), of plain values and CPU tensors whose number,
    types and shapes do not change."""

    def __init__(self, name, thing):
        if not hasattr(thing, "state_dict") or not hasattr(thing, "load_state_dict"):
            raise TypeError(
                f"state {name!r}: a {type(thing).__name__} has no state_dict() and "
                "load_state_dict(); give a tensor, or an object that has them"
            )
        self.name = name
        self.thing = thing
        text, tensors = self._encoded()
        self.text = torch.zeros(max(_ROOM_MIN, 4 * len(text)) + 8, dtype=torch.uint8)
        self.tensors = [t.clone(memory_format=torch.contiguous_format) for t in tensors]

    def memory(self):
        """(name, tensor) of all that is to be registered."""
        yield f"{self.name}.text", self.text
        for i, tensor in enumerate(self.tensors):
            yield f"{self.name}.tensor{i}", tensor

    def _encoded(self):
        encoder = _Encoder(self.name)
        tree = encoder.encode(self.thing.state_dict(), "state_dict()")
        return json.dumps(tree, separators=(",", ":")).encode(), encoder.tensors

    def gather(self):
        """From the object into the registered memory."""
        text, tensors = self._encoded()
        if len(text) + 8 > self.text.numel():
            raise RuntimeError(
                f"state {self.name!r} has grown to {len(text)} bytes; {self.text.numel() - 8} were "
                "set aside when it was attached"
            )
        shapes = [(t.shape, t.dtype) for t in tensors]
        if shapes != [(t.shape, t.dtype) for t in self.tensors]:
            raise RuntimeError(
                f"state {self.name!r}: number, types or shapes of its tensors changed since it was "
                "attached"
            )
        whole = len(text).to_bytes(8, "little") + text
        self.text[: len(whole)] = torch.frombuffer(bytearray(whole), dtype=torch.uint8)
        for to, tensor in zip(self.tensors, tensors, strict=True):
            to.copy_(tensor)

    def scatter(self):
        """From the registered memory into the object."""
        raw = self.text.numpy().tobytes()
        length = int.from_bytes(raw[:8], "little")
        self.thing.load_state_dict(_decode(json.loads(raw[8 : 8 + length]), self.tensors))
