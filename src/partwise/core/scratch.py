"""Memory that is used again: fresh pages cost more than the arithmetic of a small model."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from partwise.core.model import Values

__all__ = ["Scratch"]

_ALIGNED = 64  # bytes, as torch aligns what it allocates
_LEAST = 256 << 10  # bytes; less is left to torch
_GRAIN = 64 << 10  # bytes that sizes are rounded to
_HUGE = 2 << 20  # bytes of a huge page
_KEPT_BYTES = 256 << 20  # of blocks that nobody uses


class Scratch:
    """Blocks of memory for results; each comes back by itself when the last tensor in it has gone.

    Example:
        >>> values = Scratch().empty({"w": torch.zeros(2, 3)})
        >>> values["w"].shape
        torch.Size([2, 3])
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Scratch, ()

    def clone(self, values: Mapping[str, Tensor]) -> Values:
        """Copies, with the strides that `torch.clone` would give."""
        if all(t.is_contiguous() for t in values.values()):
            return {name: t.copy_(values[name]) for name, t in self.empty(values).items()}
        return {name: t.clone() for name, t in values.items()}

    def empty(self, like: Mapping[str, Tensor]) -> Values:
        """Contiguous tensors of these shapes and types, not filled."""
        places, end = {}, 0
        for name, t in like.items():
            places[name] = end
            end += -(-prod(t.shape) * t.itemsize // _ALIGNED) * _ALIGNED
        if end < _LEAST or any(not t.is_cpu for t in like.values()):
            return {name: torch.empty(t.shape, dtype=t.dtype, device=t.device) for name, t in like.items()}
        block = torch.frombuffer(self._view(end), dtype=torch.uint8)
        found: Values = {}
        for name, t in like.items():
            size = prod(t.shape) * t.itemsize
            found[name] = block[places[name] : places[name] + size].view(t.dtype).view(t.shape)
        return found

    def _view(self, size: int) -> memoryview:
        fitting = [b for b in self._free if size <= len(b) <= 2 * size]
        block = min(fitting, key=len, default=None)
        if block is None:
            grain = _HUGE if size >= _HUGE else _GRAIN
            block = _block(-(-size // grain) * grain)
        else:
            self._free.remove(block)
        view = memoryview(block)  # what torch keeps as long as there is a tensor; the block outlives it
        weakref.finalize(view, _give_back, self._free, block).atexit = False
        return view


def _block(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(free: list[mmap.mmap], block: mmap.mmap) -> None:
    if sum(map(len, free)) + len(block) <= _KEPT_BYTES:
        free.append(block)
