"""Tensors as byte blocks: the codec's dtypes, the packing of integers, and the checksum.

A block is a tensor's elements in row-major order, little-endian, as in a safetensors file. Blocks of floats
are never packed, so that they are views on both sides; blocks of integers are packed where it pays.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import ProtocolError

__all__ = [
    "BITMAP",
    "BY_CODE",
    "BY_SAFETENSORS",
    "DELTA",
    "ELIAS",
    "NARROW",
    "ZSTD",
    "Block",
    "DType",
    "block_of",
    "checksum",
    "plain_block",
    "read_array",
    "read_tensor",
    "scalar_dtype",
    "torch_dtype",
    "view",
]

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("partwise.core.blocks: blocks are little-endian views of memory, got a big-endian machine.")

NARROW, DELTA, ZSTD = 1, 2, 4  # bits of Block.method, in the order in which they are applied
ELIAS, BITMAP = 8, 16  # methods by themselves, for whole numbers that ascend without repeats
_NARROW_FROM = 64  # bytes; below, the extra header bytes eat the gain
_ZSTD_FROM = 256  # bytes; below, a zstd frame gains nothing
_SAMPLE = 1 << 16  # bytes; larger blocks are first tried on so many
_ROW = 8192  # bytes per row sum of the checksum

Words = NDArray[np.uint64]
Array = NDArray[Any]


@dataclass(frozen=True)
class DType:
    """An element type. safetensors: its name in that format, None where it has none."""

    code: int
    name: str
    itemsize: int
    in_torch: torch.dtype
    in_numpy: np.dtype[np.generic] | None
    safetensors: str | None
    is_packable: bool = False  # bool and integers


def _dtype(code: int, name: str, *, numpy: bool = True, safe: str | None = None, packable: bool = False) -> DType:
    in_torch: torch.dtype = getattr(torch, name)
    in_numpy = np.dtype(name) if numpy else None
    return DType(code, name, in_torch.itemsize, in_torch, in_numpy, safe, packable)


# Codes are part of the wire form: they are never reused.
_ALL = (
    _dtype(0, "bool", safe="BOOL", packable=True),
    _dtype(1, "int8", safe="I8", packable=True),
    _dtype(2, "int16", safe="I16", packable=True),
    _dtype(3, "int32", safe="I32", packable=True),
    _dtype(4, "int64", safe="I64", packable=True),
    _dtype(5, "uint8", safe="U8", packable=True),
    _dtype(6, "uint16", safe="U16", packable=True),
    _dtype(7, "uint32", safe="U32", packable=True),
    _dtype(8, "uint64", safe="U64", packable=True),
    _dtype(9, "float16", safe="F16"),
    _dtype(10, "bfloat16", numpy=False, safe="BF16"),
    _dtype(11, "float32", safe="F32"),
    _dtype(12, "float64", safe="F64"),
    _dtype(13, "complex64"),
    _dtype(14, "complex128"),
    _dtype(15, "float8_e4m3fn", numpy=False, safe="F8_E4M3"),
    _dtype(16, "float8_e5m2", numpy=False, safe="F8_E5M2"),
    _dtype(17, "float8_e4m3fnuz", numpy=False),
    _dtype(18, "float8_e5m2fnuz", numpy=False),
)
BY_CODE = {d.code: d for d in _ALL}
BY_SAFETENSORS = {d.safetensors: d for d in _ALL if d.safetensors is not None}
_BY_TORCH = {d.in_torch: d for d in _ALL}
_BY_NUMPY = {d.in_numpy: d for d in _ALL if d.in_numpy is not None}


@dataclass(frozen=True, eq=False)
class Block:
    """One tensor on its way to bytes.

    Args:
        dtype: element type.
        shape: of the tensor.
        length: bytes of the block.
        source: the tensor, or the bytes if packed.
        method: which of NARROW, DELTA and ZSTD were applied, or ELIAS, or BITMAP; 0 for elements as they are.
        width: bytes per narrowed element; of ELIAS, the low bits of an element that are kept as they are.
        base: what narrowed elements count from; of ELIAS and BITMAP, the first element.
    """

    dtype: DType
    shape: tuple[int, ...]
    length: int
    source: Tensor | Array | bytes | None = None
    method: int = 0
    width: int = 0
    base: int = 0

    @property
    def decoded_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def torch_dtype(dtype: torch.dtype) -> DType | None:
    """The element type of a torch tensor, if the codec knows it."""
    return _BY_TORCH.get(dtype)


def scalar_dtype(dtype: np.dtype[np.generic]) -> DType | None:
    """The element type of a NumPy array or scalar, if the codec knows it; byte order is no part of it."""
    return _BY_NUMPY.get(dtype.newbyteorder("="))


def plain_block(x: Tensor | Array) -> Block:
    """The block of a strided tensor or array of a known dtype, its elements as they are and not touched yet."""
    dtype = torch_dtype(x.dtype) if isinstance(x, Tensor) else scalar_dtype(x.dtype)
    assert dtype is not None
    shape = tuple(x.shape)
    return Block(dtype, shape, prod(shape) * dtype.itemsize, x)


def block_of(x: Tensor | Array) -> Block:
    """The block of a tensor or array, integers packed where that is smaller."""
    plain = plain_block(x)
    if not plain.dtype.is_packable or plain.length < _NARROW_FROM:
        return plain
    return _packed(plain, np.frombuffer(view(plain), plain.dtype.in_numpy))


def view(block: Block) -> memoryview:
    """The block's bytes; a view on the tensor's memory where that is contiguous and on the CPU."""
    source = block.source
    if not block.length or source is None:
        return memoryview(b"")
    if isinstance(source, Tensor):
        flat = source.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data
    if isinstance(source, np.ndarray):
        return np.ascontiguousarray(source, dtype=block.dtype.in_numpy).reshape(-1).view(np.uint8).data
    return memoryview(source)


def _packed(plain: Block, flat: Array) -> Block:
    """The smallest of: as it is, narrowed (ascending values as differences), either under zstd, and sets as bits."""
    method, width, base = 0, 0, 0
    best = _as_set(plain, flat)
    data: bytes | memoryview = flat.view(np.uint8).data
    if plain.dtype.itemsize > 1:
        base, words = int(flat[0]), flat.astype(np.int64, copy=False).view(np.uint64)
        if bool((flat[1:] >= flat[:-1]).all()):
            method, words = NARROW | DELTA, np.diff(words, prepend=words[:1])
        else:
            base = int(flat.min())
            method, words = NARROW, words - np.uint64(base % 2**64)
        width = _width(int(words.max()))
        if width < plain.dtype.itemsize:
            data = words.astype(f"<u{width}").tobytes()
        else:
            method = width = base = 0
    small = _zstd(data)
    if small is not None:
        method, data = method | ZSTD, small
    if best is not None and best.length < len(data):
        return best
    if not method:
        return plain
    return Block(plain.dtype, plain.shape, len(data), bytes(data), method, width, base)


def _as_set(plain: Block, flat: Array) -> Block | None:
    """Whole numbers that ascend without repeats: one bit for each number in their range, or Elias and Fano's code.

    That code takes l + 2 bits for each of c numbers of a range u, with l = log2(u / c): the low l bits as they are,
    and the rest as a row of bits in which the i-th number sets the one at its rest + i.

    Source: Elias, "Efficient storage and retrieval by content and address of static files", JACM 1974.
    """
    if plain.dtype.itemsize == 1 or len(flat) < 2 or not bool((flat[1:] > flat[:-1]).all()):
        return None
    first, span, count = int(flat[0]), int(flat[-1]) - int(flat[0]) + 1, len(flat)
    low = max(0, (span // count).bit_length() - 1)
    lengths = _elias_lengths(count, low, span - 1)
    if min(sum(lengths), -(-span // 8)) >= plain.length or span >= 2**62:
        return None
    words = flat.astype(np.int64, copy=False).view(np.uint64) - np.uint64(first % 2**64)
    if -(-span // 8) <= sum(lengths):
        data = _bits_at(words, -(-span // 8))
        return Block(plain.dtype, plain.shape, len(data), data, BITMAP, 0, first)
    high = (words >> np.uint64(low)) + np.arange(count, dtype=np.uint64)
    data = _low_bits(words, low, lengths[0]) + _bits_at(high, lengths[1])
    return Block(plain.dtype, plain.shape, len(data), data, ELIAS, low, first)


def _elias_lengths(count: int, low: int, largest: int) -> tuple[int, int]:
    """Bytes of the low bits, and of the row of bits."""
    return -(-count * low // 8), -(-(count + (largest >> low)) // 8)


def _bits_at(at: Words, length: int) -> bytes:
    bits = np.zeros(8 * length, np.uint8)
    bits[at] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _low_bits(words: Words, low: int, length: int) -> bytes:
    """The low bits of each word, one word after another."""
    if not low:
        return b""
    parts = []
    unit = 8 * _SAMPLE  # words at a time: eight of them fill whole bytes
    for at in range(0, len(words), unit):
        each = np.ascontiguousarray(words[at : at + unit], "<u8").view(np.uint8).reshape(-1, 8)
        bits = np.unpackbits(each[:, : -(-low // 8)], axis=1, count=low, bitorder="little")
        parts.append(np.packbits(bits.reshape(-1), bitorder="little"))
    data = np.concatenate(parts).tobytes()
    assert len(data) == length
    return data


def _of_set(block: Block, data: memoryview) -> Words:
    """The numbers of a set, counted from the first: (c,)."""
    count = prod(block.shape)
    if block.method == BITMAP:
        at = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")).astype(np.uint64)
        _check_count(at, count)
        return at
    lows = -(-count * block.width // 8)
    row = np.unpackbits(np.frombuffer(data[lows:], np.uint8), bitorder="little")
    high = np.flatnonzero(row).astype(np.uint64)
    _check_count(high, count)
    words = (high - np.arange(count, dtype=np.uint64)) << np.uint64(block.width)
    if block.width:
        bits = np.unpackbits(np.frombuffer(data[:lows], np.uint8), count=count * block.width, bitorder="little")
        each = np.packbits(bits.reshape(count, block.width), axis=1, bitorder="little")
        wide = np.zeros((count, 8), np.uint8)
        wide[:, : each.shape[1]] = each
        words |= wide.view("<u8").reshape(-1)
    found: Words = words
    return found


def _check_count(found: Words, count: int) -> None:
    if len(found) != count:
        raise ProtocolError(f"decode(): a set of {count} numbers must have as many bits, got {len(found)}.")


def _width(largest: int) -> int:
    return next(w for w in (1, 2, 4, 8) if largest < 1 << 8 * w)


def _zstd(data: bytes | memoryview) -> bytes | None:
    """The zstd frame of `data` if it saves a sixteenth, which unpacking must be worth."""
    if len(data) < _ZSTD_FROM:
        return None
    press = zstandard.ZstdCompressor(level=1, write_content_size=True, write_checksum=False, write_dict_id=False)
    if len(data) > 4 * _SAMPLE:
        middle = (len(data) - _SAMPLE) // 2
        if len(press.compress(data[middle : middle + _SAMPLE])) > _SAMPLE * 15 // 16:
            return None
    frame = press.compress(data)
    return frame if len(frame) <= len(data) * 15 // 16 else None


def _unzstd(frame: memoryview, size: int) -> memoryview:
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != size:  # checked first: the library allocates what the frame states
            raise ProtocolError(f"decode(): a zstd block must unpack to {size} bytes, got a frame of {stated}.")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"decode(): a zstd block must be a whole frame, got: {error}. Send it again.") from error
    return memoryview(data)


def _unpacked(block: Block, data: memoryview) -> Array:
    """The elements of a packed block, (numel,), in memory of their own."""
    count = prod(block.shape)
    if block.method in (ELIAS, BITMAP):
        return _counted_from(_of_set(block, data), block)
    if block.method & ZSTD:
        data = _unzstd(data, count * (block.width or block.dtype.itemsize))
    if not block.method & NARROW:
        whole: Array = np.frombuffer(data, block.dtype.in_numpy).copy()
        return whole
    words = np.frombuffer(data, f"<u{block.width}").astype(np.uint64)
    if block.method & DELTA:
        np.cumsum(words, out=words)
    return _counted_from(words, block)


def _counted_from(words: Words, block: Block) -> Array:
    words += np.uint64(block.base % 2**64)  # modulo 2**64, as it was subtracted
    elements: Array = words.view(np.int64).astype(block.dtype.in_numpy, copy=False)
    return elements


def read_array(block: Block, data: memoryview) -> Array:
    """The block's array: a view on `data`, which is writable and aligned, or unpacked."""
    if block.dtype.in_numpy is None:
        raise ProtocolError(f"decode(): NumPy has no {block.dtype.name}, got a block of an array with it.")
    flat = _unpacked(block, data) if block.method else np.frombuffer(data, block.dtype.in_numpy)
    if block.dtype.name == "bool" and flat.view(np.uint8).max(initial=0) > 1:
        raise ProtocolError("decode(): a bool block holds bytes 0 and 1, got another byte. Send it again.")
    return flat.reshape(block.shape)


def read_tensor(block: Block, data: memoryview) -> Tensor:
    """The block's tensor: a view on `data`, which is writable and aligned, or unpacked."""
    if block.dtype.is_packable:
        return torch.from_numpy(read_array(block, data))
    if not block.decoded_bytes:
        return torch.empty(block.shape, dtype=block.dtype.in_torch)
    return torch.frombuffer(data, dtype=block.dtype.in_torch).reshape(block.shape)


def checksum(data: memoryview, crc: int = 0) -> int:
    """Continue a checksum: crc32 over the sums of 1024 words each, and over the rest as it is.

    It detects every error within one word of 8 bytes and misses others with a chance of about 2**-32, but for
    words swapped within 8 KiB. Sums run at the speed of memory everywhere; crc32 alone only where zlib is a
    fast one.
    """
    bulk = len(data) // _ROW * _ROW
    if bulk:
        sums: Words = np.add.reduce(np.frombuffer(data[:bulk], "<u8").reshape(-1, _ROW // 8), axis=1)
        crc = zlib.crc32(sums.data, crc)
    return zlib.crc32(data[bulk:], crc)
