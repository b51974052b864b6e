"""What a user has, as checked columns.

Shapes: n examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwise.core.errors import DataError

__all__ = ["as_columns", "known"]

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_NUMPYS = (torch.float16, torch.float32, torch.float64)
_TYPES = {*_WHOLE, *_UNSIGNED, *_NUMPYS, torch.bfloat16}


def known(where: str, name: str, names: Iterable[str]) -> str:
    """`name`, if it is one of `names`.

    Raises:
        DataError: it is not; the message gives the nearest name that is.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"The columns are {', '.join(map(repr, names))}."
    raise DataError(f"{where}: must name a column, got {name!r}. {hint}")


def as_columns(where: str, columns: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of equal length from tensors, arrays and lists.

    Tensors keep their type; float64 arrays and lists become float32, as models have it, and lists of bfloat16 tensors.

    Raises:
        DataError: no column, unequal lengths, text or objects, complex or sparse tensors, ragged values, NaN or
            infinity.
    """
    found = {name: _tensor(where, name, values) for name, values in columns.items()}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise DataError(
            f"{where}: columns must have equal length, at least 1, got {lengths or 'no column'}. "
            "Cut them to the same examples."
        )
    for name, column in found.items():
        if column.is_floating_point():
            bad = (~torch.isfinite(column.flatten(1) if column.dim() > 1 else column.unsqueeze(1))).any(1)
            if bad.any():
                raise DataError(
                    f"{where}: numbers must be finite, got NaN or infinity in column {name!r} of {int(bad.sum())} "
                    f"examples, the first at {int(bad.nonzero()[0])}. Fill or drop them."
                )
    return found


def _tensor(where: str, name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        if values.dim() == 0:
            raise DataError(f"{where}: a column has one row per example, got a single number for {name!r}. Use a list.")
        if values.layout != torch.strided or values.dtype not in _TYPES:
            got = values.dtype if values.layout == torch.strided else values.layout
            raise DataError(
                f"{where}: columns must be dense tensors of real numbers, got {got} in column {name!r}. "
                "Convert it, with to_dense() or to(torch.float32)."
            )
        return values.detach()  # examples are no part of the model, even where a network made them
    array = _array(where, name, values)
    if array.ndim == 0:
        raise DataError(f"{where}: a column has one row per example, got a single number for {name!r}. Use a list.")
    if array.dtype.kind not in "biuf":
        mixed = ' Numbers of several types side by side, as in a data frame, become one by .astype("float32").'
        raise DataError(
            f"{where}: columns must hold numbers, got {array.dtype} in column {name!r}. "
            f"Encode text as integers first, or leave the column out.{mixed if array.dtype.kind == 'O' else ''}"
        )
    if np.ma.is_masked(array):  # a tensor would have what lies under the mask
        raise DataError(
            f"{where}: every value must be there, got {int(np.ma.getmaskarray(array).sum())} masked ones in column "
            f"{name!r}. Fill or drop those examples."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        array = array.astype(np.float32)
    elif array.dtype.kind == "u" and array.dtype != np.uint8:
        if array.size and array.max() > np.iinfo(np.int64).max:  # would come out negative
            raise DataError(
                f"{where}: whole numbers must be below 2**63, got {array.max()} in column {name!r}. "
                "Number the values from 0 on."
            )
        array = array.astype(np.int64)
    # torch wants memory it may write to, in the machine's byte order, without negative strides.
    if not array.flags.writeable or not array.dtype.isnative or any(s < 0 for s in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), copy=True, order="C")
    return torch.from_numpy(array)


def _own(item: Any) -> Any:
    """An example as NumPy takes it, which has neither gradients nor bfloat16."""
    if not isinstance(item, Tensor):
        return item
    item = item.detach().cpu()
    return item.float() if item.is_floating_point() and item.dtype not in _NUMPYS else item


def _array(where: str, name: str, values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__array__") and len(getattr(values, "shape", ())) > 1:
        return np.asarray(values)  # a data frame, over which one goes by the names of its columns
    items = list(values)
    try:
        if items and not isinstance(items[0], (int, float, str, bytes)):
            return np.stack([np.asarray(_own(item)) for item in items])
        return np.asarray(items)
    except ValueError as error:
        raise DataError(
            f"{where}: all examples must have the same shape, got different ones in column {name!r}. "
            "Pad or cut them to one length."
        ) from error
