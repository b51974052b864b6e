"""FedHyper: local learning rates that adapt themselves, around any algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Around, check_makes_steps
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, inner, norm
from partwise.local import HyperStep

__all__ = ["DivideBy", "FedHyper"]

DivideBy = Literal["participants", "steps"]
_OWN = ("direction", "rate")


@dataclass(frozen=True)
class FedHyper(Around):
    """An algorithm whose local learning rate is multiplied by what successive updates say of it.

    With `server_rate` (FedHyper-SL) the server adapts one multiplier and sends it down with the model:
    s <- clip(s + rate <D, D'>, 1/gamma, gamma), with D the last aggregate and D' the one before.
    With `client_rate` (FedHyper-CL) each client adapts a multiplier of its own before every local step, beginning at 1
    with every task: b <- clip(b + rate (<g, g'> - <g, D> / K), 1/gamma, gamma), with g and g' its gradients at this
    step and the one before; for this D is sent down, the part that the client holds. With both, the rates multiply.
    FedHyper-G is the transform `HyperRate` in the server's chain, and goes with either. Products run over what is held.

    Args:
        inner: what is done otherwise. One that reads gradients off the step it took, as SCAFFOLD's option II does, must
            know its rate, and is refused.
        server_rate: adapt on the server (SL).
        client_rate: adapt on the client (CL). Executors train such clients one after another.
        gamma: bound of either multiplier, >= 1; 1 leaves the algorithm as it is.
        rate: how fast they follow, >= 0. The products grow with the number of parameters and the square of the updates'
            size, so that with 1 a large model reaches a bound at once.
        normalize: take cosines in place of products.
        divide_by: K: `participants`, the replies that made D, or the client's local `steps`.

    Raises:
        ValueError: a bound or rate out of range, or neither rate is adapted.
        CompositionError: an algorithm inside that reads gradients off the step, sends nothing of the model or commits
            what clients ended with, or has a stream of a name that is needed here.

    Source: Wang et al., "FedHyper: a universal and robust learning rate scheduler for federated learning with
        hypergradient descent", ICLR 2024, arXiv:2310.03156.
    Differs: the paper subtracts start minus end, we add end minus start: hence the minus in front of <g, D>. `rate` and
        `normalize` are ours. K is not resolved in what we have of the paper; the released code divides by the
        participants, and so does the default here. At a task's first step, which has no g', only <g, D> counts. D is
        what the server added, behind its chain: with `HyperRate` there, the rate is in it. The released code adapts CL
        multiplicatively, with steps in place of gradients, and its SL has no effect. Running statistics of a BatchNorm
        are part of D.

    Example:
        >>> from partwise.algorithms import FedAvg
        >>> FedHyper(FedAvg(), gamma=5.0).gamma
        5.0
    """

    inner: Algorithm
    server_rate: bool = True
    client_rate: bool = False
    gamma: float = 10.0
    rate: float = 1.0
    normalize: bool = False
    divide_by: DivideBy = "participants"

    def __post_init__(self) -> None:
        if not (self.server_rate or self.client_rate):
            raise ValueError(
                "FedHyper(server_rate=False, client_rate=False): must adapt a rate, got neither. Set one of them, or "
                "use the algorithm inside as it is."
            )
        if not 1 <= self.gamma < math.inf:
            raise ValueError(
                f"FedHyper(gamma={self.gamma}): must be finite and at least 1, got {self.gamma}. 10 is usual."
            )
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"FedHyper(rate={self.rate}): must be finite and at least 0, got {self.rate}. 1 is usual.")
        if self.divide_by not in get_args(DivideBy):
            raise ValueError(
                f"FedHyper(divide_by={self.divide_by!r}): must be one of {', '.join(get_args(DivideBy))}. "
                "'participants' is usual."
            )
        if self.inner.reads_rate:
            raise CompositionError(
                f"FedHyper({type(self.inner).__name__}): changes the learning rate, which the algorithm inside must "
                "know to read gradients off its steps. Use SCAFFOLD's option='I', or adapt the server's rate alone, "
                "with HyperRate in its chain."
            )
        check_makes_steps(self)

    def init(self, params: Params, census: Census) -> ServerState:
        state = self.inner.init(params, census)
        taken = [stream for stream in _OWN if stream in state]
        if taken:
            raise CompositionError(
                f"FedHyper({type(self.inner).__name__}): needs the streams {list(_OWN)} for itself, got {taken} from "
                "the algorithm inside. Adapt both rates in one FedHyper."
            )
        state["direction"] = {name: torch.zeros_like(t) for name, t in params.items()}
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        return {**state, "rate": {"server": one, "participants": none}}

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        asked = self.asked(index, task, own, site)
        scalars = ["server"] if self.server_rate else []
        if self.client_rate:
            asked = {**asked, "direction": index}
            scalars += ["participants"] if self.divide_by == "participants" else []
        return {**asked, "rate": Whole(dict.fromkeys(scalars, ()))} if scalars else asked

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        mine = {stream: values for stream, values in held.items() if stream in _OWN}
        return {**self.inner.receive(_without(held), index, task, own, site), **mine}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        plan = self.inner.plan(_without(held), index, task, own, site)
        rule = plan.optimizer
        if self.server_rate and (factor := float(held["rate"]["server"])) != 1:
            rule = replace(rule, lr=rule.lr * factor)  # type: ignore[type-var]
        if self.client_rate:
            by_steps = self.divide_by == "steps"
            divisor = plan.num_steps(len(site.data)) if by_steps else float(held["rate"]["participants"])
            rule = HyperStep(
                lr=rule.lr,
                inner=rule,
                direction=held["direction"],
                share=1 / max(1, divisor),
                gamma=self.gamma,
                rate=self.rate,
                normalize=self.normalize,
            )
        return replace(plan, optimizer=rule)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        return self.inner.finish(_without(held), trained, index, task, own, site)

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return self.inner.report(_without(held), trained, task, own, site)

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        direction, total, number = state["direction"], totals["model"], float(state["rate"]["server"])
        if self.server_rate:
            number += self.rate * self._alignment(total, direction)
            number = min(max(number, 1 / self.gamma), self.gamma)
        is_counted = self.client_rate and self.divide_by == "participants"
        rates = {"server": number, "participants": float(len(replies)) if is_counted else 0.0}
        state = self.inner.commit(_without(state), totals, replies)
        for name, t in direction.items():
            if name not in total.index.shapes or total.index.grain(name):
                t.zero_()
        total.index.put_(direction, total.values())
        scalars = {name: torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()}
        return {**state, "direction": direction, "rate": scalars}

    def _alignment(self, total: Update, direction: Params) -> float:
        before = Update(total.index, total.index.gather(direction))
        product = inner(total, before)
        if not self.normalize:
            return product
        lengths = norm(total) * norm(Update(total.index, direction))
        return product / lengths if lengths else 0.0


def _without(streams: Mapping[str, Values]) -> dict[str, Values]:
    """What the algorithm inside knows of."""
    return {stream: values for stream, values in streams.items() if stream not in _OWN}
