"""The mean, with every denominator that federated learning uses.

Notation: client i of N sends value v_i with weight w_i; C is the cohort of K; N_m are the clients that hold
coordinate m, h_m their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from partwise.core.aggregate import Sum
from partwise.core.errors import CompositionError
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Mean", "MeanBy", "check_holders"]

MeanBy = Literal["holders", "cohort", "expected", "expected_holders", "ratio"]


@dataclass(frozen=True)
class Mean:
    """Sum of w_i s_i v_i over C, divided per coordinate by one of five weights; s_i, a scheduler's scale, is mostly 1.

    Args:
        by: what the sum is divided by:
            `holders`: sum of w_i over the holders in the cohort (`count`; HeteroFL; the secure submodel code). Where
                a scheduler scales updates by s_i: sum of w_i s_i over the holders, times sum of w_i over sum of
                w_i s_i over the cohort, so that an update damped for its staleness is damped where few hold;
            `cohort`: sum of w_i over the cohort (FedAvg; absence counts as zero change);
            `expected`: (K/N) sum of w_i over all clients (FedAvg, unbiased);
            `expected_holders`: (K/N) sum of w_i over all holders (FedSubAvg's `heat`; with weights by size, A.5's
            exact form);
            `ratio`: sum of w_i over the cohort, times the holders' share of all weight (the released FedSubAvg
            code; biased, because its denominator is random).

            By the last three, running means and variances (`Census.still`) are divided by the sum of w_i over the
            holders in the cohort all the same: a sum that is no mean could make a variance negative.
        at_least: lower bound of the divisor, in units of one mean weight; 0 for none. With
            `expected_holders` and 1 this is the `capped` estimator: a lone update of a cold coordinate is not
            blown up.

    Source: Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022,
        arXiv:2109.07704 (`expected_holders`); McMahan et al., AISTATS 2017, arXiv:1602.05629 (`cohort`).

    Example:
        >>> from partwise.core.index import Rows, Whole
        >>> a = Update(Rows({"E": (2, 1)}, {"E": torch.tensor([0, 1])}), {"E": torch.tensor([[1.0], [4.0]])})
        >>> b = Update(Rows({"E": (2, 1)}, {"E": torch.tensor([0])}), {"E": torch.tensor([[3.0]])})
        >>> from partwise.core.aggregate import sum_updates
        >>> params = {"E": torch.zeros(2, 1)}
        >>> Mean("holders").reduce(sum_updates([a, b], params), (), params)[0].values()["E"].flatten()
        tensor([2., 4.])
    """

    by: MeanBy = "holders"
    at_least: float = 0.0
    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def __post_init__(self) -> None:
        if self.by not in get_args(MeanBy):
            raise ValueError(f"Mean(by={self.by!r}): must be one of {', '.join(get_args(MeanBy))}. Choose one.")
        if self.at_least < 0:
            raise ValueError(f"Mean(at_least={self.at_least}): must be at least 0. Use 0 for no bound.")

    def init(self, params: Params, census: Census) -> Any:
        if self.by in ("holders", "cohort"):
            return ()
        counts = census.counts
        if self.by != "expected":
            check_holders(self, counts.weight, params)
        return census.num_clients, counts.total_weight, dict(counts.weight), *sorted(census.still & params.keys())

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert isinstance(got, Sum)
        mean_weight = got.total / got.count if got.count else 0.0
        weights = self._weights(got, state)
        value: Values = {}
        for name, total in got.value.items():
            by = weights[name].to(total.device)
            if self.at_least:
                by = by.clamp(min=self.at_least * mean_weight)
            value[name] = _divided(total, by)
        return Update(got.index, value, got.total), state

    def _weights(self, got: Sum, state: Any) -> Values:
        """Name -> divisor, broadcastable to the value."""
        if self.by == "holders":
            return _held(got)
        if self.by == "cohort":
            return dict.fromkeys(got.value, torch.tensor(got.total, dtype=torch.float64))
        num_clients, total_weight, holders, *still = state
        by = self._expected(got, num_clients, total_weight, holders)
        return by if not still else {**by, **{n: w for n, w in _held(got).items() if n in still}}

    def _expected(self, got: Sum, num_clients: int, total_weight: float, holders: Values) -> Values:
        if self.by == "expected":
            expected = got.count / num_clients * total_weight
            return dict.fromkeys(got.value, torch.tensor(expected, dtype=torch.float64))
        shapes = got.index.shapes
        population = got.index.gather({name: holders[name].expand(shape) for name, shape in shapes.items()})
        factor = got.total / total_weight if self.by == "ratio" else got.count / num_clients
        return {name: weight * factor for name, weight in population.items()}


def _held(got: Sum) -> Values:
    """The divisor of `holders`."""
    return got.weight if got.scale == 1 else {name: w / got.scale for name, w in got.weight.items()}


def check_holders(part: object, holders: Params, params: Params) -> None:
    """Refuse a stream whose holders are not counted: the census is of the model's parameters.

    Args:
        part: that divides by them.
        holders: name -> weights per coordinate, as a census has them.
        params: of the stream.

    Raises:
        CompositionError: it names what is not counted.
    """
    for name, t in params.items():
        counted = tuple(holders[name].shape) if name in holders else None
        if (
            counted is None
            or len(counted) != t.dim()
            or any(c not in (1, n) for c, n in zip(counted, t.shape, strict=True))
        ):
            raise CompositionError(
                f"{part!r}: divides by the clients that hold a coordinate of the model, got a stream with {name!r} of "
                f"shape {tuple(t.shape)}, which is none of the model's. Use Mean('holders') or Mean('cohort') for it."
            )


def _divided(total: Tensor, by: Tensor) -> Tensor:
    """total / by, and 0 where nothing is divided by."""
    if by.numel() == 1:  # a number: ten times faster than a tensor
        divisor = float(by.to(total.dtype))
        return total / divisor if divisor > 0 else torch.zeros_like(total)
    by = by.to(total.dtype)  # in which a weight may be 0 that float64 can tell from it
    if bool((by > 0).all()):
        return total / by
    return torch.where(by > 0, total / by, torch.zeros_like(total))
