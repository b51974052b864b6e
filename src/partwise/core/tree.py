"""Trees as header tokens and blocks, and the classes that may be in them; the inner half of the codec.

A header is a row of msgpack scalars: the class table, the block table, then the tree in prefix order. Containers
are marks, msgpack extensions that hold a count; what they contain follows them.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgpack
import numpy as np
import torch
from torch import Tensor

from partwise.core.blocks import (
    BITMAP,
    BY_CODE,
    DELTA,
    ELIAS,
    NARROW,
    ZSTD,
    Array,
    Block,
    block_of,
    read_array,
    read_tensor,
    scalar_dtype,
    torch_dtype,
)
from partwise.core.errors import ProtocolError

__all__ = ["MAX_DEPTH", "MAX_DIMS", "Reader", "Tree", "Writer", "entry_of", "fail", "register", "tokens_of"]

MAX_DEPTH = 64
MAX_DIMS = 32  # as many as every NumPy can have
_BYTES_IN_BLOCK = 1024  # longer bytes go into a block
_INTS_IN_BLOCK = 16  # larger sets of int64 go into a block

# Extension codes of the header; part of the wire form.
_LIST, _TUPLE, _DICT, _SET, _OBJECT, _TENSOR, _ARRAY, _SCALAR, _BIG, _BYTES, _INTS, _NAMED = range(1, 13)
_NESTING = frozenset({_LIST, _TUPLE, _DICT, _OBJECT})
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})

Tree = Any
T = TypeVar("T")


def fail(rule: str) -> ProtocolError:
    """The error of a message that breaks a rule."""
    return ProtocolError(f"decode(): {rule}")


# Classes that may be in a tree


class _Class(NamedTuple):
    cls: type
    name: str
    fields: tuple[str, ...]
    mark: int  # of the fields' names: the two sides must mean the same class


_BY_NAME: dict[str, _Class] = {}
_BY_TYPE: dict[type, _Class] = {}


def register(cls: type[T]) -> type[T]:
    """Allow instances of a NamedTuple or dataclass in trees, under the class's name.

    Only the fields its constructor takes are encoded; decoding calls the constructor, so its checks run.

    Raises:
        TypeError: it is neither.
        ValueError: another class has the name.

    Example:
        >>> from partwise.core.codec import decode, encode
        >>> @register
        ... class Point(NamedTuple):
        ...     x: float
        >>> decode(encode(Point(1.5)))
        Point(x=1.5)
    """
    if dataclasses.is_dataclass(cls):
        fields = tuple(f.name for f in dataclasses.fields(cls) if f.init)
    elif issubclass(cls, tuple) and isinstance(names := getattr(cls, "_fields", None), tuple):
        fields = names
    else:
        raise TypeError(f"register({cls!r}): needs a NamedTuple or a dataclass, got neither. Decorate it first.")
    name = cls.__name__
    old = _BY_NAME.get(name)
    if old is not None and (old.cls.__module__, old.cls.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"register({name}): registered classes have names of their own, got one in {old.cls.__module__} and one in "
            f"{cls.__module__}. Rename one of them."
        )
    entry = _Class(cls, name, fields, zlib.crc32(",".join(fields).encode()))
    _BY_NAME[name] = _BY_TYPE[cls] = entry
    return cls


def entry_of(cls: type) -> _Class | None:
    """What is registered of a class, if it is."""
    return _BY_TYPE.get(cls)


# Encoding


@lru_cache(4096)
def _mark(code: int, count: int) -> msgpack.ExtType:
    size = next(s for s in (1, 2, 4, 8) if count < 1 << 8 * s)
    return msgpack.ExtType(code, count.to_bytes(size, "little"))


def _is_key(key: object) -> bool:
    return type(key) is str or type(key) is int or (type(key) is tuple and all(_is_key(k) for k in key))


class Writer:
    """Lists a tree's header tokens and blocks. `named` collects the tensors that stay outside the message."""

    def __init__(self, named: dict[str, Tensor] | None = None) -> None:
        self.tokens: list[object] = []
        self.blocks: list[Block] = []
        self.classes: dict[type, int] = {}
        self.named = named
        self.trail: list[object] = [None] * (MAX_DEPTH + 1)  # the way to the value at hand, for messages

    def add(self, x: Tree, depth: int = 0) -> None:
        kind = type(x)
        if kind in _PLAIN:
            if kind is int and not -(2**63) <= x < 2**64:
                x = msgpack.ExtType(_BIG, x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True))
            elif kind is bytes and len(x) >= _BYTES_IN_BLOCK:
                self.blocks.append(block_of(np.frombuffer(x, np.uint8)))
                x = _mark(_BYTES, 0)
            self.tokens.append(x)
        elif kind is dict:
            self._dict(x, depth)
        elif kind is list or kind is tuple:
            self.tokens.append(_mark(_LIST if kind is list else _TUPLE, len(x)))
            self._items(range(len(x)), x, depth)
        elif kind in _BY_TYPE:
            entry = _BY_TYPE[kind]
            self.tokens.append(_mark(_OBJECT, self.classes.setdefault(kind, len(self.classes))))
            self._items(entry.fields, [getattr(x, f) for f in entry.fields], depth)
        elif isinstance(x, Tensor):
            self._tensor(x, depth)
        else:
            self._other(x, depth)

    def _items(self, keys: Any, values: Any, depth: int) -> None:
        self._enter(depth)
        for key, value in zip(keys, values, strict=True):
            self.trail[depth] = key
            self.add(value, depth + 1)

    def _enter(self, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise ValueError(f"encode(): a tree is at most {MAX_DEPTH} deep, got more at {self._at(8)}…. Flatten it.")

    def _dict(self, x: dict[Any, Any], depth: int) -> None:
        self.tokens.append(_mark(_DICT, len(x)))
        for key in x:
            if not _is_key(key):
                rule = "a dict's keys are str, int or tuples of them"
                raise self._unfit(depth, rule, f"the key {key!r}", "Convert it")
        self._enter(depth)
        for key, value in x.items():
            self.trail[depth] = key
            self.add(key, depth + 1)
            self.add(value, depth + 1)

    def _tensor(self, x: Tensor, depth: int) -> None:
        dtype = torch_dtype(x.dtype)
        if dtype is None or x.layout != torch.strided or x.is_meta or x.dim() > MAX_DIMS:
            got = f"one with dtype={x.dtype}, layout={x.layout}, device={x.device}, dim={x.dim()}"
            rule = f"a tensor is dense, of a plain dtype, with storage and at most {MAX_DIMS} dimensions"
            raise self._unfit(depth, rule, got, "Convert it")
        if self.named is not None and dtype.safetensors is not None:
            self._name(x, depth, is_array=0)
        else:
            self.tokens.append(_mark(_TENSOR, 0))
            self.blocks.append(block_of(x))

    def _name(self, x: Tensor, depth: int, is_array: int) -> None:
        assert self.named is not None
        base = "/".join(str(k) for k in self.trail[:depth]) or "value"
        name, copies = base, 1
        while name in self.named or name == "__metadata__":
            name, copies = f"{base}~{copies}", copies + 1
        self.named[name] = x
        self.tokens += [_mark(_NAMED, is_array), name]

    def _other(self, x: object, depth: int) -> None:
        # Masked and other arrays that mean more than their elements are refused.
        is_array = type(x) in {np.ndarray, np.memmap} or isinstance(x, np.generic)
        dtype = scalar_dtype(x.dtype) if is_array else None  # type: ignore[attr-defined]
        if type(x) is frozenset:
            self._set(x, depth)
        elif dtype is None:
            got = f"a {type(x).__name__}" + (f" with dtype={x.dtype}" if isinstance(x, np.ndarray) else "")
            rule = "a tree holds None, bool, int, float, str, bytes, list, tuple, dict, tensors and registered classes"
            raise self._unfit(depth, rule, got, "Convert it, or register its class")
        elif isinstance(x, np.generic):
            raw = np.asarray(x, dtype.in_numpy).tobytes()
            self.tokens.append(msgpack.ExtType(_SCALAR, bytes([dtype.code]) + raw))
        elif isinstance(x, np.ndarray) and self.named is not None and dtype.safetensors is not None:
            self._name(torch.from_numpy(np.array(x, dtype.in_numpy, order="C")), depth, is_array=1)
        elif isinstance(x, np.ndarray):
            self.tokens.append(_mark(_ARRAY, 0))
            self.blocks.append(block_of(x))

    def _set(self, x: frozenset[object], depth: int) -> None:
        items = [i for i in x if type(i) is int]
        if len(items) < len(x):
            raise self._unfit(depth, "a frozenset holds int", "another kind", "Convert it to a list")
        items.sort()
        if len(items) >= _INTS_IN_BLOCK and items[0] >= -(2**63) and items[-1] < 2**63:
            self.tokens.append(_mark(_INTS, 0))
            self.blocks.append(block_of(np.array(items, np.int64)))
            return
        self.tokens.append(_mark(_SET, len(items)))
        for item in items:
            self.add(item, depth)

    def _at(self, depth: int) -> str:
        return "tree" + "".join(f"[{k!r}]" for k in self.trail[:depth])

    def _unfit(self, depth: int, rule: str, got: str, remedy: str) -> TypeError:
        return TypeError(f"encode(): {rule}, got {got} at {self._at(depth)}. {remedy}.")

    def header(self) -> bytes:
        """Class table, block table, tree."""
        front: list[object] = [len(self.classes)]
        for cls in self.classes:
            front += [_BY_TYPE[cls].name, _BY_TYPE[cls].mark]
        front.append(len(self.blocks))
        for b in self.blocks:
            front += [b.dtype.code, len(b.shape), *b.shape, b.method]
            if b.method:
                front += [b.width, b.base, b.length]
        tokens = front + self.tokens
        packed: bytes = msgpack.packb(tokens, unicode_errors="surrogatepass")
        # The tokens alone: a reader that allows no msgpack arrays cannot be made to allocate nested ones.
        return packed[1 if len(tokens) < 16 else 3 if len(tokens) < 1 << 16 else 5 :]


def tokens_of(header: memoryview) -> list[object]:
    """The header's scalars; marks as (code, data)."""
    unpacker = msgpack.Unpacker(
        max_array_len=0,
        max_map_len=0,
        max_buffer_size=len(header) + 1,
        ext_hook=lambda code, data: (code, data),
        unicode_errors="surrogatepass",
    )
    try:
        unpacker.feed(header)
        tokens = list(unpacker)
        whole = unpacker.tell() == len(header)
    except Exception as error:  # msgpack raises a dozen kinds
        raise fail(f"a header must be msgpack scalars, got something else ({error}). Send it again.") from error
    if not whole:
        raise fail("a header must be whole, got one that breaks off. Send it again.")
    return tokens


class Reader:
    """Builds a tree from tokens and blocks; StopIteration means that they break off."""

    def __init__(self, tokens: list[object], named: Mapping[str, Tensor] | None) -> None:
        self.left = len(tokens)
        self.tokens: Iterator[object] = iter(tokens)
        self.blocks: Iterator[tuple[Block, memoryview]] = iter(())
        self.entries: list[_Class] = []
        self.named = named

    def number(self, what: str, low: int = 0, high: int = 2**63 - 1) -> int:
        value = next(self.tokens)
        if type(value) is not int or not low <= value <= high:
            raise fail(f"{what} must be a whole number from {low} to {high}, got {value!r}. Send it again.")
        return value

    def classes(self) -> list[_Class]:
        return [self._class() for _ in range(self.number("the number of classes", high=self.left))]

    def _class(self) -> _Class:
        name, mark = next(self.tokens), next(self.tokens)
        entry = _BY_NAME.get(name) if type(name) is str else None
        if entry is None:
            raise fail(f"a class in a message must be registered here, got {name!r}. Import the module that does so.")
        if entry.mark != mark:
            raise fail(
                f"{name} must have the same fields on both sides, here {', '.join(entry.fields)}, got others. "
                "Install the same version on both sides."
            )
        return entry

    def block_table(self, max_bytes: int) -> list[Block]:
        blocks, room = [], max_bytes
        for _ in range(self.number("the number of blocks", high=self.left)):
            block = self._block()
            room -= block.decoded_bytes
            if room < 0:
                raise fail(
                    f"a message's tensors may have {max_bytes} bytes, got more. Raise max_bytes if they are meant to."
                )
            blocks.append(block)
        return blocks

    def _block(self) -> Block:
        code = self.number("a dtype", high=255)
        dtype = BY_CODE.get(code)
        if dtype is None:
            raise fail(f"a block's dtype must be a known one, got code {code}. Update Partwise on this side.")
        dims = self.number("the number of dimensions", high=MAX_DIMS)
        # A list, since a generator would make another error of the one that says that tokens break off.
        shape = tuple([self.number("a dimension") for _ in range(dims)])
        if math.prod(d or 1 for d in shape) * dtype.itemsize >= 2**63:
            raise fail(f"a shape must be one a tensor can have, got {shape}. Send it again.")
        plain = Block(dtype, shape, 0)
        method = self.number("a packing", high=BITMAP)
        if not method:
            return Block(dtype, shape, plain.decoded_bytes)
        width, base = self.number("a width", high=64), self.number("a base", -(2**63), 2**64 - 1)
        length = self.number("a block's length")
        if not dtype.is_packable or not _is_packing(method, width, length, plain):
            raise fail("a block's packing and length must fit its dtype and shape, got others. Send it again.")
        return Block(dtype, shape, length, None, method, width, base)

    def build(self, depth: int = 0) -> Tree:
        token = next(self.tokens)
        if type(token) in _PLAIN:
            return token
        if type(token) is not tuple:
            raise fail(f"a header holds scalars and marks, got a {type(token).__name__}. Send it again.")
        if depth >= MAX_DEPTH and token[0] in _NESTING:
            raise fail(f"a tree is at most {MAX_DEPTH} deep, got more. Flatten it before it is sent.")
        code, data = token
        if code == _SCALAR:
            return _scalar(data)
        if code == _BIG:
            return int.from_bytes(data, "little", signed=True)
        make, count = self._MAKE.get(code), int.from_bytes(data, "little")
        if make is None or len(data) > 8 or count > self.left:
            raise fail(f"a mark must be a known one with a count in bounds, got {code} with {count}. Send it again.")
        return make(self, count, depth + 1)

    def _list(self, count: int, depth: int) -> list[Tree]:
        build = self.build
        return [build(depth) for _ in range(count)]

    def _tuple(self, count: int, depth: int) -> tuple[Tree, ...]:
        return tuple(self._list(count, depth))

    def _dict(self, count: int, depth: int) -> dict[Any, Tree]:
        build, found = self.build, {}
        for _ in range(count):
            key = build(depth)
            if not _is_key(key):
                raise fail(f"a dict's keys are str, int or tuples of them, got {type(key).__name__}. Send it again.")
            found[key] = build(depth)
        if len(found) != count:
            raise fail("a dict's keys must differ, got one twice. Send it again.")
        return found

    def _set(self, count: int, depth: int) -> frozenset[int]:
        items = self._list(count, depth)
        if any(type(i) is not int for i in items):
            raise fail("a frozenset holds int, got another kind. Send it again.")
        return frozenset(items)

    def _object(self, index: int, depth: int) -> object:
        if index >= len(self.entries):
            raise fail(f"a mark must name one of {len(self.entries)} classes, got {index}. Send it again.")
        entry = self.entries[index]
        values = {name: self.build(depth) for name in entry.fields}
        try:
            return entry.cls(**values)
        except Exception as error:  # the class's own checks may raise anything
            raise fail(f"{entry.name} refused its fields: {error}") from error

    def _tensor(self, _: int, depth: int) -> Tensor:
        return read_tensor(*next(self.blocks))

    def _array(self, _: int, depth: int) -> Array:
        return read_array(*next(self.blocks))

    def _bytes(self, _: int, depth: int) -> bytes:
        return self._array(0, depth).tobytes()

    def _ints(self, _: int, depth: int) -> frozenset[int]:
        block, data = next(self.blocks)
        if not block.dtype.is_packable or len(block.shape) != 1:
            raise fail("a frozenset's block holds a row of int, got another kind. Send it again.")
        return frozenset(read_array(block, data).tolist())

    def _named(self, is_array: int, depth: int) -> Tensor | Array:
        name = next(self.tokens)
        found = (self.named or {}).get(name) if type(name) is str else None
        if found is None:
            raise fail(f"a tensor that is kept apart must be there, got none named {name!r}. Restore its file.")
        return found.numpy() if is_array else found

    _MAKE: ClassVar[dict[int, Callable[[Reader, int, int], Tree]]] = {
        _LIST: _list,
        _TUPLE: _tuple,
        _DICT: _dict,
        _SET: _set,
        _OBJECT: _object,
        _TENSOR: _tensor,
        _ARRAY: _array,
        _BYTES: _bytes,
        _INTS: _ints,
        _NAMED: _named,
    }


def _is_packing(method: int, width: int, length: int, plain: Block) -> bool:
    """Whether a packing of such a block may have this width and length; none is longer than what it packs."""
    count = plain.decoded_bytes // plain.dtype.itemsize
    if length > plain.decoded_bytes or width >= 8 * plain.dtype.itemsize:
        return False
    if method == BITMAP:
        return width == 0 and length >= -(-count // 8)
    if method == ELIAS:
        return width < 62 and length >= -(-count * width // 8) + -(-count // 8)
    if method > NARROW | DELTA | ZSTD:
        return False
    is_narrow = width in (1, 2, 4) and width < plain.dtype.itemsize
    is_right = is_narrow if method & NARROW else width == 0 and not method & DELTA
    return is_right and (bool(method & ZSTD) or length == count * width)


def _scalar(data: bytes) -> np.generic:
    dtype = BY_CODE.get(data[0]) if data else None
    if dtype is None or dtype.in_numpy is None or len(data) != 1 + dtype.itemsize:
        raise fail("a scalar must have a known dtype and its size, got another. Send it again.")
    if dtype.name == "bool" and data[1] > 1:
        raise fail("a bool scalar is byte 0 or 1, got another. Send it again.")
    value: np.generic = np.frombuffer(data, dtype.in_numpy, offset=1)[0]
    return value
