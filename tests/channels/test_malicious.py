"""A server, and clients, that do not follow the protocol: each is refused, and the refusal says what was wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from partwise.channels import Coded, Masked
from partwise.channels.crypto import key_pair, unseal
from partwise.channels.frames import Advertised, read_advertised
from partwise.channels.graphs import RandomRegular
from partwise.channels.identities import KeyFolder, SimulatedIdentities, write_keys
from partwise.channels.layout import Sender
from partwise.channels.protocol import MaskBegin, MaskSigned, MaskSurvivors, advertisement, digest
from partwise.channels.shamir import PRIME, element, weights_at_zero
from partwise.core.channel import Seat
from partwise.core.errors import ProtocolError
from partwise.core.model import like
from toy_exchange import PARAMS, dense, plain, play, rows, seat_of, whole

UPDATES = {c: whole(c, c % 3 + 1) for c in range(6)}
ROWS = {c: rows(c, {0, 3, c % 2 + 4}) for c in range(6)}
OPEN = Masked(max_weight=4, min_contributors=3)
SIGNED = Masked(max_weight=4, min_contributors=3, identities=SimulatedIdentities(3))
SPARSE = Masked(max_weight=4, min_contributors=3, layout="sparse")
CODED = Coded(max_weight=4, min_contributors=3)
VICTIM = 2


def at(step, change, client=VICTIM):
    """Changes what the server says to one client, or to all (None), at a step."""
    return lambda s, c, message: change(message) if s == step and client in (c, None) else message


def refused(channel, ask, words, updates=UPDATES, client=VICTIM):
    it = play(channel, updates, ask=ask)
    assert words in it.refusals.get(client, f"nothing; {it.failure}")
    assert it.refusals[client].startswith(("client 2 refuses", "the client refuses", "frame"))
    return it


# Both kinds of share


@pytest.mark.parametrize("channel", [OPEN, SIGNED, SPARSE], ids=["open", "signed", "sparse"])
def test_both_kinds_of_share(channel):
    """With b_5 and the mask key of 5, the update of 5 lies open."""
    ask = at(3, lambda m: m._replace(lost=(*m.lost, 5)))
    it = refused(channel, ask, "at most one kind of share is given for each client, ever, got clients [5]")
    assert VICTIM not in it.answers[3]


def test_what_both_kinds_would_give():
    """The specification's example, modulo 64: x3 lies open."""
    s12, s13, s23 = np.array([10, 20]), np.array([30, 40]), np.array([50, 60])
    x, b = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 10], [11, 12]])
    y = (x + b + [s12 + s13, s23 - s12, -s13 - s23]) % 64
    assert y.tolist() == [[48, 6], [52, 54], [0, 46]]
    assert ((y.sum(0) - b.sum(0)) % 64).tolist() == [9, 12]
    assert ((y[0] + y[1] - b[0] - b[1] - s13 - s23) % 64).tolist() == [4, 6]  # 3 was lost before it sent words
    assert ((y[2] - b[2] + s13 + s23) % 64).tolist() == [5, 6]


def test_cancellation_with_one_number():
    """SFSL's example, modulo 256; there the larger number adds."""
    x, b, s12, s13, s23 = (5, 250, 9), (17, 200, 99), 111, 222, 77
    y = [(x[0] + b[0] - s12 - s13) % 256, (x[1] + b[1] + s12 - s23) % 256, (x[2] + b[2] + s13 + s23) % 256]
    assert y == [201, 228, 151]
    assert sum(y) % 256 == 68
    assert (sum(y) - sum(b)) % 256 == 8 == sum(x) % 256
    assert (y[0] + y[1] - b[0] - b[1] + s13 + s23) % 256 == 255 == x[0] + x[1]


def test_asking_twice():
    """Once for the shares of a round in which 5 was lost, and once for one in which it was not."""
    for channel in (OPEN, SIGNED):
        sides, it = {}, play(channel, UPDATES)
        seats = {c: seat_of(c) for c in UPDATES}
        for c, update in UPDATES.items():
            sides[c] = channel.client(update, like(PARAMS), seats[c])
            next(sides[c])
        server = channel.server(sorted(UPDATES), PARAMS, 7)
        messages = next(server)
        for _ in it.asked[1:]:
            messages = server.send({c: sides[c].send(m) for c, m in messages.items()})
        sides[VICTIM].send(messages[VICTIM])
        again = MaskSurvivors(5, (0, 1, 2, 3, 4), (5,))
        with pytest.raises(ProtocolError, match=r"at most one kind of share is given for each client, ever"):
            sides[VICTIM].send(again)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m._replace(alive=tuple(c for c in m.alive if c != 5)),
        lambda m: m._replace(alive=tuple(c for c in m.alive if c != VICTIM), lost=(VICTIM,)),
        lambda m: m._replace(alive=(*m.alive, 9)),
    ],
    ids=["leaves one out", "says that oneself is lost", "adds a stranger"],
)
def test_survivors_that_are_not_those_it_masked_with(change):
    refused(OPEN, at(3, change), "the living and the lost are those it has masked with")


def test_too_few_survivors():
    change = lambda m: m._replace(total=3, alive=(0, 1, 2), lost=(3, 4, 5))  # noqa: E731
    refused(OPEN, at(3, change), "3 must be in the sum and 4 hold its shares, got 3 and 3")


@pytest.mark.parametrize("channel", [OPEN, SIGNED, CODED], ids=["open", "signed", "coded"])
@pytest.mark.parametrize("step", [2, 3], ids=["shares", "words"])
def test_a_total_that_is_larger_than_the_list(channel, step):
    """All six must be in a sum. 5 is left out, and the server says that there are six: whoever is named is counted."""
    channel = replace(channel, min_contributors=6)

    def ask(s, c, message):
        if s < step or c == 5:
            return message
        if s == 2:
            left = [(of, sealed) for of, sealed in zip(message.sources, message.sealed, strict=True) if of != 5]
            return message._replace(sources=tuple(of for of, _ in left), sealed=tuple(sealed for _, sealed in left))
        return message._replace(alive=(0, 1, 2, 3, 4), lost=(5,))

    it = play(channel, UPDATES, ask=ask)
    assert it.asked[step][VICTIM].total == 6
    assert "6 must be in the sum" in it.refusals[VICTIM]
    assert "got 5 and 5" in it.refusals[VICTIM]
    assert VICTIM not in it.answers[step]


def test_different_survivors_for_different_clients():
    """Half are told that 5 was lost, half that it was not: then both kinds of its share would come."""
    split = lambda s, c, m: m._replace(alive=(0, 1, 2, 3, 4), lost=(5,)) if s == 3 and c < 3 else m  # noqa: E731
    it = play(SIGNED, UPDATES, ask=split)
    assert it.opened is None
    assert len(it.refusals) == 6
    assert all("5 clients sign the same survivors, model and keys, got" in why for why in it.refusals.values())


def test_forged_signatures():
    forged = at(4, lambda m: MaskSigned(m.clients, tuple(bytes(64) for _ in m.clients)))
    refused(SIGNED, forged, "5 clients sign the same survivors, model and keys, got 0")
    few = at(4, lambda m: MaskSigned(m.clients[:4], m.signatures[:4]))
    refused(SIGNED, few, "got 4")
    repeated = at(4, lambda m: MaskSigned((0,) * 6, m.signatures))
    refused(SIGNED, repeated, "a list of clients ascends and none comes twice")


# Two models, replays


@pytest.mark.parametrize("channel", [OPEN, SIGNED], ids=["open", "signed"])
def test_two_models(channel):
    """One client was given other values than the rest."""
    other = {n: t + (n == "w") for n, t in PARAMS.items()}
    it = play(channel, UPDATES, seats={VICTIM: seat_of(VICTIM, params=other)})
    assert it.opened is None
    if channel is OPEN:
        # It derives other keys: its shares open at nobody's, and what others shared does not open at its.
        assert "needs 4 shares of client 2, got 1" in it.failure
    else:
        assert "5 clients sign the same survivors, model and keys, got 1" in it.refusals[VICTIM]


def test_several_versions_together_if_one_says_so():
    other = {n: t + 1 for n, t in PARAMS.items()}
    channel = replace(OPEN, binds_model=False)
    it = play(channel, UPDATES, seats={VICTIM: seat_of(VICTIM, params=other)})
    assert len(it.opened.clients) == 6


def test_a_round_is_not_replayed():
    memory = play(OPEN, UPDATES).memories[VICTIM]
    assert memory == {"session": 7, "sealed": 102}

    def seats(**more):
        return {VICTIM: seat_of(VICTIM, memory=dict(memory), **more)}

    again = play(OPEN, UPDATES, seats=seats(reply=103))
    assert "exchanges are numbered upward, and the last one was 7, got 7 again" in again.refusals[VICTIM]
    assert again.opened.clients == (0, 1, 3, 4, 5)
    older = at(0, lambda m: MaskBegin(5))
    refused(OPEN, older, "exchanges are numbered upward, and the last one was None, got 5 for 7")


def test_an_update_is_sealed_once():
    """Two sums that differ by one client tell its update."""
    memory = play(OPEN, UPDATES).memories[VICTIM]
    seats = {c: seat_of(c, 8, memory=dict(memory) if c == VICTIM else {}) for c in UPDATES}
    again = play(OPEN, UPDATES, session=8, seats=seats)
    assert "an update is sealed once, got another exchange about reply 102" in again.refusals[VICTIM]


def test_an_exchange_that_breaks_off_before_anything_is_sealed_may_begin_anew():
    memory = play(OPEN, UPDATES, lost=dict.fromkeys((3, 4, 5), 1)).memories[VICTIM]
    assert memory == {"session": 7}
    seats = {c: seat_of(c, 8, memory=dict(memory)) for c in UPDATES}
    assert len(play(OPEN, UPDATES, session=8, seats=seats).opened.clients) == 6


def test_messages_out_of_order():
    side = OPEN.client(UPDATES[3], like(PARAMS), Seat(3))
    next(side)
    with pytest.raises(ProtocolError, match="client 3 refuses: MaskBegin comes next, got MaskSurvivors"):
        side.send(MaskSurvivors(0, (), ()))


# Keys


def other_key(message, whose, sign=None):
    """The server puts its own key in a client's place."""
    place = message.clients.index(whose)
    old = read_advertised(message.keys[place], 7, whose, is_signed=sign is not None)
    mine = Advertised(old.share_key, key_pair().public, old.signature).pack(7, whose)
    keys = (*message.keys[:place], mine, *message.keys[place + 1 :])
    return message._replace(keys=keys, all_keys=digest(*keys))


def test_a_key_in_anothers_place():
    ask = at(1, lambda m: other_key(m, 4, sign=True))
    refused(SIGNED, ask, "keys are signed by whose they are, got keys of client 4 that are not")
    it = play(OPEN, UPDATES, ask=at(1, lambda m: other_key(m, 4)))  # unsigned, it is found when nothing cancels
    assert it.opened is None


@pytest.mark.parametrize("channel", [OPEN, SIGNED], ids=["open", "signed"])
def test_ones_own_keys_are_changed(channel):
    sign = True if channel is SIGNED else None
    words = "keys are signed by" if sign else "its own keys are unchanged"
    refused(channel, at(1, lambda m: other_key(m, VICTIM, sign)), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m._replace(keys=m.keys[:-1], clients=m.clients[:-1]), "of 6 clients, 5 and oneself"),
        (lambda m: m._replace(total=5), "of 5 clients, 4 and oneself"),
        (lambda m: m._replace(total=2), "at least 3 clients must be in a sum, got 2"),
        (lambda m: m._replace(all_keys=bytes(32)), "the digest is that of all keys"),
        (lambda m: m._replace(clients=m.clients[::-1]), "ascends and none comes twice"),
        (lambda m: m._replace(clients=list(m.clients)), "MaskNeighbours has fields of their kinds"),
    ],
)
def test_lists_of_neighbours(change, words):
    refused(OPEN, at(1, change), words)


@pytest.mark.parametrize(
    "same", [{"share_key", "mask_key"}, {"share_key"}, {"mask_key"}], ids=["both", "share", "mask"]
)
def test_one_client_stands_for_two(same):
    def change(message):
        old, other = (read_advertised(message.keys[c], 7, c, is_signed=False) for c in (4, 5))
        keys = (*message.keys[:5], other._replace(**{name: getattr(old, name) for name in same}).pack(7, 5))
        return message._replace(keys=keys, all_keys=digest(*keys))

    refused(OPEN, at(1, change), "all keys are distinct, got one of them twice")


# Layouts, holders


def part_of(message, name, **change):
    parts = tuple(p._replace(**change) if p.name == name else p for p in message.layout.parts)
    return message._replace(layout=replace(message.layout, parts=parts))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m._replace(layout=replace(m.layout, bits=8)), "has words of"),
        (lambda m: m._replace(layout=replace(m.layout, dense=3)), "has 22 words"),
        (lambda m: m._replace(layout=replace(m.layout, given=("E",))), "has 22 words"),
        (lambda m: m._replace(layout=replace(m.layout, given=("b",))), "binds every parameter"),
        (lambda m: m._replace(layout=replace(m.layout, parts=m.layout.parts[:2])), "names what the client holds"),
        (lambda m: m._replace(layout=replace(m.layout, parts=3)), "consists of parts"),
        (lambda m: part_of(m, "E", kind="whole"), "cuts 'E' as finely"),
        (lambda m: part_of(m, "E", kind="cells"), "cuts 'E' as finely"),
        (lambda m: part_of(m, "E", ids=np.array([4, 3, 5])), "lists units of 'E' in 0..8, ascending"),
        (lambda m: part_of(m, "E", ids=np.array([3, 4, 9])), "lists units of 'E' in 0..8, ascending"),
        (lambda m: part_of(m, "E", holders=np.array([9, 9, 9, 9])), "tells how many of 6 hold each unit of 'E'"),
        (lambda m: part_of(m, "E", ids=np.array([1, 2, 3, 5])), "lists every unit of 'E' that the client holds"),
    ],
)  # fmt: skip
def test_layouts(change, words):
    it = play(OPEN, ROWS, ask=at(1, change))
    assert words in it.refusals[VICTIM]


def test_a_shortened_list_of_holders():
    """Below the fewest contributors a row is withheld, whoever asks for it, and the record says so."""
    honest = play(OPEN, ROWS)
    assert "withheld" not in honest.opened.told
    alone = np.array([6, 6, 1, 3])
    it = play(OPEN, ROWS, ask=at(1, lambda m: part_of(m, "E", holders=alone), client=None))
    assert it.opened is None  # the server goes by its own layout: no sum at all
    channel = replace(OPEN, min_contributors=4)
    it = play(channel, ROWS)
    assert it.opened.told["withheld"] == 6  # rows 4 and 5, of three clients each
    assert it.sum.index.rows["E"].tolist() == [0, 3]


def test_a_shortened_list_of_common_rows():
    """Told to one side only, masks no longer cancel; told to all, the row is withheld."""

    def without(message, row):
        common = {c: {n: r[r != row] for n, r in of.items()} for c, of in message.common.items()}
        return message._replace(common=common)

    one = play(SPARSE, ROWS, ask=at(1, lambda m: without(m, 3)))
    assert one.opened is None
    assert "did not cancel; nothing was opened" in one.failure
    it = play(SPARSE, ROWS, ask=at(1, lambda m: without(m, 3), client=None))
    for client in ROWS:  # each says that it has withheld one row
        assert it.answers[2][client][14:18] == (1).to_bytes(4, "little")


@pytest.mark.parametrize("wrong", [np.array([7]), np.array([3], np.int32), [3]], ids=["not held", "dtype", "list"])
def test_common_rows_that_are_not_common(wrong):
    change = at(1, lambda m: m._replace(common={**m.common, 4: {"E": wrong}}))
    refused(SPARSE, change, "the rows of 'E' that client 4 holds as well are its own", ROWS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m._replace(total=9), "of 6 clients, 3 must be in the sum"),
        (lambda m: m._replace(sources=(0, 1), sealed=m.sealed[:2]), "4 hold its shares, got 3 and 3"),
        (lambda m: m._replace(sources=(0, 1, 3, 4, 9)), "shares come from its neighbours, got [9]"),
        (lambda m: m._replace(sources=(0, 1, 2, 3, 4)), "shares come from its neighbours, got [2]"),
        (lambda m: m._replace(sealed=m.sealed[:2]), "shares come from its neighbours"),
    ],
)
def test_shares_that_were_not_sent(change, words):
    refused(OPEN, at(2, change), words)


# Clients that lie, and what the server sees


@pytest.mark.parametrize("lost", [{}, {5: 2}], ids=["of a self mask", "of a mask key"])
@pytest.mark.parametrize("fits", [True, False])
def test_a_client_sends_wrong_shares(lost, fits):
    """Sealed for the right client, but of another secret: found when they do not give back what was committed to.

    That of 1, at point 2 of the lowest four, is changed so that what comes out for 5, the last entry, is more by 256,
    which fits into 32 bytes as well, and whose bit is one that a key of X25519 is made of; or is 0.
    """
    more = 256 * pow(weights_at_zero((1, 2, 3, 4))[1], -1, PRIME)

    def answer(step, client, said):
        wrong = (element(said[-66:]) + more) % PRIME if fits and (step, client) == (3, 1) else 0
        return said[:-66] + wrong.to_bytes(66, "little") if (step, client) == (3, 1) else said

    it = play(OPEN, UPDATES, lost=lost, answer=answer)
    assert "must give back what was committed to, got another secret" in it.failure


def test_a_client_whose_messages_cannot_be_read_is_left_out():
    for step in range(4):
        it = play(OPEN, UPDATES, answer=lambda s, c, said, step=step: b"?" if (s, c) == (step, 1) else said)
        assert it.opened.clients == ((0, 2, 3, 4, 5) if step < 3 else tuple(range(6)))
        assert "frame" in it.opened.refused[1] or "begins with its keys" in it.opened.refused[1]


@pytest.mark.parametrize("channel", [OPEN, SIGNED, SPARSE, CODED], ids=["open", "signed", "sparse", "coded"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one, other: (bytes(32), other), "must be an X25519 key, got one that is not"),
        (lambda one, other: (one, b"\1" + bytes(31)), "must be an X25519 key, got one that is not"),
        (lambda one, other: (one, one), "keys must be distinct, got one of them twice"),
    ],
    ids=["zero", "of low order", "twice"],
)
def test_keys_that_others_would_refuse_end_no_sum(channel, change, words):
    """Of one client: all others would leave the exchange, were they told of them."""

    def answer(step, client, said):
        if (step, client) != (0, 1):
            return said
        keys = read_advertised(said.keys, 7, 1, is_signed=channel is SIGNED)
        share_key, mask_key = change(keys.share_key, keys.mask_key)
        text = advertisement(7, 1, channel._rules.config, share_key + mask_key)
        signature = channel.identities.sign(1, text) if channel is SIGNED else b""
        return said._replace(keys=Advertised(share_key, mask_key, signature).pack(7, 1))

    it = play(channel, ROWS if channel is SPARSE else UPDATES, answer=answer)
    assert it.opened.clients == (0, 2, 3, 4, 5)
    assert words in it.opened.refused[1]
    assert it.refusals == {}


def test_keys_that_two_clients_have_are_nobodys():
    seen = {}

    def answer(step, client, said):
        if step:
            return said
        keys = read_advertised(said.keys, 7, client, is_signed=False)
        seen[client] = keys
        return said._replace(keys=seen[0].pack(7, 1)) if client == 1 else said

    it = play(OPEN, UPDATES, answer=answer)
    assert it.opened.clients == (2, 3, 4, 5)
    assert set(it.opened.refused) == {0, 1}


def test_keys_without_the_clients_signature_end_no_sum(tmp_path):
    def spoilt(step, client, said):
        return said._replace(keys=said.keys[:-64] + bytes(64)) if (step, client) == (0, 1) else said

    it = play(SIGNED, UPDATES, answer=spoilt)
    assert it.opened.clients == (0, 2, 3, 4, 5)
    assert "its keys must be signed by itself" in it.opened.refused[1]
    write_keys(tmp_path, UPDATES)
    own = replace(SIGNED, identities=KeyFolder(str(tmp_path)))
    assert play(own, UPDATES).opened.clients == tuple(UPDATES)


def test_held_that_cannot_be():
    for held in (3, {"no": None}, {"E": ("rows", np.array([9]))}, {"E": ("rows", [1])}, {"b": ("rows", np.array([0]))},
                 {"E": ("cells", np.array([0]))}, {"E": (1,)}):  # fmt: skip
        it = play(OPEN, UPDATES, answer=lambda s, c, m, h=held: m._replace(held=h) if (s, c) == (0, 1) else m)
        assert "held: " in it.opened.refused[1]
        assert 1 not in it.opened.clients


@pytest.mark.parametrize(
    "held",
    [{"E": None}, {"E": ("coords", np.array([0]))}, {"w": ("rows", np.array([1]))}, {"w": ("coords", np.array([1]))}],
    ids=["whole", "coords", "rows of another", "coords of another"],
)
def test_held_in_other_units_than_the_rest_ends_no_sparse_sum(held):
    """Of one client: the others hold rows of E and all of w; its own words would fit no layout of theirs."""
    claim = lambda s, c, m: m._replace(held={**m.held, **held}) if (s, c) == (0, 1) else m  # noqa: E731
    it = play(SPARSE, ROWS, answer=claim)
    assert it.opened is not None, it.failure
    assert it.opened.clients == (0, 2, 3, 4, 5)
    assert f"all hold {next(iter(held))!r} in the same units" in it.opened.refused[1]
    assert it.refusals == {}
    expected, _ = plain(ROWS, it.opened.clients)
    assert (dense(it.sum)[0]["w"] - expected["w"]).abs().max() < 12 * SPARSE.step  # weights add up to 10


def test_a_share_that_does_not_open_is_left_out():
    spoilt = at(2, lambda m: m._replace(sealed=(*m.sealed[:-1], (m.sealed[-1][0], bytes(len(m.sealed[-1][1]))))))
    assert len(play(OPEN, UPDATES, ask=spoilt).opened.clients) == 6


def test_shares_are_for_their_receiver_only():
    """All shares pass the server: it has no key to any of them."""
    it = play(OPEN, UPDATES)
    sent = it.asked[2][VICTIM]
    for key in (bytes(32), *(k[14 + 32 * i : 46 + 32 * i] for k in it.asked[1][VICTIM].keys for i in (0, 1))):
        for nonce, text in sent.sealed:
            with pytest.raises(ProtocolError, match="must open with the key of its sender"):
                unseal(key, nonce, text, b"")


def test_nothing_of_a_client_is_in_the_clear():
    """Neither its number of examples nor its loss, nor its values; those of two seats give words without likeness."""
    it = play(OPEN, UPDATES)
    head = np.frombuffer(it.answers[2][VICTIM][23:87], "<u8")
    assert (head > 2**32).all()


def test_a_drawn_graph_asks_for_no_trust_it_does_not_have():
    channel = Masked(max_weight=4, graph=RandomRegular(0.02, 0.05, 10, 4))
    updates = {c: whole(c) for c in range(40)}
    k = channel.graph.degree(40, is_active=False).neighbours
    refused(channel, at(1, lambda m: m._replace(clients=m.clients[1:], keys=m.keys[1:])), f"{k} and oneself", updates)
    it = play(channel, updates, lost={39: 1}, ask=at(3, lambda m: m._replace(total=40)))  # 39 clients sent shares
    assert "of 39 clients, 5 must be in the sum" in it.refusals[VICTIM]


@pytest.mark.parametrize("part", [Masked, Coded])
@pytest.mark.parametrize("heavy", [2, 3, 2**17])
def test_a_client_that_weighs_more_than_any_may(monkeypatch, part, heavy):
    """Its weight of a sum of 2^17 and values of zero, the lowest, would draw every mean to -limit."""
    honest = Sender.vector

    def vector(self, layout, holders, asked):
        found = honest(self, layout, holders, asked)
        if self._seat.client == 1:
            found.head[1] = heavy
            found.dense[:-1] = 0
            found.dense[[18, 25, 27]] = heavy  # behind the 18 values of E, the 6 of w, and that of b
        return found

    monkeypatch.setattr(Sender, "vector", vector)
    it = play(part(max_weight=2, min_contributors=3), {c: whole(c, 2) for c in range(5)})
    if heavy == 2:
        assert it.opened is not None, it.failure
    else:
        assert f"5 clients of a weight of at most 2 weigh 10 at most, got {8 + heavy}" in it.failure
