"""An executor in a file outside the package: what another one trains is compared with what `Plain` makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from partwise.core.plan import Executor, Job, Trained
from partwise.testing import check_jobs


@dataclass(frozen=True)
class Checked:
    """An executor whose results must be those of `Plain`; a run stops at the first that is not.

    Args:
        inner: does the work.
        near: the largest difference, as a share of a parameter's largest entry; 0 for none, to the last bit.
    """

    inner: Executor
    near: float = 1e-4

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        check_jobs(self.inner, jobs, near={torch.float32: self.near, torch.float64: self.near})
        return self.inner.run(jobs)
