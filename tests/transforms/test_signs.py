import math

import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.errors import ProtocolError
from partwise.core.index import Whole
from partwise.core.joined import Joined
from partwise.core.update import Update, check_update
from partwise.transforms import ErrorFeedback, Sign
from partwise.transforms.signs import Signs
from toy_sent import RNG, sent_by, whole


def test_scaled_sign_is_the_mean_magnitude():
    sent = sent_by(Sign(), whole(3.0, -1.0, 0.5, 0.0))
    assert sent.values()["w"].tolist() == [1.125, -1.125, 1.125, 1.125]
    assert sent_by(Sign(scaled=False), whole(3.0, -1.0, 0.0)).values()["w"].tolist() == [1.0, -1.0, 1.0]


def test_values_whose_sum_overflows_stay_finite():
    top = torch.finfo(torch.float32).max
    update = Update(Whole({"w": (3,)}), {"w": torch.tensor([top, -top, top])})
    assert sent_by(Sign(), update).values()["w"].tolist() == [top, -top, top]


def test_scope():
    values = {"b": torch.tensor([[4.0, -2.0]]), "a": torch.tensor([0.5, -0.5, -0.5], dtype=torch.float64)}
    update = Update(Whole({"a": (3,), "b": (1, 2)}), values, 3.0)
    together = sent_by(Sign(), update)
    assert {n: v.flatten().tolist() for n, v in together.values().items()} == {"a": [1.5, -1.5, -1.5], "b": [1.5, -1.5]}
    apart = sent_by(Sign(scope="layer"), update)
    assert {n: v.flatten().tolist() for n, v in apart.values().items()} == {"a": [0.5, -0.5, -0.5], "b": [3.0, -3.0]}
    for sent in (together, apart):
        assert {n: v.dtype for n, v in sent.values().items()} == {"a": torch.float64, "b": torch.float32}
        check_update(sent, values)
        assert sent.weight == 3.0
    assert isinstance(decode(bytearray(encode(together))).value, Joined)


def test_two_way_error_feedback():
    """communication.md §5: two workers, g = (3, -1) and (1, 1); scaled sign on both sides."""
    part = ErrorFeedback(Sign())
    states, server = [part.init({}), part.init({})], part.init({})
    sums = [0.0, 0.0]
    for step in range(7):
        deltas = []
        for i, g in enumerate(([3.0, -1.0], [1.0, 1.0])):
            sent, states[i] = part.apply(whole(*g), states[i], RNG)
            deltas.append(sent.values()["w"].tolist())
        mean = [(a + b) / 2 for a, b in zip(*deltas, strict=True)]
        sent, server = part.apply(whole(*mean), server, RNG)
        p = sent.values()["w"].tolist()
        sums = [s + x for s, x in zip(sums, p, strict=True)]
        if step == 0:
            assert (deltas, p) == ([[2.0, -2.0], [1.0, 1.0]], [1.0, -1.0])
            assert states[0].value["w"].tolist() == [1.0, 1.0]
            assert server.value["w"].tolist() == [0.5, 0.5]
        if step == 1:
            assert (deltas, p) == ([[2.0, 2.0], [1.0, 1.0]], [2.0, 2.0])
            assert states[0].value["w"].tolist() == [2.0, -2.0]
    owed = [[0.0, 0.0] if "w" not in s.value else s.value["w"].tolist() for s in (*states, server)]
    balance = [sums[j] + owed[2][j] + (owed[0][j] + owed[1][j]) / 2 for j in range(2)]
    assert balance == pytest.approx([14.0, 0.0])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 70_001, (1 << 19) + 3])
def test_bits_of_any_number_of_values(size):
    value = torch.randn(size, generator=torch.Generator().manual_seed(size))
    sent = sent_by(Sign(), Update(Whole({"w": (size,)}), {"w": value}))
    got = sent.values()["w"]
    assert torch.equal(got < 0, value < 0)
    assert encoded_size(sent) <= -(-size // 8) + 300
    if size:
        assert float(got.abs().min()) == float(got.abs().max()) == pytest.approx(float(value.abs().mean()), rel=1e-5)


def test_sign_refuses():
    with pytest.raises(ValueError, match=r"Sign\(scope='row'\): must be 'global' or 'layer', got 'row'\."):
        Sign(scope="row")
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"Sign\(.*\): needs a finite update, got NaN or infinity\."):
            sent_by(Sign(), whole(1.0, bad))
    with pytest.raises(TypeError, match=r"needs a floating dtype, got torch\.int64\."):
        sent_by(Sign(scope="layer"), Update(Whole({"w": (1,)}), {"w": torch.tensor([1])}))


def test_signs_from_elsewhere_are_checked():
    bits, scale = torch.zeros(1, dtype=torch.uint8), torch.ones(1)
    with pytest.raises(ValueError, match=r"Signs\(shape=\(9,\)\): needs bits and scale of shapes \(\(2,\), \(1,\)\)"):
        Signs(bits, scale, (9,), "float32")
    with pytest.raises(ProtocolError):
        decode(encode(Signs(bits, scale, (8,), "float32")).replace(b"float32", b"floatXX"))
    with pytest.raises(ValueError, match=r"Joined\(\): needs a vector of all parts together, \(5,\), got \(8,\)"):
        Joined(Signs(bits, scale, (8,), "float32"), {"a": (2,), "b": (3,)})
