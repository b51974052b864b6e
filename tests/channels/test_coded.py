"""Sums under coded masks against plain ones, under losses; and a server that does not follow the protocol."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.algorithms import FedSubAvg
from partwise.channels import Coded, Plain
from partwise.channels.coding import FIELD, Code
from partwise.channels.field import Field
from partwise.channels.frames import CODED_WORDS, Step, read_elements
from partwise.channels.protocol import MaskBegin, MaskSurvivors
from partwise.core.errors import ProtocolError
from partwise.core.index import Whole
from partwise.core.model import like
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.experiment.spec import dump, loads
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from toy_exchange import PARAMS, dense, plain, play, rows, seat_of, whole
from toy_federation import LOCAL, star
from toy_star import Log

CHANNEL = Coded(max_weight=4, min_contributors=3, corrupt=0.2, lost=0.4)  # of five: T = 1, U = 3
EVERYTHING = {c: whole(c, c % 3 + 1) for c in (1, 2, 5, 8, 40)}
PARTS = {c: rows(c, at, c % 3 + 1) for c, at in enumerate([{0, 3, 4}, {0, 3, 8}, {3, 0}, {0, 3, 4, 8}, {3, 4, 8}])}


def agrees(it, updates, clients, rare=()):
    assert it.opened is not None, (it.failure, it.refusals)
    assert sorted(it.opened.clients) == sorted(clients)
    value, weight = dense(it.sum)
    right, heavy = plain(updates, clients)
    for row in rare:
        right["E"][row], heavy["E"][row] = 0, 0
    for name in PARAMS:
        assert torch.equal(weight[name], heavy[name])
        assert ((value[name] - right[name]).abs() <= heavy[name] * CHANNEL.step + 1e-6).all()


@pytest.mark.parametrize("clients", [20, 100, 300, 500])
def test_shares_of_clients_are_not_cut_short(clients):
    """0.29 of 100 are 29, though 0.29 * 100 is 28.999999999999996: that many may work with the server, or be lost."""
    for percent in range(1, 100):
        share, exact = percent / 100, percent * clients // 100
        assert Code(share, 0.0, 500).noise(clients) == max(1, exact)
        if clients - exact > 1:
            assert Code(0.0, share, 500).degree(clients, is_active=False).threshold == clients - exact


# The specification's numbers


def test_worked_numbers():
    """p = 97, N = 3, U = 2, T = 1, two values: masks, shares, sums with one lost and with one silent."""
    field = Field(97)
    encoder = field.lagrange(np.array([1, 2, 3]), np.array([4, 5]))  # one block of data, one of noise
    masks, noise = np.array([[10, 20], [30, 40], [50, 60]], np.uint64), np.array([[5, 6], [7, 8], [9, 11]], np.uint64)
    shares = [field.product(encoder, np.stack([z, n])) for z, n in zip(masks, noise, strict=True)]
    assert [s.tolist() for s in shares] == [
        [[25, 62], [20, 48], [15, 34]], [[2, 39], [76, 7], [53, 72]], [[76, 13], [35, 61], [91, 12]]
    ]  # fmt: skip
    x = np.array([[1, 2], [3, 4], [5, 6]], np.uint64)
    masked = (x + masks) % 97
    assert masked.tolist() == [[11, 22], [33, 44], [55, 66]]
    replies = [(shares[0][j] + shares[1][j]) % 97 for j in (0, 1)]  # survivors 1 and 2
    assert [r.tolist() for r in replies] == [[27, 4], [96, 55]]
    weights = field.lagrange(np.array([4]), np.array([1, 2]))
    assert weights.tolist() == [[95, 3]]
    mask = field.product(weights, np.stack(replies))
    assert mask.tolist() == [[40, 60]]
    assert ((masked[0] + masked[1] + 97 - mask[0]) % 97).tolist() == [4, 6]
    everybody = [(shares[0][j] + shares[1][j] + shares[2][j]) % 97 for j in range(3)]
    for two in itertools.combinations(range(3), 2):  # every U-subset tells the same
        mask = field.product(field.lagrange(np.array([4]), np.array(two) + 1), np.stack([everybody[j] for j in two]))
        assert ((masked.sum(0) + 97 - mask[0]) % 97).tolist() == [9, 12]


@pytest.mark.parametrize(("clients", "noise", "needed"), [(5, 2, 4), (6, 3, 5)])
def test_noise_hides_from_any_t_clients(clients, noise, needed):
    """What T clients get of a mask is T independent equations in T blocks of noise: any mask fits."""
    encoder = Field(97).lagrange(np.arange(1, clients + 1), clients + np.arange(1, needed + 1)).astype(int)
    for some in itertools.combinations(range(clients), noise):
        part = encoder[list(some)][:, needed - noise :].tolist()
        determinant = sum(
            (-1) ** sum(a > b for a, b in itertools.combinations(order, 2))
            * np.prod([part[i][j] for i, j in enumerate(order)], dtype=object)
            for order in itertools.permutations(range(noise))
        )
        assert determinant % 97


def test_sizes_of_the_specification():
    """N = 100, T = 50, D = 10: U = 90, and a block is a fortieth of the vector."""
    code = Code(corrupt=0.5, lost=0.1, most=1000)
    assert (code.noise(100), code.degree(100, is_active=False).threshold, code.blocks(100)) == (50, 90, 40)


# Losses


@pytest.mark.parametrize("updates", [EVERYTHING, PARTS], ids=["whole", "rows"])
@pytest.mark.parametrize("step", range(4))
def test_losses_at_every_step(updates, step):
    for size in range(4):
        for gone in itertools.combinations(updates, size):
            it = play(CHANNEL, updates, lost=dict.fromkeys(gone, step))
            left = len(updates) - size
            if left < 3:
                assert it.opened is None
                assert "Nothing was opened" in it.failure
                continue
            heard = [c for c in updates if c not in gone] if step < 3 else list(updates)
            holders = {0: {0, 1, 2, 3}, 3: set(range(5)), 4: {0, 3, 4}, 8: {1, 3, 4}}
            told = set(updates) if step else set(heard)
            rare = [row for row, of in holders.items() if len(of & told) < 3] if updates is PARTS else []
            agrees(it, updates, heard, rare)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=7, max_size=7))
def test_losses_at_any_steps(steps):
    updates = {c: rows(c, {0, 2, c % 2 + 4}, c % 3 + 1) for c in range(7)}
    it = play(CHANNEL, updates, lost={c: step for c, step in enumerate(steps) if step < 4})
    known = sum(step > 0 for step in steps)
    needed = max(3, known - int(0.4 * known))
    summed = [c for c in updates if steps[c] > 2]
    told = sum(step > 3 for step in steps)
    if known < 3 or len(summed) < needed or told < known - int(0.4 * known):
        assert it.opened is None
        assert it.failure
        return
    assert list(it.opened.clients) == summed
    value, weight = dense(it.sum)
    right, heavy = plain(updates, summed)
    assert torch.equal(weight["w"], heavy["w"])
    assert ((value["w"] - right["w"]).abs() <= heavy["w"] * CHANNEL.step + 1e-6).all()


def test_numbers_beside_the_sum():
    it = play(CHANNEL, EVERYTHING)
    examples = {c: 10 + c for c in EVERYTHING}
    assert it.opened.told["examples"] == sum(examples.values())
    loss = sum(e * 0.5 * c for c, e in examples.items()) / sum(examples.values())
    assert it.opened.told["loss"] == pytest.approx(loss, abs=1e-3)
    negative = play(CHANNEL, EVERYTHING, seats={c: seat_of(c, loss=-0.25) for c in EVERYTHING})
    assert negative.opened.told["loss"] == pytest.approx(-0.25, abs=1e-3)


def test_words_say_nothing():
    """Words of a client that sends zeros: chi-square over some of their bits; 99.9 % below 330.5.

    Their keys are new each time, so that one play in five hundred is beyond; three in a row are no chance.
    """
    assert any(max(_chi_squares()) < 330.5 for _ in range(3))


def _chi_squares():
    params = {"w": torch.zeros(1 << 15)}
    updates = {c: Update(Whole({"w": (1 << 15,)}), {"w": torch.zeros(1 << 15)}) for c in range(5)}
    sent = play(Coded(max_weight=1, min_contributors=3), updates, params=params).answers[2][3]
    count = (1 << 15) + 2 + 32
    words = read_elements(sent, Step(CODED_WORDS, 7, 3), count, FIELD.prime).elements[32:-2]
    for shift in (0, 22):
        counts = np.bincount(((words >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256)
        yield ((counts - 128) ** 2 / 128).sum()


# A server that does not follow the protocol


def refused(change, step, words, **more):
    it = play(CHANNEL, EVERYTHING, ask=lambda s, c, m: change(m) if (s, c) == (step, 2) else m, **more)
    assert words in it.refusals.get(2, it.failure)
    return it


def test_questions_that_are_refused():
    everybody = tuple(EVERYTHING)
    refused(lambda m: MaskSurvivors(5, everybody, (8,)), 3, "got clients [8] among the living and the lost")
    refused(
        lambda m: MaskSurvivors(2, (1, 2), (5, 8, 40)), 3, "3 must be in the sum and 3 hold its shares, got 2 and 2"
    )
    refused(lambda m: MaskSurvivors(4, (1, 2, 5, 8), ()), 3, "the living and the lost are those it has masked with")
    refused(lambda m: m._replace(layout=m.layout.__class__(40, m.layout.dense)), 1, "the client refuses: a layout")
    refused(lambda m: MaskBegin(3), 0, "exchanges are numbered upward")


def test_one_sum_of_masks_is_told():
    """Of two sums of masks, the difference is a client's mask."""
    seats = {c: seat_of(c) for c in EVERYTHING}
    sides = {c: CHANNEL.client(u, like(PARAMS), seats[c]) for c, u in EVERYTHING.items()}
    server = CHANNEL.server(sorted(EVERYTHING), PARAMS, 7)
    messages = next(server)
    for side in sides.values():
        next(side)
    for _ in range(3):
        messages = server.send({c: sides[c].send(m) for c, m in messages.items()})
    sides[2].send(messages[2])
    with pytest.raises(ProtocolError, match=r"of a mask, one sum is told, ever, got another question"):
        sides[2].send(MaskSurvivors(4, (1, 2, 5, 8), (40,)))


def test_two_models():
    """Who was given other values seals with other keys: nobody opens its blocks, nor it anybody's; it is out, alone."""
    other = {n: t + (n == "w") for n, t in PARAMS.items()}
    it = play(CHANNEL, EVERYTHING, seats={2: seat_of(2, params=other)})
    agrees(it, EVERYTHING, (1, 5, 8, 40))
    assert list(it.refusals) == [2]
    assert "client 2 refuses: the blocks of at least 3 clients, its own among them, open, got 1" in it.refusals[2]


@pytest.mark.parametrize("receivers", [(40,), (1, 5, 8, 40)], ids=["at one", "at all"])
def test_blocks_that_do_not_open_of_one_who_stays(receivers):
    """Who has no block of its mask tells no sum with it: one is not missed, but all are."""

    def spoil(step, client, said):
        if step != 2 or client not in receivers:
            return said
        sealed = [
            (n, bytes(len(text)) if c == 2 else text) for c, (n, text) in zip(said.sources, said.sealed, strict=True)
        ]
        return said._replace(sealed=tuple(sealed))

    it = play(CHANNEL, EVERYTHING, ask=spoil)
    assert sorted(it.refusals) == list(receivers)
    assert all("a block of everybody's mask in the sum opens, got none of [2]" in why for why in it.refusals.values())
    if len(receivers) == 1:
        agrees(it, EVERYTHING, EVERYTHING)
    else:
        assert "needs 3 clients that told the sum of masks, got 1" in it.failure


def test_a_wrong_sum_of_masks_opens_nothing():
    """One client tells another value than it has: with one answer more than needed, it shows."""
    spoil = lambda s, c, m: bytes([*m[:-8], m[-8] ^ 1, *m[-7:]]) if (s, c) == (3, 5) else m  # noqa: E731
    it = play(CHANNEL, EVERYTHING, answer=spoil)
    assert "what clients tell of the sum of masks must fit together" in it.failure


def test_more_clients_than_fit():
    it = play(Coded(max_cohort=4, min_contributors=3), EVERYTHING)
    assert "Coded(max_cohort=4): sums at most 4 clients, got 5" in it.failure
    it = play(Coded(corrupt=0.0, lost=0.7, min_contributors=3), {c: whole(c) for c in range(3)})
    assert "of 3 clients more than 1 must stay, got 1" in it.failure


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 0}, r"needs a finite limit above 0"),
        ({"limit": math.inf}, r"limit=inf.*needs a finite limit above 0"),
        ({"bits": 25}, r"2\.\.24 bits"),
        ({"max_cohort": 2}, r"a cohort of at least 3"),
        ({"corrupt": 0.5, "lost": 0.5}, r"must stay below 1 together, got 1\.0"),
        ({"min_contributors": 2}, r"must be at least 3, got 2: of two"),
        ({"patience_seconds": 0}, r"must be above 0"),
        ({"max_weight": 128}, r"a sum must stay below 2147483647, got 4194176000"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Coded(**settings)


# In the star


def run(channel, runtime=None):
    of = star(
        "fedavg",
        channel=channel,
        algorithm=FedSubAvg("count", LOCAL),
        client_chain={"model": chain(Clip(0.5))},
        scheduler=Synchronous(cohort=6, rounds=2),
    )
    log = Log()
    states, reason = (runtime or Simulate()).run(of.programs(), of.population, log)
    assert reason == "done"
    assert log.of("lost") == log.of("skipped") == []
    return states[SERVER].streams["model"]


def test_both_runtimes_and_two_runs_are_equal():
    channel = Coded(limit=0.5, bits=20, max_weight=1, min_contributors=3)
    one, other, there = run(channel), run(channel), run(channel, Processes())
    clear = run(Plain())
    for name in one:
        assert torch.equal(one[name], other[name])
        assert torch.equal(one[name], there[name])
    assert any(not torch.equal(one[name], clear[name]) for name in one)


def test_in_a_specification():
    text = """
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
[[client]]
name = "Clip"
max_norm = 0.5
[channel]
name = "Coded"
limit = 0.5
lost = 0.2
"""
    experiment = loads(text)
    assert experiment.channel == Coded(limit=0.5, lost=0.2)
    assert loads(dump(experiment)).channel == experiment.channel
