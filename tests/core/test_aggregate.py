import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

import strategies
from partwise.core.aggregate import Accumulator, Coverage, Sum, sum_updates
from partwise.core.codec import decode, encode
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.update import Update
from partwise.testing.examples import example_params, example_update

QUICK = settings(max_examples=40, deadline=None)
ONE = torch.tensor([1])


def by_position(got: Sum):
    """Name -> flat position -> (sum of weighted values, sum of weights)."""
    found = {}
    for name in got.index.shapes:
        value = got.value[name]
        weight = got.weight[name].expand(value.shape).reshape(-1).tolist()
        at = got.index.coords(name).tolist()
        found[name] = dict(zip(at, zip(value.reshape(-1).tolist(), weight, strict=True), strict=True))
    return found


@QUICK
@given(st.lists(strategies.updates(), max_size=6))
def test_sums_are_those_of_plain_loops(drawn):
    got = sum_updates([u for u, _, _ in drawn], strategies.params())
    expected = {}
    for _, plain, weight in drawn:
        for name, values in plain.items():
            for position, x in values.items():
                value, total = expected.setdefault(name, {}).get(position, (0.0, 0.0))
                expected[name][position] = (value + weight * x, total + weight)
    found = by_position(got)
    for name in strategies.SHAPES:
        touched = {p: s for p, s in expected.get(name, {}).items() if s[1] > 0}
        kept = {p: s for p, s in found.get(name, {}).items() if s[1] > 0}
        assert kept == touched
        assert all(s == (0.0, 0.0) for p, s in found.get(name, {}).items() if p not in touched)
    assert got.total == sum(weight for _, _, weight in drawn)
    assert got.count == len(drawn)


@QUICK
@given(st.lists(strategies.updates(least_weight=1), max_size=5))
def test_what_nobody_held_is_left_out(drawn):
    """With every weight above zero the union is exact: nothing that nobody held, and all that anybody did."""
    got = sum_updates([u for u, _, _ in drawn], strategies.params())
    union = {}
    for _, plain, _ in drawn:
        for name, values in plain.items():
            union.setdefault(name, set()).update(values)
    assert {n: set(got.index.coords(n).tolist()) for n in got.index.shapes if len(got.index.coords(n))} == {
        n: at for n, at in union.items() if at
    }


def test_mixed_kinds_on_one_parameter():
    """Rows of one client, a grid of another, coordinates of a third."""
    shape = {"E": (4, 3)}
    updates = [
        Update(Rows(shape, {"E": torch.tensor([0, 2])}), {"E": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}, 2.0),
        Update(
            Grid(shape, {"E": (torch.tensor([2, 3]), torch.tensor([1]))}), {"E": torch.tensor([[10.0], [20.0]])}, 3.0
        ),
        Update(Coords(shape, {"E": torch.tensor([1, 9])}), {"E": torch.tensor([100.0, 200.0])}, 1.0),
    ]
    params = {"E": torch.zeros(4, 3)}
    for order in (updates, updates[::-1]):
        found = by_position(sum_updates(order, params))["E"]
        assert found == {
            0: (2.0, 2.0),
            1: (104.0, 3.0),
            2: (6.0, 2.0),
            6: (8.0, 2.0),
            7: (40.0, 5.0),
            8: (12.0, 2.0),
            9: (200.0, 1.0),
            10: (60.0, 3.0),
        }


def test_index_is_the_coarsest_that_fits():
    params = {"E": torch.zeros(4, 2), "b": torch.zeros(2)}
    rows = Rows({"E": (4, 2), "b": (2,)}, {"E": torch.tensor([1, 3]), "b": None})
    some = Update(rows, {"E": torch.ones(2, 2), "b": torch.ones(2)})
    got = sum_updates([some, some], params)
    assert isinstance(got.index, Rows)
    assert (got.index.rows["E"].tolist(), got.index.rows["b"]) == ([1, 3], None)
    assert got.weight["E"].shape == (2, 1)  # one weight per row
    everybody = Update(Whole({"E": (4, 2), "b": (2,)}), {"E": torch.ones(4, 2), "b": torch.ones(2)})
    assert isinstance(sum_updates([some, everybody], params).index, Whole)
    one = Update(Coords({"E": (4, 2)}, {"E": torch.tensor([1])}), {"E": torch.ones(1)})
    bias = Update(Rows({"b": (2,)}, {"b": torch.tensor([1])}), {"b": torch.ones(1)})
    assert isinstance(sum_updates([one, bias], params).index, Joint)
    assert isinstance(sum_updates([one], params).index, Coords)


def test_weights_per_row():
    """Also of a parameter that is held whole, where the sum would need no weights per row."""
    params = {"E": torch.zeros(4, 2), "b": torch.zeros(3)}
    index = Rows({"E": (4, 2), "b": (3,)}, {"E": torch.tensor([1, 3]), "b": None})
    value = {"E": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([1.0, 1.0, 1.0])}
    weight = {"E": torch.tensor([10.0, 0.5]), "b": torch.tensor([1.0, 2.0, 4.0])}
    got = sum_updates([Update(index, value, weight), Update(index, value, 2.0)], params)
    found = by_position(got)
    assert found["E"] == {2: (12.0, 12.0), 3: (24.0, 12.0), 6: (7.5, 2.5), 7: (10.0, 2.5)}
    assert found["b"] == {0: (3.0, 3.0), 1: (4.0, 4.0), 2: (6.0, 6.0)}
    assert got.total == 12.0  # the largest of the first, and 2


def test_nothing_to_sum():
    params = strategies.params()
    for got in (sum_updates([], params), sum_updates([Update(Coords({}, {}), {}, 3.0)], params)):
        assert dict(got.index.shapes) == {}
    assert (sum_updates([], params).total, sum_updates([], params).count) == (0.0, 0)


def test_take_empties_the_accumulator():
    params = {"b": torch.zeros(2)}
    accumulator = Accumulator(params)
    update = Update(Whole({"b": (2,)}), {"b": torch.tensor([1.0, 2.0])}, 3.0)
    accumulator.add_(update)
    first = accumulator.take()
    accumulator.add_(update)
    second = accumulator.take()
    assert encode(first) == encode(second)
    assert encode(accumulator.take()) == encode(sum_updates([], params))


def test_sum_survives_the_codec_and_leaves_its_inputs():
    params = example_params()
    update = example_update(Whole({n: tuple(t.shape) for n, t in params.items()}), params, seed=1, weight=2.0)
    before = encode((update, params))
    got = sum_updates([update, update], params)
    assert encode((update, params)) == before
    assert encode(decode(bytearray(encode(got)))) == encode(got)


class CountBytes(TorchDispatchMode):
    """The storage of every tensor that an operation returns, while it lives."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.live[storage.data_ptr()] = (weakref.ref(t), storage.nbytes())
        self.live = {k: (r, n) for k, (r, n) in self.live.items() if r() is not None}
        self.peak = max(self.peak, sum(n for _, n in self.live.values()))
        return result


def peak_of(num_updates, params, index, value):
    """Bytes of tensors alive at once while so many updates are summed."""
    with CountBytes() as count:
        accumulator = Accumulator(params)
        for i in range(num_updates):
            accumulator.add_(Update(index, {"E": value + i}))
        accumulator.take()
    return count.peak


def test_memory_does_not_grow_with_the_number_of_updates():
    params = {"E": torch.zeros(100, 8)}
    index, value = Rows({"E": (100, 8)}, {"E": torch.arange(0, 100, 3)}), torch.ones(34, 8)
    few, many = peak_of(7, params, index, value), peak_of(70, params, index, value)  # 238 and 2,380 rows of 34
    assert 34 * 8 * 4 <= few <= many <= few * 1.1


def test_memory_follows_the_rows_that_are_touched_and_not_the_table():
    at, value = torch.arange(0, 100, 3), torch.ones(34, 8)
    small, large = (
        peak_of(7, {"E": torch.empty(rows, 8, device="meta")}, Rows({"E": (rows, 8)}, {"E": at}), value)
        for rows in (300, 300_000)
    )
    assert small <= large <= small * 1.1


def test_a_scalar_that_nobody_holds():
    """Held by name, at no position: once an IndexError."""
    update = Update(Coords({"s": ()}, {"s": torch.tensor([], dtype=torch.int64)}), {"s": torch.zeros(0)})
    got = sum_updates([update], {"s": torch.tensor(1.0)})
    assert got.index.coords("s").tolist() == []


def test_coverage_grows_finer_when_it_must():
    params = {"E": torch.zeros(3, 2)}
    cover = Coverage(params)
    cover.add_(Whole({"E": (3, 2)}), 1.0)
    assert cover.weights["E"].shape == (1, 1)
    cover.add_(Rows({"E": (3, 2)}, {"E": torch.tensor([1])}), 2.0)
    assert cover.weights["E"].reshape(-1).tolist() == [1.0, 3.0, 1.0]
    cover.add_(Coords({"E": (3, 2)}, {"E": torch.tensor([0])}), 4.0)
    assert cover.weights["E"].tolist() == [[5.0, 1.0], [3.0, 3.0], [1.0, 1.0]]
    cover.add_(Rows({"E": (3, 2)}, {"E": torch.tensor([2])}), {"E": torch.tensor([0.5])})
    assert cover.weights["E"].tolist() == [[5.0, 1.0], [3.0, 3.0], [1.5, 1.5]]
    assert cover.weights["E"].dtype == torch.float64


@pytest.mark.parametrize("held", ["whole", "rows", "stacked", "resumed"])
def test_half_precision_is_added_up_in_single_precision(held):
    """A thousand times 1 is 1000; added one after another in bfloat16, it would stay at 256."""
    params = {"E": torch.zeros(3, 2, dtype=torch.bfloat16)}
    one = torch.ones(2, 2, dtype=torch.bfloat16)
    index = Rows({"E": (3, 2)}, {"E": torch.tensor([0, 2])})
    if held == "whole":
        index, one = Whole({"E": (3, 2)}), torch.ones(3, 2, dtype=torch.bfloat16)
    sums = Accumulator(params)
    if held == "stacked":
        for _ in range(2):
            assert sums.add_stacked_([index] * 500, {"E": torch.stack([one] * 500)}, [1.0] * 500)
    for number in range(0 if held == "stacked" else 1000):
        sums.add_(Update(index, {"E": one}))
        if held == "resumed" and number % 300 == 0:
            sums = Accumulator(params, decode(encode(sums.state)))
    got = sums.take()
    assert got.value["E"].dtype == torch.float32
    assert {v for v, _ in by_position(got)["E"].values()} == {1000.0}
    assert got.total == 1000.0


def test_updates_at_once_beside_one_that_was_scaled():
    """Of room for two rows the second client fills one; `b` is held by rows first, and whole by both after that."""
    shapes = {"E": (4, 2), "b": (2,)}
    params = {"E": torch.zeros(4, 2), "b": torch.zeros(2)}
    sums = Accumulator(params)
    some = Rows(shapes, {"E": ONE, "b": ONE})
    sums.add_(Update(some, {"E": torch.tensor([[7.0, 7.0]]), "b": torch.tensor([10.0])}, 4.0), 0.5)
    indices = [Rows(shapes, {"E": torch.tensor(at), "b": None}) for at in ([0, 2], [2])]
    rows = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [99.0, 99.0]]])
    assert sums.add_stacked_(indices, {"E": rows, "b": torch.tensor([[1.0, 0.0], [0.0, 4.0]])}, [2.0, 3.0])
    got = sums.take()
    assert by_position(got) == {
        "E": {0: (2, 2), 1: (4, 2), 2: (14, 2), 3: (14, 2), 4: (2 * 3 + 3 * 5, 5), 5: (2 * 4 + 3 * 6, 5)},
        "b": {0: (2, 5), 1: (20 + 3 * 4, 2 + 5)},
    }
    assert (got.total, got.count, got.scale) == (4 + 5, 3, (2 + 5) / 9)


def test_updates_at_once_that_run_over_are_left_to_be_added_one_by_one():
    sums = Accumulator({"b": torch.zeros(2)})
    whole = Whole({"b": (2,)})
    large = torch.tensor([[3e38, 1.0], [3e38, 1.0]])
    assert not sums.add_stacked_([whole, whole], {"b": large}, [1.0, 1.0])
    assert encode(sums.take()) == encode(sum_updates([], {"b": torch.zeros(2)}))


def test_a_scale_is_of_weights_per_row_too():
    """Also of an update that all of a parameter's weights come from; `total` counts the largest, unscaled."""
    index = Rows({"E": (4, 2), "b": (2,)}, {"E": torch.tensor([1, 3]), "b": None})
    value = {"E": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([8.0, 4.0])}
    weight = {"E": torch.tensor([10.0, 0.5]), "b": torch.tensor([1.0, 2.0])}
    got = sum_updates([Update(index, value, weight)], {"E": torch.zeros(4, 2), "b": torch.zeros(2)}, [0.5])
    found = by_position(got)
    assert found["E"] == {2: (5, 5), 3: (10, 5), 6: (0.75, 0.25), 7: (1, 0.25)}
    assert found["b"] == {0: (4, 0.5), 1: (4, 1)}
    assert (got.total, got.scale) == (10, 0.5)
