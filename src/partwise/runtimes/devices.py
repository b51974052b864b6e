"""Devices by name: what a name stands for, whether it is there, and what is global on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from partwise.core.errors import CompositionError

__all__ = ["Precision", "check_device", "found_device", "precise", "seed_device_", "states_of_chance"]

Precision = Literal["highest", "high", "medium"]
_KINDS = ("cpu", "cuda")


def check_device(part: str, device: str) -> None:
    """Refuse what is no device's name. part: of whom, for the sentence.

    Raises:
        ValueError: another name than `auto`, `cpu`, `cuda` or `cuda:0`, say.
    """
    kind, colon, number = device.partition(":")
    if device != "auto" and (kind not in _KINDS or (colon and not (number.isascii() and number.isdigit()))):
        raise ValueError(
            f"{part}(device={device!r}): must be 'auto', 'cpu', 'cuda', or one of several such as 'cuda:0', got "
            f"{device!r}. 'auto' takes a GPU where there is one."
        )


def found_device(part: str, device: str) -> torch.device:
    """What a name stands for on this machine.

    Raises:
        CompositionError: it is not there.
    """
    count = torch.cuda.device_count()  # asks no more of CUDA than that: what has begun to use it cannot be forked
    if device == "auto":
        return torch.device("cuda" if count else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= count:
        there = f"{count} of them" if count else "none"
        raise CompositionError(
            f"{part}(device={device!r}): needs a GPU that torch can use, got {there} here. Use device='auto', which "
            "takes the CPU where there is none, or look at `partwise doctor`."
        )
    return found


@contextmanager
def precise(device: torch.device, precision: Precision) -> Iterator[None]:
    """Have float32 products and convolutions on a GPU be as exact as is said, and leave chance there as it is."""
    if device.type == "cpu":
        yield
        return
    product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        with torch.random.fork_rng([device]):
            yield
    finally:
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution


def seed_device_(device: torch.device, seed: int) -> None:
    """Seed what layers that know no generator draw from, where they compute."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def states_of_chance(device: torch.device) -> Sequence[Tensor]:
    """The states of those generators: they differ after something was drawn."""
    own = torch.get_rng_state()
    return (own, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (own,)
