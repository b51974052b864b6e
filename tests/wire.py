"""Messages made and compared by hand, for the tests of the codec."""

import dataclasses
import struct
import zlib
from typing import NamedTuple

import msgpack
import numpy as np
import torch

from partwise.core.codec import PREFIX_BYTES, register


@register
class Pair(NamedTuple):
    left: object
    right: object = None


@register
@dataclasses.dataclass(frozen=True)
class Ratio:
    value: float
    rows: object = None
    cached: dict = dataclasses.field(default_factory=dict, init=False, compare=False)

    def __post_init__(self):
        if type(self.value) is float and self.value < 0:
            raise ValueError(f"Ratio(value={self.value}): must be at least 0, got {self.value}. Drop the sign.")


@register
@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


def raw(t):
    flat = t.detach().resolve_conj().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same(a, b):
    """Equal to the last bit, kind by kind."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a) if f.init)
    return a == b


def sealed(header, payload=None, *, version=1, flags=0, total=None, crc=0, magic=b"PTWS"):
    """A message around any header and payload, with a prefix that is right unless told otherwise."""
    body = header + (b"" if payload is None else bytes(-(PREFIX_BYTES + len(header)) % 8) + payload)
    total = PREFIX_BYTES + len(body) if total is None else total
    prefix = struct.pack("<4sHHIQI", magic, version, flags, len(header), total, crc)
    return prefix + struct.pack("<I", zlib.crc32(prefix + header)) + body


def head(*tokens):
    return b"".join(msgpack.packb(t) for t in tokens)


def mark(code, count=0):
    return msgpack.ExtType(code, bytes([count]))


LIST, TUPLE, DICT, SET, OBJECT, TENSOR, ARRAY, SCALAR, BIG, BYTES, INTS, NAMED = range(1, 13)
