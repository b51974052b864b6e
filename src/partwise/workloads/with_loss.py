"""A workload whose clients minimise another loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partwise.core.model import ExampleLoss
from partwise.core.workload import Workload, WorkloadSource

__all__ = ["WithLoss"]


@dataclass(frozen=True)
class WithLoss:
    """Another workload, whose clients minimise another loss; what is measured stays.

    Args:
        inner: the workload.
        loss: what its model's loss is instead.

    Example:
        >>> from partwise.core.model import MarginCrossEntropy
        >>> from partwise.workloads import LeafSynthetic
        >>> workload = WithLoss(LeafSynthetic(num_clients=3), MarginCrossEntropy(margin=0.03)).build(seed=1)
        >>> workload.model.loss, workload.metrics[1].of
        (MarginCrossEntropy(target='y', margin=0.03, over='example'), CrossEntropy(target='y'))
    """

    inner: WorkloadSource
    loss: ExampleLoss

    def build(self, seed: int) -> Workload:
        """The workload; what it draws at random is derived from `seed`."""
        workload = self.inner.build(seed)
        return replace(workload, model=replace(workload.model, loss=self.loss))
