"""What a peer makes up is refused in a sentence, or added up: it ends nobody's run."""

from __future__ import annotations

import pytest
import torch

from partwise.core.aggregate import sum_updates
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.index import Rows, Whole
from partwise.core.seeded import Seeded
from partwise.core.update import Update
from partwise.programs.messages import Reply
from partwise.programs.schema import check_from_client, fault_of

SHAPES = {"E": (5, 4), "b": (3,)}
PARAMS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
INDEX = Rows(SHAPES, {"E": torch.tensor([1, 4]), "b": None})
VALUE = {"E": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), "b": torch.ones(3)}


def received(weight=1.0, index=INDEX, value=VALUE, **fields):
    """A reply behind the codec, as a server gets it."""
    reply = Reply(1, 1, 1, 0.5, {"model": Update(index, value, weight)})
    return decode(bytearray(encode(reply._replace(**fields))))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ({}, r"must have a weight for every parameter it holds, or one for all, got none for \['E', 'b'\]"),
        ({"b": torch.ones(3)}, r"got none for \['E'\]"),
        (1e308, r"the weight must be at most 3.4e\+38, got 1e\+308"),
    ],
)
def test_weights_that_cannot_be_added_are_refused(weight, said):
    reply = received(weight)
    check_from_client(reply)
    with pytest.raises(ProtocolError, match=said):
        raise ProtocolError(fault_of(reply, ["model"], {"model": PARAMS}))


def test_along_directions_there_is_one_weight():
    whole = Whole({"b": (3,)})
    reply = received({"b": torch.ones(2)}, Seeded(whole, 1, {"b": 2}), {"b": torch.ones(2)})
    check_from_client(reply)
    assert "there is one weight for all" in fault_of(reply, ["model"], {"model": PARAMS})


@pytest.mark.parametrize("field", [{"loss": 10**400}, {"fetched": 10**400}, {"report": {"x": -(10**400)}}])
def test_numbers_that_are_none_as_floats_are_refused(field):
    with pytest.raises(ProtocolError, match=r"must be a number, whole ones of at most 2\*\*53"):
        check_from_client(received(**field))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("is_after_rows", [False, True])
def test_rows_take_weights_of_any_shape_that_is_allowed(shape, is_after_rows):
    weight = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    reply = received({"E": weight, "b": torch.tensor(2.0)})
    check_from_client(reply)
    assert not fault_of(reply, ["model"], {"model": PARAMS})
    plain = Update(Rows({"E": (5, 4)}, {"E": torch.tensor([0, 4])}), {"E": torch.ones(2, 4)}, 3.0)
    got = sum_updates([*([plain] if is_after_rows else []), reply.updates["model"]], PARAMS)
    full, weights = torch.zeros(5, 4), torch.zeros(5, 4)
    each = weight.reshape(shape + (1,) * (2 - len(shape))).expand(2, 4)  # broadcast from the left
    full[[1, 4]] += each * VALUE["E"]
    weights[[1, 4]] += each
    if is_after_rows:
        full[[0, 4]] += 3.0
        weights[[0, 4]] += 3.0
    found = {"E": torch.zeros(5, 4), "b": torch.zeros(3)}
    got.index.scatter_add_(found, got.value)
    assert torch.equal(found["E"], full)
    assert found["b"].tolist() == [2.0, 2.0, 2.0]
    held = {"E": torch.zeros(5, 4), "b": torch.zeros(3)}
    got.index.scatter_add_(held, {n: w.expand(got.value[n].shape).float() for n, w in got.weight.items()})
    assert torch.equal(held["E"], weights)
