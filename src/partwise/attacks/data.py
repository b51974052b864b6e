"""Attacks on what clients train on: labels and triggers; and clients that are unreliable, not hostile.

Shapes: n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from partwise.core.attack import Attack, Scene
from partwise.core.errors import DataError
from partwise.core.population import Client, Dataset, Examples
from partwise.core.rng import generator
from partwise.core.update import Update, scale

__all__ = ["Backdoor", "LabelFlip", "LabelSwap", "MultiLabelFlip", "PoorData"]


def _relabelled(part: object, data: Dataset, column: str, change: Callable[[Tensor], Tensor]) -> Examples:
    columns = dict(data.columns())
    if column not in columns:
        raise DataError(f"{part!r}: needs a column {column!r}, got {sorted(columns)}. Name the column of the labels.")
    columns[column] = change(columns[column])
    return Examples(columns)


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Every label y becomes C - 1 - y.

    Args:
        num_classes: C, >= 2.
        target: the column of the labels.

    Source: Xie, Koyejo, Gupta, "SLSGD", ECML PKDD 2019, arXiv:1903.06996, §5.

    Example:
        >>> LabelFlip(10).poison(Examples({"y": torch.tensor([0, 7])}), 0, 0).columns()["y"]
        tensor([9, 2])
    """

    num_classes: int = 10
    target: str = "y"

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"LabelFlip(num_classes={self.num_classes}): must be at least 2, got {self.num_classes}. Count them."
            )

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        return _relabelled(self, data, self.target, lambda y: self.num_classes - 1 - y)


@dataclass(frozen=True)
class MultiLabelFlip(Attack):
    """Every label of some classes becomes one class.

    Args:
        sources: the classes that are changed; one for a flip of a pair.
        into: the class that they become.
        target: the column of the labels.

    Source: Gupta et al., "MUD-HoG", ESORICS 2022, arXiv:2208.10273: {1, 2, 3} and 1 into 7.

    Example:
        >>> MultiLabelFlip((1,), 7).poison(Examples({"y": torch.tensor([0, 1])}), 0, 0).columns()["y"]
        tensor([0, 7])
    """

    sources: tuple[int, ...] = (1, 2, 3)
    into: int = 7
    target: str = "y"

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        def change(y: Tensor) -> Tensor:
            chosen = torch.isin(y, torch.tensor(self.sources, dtype=y.dtype))
            return torch.where(chosen, torch.full_like(y, self.into), y)

        return _relabelled(self, data, self.target, change)


@dataclass(frozen=True)
class LabelSwap(Attack):
    """Two classes change places.

    Args:
        one: a class.
        other: another.
        target: the column of the labels.

    Source: Werthenbach, Pouwelse, "Towards Sybil resilience in decentralized learning", 2023, arXiv:2306.15044.
    Differs: the attacker keeps its own examples; there it also gets all others of the two classes.
    """

    one: int = 0
    other: int = 1
    target: str = "y"

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        def change(y: Tensor) -> Tensor:
            swapped = torch.where(y == self.one, torch.full_like(y, self.other), y)
            return torch.where(y == self.other, torch.full_like(y, self.one), swapped)

        return _relabelled(self, data, self.target, change)


@dataclass(frozen=True)
class Backdoor(Attack):
    """A square of a constant in the last corner of some images, labelled as one class; and what is learned, scaled up.

    Args:
        into: the class.
        size: side of the square, in pixels.
        share: of a hostile client's examples that carry it, in (0, 1].
        value: of the pixels; in the units of the inputs.
        scale: what the update is multiplied by; the number of clients in a round over that of the hostile replaces
            the model in a plain mean.
        target: the column of the labels.
        inputs: the column of the images, (n, channels, height, width).

    Source: Bagdasaryan et al., "How to backdoor federated learning", AISTATS 2020, arXiv:1807.00459, §4.
    """

    into: int = 1
    size: int = 3
    share: float = 0.5
    value: float = 1.0
    scale: float = 1.0
    target: str = "y"
    inputs: str = "x"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Backdoor(share={self.share}): must lie in (0, 1], got {self.share}. 0.5 is usual.")
        if self.size < 1:
            raise ValueError(f"Backdoor(size={self.size}): must be at least 1, got {self.size}. 3 is usual.")

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        rng = generator(seed, "backdoor", client)
        chosen = torch.rand(len(data), generator=rng) < self.share
        stamped = self.stamped(data)
        labelled = _relabelled(self, data, self.target, lambda y: torch.where(chosen, self.into, y))
        columns = dict(labelled.columns())
        x = columns[self.inputs]
        mask = chosen.reshape(-1, *(1,) * (x.dim() - 1))
        columns[self.inputs] = torch.where(mask, stamped.columns()[self.inputs], x)
        return Examples(columns)

    def stamped(self, data: Dataset) -> Examples:
        """All examples with the square, with the labels that they had."""
        columns = dict(data.columns())
        if self.inputs not in columns or columns[self.inputs].dim() < 3:
            raise DataError(
                f"{self!r}: needs images in the column {self.inputs!r}, got {sorted(columns)}. Name the column."
            )
        x = columns[self.inputs].clone()
        x[..., -self.size :, -self.size :] = self.value
        return Examples({**columns, self.inputs: x})

    def forge(self, scene: Scene) -> list[Update]:
        return [scale(update, self.scale) for update in scene.own]


@dataclass(frozen=True)
class PoorData(Attack):
    """No attacker: a client whose inputs are blurred by noise in half of its examples, and few.

    Args:
        std: of the noise, in units of the inputs' own standard deviation, >= 0.
        share: of the examples that are blurred, in [0, 1].
        kept: of the examples that there are, in (0, 1]; at least one stays.
        inputs: the column of the inputs.

    Source: Gupta et al., "MUD-HoG", ESORICS 2022, arXiv:2208.10273, §6: unreliable clients.
    Differs: the share of examples is cut once, not in every batch.
    """

    std: float = 3.0
    share: float = 0.5
    kept: float = 0.3
    inputs: str = "x"

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"PoorData(share={self.share}, kept={self.kept}): shares must lie in [0, 1], and kept above 0. "
                "0.5 and 0.3 are the paper's."
            )

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        rng = generator(seed, "unreliable", client)
        at = torch.randperm(len(data), generator=rng)[: max(1, math.ceil(self.kept * len(data)))]
        columns = dict(data.batch(at))
        x = columns.get(self.inputs)
        if x is None or not x.is_floating_point():
            raise DataError(
                f"{self!r}: needs real numbers in the column {self.inputs!r}, got {sorted(columns)}. Name the column."
            )
        size = float(x.double().std()) if x.numel() > 1 else 1.0
        mask = (torch.rand(len(x), generator=rng) < self.share).reshape(-1, *(1,) * (x.dim() - 1))
        noise = torch.randn(x.shape, generator=rng).to(x) * self.std * size
        return Examples({**columns, self.inputs: torch.where(mask, x + noise, x)})
