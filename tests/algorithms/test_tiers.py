from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partwise.algorithms import (
    CO2,
    LANS,
    AdaptiveClip,
    CrossTier,
    FedAvg,
    FederatedDropout,
    FedLaAvg,
    Mixing,
    SignMomentum,
)
from partwise.core.algorithm import Algorithm
from partwise.core.around import Around
from partwise.core.errors import CompositionError
from partwise.core.index import Coords, Whole
from partwise.core.population import Census, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.schedulers import Tiered
from partwise.transforms import Scale, ServerSGD
from toy_federation import LOCAL, star
from toy_star import full_batch, number_model, parabolas, run, server, star_of


def committed(algorithm, state, group, values, at=None):
    at = list(range(len(values))) if at is None else at
    index = Coords({"w": (3,)}, {"w": torch.tensor(at)})
    total = Update(index, {"w": torch.tensor(values, dtype=torch.float64)}, 5.0)
    return algorithm.commit(state, {"model": total}, [ReplyInfo(0, 1, 0, 5, 7, group=group)])


def test_the_slowest_tier_counts_what_the_fastest_was_updated():
    """Three tiers from w = 1: 0 ends at 2, then at 4, 1 at 7, 2 at 30; counts (2, 1, 1)."""
    algorithm = CrossTier(FedAvg(), tiers=3)
    state = algorithm.init({"w": torch.ones(3, dtype=torch.float64)}, Census(3))
    state = committed(algorithm, state, 0, [2.0] * 3)
    assert state["model"]["w"].tolist() == [1] * 3  # T = (1, 0, 0): all weight on tier 2, which is as it was
    state = committed(algorithm, state, 0, [4.0] * 3)
    state = committed(algorithm, state, 1, [7.0] * 3)
    assert state["model"]["w"].tolist() == pytest.approx([2 / 3 * 1 + 1 / 3 * 7] * 3)
    state = committed(algorithm, state, 2, [30.0] * 3)
    assert state["model"]["w"].tolist() == pytest.approx([1 / 4 * 4 + 1 / 4 * 7 + 2 / 4 * 30] * 3)


def test_a_tier_that_holds_a_part_changes_that_part_of_its_model():
    algorithm = CrossTier(FedAvg(), tiers=1)
    state = algorithm.init({"w": torch.ones(3, dtype=torch.float64)}, Census(3))
    state = committed(algorithm, state, 0, [5.0, 8.0], at=[0, 2])
    assert state["model"]["w"].tolist() == [5, 1, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_that_nobody_changes_stays(dtype):
    """All tiers end with the model that they began with, so that any mean of them is that model."""
    first = torch.linspace(-3, 3, 101).to(dtype)
    algorithm, index = CrossTier(FedAvg(), tiers=3), Whole({"w": (101,)})
    state = algorithm.init({"w": first.clone()}, Census(3))
    for at in range(300):
        group = (0, 1, 0, 2, 0, 1, 0)[at % 7]
        ended = Update(index, {"w": state["model"]["w"].clone()}, 1.0)
        state = algorithm.commit(state, {"model": ended}, [ReplyInfo(0, 1, 0, 5, 7, group=group)])
    assert torch.equal(state["model"]["w"], first)


def test_replies_of_another_tier_are_refused():
    algorithm = CrossTier(FedAvg(), tiers=2)
    state = algorithm.init({"w": torch.ones(3)}, Census(3))
    said = r"CrossTier\(.*tiers=2\): a commit must be of one tier from 0 to 1, got replies of \[2\]\. Use the"
    with pytest.raises(CompositionError, match=said):
        committed(algorithm, state, 2, [1.0] * 3)
    with pytest.raises(ValueError, match=r"CrossTier\(tiers=0\): must be at least 1, got 0\. Raise it\."):
        CrossTier(FedAvg(), tiers=0)


def test_against_an_oracle_on_two_tiers():
    """One client per tier and one step of rate 0.1; the fast one answers three times while the slow one does once."""
    population = parabolas(a=(1.0, 2.0), b=(6.0, -3.0))
    population.profiles = {0: Profile(1.0), 1: Profile(3.25)}
    star = star_of(
        CrossTier(FedAvg(full_batch(1)), tiers=2), number_model(2.0), population, Tiered(tiers=2, cohort=1, versions=9)
    )
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    w, tiers, count, expected = 2.0, [2.0, 2.0], [0, 0], []
    began = [2.0, 2.0]
    due = [3.25 + 1.0, 3.25 + 3.25]
    while len(expected) < 9:
        m = 0 if due[0] <= due[1] else 1
        a, b = ((1.0, 6.0), (2.0, -3.0))[m]
        tiers[m] = began[m] - 0.1 * a * (began[m] - b)
        count[m] += 1
        w = (count[1] * tiers[0] + count[0] * tiers[1]) / sum(count)
        expected.append(w)
        began[m] = w
        due[m] += (1.0, 3.25)[m]
    assert log.seen == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("part", [Scale(0.5), ServerSGD()])
def test_a_server_chain_which_is_for_changes_is_refused(part):
    """Both clients end at 1 or more, from 1: half of what they ended with is no model between the two."""
    population = parabolas(a=(1.0, 1.0), b=(6.0, 6.0))
    with pytest.raises(CompositionError, match=r"CrossTier\(.*: makes models of what clients ended with, got a server"):
        star_of(
            CrossTier(FedAvg(full_batch(1)), tiers=1),
            number_model(1.0),
            population,
            Tiered(tiers=1, cohort=2, versions=2),
            server_chain={"model": part},
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignMomentum(CrossTier(FedAvg()), 0.1),
        lambda: CO2(CrossTier(FedAvg()), 0.1),
        lambda: LANS(CrossTier(FedAvg())),
        lambda: AdaptiveClip(Mixing(FedAvg()), 1.0),
        lambda: Mixing(CrossTier(FedAvg())),
        lambda: CrossTier(Mixing(FedAvg())),
    ],
)
def test_what_works_on_changes_refuses_end_values(make):
    with pytest.raises(
        CompositionError, match=r"works on what clients changed, got an algorithm whose clients send what"
    ):
        make()


@dataclass(frozen=True)
class Unsaid(Around):
    """One that does not say what its clients send."""

    inner: Algorithm

    @property
    def sends_all(self) -> bool:
        return True


@pytest.mark.parametrize(
    "inner",
    [
        FederatedDropout(0.5, LOCAL, estimator="heat"),  # divided by the chance of being held
        AdaptiveClip(FedAvg(LOCAL), clip_norm=0.01),  # in units of the bound
    ],
)
@pytest.mark.parametrize("wrap", [Mixing, CrossTier])
def test_what_a_client_ended_with_is_not_made_of_another_change_than_its_own(wrap, inner):
    states, log = run(star("fedavg", rounds=1, algorithm=wrap(Unsaid(inner))))
    assert all("got another change of [" in e["reason"] for e in log.of("lost"))
    assert log.of("lost")
    assert states[SERVER].version == 0


def test_what_goes_around_end_values_all_the_same():
    assert SignMomentum(Mixing(FedAvg()), 0.1).sends_ends
    assert not CrossTier(SignMomentum(FedAvg(), 0.1)).inner.sends_ends


@pytest.mark.parametrize("wrap", [Mixing, CrossTier, LANS, lambda a: CO2(a, 0.1), lambda a: SignMomentum(a, 0.1)])
def test_an_algorithm_that_sends_no_model_is_refused(wrap):
    said = r"\w+\(FedLaAvg\): works on what clients send of the model, got an algorithm with the streams \['gradient'\]"
    with pytest.raises(CompositionError, match=said):
        wrap(FedLaAvg())
