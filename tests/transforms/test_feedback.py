from itertools import pairwise

import pytest
import torch

from partwise.aggregators import MajorityVote
from partwise.algorithms import FedAvg
from partwise.core.codec import decode, encode, encoded_size
from partwise.core.compressor import common
from partwise.core.index import Coords, Rows, Whole
from partwise.core.transform import Identity, chain
from partwise.core.update import Update, scale
from partwise.testing.examples import example_indices, example_params, example_update
from partwise.transforms import (
    Clip,
    Eden,
    ErrorFeedback,
    FedZip,
    Halved,
    LowRank,
    Menu,
    Momentum,
    Quantize,
    RandomK,
    Scale,
    Sign,
    Threshold,
    TopK,
)
from toy_sent import RNG, at_coords, dense, whole
from toy_slopes import quadratic, steps, theta_after


def owed(state, name="w"):
    """Position -> what is owed there."""
    if name not in state.value:
        return {}
    value = state.value[name].tolist()
    at = state.at[name].tolist() if name in state.at else range(len(value))
    return {i: x for i, x in zip(at, value, strict=True) if x}


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


@pytest.mark.parametrize("when_absent", ["carry", "flush", "drop"])
def test_trace_with_a_changing_submodel(when_absent):
    """communication.md §15.1, submodel carry; then coordinate 1 returns."""
    part = ErrorFeedback(TopK(k=1), when_absent=when_absent)
    sent, state = part.apply(at_coords(4, [0, 1, 2], [3.0, -1.0, 0.5]), part.init({}), RNG)
    assert dense(sent, {"w": (4,)}) == {"w": [3.0, 0.0, 0.0, 0.0]}
    assert owed(state) == {1: -1.0, 2: 0.5}
    sent, state = part.apply(at_coords(4, [0, 2, 3], [0.1, 0.2, -0.3]), state, RNG)
    flushed = -1.0 if when_absent == "flush" else 0.0
    assert dense(sent, {"w": (4,)})["w"] == pytest.approx([0.0, flushed, 0.7, 0.0])
    assert owed(state) == pytest.approx({0: 0.1, 3: -0.3, **({1: -1.0} if when_absent == "carry" else {})})
    sent, state = part.apply(at_coords(4, [1], [0.25]), state, RNG)
    expected = {"carry": [0.0, -0.75, 0.0, 0.0], "flush": [0.1, 0.25, 0.0, -0.3], "drop": [0.0, 0.25, 0.0, 0.0]}
    assert dense(sent, {"w": (4,)})["w"] == pytest.approx(expected[when_absent])
    assert owed(state) == pytest.approx({0: 0.1, 3: -0.3} if when_absent == "carry" else {})


LOSSY = [
    TopK(ratio=0.2),
    TopK(ratio=0.2, sample=9),
    TopK(ratio=0.1, warmup=5),
    RandomK(0.3),
    Threshold(0.4),
    Sign(),
    Sign(scaled=False),
    Quantize(bits=4, bucket=5, scale_by="max", rounding="nearest"),
    Eden(unbiased=False),
    LowRank(1),
    FedZip(ratio=0.3),
    Halved(),
    Clip(0.5),
]


@pytest.mark.parametrize("inner", LOSSY, ids=repr)
@pytest.mark.parametrize("when_absent", ["carry", "flush"])
def test_what_is_sent_and_what_is_owed_add_up(inner, when_absent):
    """Residual + sent = owed over 40 rounds in which the submodel changes, per coordinate, in float64."""
    params = example_params(torch.float64)
    shapes = {name: tuple(t.shape) for name, t in params.items()}
    indices = list(example_indices(params).values())
    part = ErrorFeedback(inner, when_absent)
    state, wanted = part.init(params), dense(Update(Coords({}, {}), {}), shapes)
    got = {name: [0.0] * len(flat) for name, flat in wanted.items()}
    for step in range(40):
        update = example_update(indices[step % len(indices)], params, seed=step)
        before = encode(update)
        sent, state = common(part, step).apply(update, state, RNG)
        assert encode(update) == before
        state = decode(bytearray(encode(state)))
        for total, one in ((wanted, dense(update, shapes)), (got, dense(sent, shapes))):
            for name, flat in one.items():
                total[name] = [a + b for a, b in zip(total[name], flat, strict=True)]
    for name in shapes:
        balance = [x + owed(state, name).get(i, 0.0) for i, x in enumerate(got[name])]
        assert balance == pytest.approx(wanted[name], abs=1e-11)


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


def test_what_is_owed_is_kept_where_it_adds_up_to_zero():
    part = ErrorFeedback(TopK(k=1))
    _, state = part.apply(whole(3.0, 1.0, -1.0), part.init({}), RNG)
    assert owed(state) == {1: 1.0, 2: -1.0}


def test_it_corrects_any_loss():
    part = ErrorFeedback(Clip(1.0))
    sent, state = part.apply(whole(3.0, -4.0), part.init({}), RNG)
    assert sent.values()["w"].tolist() == pytest.approx([0.6, -0.8])
    assert owed(state) == pytest.approx({0: 2.4, 1: -3.2})


def test_what_leaves_with_a_whole_parameter_is_flushed():
    """Its shape is remembered, also through a checkpoint; what is still held stays packed."""
    part = ErrorFeedback(TopK(k=2), when_absent="flush")
    index = Whole({"a": (2, 2), "b": (3,)})
    values = {"a": torch.tensor([[5.0, 0.0], [1.0, 2.0]]), "b": torch.tensor([4.0, 0.25, 3.0])}
    _, state = part.apply(Update(index, values, 2.0), part.init({}), RNG)
    state = decode(bytearray(encode(state)))
    sent, state = part.apply(Update(Whole({"b": (3,)}), {"b": torch.zeros(3)}, 2.0), state, RNG)
    assert dense(sent, index.shapes) == {"a": [0.0, 0.0, 1.0, 2.0], "b": [0.0, 0.25, 3.0]}
    assert (sent.weight, owed(state), state.value, state.shapes) == (2.0, {}, {}, {})


def test_flush_needs_one_weight():
    part = ErrorFeedback(TopK(k=1), when_absent="flush")
    _, state = part.apply(at_coords(4, [0, 1], [3.0, -1.0]), part.init({}), RNG)
    rows = Update(Rows({"w": (4,)}, {"w": torch.tensor([2])}), {"w": torch.ones(1)}, {"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"when_absent='flush'\): needs one weight for an update, got weights per row"):
        part.apply(rows, state, RNG)


class Elsewhere:
    """Sends a coordinate that the client does not hold."""

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return at_coords(9, [8], [1.0]), state


def test_error_feedback_refuses():
    with pytest.raises(ValueError, match=r"when_absent='keep'\): must be 'carry', 'flush' or 'drop', got 'keep'\."):
        ErrorFeedback(Identity(), when_absent="keep")
    chained = chain(RandomK(0.1, unbiased=True)), chain(Clip(1.0), RandomK(0.1, unbiased=True), Quantize())
    menus = Menu((Identity(), Quantize())), Menu((Identity(), Eden(0.5)))
    for unbiased in (Quantize(), RandomK(0.1, unbiased=True), Eden(0.25), *chained, *menus):
        with pytest.raises(ValueError, match=r"ErrorFeedback\(inner=.*needs a compressor that is biased, got one that"):
            ErrorFeedback(unbiased)
    for biased in (Eden(0.25, unbiased=False), chain(TopK(k=3), Quantize()), Menu((Identity(), Sign()))):
        assert ErrorFeedback(biased).inner == biased
    part = ErrorFeedback(Elsewhere())
    with pytest.raises(ValueError, match=r"the inner transform must send held coordinates only, got others of 'w'\."):
        part.apply(at_coords(9, [1], [2.0]), part.init({}), RNG)


# Momentum


def test_signum_in_plain_numbers():
    """Three clients with (theta - c)² / 2: each keeps m, sends its sign, and the majority decides."""
    centres, lr, beta = (0.3, 4.1, 1.7), 0.15, 0.8
    x, m, expected = 1.0, [0.0] * 3, []
    for _ in range(25):
        m = [beta * mi + (1 - beta) * (x - c) for mi, c in zip(m, centres, strict=True)]
        vote = sum(1 if mi > 0 else -1 for mi in m)
        x -= lr * (1 if vote > 0 else -1)
        expected.append(x)
    assert len({round(b - a, 3) for a, b in pairwise(expected)}) == 2  # it turns back, and later than signSGD would
    found = [
        theta_after(
            quadratic(centres, 1.0),
            FedAvg(steps(0.25), "uniform"),
            n,
            client_chain={"model": chain(Momentum(beta), Sign(scaled=False))},
            aggregators={"model": MajorityVote()},
            server_chain={"model": chain(Scale(lr))},
        )[0]
        for n in (1, 7, 18, 25)
    ]
    assert found == pytest.approx([expected[n - 1] for n in (1, 7, 18, 25)], abs=1e-12)


def test_momentum_belongs_to_coordinates():
    """Rows that are not held keep theirs, in plain numbers."""
    part, dim, beta = Momentum(0.6), 2, 0.6
    state, m = part.init({"w": torch.empty(5, dim, device="meta")}), torch.zeros(5, dim, dtype=torch.float64)
    rng = torch.Generator().manual_seed(5)
    for rows in ([0, 3], [1, 3, 4], None, [3], [0, 1, 2, 4]):
        index = Whole({"w": (5, dim)}) if rows is None else Rows({"w": (5, dim)}, {"w": torch.tensor(rows)})
        at = list(range(5)) if rows is None else rows
        x = torch.randn(len(at), dim, generator=rng, dtype=torch.float64)
        m[at] = beta * m[at] + (1 - beta) * x
        sent, state = part.apply(Update(index, {"w": x}, 3.0), state, rng)
        assert torch.allclose(sent.values()["w"], m[at], atol=1e-12)
        assert sent.weight == 3.0


def test_what_momentum_has_sent_stays_while_the_next_is_made():
    """A server may keep an update longer than its client takes for the next: m = 1, then (1 + 3) / 2."""
    part = Momentum(0.5)
    first, state = part.apply(whole(2.0), part.init({}), RNG)
    second, _ = part.apply(whole(3.0), state, RNG)
    assert (first.values()["w"].tolist(), second.values()["w"].tolist()) == ([1.0], [2.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_momentum_of_half_precision_comes_near_what_it_follows(dtype):
    """Of x = 1, m is 1 - 0.9^n. In bfloat16 it would stop where a tenth of the rest is half a last place: at 0.98."""
    part = Momentum(0.9)
    update, state = Update(Whole({"w": (1,)}), {"w": torch.ones(1, dtype=dtype)}), part.init({})
    for _ in range(150):
        sent, state = part.apply(update, state, RNG)
    assert sent.values()["w"].dtype == dtype
    assert sent.values()["w"].tolist() == [1.0]
    assert float(state.value["w"]) == pytest.approx(1 - 0.9**150, abs=1e-6)


def test_momentum_refuses():
    for beta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"Momentum\(beta=.*\): must lie in \(0, 1\), got"):
            Momentum(beta)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "part",
    [
        ErrorFeedback(Sign()),
        ErrorFeedback(TopK(k=1)),
        ErrorFeedback(Halved()),
        Momentum(),
        chain(Momentum(), Sign(scaled=False)),
    ],
    ids=repr,
)
def test_what_is_kept_outlives_an_update_that_is_refused(part, bad):
    """A client whose update was not finite once goes on from what it owed before."""

    def update(*values):
        return Update(Whole({"w": (3,)}), {"w": torch.tensor(values)})

    first, second = update(3.0, -1.0, 0.5), update(1.0, 2.0, -4.0)
    sent = []
    for refused in (False, True):
        _, state = part.apply(first, part.init({}), torch.Generator())
        if refused:
            with pytest.raises(ValueError, match="needs a finite update, got NaN or infinity"):
                part.apply(update(1.0, bad, 0.0), state, torch.Generator())
        sent.append(part.apply(second, state, torch.Generator())[0])
    assert all(torch.equal(value, sent[0].values()[name]) for name, value in sent[1].values().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when_absent", ["carry", "flush"])
def test_half_precision_owes_in_single_precision(dtype, when_absent):
    """600 times (2, 2^-8): all was sent or is owed. In bfloat16, 2^-8 beside 1 is half of the last place: lost."""
    part = ErrorFeedback(Threshold(1.0), when_absent)
    update = Update(Whole({"w": (2,)}), {"w": torch.tensor([2.0, 2.0**-8], dtype=dtype)})
    state, sent, total = part.init({}), None, torch.zeros(2, dtype=torch.float64)
    for _ in range(600):
        sent, state = part.apply(update, state, torch.Generator())
        assert sent.values()["w"].dtype == dtype
        sent.index.scatter_add_({"w": total}, {"w": sent.values()["w"].double()})
        state = decode(encode(state))
    owed = torch.zeros(2, dtype=torch.float64) + state.value["w"].double()
    assert (total + owed).tolist() == [1200.0, 600 / 256]
    other = Update(Whole({"b": (1,)}), {"b": torch.tensor([2.0], dtype=dtype)})
    sent, state = part.apply(other, state, torch.Generator())
    assert {name: t.dtype for name, t in sent.values().items()} == dict.fromkeys(sent.value, dtype)
    assert ("w" in sent.value) == (when_absent == "flush") != ("w" in state.value)
