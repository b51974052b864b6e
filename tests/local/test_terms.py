import math

import pytest
import torch

from partwise.local import ClipGradient, Decay, Proximal, Shift, Times
from partwise.runtimes.executors.groups import _clip


def tensors(**values):
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}


def lists(values):
    return {name: v.tolist() for name, v in values.items()}


def test_proximal_pulls_to_where_the_task_began():
    grads, params = tensors(a=[1.0, -2.0], b=[0.5]), tensors(a=[3.0, 4.0], b=[-1.0])
    got = Proximal(0.1, tensors(a=[1.0, 9.0], b=[-1.0]))(params, grads, 0)
    assert got["a"].tolist() == pytest.approx([1.2, -2.5])
    assert got["b"].tolist() == [0.5]
    assert lists(grads) == {"a": [1.0, -2.0], "b": [0.5]}


def test_shift_adds():
    grads = tensors(a=[1.0, -2.0])
    assert lists(Shift(tensors(a=[0.5, 3.0]))({}, grads, 4)) == {"a": [1.5, 1.0]}
    assert lists(grads) == {"a": [1.0, -2.0]}


def test_gradient_is_clipped_over_all_parameters_together():
    grads = tensors(a=[2.0, 0.0], b=[-3.0, 6.0])  # norm 7
    clipped = ClipGradient(3.5)({}, grads, 0)
    assert clipped["a"].tolist() == pytest.approx([1.0, 0.0])
    assert clipped["b"].tolist() == pytest.approx([-1.5, 3.0])
    assert lists(ClipGradient(8.0)({}, grads, 0)) == lists(grads)
    zero = ClipGradient(1.0)({}, tensors(a=[0.0]), 0)
    assert zero["a"].tolist() == [0.0]
    assert math.isfinite(float(zero["a"]))
    with pytest.raises(ValueError, match=r"ClipGradient\(max_norm=0\): must be above 0, got 0\."):
        ClipGradient(0)


def test_times_multiplies_and_keeps_the_type():
    grads = {"a": torch.tensor([1.5, -2.0]), "b": torch.tensor(4.0, dtype=torch.float64)}
    got = Times(torch.tensor(0.5, dtype=torch.float64))({}, grads, 0)
    assert lists(got) == {"a": [0.75, -1.0], "b": 2.0}
    assert (got["a"].dtype, got["b"].dtype) == (torch.float32, torch.float64)
    assert lists(grads) == {"a": [1.5, -2.0], "b": 4.0}


def test_decay_is_part_of_the_gradient():
    grads, params = tensors(a=[3.0, -1.0]), tensors(a=[6.0, 8.0], b=[5.0])
    assert lists(Decay(0.5)(params, grads, 0)) == {"a": [6.0, 3.0]}
    assert lists(grads) == {"a": [3.0, -1.0]}
    with pytest.raises(ValueError, match=r"Decay\(rate=-1\): must be at least 0, got -1\. Use 0 to turn it off\."):
        Decay(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_whose_norm_runs_over_is_clipped(dtype):
    """10,000 values of 1000 have a norm of 100,000, which float16 does not have; each becomes 5 / 100."""
    grads = {"a": torch.full((10_000,), 1000.0, dtype=dtype), "b": torch.zeros(2, dtype=torch.float64)}
    alone = ClipGradient(5.0)({}, grads, 0)
    together = _clip(5.0)({}, {name: torch.stack([g, g]) for name, g in grads.items()}, 0)
    for found in (alone, {name: g[1] for name, g in together.items()}):
        assert {name: g.dtype for name, g in found.items()} == {"a": dtype, "b": torch.float64}
        torch.testing.assert_close(found["a"], torch.full_like(grads["a"], 0.05))
