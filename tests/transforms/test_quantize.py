import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.errors import ProtocolError
from partwise.core.index import Rows, Whole
from partwise.core.update import Packed, Update, check_update
from partwise.transforms import Quantize
from partwise.transforms.bits import CHUNK
from partwise.transforms.quantize import Levels, smoothed, stochastic_levels
from toy_sent import sent_by


def update_of(*values, dtype=torch.float64):
    return Update(Whole({"w": (len(values),)}), {"w": torch.tensor(values, dtype=dtype)})


def test_worked_example():
    """communication.md §15.2: g = (3, -1, 0.5, -2), s = 4, U = (0.1, 0.5, 0.6, 0.05)."""
    g = torch.tensor([3.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    uniform = torch.tensor([0.1, 0.5, 0.6, 0.05], dtype=torch.float64)
    levels, scales = stochastic_levels(g, 4, uniform, bucket=4)
    assert scales.tolist() == pytest.approx([3.774917], abs=1e-6)
    decoded = [float(scales[0]) * level / 4 for level in levels.tolist()]
    assert decoded == pytest.approx([3.774917, -0.943729, 0.0, -2.831188], abs=1e-6)


def exact_variance(values, scale, top):
    """(‖g‖/s)² Σ f (1 - f), in plain loops."""
    total = 0.0
    for x in values:
        a = top * abs(x) / scale
        total += (a - math.floor(a)) * (1 - (a - math.floor(a)))
    return (scale / top) ** 2 * total


@pytest.mark.parametrize("scale_by", ["norm", "max"])
def test_unbiased_with_the_stated_variance(scale_by):
    values = [3.0, -1.0, 0.5, -2.0]
    scale = math.sqrt(sum(x * x for x in values)) if scale_by == "norm" else 3.0
    draws = 40_000
    flat = torch.tensor(values * draws, dtype=torch.float64)
    uniform = torch.rand(flat.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels, scales = stochastic_levels(flat, 4, uniform, bucket=4, scale_by=scale_by)
    decoded = (levels.reshape(-1, 4) * scales.unsqueeze(1) / 4).double()
    variance = exact_variance(values, scale, 4)
    if scale_by == "norm":
        assert variance == pytest.approx(0.496161, abs=1e-6)
        assert variance <= 3.5625
    standard_error = math.sqrt(variance / draws)
    assert decoded.mean(0).tolist() == pytest.approx(values, abs=4 * standard_error)
    measured = float(((decoded - torch.tensor(values)) ** 2).sum(1).mean())
    assert measured == pytest.approx(variance, rel=0.03)  # 40,000 draws


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_survive_packing(bits):
    """Codes of every level, also where the last byte is not full."""
    top = 2 ** (bits - 1) - 1
    values = [float(level) for level in range(-top, top + 1)]  # 2 top + 1 values: odd
    sent, _ = Quantize(bits=bits, bucket=1000, scale_by="max").apply(update_of(*values), (), torch.Generator())
    packed = sent.value["w"]
    assert isinstance(packed, Packed)
    assert packed.codes.numel() == math.ceil(len(values) * bits / 8)
    assert packed.unpack().tolist() == pytest.approx(values)
    again = decode(bytearray(encode(sent)))
    assert torch.equal(again.values()["w"], sent.values()["w"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=0, max_size=70),
    st.sampled_from([2, 4, 8]),
    st.integers(1, 20),
    st.sampled_from(["norm", "max"]),
)
def test_every_value_becomes_a_neighbouring_level(values, bits, bucket, scale_by):
    part, top = Quantize(bits=bits, bucket=bucket, scale_by=scale_by), 2 ** (bits - 1) - 1
    sent, _ = part.apply(update_of(*values, dtype=torch.float32), (), torch.Generator().manual_seed(1))
    decoded = sent.values()["w"].tolist()
    for start in range(0, len(values), bucket):
        mine = values[start : start + bucket]
        scale = math.sqrt(math.fsum(x * x for x in mine)) if scale_by == "norm" else max(map(abs, mine))
        for x, y in zip(mine, decoded[start : start + bucket], strict=True):
            assert abs(x - y) <= scale / top * (1 + 1e-4) + 1e-37
            assert x * y >= 0


NEAREST = {"scale_by": "max", "rounding": "nearest"}


def test_differences_of_weights_are_exact_where_weights_are_not():
    """communication.md §6: 4 bits to the nearest level, one bucket."""
    x = [1.0, -2.0, 0.5, 4.0]
    step = [0.01, -0.02, 0.03, -0.07]
    part = Quantize(bits=4, **NEAREST)
    direct, _ = part.apply(update_of(*(a + b for a, b in zip(x, step, strict=True))), (), torch.Generator())
    assert direct.values()["w"].tolist() == pytest.approx([1.122857, -2.245714, 0.561429, 3.93], abs=1e-6)
    difference, _ = part.apply(update_of(*step), (), torch.Generator())
    assert difference.values()["w"].tolist() == pytest.approx(step)
    off = [abs(a - b - c) for a, b, c in zip(direct.values()["w"].tolist(), x, step, strict=True)]
    assert max(off) == pytest.approx(0.2257, abs=5e-5)


@pytest.mark.parametrize("seed", range(5))
def test_four_bits_are_off_by_a_fourteenth_of_the_largest_at_most(seed):
    """communication.md §6: |decoded - y| <= a / 14 to the nearest level, a / 7 by chance; a is its group's largest.

    And no less: a value at a fraction f of its step is off by 1 - f with chance f, so by more than 0.8 steps with
    chance 0.2², either way; that none of 500 values is has a chance of exp(-20). To the nearest level it is less still.
    """
    y = torch.randn(37, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    largest = y.abs().amax(1)
    for rounding, share in (("nearest", 14), ("stochastic", 7)):
        part = Quantize(4, 16, scale_by="max", rounding=rounding)
        sent, _ = part.apply(Update(Whole({"w": (37, 16)}), {"w": y}), (), torch.Generator().manual_seed(seed))
        off = (sent.values()["w"] - y).abs().amax(1) / largest
        assert float(off.max()) <= 1 / share * (1 + 1e-9)
        assert float(off.max()) > 0.8 / share


def test_mixing_saves_small_values():
    """communication.md §6: (7, 0.4, 0.4, 0.4) at 4 bits, with and without a Hadamard matrix of order 4."""
    plain, _ = Quantize(bits=4, **NEAREST).apply(update_of(7.0, 0.4, 0.4, 0.4), (), torch.Generator())
    assert plain.values()["w"].tolist() == [7.0, 0.0, 0.0, 0.0]
    mixed, _ = Quantize(bits=4, smooth=2, **NEAREST).apply(update_of(7.0, 0.4, 0.4, 0.4), (), torch.Generator())
    expected = [7.321429, 0.292857, 0.292857, 0.292857]
    assert mixed.values()["w"].tolist() == pytest.approx(expected, abs=1e-6)
    eight = torch.tensor([8.0, 0.0, 0.0, 0.0])
    assert smoothed(eight, 2).tolist() == [8.0] * 4
    long = torch.randn(96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(smoothed(smoothed(long, 5), 5) / 32, long)


def nearest(values, bits, bucket):
    """Levels to the nearest, halves up, in plain loops."""
    top, found = 2 ** (bits - 1) - 1, []
    for start in range(0, len(values), bucket):
        mine = values[start : start + bucket]
        scale = max(map(abs, mine))
        found += [math.floor(x * top / scale + 0.5) * scale / top if scale else 0.0 for x in mine]
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("size", "bucket"), [(1, 512), (7, 3), (1000, 128), (1000, 7), (40, 1)])
def test_nearest_level(bits, size, bucket):
    values = (torch.randn(size, generator=torch.Generator().manual_seed(bits), dtype=torch.float64) ** 3).tolist()
    sent, _ = Quantize(bits=bits, bucket=bucket, **NEAREST).apply(update_of(*values), (), torch.Generator())
    assert sent.values()["w"].tolist() == pytest.approx(nearest(values, bits, bucket), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("smooth", [0, 3])
def test_long_tensors_are_worked_on_in_pieces(bits, smooth):
    """What comes out does not depend on where the pieces end."""
    size = 2 * CHUNK + 12_345
    value = torch.randn(size, generator=torch.Generator().manual_seed(3))
    part = Quantize(bits=bits, bucket=96, smooth=smooth, **NEAREST)
    sent, _ = part.apply(Update(Whole({"w": (size,)}), {"w": value}), (), torch.Generator())
    start = CHUNK // 96 * 96 - 960
    assert start % 8 == 0
    piece = value[start : start + 96 * 20]
    alone, _ = part.apply(Update(Whole({"w": (len(piece),)}), {"w": piece}), (), torch.Generator())
    assert torch.equal(sent.values()["w"][start : start + 96 * 20], alone.values()["w"])
    last = value[size // 96 * 96 :]
    alone, _ = part.apply(Update(Whole({"w": (len(last),)}), {"w": last}), (), torch.Generator())
    assert torch.equal(sent.values()["w"][size // 96 * 96 :], alone.values()["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tiny_and_huge_values_stay_finite(dtype):
    for size in (torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal / 4, torch.finfo(dtype).max / 2):
        values = (size, -size / 3, 0.0)
        sent, _ = Quantize(**NEAREST).apply(update_of(*values, dtype=dtype), (), torch.Generator())
        got = sent.values()["w"]
        assert torch.isfinite(got).all()
        assert (got - update_of(*values, dtype=dtype).values()["w"]).abs().max() <= size


def test_a_value_whose_square_is_none_keeps_its_size():
    assert sent_by(Quantize(), update_of(1e-200)).values()["w"].tolist() == [1e-200]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_nearest_level_loses_as_much_as_it_may(bits):
    """The largest is exact, and seven others are half a step off: 7 / 4 steps² of as much and top² steps²."""
    top, part = 2 ** (bits - 1) - 1, Quantize(bits, scale_by="max", rounding="nearest")
    sent = sent_by(part, update_of(float(top), *[0.5] * 7)).values()["w"]
    assert sent.tolist() == pytest.approx([top] + [1.0] * 7)
    assert part.claims(8).delta == pytest.approx(1 - (7 / 4) / (7 / 4 + top**2))


def test_buckets_keep_an_outlier_to_itself():
    values = [1e6, 1.0, 0.5, 0.25]
    sent, _ = Quantize(bucket=2, scale_by="max").apply(update_of(*values), (), torch.Generator())
    assert sent.values()["w"].tolist()[2:] == pytest.approx(values[2:], rel=0.02)


@pytest.mark.parametrize(("bits", "least"), [(8, 3.8), (4, 7.5), (2, 14.0)])
def test_message_shrinks(bits, least):
    value = torch.randn(100, 500, generator=torch.Generator().manual_seed(1))
    index = Rows({"E": (1000, 500)}, {"E": torch.arange(100) * 3})
    update = Update(index, {"E": value}, 5.0)
    sent, _ = Quantize(bits=bits).apply(update, (), torch.Generator())
    assert encoded_size(update) / encoded_size(sent) > least
    check_update(sent, {"E": torch.empty(1000, 500)})
    assert (sent.weight, sent.values()["E"].shape) == (5.0, (100, 500))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    sent, _ = Quantize().apply(update_of(0.0, 2.0, -1.0, dtype=dtype), (), torch.Generator())
    assert sent.values()["w"].dtype == dtype


def test_the_draw_does_not_depend_on_the_order_of_names():
    values = {"a": torch.tensor([0.3, 0.7]), "b": torch.tensor([0.9, -0.2, 0.1])}
    sent = []
    for names in ("ab", "ba"):
        update = Update(Whole({n: tuple(values[n].shape) for n in names}), {n: values[n] for n in names})
        sent.append(Quantize(bits=2).apply(update, (), torch.Generator().manual_seed(5))[0].values())
    assert all(torch.equal(sent[0][n], sent[1][n]) for n in "ab")


def test_chance_comes_from_the_rng_alone():
    update = update_of(*[0.3 + 0.01 * i for i in range(50)])
    part = Quantize(bits=2)
    one, other, same = (part.apply(update, (), torch.Generator().manual_seed(s))[0].values()["w"] for s in (1, 2, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_quantize_refuses():
    with pytest.raises(ValueError, match=r"Quantize\(bits=3\): must be 2, 4 or 8, got 3\."):
        Quantize(bits=3)
    with pytest.raises(ValueError, match=r"Quantize\(bucket=0\): must be at least 1, got 0\."):
        Quantize(bucket=0)
    with pytest.raises(ValueError, match=r"Quantize\(rounding='up'\): must be 'stochastic' or 'nearest', got 'up'\."):
        Quantize(rounding="up")
    with pytest.raises(
        ValueError, match=r"rounding='nearest', scale_by='norm'\): the nearest level of a norm is mostly"
    ):
        Quantize(rounding="nearest")
    with pytest.raises(ValueError, match=r"Quantize\(smooth=11\): must lie in 0\.\.10, got 11\. 5 is usual\."):
        Quantize(smooth=11)
    with pytest.raises(ValueError, match=r"Quantize\(scale_by='mean'\): must be 'norm' or 'max', got 'mean'\."):
        Quantize(scale_by="mean")
    with pytest.raises(TypeError, match=r"needs a floating dtype, got torch\.int64\."):
        Quantize().apply(update_of(1, 2, dtype=torch.int64), (), torch.Generator())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 511, 512, 1029])
@pytest.mark.parametrize(
    "part",
    [
        Quantize(),
        Quantize(scale_by="max"),
        Quantize(scale_by="max", rounding="nearest"),
        Quantize(4, 128, scale_by="max", rounding="nearest", smooth=5),
    ],
)
def test_an_update_that_is_not_finite_is_refused_wherever_that_is(part, place, bad):
    values = torch.linspace(-1, 1, 1030)
    values[place] = bad
    with pytest.raises(ValueError, match=r"Quantize\(bits=.*\): needs a finite update, got NaN or infinity\."):
        part.apply(update_of(*values.tolist()), (), torch.Generator())


def test_levels_from_elsewhere_are_checked():
    codes, scales = torch.zeros(3, dtype=torch.uint8), torch.ones(1)
    with pytest.raises(ValueError, match=r"Levels\(shape=\(5,\)\): needs codes and scales of shapes .*, got"):
        Levels(codes, scales, (5,), 8, 512, "float32")
    with pytest.raises(ValueError, match=r"Levels\(bits=3, .*must be ones that `Quantize` makes"):
        Levels(codes, scales, (3,), 3, 512, "float32")
    message = encode(Levels(codes, scales, (3,), 8, 512, "float32"))
    with pytest.raises(ProtocolError):
        decode(message.replace(b"float32", b"floatXX"))
