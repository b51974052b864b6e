import math

import pytest
import torch

from partwise.local import SGD, AdamW
from partwise.local.optimizers import _decay_


def walk(part, start, gradients):
    values = {"v": torch.tensor(start, dtype=torch.float64)}
    state = part.init(values)
    for gradient in gradients:
        state = part.step_(values, {"v": torch.tensor(gradient, dtype=torch.float64)}, state)
    return values["v"].tolist()


START, GRADIENTS = [2.0, -0.5, 3.0], [[1.0, -2.0, 0.0], [0.5, 4.0, 0.0], [-3.0, 0.25, 0.0]]


def sgd(start, gradients, lr, momentum=0.0, decay=0.0):
    """torch.optim.SGD's rule in plain loops: decay joins the gradient, momentum is not damped."""
    v, buffer = list(start), [0.0] * len(start)
    for gradient in gradients:
        for j, g in enumerate(gradient):
            buffer[j] = momentum * buffer[j] + g + decay * v[j]
            v[j] -= lr * buffer[j]
    return v


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_against_plain_loops_and_torch(momentum, decay):
    got = walk(SGD(0.3, momentum, decay), START, GRADIENTS)
    assert got == pytest.approx(sgd(START, GRADIENTS, 0.3, momentum, decay))
    theirs = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=0.3, momentum=momentum, weight_decay=decay)
    for gradient in GRADIENTS:
        theirs.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert got == pytest.approx(theirs.tolist())


def adamw(start, gradients, lr, decay, cautious):
    v = list(start)
    m, s = [0.0] * len(v), [0.0] * len(v)
    for t, gradient in enumerate(gradients, 1):
        for j, g in enumerate(gradient):
            m[j] = 0.9 * m[j] + 0.1 * g
            s[j] = 0.999 * s[j] + 0.001 * g * g
            u = m[j] / (1 - 0.9**t) / (math.sqrt(s[j] / (1 - 0.999**t)) + 1e-8)
            decayed = decay * v[j] if u * v[j] >= 0 or not cautious else 0.0
            v[j] -= lr * (u + decayed)
    return v


@pytest.mark.parametrize("cautious", [False, True])
def test_adamw_against_plain_loops(cautious):
    got = walk(AdamW(0.1, weight_decay=0.2, cautious=cautious), START, GRADIENTS)
    assert got == pytest.approx(adamw(START, GRADIENTS, 0.1, 0.2, cautious), rel=1e-9)


def test_adamw_is_torch_s():
    theirs = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2)
    for gradient in GRADIENTS:
        theirs.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert walk(AdamW(0.1, weight_decay=0.2), START, GRADIENTS) == pytest.approx(theirs.tolist(), rel=1e-9)


THETA, U = [2.0, -2.0, 0.5, 0.0, -1.0], [0.3, 0.3, -0.1, 0.2, 0.0]


def test_cautious_decay():
    """optimisation.md §13.6: rate 0.1, decay 0.01; mask (1, 0, 0, 1, 1)."""
    cautious = walk(SGD(0.1, weight_decay=0.01, cautious=True), THETA, [U])
    assert cautious == pytest.approx([1.968, -2.03, 0.51, -0.02, -0.999], abs=1e-12)
    plain = walk(SGD(0.1, weight_decay=0.01), THETA, [U])
    assert plain == pytest.approx([1.968, -2.028, 0.5095, -0.02, -0.999], abs=1e-12)


def test_cautious_decay_at_its_ends():
    none = walk(SGD(0.1, cautious=True), THETA, [U])
    assert none == walk(SGD(0.1), THETA, [U])
    aligned = [abs(u) * math.copysign(1, t) for u, t in zip(U, THETA, strict=True)]
    with_decay = [walk(SGD(0.1, weight_decay=0.01, cautious=c), THETA, [aligned]) for c in (True, False)]
    assert with_decay[0] == pytest.approx(with_decay[1])
    opposed = [-1e-3 if t >= 0 else 1e-3 for t in THETA[:3]]
    got = walk(SGD(0.1, weight_decay=0.01, cautious=True), THETA[:3], [opposed])
    assert got == walk(SGD(0.1), THETA[:3], [opposed])


def test_cautious_mask_follows_the_momentum_not_the_gradient():
    """Second step: the gradient opposes v, its momentum buffer does not."""
    part = SGD(0.1, momentum=0.9, weight_decay=0.5, cautious=True)
    (got,) = walk(part, [10.0], [[4.0], [-1.0]])
    first = 10.0 - 0.1 * 0.5 * 10.0 - 0.1 * 4.0
    buffer = 0.9 * 4.0 - 1.0
    assert got == pytest.approx(first - 0.1 * 0.5 * first - 0.1 * buffer)


def test_decay_of_nothing():
    value = torch.tensor([1.0, -1.0])
    _decay_(value, torch.tensor([-1.0, 1.0]), 0.5, cautious=True)
    assert value.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("part", [SGD, AdamW])
def test_wrong_settings_are_refused(part):
    name, share = part.__name__, "momentum" if part is SGD else "beta1"
    with pytest.raises(ValueError, match=rf"{name}\(lr=0\): must be above 0, got 0\."):
        part(lr=0)
    with pytest.raises(ValueError, match=rf"{name}\(lr=inf\): must be a finite number above 0, got inf\."):
        part(lr=math.inf)
    with pytest.raises(ValueError, match=rf"{name}\(weight_decay=-1\): must be at least 0, got -1\."):
        part(weight_decay=-1)
    with pytest.raises(ValueError, match=rf"{name}\({share}=1\): must lie in \[0, 1\), got 1\."):
        part(**{share: 1})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adamw_keeps_moments_of_half_precision_in_single(dtype):
    """Gradients whose squares are 0 in float16, and one that is 0 and leaves its value alone."""
    values, gradients = {"v": torch.tensor([1.0, -1.0, 0.5], dtype=dtype)}, [[2**-12, -(2**-13), 0.0]] * 3
    part = AdamW(0.125, weight_decay=0.0)
    state = part.init(values)
    for gradient in gradients:
        state = part.step_(values, {"v": torch.tensor(gradient, dtype=dtype)}, state)
    assert values["v"].dtype == dtype
    assert values["v"].tolist() == pytest.approx(adamw([1.0, -1.0, 0.5], gradients, 0.125, 0.0, False), rel=1e-2)
