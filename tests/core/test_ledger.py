"""Two counts per client, in pages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from partwise.core.codec import decode, encode
from partwise.core.ledger import Ledger

CLIENTS = st.integers(0, 5) | st.integers(250, 260) | st.integers(10**9, 10**9 + 3)


@given(st.lists(st.tuples(CLIENTS, st.integers(0, 2**40), st.integers(0, 9))))
def test_does_what_a_dict_does(story):
    ledger, expected = Ledger(), {}
    for client, first, second in story:
        before = expected.get(client, (0, 0))
        expected[client] = (before[0] + first, before[1] + second)
        ledger.add_(client, first, second)
    expected = {client: counts for client, counts in sorted(expected.items()) if counts != (0, 0)}
    assert list(ledger.items()) == list(expected.items())
    assert len(ledger) == len(expected)
    assert ledger == expected


def test_follows_another_and_tells_by_how_much_it_grew():
    ahead, behind = Ledger(), Ledger()
    ahead.add_(300, 7, 2)
    assert behind.follow_(ahead, 300) == (7, 2)
    assert behind.follow_(ahead, 300) == (0, 0)
    ahead.add_(300, 1, 5)
    ahead.add_(301, 4, 4)
    assert behind.follow_(ahead, 300) == (1, 5)
    assert behind.follow_(ahead, 9) == (0, 0)  # of whom nobody knows anything
    assert behind == {300: (8, 7)}
    assert ahead == {300: (8, 7), 301: (4, 4)}


def test_goes_through_the_codec_and_can_be_written_afterwards():
    ledger = Ledger()
    ledger.add_(300, 7, 2)
    again = decode(encode(ledger))
    assert again == {300: (7, 2)}
    again.add_(300, 1, 0)
    assert (again[300], ledger[300]) == ((8, 2), (7, 2))


def test_a_copy_does_not_follow():
    ledger = Ledger()
    ledger.add_(3, 1, 5)
    copy = ledger.copy()
    ledger.add_(3, 1, 5)
    assert (copy[3], ledger[3]) == ((1, 5), (2, 10))


def test_many_clients_take_sixteen_bytes_each():
    ledger = Ledger()
    for client in range(0, 100_000, 100):  # one in a hundred touches every page
        ledger.add_(client, client, 1)
    assert sum(page.nbytes for page in ledger.pages.values()) == 16 * 256 * -(-100_000 // 256)
    assert all(page.dtype == np.int64 for page in ledger.pages.values())
