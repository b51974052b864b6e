"""Randomness that is derived, not drawn: every stream comes from the seed and what it is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Rng", "derive", "generator", "numpy_generator", "restarts"]

Rng = torch.Generator


def derive(seed: int, purpose: str, *keys: int) -> int:
    """The seed of one stream, a function of (seed, purpose, keys) alone.

    Args:
        seed: the experiment's seed.
        purpose: what the stream is for, such as `"batches"`; streams of different purpose are independent.
        keys: usually client, version, attempt.

    Returns:
        int in [0, 2**63).

    Example:
        >>> derive(1, "batches", 7, 0) == derive(1, "batches", 7, 0) != derive(1, "batches", 7, 1)
        True
    """
    text = f"{seed}|{purpose}|" + ",".join([str(int(k)) for k in keys])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *keys: int) -> Rng:
    """A torch generator for one derived stream."""
    return torch.Generator().manual_seed(derive(seed, purpose, *keys))


def restarts(seeds: Sequence[int]) -> Iterator[np.random.Generator]:
    """The generators of some derived seeds, in one object that is begun anew for each: a fifth of the time.

    Args:
        seeds: as `derive` makes them.

    Yields:
        For each seed what `numpy_generator` gives, until the next one is asked for.

    Example:
        >>> (one,) = restarts([derive(1, "x", 7)])
        >>> bool(one.random() == numpy_generator(1, "x", 7).random())
        True
    """
    bits = np.random.Philox(0)
    generator, begun = np.random.Generator(bits), bits.state
    for key in _philox_keys(seeds):
        begun["state"]["key"] = key
        bits.state = begun
        yield generator


def _constants(first: int, factor: int, count: int) -> NDArray[np.uint32]:
    """(count, 1): each `factor` times the one before."""
    return np.array([[first * pow(factor, n, 1 << 32) & 0xFFFFFFFF] for n in range(count)], np.uint32)


_IN, _OUT = _constants(0x43B0D7E5, 0x931E8875, 17), _constants(0x8B51F9DD, 0x58F38DED, 5)
_LEFT, _RIGHT, _HALF = np.uint32(0xCA01F9DD), np.uint32(0x4973F715), np.uint32(16)
_REST = [[n for n in range(4) if n != source] for source in range(4)]


def _philox_keys(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """(n, 2): `SeedSequence(seed).generate_state(2, np.uint64)` of each seed below 2**64, all at once.

    Source: O'Neill, "Developing a seed_seq alternative", 2015, as NumPy has it, which keeps it the same for ever.
    """
    pool = np.zeros((4, len(seeds)), np.uint32)
    pool[:2] = np.array(seeds, "<u8").view("<u4").reshape(-1, 2).T
    _hash_(pool, _IN[:5])
    for source, rest in enumerate(_REST):
        push = np.repeat(pool[source : source + 1], 3, 0)
        _hash_(push, _IN[4 + 3 * source : 8 + 3 * source])
        mixed = pool[rest] * _LEFT - push * _RIGHT
        pool[rest] = mixed ^ (mixed >> _HALF)
    _hash_(pool, _OUT)
    return np.ascontiguousarray(pool.T.astype("<u4")).view("<u8")


def _hash_(words: NDArray[np.uint32], constants: NDArray[np.uint32]) -> None:
    words ^= constants[:-1]
    words *= constants[1:]
    words ^= words >> _HALF


def numpy_generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A NumPy generator (Philox) for one derived stream."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *keys)))
