"""Outputs without modules are those of the model, or the model makes them itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, Model, Values
from partwise.core.population import Batch
from partwise.runtimes.executors import forward
from partwise.runtimes.executors.forward import forward_of
from toy_stack import CASES, CNN, DIN, NEAR, Case, images

KNOWN = ("mlp", "din", "sparse", "tied", "cnn")
LEFT = ("text", "scaled")


def some(of: Case, n: int, dtype: torch.dtype) -> tuple[Values, Batch]:
    return of.start(0, dtype), of.columns(n, 0, dtype)


def is_taped(function: Any) -> bool:
    assert isinstance(function, partial)
    return function.func is forward._forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*KNOWN, *LEFT])
def test_outputs_are_those_of_the_model(name, dtype):
    of = CASES[name]
    params, batch = some(of, 40, dtype)
    few = {column: t[:3] for column, t in batch.items()}
    outputs_of = forward_of(of.model, params, few)
    assert is_taped(outputs_of) == (name in KNOWN)
    for n in (1, 7, 40):
        part = {column: t[:n] for column, t in batch.items()}
        expected = of.model.outputs(params, part).detach()
        found = outputs_of(part)
        assert found.shape == expected.shape
        assert found.dtype == dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=NEAR[dtype] * scale)


@pytest.mark.parametrize("outputs", [1, 3, 4, 8, 15, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_narrow_linear_maps_of_rows_of_vectors(outputs, bias):
    """Between two others, of (b, 4, 16): what comes out has its numbers in another order in memory."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(16, outputs, bias=bias), nn.Linear(outputs, 1)

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner(x)
            result: Tensor = self.outer(torch.cat([inner, inner], 1).relu()).flatten(1).softmax(1)
            return result

    draw = torch.Generator().manual_seed(3)
    x = torch.randn(11, 4, 16, generator=draw, dtype=torch.float64)
    model = Model(Between, CrossEntropy())
    params = {name: t.double() for name, t in model.init(1).items()}
    outputs_of = forward_of(model, params, {"x": x[:2]})
    assert is_taped(outputs_of)
    torch.testing.assert_close(outputs_of({"x": x}), model.outputs(params, {"x": x}).detach(), rtol=1e-12, atol=1e-12)


def test_parameters_are_those_it_was_made_with():
    params, batch = some(CNN, 5, torch.float64)
    others = {name: t + 1 for name, t in params.items()}
    one, other = (forward_of(CNN.model, p, batch)(batch) for p in (params, others))
    torch.testing.assert_close(one, CNN.model.outputs(params, batch).detach())
    torch.testing.assert_close(other, CNN.model.outputs(others, batch).detach())


def test_outputs_that_are_no_numbers_are_left_to_the_model():
    mlp = CASES["mlp"]
    params, batch = some(mlp, 5, torch.float32)
    broken = {name: torch.full_like(t, math.nan) for name, t in params.items()}
    assert forward_of(mlp.model, broken, batch)(batch).isnan().all()


def test_what_is_not_needed_any_more_is_let_go():
    params, batch = some(DIN, 5, torch.float64)
    outputs_of = forward_of(DIN.model, params, batch)
    assert isinstance(outputs_of, partial)
    tape, lasts, _ = outputs_of.args
    gone: set[int] = set()
    for step, last in zip(tape.steps, lasts, strict=True):
        assert not gone & set(step.given)
        gone.update(last)
    assert tape.losses not in gone
    assert len(gone) == len({number for step in tape.steps for number in step.given})


def test_a_model_that_does_otherwise_with_more_examples_is_left_alone():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(x.flatten(1))
            return result * 2 if len(x) > 3 else result

    of = Case(Model(Odd, CrossEntropy()), images)
    params, batch = some(of, 5, torch.float64)
    outputs_of = forward_of(of.model, params, {name: t[:2] for name, t in batch.items()})
    assert not is_taped(outputs_of)
    torch.testing.assert_close(outputs_of(batch), of.model.outputs(params, batch))


def test_a_rule_that_comes_to_something_else_is_not_used(monkeypatch):
    def off(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return real(x, weight, bias) * 1.01

    real = F.linear
    params, batch = some(CNN, 5, torch.float64)
    assert is_taped(forward_of(CNN.model, params, batch))
    monkeypatch.setattr(forward._Linear, "forward", lambda self, *given: (off(*given), None))
    assert not is_taped(forward_of(CNN.model, params, batch))


def test_errors_are_those_of_the_model():
    params, batch = some(DIN, 5, torch.float64)
    outputs_of = forward_of(DIN.model, params, batch)
    far = {**batch, "candidate": batch["candidate"] + 1000}
    with pytest.raises(IndexError):
        outputs_of(far)
    outputs_of = forward_of(DIN.model, params, far)
    with pytest.raises(IndexError):
        outputs_of(far)
