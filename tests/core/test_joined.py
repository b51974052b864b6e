from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from partwise.core.codec import decode, encode, encoded_size, register
from partwise.core.joined import Joined, float_name, joined


@register
@dataclass(frozen=True, eq=False)
class PackedAsItIs:
    """A vector that is packed as it is."""

    flat: Tensor

    @property
    def shape(self):
        return tuple(self.flat.shape)

    def unpack(self):
        return self.flat


VALUES = {
    "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "a": torch.tensor([5.0], dtype=torch.float64),
    "s": torch.tensor(6.0, dtype=torch.bfloat16),
    "none": torch.empty(0, 3),
}


def test_values_come_back_in_their_shapes_and_types():
    whole = joined(VALUES, PackedAsItIs)
    assert whole.packed.flat.tolist() == [5.0, 1.0, 2.0, 3.0, 4.0, 6.0]  # by name
    for found in (whole, decode(bytearray(encode(whole)))):
        assert set(found) == set(VALUES)
        assert len(found) == 4
        assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in VALUES.items())
    assert encoded_size(whole) == len(encode(whole))
    alike = joined({"x": torch.ones(2), "y": torch.ones(3)}, PackedAsItIs)
    assert (alike.dtypes, alike["y"].dtype) == ((), torch.float32)
    assert joined({}, PackedAsItIs) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"shapes": {"a": (3,)}},
        {"shapes": {"a": (-2,), "b": (-1,)}},
        {"dtypes": ("float32", "x")},
        {"dtypes": ("int8",)},
    ],
    ids=["size", "negative", "too many", "unknown"],
)
def test_joined_refuses(wrong):
    with pytest.raises(ValueError, match=r"Joined\(\): needs a vector of all parts together"):
        Joined(**{"packed": PackedAsItIs(torch.ones(2)), "shapes": {"a": (2,)}, **wrong})
    with pytest.raises(TypeError, match=r"'Part': needs a floating dtype, got torch\.int8\. Convert the parameter\."):
        float_name("Part", torch.int8)
