"""Distillation: clients keep a model each and exchange what these make of public examples, not the models.

Shapes: P public examples, k of them in a round, C classes, b examples in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.algorithms.widths import prefix
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.checks import at_least
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Rows, Whole
from partwise.core.mean import Mean
from partwise.core.model import Model, Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Batch, Census, Dataset
from partwise.core.probe import MakeProbe, ModelProbe
from partwise.core.rng import Rng
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, all_finite
from partwise.local import LocalTraining

__all__ = ["Distillation", "PublicExamples", "Taught"]

_NAME = "public"  # of the one table of the stream `targets`


@dataclass(frozen=True, eq=False)
class PublicExamples:
    """Examples that server and clients all have.

    Args:
        data: the examples; their labels are not looked at.
        shape: (P, C, ...), of what a model makes of them.
        dtype: the type of that.
    """

    data: Dataset = field(repr=False)
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Taught:
    """The mean loss of a batch, plus pull T² times the cross-entropy to soft targets of examples without labels.

    Args:
        model: whose loss.
        examples: those with targets, k of them.
        targets: (k, C, ...); a row of zeros is no target, and pulls nowhere.
        temperature: T, by which the logits are divided.
        pull: of the second term.
        batch: how many of the k are drawn for a step; 0 for all of them.
    """

    model: Model = field(repr=False)
    examples: Batch = field(repr=False)
    targets: Tensor = field(repr=False)
    temperature: float
    pull: float
    batch: int = 0

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        examples, targets = self.examples, self.targets
        if 0 < self.batch < len(targets):
            at = torch.randperm(len(targets), generator=rng)[: self.batch]
            examples, targets = {name: column[at] for name, column in examples.items()}, targets[at]
        else:
            examples = self.model.spared(examples)
        moving = self.model.buffers()  # which follow the client's own examples
        lent = {n: p.detach().clone() if n in moving else p for n, p in params.items()}
        logits = self.model.outputs(lent, examples, training=True) / self.temperature
        taught = F.cross_entropy(logits, targets.to(logits))
        return self.model.losses(params, batch).mean() + self.pull * self.temperature**2 * taught


@dataclass(frozen=True)
class Distillation(Algorithm):
    """Clients learn from one another's predictions on public examples; models are neither sent nor fetched.

    q_i = softmax(f_i / T) of the round's public examples is what client i sends, after it has trained
    loss_i + pull T² cross-entropy(t, softmax(f_i / T)) with the targets t of the round before;  t <- mean of q_i.

    A reply has k C numbers, whatever the model's size, and clients may have models of different widths: the first
    units of each layer, by the width of their profile, where the model states its widths. Public examples are those
    that the experiment's `Trusted` takes from the central test set; everybody is taken to have them already, and their
    bytes are not counted. The server sees each client's predictions of them, or only their sum behind a `Clip` and
    `Masked(binds_model=False)`. Compressors in the chain of `targets` go without error feedback: predictions are no
    changes, and what was left out of the last ones is not to be added to the next.

    The server has no model to show: stream `model` stays what the seed makes, and so does its score on the central
    test set. Look at the scores over clients, each with its own model. Where a scheduler damps stale replies, the mean
    is damped too, and such targets pull less.

    Args:
        local: how a client trains.
        pull: of the targets beside the client's own loss, >= 0; 0 is training alone.
        temperature: T, > 0; above 1 the small probabilities count for more.
        rows: k, public examples of a round, which takes the next ones in turn; 0 for all, as where there are fewer.
        batch: how many of them a local step looks at, drawn anew; 0 for all of the round.
        public: the examples; the experiment's `Trusted` gives them.

    Source: Xiang et al., "Nebula-I: a general framework for collaboratively training deep learning models on
        low-bandwidth cloud clusters", 2022, arXiv:2205.09470 (soft targets between clusters); Hinton et al.,
        "Distilling the knowledge in a neural network", arXiv:1503.02531 (temperature and T²); Li and Wang, "FedMD:
        heterogenous federated learning via model distillation", arXiv:1910.03581 (the mean over clients).
    Differs: Nebula-I's rule is not published: from a teacher to a student is here from all to all. FedMD trains on the
        public labels first, and on the scores apart from its own examples.

    Example:
        >>> thin = Distillation(LocalTraining(steps=5), temperature=2.0, rows=50)
        >>> thin.aggregators()
        {'targets': Mean(by='holders', at_least=0.0)}
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    pull: float = 1.0
    temperature: float = 1.0
    rows: int = 0
    batch: int = 32
    public: PublicExamples | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(self, rows=0, batch=0)
        if not 0 <= self.pull < float("inf"):
            raise ValueError(
                f"Distillation(pull={self.pull}): must be at least 0 and finite, got {self.pull}. 1 is usual."
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"Distillation(temperature={self.temperature}): must be above 0 and finite, got {self.temperature}. "
                "1 is usual."
            )

    def probed(self, make: MakeProbe) -> Distillation:
        """The same with the server's examples as public ones.

        Raises:
            CompositionError: the model tells no scores of classes; or the probe holds no examples.
        """
        probe = make(0)
        if not isinstance(probe, ModelProbe):
            raise CompositionError(
                f"{self!r}: needs the server's examples themselves, got {type(probe).__name__}, which tells none. "
                "Use a ModelProbe."
            )
        with torch.no_grad():
            one = probe.model.outputs(probe.model.init(probe.seed), probe.data.batch(torch.tensor([0])))
        if one.dim() < 2 or one.shape[1] < 2:
            raise CompositionError(
                f"{self!r}: needs a model that gives each class a score, got outputs of shape {tuple(one.shape)} for "
                "one example. Give the model two outputs or more, and CrossEntropy."
            )
        return replace(self, public=PublicExamples(probe.data, (len(probe.data), *one.shape[1:]), one.dtype))

    def _given(self) -> PublicExamples:
        if self.public is None:
            raise CompositionError(
                f"{self!r}: needs public examples, got none. Give the experiment Trusted(examples=100), and put no "
                "other algorithm around this one."
            )
        return self.public

    def rows_at(self, version: int) -> Tensor:
        """The public examples of a round: (k,) int64, ascending."""
        count = self._given().shape[0]
        size = min(self.rows, count) or count
        return ((torch.arange(size) + version * size) % count).sort().values

    def _index(self, version: int) -> Rows:
        shape, at = self._given().shape, self.rows_at(version)
        return Rows({_NAME: shape}, {_NAME: None if len(at) == shape[0] else at})

    def init(self, params: Params, census: Census) -> ServerState:
        public = self._given()
        model = {name: t.clone() for name, t in params.items()}
        return {"model": model, "targets": {_NAME: torch.zeros(public.shape, dtype=public.dtype)}}

    def client_init(self, site: Site) -> ClientState:
        values = prefix(site, site.profile.width).gather(site.model.init(site.seed))
        return {name: t.clone() for name, t in values.items()}

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return prefix(site, site.profile.width)

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        targets = self._index(task.version - 1) if task.version and self.pull else Whole({})
        return {"model": Whole({}), "targets": targets}

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        return {**held, "model": own}

    def weight(self, site: Site) -> float:
        return 1.0

    def personalize(self, values: Values, own: ClientState) -> Values:
        return values if own is None else dict(own)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        targets = held["targets"].get(_NAME)
        if targets is None:
            return self.local.plan(site, task)
        examples = self._given().data.batch(self.rows_at(task.version - 1))
        loss = Taught(site.model, examples, targets, self.temperature, self.pull, self.batch)
        return self.local.plan(site, task, loss=loss)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: Any, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        model = {name: t + trained.change[name] for name, t in own.items()}
        examples = self._given().data.batch(self.rows_at(task.version))
        with torch.no_grad():
            logits = site.model.outputs(model, examples)
        soft = (logits / self.temperature).softmax(1)
        kept = model if all(map(all_finite, model.values())) else own  # or no later task would have a finite result
        return {"targets": Update(self._index(task.version), {_NAME: soft})}, kept

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"targets": Mean("holders")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        """Put the means in the place of what was known of the same examples."""
        # The rows that were sent, not those of `info.version`: a commit may have come between the task and the fetch.
        totals["targets"].index.put_(state["targets"], totals["targets"].values())
        return state
