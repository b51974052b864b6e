"""How long a tree is once encoded, without encoding it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partwise.core.blocks import block_of, torch_dtype
from partwise.core.tree import MAX_DEPTH, MAX_DIMS, Tree, entry_of

__all__ = ["UncommonError", "header_and_blocks", "int_size", "is_frozen"]


class UncommonError(Exception):
    """Something whose size is not known without encoding it."""


class _Size(NamedTuple):
    """What an object adds to a message.

    Args:
        header: bytes of its tokens and of its entries in the block table.
        blocks: lengths of its blocks.
        classes: what it needs in the class table.
        height: how many containers are one in another, itself included.
        packed: its tensors whose size depends on what is in them, with their versions.
    """

    header: int
    blocks: tuple[int, ...]
    classes: frozenset[type]
    height: int
    packed: tuple[tuple[Tensor, int], ...]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Nothing: it goes with no copy or pickle of the object, which another version may read."""
        return type(None), ()

    def still_holds(self) -> bool:
        return all(_version(tensor) == version for tensor, version in self.packed)


def header_and_blocks(tree: Tree) -> tuple[int, list[int]]:
    """Bytes of the header, and of each block, of a tree of common things.

    To pack integers costs as much as to encode them, and an index is sent again and again. So the size of a frozen
    object without floats, as an index is, is kept with it, until one of its tensors is written to. What else it
    consists of, dicts too, must not change: neither may a frozen object for whoever else has it.

    Raises:
        UncommonError: there is something else in it, or something that cannot be encoded.
    """
    sizer = _Sizer()
    sizer.add(tree, 0)
    table = sum(_class_size(kind) for kind in sizer.classes)
    if len(sizer.classes) > _SHORT:
        raise UncommonError
    return int_size(len(sizer.classes)) + table + int_size(len(sizer.blocks)) + sizer.header, sizer.blocks


_FIXED = {type(None): 1, bool: 1, float: 9}
_SHORT = 256  # counts below it have one byte
_MARK = 3  # bytes of a mark with such a count
_KEPT = "_encoded_size"
_MANY = 4096
_fleeting: set[type] = set()  # frozen things whose size was not worth keeping, as an update's with its values
_plain: dict[tuple[torch.dtype, torch.Size], tuple[int, int]] = {}  # of tensors whose elements are sent as they are


def _version(x: Tensor) -> int:
    """How often a tensor's memory has been written to; torch has no public name for it."""
    return x._version  # noqa: SLF001


def _mark_size(count: int) -> int:
    """Bytes of a mark: a msgpack extension of 1, 2, 4 or 8 bytes."""
    return 3 if count < _SHORT else 4 if count < 2**16 else 6 if count < 2**32 else 10


def int_size(x: int) -> int:
    """Bytes of an int in msgpack."""
    if -32 <= x < 128:
        return 1
    if x < 0:
        return 2 if x >= -(2**7) else 3 if x >= -(2**15) else 5 if x >= -(2**31) else 9
    return 2 if x < 2**8 else 3 if x < 2**16 else 5 if x < 2**32 else 9


def _str_size(x: str) -> int:
    length = len(x.encode(errors="surrogatepass"))
    return length + (1 if length < 32 else 2 if length < 256 else 3 if length < 65536 else 5)


_short_size = lru_cache(4096)(_str_size)  # names of parameters


@lru_cache(4096)
def _class_size(kind: type) -> int:
    """Bytes of an entry of the class table."""
    entry = entry_of(kind)
    assert entry is not None
    return _str_size(entry.name) + int_size(entry.mark)


@lru_cache(4096)
def is_frozen(kind: type) -> bool:
    """Whether it is a frozen dataclass; one with slots has no room for a size."""
    found = getattr(kind, "__dataclass_params__", None)
    return found is not None and found.frozen and not hasattr(kind, "__slots__")


class _Sizer:
    """Adds up what `tree.Writer` would write."""

    def __init__(self) -> None:
        self.header, self.blocks, self.classes = 0, list[int](), set[type]()
        self.height, self.packed = 0, list[tuple[Tensor, int]]()
        self.is_lasting = True  # nothing has been met that may have another size the next time

    def add(self, x: Tree, depth: int) -> None:
        kind = type(x)
        if kind in _FIXED:
            self.header += _FIXED[kind]
        elif kind is int and -(2**63) <= x < 2**64:
            self.header += int_size(x)
        elif kind is str:
            self.header += _short_size(x) if len(x) < _SHORT else _str_size(x)
        elif kind is Tensor:
            self._tensor(x)
        elif kind is dict:
            self._dict(x, depth)
        elif kind is tuple or kind is list:
            self._enter(depth)
            self.header += _mark_size(len(x))
            for value in x:
                self.add(value, depth + 1)
        elif (entry := entry_of(kind)) is not None:
            self._object(x, entry.fields, depth)
        else:
            raise UncommonError

    def _dict(self, x: dict[Any, Tree], depth: int) -> None:
        self._enter(depth)
        self.header += _mark_size(len(x))
        for key, value in x.items():
            if type(key) is str and len(key) < _SHORT:  # as most are: no call of `add` for each
                self.header += _short_size(key)
            elif type(key) is str or type(key) is int:
                self.add(key, depth + 1)
            else:
                raise UncommonError
            if type(value) is Tensor:
                self._tensor(value)
            else:
                self.add(value, depth + 1)

    def _enter(self, depth: int, height: int = 1) -> None:
        self.height = max(self.height, depth + height)
        if self.height > MAX_DEPTH:
            raise UncommonError

    def _tensor(self, x: Tensor) -> None:
        known = _plain.get((x.dtype, x.shape))
        if known is not None and x.layout is torch.strided and not x.is_meta:
            self.is_lasting = False
            self.header += known[0]
            self.blocks.append(known[1])
            return
        dtype = torch_dtype(x.dtype)
        if dtype is None or x.layout != torch.strided or x.is_meta or x.dim() > MAX_DIMS:
            raise UncommonError
        method, length, more = 0, x.nbytes, 0
        if dtype.is_packable:
            block = block_of(x)
            method, length = block.method, block.length
            more = int_size(block.width) + int_size(block.base) + int_size(block.length) if method else 0
        if not dtype.is_packable or x.is_inference():  # such a tensor has no version
            self.is_lasting = False
        else:
            self.packed.append((x, _version(x)))
        shape = x.shape
        header = _MARK + int_size(dtype.code) + int_size(len(shape)) + int_size(method) + more
        header += sum(map(int_size, shape))
        self.header += header
        self.blocks.append(length)
        if not dtype.is_packable:
            if len(_plain) >= _MANY:
                _plain.clear()
            _plain[x.dtype, shape] = header, length

    def _object(self, x: Any, fields: tuple[str, ...], depth: int) -> None:
        kind: type = type(x)
        if kind in _fleeting or not is_frozen(kind):
            self.is_lasting &= isinstance(x, tuple)
            self._enter(depth)
            self.classes.add(kind)
            self.header += _MARK
            for name in fields:
                self.add(getattr(x, name), depth + 1)
            return
        found: _Size | None = x.__dict__.get(_KEPT)
        if found is None or not found.still_holds():
            sizer = _Sizer()
            sizer._enter(0)
            sizer.classes.add(kind)
            sizer.header += _MARK
            for name in fields:
                sizer.add(getattr(x, name), 1)
            found = sizer.size()
            if sizer.is_lasting:
                x.__dict__[_KEPT] = found
            else:
                _fleeting.add(kind)
            self.is_lasting &= sizer.is_lasting
        self._enter(depth, found.height)
        self.header += found.header
        self.blocks += found.blocks
        self.classes |= found.classes
        self.packed += found.packed

    def size(self) -> _Size:
        return _Size(self.header, tuple(self.blocks), frozenset(self.classes), self.height, tuple(self.packed))
