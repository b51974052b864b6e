import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Coords, Grid, Rows, Whole
from partwise.core.transform import Identity
from partwise.core.update import Update, scale
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.transforms import Clip, ErrorFeedback, TopK

RNG = torch.Generator()


def whole(*values):
    return Update(Whole({"w": (len(values),)}), {"w": torch.tensor(values, dtype=torch.float64)})


def at_coords(size, positions, values):
    index = Coords({"w": (size,)}, {"w": torch.tensor(positions)})
    return Update(index, {"w": torch.tensor(values, dtype=torch.float64)})


def dense(update, shapes):
    """Name -> flat list, by the positions the index states; no scatter is involved."""
    full = {name: [0.0] * max(1, torch.Size(shape).numel()) for name, shape in shapes.items()}
    for name, value in update.values().items():
        for position, x in zip(update.index.coords(name).tolist(), value.reshape(-1).tolist(), strict=True):
            full[name][position] += x
    return full


def sent_by(part, update, state=()):
    return part.apply(update, state, RNG)[0]


# ---- TopK -----------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_position():
    sent = sent_by(TopK(k=2), whole(1.0, -2.0, 2.0, 2.0, -2.0))
    assert sent.index.coords("w").tolist() == [1, 2]
    assert sent.values()["w"].tolist() == [-2.0, 2.0]


def test_positions_are_those_of_the_whole_parameter():
    rows = Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])})
    sent = sent_by(TopK(k=2), Update(rows, {"E": torch.tensor([[0.5, -3.0], [2.0, 0.1]])}))
    assert sent.index.coords("E").tolist() == [3, 8]
    grid = Grid({"W": (3, 4)}, {"W": (torch.tensor([0, 2]), torch.tensor([1, 3]))})
    sent = sent_by(TopK(k=1), Update(grid, {"W": torch.tensor([[1.0, 2.0], [-9.0, 4.0]])}))
    assert (sent.index.coords("W").tolist(), sent.values()["W"].tolist()) == ([9], [-9.0])


def test_scope():
    update = Update(
        Whole({"a": (3,), "b": (2,)}), {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([40.0, -50.0])}, 3.0
    )
    globally = sent_by(TopK(k=2), update)
    assert set(globally.index.shapes) == {"b"}  # nothing of `a` is among the two largest
    per_layer = sent_by(TopK(k=1, scope="layer"), update)
    assert {n: per_layer.index.coords(n).tolist() for n in "ab"} == {"a": [2], "b": [1]}
    assert per_layer.weight == 3.0
    half = sent_by(TopK(ratio=0.5, scope="layer"), update)  # 1.5 of 3 rounds to 2
    assert {n: half.index.coords(n).tolist() for n in "ab"} == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize(("ratio", "held", "expected"), [(0.29, 100, 29), (0.57, 100, 57), (0.001, 10, 1), (0.5, 7, 4)])
def test_ratio_loses_none_to_truncation(ratio, held, expected):
    value = torch.arange(1.0, held + 1)
    sent = sent_by(TopK(ratio=ratio), Update(Whole({"w": (held,)}), {"w": value}))
    assert len(sent.values()["w"]) == expected


def test_all_of_it_is_lossless():
    params = example_params()
    for index in example_indices(params).values():
        update = example_update(index, params, seed=1)
        assert sent_by(TopK(ratio=1.0), update) is update
        assert sent_by(TopK(k=10**6, scope="layer"), update) is update


def test_weights_per_row_follow_their_coordinates():
    rows = Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])})
    update = Update(rows, {"E": torch.tensor([[0.5, -3.0], [2.0, 0.1]])}, {"E": torch.tensor([10.0, 70.0])})
    sent = sent_by(TopK(k=2), update)
    assert sent.weight["E"].tolist() == [10.0, 70.0]
    assert sent_by(TopK(k=1), update).weight["E"].tolist() == [10.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.integers(1, 30))
def test_contraction_and_oracle(values, k):
    """‖x - top_k(x)‖² <= (1 - k/d) ‖x‖²; the positions are those of a sort by (-|x|, position)."""
    sent = sent_by(TopK(k=k), whole(*map(float, values)))
    kept = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])
    assert sent.index.coords("w").tolist() == kept
    lost = sum(values[i] ** 2 for i in range(len(values)) if i not in kept)
    assert lost <= (1 - min(k, len(values)) / len(values)) * sum(v * v for v in values) + 1e-9


def test_message_shrinks():
    update = Update(Whole({"w": (100_000,)}), {"w": torch.randn(100_000, generator=RNG)})
    assert encoded_size(sent_by(TopK(ratio=0.01), update)) < encoded_size(update) / 50


def test_topk_refuses():
    with pytest.raises(ValueError, match=r"TopK\(k=None, ratio=None\): needs either k or ratio, got neither\."):
        TopK()
    with pytest.raises(ValueError, match=r"TopK\(k=3, ratio=0\.1\): needs either k or ratio, got both\."):
        TopK(k=3, ratio=0.1)
    with pytest.raises(ValueError, match=r"TopK\(k=0\): must be at least 1, got 0\."):
        TopK(k=0)
    with pytest.raises(ValueError, match=r"TopK\(ratio=1\.5\): must lie in \(0, 1\], got 1\.5\."):
        TopK(ratio=1.5)
    with pytest.raises(ValueError, match=r"TopK\(scope='row'\): must be 'global' or 'layer', got 'row'\."):
        TopK(k=1, scope="row")
    with pytest.raises(ValueError, match=r"TopK\(\): needs an update without NaN, got one\."):
        sent_by(TopK(k=1), whole(1.0, float("nan")))


# ---- ErrorFeedback --------------------------------------------------------------------------------------------------


def owed(state):
    return dict(zip(state.at["w"].tolist(), state.value["w"].tolist(), strict=True)) if "w" in state.at else {}


def test_trace_with_a_constant_gradient():
    """communication.md §15.1: g = (3, -1, 0.5, -2), rate 0.1, k = 1, w = 0."""
    part = ErrorFeedback(TopK(k=1))
    state, w, sends = part.init({}), [0.0] * 4, []
    for _ in range(3):
        sent, state = part.apply(scale(whole(3.0, -1.0, 0.5, -2.0), -0.1), state, RNG)
        ((position,),) = [sent.index.coords("w").tolist()]
        sends.append((position, float(sent.values()["w"])))
        w[position] += sends[-1][1]
        if len(sends) == 2:
            assert owed(state) == pytest.approx({0: -0.3, 1: 0.2, 2: -0.1}, abs=1e-12)
    assert [p for p, _ in sends] == [0, 3, 0]
    assert [x for _, x in sends] == pytest.approx([-0.3, 0.4, -0.6])
    assert w == pytest.approx([-0.9, 0.0, 0.0, 0.4])
    virtual = [w[i] + owed(state).get(i, 0.0) for i in range(4)]
    assert virtual == pytest.approx([-0.9, 0.3, -0.15, 0.6])


@pytest.mark.parametrize("when_absent", ["carry", "drop"])
def test_trace_with_a_changing_submodel(when_absent):
    """communication.md §15.1, submodel carry; then coordinate 1 returns."""
    part = ErrorFeedback(TopK(k=1), when_absent=when_absent)
    sent, state = part.apply(at_coords(4, [0, 1, 2], [3.0, -1.0, 0.5]), part.init({}), RNG)
    assert dense(sent, {"w": (4,)}) == {"w": [3.0, 0.0, 0.0, 0.0]}
    assert owed(state) == {1: -1.0, 2: 0.5}
    sent, state = part.apply(at_coords(4, [0, 2, 3], [0.1, 0.2, -0.3]), state, RNG)
    assert dense(sent, {"w": (4,)})["w"] == pytest.approx([0.0, 0.0, 0.7, 0.0])
    assert owed(state) == pytest.approx({0: 0.1, 3: -0.3, **({1: -1.0} if when_absent == "carry" else {})})
    sent, state = part.apply(at_coords(4, [1], [0.25]), state, RNG)
    assert dense(sent, {"w": (4,)})["w"] == pytest.approx([0.0, -0.75 if when_absent == "carry" else 0.25, 0.0, 0.0])
    assert owed(state) == pytest.approx({0: 0.1, 3: -0.3} if when_absent == "carry" else {})


def test_what_is_sent_and_what_is_owed_add_up():
    """Residual + sent = owed over 40 rounds in which the submodel changes, per coordinate, in float64."""
    params = example_params(torch.float64)
    shapes = {name: tuple(t.shape) for name, t in params.items()}
    indices = list(example_indices(params).values())
    part = ErrorFeedback(TopK(ratio=0.2))
    state, wanted, got = part.init(params), dense(Update(Coords({}, {}), {}), shapes), None
    got = {name: [0.0] * len(flat) for name, flat in wanted.items()}
    for step in range(40):
        update = example_update(indices[step % len(indices)], params, seed=step)
        sent, state = part.apply(update, state, RNG)
        state = decode(bytearray(encode(state)))
        for total, one in ((wanted, dense(update, shapes)), (got, dense(sent, shapes))):
            for name, flat in one.items():
                total[name] = [a + b for a, b in zip(total[name], flat, strict=True)]
    for name in shapes:
        left = dict(zip(state.at[name].tolist(), state.value[name].tolist(), strict=True)) if name in state.at else {}
        balance = [x + left.get(i, 0.0) for i, x in enumerate(got[name])]
        assert balance == pytest.approx(wanted[name], abs=1e-12)


def test_residual_is_sparse():
    """Bytes follow what is held, not the size of the model."""
    part = ErrorFeedback(TopK(k=1))
    index = Rows({"E": (1_000_000, 8)}, {"E": torch.tensor([3, 999_999])})
    _, state = part.apply(Update(index, {"E": torch.ones(2, 8)}), part.init({}), RNG)
    assert state.at["E"].numel() == 15
    assert int(state.at["E"][-1]) == 7_999_999
    assert encoded_size(state) < 500


def test_nothing_is_kept_where_nothing_is_owed():
    part = ErrorFeedback(Identity())
    _, state = part.apply(whole(3.0, -1.0), part.init({}), RNG)
    assert (state.at, state.value) == ({}, {})


def test_it_corrects_any_loss():
    part = ErrorFeedback(Clip(1.0))
    sent, state = part.apply(whole(3.0, -4.0), part.init({}), RNG)
    assert sent.values()["w"].tolist() == pytest.approx([0.6, -0.8])
    assert owed(state) == pytest.approx({0: 2.4, 1: -3.2})


class Elsewhere:
    """Sends a coordinate that the client does not hold."""

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return at_coords(9, [8], [1.0]), state


def test_error_feedback_refuses():
    with pytest.raises(ValueError, match=r"when_absent='flush'\): must be 'carry' or 'drop', got 'flush'\."):
        ErrorFeedback(Identity(), when_absent="flush")
    part = ErrorFeedback(Elsewhere())
    with pytest.raises(ValueError, match=r"the inner transform must send held coordinates only, got others of 'w'\."):
        part.apply(at_coords(9, [1], [2.0]), part.init({}), RNG)
