"""The contract of local optimisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from partwise.core.model import Params, Values
from partwise.core.plan import LocalOptimizer
from partwise.core.rng import generator
from partwise.testing.examples import example_params
from partwise.testing.rules import check_part, check_same, expect, saved, trying

__all__ = ["check_optimizer"]


def check_optimizer(part: LocalOptimizer) -> None:
    """Check that a local optimiser keeps the rules of its family.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.local import SGD
        >>> check_optimizer(SGD(lr=0.1, momentum=0.9))
    """
    check_part(part)
    with trying(part, "must be rebuilt with another learning rate"):
        slower = replace(part, lr=part.lr / 2)  # type: ignore[type-var]
    rule, remedy = "must be rebuilt with another learning rate", "Make `lr` a field"
    expect(slower.lr == part.lr / 2, part, rule, got=slower.lr, remedy=remedy)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        _in_place(part, example_params(dtype))
    params = example_params()
    with trying(part, "must take one step after another"):
        one, other = _walk(part, params, 3), _walk(part, params, 3)
    check_same(part, one, other, "must depend on its arguments alone", "Keep nothing between calls and draw nothing")
    with trying(part, "must go on from a saved state"):
        again = _walk(part, params, 3, is_saved=True)
    check_same(part, one, again, "must go on from a saved state", "Return all of the state")
    with trying(part, "must step values that are zero"):
        _downhill(part, params)
    with trying(part, "must step by gradients that are zero"):
        _still(part, params)
    _by_rate(part, params)


def _grads(params: Params, step: int) -> Values:
    rng = generator(step, "check grads")
    return {n: torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t) for n, t in params.items()}


def _walk(part: LocalOptimizer, params: Params, steps: int, *, is_saved: bool = False) -> tuple[Values, Any]:
    values = {name: t.clone() for name, t in params.items()}
    state = part.init(params)
    for step in range(steps):
        state = saved(part, state) if is_saved else state
        state = part.step_(values, _grads(params, step), state)
    return values, state


def _in_place(part: LocalOptimizer, params: Params) -> None:
    values = {**{name: t.clone() for name, t in params.items()}, "empty": torch.zeros(0, 3), "buffer": torch.ones(2)}
    before, buffer = dict(values), values["buffer"].clone()
    kinds = {name: (value.dtype, value.shape) for name, value in values.items()}
    trained = {name: t for name, t in values.items() if name != "buffer"}
    with trying(part, "must step parameters of any shape, and leave those without a gradient"):
        part.step_(values, _grads(trained, 0), part.init(trained))
    for name, value in values.items():
        expect(
            value is before[name] and (value.dtype, value.shape) == kinds[name],
            part,
            "step_ must change the parameters in place, and keep types and shapes",
            got=f"another tensor for {name!r}",
            remedy="Use the operations that end in _",
        )
    expect(
        torch.equal(values["buffer"], buffer),
        part,
        "must leave a parameter without a gradient",
        got="a change",
        remedy="Step the names in `grads`",
    )
    expect(
        any(not torch.equal(values[n], t) for n, t in params.items()),  # a small step may be lost in half precision
        part,
        "step_ must change the parameters in place",
        got="the values from before",
        remedy="Use the operations that end in _",
    )


def _downhill(part: LocalOptimizer, params: Params) -> None:
    """One step with a small rate from a fresh state lowers the linear loss ⟨g, v⟩."""
    small = replace(part, lr=1e-3)  # type: ignore[type-var]
    values = {name: torch.zeros_like(t) for name, t in params.items()}  # at zero, decay pulls nowhere
    grads = _grads(params, 0)
    small.step_(values, {n: g.clone() for n, g in grads.items()}, small.init(values))
    slope = sum(float((grads[n] * values[n]).sum()) for n in grads)
    expect(slope < 0, part, "must step against the gradient", got=f"a slope of {slope:.3g}", remedy="Turn the sign")


def _still(part: LocalOptimizer, params: Params) -> None:
    """What no loss depends on has gradients that are zero: it may decay, and stays finite."""
    values = {name: t.clone() for name, t in params.items()}
    state = part.init(params)
    for _ in range(2):
        state = part.step_(values, {name: torch.zeros_like(t) for name, t in params.items()}, state)
    wrong = [name for name, t in values.items() if not bool(t.isfinite().all())]
    expect(not wrong, part, "must keep values finite where gradients are zero", got=wrong, remedy="Look for 0 / 0")


def _by_rate(part: LocalOptimizer, params: Params) -> None:
    """Half the rate makes another step: algorithms and schedules set it."""
    slower = replace(part, lr=part.lr / 2)  # type: ignore[type-var]
    one, other = _walk(part, params, 1)[0], _walk(slower, params, 1)[0]
    is_other = any(not torch.equal(one[name], other[name]) for name in one)
    expect(is_other, part, "must step by its `lr`", got="the same step by half of it", remedy="Read it in `step_`")
