import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import strategies
from partwise.core.codec import decode, encode
from partwise.core.index import Coords, Grid, Joint, Rows, Whole, shapes_of
from partwise.testing import check_index

QUICK = settings(max_examples=60, deadline=None)


def flat(params):
    return {name: t.reshape(-1).tolist() for name, t in params.items()}


@QUICK
@given(strategies.indices())
def test_gather_takes_what_is_held(drawn):
    params = strategies.params()
    held = drawn.index.gather(params)
    full = flat(params)
    assert {n: v.reshape(-1).tolist() for n, v in held.items()} == {
        n: [full[n][i] for i in at] for n, at in drawn.positions.items()
    }
    assert {n: drawn.index.coords(n).tolist() for n in drawn.index.shapes} == drawn.positions


@QUICK
@given(strategies.updates(), st.sampled_from([1.0, -0.5, 3.0]))
def test_scatter_is_plain_addition(update, factor):
    update, plain, _ = update
    target, expected = strategies.params(), flat(strategies.params())
    update.index.scatter_add_(target, update.values(), factor)
    for name, values in plain.items():
        for position, x in values.items():
            expected[name][position] += factor * x
    assert flat(target) == expected


@QUICK
@given(strategies.updates())
def test_put_is_plain_assignment(update):
    update, plain, _ = update
    target, expected = strategies.params(), flat(strategies.params())
    update.index.put_(target, update.values())
    for name, values in plain.items():
        for position, x in values.items():
            expected[name][position] = x
    assert flat(target) == expected


@QUICK
@given(strategies.indices(), st.integers(0, 3))
def test_cover_at_every_grain(drawn, finer):
    """Targets as coarse as `grain` allows and any finer: the weight lies on what is held and nowhere else."""
    target = {}
    for name in drawn.index.shapes:
        shape = strategies.SHAPES[name]
        grain = min(len(shape), drawn.index.grain(name) + finer)
        target[name] = torch.zeros(shape[:grain] + (1,) * (len(shape) - grain))
    drawn.index.cover_(target, 2.5)
    for name, positions in drawn.positions.items():
        expected = torch.zeros(torch.Size(strategies.SHAPES[name]).numel())
        expected[positions] = 2.5
        assert torch.equal(target[name].expand(strategies.SHAPES[name]).reshape(-1), expected)


@QUICK
@given(strategies.indices())
def test_contract(drawn):
    check_index(drawn.index, strategies.params())


@QUICK
@given(strategies.indices())
def test_codec_is_lossless(drawn):
    again = decode(bytearray(encode(drawn.index)))
    assert type(again) is type(drawn.index)
    assert {n: again.coords(n).tolist() for n in again.shapes} == drawn.positions


def test_cover_with_weights_by_row_and_by_value():
    index = Rows({"E": (4, 2)}, {"E": torch.tensor([1, 3])})
    by_row, by_value = {"E": torch.zeros(4, 1)}, {"E": torch.zeros(4, 2)}
    index.cover_(by_row, {"E": torch.tensor([5.0, 7.0])})
    index.cover_(by_value, {"E": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    assert by_row["E"].reshape(-1).tolist() == [0.0, 5.0, 0.0, 7.0]
    assert by_value["E"].tolist() == [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]


def test_grid_covers_middle_axes():
    """An axis that is held whole stays coarse, one that is thinned later does not."""
    index = Grid({"c": (2, 3, 2)}, {"c": (None, torch.tensor([2]), None)})
    assert index.grain("c") == 2
    target = {"c": torch.zeros(2, 3, 1)}
    index.cover_(target, {"c": torch.tensor([[4.0], [9.0]])})
    assert target["c"].reshape(2, 3).tolist() == [[0.0, 0.0, 4.0], [0.0, 0.0, 9.0]]


def test_values_held_in_part_are_copies_and_those_held_whole_the_parameter_itself():
    params, all_of = {"E": torch.ones(3, 2)}, torch.arange(3)
    for index in (
        Rows(shapes_of(params), {"E": all_of}),
        Grid(shapes_of(params), {"E": (all_of, None)}),
        Coords(shapes_of(params), {"E": torch.arange(6)}),
    ):
        index.gather(params)["E"].zero_()
        assert torch.equal(params["E"], torch.ones(3, 2))
    for index in (
        Whole(shapes_of(params)),
        Rows(shapes_of(params), {"E": None}),
        Grid(shapes_of(params), {"E": (None, None)}),
    ):
        assert index.gather(params)["E"] is params["E"]


def test_shapes_of_names_some():
    params = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}
    assert shapes_of(params) == {"a": (2,), "b": (3, 1)}
    assert shapes_of(params, ["b"]) == {"b": (3, 1)}


def ids(*positions, dtype=torch.int64):
    return torch.tensor(positions, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: Rows({"E": (4, 2)}, {"E": ids(1, dtype=torch.int32)}),
            TypeError,
            r"Rows\('E'\): rows must be a",
        ),
        (lambda: Rows({"E": (4, 2)}, {"E": ids(1).reshape(1, 1)}), TypeError, "got torch.int64 with 2 axes"),
        (
            lambda: Rows({"E": (4, 2)}, {"E": ids(1, 4)}),
            ValueError,
            r"rows must lie in 0\.\.3, got 1\.\.4\.",
        ),
        (lambda: Rows({"E": (4, 2)}, {"E": ids(-1, 2)}), ValueError, r"must lie in 0\.\.3, got -1\.\.2"),
        (lambda: Rows({"E": (4, 2)}, {"E": ids(2, 2)}), ValueError, r"must ascend without repeats, got \[2, 2\]"),
        (lambda: Rows({"E": (4, 2)}, {"E": ids(3, 1)}), ValueError, r"must ascend without repeats, got \[3, 1\]"),
        (
            lambda: Rows({"E": (4, 2)}, {}),
            ValueError,
            r"shapes must name exactly what is held, got \['E'\] and \[\]",
        ),
        (
            lambda: Grid({"W": (3, 3)}, {"W": (None,)}),
            ValueError,
            r"Grid\('W'\): needs one entry per axis of \(3, 3\)",
        ),
        (lambda: Grid({"W": (3, 3)}, {"W": (None, ids(3))}), ValueError, r"positions of axis 1 must lie in 0\.\.2"),
        (
            lambda: Coords({"w": (2, 2)}, {"w": ids(4)}),
            ValueError,
            r"Coords\('w'\): positions must lie in 0\.\.3",
        ),
        (lambda: Joint((Whole({"a": (1,)}), Whole({"a": (1,)}))), ValueError, r"got \['a'\] twice"),
    ],
)
def test_wrong_indices_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
