"""MM-PSGD and MC-PSGD: one model per block of a cycle, where data come in blocks of different distributions.

Notation: M blocks; x is the block-mixed chain, y_m the block-separate chain of block m, p_m its predictor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from partwise.algorithms.averaging import Weights, check_weights, mean_of, weight_of
from partwise.algorithms.memory import NOTHING
from partwise.algorithms.twins import Apart, Paired, Twins, second, second_names, seconds
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.checks import at_least
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Rows, Whole
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, ModelLoss, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide
from partwise.local import LocalTraining

__all__ = ["MCPSGD", "MMPSGD"]

_CHUNK = 4096  # examples whose losses are compared at once
_LAST = Whole({"last": ()})


@dataclass(frozen=True)
class MMPSGD(Algorithm):
    """Trains one chain over all blocks; the mean of a block's iterates predicts in it.

    x <- x + sum over C of a_i (x_i - x);  p_m <- (r_m p_m + x) / (r_m + 1);  r_m <- r_m + 1, with m the block of the
    round's clients, `Profile.block`. Of a commit with clients of several blocks, each of their predictors gets x.

    The predictors are stream `predictors` of the server's state, (M, ...) for each parameter, and are sent to nobody:
    `predictor(result.streams, m)` is what to use in block m. The model that an experiment evaluates is x.

    Args:
        num_blocks: M, >= 1.
        local: how a client trains.
        weights: a_i, as in FedAvg.
        avg_from_round: so many first rounds of every block are left out of its predictor's mean; until then the
            predictor is the newest x.

    Source: Ding et al., "Distributed optimization over block-cyclic data", 2020, arXiv:2002.07454.

    Example:
        >>> streams = {"predictors": {"w": torch.tensor([[1.0], [2.0]])}}
        >>> MMPSGD(num_blocks=2).predictor(streams, 1)
        {'w': tensor([2.])}
    """

    num_blocks: int = 2
    local: LocalTraining = field(default_factory=LocalTraining)
    weights: Weights = "uniform"
    avg_from_round: int = 0

    def __post_init__(self) -> None:
        check_weights("MMPSGD", self.weights)
        at_least(self, num_blocks=1, avg_from_round=0)

    def init(self, params: Params, census: Census) -> ServerState:
        return _state(params, self.num_blocks)

    @property
    def holds_alike(self) -> bool:
        return True

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        _block_of(site, self.num_blocks, "MMPSGD")
        return site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": index}

    def weight(self, site: Site) -> float:
        return weight_of(self.weights, site)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return {"block": float(_block_of(site, self.num_blocks, "MMPSGD"))}

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": mean_of(self.weights)}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        totals["model"].index.scatter_add_(state["model"], totals["model"].values())
        for block in _blocks(replies, self.num_blocks):
            _average_(state, block, state["model"], self.avg_from_round)
        return state

    def predictor(self, streams: Mapping[str, Params], block: int) -> Values:
        """The model to use in a block.

        Args:
            streams: of a `Result`, or of a server's state.
            block: 0 to M - 1.

        Raises:
            ValueError: no such block.
        """
        return _predictor(streams, block, self.num_blocks, "MMPSGD")


@dataclass(frozen=True)
class MCPSGD(Algorithm):
    """Trains a chain over all blocks and one per block; predictors mean the better.

    In block m: x <- mean of x_i, y_m <- mean of y_i, both trained on the same batches; then u is that of x and y_m
    whose mean loss over the clients' examples is the lower (x if they are equal), p_m <- (r_m p_m + u) / (r_m + 1)
    and r_m <- r_m + 1. The chains themselves are not mixed.

    Two versions make one round: at even versions clients train, at odd ones they tell both losses and train nothing,
    so that a scheduler needs twice as many rounds, and both should ask clients of one block. A round whose losses were
    never told adds nothing to its predictor.

    Streams of the server's state, each (M, ...): `predictors`, with `predictor` as in MMPSGD, and `separate`, the
    chains y_m, of which a client gets its own. `separate(result.streams, m)` is the last y_m: with everything in its
    block and nothing of the others, that of the pluralistic baseline. The loss that is recorded is the sum of both.

    Args:
        num_blocks: M, >= 1.
        local: how a client trains. Its rate decays by version, and so twice in a round.
        separate_lr: the learning rate of y_m, > 0; 0 for the same as that of x.
        weights: what clients count for in both chains and in the loss: `uniform` or `samples`.
        avg_from_round: as in MMPSGD.
        resume: y_m goes on from where its block's last visit left it; False: every visit begins at x.

    Source: Ding et al., "Distributed optimization over block-cyclic data", 2020, arXiv:2002.07454; Eichner et al.,
        "Semi-cyclic stochastic gradient descent", ICML 2019, arXiv:1904.10120 (the pluralistic baseline).
    Differs: losses are those of the clients asked for them, over all their examples, without dropout. Whether y_m
        resumes is not confirmed in the paper's abstract.
    """

    num_blocks: int = 2
    local: LocalTraining = field(default_factory=LocalTraining)
    separate_lr: float = 0.0
    weights: Literal["uniform", "samples"] = "uniform"
    avg_from_round: int = 0
    resume: bool = True

    def __post_init__(self) -> None:
        if self.weights not in ("uniform", "samples"):
            raise ValueError(
                f"MCPSGD(weights={self.weights!r}): must be 'uniform' or 'samples', got {self.weights!r}. Choose one."
            )
        at_least(self, num_blocks=1, avg_from_round=0, separate_lr=0)

    @property
    def reads_rate(self) -> bool:
        """Two chains have two rates, which nobody else knows to change."""
        return True

    @property
    def needs_all(self) -> bool:
        return True  # losses are those of the whole model

    @property
    def sends_all(self) -> bool:
        return False  # nothing at odd versions

    def init(self, params: Params, census: Census) -> ServerState:
        state = _state(params, self.num_blocks)
        state["separate"] = {name: t.expand(self.num_blocks, *t.shape).clone() for name, t in params.items()}
        state["rounds"]["open"] = torch.zeros(self.num_blocks, dtype=torch.float64)  # trained, losses not told yet
        state["rounds"]["last"] = torch.tensor(-1.0, dtype=torch.float64)  # the block that was trained last
        return state

    @property
    def holds_alike(self) -> bool:
        return True

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        _block_of(site, self.num_blocks, "MCPSGD")
        return site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        asked: dict[str, Index] = {"model": index, "separate": self._own_row(index, site)}
        return asked if self.resume else {**asked, "rounds": _LAST}

    def _own_row(self, index: Index, site: Site) -> Rows:
        at = torch.tensor([site.profile.block])
        shapes = {name: (self.num_blocks, *shape) for name, shape in index.shapes.items()}
        return Rows(shapes, dict.fromkeys(shapes, at))

    def weight(self, site: Site) -> float:
        return weight_of(self.weights, site)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        if _is_probe(task):
            return LocalPlan(ModelLoss(site.model), self.local.optimizer, steps=0, epochs=0)
        plan, rule = self.local.plan(site, task), self.local.optimizer_at(task.version)
        decay = rule.lr / self.local.optimizer.lr
        other = replace(rule, lr=self.separate_lr * decay) if self.separate_lr else rule  # type: ignore[type-var]
        begin = second(self._begin(held, site))
        return replace(
            plan,
            loss=Twins(site.model),
            optimizer=Paired(rule, other),
            gradient=tuple(Apart(term) for term in plan.gradient),
            buffers=plan.buffers | second_names(plan.buffers),
            extra=begin,
        )

    def _begin(self, held: Mapping[str, Values], site: Site) -> Values:
        """Where y_m is trained from."""
        if not self.resume and int(held["rounds"]["last"]) != site.profile.block:
            return held["model"]
        return {name: row[0] for name, row in held["separate"].items()}

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        told = {"block": float(_block_of(site, self.num_blocks, "MCPSGD"))}
        if not _is_probe(task):
            return told
        rows = {name: row[0] for name, row in held["separate"].items()}
        losses = [_mean_loss(site, values) for values in (held["model"], rows)]
        return {**told, "mixed": losses[0], "separate": losses[1]}

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        if _is_probe(task):
            return {"model": NOTHING, "separate": NOTHING}, own
        weight, begin, moved = self.weight(site), self._begin(held, site), seconds(trained.change)
        rows = {n: (begin[n] - row[0] + moved[n]).unsqueeze(0) for n, row in held["separate"].items()}
        mixed = {name: trained.change[name] for name in held["model"]}
        own_row = self._own_row(index, site)
        return {"model": Update(index, mixed, weight), "separate": Update(own_row, rows, weight)}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": mean_of(self.weights), "separate": Mean("holders")}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        probes = [r for r in replies if "mixed" in r.report]
        for block in _blocks(probes, self.num_blocks):  # about what the server had until now
            if not state["rounds"]["open"][block]:
                continue
            own = _row(state["separate"], block, self.num_blocks, "MCPSGD")
            better = own if self._is_better_apart(probes, block) else state["model"]
            _average_(state, block, better, self.avg_from_round)
            state["rounds"]["open"][block] = 0
        for stream, total in totals.items():
            total.index.scatter_add_(state[stream], total.values())
        for block in _blocks([r for r in replies if "mixed" not in r.report], self.num_blocks):
            state["rounds"]["open"][block] = 1
            state["rounds"]["last"].fill_(block)
        return state

    def _is_better_apart(self, probes: Sequence[ReplyInfo], block: int) -> bool:
        told = [(r.report, float(r.examples) if self.weights == "samples" else 1.0) for r in probes]
        here = [(report, weight) for report, weight in told if report["block"] == block]
        mixed, apart = (
            math.fsum(w * report.get(name, math.inf) for report, w in here) for name in ("mixed", "separate")
        )
        return apart < mixed

    def predictor(self, streams: Mapping[str, Params], block: int) -> Values:
        """The model to use in a block: as MMPSGD's."""
        return _predictor(streams, block, self.num_blocks, "MCPSGD")

    def separate(self, streams: Mapping[str, Params], block: int) -> Values:
        """y_m: one independent model per block. Arguments as for `predictor`."""
        return _row(streams["separate"], block, self.num_blocks, "MCPSGD")


def _is_probe(task: Task) -> bool:
    return task.version % 2 == 1


def _state(params: Params, num_blocks: int) -> ServerState:
    stacked = {name: t.expand(num_blocks, *t.shape).clone() for name, t in params.items()}  # (M, ...)
    done = {"done": torch.zeros(num_blocks, dtype=torch.float64)}  # r_m
    # In bfloat16 a running mean would stand still after some hundred rounds.
    predictors = {name: wide(t) for name, t in stacked.items()}
    return {"model": {name: t.clone() for name, t in params.items()}, "predictors": predictors, "rounds": done}


def _average_(state: ServerState, block: int, values: Params, avg_from_round: int) -> None:
    """p_m <- (r p_m + u) / (r + 1), with r the rounds that count."""
    done = state["rounds"]["done"]
    counted = max(0, int(done[block]) - avg_from_round)
    for name, stacked in state["predictors"].items():
        if counted:
            stacked[block] += (values[name] - stacked[block]) / (counted + 1)
        else:
            stacked[block] = values[name]
    done[block] += 1


def _blocks(replies: Sequence[ReplyInfo], num_blocks: int) -> list[int]:
    """The blocks that clients say they belong to; what is none is not taken."""
    told = {r.report.get("block", -1.0) for r in replies}
    return [block for block in range(num_blocks) if block in told]


def _block_of(site: Site, num_blocks: int, part: str) -> int:
    block = site.profile.block
    if not 0 <= block < num_blocks:
        raise ValueError(
            f"{part}(num_blocks={num_blocks}): clients must belong to blocks 0 to {num_blocks - 1}, got block {block} "
            f"of client {site.client}. Set num_blocks to the blocks of the population's availability."
        )
    return block


def _row(stacked: Params, block: int, num_blocks: int, part: str) -> Values:
    if not 0 <= block < num_blocks:
        raise ValueError(
            f"{part}(num_blocks={num_blocks}): has models of blocks 0 to {num_blocks - 1}, got {block}. "
            "Name one of them."
        )
    return {name: t[block] for name, t in stacked.items()}


def _predictor(streams: Mapping[str, Params], block: int, num_blocks: int, part: str) -> Values:
    """Of a block, in the model's types where the model is given."""
    found, model = _row(streams["predictors"], block, num_blocks, part), streams.get("model", {})
    return {name: t.to(model[name].dtype) if name in model else t for name, t in found.items()}


def _mean_loss(site: Site, values: Values) -> float:
    missing = [n for n, _ in site.model.build(site.seed).named_parameters() if n not in values]
    if missing:
        raise CompositionError(
            f"MCPSGD(): compares losses of the whole model, but does not see {missing[:3]}. "
            "Use MMPSGD inside LocalOnly."
        )
    total, data = 0.0, site.data
    with torch.no_grad():
        for at in torch.arange(len(data)).split(_CHUNK):
            total += float(site.model.losses(values, data.batch(at), training=False).double().sum())
    return total / len(data)
