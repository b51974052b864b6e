"""Tensors in files, mapped into memory: opening reads a header, and a page of data is read when it is touched.

Shapes: n examples.
"""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from partwise.core.errors import DataError

__all__ = ["NPY_TYPES", "mapped_npy", "mapped_safetensors", "npy_header"]

NPY_TYPES = {
    np.dtype(name).str: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}
_SAFE = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_HEADER_BYTES = 192  # of a file written here: room for any shape, a multiple of 64
_MAX_HEADER_BYTES = 100 << 20  # as safetensors has it
# Without a reservation, a private mapping may be larger than the memory. The number is Linux's; Python names it late.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def _mapping(path: Path) -> mmap.mmap:
    """The file; what is written to it is this process's alone, so that no stray write harms the data."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _tensor(where: str, whole: mmap.mmap, place: _Place) -> Tensor:
    """A tensor that lies in a mapped file."""
    if place.offset < 0 or not all(type(size) is int and size >= 0 for size in place.shape):
        raise DataError(
            f"{where}: must have a shape of whole numbers from 0 on, and begin in the file, got {place.shape} from "
            f"byte {place.offset}. Write it again."
        )
    count = int(np.prod(place.shape, dtype=object))
    end = place.offset + count * place.dtype.itemsize
    if end > len(whole):
        raise DataError(
            f"{where}: must have the {end} bytes its header speaks of, got {len(whole)}. Write or copy it again."
        )
    if place.offset % place.dtype.itemsize:
        raise DataError(
            f"{where}: values must begin at a multiple of their size, {place.dtype.itemsize}, got byte "
            f"{place.offset}. Write it with the safetensors library, which aligns them."
        )
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(whole, dtype=place.dtype, count=count, offset=place.offset).view(place.shape)


def mapped_npy(where: str, path: Path) -> Tensor:
    """The array of a `.npy` file, of which nothing but the header has been read.

    Args:
        where: what an error begins with.
        path: the file.

    Raises:
        DataError: no such file, or not an array that can be used in place.
    """
    where = f"{where}: {path.name}"
    with path.open("rb") as file:
        place = _npy_place(where, file)
    return _tensor(where, _mapping(path), place)


def _npy_place(where: str, file: IO[bytes]) -> _Place:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: must be an array that np.save wrote, got: {error}. Write it again.") from error
    if dtype.hasobject:
        raise DataError(
            f"{where}: must hold numbers, got pickled Python objects, which are never loaded. "
            "Encode them as numbers, and save with np.save(..., allow_pickle=False)."
        )
    if dtype.str not in NPY_TYPES:
        raise DataError(
            f"{where}: must be of one of the types {', '.join(NPY_TYPES)}, got {dtype.str!r}. Convert it with astype."
        )
    if not shape or (is_fortran and len(shape) > 1):
        got = "columns first (Fortran order)" if shape else "a single number"
        raise DataError(
            f"{where}: must have its examples one after another, got {got}. Save np.ascontiguousarray(values)."
        )
    return _Place(NPY_TYPES[dtype.str], tuple(shape), file.tell())


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of a `.npy` file, as long for one example as for all: it is written again when n is known."""
    form = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    text = form.encode().ljust(_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + (len(text)).to_bytes(2, "little") + text


def mapped_safetensors(where: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, of which nothing but the header has been read.

    Args:
        where: what an error begins with.
        path: the file.

    Raises:
        DataError: not such a file, or tensors of a dtype that has no meaning here.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            places = {
                name: _Place(_SAFE[found["dtype"]], tuple(found["shape"]), 8 + length + found["data_offsets"][0])
                for name, found in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{where}: must be a safetensors file of numbers, got {type(error).__name__}: {error}. Write it again."
            ) from error
    whole = _mapping(path)
    return {name: _tensor(f"{where}: {name!r}", whole, place) for name, place in places.items()}
