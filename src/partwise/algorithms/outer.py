"""Outer steps: what the server makes of the mean change of clients that took many local steps.

Notation: x is the model, D the mean of start minus end over gamma, the local learning rate; m is its momentum. What
no client of a round holds keeps its value and its momentum. Running means and variances take their mean change.
Momentum and squares of half-precision parameters are kept in single precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from partwise.core.aggregate import Coverage
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Around, check_makes_steps, check_own
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide

__all__ = ["CO2", "LANS", "SignMomentum"]


class _Outer(Around, Protocol):
    """An algorithm with streams that the server alone sees."""

    inner: Algorithm

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return self.asked(index, task, own, site)


def _with_streams(part: Around, params: Params, census: Census, *names: str) -> ServerState:
    """The state of the algorithm inside, and streams of zeros for all that gradients move."""
    state = part.inner.init(params, census)
    check_own(part, names, state, "outer step")
    moving = {n: t for n, t in params.items() if n not in census.still}
    return {**state, **{stream: {n: torch.zeros_like(wide(t)) for n, t in moving.items()} for stream in names}}


def _above(part: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{part}({name}={value}): must be above 0, got {value}. Use a small positive number.")


def _shares(part: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{part}({name}={value}): must lie in [0, 1), got {value}. See its meaning of 0.")


@dataclass(frozen=True)
class SignMomentum(_Outer):
    """u = beta1 m + (1 - beta1) D; x <- (1 - lr gamma lambda) x - lr gamma sign(u); m <- beta2 m + (1 - beta2) D.

    Each coordinate moves by the same, however large D is: what few clients hold as far as what all do. With one local
    step of plain SGD it is Lion.

    Args:
        inner: what clients do; its updates are changes of the model.
        gamma: the local learning rate, > 0.
        lr: of the outer step, > 0.
        beta1: in [0, 1).
        beta2: in [0, 1).
        decay: lambda, >= 0, beside the local optimiser's own.

    Source: Yu et al., "Distributed sign momentum with local steps for training transformers", 2024, arXiv:2411.17866;
        constants as in the released code.
    Differs: gamma is one number. The paper's is that of the round, which divides D and is the length of the step; where
        the local rate falls (`lr_decay`), steps here stay as long.
    """

    inner: Algorithm
    gamma: float
    lr: float = 1.0
    beta1: float = 0.95
    beta2: float = 0.98
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_makes_steps(self)
        _above("SignMomentum", gamma=self.gamma, lr=self.lr)
        _shares("SignMomentum", beta1=self.beta1, beta2=self.beta2)
        if not self.decay >= 0:
            raise ValueError(f"SignMomentum(decay={self.decay}): must be at least 0, got {self.decay}. 0 is none.")

    def init(self, params: Params, census: Census) -> ServerState:
        return _with_streams(self, params, census, "momentum")

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        total, momentum = totals["model"], state.pop("momentum")
        index, x = total.index, total.index.gather(state["model"])
        still = {name: torch.zeros_like(wide(t)) for name, t in state["model"].items() if name not in momentum}
        full = {**momentum, **still}  # as an index over all parameters must find it
        m, step, after = index.gather(full), {}, {}
        for name, value in total.values().items():
            if name in still:
                step[name], after[name] = value, m[name]
                continue
            d = wide(value) / -self.gamma
            u = self.beta1 * m[name] + (1 - self.beta1) * d
            step[name] = ((u.sign() + self.decay * x[name]) * (-self.lr * self.gamma)).to(value.dtype)
            after[name] = self.beta2 * m[name] + (1 - self.beta2) * d
        state = self.inner.commit(state, {**totals, "model": Update(index, step, total.weight)}, replies)
        index.put_(full, after)
        return {**state, "momentum": momentum}


@dataclass(frozen=True)
class CO2(_Outer):
    """The outer step is made with the mean change of the round before, whose transfer the round's training hides.

    m <- beta m + D / Lambda; m <- clip(m, -phi, phi); x <- x - alpha gamma m, with D of the round before. Lambda = 1 +
    |x - x_before| / C, with C a running mean of how far a round moves, holds back what has moved much since D was
    measured.

    Behind `Overlapped` the answers are a round late by themselves (`delay=0`): clients train round t from x_t while
    those of round t - 1 travel, and the commit of these makes x_{t+1}. Behind a scheduler that waits for its answers,
    the server may keep each D for a round (`delay=1`): the same models without the gain in time; the first commit
    moves nothing then. Neither late nor kept, without gap and clip, it is SlowMo, and local SGD for beta = 0.

    Args:
        inner: what clients do; its updates are changes of the model.
        gamma: the local learning rate, > 0.
        beta: of the momentum, in [0, 1); 0 up to 16 clients in the release, 0.2 up to 32.
        alpha: of the outer step, > 0.
        clip: phi, > 0; inf for none.
        gap: `moved` is Lambda as above; `constant` is 1, as in the release.
        delay: rounds for which the server keeps D, 0 or 1.

    Source: Sun et al., "CO2: efficient distributed training with full communication-computation overlap", ICLR 2024,
        arXiv:2401.16265.
    Differs: C <- 0.9 C + 0.1 mean |x - x_before| is ours, since the paper's was not found; the release clips nothing
        in fact. What nobody held in the round of D keeps value and momentum. gamma is one number, also where the local
        rate falls (`lr_decay`): what `clip` is in terms of is the first one's.
    """

    inner: Algorithm
    gamma: float
    beta: float = 0.2
    alpha: float = 1.0
    clip: float = 1.0
    gap: Literal["moved", "constant"] = "moved"
    delay: int = 1

    def __post_init__(self) -> None:
        check_makes_steps(self)
        _above("CO2", gamma=self.gamma, alpha=self.alpha, clip=self.clip)
        _shares("CO2", beta=self.beta)
        if self.gap not in ("moved", "constant"):
            raise ValueError(f"CO2(gap={self.gap!r}): must be 'moved' or 'constant', got {self.gap!r}. Choose one.")
        if self.delay not in (0, 1):
            raise ValueError(f"CO2(delay={self.delay}): must be 0 or 1, got {self.delay}. 0 behind Overlapped.")

    def init(self, params: Params, census: Census) -> ServerState:
        state = _with_streams(self, params, census, "momentum", "moved", *(["waiting"] if self.delay else []))
        for stream in state.keys() & {"moved", "waiting"}:  # changes of the model, of its types
            state[stream] = {n: t.to(params[n].dtype) for n, t in state[stream].items()}
        if self.delay:
            state["holders"] = {n: torch.zeros_like(t, dtype=torch.bool) for n, t in state["momentum"].items()}
        return {**state, "pace": {name: torch.zeros(1, dtype=torch.float64) for name in state["momentum"]}}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        momentum, moved, pace = (state.pop(s) for s in ("momentum", "moved", "pace"))
        both = {name: torch.zeros_like(t) for name, t in state["model"].items()}
        totals["model"].index.scatter_add_(both, totals["model"].values())
        change = {name: both.pop(name) for name in momentum}
        holders = _held(totals["model"].index, state["model"])
        kept = {}
        if self.delay:
            kept = {"waiting": change, "holders": {name: holders[name] for name in change}}
            change, holders = state.pop("waiting"), state.pop("holders")
        step, after = {}, {}
        for name, late in change.items():
            lag, pace[name] = self._lag(moved[name], pace[name])
            m = (momentum[name] * self.beta - wide(late) / (self.gamma * lag)).clamp(-self.clip, self.clip)
            after[name] = torch.where(holders[name], m, momentum[name])
            step[name] = torch.where(holders[name], m * (-self.alpha * self.gamma), 0.0).to(late.dtype)
        whole = {**both, **step}
        total = Update(Whole(shapes_of(whole)), whole, totals["model"].weight)
        state = self.inner.commit(state, {**totals, "model": total}, replies)
        return {**state, **kept, "momentum": after, "moved": step, "pace": pace}

    def _lag(self, moved: torch.Tensor, pace: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor]:
        """Lambda, and the next C."""
        pace = 0.9 * pace + 0.1 * moved.abs().double().mean()
        if self.gap == "constant" or not float(pace):
            return 1.0, pace
        return 1 + moved.abs() / float(pace), pace


def _held(index: Index, params: Params) -> Values:
    """Name -> whether somebody held it, per coordinate."""
    cover = Coverage(params)
    cover.add_(index, 1.0)
    for name in params:
        cover.allocate_(name, 0)
    return {name: (weight > 0).expand(params[name].shape).clone() for name, weight in cover.weights.items()}


@dataclass(frozen=True)
class LANS(_Outer):
    """LANS on the aggregate, parameter by parameter: D is made of length 1, and each step as long as the parameter.

    m <- beta1 m + (1 - beta1) D; v <- beta2 v + (1 - beta2) D²; u_m = m' / (√v' + eps) + lambda x and u_g = D / (√v' +
    eps) + lambda x, with m', v' free of their start; x <- x - lr ‖x‖ (beta1 u_m / ‖u_m‖ + (1 - beta1) u_g / ‖u_g‖).
    A parameter that is 0 all over, such as a new bias, has no length: its steps are lr (beta1 u_m + (1 - beta1) u_g).

    The length of an update plays no part, so that a compressor may get it wrong. With `ErrorFeedback(Sign())` in the
    client chain, one local step and `Mirrored(..., Sign())` around it, it is CLAN.

    Args:
        inner: what clients do, in one step of plain SGD; whole parameters only.
        lr: > 0.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: > 0.
        decay: lambda, >= 0.

    Source: Zheng et al., "Accelerated large batch optimization of BERT pretraining in 54 minutes", 2020,
        arXiv:2006.13484; Zhong et al., "Compressed communication for distributed training: adaptive methods and
        system", 2021, arXiv:2105.07829.
    """

    inner: Algorithm
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    decay: float = 0.01

    def __post_init__(self) -> None:
        check_makes_steps(self)
        if not self.inner.holds_alike:
            raise CompositionError(
                f"LANS({type(self.inner).__name__}): takes lengths of whole parameters, got an algorithm whose clients "
                "hold different parts. Use one of whole models, such as FedAvg."
            )
        _above("LANS", lr=self.lr, eps=self.eps)
        _shares("LANS", beta1=self.beta1, beta2=self.beta2)
        if not self.decay >= 0:
            raise ValueError(f"LANS(decay={self.decay}): must be at least 0, got {self.decay}. 0 is none.")

    def init(self, params: Params, census: Census) -> ServerState:
        state = _with_streams(self, params, census, "momentum", "squares")
        return {**state, "counts": {"commits": torch.zeros(1, dtype=torch.int64)}}  # of those that brought a change

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        total = totals["model"]
        partial = sorted(name for name in total.index.shapes if total.index.grain(name))
        if partial:
            raise CompositionError(
                f"LANS(): takes lengths of whole parameters, got {partial[:3]} held in part. Use whole models."
            )
        first, second, counts = (state.pop(s) for s in ("momentum", "squares", "counts"))
        commits = counts["commits"] + bool(total.index.shapes)
        change = {}
        for name, value in total.values().items():
            if name not in first:
                change[name] = value
                continue
            step, first[name], second[name] = self._step(
                wide(state["model"][name]), -wide(value), (first[name], second[name]), int(commits)
            )
            change[name] = step.to(value.dtype)
        state = self.inner.commit(state, {**totals, "model": Update(total.index, change, total.weight)}, replies)
        return {**state, "momentum": first, "squares": second, "counts": {"commits": commits}}

    def _step(
        self, x: torch.Tensor, d: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor], count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        d = d / (d.norm() + self.eps)
        m = self.beta1 * moments[0] + (1 - self.beta1) * d
        v = self.beta2 * moments[1] + (1 - self.beta2) * d * d
        root = (v / (1 - self.beta2**count)).sqrt() + self.eps
        both, size = [], float(x.norm())
        for part in (m / (1 - self.beta1**count), d):
            u = part / root + self.decay * x
            length = float(u.norm())
            both.append(u * (size / length) if size and length else u)  # as released: what is 0 must get away from it
        step = (self.beta1 * both[0] + (1 - self.beta1) * both[1]) * -self.lr
        return step, m, v
