import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.errors import ProtocolError
from partwise.core.index import Whole
from partwise.core.update import Update
from partwise.transforms import Eden
from partwise.transforms.bits import widened
from partwise.transforms.distributed import rotate
from partwise.transforms.rotation import Turned, _centres
from toy_sent import RNG, sent_by, whole


def hadamard(n):
    """Ones and minus ones, in plain loops: the parity of common bits."""
    return [[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(n)] for i in range(n)]


def drive(x, signs, *, unbiased):
    """DRIVE in plain loops, for a length that is a power of two."""
    n, h = len(x), hadamard(len(x))
    turned = [sum(h[i][j] * signs[j] * x[j] for j in range(n)) / math.sqrt(n) for i in range(n)]
    one = sum(map(abs, turned))
    scale = sum(a * a for a in x) / one if unbiased else one / n
    bit = [scale if t >= 0 else -scale for t in turned]
    return [signs[j] * sum(h[i][j] * bit[i] for i in range(n)) / math.sqrt(n) for j in range(n)]


def test_the_oracle_is_the_worked_example():
    """communication.md §15.5."""
    x, signs = [3.0, -1.0, 0.5, -2.0], [1.0, -1.0, 1.0, 1.0]
    found = drive(x, signs, unbiased=True)
    assert found == pytest.approx([2.192308, -2.192308, 2.192308, -2.192308], abs=1e-6)
    assert sum((a - b) ** 2 for a, b in zip(found, x, strict=True)) / 14.25 == pytest.approx(0.349112, abs=1e-6)
    assert sum(a * b for a, b in zip(found, x, strict=True)) == pytest.approx(14.25)
    least = drive(x, signs, unbiased=False)
    assert least == pytest.approx([1.625, -1.625, 1.625, -1.625])
    assert sum((a - b) ** 2 for a, b in zip(least, x, strict=True)) / 14.25 == pytest.approx(0.258772, abs=1e-6)


@pytest.mark.parametrize(
    ("unbiased", "scale", "lost"), [(True, 2.1923077, 0.349112), (False, 1.625, 0.258772)], ids=["unbiased", "least"]
)
def test_worked_example(unbiased, scale, lost):
    """communication.md §15.5, with the first draw whose signs are those of the example, D = (1, -1, 1, 1)."""
    x = torch.tensor([3.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    for draw in range(999):
        rng = torch.Generator().manual_seed(draw)
        sent, _ = Eden(unbiased=unbiased).apply(whole(*x.tolist()), (), rng)
        signs = torch.stack([rotate(e, sent.value.packed.seed) for e in torch.eye(4, dtype=torch.float64)])[:, 0].sign()
        if signs.tolist() == [1.0, -1.0, 1.0, 1.0]:
            break
    assert rotate(x, sent.value.packed.seed).tolist() == pytest.approx([1.25, 2.25, 2.75, -0.25])
    got = sent.values()["w"]
    assert got.tolist() == pytest.approx([scale, -scale, scale, -scale], abs=1e-6)
    assert float(((got - x) ** 2).sum()) / 14.25 == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codebook(bits):
    """Lloyd's iteration for a standard normal number, on the positive half: means between the middles of neighbours."""
    half = 2 ** (bits - 1)
    centres = [(i + 0.5) * 3 / half for i in range(half)]
    for _ in range(4000):
        edges = [0.0, *((a + b) / 2 for a, b in pairwise(centres)), math.inf]
        centres = [
            (math.exp(-a * a / 2) - math.exp(-b * b / 2))
            / math.sqrt(math.pi / 2)
            / (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))
            for a, b in pairwise(edges)
        ]
    assert _centres(bits, torch.zeros(1, dtype=torch.float64)).tolist() == pytest.approx(
        [-c for c in reversed(centres)] + centres, abs=1e-5
    )


@pytest.mark.gpu
def test_a_rotation_is_the_same_on_an_accelerator():
    """Its signs go by the place in what is packed, not in the model: a part is turned as a vector of its own.

    So they need not be drawn by their place, as those of `Seeded` and `RandomK`; only the seed and n count.
    """
    x = torch.randn(1024, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(rotate(x.cuda(), 5).cpu(), rotate(x, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_one_bit_is_drive(size, unbiased):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    sent = sent_by(Eden(unbiased=unbiased), whole(*values.tolist()))
    seed = sent.value.packed.seed
    signs = torch.stack([rotate(e, seed) for e in torch.eye(size, dtype=torch.float64)])[:, 0].sign()
    assert sent.values()["w"].tolist() == pytest.approx(drive(values.tolist(), signs.tolist(), unbiased=unbiased))


@pytest.mark.parametrize("bits", [0.3, 1, 1.6, 2, 3, 3.5, 4])
def test_what_is_decoded_is_as_long_along_the_update(bits):
    """⟨C(x), x⟩ = ‖x‖² for every draw, also for sizes that are no power of two."""
    x = torch.randn(777, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
    for draw in range(5):
        rng = torch.Generator().manual_seed(draw)
        sent, _ = Eden(bits=bits).apply(Update(Whole({"w": (777,)}), {"w": x}), (), rng)
        assert float(sent.values()["w"] @ x) == pytest.approx(float(x @ x), rel=1e-9)


@pytest.mark.parametrize(
    ("bits", "error"), [(1, math.pi / 2 - 1), (2, 0.1333), (3, 0.0358), (4, 0.00961)], ids=["1", "2", "3", "4"]
)
def test_error_of_many_normal_numbers(bits, error):
    """communication.md §15.5: the limits of many dimensions; of 2^16, one draw of 4 bits lies 1.3 % (1 sigma) off."""
    draws = torch.randn(16, 1 << 16, generator=torch.Generator().manual_seed(bits))

    def lost(part):
        sent = torch.stack([sent_by(part, Update(Whole({"w": x.shape}), {"w": x})).values()["w"] for x in draws])
        return float((((sent - draws) ** 2).sum(1) / (draws**2).sum(1)).mean())

    assert lost(Eden(bits=bits)) == pytest.approx(error, rel=0.015)
    if bits == 1:
        assert lost(Eden(bits=1, unbiased=False)) == pytest.approx(1 - 2 / math.pi, rel=0.015)


def test_a_spike_is_recovered_and_three_give_a_third():
    spike = torch.zeros(1024, dtype=torch.float64)
    spike[77] = 5.0
    assert sent_by(Eden(), whole(*spike.tolist())).values()["w"].tolist() == pytest.approx(spike.tolist())
    spike[[3, 500]] = 5.0
    got = sent_by(Eden(), whole(*spike.tolist())).values()["w"]
    assert float(((got - spike) ** 2).sum() / (spike**2).sum()) == pytest.approx(1 / 3)


def test_zeros_count_as_positive():
    """communication.md §15.5: sign is +1 for an exact zero; so is each label of an update of zeros."""
    sent = sent_by(Eden(scope="layer"), whole(*[0.0] * 8))
    assert widened(sent.value["w"].low, 1).tolist() == [1] * 8
    assert sent.values()["w"].tolist() == [0.0] * 8


def test_the_draw_of_a_layer_does_not_depend_on_the_order_of_names():
    values, found = {"a": torch.randn(8, generator=RNG), "b": torch.randn(8, generator=RNG)}, []
    for names in ("ab", "ba"):
        update = Update(Whole(dict.fromkeys(names, (8,))), {name: values[name] for name in names})
        sent, _ = Eden(scope="layer").apply(update, (), torch.Generator().manual_seed(4))
        found.append(sent.values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in "ab")


def error_of(bits):
    """‖C(x) - x‖² / ‖x‖² of the unbiased scale in many dimensions, 1 / E c(y) y - 1: communication.md §15.5."""
    return {1: math.pi / 2 - 1, 2: 0.1333, 3: 0.0358}[bits]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_it_is_right_on_average(bits):
    """Of 400 draws: each coordinate within five standard errors, and the mean of N of them has an Nth of the error."""
    x, count = torch.randn(500, generator=torch.Generator().manual_seed(5), dtype=torch.float64), 400
    update = Update(Whole({"w": (500,)}), {"w": x})
    each = torch.stack(
        [Eden(bits).apply(update, (), torch.Generator().manual_seed(c))[0].values()["w"] for c in range(count)]
    )
    off = (each.mean(0) - x).abs()
    assert bool((off < 5 * each.std(0) / math.sqrt(count)).all())
    # A sum of 500 squares, of 512 that are not independent: 6 % of standard deviation.
    assert float((off**2).sum() / (x @ x)) == pytest.approx(error_of(bits) / count, rel=0.25)


def test_the_biased_scale_is_not():
    x = torch.randn(500, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    update = Update(Whole({"w": (500,)}), {"w": x})
    part = Eden(unbiased=False)
    each = [part.apply(update, (), torch.Generator().manual_seed(c))[0].values()["w"] for c in range(100)]
    assert float(torch.stack(each).mean(0) @ x / (x @ x)) == pytest.approx(2 / math.pi, rel=0.02)


def test_bytes():
    """What is sent is filled up to a power of two."""
    update = Update(Whole({"w": (513,)}), {"w": torch.randn(513, generator=RNG)})
    assert sent_by(Eden(bits=4), update).value.packed.low.nbytes == 1024 * 4 // 8
    halves = sent_by(Eden(bits=2.5), update).value.packed
    assert abs(halves.low.nbytes * 4 + halves.high.nbytes * 2 - 1024) <= 4 + 3
    assert encoded_size(sent_by(Eden(), update)) < 1024 / 8 + 300


def test_eden_refuses():
    with pytest.raises(ValueError, match=r"Eden\(bits=5\): must lie in \(0, 4\], got 5\. 1 is DRIVE\."):
        Eden(bits=5)
    with pytest.raises(ValueError, match=r"Eden\(.*\): needs a finite update, got NaN or infinity\."):
        sent_by(Eden(), whole(1.0, math.nan))
    assert sent_by(Eden(), whole(0.0, 0.0, 0.0)).values()["w"].tolist() == [0.0] * 3


def test_what_comes_from_elsewhere_is_checked():
    packed = sent_by(Eden(bits=2), whole(1.0, -2.0, 0.5)).value.packed
    assert torch.equal(decode(bytearray(encode(packed))).unpack(), packed.unpack())
    for wrong in ({"size": 9}, {"size": 2}, {"bits": 9.0}, {"seed": -1}, {"shape": (-3,)}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match=r"Turned\(.*must be one that `Eden` makes, got another\."):
            replace(packed, **wrong)
    with pytest.raises(ValueError, match=r"needs a label for each of 4 coordinates, got 0\."):
        replace(packed, low=packed.low[:0]).unpack()
    with pytest.raises(ProtocolError):
        decode(encode(packed).replace(b"float64", b"floatXX"))
    assert isinstance(packed, Turned)
