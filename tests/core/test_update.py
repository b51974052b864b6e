import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import strategies
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.index import Coords, Rows, Whole
from partwise.core.update import Update, check_update, inner, is_finite, map_values, norm, scale, to_dense
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.transforms import Quantize

QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(strategies.updates())
def test_dense_form_and_norm(update):
    update, plain, _ = update
    params = strategies.params(fill=9.0)
    dense = to_dense(update, params)
    for name, shape in strategies.SHAPES.items():
        expected = [0.0] * torch.Size(shape).numel()
        for position, x in plain.get(name, {}).items():
            expected[position] = x
        assert dense[name].reshape(-1).tolist() == expected
        assert dense[name].shape == params[name].shape
    squares = math.fsum(x * x for values in plain.values() for x in values.values())
    assert norm(update) == pytest.approx(math.sqrt(squares), rel=1e-12)


@QUICK
@given(strategies.updates())
def test_codec_is_lossless(update):
    update, _, weight = update
    again = decode(bytearray(encode(update)))
    assert encode(again) == encode(update)
    assert again.weight == weight
    check_update(again, strategies.params())


def test_norm_is_summed_in_float64():
    """4096 values of 1 and one of 4096: float32 sums of squares would lose the ones."""
    value = torch.ones(4097)
    value[0] = 4096.0
    update = Update(Whole({"w": (4097,)}), {"w": value})
    assert norm(update) == math.sqrt(4096**2 + 4096)


def test_norm_of_what_is_near_the_end_of_float64():
    """(3, 4) times 1e300: the squares would be infinite."""
    value = {"a": torch.tensor([3e300], dtype=torch.float64), "b": torch.tensor([4e300], dtype=torch.float64)}
    assert norm(Update(Whole({"a": (1,), "b": (1,)}), value)) == pytest.approx(5e300, rel=1e-12)


def test_scale_and_map_leave_the_input():
    update = Update(Whole({"w": (2,)}), {"w": torch.tensor([3.0, -1.0])}, 7.0)
    assert scale(update, -2.0).values()["w"].tolist() == [-6.0, 2.0]
    assert map_values(update, torch.abs).values()["w"].tolist() == [3.0, 1.0]
    assert (update.values()["w"].tolist(), scale(update, 2.0).weight) == ([3.0, -1.0], 7.0)


def test_packed_values_are_unpacked():
    update = Update(Whole({"w": (2,)}), {"w": torch.tensor([127.0, -1.0])}, 2.0)
    packed, _ = Quantize(scale_by="max").apply(update, (), torch.Generator())
    assert not isinstance(packed.value["w"], torch.Tensor)
    assert packed.unpacked().value["w"].tolist() == [127.0, -1.0]
    assert norm(packed) == norm(update)
    assert to_dense(packed, {"w": torch.zeros(2)})["w"].tolist() == [127.0, -1.0]
    check_update(packed, {"w": torch.zeros(2)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(bad):
    index = Whole({"w": (2,)})
    good = torch.tensor([1.0, 2.0])
    assert is_finite(Update(index, {"w": good}, 3.0))
    assert is_finite(Update(index, {"w": torch.tensor([3e38, 3e38])}))  # their sum is not
    assert not is_finite(Update(index, {"w": torch.tensor([1.0, bad])}))
    assert not is_finite(Update(index, {"w": good}, bad))
    assert not is_finite(Update(index, {"w": good}, {"w": torch.tensor([1.0, bad])}))


PARAMS = {"E": torch.zeros(4, 2), "b": torch.zeros(3)}
ROWS = Rows({"E": (4, 2)}, {"E": torch.tensor([0, 2])})


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (
            Update(Whole({"x": (3,)}), {"x": torch.zeros(3)}),
            r"must name parameters of the model, got 'x'\.",
        ),
        (Update(Whole({"b": (4,)}), {"b": torch.zeros(4)}), r"the index is for shape \(4,\), the parameter has \(3,\)"),
        (Update(ROWS, {}), r"values must be given for exactly what the index holds, got \[\] for \['E'\]"),
        (
            Update(ROWS, {"E": torch.zeros(4, 2)}),
            r"must have the held shape \(2, 2\), got \(4, 2\)",
        ),
        (None, r"Update\(\): must be an Update\(index, value, weight\), got None\. Give one\."),
        ({"E": torch.zeros(2, 2)}, r"Update\(\): must be an Update\(index, value, weight\), got a dict\."),
        (Update(None, {"E": torch.zeros(2, 2)}), r"Update\(index=\.\.\.\): must be an index, .*, got None\."),
        (Update(ROWS, None), r"Update\(value=\.\.\.\): must be a dict of tensors by name, got None\."),
        (Update(ROWS, {"E": [[0.0, 0.0]] * 2}), r"Update\('E'\): must be a tensor as value, got a list\."),
        (Update(ROWS, {"E": torch.zeros(2, 2)}, None), r"Update\(weight=\.\.\.\): must be a number, or .*, got None\."),
        (Update(ROWS, {"E": torch.zeros(2, 2)}, {"E": 1.0}), r"or a dict of tensors by name, got a dict"),
        (Update(ROWS, {"E": torch.zeros(2, 2)}, -1.0), r"the weight must be at least 0, got -1\.0"),
        (Update(ROWS, {"E": torch.zeros(2, 2)}, 1e39), r"the weight must be at most 3\.4e\+38, got 1e\+39"),
        (
            Update(ROWS, {"E": torch.zeros(2, 2)}, {"E": torch.tensor([1.0, 1e39], dtype=torch.float64)}),
            r"the weight must be at most 3\.4e\+38, got 1e\+39",
        ),
        (Update(ROWS, {"E": torch.zeros(2, 2)}, {"E": torch.tensor([1.0, -3.0])}), r"at least 0, got -3\.0"),
    ],
)
def test_updates_that_do_not_fit_are_refused(update, says):
    with pytest.raises(ProtocolError, match=says):
        check_update(update, PARAMS)


@given(st.floats(0, 1e9))
def test_any_weight_from_zero_up_is_accepted(weight):
    check_update(Update(Coords({}, {}), {}, weight), PARAMS)
    check_update(Update(ROWS, {"E": torch.zeros(2, 2)}, {"E": torch.tensor([weight, 0.0])}), PARAMS)


INDICES = example_indices(example_params())


@pytest.mark.parametrize("other", INDICES)
@pytest.mark.parametrize("one", INDICES)
def test_inner_product_over_what_both_hold(one, other):
    params = example_params(torch.float64)
    a = example_update(INDICES[one], params, seed=1)
    b = example_update(INDICES[other], params, seed=2)
    x, y = to_dense(a, params), to_dense(b, params)
    wanted = math.fsum(
        p * q for n in params for p, q in zip(x[n].reshape(-1).tolist(), y[n].reshape(-1).tolist(), strict=True)
    )
    assert inner(a, b) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_inner_product_is_summed_in_double_precision():
    index = Whole({"w": (3,)})
    a, b = Update(index, {"w": torch.tensor([1e8, 1.0, -1e8])}), Update(index, {"w": torch.ones(3)})
    assert inner(a, b) == 1.0
