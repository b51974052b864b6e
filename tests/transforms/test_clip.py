import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.core.index import Joint, Rows, Whole
from partwise.core.update import Update
from partwise.transforms import Clip, Scale
from toy_sent import RNG


def clip(update, max_norm):
    return Clip(max_norm).apply(update, (), RNG)[0]


def test_norm_runs_over_all_held_parameters_together():
    rows = Rows({"E": (9, 2)}, {"E": torch.tensor([1, 7])})
    index = Joint((rows, Whole({"b": (1,)})))
    update = Update(index, {"E": torch.tensor([[2.0, 0.0], [0.0, -3.0]]), "b": torch.tensor([6.0])}, 4.0)  # norm 7
    clipped = clip(update, 3.5)
    assert clipped.index is index
    assert clipped.weight == 4.0
    assert clipped.values()["E"].tolist() == [[1.0, 0.0], [0.0, -1.5]]
    assert clipped.values()["b"].tolist() == [3.0]


def test_short_update_keeps_its_bits():
    update = Update(Whole({"w": (3,)}), {"w": torch.tensor([0.1, -0.2, 0.3])})
    assert clip(update, 0.4) is update


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_result_never_exceeds_the_bound(values, max_norm, dtype):
    value = torch.tensor(values, dtype=dtype)
    clipped = clip(Update(Whole({"w": (len(values),)}), {"w": value}), max_norm).values()["w"]
    length = math.sqrt(math.fsum(float(x) ** 2 for x in clipped))
    before = math.sqrt(math.fsum(float(x) ** 2 for x in value))
    assert length <= max_norm * (1 + 1e-12)
    assert length >= min(before, max_norm) * (1 - 4 * torch.finfo(dtype).eps) - 1e-30
    assert clipped.dtype == dtype


@pytest.mark.parametrize("max_norm", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("size", [1e36, 1e38])
def test_a_factor_that_has_few_digits_left_cuts_to_the_bound_too(max_norm, size):
    """max_norm / size is below 1e-38, where float32 has fewer digits the smaller a number is."""
    for seed in range(100):
        value = torch.rand(20, generator=torch.Generator().manual_seed(seed)).mul_(size)
        clipped = clip(Update(Whole({"w": (20,)}), {"w": value}), max_norm).values()["w"]
        assert 0.5 * max_norm < float(torch.linalg.vector_norm(clipped.double())) <= max_norm


def test_values_of_a_few_last_places_are_cut_to_the_bound_too():
    """A thousandth of 1e-4 is 1.7 of float16's smallest steps, 2^-24, and is rounded to two of them: 1.19e-4 in all."""
    clipped = clip(Update(Whole({"w": (10**6,)}), {"w": torch.ones(10**6, dtype=torch.float16)}), 1e-4).values()["w"]
    assert clipped.unique().tolist() == [2.0**-24]  # a thousand times which is 6e-5


def test_update_of_zeros():
    assert clip(Update(Whole({"w": (2,)}), {"w": torch.zeros(2)}), 1.0).values()["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_update_that_is_not_finite_is_refused(bad):
    says = r"Clip\(max_norm=1\.0\): needs a finite update, got norm (nan|inf)\. Lower the learning rate"
    with pytest.raises(ValueError, match=says):
        clip(Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, bad])}), 1.0)


@pytest.mark.parametrize("max_norm", [0.0, -2.0, math.nan])
def test_max_norm_must_be_positive(max_norm):
    with pytest.raises(ValueError, match=rf"Clip\(max_norm={max_norm}\): must be above 0, got {max_norm}\."):
        Clip(max_norm)


def test_others_find_the_bound():
    assert Clip(2.5).bound == 2.5


def test_scale():
    update = Update(Whole({"w": (2,)}), {"w": torch.tensor([3.0, -1.0])}, 7.0)
    scaled, _ = Scale(-0.5).apply(update, (), RNG)
    assert (scaled.values()["w"].tolist(), scaled.weight) == ([-1.5, 0.5], 7.0)
    with pytest.raises(ValueError, match=r"Scale\(factor=inf\): must be finite, got inf\."):
        Scale(math.inf)
