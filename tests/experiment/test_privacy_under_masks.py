"""Noise in shares behind a channel that shows sums alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from partwise.algorithms import FedAvg, FedSubAvg, LocalOnly
from partwise.channels import LowRankSum, Masked, Plain
from partwise.core.errors import CompositionError
from partwise.core.index import Rows
from partwise.core.metrics import Accuracy
from partwise.core.update import Update
from partwise.core.workload import Workload
from partwise.experiment.accounting import poisson_epsilon
from partwise.experiment.experiment import Experiment
from partwise.experiment.mechanisms import Adaptive, Central, Distributed
from partwise.experiment.privacy import ClientDP
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Poisson, Stalest
from toy_exchange import play, seat_of
from toy_experiments import People
from toy_federation import LOCAL, model

pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")


def made(channel):
    return Experiment(
        Workload(model(), People(), (Accuracy(),)),
        FedAvg(LOCAL),
        Synchronous(cohort=6, rounds=2, choice=Stalest(), min_replies=5),
        privacy=ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, mechanism=Distributed(256.0)),
        channel=channel,
        seed=5,
    )


def test_shares_of_noise_under_masks_are_those_in_the_clear(tmp_path):
    """Whole numbers up to what the masked words hold: not a bit is lost, and nobody sees a term of the sum."""
    clear, masked = made(Plain()), made(Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=5))
    one, other = clear.run(tmp_path / "clear"), masked.run(tmp_path / "masked")
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert one.value("epsilon", "privacy") == other.value("epsilon", "privacy") < math.inf


def test_a_sum_of_fewer_shares_than_are_counted_on_is_refused():
    channel = Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=4)
    with pytest.raises(CompositionError, match=r"Distributed\(.*min_replies=5 .* Set its min_contributors to 5\."):
        made(channel).build()


@pytest.mark.parametrize("mechanism", [Central(), Distributed(256.0)])
def test_a_channel_that_sends_later_what_it_left_out_is_refused(mechanism):
    """What a client adds to a sum grows beyond its clip by what it still owes: to 2.7 times that in eight rounds."""
    channel = LowRankSum(Masked(limit=2**15 - 1, bits=16, max_weight=1, min_contributors=5))
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, mechanism=mechanism, amplification="none")
    with pytest.raises(CompositionError, match=r"needs a channel that keeps to the bound of an update, got LowRankSum"):
        replace(made(channel), privacy=privacy).build()


def released(others, chance, *, least, start, noise, y):
    """The density at y of a sum of those who are drawn, with noise: client i of the others sends 1, one more `start`.

    Args:
        others: how many they are; each is drawn with `chance`, and so is the one more; None for `start`: without it.
        least: nothing is released of fewer.
    """
    total = 0.0
    for drawn in range(others + 1):
        share = math.comb(others, drawn) * chance**drawn * (1 - chance) ** (others - drawn)
        for more, value, weight in (
            ((0, 0.0, 1 - chance), (1, start, chance)) if start is not None else ((0, 0.0, 1.0),)
        ):
            if drawn + more >= least:
                total += share * weight * math.exp(-(((y - drawn - value) / noise) ** 2) / 2)
    return total / (noise * math.sqrt(2 * math.pi))


def test_a_round_that_is_skipped_for_want_of_clients_voids_what_a_draw_adds():
    """Of 40 clients 5 are drawn: one that sends -1 where others send 1 shows, if no sum of fewer than 5 is opened."""
    epsilon, chance, step = poisson_epsilon(1.0, 5 / 40, 1, 1e-3), 5 / 40, 0.05
    grid = [i * step for i in range(-200, 600)]

    def delta(least):
        pairs = [
            [released(39, chance, least=least, start=start, noise=1.0, y=y) for start in (-1.0, None)] for y in grid
        ]
        return step * sum(max(0.0, one - math.exp(epsilon) * other) for one, other in pairs)

    assert delta(0) < 1e-3
    assert delta(5) > 9e-3
    channel = Masked(limit=0.5, max_weight=1, min_contributors=5)
    drawn = Synchronous(cohort=6, rounds=2, choice=Poisson())
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.0)
    experiment = replace(made(channel), scheduler=drawn, privacy=privacy)
    with pytest.raises(CompositionError, match=r"counts on every draw .* opens no sum of fewer than 5: where as many"):
        experiment.build()
    replace(experiment, privacy=replace(privacy, amplification="none")).build()
    replace(experiment, channel=Plain()).build()


def test_parts_of_which_few_hold_some_are_refused():
    """Client 0 has a row that four others have: without it they send nothing of it, and the sum moves by all five."""

    def row_three(client, rows):
        value = torch.full((len(rows), 1), 0.5 / math.sqrt(max(1, len(rows))))
        return Update(Rows({"E": (9, 1)}, {"E": torch.tensor(rows, dtype=torch.int64)}), {"E": value})

    channel, params = Masked(limit=0.5, max_weight=1, min_contributors=5), {"E": torch.zeros(9, 1)}

    def total(held):
        updates = {0: row_three(0, held), **{c: row_three(c, [3]) for c in range(1, 5)}, 5: row_three(5, [])}
        found = play(channel, updates, params=params, seats={c: seat_of(c, params={}) for c in updates}).sum
        return sum(float(value.sum()) for value in found.value.values())

    assert total([3]) - total([]) == pytest.approx(5 * 0.5, abs=1e-3)
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, amplification="none")
    experiment = replace(made(channel), algorithm=FedSubAvg("count", LOCAL), privacy=privacy)
    for algorithm in (FedSubAvg("count", LOCAL), LocalOnly(FedSubAvg("count", LOCAL), ("out.bias",))):
        with pytest.raises(CompositionError, match=r"leave out what fewer than 5 hold, so that one of them decides"):
            replace(experiment, algorithm=algorithm).build()
    replace(experiment, channel=Plain()).build()
    replace(experiment, algorithm=LocalOnly(FedAvg(LOCAL), ("out.bias",))).build()


def test_noise_is_made_for_what_a_channel_adds_by_rounding():
    """A step of 2 · 0.5 / 14 in each of the model's d values: the clip's 0.5 and √d steps, over the cohort of 6."""
    masked = Masked(limit=0.5, bits=4, max_weight=1, min_contributors=5)
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, amplification="none")
    star, _ = replace(made(masked), privacy=privacy).build()
    size = sum(t.numel() for t in model().init(0).values())
    expected = (0.5 + 1 / 14 * math.sqrt(size)) / 6
    assert star.server_chain["model"].stages[0].sensitivity == pytest.approx(expected)
    with pytest.raises(CompositionError, match=r"Adaptive\(.* as they are sent, got Masked\(.* which rounds both\."):
        replace(made(masked), privacy=replace(privacy, mechanism=Adaptive(count_noise=2.0))).build()


def test_settings_that_would_be_passed_over_are_refused_by_their_names():
    privacy = ClientDP(0.5, delta=1e-3, noise_multiplier=1.2, mechanism=Adaptive(count_noise=2.0), amplification="none")
    replace(made(Plain()), privacy=privacy).build()
    with pytest.raises(CompositionError, match=r"Adaptive\(.*all count alike, got max_weight=50\. Leave it at 1\."):
        replace(made(Plain()), privacy=replace(privacy, max_weight=50.0)).build()
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"ClientDP\(cohort=.*\): must be finite and at least 0, got"):
            replace(privacy, cohort=bad)
        with pytest.raises(ValueError, match=r"Adaptive\(count_noise=.*\): must be finite and at least 0, got"):
            Adaptive(count_noise=bad)
