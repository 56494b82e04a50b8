"""Safetensors files: eight bytes with the length of a JSON header, the header, the tensors' bytes.

The header says where each tensor lies, so that a rank reads its share and nothing else.
"""

import json
import os

import torch


def save(path, tensors):
    """float64 tensors by name."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F64", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.numpy().tobytes())


class Reader:
    def __init__(self, path):
        self._file = os.open(path, os.O_RDONLY)
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        self._header = json.loads(os.pread(self._file, length, 8))
        self._begin = 8 + length
        self.bytes_read = 0

    def shape(self, name):
        return self._header[name]["shape"]

    def _bytes(self, at, count):
        data = os.pread(self._file, count, self._begin + at)
        if len(data) != count:
            raise EOFError("the file is shorter than its header says")
        self.bytes_read += count
        return data

    def part(self, name, rows, columns):
        """These rows and columns of a matrix, each (first, behind the last)."""
        entry = self._header[name]
        if entry["dtype"] != "F64" or len(entry["shape"]) != 2:
            raise ValueError(f"{name} is no matrix of float64")
        width, item = entry["shape"][1], 8
        at = entry["data_offsets"][0]
        if columns == (0, width):  # whole rows lie one behind the other
            pieces = [self._bytes(at + rows[0] * width * item, (rows[1] - rows[0]) * width * item)]
        else:
            pieces = [self._bytes(at + (row * width + columns[0]) * item,
                                  (columns[1] - columns[0]) * item) for row in range(*rows)]
        flat = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.float64)
        return flat.view(rows[1] - rows[0], columns[1] - columns[0])
