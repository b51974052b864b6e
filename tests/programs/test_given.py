"""What a part of one's own gives and is of another kind: the part and what it must give are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.errors import CompositionError, DivergedError
from partwise.core.mean import Mean
from partwise.core.transform import chain
from partwise.experiment.population_summary import population_summary
from partwise.local import SGD, LocalTraining
from partwise.transforms import Clip, ServerSGD
from toy_star import everybody, number_model, parabolas, run, star_of

LOCAL = LocalTraining(SGD(0.1))


@dataclass(frozen=True)
class Other(FedAvg):
    """Federated averaging, of which one method gives something else."""

    method: str = ""
    gives: Any = None

    def select(self, task, own, site):
        return self._or("select", super().select(task, own, site))

    def fetch(self, index, task, own, site):
        return self._or("fetch", super().fetch(index, task, own, site))

    def receive(self, held, index, task, own, site):
        return self._or("receive", super().receive(held, index, task, own, site))

    def personalize(self, values, own):
        return self._or("personalize", super().personalize(values, own))

    def plan(self, held, index, task, own, site):
        return self._or("plan", super().plan(held, index, task, own, site))

    def report(self, held, trained, task, own, site):
        return self._or("report", super().report(held, trained, task, own, site))

    def finish(self, held, trained, index, task, own, site):
        return self._or("finish", super().finish(held, trained, index, task, own, site))

    def commit(self, state, totals, replies):
        return self._or("commit", super().commit(state, totals, replies))

    def aggregators(self):
        return self._or("aggregators", super().aggregators())

    def _or(self, method, found):
        return found if method != self.method else self.gives(found) if callable(self.gives) else self.gives


def star_with(method, gives, **parts):
    population = parabolas((1.0, 3.0, 0.5), (0.0, 4.0, -3.0))
    return star_of(
        Other(LOCAL, method=method, gives=gives), number_model(), population, everybody(population, 2), **parts
    )


@pytest.mark.parametrize(
    ("method", "gives", "got"),
    [
        ("select", None, "must give an index, such as site.whole(), got None."),
        ("fetch", lambda _: ["model"], "must give a dict of indices by stream, or None, got a list."),
        ("receive", None, "must give a dict of held values by stream, got None."),
        ("personalize", None, "must give a dict of tensors by name, got None."),
        ("plan", LOCAL, "must give a LocalPlan, such as LocalTraining().plan(site, task), got a LocalTraining."),
        ("report", None, "must give a dict of numbers by name, got None."),
        ("finish", None, "two things, got None."),
        ("finish", lambda found: found[0], "two things, got a dict."),
        ("finish", lambda found: (*found, 1), "two things, got a tuple of 3."),
        ("finish", lambda found: (found[0]["model"], found[1]), "two things, got an Update."),
        ("finish", lambda found: ({"model": found[0]["model"].value}, found[1]), "two things, got a dict."),
    ],
)
def test_a_client_whose_algorithm_gives_another_kind_is_lost_by_a_sentence(method, gives, got):
    _, log = run(star_with(method, gives))
    lost = log.of("lost")
    assert lost
    for each in lost:
        assert re.match(rf"CompositionError: Other\(.*\): {method} must give ", each["reason"])
        assert got in each["reason"]


def test_where_nobody_keeps_anything_a_relay_says_it_too():
    @dataclass(frozen=True)
    class Planless(FedAvg):
        def plan(self, held, index, task, own, site):
            return None

    population = parabolas()
    _, log = run(star_of(Planless(LOCAL), number_model(), population, everybody(population, 1)))
    assert "plan must give a LocalPlan" in log.of("lost")[0]["reason"]


def test_before_a_run_begins_its_summary_says_it():
    with pytest.raises(CompositionError, match=r"Other\(.*\): select must give an index, .* got None\."):
        population_summary(star_with("select", None))


def test_aggregators_that_are_no_dict():
    with pytest.raises(CompositionError, match=r"aggregators must give a dict of aggregators by stream, got a Mean\."):
        star_with("aggregators", Mean())


@pytest.mark.parametrize(
    ("gives", "error", "says"),
    [
        (lambda _: None, CompositionError, "commit must give the server's streams, .* got None"),
        (lambda found: found["model"], CompositionError, "commit must give the server's streams, .* got None"),
        (lambda _: {"model": {}}, CompositionError, r"other names, shapes or types for \['w'\]"),
        (lambda f: {"model": {"w": f["model"]["w"].expand(2, 1)}}, CompositionError, r"types for \['w'\]"),
        (lambda f: {"model": {"w": f["model"]["w"].half()}}, CompositionError, r"types for \['w'\]"),
        (lambda f: {"model": {**f["model"], "v": None}}, CompositionError, r"types for \['v'\]"),
        (
            lambda f: {"model": {"w": f["model"]["w"] * torch.nan}},
            DivergedError,
            r"version 0: the model that commit of Other\(.*\) made is no longer finite",
        ),
    ],
)
def test_what_is_no_model_any_more_is_not_committed(gives, error, says):
    with pytest.raises(error, match=says):
        run(star_with("commit", gives))


@dataclass(frozen=True)
class Odd:
    """A transform that gives something else."""

    gives: Any = None

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return self.gives(update) if callable(self.gives) else self.gives


@dataclass(frozen=True)
class OddMean(Mean):
    gives: Any = None

    def reduce(self, got, state, params, replies=()):
        return self.gives


@pytest.mark.parametrize(
    ("gives", "got"),
    [(None, "None"), (lambda u: u, "an Update"), (lambda u: (u.value, ()), "a dict"), (lambda _: (None, ()), "None")],
)
def test_transforms_that_give_no_update_and_state(gives, got):
    says = rf"Odd\(.*\): apply must give an Update and its next state, two things, got {got}\."
    _, log = run(star_with("", None, client_chain={"model": chain(Odd(gives), Clip(1.0))}))
    assert re.match(rf"CompositionError: {says}", log.of("lost")[0]["reason"])
    _, log = run(star_with("", None, server_chain={"model": chain(Odd(gives), ServerSGD(1.0))}))
    assert re.match(says, log.of("skipped")[0]["reason"])


def test_an_aggregator_that_gives_no_state():
    _, log = run(star_with("", None, aggregators={"model": OddMean(gives=None)}))
    says = r"OddMean\(.*\): reduce must give an Update and its next state, two things, got None\."
    assert re.match(says, log.of("skipped")[0]["reason"])
