"""Small whole numbers in few bits: several to a byte, the first in the lowest bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["CHUNK", "mean_magnitude", "narrowed", "places", "signs_of", "widened"]

CHUNK = 1 << 19  # values that are worked on together, so that what is made of them stays in the processor's cache


def narrowed(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2**bits, one to a byte, packed 8 // bits to a byte.

    Args:
        codes: (n,) uint8.
        bits: 1, 2, 4 or 8.

    Returns:
        (⌈n bits / 8⌉,) uint8; the last byte is filled with zeros.

    Example:
        >>> narrowed(torch.tensor([1, 2, 3], dtype=torch.uint8), 4)
        tensor([33,  3], dtype=torch.uint8)
    """
    codes = pad(codes, (0, -len(codes) % (8 // bits))) if len(codes) % (8 // bits) else codes
    while bits < 8:
        pair = codes.view(torch.int16)  # the second byte of two lies in the high bits
        codes = (pair | (pair >> (8 - bits))).to(torch.uint8)
        bits *= 2
    return codes


def widened(packed: Tensor, bits: int) -> Tensor:
    """Undo `narrowed`: (bytes,) uint8 -> (bytes * 8 // bits,) uint8, zeros at the end included."""
    have = 8
    while have > bits:
        have //= 2
        wide = packed.to(torch.int16)
        mask = 2**have - 1
        packed = ((wide | (wide << (8 - have))) & (mask | mask << 8)).view(torch.uint8)
    return packed


def signs_of(flat: Tensor) -> Tensor:
    """One bit per value, set where it is below zero: (n,) -> (⌈n / 8⌉,) uint8."""
    found = torch.empty(-(-len(flat) // 8), dtype=torch.uint8, device=flat.device)
    for at in range(0, len(flat), CHUNK):
        part = narrowed((flat[at : at + CHUNK] < 0).view(torch.uint8), 1)
        found[at // 8 : at // 8 + len(part)] = part
    return found


def mean_magnitude(flat: Tensor) -> float:
    """mean |x|, summed piece by piece; 0 of nothing."""
    total, room = 0.0, torch.empty_like(flat[:CHUNK])
    for at in range(0, len(flat), CHUNK):
        part = flat[at : at + CHUNK]
        total += float(torch.abs(part, out=room[: len(part)]).sum())
    return total / max(1, len(flat))


def places(mask: Tensor) -> Tensor:
    """Where a mask of one axis is set: int64, ascending."""
    if mask.is_cpu:
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # eight times as fast as torch's
    return mask.nonzero().reshape(-1)
