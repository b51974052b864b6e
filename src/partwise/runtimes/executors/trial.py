"""Trying a way to do something on a job, and telling whether it comes to the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partwise.core.plan import Job
from partwise.core.population import Examples
from partwise.core.rng import generator

__all__ = ["are_near", "perturbed"]


def perturbed(job: Job, seed: int) -> Job:
    """The job at other values and, where they are no integers, on other data: zeros would hide much."""
    rng = generator(seed, "trial")

    def noisy(values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        return values + 0.1 * torch.randn(values.shape, generator=rng, dtype=torch.float64).to(values)

    start = {n: noisy(t) for n, t in job.start.items()}
    return job._replace(start=start, data=Examples({n: noisy(c) for n, c in job.data.columns().items()}), seed=seed)


def are_near(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, as measured by the largest entry of all; NaN is equal to nothing."""
    if any(bool(t.isnan().any()) for t in others):
        return False
    scale = max((float(t.abs().max()) for t in others if t.numel()), default=0.0)
    near = scale * (1e-9 if others[0].dtype == torch.float64 else 1e-4)
    return all(torch.allclose(one, other, rtol=0, atol=near) for one, other in zip(ones, others, strict=True))
