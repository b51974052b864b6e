"""Metrics as columns per example and a reduction, so that they merge whatever the grouping of clients.

Shapes: b examples in a batch, n examples in a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.kinds import article
from partwise.core.model import ExampleLoss, counted
from partwise.core.population import Batch

__all__ = ["AUC", "Accuracy", "Loss", "Metric", "MetricOfEach", "Perplexity", "TopKAccuracy", "reduced_each"]


class Metric(Protocol):
    """What is measured. Columns of several groups are merged by concatenation, in any order."""

    @property
    def name(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Columns of one value per example, each (b,)."""
        ...

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        """The metric of the examples in `columns`, each (n,); nan where it is not defined."""
        ...


@runtime_checkable
class MetricOfEach(Protocol):
    """What a metric may have besides, so that many clients do not take a call each."""

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        """What `reduce` gives for each of several groups up to rounding; they follow one another in `columns`.

        Args:
            columns: (n,) each.
            sizes: examples of each group, > 0; their sum is n.
        """
        ...


def reduced_each(metric: Metric, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
    """The metric of each of several groups that follow one another, whether or not it takes them at once."""
    if isinstance(metric, MetricOfEach):
        return metric.reduce_each(columns, sizes)
    parts = {name: column.split(list(sizes)) for name, column in columns.items()}
    return [metric.reduce({name: part[at] for name, part in parts.items()}) for at in range(len(sizes))]


def _mean(column: Tensor) -> float:
    return float(column.double().mean()) if len(column) else math.nan


def _are_classes(outputs: Tensor, target: Tensor) -> bool:
    """Whether the outputs are (b, classes, ...) and the targets (b, ...)."""
    return outputs.dim() > 1 and outputs.shape[:1] + outputs.shape[2:] == target.shape


def _by_example(hit: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """One value per example, (b,): of one with several targets, the share of those that count. NaN hits none."""
    is_none = outputs.isnan()
    hit = hit & ~(is_none if is_none.dim() == 1 else is_none.any(1))
    if hit.dim() == 1:
        return hit
    count = counted(target)
    return (hit & count).flatten(1).double().sum(1) / count.flatten(1).sum(1).clamp(min=1)


def _check_tensor(where: str, outputs: object) -> None:
    """Refuses what is no tensor: which of several a model means by its logits, nobody can tell."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"{where}: needs outputs that are one tensor, got {article(type(outputs).__name__)}. Let forward return "
            "the logits alone, or write a metric that takes them out."
        )


def _check_binary(where: str, target: Tensor) -> None:
    """Refuses labels such as -1 and 1, from which a loss of one logit would learn something else without a word."""
    if len(target) and not 0 <= float(target.min()) <= float(target.max()) <= 1:
        raise ValueError(
            f"{where}: targets of one logit must be 0 or 1, got {float(target.min()):g} to {float(target.max()):g}. "
            "Number the classes 0 and 1."
        )


def _means(column: Tensor, sizes: Sequence[int]) -> list[float]:
    starts = np.cumsum([0, *sizes[:-1]])
    means: list[float] = (np.add.reduceat(column.double().cpu().numpy(), starts) / np.array(sizes)).tolist()
    return means


@dataclass(frozen=True)
class Loss:
    """Mean loss over examples."""

    of: ExampleLoss
    name: str = "loss"
    higher_is_better: bool = False

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.of(outputs, batch)}

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        return _mean(columns["loss"])

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        return _means(columns["loss"], sizes)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss in nats."""

    of: ExampleLoss
    name: str = "perplexity"
    higher_is_better: bool = False

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.of(outputs, batch)}

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        return _exp(_mean(columns["loss"]))

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        return [_exp(mean) for mean in _means(columns["loss"], sizes)]


def _exp(mean: float) -> float:
    return math.inf if mean > 700 else math.exp(mean)


@dataclass(frozen=True)
class Accuracy:
    """Share of examples whose largest logit is the target's; one logit is compared with 0. NaN is never right.

    An example with several targets, (b, ...), counts by its share of right ones, among those that are not -100.
    """

    target: str = "y"
    name: str = "accuracy"
    higher_is_better: bool = True

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        _check_tensor(f"Accuracy(target={self.target!r})", outputs)
        target, is_one = batch[self.target], outputs.dim() == 1
        if not (outputs.shape == target.shape if is_one else _are_classes(outputs, target) and outputs.shape[1] > 1):
            raise ValueError(  # it would count something, but not what is right
                f"Accuracy(target={self.target!r}): needs logits (b, classes, ...) for targets (b, ...), or one logit "
                f"per example, (b,), got {tuple(outputs.shape)} for {tuple(target.shape)}. "
                "For one logit let forward end with .squeeze(1)."
            )
        if is_one:
            _check_binary(f"Accuracy(target={self.target!r})", target)
        hit = (outputs > 0) == (target > 0.5) if is_one else outputs.argmax(1) == target
        return {"hit": _by_example(hit, outputs, target)}

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        return _mean(columns["hit"])

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        return _means(columns["hit"], sizes)


@dataclass(frozen=True)
class TopKAccuracy:
    """Share of examples whose target is among the k largest logits. NaN is never right; -100 as in `Accuracy`."""

    k: int = 5
    target: str = "y"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"TopKAccuracy(k={self.k}): k must be at least 1. Use k=1 for accuracy.")

    @property
    def name(self) -> str:
        return f"top{self.k}"

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        target = batch[self.target]
        _check_tensor(f"TopKAccuracy(target={self.target!r})", outputs)
        if not _are_classes(outputs, target):
            raise ValueError(
                f"TopKAccuracy(target={self.target!r}): needs logits (b, classes, ...) for targets (b, ...), got "
                f"{tuple(outputs.shape)} for {tuple(target.shape)}. For one logit per example take Accuracy."
            )
        best = outputs.topk(min(self.k, outputs.shape[1]), dim=1).indices
        return {"hit": _by_example((best == target.unsqueeze(1)).any(1), outputs, target)}

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        return _mean(columns["hit"])

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        return _means(columns["hit"], sizes)


@dataclass(frozen=True)
class AUC:
    """Exact area under the ROC curve of one logit per example; ties count half; nan with one class only.

    Source: the Mann-Whitney U statistic over positives times negatives.
    """

    target: str = "y"
    name: str = "auc"
    higher_is_better: bool = True

    def measure(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        target = batch[self.target]
        _check_tensor(f"AUC(target={self.target!r})", outputs)
        if outputs.dim() != 1 or target.dim() != 1:
            raise ValueError(
                f"AUC(target={self.target!r}): needs one logit and one target per example, (b,), got "
                f"{tuple(outputs.shape)} and {tuple(target.shape)}. Let forward end with .squeeze(1), or take Accuracy."
            )
        _check_binary(f"AUC(target={self.target!r})", target)
        return {"score": outputs, "is_positive": target > 0.5}

    def reduce(self, columns: Mapping[str, Tensor]) -> float:
        return self.reduce_each(columns, [len(columns["score"])])[0]

    def reduce_each(self, columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[float]:
        score, is_positive = _sortable(columns["score"]), columns["is_positive"].cpu().numpy()
        is_finite = bool(np.isfinite(score).all())
        found, start = [], 0
        for size in sizes:
            own, at = score[start : start + size], is_positive[start : start + size]
            found.append(_area(own[at], own[~at]) if is_finite or np.isfinite(own).all() else math.nan)
            start += size
        return found


def _sortable(score: Tensor) -> NDArray[Any]:
    """In its own type where NumPy sorts that fast: half of the bytes of float64 are sorted in half of the time."""
    return (score if score.dtype in (torch.float32, torch.float64) else score.double()).cpu().numpy()


def _area(above: NDArray[Any], below: NDArray[Any]) -> float:
    """The area under the curve of the scores of positives and negatives, which are sorted in place."""
    if not len(above) or not len(below):
        return math.nan
    above.sort()  # NumPy's sort and search take a third of torch's
    below.sort()
    # Twice the pairs that are in order, ties counted once: whole numbers, so that no order of summing matters.
    twice = int(below.searchsorted(above).sum() + below.searchsorted(above, side="right").sum())
    return twice / 2 / (len(above) * len(below))
