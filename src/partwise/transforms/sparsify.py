"""Sending few coordinates.

Shapes: c coordinates are held of one parameter, k of them are sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from partwise.core.compressor import Claims
from partwise.core.index import Coords
from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.sampled import Sampled
from partwise.core.transform import State
from partwise.core.update import Update, is_finite, map_values, not_finite
from partwise.transforms.bits import CHUNK, places

__all__ = ["RandomK", "Scope", "Threshold", "TopK", "check_ratio", "check_scope", "restricted"]

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class TopK:
    """The k coordinates of largest magnitude; ties go to the lower position, names in alphabetical order.

    What is not sent counts as not held: behind this, `Mean("cohort")` reads it as no change, while a mean over
    holders divides by those who sent. An update that is sent whole stays as it is.

    Args:
        k: how many coordinates, >= 1; a number of them, or
        ratio: a share of what is held, in (0, 1], rounded to the nearest number and at least one. Give one of the two.
        scope: `global` counts over all parameters together, `layer` in each parameter.
        sample: magnitudes that are looked at to guess the k-th largest; all are sent that reach the guess, which is
            several times faster. About k are sent: where the guess gives less than half of them or more than twice as
            many, it is not used. 0 for exactly k.
        warmup: messages of a client over which the number falls from a quarter of what is held to k, each time by the
            same factor; early updates change much of the model at once, and what is left out of them comes late.

    Raises:
        ValueError: a value that is NaN: it has no rank.

    Source: Aji and Heafield, EMNLP 2017, arXiv:1704.05021; Stich et al., "Sparsified SGD with memory", NeurIPS 2018,
        arXiv:1809.07599; Lin et al., "Deep gradient compression", ICLR 2018, arXiv:1712.01887 (`sample`).

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (2, 2)}), {"w": torch.tensor([[3.0, -1.0], [0.5, -2.0]])})
        >>> sent, _ = TopK(k=2).apply(update, (), torch.Generator())
        >>> sent.index.coords("w"), sent.value["w"]
        (tensor([0, 3]), tensor([ 3., -2.]))
    """

    k: int | None = None
    ratio: float | None = None
    scope: Scope = "global"
    sample: int = 0
    warmup: int = 0

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise ValueError(
                f"TopK(k={self.k}, ratio={self.ratio}): needs either k or ratio, got "
                f"{'neither' if self.k is None else 'both'}. Use ratio=0.01 to send one in a hundred."
            )
        if self.k is not None and self.k < 1:
            raise ValueError(f"TopK(k={self.k}): must be at least 1, got {self.k}. Send one coordinate or more.")
        if self.ratio is not None:
            check_ratio("TopK", self.ratio)
        check_scope("TopK", self.scope)
        if self.sample < 0:
            raise ValueError(f"TopK(sample={self.sample}): must be at least 0, got {self.sample}. 0 is exact.")
        if self.warmup < 0:
            raise ValueError(f"TopK(warmup={self.warmup}): must be at least 0, got {self.warmup}. 0 is none.")

    def claims(self, size: int) -> Claims:
        sent = self.k if self.k is not None else max(1, round((self.ratio or 0.0) * size))
        share = min(1.0, sent / max(1, size))
        if self.k is None and self.scope == "layer":
            share *= 2 / 3  # of a layer of which 1.49 entries are wanted, one is sent
        return Claims(delta=share / 2 if self.sample else share)

    def limited(self, before: Limit) -> Limit:
        return before  # what is left out makes an update no longer

    def init(self, params: Params) -> State:
        return 0 if self.warmup else ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        flat = {name: values[name].reshape(-1) for name in sorted(values)}
        done = 1.0
        if self.warmup:
            done, state = min(1.0, state / self.warmup), state + 1
        if self.scope == "layer":
            sent = {name: self._largest({name: x}, done, rng)[name] for name, x in flat.items()}
        else:
            sent = self._largest(flat, done, rng)
        if all(len(place) == values[name].numel() for name, place in sent.items()):
            return update, state
        return restricted(update, values, {name: place for name, place in sent.items() if len(place)}), state

    def _count(self, size: int, done: float) -> int:
        """How many of so many are sent. done: share of the warm-up that is over."""
        k = self.k if self.k is not None else max(1, round((self.ratio or 0.0) * size))
        first = max(k, size / 4)
        return k if done == 1 else round(first * (k / first) ** done)

    def _largest(self, flat: Values, done: float, rng: Rng) -> dict[str, Tensor]:
        """Name -> positions of the k largest of all, ascending; among equals, the first."""
        sizes = [x.numel() for x in flat.values()]
        size = sum(sizes)
        k = self._count(size, done)
        if k >= size:
            return {name: torch.arange(x.numel(), device=x.device) for name, x in flat.items()}
        if any(math.isnan(float(x.sum())) and bool(x.isnan().any()) for x in flat.values()):
            raise ValueError(
                "TopK(): needs an update without NaN, got one. Lower the learning rate or look at the data."
            )
        if 0 < self.sample < size:
            guessed = _above(flat, self._guess(flat, k, size, rng))
            if k / 2 <= sum(map(len, guessed.values())) <= 2 * k:
                return guessed
        magnitude = torch.cat([x.abs() for x in flat.values()])
        threshold = torch.topk(magnitude, k, sorted=False).values.min()
        mask = magnitude > threshold
        equal = places(magnitude == threshold)
        mask[equal[: k - int(mask.sum())]] = True
        return {name: places(part) for name, part in zip(flat, mask.split(sizes), strict=True)}

    def _guess(self, flat: Values, k: int, size: int, rng: Rng) -> float:
        """The k-th largest magnitude, as a sample at even distances has it."""
        stride = -(-size // self.sample)
        first = int(torch.randint(stride, (), generator=rng, device=rng.device))
        seen = torch.cat([x[min(first, x.numel() - 1) :: stride].abs() for x in flat.values() if x.numel()])
        return float(torch.topk(seen, max(1, round(k * len(seen) / size)), sorted=False).values.min())


def _above(flat: Values, threshold: float) -> dict[str, Tensor]:
    """Name -> positions of magnitudes of at least so much, ascending; in pieces that stay in the processor's cache."""
    found = {}
    for name, x in flat.items():
        room, parts = torch.empty_like(x[:CHUNK]), [torch.empty(0, dtype=torch.int64, device=x.device)]
        for at in range(0, x.numel(), CHUNK):
            part = x[at : at + CHUNK]
            parts.append(places(torch.abs(part, out=room[: len(part)]) >= threshold).add_(at))
        found[name] = torch.cat(parts)
    return found


@dataclass(frozen=True)
class Threshold:
    """The coordinates whose magnitude is above a bound; the message is as short as the update is small.

    It promises no share of an update, and so no contraction; with error feedback, what is owed of a coordinate never
    goes above the bound.

    Args:
        above: the bound, >= 0.

    Source: Strom, "Scalable distributed DNN training using commodity GPU cloud computing", Interspeech 2015; Sahu et
        al., "Rethinking gradient sparsification as total error minimization", NeurIPS 2021, arXiv:2108.00951.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (3,)}), {"w": torch.tensor([3.0, -1.0, 0.5])})
        >>> Threshold(0.7).apply(update, (), torch.Generator())[0].values()["w"]
        tensor([ 3., -1.])
    """

    above: float

    def __post_init__(self) -> None:
        if not 0 <= self.above < math.inf:
            raise ValueError(
                f"Threshold(above={self.above}): must be finite and at least 0, got {self.above}. Take a high "
                "quantile of a few updates' magnitudes."
            )

    def claims(self, size: int) -> Claims:
        return Claims()

    def limited(self, before: Limit) -> Limit:
        return before

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values, sent = update.values(), {}
        for name, value in values.items():
            if bool(value.isnan().any()):
                raise ValueError(
                    f"{self!r}: needs an update without NaN, got one. Lower the learning rate or look at the data."
                )
            sent[name] = places(value.reshape(-1).abs() > self.above)
        if all(len(place) == values[name].numel() for name, place in sent.items()):
            return update, state
        return restricted(update, values, {name: place for name, place in sent.items() if len(place)}), state


@dataclass(frozen=True)
class RandomK:
    """Each coordinate with the same chance, the same ones at all clients of a version; only a seed says which.

    The draw goes by the place in the whole model, so that clients with different submodels send the same of what they
    share. It is linear: sums of it, under masks too, are what would come of the sum.

    Args:
        ratio: the chance, in (0, 1].
        unbiased: divide by the chance what is sent, for use without error feedback.
        block: coordinates, one after another, that are drawn together.
        by_row: draw rows of the first axis, and blocks of rows: where clients hold rows, a masked channel has one
            weight to add for each of them, instead of one for each value.
        seed: of the draw. In a star it is made anew for every version.

    Raises:
        ValueError: an update that is not finite, or was drawn already.

    Source: Stich et al., "Sparsified SGD with memory", NeurIPS 2018, arXiv:1809.07599; Xie et al., "CSER", NeurIPS
        2020, arXiv:2007.13221 (`block`: its GRBS).
    Differs: a chance for each coordinate instead of exactly k of them, so that a part of the draw is the draw of the
        part.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (6,)}), {"w": torch.arange(6.0)})
        >>> RandomK(0.5, seed=3).apply(update, (), torch.Generator())[0].values()["w"]
        tensor([0., 1., 4., 5.])
    """

    ratio: float
    unbiased: bool = False
    block: int = 1
    by_row: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_ratio("RandomK", self.ratio)
        if self.block < 1 or not 0 <= self.seed < 2**63:
            raise ValueError(
                f"RandomK(block={self.block}, seed={self.seed}): needs a block of at least 1 and a seed from 0 to "
                "2**63 - 1, got others. A block of 1 draws each by itself."
            )

    def claims(self, size: int) -> Claims:
        if self.unbiased:
            return Claims(omega=1 / self.ratio - 1, is_linear=True, is_common=True)
        return Claims(delta=self.ratio, is_linear=True, is_common=True)

    def common(self, seed: int) -> RandomK:
        return replace(self, seed=seed)

    def limited(self, before: Limit) -> Limit:
        return before._replace(norm=before.norm / self.ratio) if self.unbiased else before

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        if self.ratio == 1:
            return update, state
        if isinstance(update.index, Sampled):
            raise ValueError(f"{self!r}: needs an update that was not drawn before, got one. Use one RandomK.")
        if not is_finite(update):
            raise not_finite(self)
        index = Sampled(update.index, self.seed, self.ratio, self.block, self.by_row)
        values, weight = update.values(), update.weight
        places = {name: index.places(name).to(held.device) for name, held in values.items()}
        kept = {name: values[name].reshape(-1)[at].reshape(index.held_shape(name)) for name, at in places.items()}
        if isinstance(weight, Mapping):
            weight = {name: _kept(weight[name], values[name], at, kept[name]) for name, at in places.items()}
        sent = Update(index, kept, weight)
        return (map_values(sent, lambda v: v / self.ratio) if self.unbiased else sent), state


def restricted(update: Update, values: Values, places: dict[str, Tensor]) -> Update:
    """The update at some positions among its values, ascending; weights included."""
    index, weight = update.index, update.weight
    at, kept = {}, {}
    for name, place in places.items():
        if index.grain(name):
            positions = index.coords(name).to(place.device)[place]
            at[name], order = positions.sort()  # an index of somebody else's may gather in another order
            places[name] = place = place[order]
        else:
            at[name] = place
        kept[name] = values[name].reshape(-1)[place]
    if isinstance(weight, Mapping):
        weight = {n: _per_coordinate(weight[n], values[n])[place] for n, place in places.items()}
    return Update(Coords({n: tuple(index.shapes[n]) for n in places}, at), kept, weight)


def _per_coordinate(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(weight.shape + (1,) * (value.dim() - weight.dim())).expand(value.shape).reshape(-1)


def _kept(weight: Tensor, value: Tensor, place: Tensor, kept: Tensor) -> Tensor:
    """The weights of values at some places; by rows where there were weights of rows and rows are kept."""
    found = _per_coordinate(weight, value)[place].reshape(kept.shape)
    is_by_row = kept.dim() > 1 and weight.numel() <= len(value)
    return found[(slice(None),) + (slice(1),) * (kept.dim() - 1)] if is_by_row else found


def check_ratio(part: str, ratio: float) -> None:
    """Refuse what is no share."""
    if not 0 < ratio <= 1:
        raise ValueError(f"{part}(ratio={ratio}): must lie in (0, 1], got {ratio}. 0.01 is usual, 1 sends all.")


def check_scope(part: str, scope: str) -> None:
    """Refuse an unknown scope."""
    if scope not in get_args(Scope):
        raise ValueError(f"{part}(scope={scope!r}): must be 'global' or 'layer', got {scope!r}. Choose one.")
