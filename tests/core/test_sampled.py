import pytest
import torch

from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.sampled import Sampled
from partwise.testing import check

SHAPES = {"E": (40, 5), "b": (7,), "s": ()}
BASES = [
    Whole(SHAPES),
    Rows({"E": (40, 5)}, {"E": torch.tensor([3, 7, 30])}),
    Grid({"E": (40, 5)}, {"E": (torch.arange(0, 40, 3), torch.tensor([1, 4]))}),
    Coords({"E": (40, 5)}, {"E": torch.tensor([0, 199])}),
    Joint((Whole({"b": (7,)}), Rows({"E": (40, 5)}, {"E": torch.tensor([3])}))),
    Whole({}),
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("by_row", [False, True])
def test_it_is_an_index(base, share, by_row):
    check(Sampled(base, 7, share, by_row=by_row))


@pytest.mark.parametrize("base", BASES[1:4], ids=lambda base: type(base).__name__)
def test_a_part_of_the_draw_is_the_draw_of_the_part(base):
    drawn = set(Sampled(Whole(SHAPES), 7, 0.4, block=2).coords("E").tolist())
    held = base.coords("E").tolist()
    assert Sampled(base, 7, 0.4, block=2).coords("E").tolist() == [i for i in held if i in drawn]


@pytest.mark.parametrize("base", [*BASES[:4], Rows({"E": (40, 5)}, {"E": torch.arange(40)})])
@pytest.mark.parametrize("block", [1, 3])
def test_rows_are_drawn_whole(base, block):
    """A row of a part is drawn where that of the model is; what is made of whole rows is held by rows."""
    index = Sampled(base, 7, 0.4, block, by_row=True)
    drawn = Sampled(Whole(SHAPES), 7, 0.4, block, by_row=True).coords("E").reshape(-1, 5)
    rows = (drawn[:, 0] // 5).tolist()
    assert drawn.tolist() == [[5 * row + i for i in range(5)] for row in rows]
    assert 0 < len(rows) < 40
    assert all((row // block * block in rows) for row in rows)
    assert index.coords("E").tolist() == [i for i in base.coords("E").tolist() if i // 5 in rows]
    is_of_rows = isinstance(base, Whole | Rows)
    assert index.grain("E") == (1 if is_of_rows else 2)
    held = len(index.coords("E"))
    assert index.held_shape("E") == ((held // 5, 5) if is_of_rows else (held,))


def test_its_size_does_not_grow():
    large = Sampled(Whole({"w": (1000, 1000)}), 7, 0.5)
    assert encoded_size(large) == len(encode(large)) < 130
    again = decode(bytearray(encode(large)))
    assert torch.equal(again.coords("w"), large.coords("w"))


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 2**63}, {"share": 0.0}, {"share": 1.5}, {"block": 0}, {"base": 3}], ids=str
)
def test_it_refuses(wrong):
    with pytest.raises(ValueError, match=r"Sampled\(.*needs an index that is not drawn itself, a seed"):
        Sampled(**{"base": Whole(SHAPES), "seed": 1, "share": 0.5, **wrong})
    with pytest.raises(ValueError, match=r"needs an index that is not drawn itself"):
        Sampled(Sampled(Whole(SHAPES), 1, 0.5), 1, 0.5)
