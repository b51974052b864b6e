"""The settings of local training that algorithms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from partwise.core.algorithm import Site, Task
from partwise.core.errors import CompositionError
from partwise.core.plan import GradientTerm, LocalOptimizer, LocalPlan, LossFn, ModelLoss
from partwise.local.optimizers import SGD
from partwise.local.terms import ClipGradient, Decay

__all__ = ["LocalTraining"]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains between two exchanges.

    Args:
        optimizer: the rule of a step.
        batch_size: examples in a batch; 0 for all at once.
        epochs: passes over the client's examples; a last short batch is kept.
        steps: local steps instead of epochs; 0 to count by epochs.
        lr_decay: the learning rate is multiplied by this at every version, in (0, 1].
        max_norm: bound of the gradient's norm; 0 for none.
        clip_decay: FedNAR: the bound holds for the gradient and the optimiser's `weight_decay` together, over all that
            the client holds, instead of for the gradient alone. Needs SGD.

    Source: Li et al., "FedNAR: federated optimization with normalized annealing regularization", NeurIPS 2023,
        arXiv:2310.03163 (`clip_decay`; the annealing is `lr_decay`).
    """

    optimizer: LocalOptimizer = field(default_factory=SGD)
    batch_size: int = 32
    epochs: int = 1
    steps: int = 0
    lr_decay: float = 1.0
    max_norm: float = 0.0
    clip_decay: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "steps", "max_norm"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ValueError(
                    f"LocalTraining({name}={value}): must be at least 0, got {value}. See its meaning of 0."
                )
        if not self.steps and not self.epochs:
            raise ValueError("LocalTraining(epochs=0, steps=0): a client must train, got neither. Set one of them.")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(
                f"LocalTraining(lr_decay={self.lr_decay}): must lie in (0, 1], got {self.lr_decay}. 1 is no decay."
            )
        rule = self.optimizer
        if self.clip_decay and not (isinstance(rule, SGD) and not rule.cautious):
            raise CompositionError(
                f"LocalTraining(clip_decay=True): needs a decay that is part of the gradient, got {rule!r}. "
                "Use SGD without cautious decay, or clip_decay=False."
            )

    def optimizer_at(self, version: int) -> LocalOptimizer:
        """The optimiser with its learning rate decayed."""
        if self.lr_decay == 1.0:
            return self.optimizer
        return replace(self.optimizer, lr=self.optimizer.lr * self.lr_decay**version)  # type: ignore[type-var]

    def plan(
        self, site: Site, task: Task, *, loss: LossFn | None = None, gradient: Sequence[GradientTerm] = ()
    ) -> LocalPlan:
        """The plan of one task.

        Args:
            site: whose model and data.
            task: its `steps` win over the settings where they are not 0.
            loss: what is minimised; the model's own loss by default.
            gradient: changes to the gradient, before decay is added to it and before it is clipped.
        """
        if loss is None and not gradient:  # that of many clients
            of = self, site.model, task.steps, task.version if self.lr_decay != 1 else 0
            same: LocalPlan = site.once("plan", of, lambda: self._plan(site, task, None, ()))
            return same
        return self._plan(site, task, loss, gradient)

    def _plan(self, site: Site, task: Task, loss: LossFn | None, gradient: Sequence[GradientTerm]) -> LocalPlan:
        optimizer, terms = self.optimizer_at(task.version), tuple(gradient)
        if self.clip_decay and isinstance(optimizer, SGD) and optimizer.weight_decay:
            terms = (*terms, Decay(optimizer.weight_decay))
            optimizer = replace(optimizer, weight_decay=0.0)
        if self.max_norm:
            terms = (*terms, ClipGradient(self.max_norm))
        return LocalPlan(
            loss=loss or ModelLoss(site.model),
            optimizer=optimizer,
            batch_size=self.batch_size,
            steps=task.steps or self.steps,
            epochs=self.epochs,
            gradient=terms,
            buffers=site.model.buffers(),
        )
