"""Server optimisers: transforms of the aggregate, which comes out as the step to be added.

Notation: D the aggregate, m and v its moments, t how often a coordinate was stepped. All are per coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, wide_type

__all__ = ["Adagrad", "Adam", "ServerSGD", "Yogi"]

# Slot -> name -> tensor of the parameter's shape. Slots are `m`, `v`, `count`, and `like`: empty tensors of its type.
_Slots = dict[str, Values]
_Step = Callable[[dict[str, Tensor], Tensor], Tensor]


class _Optimizer(Protocol):
    """A server optimiser; running means and variances are not its to step: it passes on what is said of them."""

    def init(self, params: Params) -> State: ...

    def begin(self, params: Params, still: Collection[str]) -> State:
        return self.init({name: t for name, t in params.items() if name not in still})


@dataclass(frozen=True)
class ServerSGD(_Optimizer):
    """FedAvgM: m <- momentum m + D; w <- w + lr m.

    Args:
        lr: server learning rate, > 0.
        momentum: in [0, 1); 0 only scales.
        lazy: step only where the aggregate touches; otherwise the rest sees D = 0 and moves on by its momentum.
        nesterov: w <- w + lr (D + momentum m) instead; with lr 0.7, momentum 0.9 and many local steps of AdamW it is
            DiLoCo, but for the moments of AdamW, which begin anew with every task here.

    Source: Hsu et al., "Measuring the effects of non-identical data distribution for federated visual
        classification", 2019, arXiv:1909.06335; Douillard et al., "DiLoCo: distributed low-communication training of
        language models", 2023, arXiv:2311.08105 (`nesterov`).
    Differs: `lazy`.

    Example:
        >>> from partwise.core.index import Whole
        >>> optimizer, update = ServerSGD(lr=0.5), Update(Whole({"w": (1,)}), {"w": torch.tensor([2.0])})
        >>> state = optimizer.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     step, state = optimizer.apply(update, state, torch.Generator())
        >>> step.value["w"]
        tensor([1.9000])
    """

    lr: float = 1.0
    momentum: float = 0.9
    lazy: bool = True
    nesterov: bool = False

    def __post_init__(self) -> None:
        _positive("ServerSGD", "lr", self.lr)
        _share("ServerSGD", "momentum", self.momentum)

    def init(self, params: Params) -> State:
        return {"like": _types(params), "m": _filled(params, 0.0)}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        def step(slots: dict[str, Tensor], aggregate: Tensor) -> Tensor:
            m = slots["m"].mul_(self.momentum).add_(aggregate)
            return torch.add(aggregate, m, alpha=self.momentum) * self.lr if self.nesterov else m * self.lr

        return _advance(update, state, self.lazy, step)


@dataclass(frozen=True)
class Adagrad(_Optimizer):
    """FedAdagrad: m <- beta1 m + (1 - beta1) D; v <- v + D²; w <- w + lr m / (√v + tau).

    Args:
        lr: server learning rate, > 0.
        beta1: decay of m, in [0, 1).
        tau: adaptivity, > 0; v begins at tau².
        lazy: step only where the aggregate touches; otherwise the rest sees D = 0.

    Source: Reddi et al., "Adaptive federated optimization", ICLR 2021, arXiv:2003.00295, algorithm 2.
    Differs: `lazy`.
    """

    lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    lazy: bool = True

    def __post_init__(self) -> None:
        _positive("Adagrad", "lr", self.lr)
        _share("Adagrad", "beta1", self.beta1)
        _positive("Adagrad", "tau", self.tau)

    def init(self, params: Params) -> State:
        return {"like": _types(params), "m": _filled(params, 0.0), "v": _filled(params, self.tau**2)}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        def step(slots: dict[str, Tensor], aggregate: Tensor) -> Tensor:
            m = _averaged_(slots["m"], aggregate, self.beta1)
            v = slots["v"].addcmul_(aggregate, aggregate)
            return m.mul(self.lr).div_(v.sqrt().add_(self.tau))

        return _advance(update, state, self.lazy, step)


@dataclass(frozen=True)
class Adam(_Optimizer):
    """FedAdam: m <- beta1 m + (1 - beta1) D; v <- beta2 v + (1 - beta2) D²; w <- w + lr m / (√v + tau).

    Args:
        lr: server learning rate, > 0.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
        tau: adaptivity, > 0; v begins at tau².
        bias_correction: divide m by 1 - beta1^t and v by 1 - beta2^t, with v beginning at 0; t counts the steps
            of each coordinate.
        lazy: step only where the aggregate touches; otherwise the rest sees D = 0: it moves on by its
            momentum and its v shrinks.

    Source: Reddi et al., "Adaptive federated optimization", ICLR 2021, arXiv:2003.00295, algorithm 2;
        `bias_correction` as in the authors' released experiments.
    Differs: `lazy`.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = False
    lazy: bool = True

    def __post_init__(self) -> None:
        _positive("Adam", "lr", self.lr)
        _share("Adam", "beta1", self.beta1)
        _share("Adam", "beta2", self.beta2)
        _positive("Adam", "tau", self.tau)

    def init(self, params: Params) -> State:
        slots = {"like": _types(params), "m": _filled(params, 0.0)}
        if self.bias_correction:
            return {**slots, "v": _filled(params, 0.0), "count": _filled(params, 0.0)}
        return {**slots, "v": _filled(params, self.tau**2)}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        def step(slots: dict[str, Tensor], aggregate: Tensor) -> Tensor:
            m = _averaged_(slots["m"], aggregate, self.beta1)
            v = slots["v"].mul_(self.beta2).addcmul_(aggregate, aggregate, value=1 - self.beta2)
            if self.bias_correction:
                count = slots["count"].add_(1)
                m, v = m / (1 - self.beta1**count), v / (1 - self.beta2**count)
            return m.mul(self.lr).div_(v.sqrt().add_(self.tau))

        return _advance(update, state, self.lazy, step)


@dataclass(frozen=True)
class Yogi(_Optimizer):
    """FedYogi: as FedAdam, with v <- v - (1 - beta2) D² sign(v - D²).

    Args:
        lr: server learning rate, > 0.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
        tau: adaptivity, > 0; v begins at tau².
        lazy: step only where the aggregate touches; otherwise the rest sees D = 0.

    Source: Reddi et al., "Adaptive federated optimization", ICLR 2021, arXiv:2003.00295, algorithm 2.
    Differs: `lazy`.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    lazy: bool = True

    def __post_init__(self) -> None:
        _positive("Yogi", "lr", self.lr)
        _share("Yogi", "beta1", self.beta1)
        _share("Yogi", "beta2", self.beta2)
        _positive("Yogi", "tau", self.tau)

    def init(self, params: Params) -> State:
        return {"like": _types(params), "m": _filled(params, 0.0), "v": _filled(params, self.tau**2)}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        def step(slots: dict[str, Tensor], aggregate: Tensor) -> Tensor:
            m = _averaged_(slots["m"], aggregate, self.beta1)
            square = aggregate * aggregate
            v = slots["v"]
            v.addcmul_(square, torch.sign(v - square), value=self.beta2 - 1)
            return m.mul(self.lr).div_(v.sqrt().add_(self.tau))

        return _advance(update, state, self.lazy, step)


def _filled(params: Params, fill: float) -> Values:
    """A slot; at least float32, because tau² and small steps vanish in half precision."""
    return {n: torch.full_like(t, fill, dtype=wide_type(t.dtype)) for n, t in params.items()}


def _types(params: Params) -> Values:
    return {name: torch.empty(0, dtype=t.dtype) for name, t in params.items()}


def _averaged_(m: Tensor, aggregate: Tensor, beta1: float) -> Tensor:
    return m.mul_(beta1).add_(aggregate, alpha=1 - beta1)


def _advance(update: Update, state: _Slots, lazy: bool, step: _Step) -> tuple[Update, Any]:
    """Run `step` on the slots and the aggregate of each parameter; it changes the slots in place.

    A parameter without slots is passed on as it is.
    """
    values, index = update.values(), update.index
    still = {name: torch.zeros(tuple(index.shapes[name])) for name in values if name not in state["m"]}
    full_slots = {slot: {**full, **still} for slot, full in state.items() if slot != "like"}
    if not lazy:
        dense = {
            name: torch.zeros_like(full, dtype=values[name].dtype) if name in still else torch.zeros_like(full)
            for name, full in full_slots["m"].items()
        }
        index.scatter_add_(dense, {name: value.to(dense[name]) for name, value in values.items()})
        index, values = Whole(shapes_of(dense)), dense
    is_whole = all(index.grain(name) == 0 for name in index.shapes)
    held = full_slots if is_whole else {slot: index.gather(full) for slot, full in full_slots.items()}
    steps = {}
    for name, value in values.items():
        if name in still:
            steps[name] = value
            continue
        slots = {slot: held[slot][name] for slot in held}
        steps[name] = step(slots, value.to(slots["m"])).to(state["like"][name].dtype)
    if not is_whole:
        for slot, full in full_slots.items():
            index.put_(full, held[slot])
    weight = update.weight
    if not lazy and isinstance(weight, Mapping):  # weights per row of an index that is no longer the result's
        weight = max((float(w.max()) for w in weight.values() if w.numel()), default=0.0)
    return Update(index, steps, weight), state


def _positive(part: str, field: str, value: float) -> None:
    if not 0 < value < math.inf:
        rule = "must be above 0" if value <= 0 else "must be a finite number above 0"
        raise ValueError(f"{part}({field}={value}): {rule}, got {value}. Use a small positive number.")


def _share(part: str, field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{part}({field}={value}): must lie in [0, 1), got {value}. 0.9 is usual, 0 turns it off.")
