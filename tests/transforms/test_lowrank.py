import math

import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Coords, Grid, Rows, Whole
from partwise.core.sizes import header_and_blocks
from partwise.core.update import Update
from partwise.transforms import ErrorFeedback, LowRank
from partwise.transforms.lowrank import Factors, _factored
from toy_sent import RNG


def matrix(*rows, dtype=torch.float64):
    value = torch.tensor(rows, dtype=dtype)
    return Update(Whole({"w": tuple(value.shape)}), {"w": value})


def test_worked_example():
    """communication.md §15.4: M = diag(2, 1), Q = (1, 1)."""
    value = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    factors, base = _factored(value, torch.ones(2, 1))
    sign = math.copysign(1.0, float(factors.left[0, 0]))
    assert (sign * factors.left).flatten().tolist() == pytest.approx([0.894427, 0.447214], abs=1e-6)
    assert (sign * factors.right).flatten().tolist() == pytest.approx([1.788854, 0.447214], abs=1e-6)
    assert factors.unpack().flatten().tolist() == pytest.approx([1.6, 0.4, 0.8, 0.2])
    assert float((factors.unpack() - value).norm()) == pytest.approx(1.264911, abs=1e-6)
    for _ in range(60):  # each update anew, from where the last one ended
        factors, base = _factored(value, base)
    assert factors.unpack().flatten().tolist() == pytest.approx([2.0, 0.0, 0.0, 0.0], abs=1e-9)


def test_a_matrix_of_that_rank_is_sent_exactly():
    rng = torch.Generator().manual_seed(3)
    value = torch.randn(30, 2, generator=rng, dtype=torch.float64) @ torch.randn(
        2, 40, generator=rng, dtype=torch.float64
    )
    update = Update(Whole({"w": (30, 5, 8)}), {"w": value.reshape(30, 5, 8)})
    sent, _ = LowRank(2).apply(update, {}, RNG)
    assert isinstance(sent.value["w"], Factors)
    assert torch.allclose(sent.values()["w"], value.reshape(30, 5, 8), rtol=0, atol=1e-9)


def test_what_would_become_longer_is_sent_as_it_is():
    shapes = {"bias": (50,), "small": (3, 3), "scale": (), "large": (20, 30)}
    values = {n: torch.randn(s, generator=RNG) for n, s in shapes.items()}
    sent, state = LowRank(2).apply(Update(Whole(shapes), values), {}, RNG)
    assert {n for n, v in sent.value.items() if isinstance(v, Factors)} == {"large"}
    assert set(state) == {"large"}
    single = Update(Coords({"large": (20, 30)}, {"large": torch.arange(500)}), {"large": torch.ones(500)})
    assert LowRank(2).apply(single, {}, RNG)[0].value["large"] is single.value["large"]


@pytest.mark.parametrize(
    ("shape", "dtype", "is_factored"),
    [
        ((4, 4), torch.float32, False),  # 2 (4 + 4) = 16 values instead of 16
        ((4, 5), torch.float32, True),  # 18 instead of 20
        ((8, 8), torch.float16, False),  # 32 of four bytes, instead of 64 of two
        ((8, 9), torch.float16, True),  # 34 of four, instead of 72 of two
        ((4, 5), torch.bfloat16, False),
        ((4, 5), torch.float64, True),
    ],
)
def test_factors_are_sent_where_they_are_fewer_bytes(shape, dtype, is_factored):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    sent, _ = LowRank(2).apply(Update(Whole({"w": shape}), {"w": value}), {}, RNG)
    assert isinstance(sent.value["w"], Factors) is is_factored
    assert sum(header_and_blocks(sent)[1]) <= value.nbytes - is_factored
    assert sent.values()["w"].dtype == dtype


def test_the_base_goes_on_while_the_shape_is_the_same():
    value = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    update = Update(Whole({"w": (20, 30)}), {"w": value})
    part, state, lost = LowRank(1), {}, []
    for _ in range(4):
        sent, state = part.apply(update, state, RNG)
        state = decode(bytearray(encode(state)))
        lost.append(float((sent.values()["w"] - value).norm()))
    assert lost == sorted(lost, reverse=True)
    best = float(torch.linalg.svdvals(value)[1:].norm())
    assert best <= lost[-1] < lost[0]
    grid = Grid({"w": (20, 30)}, {"w": (None, torch.arange(15))})
    _, state = part.apply(Update(grid, {"w": value[:, :15]}), state, RNG)
    assert state["w"].shape == (15, 1)
    rows = Rows({"w": (20, 30)}, {"w": torch.arange(12)})
    _, after = part.apply(Update(rows, {"w": value[:12]}), {"w": state["w"].repeat(2, 1)}, RNG)
    assert after["w"].shape == (30, 1)


def test_a_direction_that_is_lost_comes_back():
    part = LowRank(1)
    zero = Update(Whole({"w": (6, 7)}), {"w": torch.zeros(6, 7)})
    sent, state = part.apply(zero, {}, RNG)
    assert not sent.values()["w"].any()
    other = Update(Whole({"w": (6, 7)}), {"w": torch.outer(torch.arange(6.0), torch.ones(7))})
    sent, _ = part.apply(other, state, RNG)
    assert torch.allclose(sent.values()["w"], other.value["w"], atol=1e-5)


def test_one_of_two_directions_that_is_lost_comes_back():
    """One row has rank 1, and leaves nothing of the second direction; a matrix of rank 2 is sent exactly afterwards."""
    part, shape = LowRank(2), {"w": (8, 9)}
    value = torch.zeros(8, 9, dtype=torch.float64)
    value[0] = torch.arange(1.0, 10.0)
    _, state = part.apply(Update(Whole(shape), {"w": value}), {}, RNG)
    assert bool(state["w"].any(0).all())
    factors = [torch.randn(size, generator=RNG, dtype=torch.float64) for size in ((8, 2), (2, 9))]
    sent, _ = part.apply(Update(Whole(shape), {"w": factors[0] @ factors[1]}), state, RNG)
    assert torch.allclose(sent.values()["w"], factors[0] @ factors[1], rtol=0, atol=1e-9)


def test_the_base_of_what_is_not_held_now_stays():
    value = torch.randn(6, 9, generator=RNG)
    _, state = LowRank(1).apply(Update(Whole({"w": (6, 9)}), {"w": value}), {}, RNG)
    _, after = LowRank(1).apply(Update(Whole({"v": (6, 9)}), {"v": value}), state, RNG)
    assert after.keys() == {"w", "v"}
    assert torch.equal(after["w"], state["w"])


def test_a_table_of_which_no_row_is_held_is_sent_as_it_is():
    rows = Rows({"E": (5, 4)}, {"E": torch.empty(0, dtype=torch.int64)})
    sent, state = LowRank(1).apply(Update(rows, {"E": torch.empty(0, 4)}), {}, RNG)
    assert (sent.values()["E"].shape, state) == ((0, 4), {})


def test_with_error_feedback_everything_arrives():
    value = torch.randn(12, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part = ErrorFeedback(LowRank(1))
    state, total = part.init({}), torch.zeros(12, 9, dtype=torch.float64)
    for _ in range(300):
        sent, state = part.apply(Update(Whole({"w": (12, 9)}), {"w": value}), state, RNG)
        total += sent.values()["w"]
    assert float((total / 300 - value).norm() / value.norm()) < 0.05


def test_bytes():
    """communication.md §15.4: a 1000 x 1000 matrix at rank 2 takes 16,000 bytes, 250 times less."""
    update = Update(Whole({"w": (1000, 1000)}), {"w": torch.randn(1000, 1000, generator=RNG)})
    sent, _ = LowRank(2).apply(update, {}, RNG)
    assert 16_000 < encoded_size(sent) < 16_200


def test_low_rank_refuses():
    with pytest.raises(ValueError, match=r"LowRank\(rank=0\): must be at least 1, got 0\. 2 is usual\."):
        LowRank(0)
    with pytest.raises(ValueError, match=r"LowRank\(rank=1\): needs a finite update, got NaN or infinity\."):
        LowRank(1).apply(matrix([1.0, math.nan], [1.0, 2.0]), {}, RNG)
    with pytest.raises(ValueError, match=r"Factors\(shape=\(3, 4\)\): needs factors of as many rows and columns"):
        Factors(torch.ones(3, 2), torch.ones(3, 2), (3, 4), "float32")
