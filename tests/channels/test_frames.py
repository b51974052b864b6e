"""Every message comes back as it was sent; whatever else arrives is refused, and by nothing but a ProtocolError."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.channels import frames
from partwise.channels.frames import (
    CODED_SUM,
    HEAD_BYTES,
    MASK_KEY,
    SELF_MASK,
    Advertised,
    BlocksSent,
    Consistency,
    ElementsSent,
    MaskedWords,
    Sealed,
    SharesSent,
    Step,
    Unmasked,
    pack_block,
    pack_share,
    read_advertised,
    read_block,
    read_blocks,
    read_consistency,
    read_elements,
    read_masked,
    read_share,
    read_shares,
    read_unmasked,
)
from partwise.channels.shamir import PRIME, SHARE_BYTES
from partwise.core.errors import ProtocolError


class Elements(NamedTuple):
    """`ElementsSent`, as comparable as the others."""

    withheld: int
    elements: tuple[int, ...]

    def pack(self, round, client):
        return ElementsSent(self.withheld, np.array(self.elements, np.uint64)).pack(CODED_SUM, round, client)


def read_some_elements(data):
    withheld, elements = read_elements(data, Step(CODED_SUM, 7, 3), 3, 2**31 - 1)
    return Elements(withheld, tuple(elements.tolist()))


SHARE = (12345).to_bytes(SHARE_BYTES, "little")
LONG = 12 + 2 * SHARE_BYTES + 16
BLOCK = 12 + 20 + 16  # five elements of 31 bits fill twenty bytes
GOOD = {
    "advertise": Advertised(b"a" * 32, b"b" * 32),
    "signed": Advertised(b"a" * 32, b"b" * 32, b"s" * 64),
    "shares": SharesSent(b"c" * 32, {4: Sealed(b"n" * 12, b"t" * LONG), 9: Sealed(b"m" * 12, b"u" * LONG)}),
    "masked": MaskedWords(3, 20, 5, b"h" * HEAD_BYTES, b"w" * 13),
    "consistency": Consistency(b"d" * 32, b"s" * 64),
    "unmask": Unmasked({2: (SELF_MASK, SHARE), 7: (MASK_KEY, SHARE)}),
    "blocks": BlocksSent({4: Sealed(b"n" * 12, b"t" * BLOCK), 9: Sealed(b"m" * 12, b"u" * BLOCK)}),
    "elements": Elements(5, (0, 2**31 - 2, 77)),
}
READ = {
    "advertise": lambda data: read_advertised(data, 7, 3, is_signed=False),
    "signed": lambda data: read_advertised(data, 7, 3, is_signed=True),
    "shares": lambda data: read_shares(data, 7, 3, (4, 9)),
    "masked": lambda data: read_masked(data, 7, 3, (20, 5, 13)),
    "consistency": lambda data: read_consistency(data, 7, 3),
    "unmask": lambda data: read_unmasked(data, 7, 3, {2: SELF_MASK, 5: SELF_MASK, 7: MASK_KEY}),
    "blocks": lambda data: read_blocks(data, 7, 3, ((4, 9), 5)),
    "elements": read_some_elements,
}


@pytest.mark.parametrize("name", GOOD)
def test_there_and_back(name):
    data = GOOD[name].pack(7, 3)
    assert READ[name](data) == GOOD[name]
    assert READ[name](bytearray(data)) == GOOD[name]
    assert data[:4] == b"SFSA"


@pytest.mark.parametrize("name", GOOD)
def test_nothing_may_be_missing_or_left(name):
    data = GOOD[name].pack(7, 3)
    for end in range(len(data)):
        with pytest.raises(ProtocolError, match="frame: "):
            READ[name](data[:end])
    with pytest.raises(ProtocolError, match="frame: "):
        READ[name](data + b"\0")


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("at", [0, 4, 5, 6, 10], ids=["magic", "version", "step", "round", "client"])
def test_header(name, at):
    data = bytearray(GOOD[name].pack(7, 3))
    data[at] ^= 1
    with pytest.raises(ProtocolError, match=r"frame: (a message begins with|must be Step)"):
        READ[name](data)


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_changed_bytes(name, data):
    good = GOOD[name].pack(7, 3)
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = READ[name](bytes(changed))
    except ProtocolError:
        return
    assert found.pack(7, 3) == changed  # one form only


@settings(max_examples=200)
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=400))
def test_anything(name, data):
    header = GOOD[name].pack(7, 3)[:14]
    for text in (data, header + data):
        try:
            found = READ[name](text)
        except ProtocolError:
            continue
        assert found.pack(7, 3) == text


@pytest.mark.parametrize("data", [None, 3, "text", [1], {}])
def test_what_are_no_bytes(data):
    with pytest.raises(ProtocolError, match="a message is bytes, got"):
        READ["masked"](data)


def test_repeats_and_counts():
    twice = Unmasked({2: (SELF_MASK, SHARE)}).pack(7, 3)
    entry = twice[18:]
    with pytest.raises(ProtocolError, match="entries ascend and none comes twice, got client 2 after 2"):
        READ["unmask"](twice[:14] + (2).to_bytes(4, "little") + entry * 2)
    with pytest.raises(ProtocolError, match="may have 3 entries"):
        READ["unmask"](twice[:14] + (2**32 - 1).to_bytes(4, "little") + entry)
    with pytest.raises(ProtocolError, match="has a share for each of 2 neighbours, got 1"):
        READ["shares"](SharesSent(b"c" * 32, {4: Sealed(b"n" * 12, b"t" * LONG)}).pack(7, 3))
    with pytest.raises(ProtocolError, match=f"a sealed share has {LONG} bytes, got 3"):
        READ["shares"](SharesSent(b"c" * 32, {4: Sealed(b"n" * 12, b"ttt")}).pack(7, 3))


def test_only_kinds_that_were_asked_for():
    with pytest.raises(ProtocolError, match="has the kinds of share that were asked for, got 1 of client 2"):
        READ["unmask"](Unmasked({2: (MASK_KEY, SHARE)}).pack(7, 3))
    with pytest.raises(ProtocolError, match=r"must be below 2\^521 - 1"):
        READ["unmask"](Unmasked({2: (SELF_MASK, PRIME.to_bytes(66, "little"))}).pack(7, 3))
    with pytest.raises(ProtocolError, match="has 5 words of 20 bits, got 5 of 21"):
        READ["masked"](GOOD["masked"]._replace(bits=21).pack(7, 3))


@given(st.integers(0, PRIME - 1), st.integers(0, PRIME - 1))
def test_what_is_sealed(one, other):
    shares = [n.to_bytes(SHARE_BYTES, "little") for n in (one, other)]
    text = pack_share((1, 2, 9), *shares)
    assert read_share(text, (1, 2, 9)) == tuple(shares)
    assert len(text) + 16 == LONG
    for route in ((2, 1, 9), (1, 2, 8)):
        with pytest.raises(ProtocolError, match="a share goes from, to and in round"):
            read_share(text, route)
    with pytest.raises(ProtocolError, match="a share has 144 bytes, got 143"):
        read_share(text[1:], (1, 2, 9))


@given(st.binary(min_size=144, max_size=144))
def test_anything_in_a_seal(text):
    try:
        found = read_share(text, (1, 2, 9))
    except ProtocolError:
        return
    assert frames.pack_share((1, 2, 9), *found) == text


def test_elements_and_blocks():
    with pytest.raises(ProtocolError, match="elements lie below 2147483647, got a larger one"):
        READ["elements"](Elements(0, (1, 2**31 - 1, 3)).pack(7, 3))
    with pytest.raises(ProtocolError, match="has 3 elements, got 2"):
        READ["elements"](Elements(0, (1, 2)).pack(7, 3))
    with pytest.raises(ProtocolError, match="has a block for each of 2 others, got 1"):
        READ["blocks"](BlocksSent({4: Sealed(b"n" * 12, b"t" * BLOCK)}).pack(7, 3))
    text = pack_block((1, 2, 9), np.arange(5, dtype=np.uint64))
    assert len(text) + 16 == BLOCK
    assert read_block(text, (1, 2, 9), 5, 97).tolist() == [0, 1, 2, 3, 4]
    for route, count, prime in (((2, 1, 9), 5, 97), ((1, 2, 9), 4, 97), ((1, 2, 9), 5, 3)):
        with pytest.raises(ProtocolError, match="frame: "):
            read_block(text, route, count, prime)
