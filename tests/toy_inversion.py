"""Attacks that make examples of updates again: audits, not proofs. A server that knows the model and what it receives.

Shapes: an example has d numbers, a layer h units; labels are one of c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.aggregate import Sum
from partwise.core.mean import Mean


@dataclass(frozen=True)
class Curious:
    """An aggregator that keeps what it is given: every update, or their sum."""

    needs: Literal["sum", "each"] = "each"
    seen: list[Any] = field(default_factory=list)
    inner: ClassVar[Mean] = Mean("cohort")

    def init(self, params, census):
        return ()

    def reduce(self, got, state, params, replies=()):
        from partwise.core.aggregate import sum_updates

        self.seen.append(got if isinstance(got, Sum) else list(got))
        total = got if isinstance(got, Sum) else sum_updates(got, params)
        return self.inner.reduce(total, (), params, replies)


def closed_form(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) and (c,) gradients of a layer with bias -> the example (d,), from each row, and the label's row.

    A row's gradient is dL/db x, so that the quotient is x. Of a cross-entropy of one example, the label's is the only
    negative dL/db.
    """
    row = int(bias.abs().argmax())
    return weight[row] / bias[row], bias.argmin()


def label_of_last_layer(weight: Tensor) -> int:
    """(c, h) gradient of a last layer on activations that are positive: the label's row alone is negative."""
    return int(weight.sum(1).argmin())


def deep_leakage(
    gradients: Callable[[Tensor], Mapping[str, Tensor]],
    target: Mapping[str, Tensor],
    shape: tuple[int, ...],
    *,
    restarts: int = 4,
    steps: int = 60,
) -> Tensor:
    """DLG: the input whose gradient is nearest to the target, by L-BFGS, from several beginnings.

    Source: Zhu, Liu and Han, "Deep leakage from gradients", NeurIPS 2019, arXiv:1906.08935; the label by Zhao et al.,
        "iDLG", arXiv:2001.02610.
    """
    best, found = math.inf, torch.zeros(shape, dtype=torch.float64)
    scale = sum(float((t**2).sum()) for t in target.values())
    for start in range(restarts):
        draw = torch.Generator().manual_seed(100 + start)
        x = torch.randn(shape, generator=draw, dtype=torch.float64).mul_(0.5).requires_grad_()
        optimizer = torch.optim.LBFGS([x], lr=1.0, max_iter=20, line_search_fn="strong_wolfe")

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            mine = gradients(x)
            loss = sum(((mine[n] - target[n]) ** 2).sum() for n in target) / scale
            loss.backward()
            return loss

        for _ in range(steps):
            loss = float(optimizer.step(closure).detach())
            if loss < 1e-18:
                break
        if loss < best:
            best, found = loss, x.detach()
    return found


def psnr(found: Tensor, truth: Tensor) -> float:
    """10 log10(1 / MSE), of values in a range of 1."""
    return 10 * math.log10(1 / max(float(F.mse_loss(found, truth)), 1e-30))


def nearest(found: Tensor, truths: Tensor) -> float:
    """The best PSNR against any of several examples: (d,), (n, d)."""
    return max(psnr(found, truth) for truth in truths)
