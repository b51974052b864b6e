"""A weight kept as one matrix and factors is that of a loop which changes a matrix per client."""

from __future__ import annotations

import pytest
import torch

from partwise.runtimes.executors.factors import Factors, pays

CLIENTS = 4
STEPS = [3, 3, 2, 1]  # of each client
ROWS = [5, 2, 4]  # of each client in each step
INPUTS, OUTPUTS, LR = 7, 6, 0.3


def played():
    """The factors, and W_c of every client, after each step: what goes forward and back was the same."""
    draw = torch.Generator().manual_seed(8)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    start = random(OUTPUTS, INPUTS)
    factors, each = Factors(start, LR, CLIENTS), [start.clone() for _ in range(CLIENTS)]
    for step, rows in enumerate(ROWS):
        active = sum(steps > step for steps in STEPS)
        x, grad = random(active, rows, INPUTS), random(active, rows, OUTPUTS)
        there, back = factors.forward(x), factors.backward(grad)
        for c in range(active):
            torch.testing.assert_close(there[c], x[c] @ each[c].T, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(back[c], grad[c] @ each[c], rtol=1e-12, atol=1e-12)
            each[c] -= LR * grad[c].T @ x[c]
        factors.step_(grad, x)
    return factors, start, each


def test_forward_backward_and_changes_are_those_of_a_loop():
    factors, start, each = played()
    changes = factors.changes()
    for c, matrix in enumerate(each):
        torch.testing.assert_close(start + changes[c], matrix, rtol=1e-12, atol=1e-12)


def test_the_weighted_sum_is_that_of_the_changes():
    factors, start, each = played()
    weights = [5.0, 1 / 3, 2.0, 11.0]  # in the matrix's own precision
    expected = sum(w * (matrix - start) for w, matrix in zip(weights, each, strict=True))
    torch.testing.assert_close(factors.weighted(weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_single(dtype):
    """1025 has no bfloat16, and 4 * 4096 + 1025 no float16."""
    factors = Factors(torch.zeros(1, 1, dtype=dtype), 0.25, 3)
    factors.step_(torch.tensor([[[1.0]], [[0.0]], [[4.0]]], dtype=dtype), torch.ones(3, 1, 1, dtype=dtype))
    assert factors.weighted([1025.0, 7.0, 4096.0]).item() == -0.25 * (1025 + 4 * 4096)


def test_a_weight_that_no_gradient_came_to_has_not_changed():
    assert not Factors(torch.ones(OUTPUTS, INPUTS), LR, CLIENTS).weighted([1.0] * CLIENTS).any()


@pytest.mark.parametrize(
    ("shape", "rows", "steps", "expected"),
    [
        ((200, 784), 20, 3, True),  # 2 * 20 * 984 products more, 156,800 entries
        ((200, 784), 20, 4, True),  # 59,040
        ((200, 784), 20, 9, False),  # 157,440: as many as there are entries, and more
        ((10, 200), 20, 3, False),  # a small matrix
        ((200, 784), 600, 1, True),  # one step is only kept
    ],
)
def test_when_it_pays(shape, rows, steps, expected):
    assert pays(torch.Size(shape), rows, steps) is expected
