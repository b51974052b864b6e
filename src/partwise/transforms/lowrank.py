"""Matrices as products of two thin ones: PowerSGD.

Shapes: a parameter is seen as a matrix (n, m), its first axis against all others; r is the rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.counter import key_of, normal
from partwise.core.joined import FLOATS, float_name
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Packed, Update, all_finite, not_finite, wide_type

__all__ = ["Factors", "LowRank"]


@register
@dataclass(frozen=True, eq=False)
class Factors:
    """left @ rightᵀ, in the shape of a parameter.

    Args:
        left: (n, r).
        right: (m, r).
        shape: of the tensor; n is its first size.
        dtype: of the tensor.
    """

    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        is_known = self.dtype in FLOATS and len(self.shape) >= 2 and all(n >= 1 for n in self.shape)
        sizes = [(len(t), t.shape[-1], t.dim(), t.is_floating_point()) for t in (self.left, self.right)]
        rank = self.left.shape[-1]
        if not is_known or sizes != [(self.shape[0], rank, 2, True), (prod(self.shape[1:]), rank, 2, True)]:
            raise ValueError(
                f"Factors(shape={self.shape}): needs factors of as many rows and columns, got "
                f"{tuple(self.left.shape)} and {tuple(self.right.shape)}. Send what `LowRank` made."
            )

    def unpack(self) -> Tensor:
        """left @ rightᵀ."""
        return (self.left @ self.right.T).to(FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class LowRank:
    """P (Bᵀ P)ᵀ, with the columns of P an orthonormal basis of B Q: the nearest to B in their span; Q is the last BᵀP.

    One step of power iteration for each update, from where the last one ended, so that it comes nearer as long as
    updates resemble one another. Parameters with one axis, those of which single coordinates are held, and those that
    would become longer are sent as they are; factors of half-precision values are of single precision.

    Args:
        rank: r, >= 1. 2 is usual.

    Raises:
        ValueError: an update that is not finite.

    Source: Vogels et al., "PowerSGD: practical low-rank gradient compression for distributed optimization", NeurIPS
        2019, arXiv:1905.13727, algorithm 1.
    Differs: each client by itself, in one message. The paper's clients have P and Q in common, which takes two
        exchanges for each step and equal submodels; there the sum of compressed updates is the compressed sum, here it
        is not: that is the channel `LowRankSum`. When the shape of what is held changes, Q begins anew.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (8, 8)}), {"w": torch.outer(torch.arange(8.0), torch.ones(8))})
        >>> part = LowRank(rank=1)
        >>> sent, _ = part.apply(update, part.init({}), torch.Generator())
        >>> torch.allclose(sent.values()["w"], update.values()["w"], atol=1e-5)
        True
    """

    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LowRank(rank={self.rank}): must be at least 1, got {self.rank}. 2 is usual.")

    def claims(self, size: int) -> Claims:
        # A random direction catches 1 / m of a matrix at least, on average.
        return Claims(delta=1 / max(1, size))

    def init(self, params: Params) -> State:
        return {}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        value: dict[str, Tensor | Packed] = {}
        bases: Values = {}
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        values = update.values()
        for name, held in values.items():
            float_name(self, held.dtype)
            if not all_finite(held):
                raise not_finite(self)
            if not self._pays(held):
                value[name] = held
                continue
            base = state.get(name)
            if base is None or tuple(base.shape) != (held[0].numel(), self.rank):
                key = key_of(seed, name)
                base = normal(key, torch.arange(held[0].numel() * self.rank)).reshape(-1, self.rank)
            value[name], bases[name] = _factored(held, base)
        return replace(update, value=value), {**state, **bases}

    def _pays(self, held: Tensor) -> bool:
        if held.dim() < 2 or not held.numel():
            return False
        rows, columns = held.shape[0], held[0].numel()
        size = wide_type(held.dtype).itemsize
        return self.rank * (rows + columns) * size < rows * columns * held.element_size()


def _factored(held: Tensor, base: Tensor) -> tuple[Factors, Tensor]:
    """(n, ...) and (m, r) -> what stands for it, and the next base (m, r)."""
    matrix = held.reshape(len(held), -1).to(wide_type(held.dtype))
    left = torch.linalg.qr(matrix @ base.to(matrix)).Q  # of a zero matrix: some basis, and the other factor is 0
    right = matrix.T @ left
    next_ = right if bool(right.any(0).all()) else base.to(right)  # a direction that is lost would stay so
    return Factors(left.contiguous(), right, tuple(held.shape), float_name(held, held.dtype)), next_.clone()
