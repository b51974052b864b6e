"""How long a tree is once encoded, without encoding it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.core.blocks import block_of, torch_dtype
from partwise.core.tree import Tree, entry_of

__all__ = ["UncommonError", "header_and_blocks"]


class UncommonError(Exception):
    """Something whose size is not known without encoding it."""


class _Size(NamedTuple):
    """What an object adds to a message.

    Args:
        header: bytes of its tokens and of its entries in the block table.
        blocks: lengths of its blocks.
        classes: what it needs in the class table.
    """

    header: int
    blocks: tuple[int, ...]
    classes: frozenset[type]


def header_and_blocks(tree: Tree) -> tuple[int, list[int]]:
    """Bytes of the header, and of each block, of a tree of common things; those of a frozen object are kept with it.

    Raises:
        UncommonError: there is something else in it.
    """
    sizer = _Sizer()
    sizer.add(tree)
    table = sum(_class_size(kind) for kind in sizer.classes)
    return _int_size(len(sizer.classes)) + table + _int_size(len(sizer.blocks)) + sizer.header, sizer.blocks


_FIXED = {type(None): 1, bool: 1, float: 9}
_MARK = 3  # bytes of a mark with a count below 256
_MANY = 256
_KEPT = "_encoded_size"


def _int_size(x: int) -> int:
    """Bytes of an int in msgpack."""
    if -32 <= x < 128:
        return 1
    if x < 0:
        return 2 if x >= -(2**7) else 3 if x >= -(2**15) else 5 if x >= -(2**31) else 9
    return 2 if x < 2**8 else 3 if x < 2**16 else 5 if x < 2**32 else 9


@cache
def _short_size(x: str) -> int:
    length = len(x.encode(errors="surrogatepass"))
    return length + (1 if length < 32 else 2 if length < 256 else 3 if length < 65536 else 5)


@cache
def _class_size(kind: type) -> int:
    """Bytes of an entry of the class table."""
    entry = entry_of(kind)
    assert entry is not None
    return _short_size(entry.name) + _int_size(entry.mark)


@cache
def _is_frozen(kind: type) -> bool:
    found = getattr(kind, "__dataclass_params__", None)
    return found is not None and found.frozen and not hasattr(kind, "__slots__")


class _Sizer:
    """Adds up what `tree.Writer` would write."""

    def __init__(self) -> None:
        self.header, self.blocks, self.classes = 0, list[int](), set[type]()

    def add(self, x: Tree) -> None:
        kind = type(x)
        if kind in _FIXED:
            self.header += _FIXED[kind]
        elif kind is int and -(2**63) <= x < 2**64:
            self.header += _int_size(x)
        elif kind is str and len(x) < _MANY:
            self.header += _short_size(x)
        elif kind is Tensor:
            self._tensor(x)
        elif kind is dict and len(x) < _MANY:
            self.header += _MARK
            for key, value in x.items():
                if type(key) is not str and type(key) is not int:
                    raise UncommonError
                self.add(key)
                self.add(value)
        elif (kind is tuple or kind is list) and len(x) < _MANY:
            self.header += _MARK
            for value in x:
                self.add(value)
        elif (entry := entry_of(kind)) is not None:
            self._object(x, kind, entry.fields)
        else:
            raise UncommonError

    def _tensor(self, x: Tensor) -> None:
        dtype = torch_dtype(x.dtype)
        if dtype is None or x.layout != torch.strided or x.is_meta or x.dim() > 32:
            raise UncommonError
        method, length, more = 0, x.nbytes, 0
        if dtype.is_packable:
            block = block_of(x)
            method, length = block.method, block.length
            more = _int_size(block.width) + _int_size(block.base) + _int_size(block.length) if method else 0
        shape = x.shape
        self.header += _MARK + _int_size(dtype.code) + _int_size(len(shape)) + _int_size(method) + more
        self.header += sum(map(_int_size, shape))
        self.blocks.append(length)

    def _object(self, x: object, kind: type, fields: tuple[str, ...]) -> None:
        if not _is_frozen(kind):
            self.classes.add(kind)
            self.header += _MARK
            for name in fields:
                self.add(getattr(x, name))
            return
        found: _Size | None = x.__dict__.get(_KEPT)
        if found is None:
            sizer = _Sizer()
            sizer.classes.add(kind)
            sizer.header += _MARK
            for name in fields:
                sizer.add(getattr(x, name))
            found = x.__dict__[_KEPT] = _Size(sizer.header, tuple(sizer.blocks), frozenset(sizer.classes))
        self.header += found.header
        self.blocks += found.blocks
        self.classes |= found.classes
