"""Hostile clients in the star: what they train on, what the aggregator gets, in which rounds."""

from dataclasses import dataclass

import pytest
import torch

from partwise.aggregators import Mean, Median, Zeno, ZenoPlusPlus
from partwise.algorithms import FedAvg, FedSubAvg
from partwise.attacks import AfterRounds, Backdoor, Hostile, InnerProduct, LabelFlip, SignFlip
from partwise.channels import Plain
from partwise.core.attack import Attack
from partwise.core.errors import CompositionError
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.program import SERVER
from partwise.core.update import map_values
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.schedulers import FedAsync, Synchronous
from partwise.schedulers.staleness import Constant
from toy_federation import CASES, DIM, LOCAL, population, star
from toy_star import Clients, Log


def end(of):
    states, _ = Simulate().run(of.programs(), of.population, Log())
    return states[SERVER].streams["model"]


def test_sign_flip_of_everybody_takes_the_opposite_step():
    """One round in which all flip: the model goes as far the other way."""
    start = star("fedavg", 1).initial()
    good = end(star("fedavg", 1))
    bad = end(star("fedavg", 1, hostile=Hostile(SignFlip(), share=1.0)))
    for name, v in start.items():
        assert torch.allclose(bad[name] - v, v - good[name], atol=1e-6)


def test_without_hostile_clients_nothing_changes():
    one, other = end(star("fedavg")), end(star("fedavg", hostile=Hostile(SignFlip(), share=0.0)))
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_median_survives_what_breaks_the_mean():
    start, clean = star("fedavg", 3).initial(), end(star("fedavg", 3))
    attack = Hostile(SignFlip(1e6), clients=(1,))
    moved = {}
    for rule in (Mean("holders"), Median()):
        after = end(
            star("fedavg", 3, scheduler=Synchronous(cohort=7, rounds=3), hostile=attack, aggregators={"model": rule})
        )
        moved[type(rule).__name__] = max(float((after[n] - start[n]).abs().max()) for n in after)
    step = max(float((clean[n] - start[n]).abs().max()) for n in clean)
    assert moved["Mean"] > 1e3 * step
    assert moved["Median"] < 3 * step


@dataclass(frozen=True)
class Ones(Attack):
    """Sends 1 in every coordinate that it holds."""

    def forge(self, scene):
        return [map_values(u, torch.ones_like) for u in scene.own]


@pytest.mark.parametrize("rule", [Mean("cohort"), Median(min_holders=1)])
def test_what_is_made_up_is_scaled_as_what_it_replaces(rule):
    """Three commits of one reply each, times 0.25: whoever sends it, and whatever the rule needs."""
    scheduler = FedAsync(alpha=0.25, staleness=Constant(), concurrency=2, versions=3)
    of = star("fedavg", scheduler=scheduler, hostile=Hostile(Ones(), share=1.0), aggregators={"model": rule})
    start, after = of.initial(), end(of)
    assert all(torch.allclose(after[n] - start[n], torch.full_like(after[n], 0.75), atol=1e-6) for n in start)


@dataclass(frozen=True)
class Misfit(Attack):
    """One number for all of a parameter, which would be stretched to fit; or fewer updates than hostile clients."""

    fewer: int = 0

    def forge(self, scene):
        return [map_values(update, lambda v: v.sum()) for update in scene.own[self.fewer :]]


@pytest.mark.parametrize(
    ("fewer", "says"),
    [
        (0, "make updates that fit the model, got: Update"),
        (1, "make up one update for each hostile client, got 1 for 2"),
    ],
)
def test_what_a_server_would_have_refused_is_not_aggregated(fewer, says):
    of, log = star("fedavg", 1, hostile=Hostile(Misfit(fewer), share=0.5)), Log()
    Simulate().run(of.programs(), of.population, log)
    (skipped,) = log.of("skipped")
    assert skipped["reason"].startswith(f"Misfit(fewer={fewer}): must {says}")
    assert not log.of("commit")


def test_data_are_poisoned_for_hostile_clients_in_hostile_rounds():
    of = star("fedavg", hostile=Hostile(LabelFlip(3), clients=(2,), when=AfterRounds(4)))
    true = of.population.data(2).columns()["y"]
    assert torch.equal(of.site(2, 3).data.columns()["y"], true)
    assert torch.equal(of.site(2, 4).data.columns()["y"], 2 - true)
    assert torch.equal(of.site(2).data.columns()["y"], true)
    assert torch.equal(of.site(1, 4).data.columns()["y"], of.population.data(1).columns()["y"])


def test_warming_up_is_as_if_nothing_were():
    early = end(star("fedavg", 2, hostile=Hostile(SignFlip(50.0), share=0.5, when=AfterRounds(2))))
    clean = end(star("fedavg", 2))
    late = end(star("fedavg", 3, hostile=Hostile(SignFlip(50.0), share=0.5, when=AfterRounds(2))))
    other = end(star("fedavg", 3))
    assert all(torch.equal(early[n], clean[n]) for n in early)
    assert any(not torch.allclose(late[n], other[n]) for n in late)


@pytest.mark.parametrize("case", sorted(CASES))
def test_any_attack_meets_any_algorithm(case):
    """Two streams, client state, submodels: the run goes through, and a relay of it is not used."""
    of = star(case, 2, hostile=Hostile(InnerProduct(5.0), share=0.3))
    assert not of.is_relayable
    other = end(star(case, 2))
    after = end(of)
    assert any(not torch.equal(after[n], other[n]) for n in after)


def test_asynchronous_commits_of_one():
    of = star("fedavg", scheduler=FedAsync(versions=6, concurrency=3), hostile=Hostile(SignFlip(), share=1.0))
    start, bad = of.initial(), end(of)
    assert any(not torch.equal(bad[n], start[n]) for n in bad)


def test_runs_are_the_same_to_the_last_bit():
    attack = Hostile(SignFlip(2.0), share=0.4)
    one, other = (end(star("fedsubavg capped", hostile=attack)) for _ in range(2))
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_backdoor_is_learned_by_the_mean_and_not_by_the_median():
    """Every image has a label by its brightest row; the square in the corner says class 0."""

    def clients(num):
        found = []
        for i in range(num):
            rng = torch.Generator().manual_seed(i)
            y = torch.randint(4, (40,), generator=rng)
            x = 0.1 * torch.randn(40, 1, 6, 6, generator=rng)
            x[torch.arange(40), 0, y] += 1.0
            found.append({"x": x, "y": y})
        return Clients(found)

    attack = Backdoor(into=0, size=2, share=0.5, value=3.0, scale=5.0)
    model = Model(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)), CrossEntropy())
    test = Examples(clients(11).columns[10])
    rate = {}
    for rule in (Mean("holders"), Median()):
        of = Star(
            algorithm=FedAvg(LocalTraining(SGD(0.5), batch_size=10, epochs=2)),
            scheduler=Synchronous(rounds=15),
            model=model,
            population=clients(10),
            channel=Plain(),
            aggregators={"model": rule},
            seed=2,
            hostile=Hostile(attack, clients=(4, 7)),
        )
        params, stamped = end(of), attack.stamped(test)
        true = test.columns()["y"]
        clean = (model.outputs(params, test.columns()).argmax(1) == true).double().mean()
        fooled = model.outputs(params, stamped.columns()).argmax(1)[true != 0] == 0
        rate[type(rule).__name__] = float(clean), float(fooled.double().mean())
    assert rate["Mean"][1] > 0.9
    assert rate["Median"][1] < 0.5
    assert rate["Median"][0] > 0.95


def test_server_without_examples_cannot_judge():
    with pytest.raises(CompositionError, match=r"Star\(trusted=None\): a part needs examples that no client made"):
        star("fedavg", aggregators={"model": Zeno(f=1)})


def test_zeno_learns_where_most_are_hostile():
    data = population()
    trusted = Examples({n: torch.cat([data.data(c).columns()[n] for c in range(3)]) for n in ("words", "y")})
    attack = Hostile(SignFlip(3.0), share=0.6)
    losses = {}
    for name, rule in (("zeno", Zeno(f=5)), ("median", Median())):
        of = star(
            "fedavg",
            12,
            scheduler=Synchronous(cohort=7, rounds=12),
            hostile=attack,
            trusted=trusted,
            aggregators={"model": rule},
        )
        params = end(of)
        losses[name] = float(of.model.losses(params, trusted.columns(), training=False).mean())
        before = float(of.model.losses(of.initial(), trusted.columns(), training=False).mean())
    assert losses["zeno"] < before < losses["median"]


def test_zeno_plus_plus_judges_every_reply_as_it_comes():
    """Asynchronous, with more than half hostile: it takes the honest ones and learns."""
    data = population()
    trusted = Examples({n: torch.cat([data.data(c).columns()[n] for c in range(3)]) for n in ("words", "y")})
    of = star(
        "fedavg",
        scheduler=FedAsync(versions=80, concurrency=4),
        hostile=Hostile(SignFlip(10.0), share=0.6),
        trusted=trusted,
        aggregators={"model": ZenoPlusPlus(rate=0.3, examples=0)},
    )
    states, _ = Simulate().run(of.programs(), of.population, Log())
    judged = states[SERVER].reducers["model"]
    assert (judged.judged, judged.draws) == (80, 8)
    assert 0 < judged.accepted < 80
    loss = [float(of.model.losses(p, trusted.columns(), training=False).mean()) for p in (of.initial(), end(of))]
    assert loss[1] < 0.9 * loss[0]


def test_attack_needs_to_see_updates(monkeypatch):
    class Blind(Plain):
        reveals = "sum"

    with pytest.raises(CompositionError, match=r"Hostile\(.*\): plays attacks where updates can be seen, but"):
        star("fedavg", channel=Blind(), hostile=Hostile(SignFlip()))


def test_submodels_under_attack():
    of = star("fedavg", algorithm=FedSubAvg("count", LOCAL), hostile=Hostile(SignFlip(), share=0.3))
    assert set(end(of)) == set(of.initial())


def test_record_tells_what_was_left_alone_for_few_held_it():
    """Clients have words of their own: three holders are needed for a row to move."""
    log = Log()
    of = star("fedavg", 1, algorithm=FedSubAvg("count", LOCAL), aggregators={"model": Median()})
    Simulate().run(of.programs(), of.population, log)
    (told,) = log.of("told")
    rows = [set(of.site(r["client"]).table_rows("table.weight").tolist()) for r in log.of("reply")]
    few = [row for row in set().union(*rows) if sum(row in held for held in rows) < 3]
    assert told["coordinates_left"] == DIM * len(few) > 0
    assert told["fewest_holders"] == min(sum(row in held for held in rows) for row in set().union(*rows))
