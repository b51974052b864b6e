"""Whatever arrives in place of a message or of one of its fields is refused; nothing else goes wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.channels import Coded, Masked
from partwise.channels.identities import SimulatedIdentities
from partwise.channels.unions import MaskedUnion
from partwise.core.codec import decode, encode
from partwise.core.index import Rows
from partwise.core.update import Update
from toy_exchange import PARAMS, play, rows

UPDATES = {c: rows(c, {0, 3, c % 2 + 4}) for c in range(5)}
CHANNELS = [
    Masked(max_weight=4, min_contributors=3),
    Masked(max_weight=4, min_contributors=3, identities=SimulatedIdentities(3)),
    Masked(max_weight=4, min_contributors=3, layout="sparse"),
    Coded(max_weight=4, min_contributors=3),
]
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.binary(max_size=70)
    | st.text(max_size=3)
    | st.just(np.array([3, 1]))
    | st.just(np.zeros((2, 2)))
    | st.just(3.5)
)
JUNK = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 6) | st.sampled_from("Ew"), inner, max_size=2)
    ),
    max_leaves=4,
)


def spoil(draw, message):
    """The message, one of its fields or one of its layout's fields, replaced."""
    fields = getattr(message, "_fields", ())
    if not fields or draw(st.integers(0, 5)) == 0:
        return draw(JUNK)
    name = draw(st.sampled_from(fields))
    value = getattr(message, name)
    if name == "layout" and draw(st.booleans()):
        part = draw(st.sampled_from(["bits", "dense", "tables", "given", "parts"]))
        return message._replace(layout=replace(value, **{part: draw(JUNK)}))
    if name in ("parts", "keys", "sealed", "clients", "alive", "sources") and isinstance(value, tuple) and value:
        at = draw(st.integers(0, len(value) - 1))
        return message._replace(**{name: (*value[:at], draw(JUNK), *value[at + 1 :])})
    return message._replace(**{name: draw(JUNK)})


def once(step, client, of):
    done = []

    def change(s, c, message):
        if (s, c) != (step, client) or done:
            return message
        done.append(True)
        return decode(encode(of(message)))

    return change


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(CHANNELS), st.integers(0, 4), st.data())
def test_from_the_server(channel, step, data):
    """The client answers, or refuses by an error that its program takes for a refusal."""
    try:
        it = play(channel, UPDATES, ask=once(step, 2, lambda m: spoil(data.draw, m)))
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError):
        return
    assert it.opened is not None or it.failure


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(CHANNELS), st.integers(0, 4), st.data())
def test_from_a_client(channel, step, data):
    """The others' sum is opened, or the exchange fails by what it says."""
    it = play(channel, UPDATES, answer=once(step, 2, lambda m: spoil(data.draw, m)))
    assert it.opened is not None or it.failure


@pytest.mark.parametrize("held", [3, ("E",), {}])
def test_from_a_client_of_a_union(held):
    """Nobody says what it holds: who does is left out."""
    tables = {"E": PARAMS["E"]}
    updates = {c: Update(Rows({"E": (9, 2)}, {"E": torch.tensor([c])}), {}) for c in range(5)}
    change = once(0, 2, lambda m: m._replace(held=held))
    it = play(MaskedUnion(min_contributors=3), updates, params=tables, answer=change)
    assert 2 in it.opened.refused
    assert it.opened.got.index.rows["E"].tolist() == [0, 1, 3, 4]
