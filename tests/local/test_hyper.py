"""FedHyper-CL's local step against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from partwise.local import SGD, AdamW, HyperStep


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


START = {"a": [2.0, -0.5], "b": [3.0]}
GRADS = [{"a": [0.2, -0.4], "b": [0.1]}, {"a": [0.5, 0.3], "b": [-0.2]}, {"a": [-1.0, 0.7], "b": [0.4]}]
DIRECTION = {"a": [-0.6, 0.9], "b": [0.3]}


def walk(part, grads=GRADS):
    values = {n: double(*v) for n, v in START.items()}
    state, factors = part.init(values), []
    for step in grads:
        state = part.step_(values, {n: double(*g) for n, g in step.items()}, state)
        factors.append(state[0])
    return [x for n in START for x in values[n].tolist()], factors


def flat(tree):
    return [x for n in START for x in tree.get(n, [0.0] * len(START[n]))]


def product(one, other, is_cosine):
    value = sum(x * y for x, y in zip(one, other, strict=True))
    if not is_cosine or not value:
        return value
    return value / math.sqrt(sum(x * x for x in one)) / math.sqrt(sum(y * y for y in other))


def oracle(lr, direction, share, gamma, rate, is_cosine=False, momentum=0.0, grads=GRADS):
    """v <- v - lr b g, or its momentum form, in plain floats."""
    v, buffer, before, b = flat(START), [0.0] * 3, [0.0] * 3, 1.0
    factors = []
    for step in grads:
        g = flat(step)
        change = product(g, before, is_cosine) - share * product(g, flat(direction), is_cosine)
        b = max(1 / gamma, min(gamma, b + rate * change))
        buffer = [momentum * m + x for m, x in zip(buffer, g, strict=True)]
        v = [x - lr * b * m for x, m in zip(v, buffer, strict=True)]
        before = g
        factors.append(b)
    return v, factors


@pytest.mark.parametrize("is_cosine", [False, True])
@pytest.mark.parametrize(("share", "gamma", "rate"), [(0.25, 10.0, 1.0), (1.0, 1.2, 2.0), (0.0, 3.0, 0.5)])
def test_steps_against_plain_loops(share, gamma, rate, is_cosine):
    direction = {n: double(*v) for n, v in DIRECTION.items()}
    got = walk(HyperStep(0.3, SGD(), direction, share, gamma, rate, is_cosine))
    wanted = oracle(0.3, DIRECTION, share, gamma, rate, is_cosine)
    assert got[1] == pytest.approx(wanted[1], abs=1e-14)
    assert got[0] == pytest.approx(wanted[0], abs=1e-14)
    assert len(set(got[1])) > 1


def test_numbers_by_hand():
    """<g, P> = .18 + ... with P = -D; the first step has no step before it."""
    direction = {n: double(*v) for n, v in DIRECTION.items()}
    _, factors = walk(HyperStep(0.3, SGD(), direction, share=0.5))
    first = 1 + 0.5 * (0.2 * 0.6 + 0.4 * 0.9 - 0.1 * 0.3)  # 1.225
    second = first + (0.1 - 0.12 - 0.02) + 0.5 * (0.5 * 0.6 - 0.3 * 0.9 + 0.2 * 0.3)
    assert factors[:2] == pytest.approx([first, second], abs=1e-14)


def test_momentum_and_adam_inside():
    got = walk(HyperStep(0.3, SGD(0.7, momentum=0.9)))
    assert got[0] == pytest.approx(oracle(0.3, {}, 1.0, 10.0, 1.0, momentum=0.9)[0], abs=1e-14)
    assert walk(HyperStep(0.05, AdamW(0.7), gamma=1.0))[0] == walk_plain(AdamW(0.05))
    decayed = SGD(0.3, weight_decay=0.2)  # it writes into the gradients, which are kept before
    assert walk(HyperStep(0.3, decayed))[1] == walk(HyperStep(0.3, SGD()))[1]


def walk_plain(part):
    values = {n: double(*v) for n, v in START.items()}
    state = part.init(values)
    for step in GRADS:
        state = part.step_(values, {n: double(*g) for n, g in step.items()}, state)
    return [x for n in START for x in values[n].tolist()]


def test_bound_of_one_is_the_rule_inside_to_the_bit():
    assert walk(HyperStep(0.3, SGD(), gamma=1.0))[0] == walk_plain(SGD(0.3))
    assert walk(HyperStep(0.3, SGD(), rate=0.0))[0] == walk_plain(SGD(0.3))


def test_names_without_a_direction_count_as_zero():
    some = {"b": double(0.3)}
    assert walk(HyperStep(0.3, SGD(), some, share=0.5))[1] == pytest.approx(
        oracle(0.3, {"b": [0.3]}, 0.5, 10.0, 1.0)[1], abs=1e-14
    )
    more = {**some, "elsewhere": double(9.0)}
    assert walk(HyperStep(0.3, SGD(), more, share=0.5))[1] == walk(HyperStep(0.3, SGD(), some, share=0.5))[1]


def test_gradients_that_are_not_finite_leave_the_factor():
    grads = [GRADS[0], {"a": [math.inf, 0.3], "b": [-0.2]}, {"a": [math.nan, 0.3], "b": [-0.2]}]
    _, factors = walk(HyperStep(0.3, SGD()), grads)
    assert factors == [1, 1, 1]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"HyperStep\(lr=0\): must be above 0, got 0\."):
        HyperStep(0)
    with pytest.raises(ValueError, match=r"HyperStep\(gamma=0\.9\): must be finite and at least 1, got 0\.9\. 10 is"):
        HyperStep(gamma=0.9)
    with pytest.raises(ValueError, match=r"HyperStep\(share=-1\): must be finite and at least 0, got -1\."):
        HyperStep(share=-1)
    with pytest.raises(ValueError, match=r"HyperStep\(rate=nan\): must be finite and at least 0, got nan\."):
        HyperStep(rate=float("nan"))
