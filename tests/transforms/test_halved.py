import math

import pytest
import torch

from partwise.core.codec import encoded_size
from partwise.core.index import Whole
from partwise.core.limits import Limit
from partwise.core.update import Update
from partwise.transforms import Halved
from partwise.transforms.halved import Halves
from toy_sent import sent_by, whole


def test_to_the_nearest_with_halves_to_even():
    """256 units to a power of two: 1 + 1/256 lies between 1 and 1 + 2/256, and 1 + 3/256 below 1 + 4/256."""
    got = sent_by(Halved(), whole(1.0, 1 + 1 / 256, 1 + 3 / 256, 1 + 1.01 / 256, 1e300, -math.inf)).values()["w"]
    top = float(torch.finfo(torch.bfloat16).max)
    assert got.tolist() == [1.0, 1.0, 1 + 4 / 256, 1 + 2 / 256, top, -top]


def test_the_ends_of_float16_stay_finite():
    """65504 would round to 65536, which float16 has no number for; 65280 is the largest below with 8 places."""
    update = Update(Whole({"w": (3,)}), {"w": torch.tensor([65504.0, -65504.0, 1.0], dtype=torch.float16)})
    assert sent_by(Halved(), update).values()["w"].tolist() == [65280.0, -65280.0, 1.0]


def test_a_norm_may_grow_by_half_a_last_place():
    """What lies just above the middle of 1 and 1 + 1/128 goes up, by a 256th of itself."""
    before = 1 + 1.0001 / 256
    after = float(sent_by(Halved(), whole(before)).values()["w"])
    assert after == 1 + 2 / 256
    assert before < after <= Halved().limited(Limit(before)).norm < 1.0001 * after


def test_half_the_bytes():
    update = Update(Whole({"w": (5000,)}), {"w": torch.ones(5000)})
    assert encoded_size(update) - encoded_size(sent_by(Halved(), update)) > 9_900
    already = Update(Whole({"w": (2,)}), {"w": torch.ones(2, dtype=torch.bfloat16)})
    assert sent_by(Halved(), already).value["w"] is already.value["w"]


def test_halved_refuses():
    with pytest.raises(ValueError, match=r"Halved\(\): needs an update without NaN, got one\."):
        sent_by(Halved(), whole(1.0, math.nan))
    with pytest.raises(
        ValueError, match=r"Halves\(dtype='float32'\): needs bfloat16 and a floating type, got torch\.f"
    ):
        Halves(torch.ones(2), "float32")
